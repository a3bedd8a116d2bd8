"""The pipeline for one study: its atlas changes as labels are painted, its weights change as it is trained."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monai.config import PathLike
from monai.data import MetaTensor

from monai_lcs.atlas import AlignmentCache, Atlas
from monai_lcs.grids import on_grid_of
from monai_lcs.label_app.atlas_store import AtlasStore
from monai_lcs.labels import RequestedLabel, parse_request
from monai_lcs.metrics import label_dice
from monai_lcs.pipeline import Segmenter, Settings
from monai_lcs.pipeline.segmenter import select_requested
from monai_lcs.study.checks import read_label_map, read_scan

__all__ = ["StudySegmenter", "Weights"]


@dataclass(frozen=True)
class Weights:
    """The file of a trained network, and the settings it must be used with.

    Args:
        path: the file; ``None`` for no network: labels are then propagated by alignment.
        settings: what the network was trained with.

    Example:
        >>> Weights(None, Settings()).key
        ('', 0)
    """

    path: Path | None
    settings: Settings

    @classmethod
    def find(cls, paths: Sequence[PathLike | None], settings: Mapping[str, Any]) -> Weights:
        """Find the first of some files that exists, and read the settings that are kept beside it.

        Args:
            paths: where weights may be.
            settings: what replaces the defaults of :class:`monai_lcs.pipeline.Settings` if a file comes without
                settings.

        Raises:
            ValueError: if there are no such settings, or they cannot be read.

        Example:
            >>> Weights.find([None, "no/model.pt"], {"align": "affine"}).settings.align
            'affine'
        """
        found = next((Path(path) for path in paths if path and Path(path).is_file()), None)
        defaults = Settings() if found else Settings.of_weights(None)
        return cls(found, Settings.of_weights(found, Settings.from_dict({**defaults.to_dict(), **settings})))

    @property
    def key(self) -> tuple[str, int]:
        """Two values that differ as soon as the file does."""
        return ("", 0) if self.path is None else (str(self.path), self.path.stat().st_mtime_ns)


class StudySegmenter:
    """Segments the scans of one study with the atlas and the weights as they are now.

    Several threads may share it. A label that was painted on the atlas needs no new alignment.

    Args:
        store: the versions of the atlas.
        cache_dir: folder for alignments; it may be emptied at any time.
        **options: ``min_overlap``, ``threshold`` and ``upsample``, see :class:`monai_lcs.pipeline.Segmenter`.

    Example:
        >>> import nibabel as nib, numpy as np
        >>> folder, ids = getfixture("tmp_path"), np.eye(4, dtype=np.uint8)[..., None].repeat(4, -1)
        >>> for name in ("T1w.nii.gz", "dseg.nii.gz"):
        ...     nib.save(nib.Nifti1Image(ids, np.eye(4)), folder / name)
        >>> store = AtlasStore.create(folder / "atlas", folder / "T1w.nii.gz", folder / "dseg.nii.gz")
        >>> study = StudySegmenter(store, folder / "cache")
        >>> label_map, facts = study.segment(folder / "T1w.nii.gz", study.request("all"), Weights.find([], {}))
        >>> int(label_map.sum()), facts["aligned"]
        (16, 'atlas')
    """

    def __init__(self, store: AtlasStore, cache_dir: PathLike, **options: Any) -> None:
        self.store = store
        self.cache = AlignmentCache(cache_dir)
        self.options = options
        self._lock = threading.RLock()
        self._atlas: tuple[int, Atlas] | None = None
        self._segmenter: tuple[str, Segmenter] | None = None

    def request(self, labels: Any = None) -> list[RequestedLabel]:
        """Find the labels that a client requests, see :func:`monai_lcs.labels.parse_request`.

        Raises:
            ValueError: if a label is unknown.
        """
        atlas = self.atlas()
        return parse_request(labels, atlas.table, atlas.ids)

    def segment(
        self, image: PathLike, requests: Sequence[RequestedLabel], weights: Weights, device: str = "cpu"
    ) -> tuple[MetaTensor, dict[str, Any]]:
        """Find labels in a scan. The atlas image itself gets the labels that it has in the atlas.

        Args:
            image: the scan's file.
            requests: the requested labels, from :meth:`request`.
            weights: the network.
            device: where the network runs.

        Returns:
            The label map ``(1, *spatial)``, int32, on the scan's grid and with the metadata of its file. And the facts
            that a client is told: ``overlap``, the Dice of the aligned foregrounds, ``network``, whether one was used,
            and ``aligned``, one of ``"atlas"``, ``"cached"`` and ``"new"``.

        Raises:
            ValueError: if the scan cannot be read or the atlas not be aligned to it.
        """
        scan = read_scan(image)
        segmenter = self.segmenter(weights, device)
        if segmenter.atlas.is_image(scan):
            labels = select_requested(segmenter.atlas.label_map, requests).as_tensor()
            return on_grid_of(scan, labels, scan.meta), {"overlap": 1.0, "network": False, "aligned": "atlas"}
        result = segmenter.segment(scan, requests)
        return result.label_map, {name: result.quality[name] for name in ("overlap", "network", "aligned")}

    def certainty(self, image: PathLike, weights: Weights, device: str = "cpu") -> float:
        """Estimate how certain the labels of a scan are, 0 to 1.

        It is the mean Dice of the labels found in the scan and of those found in its mirror image. Without a network,
        it is the overlap of the foregrounds of the scan and the aligned atlas.

        Raises:
            ValueError: if the scan cannot be read or the atlas not be aligned to it.
        """
        segmenter = self.segmenter(weights, device)
        scan = segmenter.prepare(image)
        aligned = replace(segmenter.align(scan), scan_votes=None)  # which would agree with themselves
        if weights.path is None:
            return float(aligned.quality["overlap"])
        requests = segmenter.request()
        found = (segmenter.predict(scan, aligned, requests, flip) for flip in (False, True))
        first, second = (segmenter.to_native(one, scan).as_tensor() for one in found)
        dice = label_dice(second, first, segmenter.atlas.ids)
        return float(dice.nanmean()) if dice.isfinite().any() else 0.0

    def atlas(self) -> Atlas:
        """Give the current version of the atlas. The image is read once, each label map once."""
        version = self.store.current
        with self._lock:
            if self._atlas is None or self._atlas[0] != version.number:
                label_map: Any = read_label_map(version.labels).int()
                image = read_scan(self.store.image) if self._atlas is None else self._atlas[1].image
                self._atlas = version.number, Atlas(image, label_map, version.table)
            return self._atlas[1]

    def segmenter(self, weights: Weights, device: str = "cpu") -> Segmenter:
        """Give the pipeline with the current atlas and these weights. It is made anew as soon as one of them changes.

        Raises:
            ValueError: if the weights cannot be read or do not fit their settings.
        """
        with self._lock:
            key = repr((self.store.current.number, weights, weights.key, device))
            if self._segmenter is None or self._segmenter[0] != key:
                atlas, settings = self.atlas(), weights.settings
                segmenter = Segmenter.load(weights.path, atlas, device, settings, cache=self.cache, **self.options)
                self._segmenter = key, segmenter
            return self._segmenter[1]
