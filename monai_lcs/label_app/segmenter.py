"""From a scan and the labels asked for to a label map on the scan's grid; aligned atlases are kept."""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import PathLike
from monai.data import MetaTensor
from monai.transforms import CropForegroundd, Orientation, ResampleToMatch, ScaleIntensityRangePercentiles, Spacing

from monai_lcs.bundle import trained_settings
from monai_lcs.files import write_atomically
from monai_lcs.grids import on_grid_of
from monai_lcs.inferers import LabelSweepInferer
from monai_lcs.label_app.atlas_store import AtlasStore, AtlasVersion
from monai_lcs.labels.groups import present_labels
from monai_lcs.labels.label_map import as_label_array
from monai_lcs.labels.queries import RequestedLabel
from monai_lcs.metrics import label_dice
from monai_lcs.networks import LabelConditionedUNet
from monai_lcs.study.images import read_image
from monai_lcs.transforms import AlignAtlas

__all__ = ["DEFAULTS", "Aligned", "Segmenter", "Weights", "make_network", "union_map"]

DEFAULTS: dict[str, Any] = {
    "align": "deformable",
    "spacing": [2.0, 2.0, 2.0],
    "margin_mm": 6.0,
    "halo": 0,
    "channels": [8, 16, 32, 64],
    "conditioning": "multiscale",
    "norm": ["instance", {"affine": True}],
    "prior_logit": 2.0,
    "fused": False,
}
"""The bundle's settings, for weights that come without any and for a new network."""

KEPT = 8  # scans in memory, about 20 MB each at 2 mm


@dataclass(frozen=True)
class Weights:
    """A trained network's file and how it must be used.

    Args:
        path: the file; ``None`` for no network: labels are carried over by alignment.
        settings: see :data:`DEFAULTS`.
    """

    path: Path | None
    settings: Mapping[str, Any]

    @classmethod
    def find(cls, paths: Sequence[PathLike | None], settings: Mapping[str, Any]) -> Weights:
        """The first of some files that exists, with the settings kept beside it.

        Args:
            paths: where weights may be.
            settings: what differs from :data:`DEFAULTS` where a file comes without settings.

        Raises:
            ValueError: for settings that do not exist, or cannot be read.
        """
        unknown = sorted(set(settings) - set(DEFAULTS))
        if unknown:
            raise ValueError(f"There are no settings {unknown}, only {sorted(DEFAULTS)}.")
        found = next((Path(path) for path in paths if path and Path(path).is_file()), None)
        try:
            return cls(found, trained_settings(None if found is None else str(found), {**DEFAULTS, **settings}))
        except SystemExit as error:
            raise ValueError(str(error)) from error

    @property
    def key(self) -> tuple[str, int]:
        """Differs as soon as the file does."""
        return ("", 0) if self.path is None else (str(self.path), self.path.stat().st_mtime_ns)

    def load(self, network: torch.nn.Module) -> None:
        """Put them into a network.

        Raises:
            ValueError: when they are another network's.
        """
        assert self.path is not None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            network.load_state_dict(state.get("model", state))
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"The weights in {self.path} do not fit the network: {reason}") from error


def make_network(settings: Mapping[str, Any], dropout: float = 0.0) -> LabelConditionedUNet:
    """The bundle's network, with random weights."""
    names = ("channels", "conditioning", "norm", "prior_logit")
    return LabelConditionedUNet(spatial_dims=3, dropout=dropout, **{name: settings[name] for name in names})


@dataclass
class Aligned:
    """A scan on the network's grid with the atlas aligned to it; all ``(1, *spatial)``.

    Args:
        image: the scan.
        atlas_image: the atlas image.
        index: int32, which voxel of the atlas lies here, 1 for its first in C order, 0 for none. Any label map on the
            atlas's grid is carried over by looking its voxels up, so that painting on the atlas needs no new alignment.
        overlap: Dice of the foregrounds, 0 to 1.
        source: the scan's own grid and header, without voxels.
    """

    image: MetaTensor
    atlas_image: MetaTensor
    index: MetaTensor
    overlap: float
    source: MetaTensor

    def carry(self, atlas_labels: np.ndarray) -> MetaTensor:
        """An atlas label map ``(*spatial)`` on the scan's grid, float32 as the network takes it."""
        flat = np.concatenate([[0], atlas_labels.ravel()]).astype(np.float32)
        carried = torch.from_numpy(flat)[self.index.as_tensor().long()]
        return MetaTensor(carried, affine=self.index.affine)


class Segmenter:
    """Answers for one study.

    Several threads may share it.

    Args:
        store: the atlas.
        cache_dir: folder for aligned atlases; may be emptied at any time.
        min_overlap: alignment with a lower overlap of foregrounds has failed.
        threshold: background where no label's probability exceeds it.
        upsample: how many times finer than the network's grid outlines are before they meet the scan's.
    """

    def __init__(
        self,
        store: AtlasStore,
        cache_dir: PathLike,
        min_overlap: float = 0.5,
        threshold: float = 0.5,
        upsample: int = 2,
    ) -> None:
        self.store = store
        self.cache_dir = Path(cache_dir)
        self.min_overlap = min_overlap
        self.threshold = threshold
        self.upsample = upsample
        self._lock = threading.RLock()
        self._scans: OrderedDict[str, Aligned] = OrderedDict()
        self._networks: dict[str, tuple[Any, LabelConditionedUNet]] = {}
        self._atlas_labels: tuple[int, np.ndarray] | None = None

    def segment(
        self, image: PathLike, asked: Sequence[RequestedLabel], weights: Weights, device: str = "cpu"
    ) -> tuple[MetaTensor, dict[str, Any]]:
        """Find labels in a scan.

        The atlas image itself gets the labels as they are in the atlas.

        Args:
            image: the scan's file.
            asked: the labels, see :func:`monai_lcs.labels.queries.parse_request`.
            weights: the network.
            device: where it runs.

        Returns:
            The label map ``(1, *spatial)`` int32 on the scan's grid, with the metadata of the file; and what is worth
            saying of it: ``overlap`` of the aligned foregrounds, ``network`` (whether one was used), ``aligned``
            (``"atlas"``, ``"cached"`` or ``"new"``).

        Raises:
            ValueError: when the scan cannot be read or the atlas not be aligned to it.
        """
        version = self.store.current
        if _digest(image) == _digest(self.store.image):
            source = read_image(image)
            labels = union_map(MetaTensor(torch.from_numpy(self.atlas_labels(version))[None]), asked)
            return on_grid_of(source, labels.as_tensor(), source.meta), {
                "overlap": 1.0,
                "network": False,
                "aligned": "atlas",
            }
        scan, cached = self.align(image, weights.settings)
        prediction = self.predict(scan, version, asked, weights, device)
        on_grid: Any = ResampleToMatch(mode="nearest", padding_mode="zeros")(prediction.float(), scan.source)
        said = {"overlap": scan.overlap, "network": weights.path is not None, "aligned": "cached" if cached else "new"}
        return on_grid_of(scan.source, on_grid.as_tensor().int(), scan.source.meta), said

    def predict(
        self,
        scan: Aligned,
        version: AtlasVersion,
        asked: Sequence[RequestedLabel],
        weights: Weights,
        device: str,
        flip=False,
    ) -> MetaTensor:
        """The label map of an aligned scan on a grid ``upsample`` times as fine as its own, ``(1, *spatial)`` int32.

        Without a network the atlas labels as they lie there. With ``flip`` the network sees it all mirrored.
        """
        carried = scan.carry(self.atlas_labels(version))
        if weights.path is None:
            return union_map(carried, asked)
        here = set(present_labels(carried))
        labels = {one.id: one.ids for one in asked if here.intersection(one.ids)}
        inputs = network_input(scan.image, scan.atlas_image, carried, weights.settings)
        if not labels:
            return MetaTensor(torch.zeros(1, *inputs.shape[1:], dtype=torch.int32), affine=inputs.affine)
        inferer = LabelSweepInferer(
            labels=labels,
            margin_mm=weights.settings["margin_mm"],
            halo=weights.settings["halo"],
            upsample=self.upsample,
            threshold=self.threshold,
        )
        batch = inputs.as_tensor()[None].to(device)
        result: Any = inferer(
            MetaTensor(batch.flip(2) if flip else batch, affine=inputs.affine), self.network(weights, device)
        )
        found = result.as_tensor()[0].cpu()
        return MetaTensor(found.flip(1) if flip else found, affine=result.affine)

    def certainty(self, image: PathLike, weights: Weights, device: str = "cpu") -> float:
        """How sure the labels of a scan are, 0 to 1: mean Dice of the answers for the scan and for its mirror image.

        Without a network, the overlap of the foregrounds of the scan and the aligned atlas.
        """
        scan, _ = self.align(image, weights.settings)
        if weights.path is None:
            return scan.overlap
        version = self.store.current
        asked = [RequestedLabel(id, "", (id,)) for id in version.present]
        first, second = (self.predict(scan, version, asked, weights, device, flip) for flip in (False, True))
        dice = label_dice(second.as_tensor(), first.as_tensor(), version.present)
        return float(dice.nanmean()) if dice.isfinite().any() else 0.0

    def atlas_labels(self, version: AtlasVersion) -> np.ndarray:
        """The voxels ``(*spatial)`` of an atlas version; the last one is kept."""
        with self._lock:
            if self._atlas_labels is None or self._atlas_labels[0] != version.number:
                labels = as_label_array(read_image(version.labels))[0].astype(np.int32)
                self._atlas_labels = version.number, labels
            return self._atlas_labels[1]

    def align(self, image: PathLike, settings: Mapping[str, Any]) -> tuple[Aligned, bool]:
        """A scan with the atlas aligned to it, and whether that was known already.

        Known are the last scans, in memory, and all scans, on disk: by the content of both images, the spacing and
        the kind of alignment.
        """
        spacing = [float(mm) for mm in settings["spacing"]]
        text = f"{_digest(image)} {_digest(self.store.image)} {settings['align']} {spacing} {self.min_overlap}"
        key = hashlib.sha256(text.encode()).hexdigest()
        with self._lock:
            if key in self._scans:
                self._scans.move_to_end(key)
                return self._scans[key], True
            path = self.cache_dir / f"{key}.npz"
            cached = path.is_file()
            scan = self._aligned(image, settings["align"], spacing, path)
            self._scans[key] = scan
            if len(self._scans) > KEPT:
                self._scans.popitem(last=False)
            return scan, cached

    def _aligned(self, image: PathLike, mode: str, spacing: Sequence[float], path: Path) -> Aligned:
        source = read_image(image)
        scan = on_network_grid(source, spacing)
        bare = on_grid_of(source, torch.zeros(1).expand(source.shape), source.meta)
        if path.is_file():
            with np.load(path) as kept:
                atlas_image, index = (
                    MetaTensor(torch.from_numpy(kept[n]), affine=scan.affine) for n in ("image", "index")
                )
                return Aligned(scan, atlas_image, index, float(kept["overlap"]), bare)
        atlas = read_image(self.store.image)
        size = math.prod(atlas.shape)
        voxels: Any = MetaTensor(torch.arange(1, size + 1, dtype=torch.int32).reshape(atlas.shape), affine=atlas.affine)
        if mode == "none":
            atlas = on_network_grid(atlas, spacing)
            # in two parts, which float32 holds exactly
            parts: list[Any] = [on_network_grid(part, spacing, "nearest") for part in (voxels // 4096, voxels % 4096)]
            voxels = parts[0].int() * 4096 + parts[1].int()
        aligner = AlignAtlas(mode, self.min_overlap)
        atlas_image, index = aligner(scan, atlas, voxels)
        overlap = float(atlas_image.meta["alignment"]["overlap"])
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        arrays = {"image": atlas_image.as_tensor().numpy(), "index": index.as_tensor().numpy(), "overlap": overlap}
        write_atomically(path, lambda temporary: _save_npz(temporary, arrays))
        return Aligned(scan, atlas_image, index, overlap, bare)

    def network(self, weights: Weights, device: str) -> LabelConditionedUNet:
        """The network, read again as soon as its file changes."""
        with self._lock:
            if device not in self._networks or self._networks[device][0] != weights.key:
                network = make_network(weights.settings)
                weights.load(network)
                memory_format = torch.channels_last_3d if device == "cpu" else torch.preserve_format
                network = network.to(device, memory_format=memory_format).eval()  # type: ignore[call-overload]
                self._networks[device] = weights.key, network
            return self._networks[device][1]


def on_network_grid(image: MetaTensor, spacing: Sequence[float], mode: str = "bilinear") -> MetaTensor:
    """``(1, *spatial)`` turned to RAS and resampled, float32."""
    resampled: Any = Spacing(pixdim=spacing, mode=mode)(Orientation(axcodes="RAS", labels=None)(image))
    return resampled


def network_input(
    image: torch.Tensor, atlas_image: torch.Tensor, atlas_labels: torch.Tensor, settings: Mapping[str, Any]
) -> MetaTensor:
    """What the bundle's network sees: both images scaled, all cut to where the labels are, ``(3, *spatial)``."""
    scale = ScaleIntensityRangePercentiles(0.5, 99.5, 0.0, 1.0, clip=True)
    sample: Any = {"image": scale(image), "atlas_image": scale(atlas_image), "atlas_label": atlas_labels}
    sample = crop_to_atlas(list(sample), settings)(sample)
    volumes = [sample[key].as_tensor() for key in ("image", "atlas_image", "atlas_label")]
    return MetaTensor(torch.cat(volumes), affine=sample["atlas_label"].affine)


def crop_to_atlas(keys: Sequence[str], settings: Mapping[str, Any]) -> CropForegroundd:
    """Cuts a sample to the box of all labels grown by the margin, as the bundle does."""
    mm = settings["margin_mm"]
    margin = [10000 if mm is None else math.ceil(mm / size) for size in settings["spacing"]]
    return CropForegroundd(keys, source_key="atlas_label", margin=margin, allow_smaller=True)


def union_map(label_map: MetaTensor, asked: Sequence[RequestedLabel]) -> MetaTensor:
    """What is asked for of a label map, int32; where two labels overlap, the smaller id wins."""
    found = torch.zeros_like(label_map.as_tensor(), dtype=torch.int32)
    values = label_map.as_tensor().int()
    for one in reversed(sorted(asked, key=lambda each: each.id)):
        found[torch.isin(values, torch.tensor(one.ids, dtype=torch.int32))] = one.id
    return MetaTensor(found, affine=label_map.affine)


def _save_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    with open(path, "wb") as stream:  # numpy adds an ending to names
        np.savez_compressed(stream, **arrays)


_digests: dict[tuple[str, int, int], str] = {}


def _digest(path: PathLike) -> str:
    """The SHA-256 of a file, read again only where size or time of change differ."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    status = path.stat()
    key = (str(path), status.st_size, status.st_mtime_ns)
    if key not in _digests:
        _digests[key] = hashlib.sha256(path.read_bytes()).hexdigest()
    return _digests[key]
