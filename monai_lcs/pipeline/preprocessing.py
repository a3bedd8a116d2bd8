"""From a scan and an atlas to what the network sees: read, resample, align, fuse, scale, crop."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, PathLike
from monai.data import MetaTensor
from monai.transforms import (
    CropForegroundd,
    MapTransform,
    ScaleIntensityRangePercentiles,
    Spacing,
    Transform,
)
from monai.utils import TransformBackends, look_up_option

from monai_lcs.atlas import Alignment, AlignmentCache, Atlas, AtlasAligner
from monai_lcs.atlas.fusion import fuse_votes, vote_weights
from monai_lcs.atlas.voters import LabelMapVoter, PartialVolumeVoter
from monai_lcs.grids import affine_of, meta_on_grid, on_grid_of, resample, same_grid, upright
from monai_lcs.inferers import name_scan_grid
from monai_lcs.labels import present_labels
from monai_lcs.pipeline.aligned_atlas import AlignedAtlas, Scan
from monai_lcs.pipeline.settings import Settings
from monai_lcs.pipeline.skull import NOT_LOOKED_FOR, brain_of, has_skull, warn_of_skull
from monai_lcs.pipeline.voxel_votes import part_of, votes_in_part, votes_of_one
from monai_lcs.study.cases import shorten_names
from monai_lcs.study.checks import check_resampled_size, check_same_grid, check_scan, read_label_map, read_scan
from monai_lcs.study.images import volume_of_nibabel

__all__ = ["NETWORK_KEYS", "AlignedAtlas", "Preprocessing", "Scan", "ToNatived", "scale_intensity", "to_native"]

NETWORK_KEYS = ("image", "atlas_image", "atlas_label")
"""What the network sees, in the order of its channels."""

Grid = tuple[tuple[int, ...], np.ndarray]
"""A shape ``(*spatial)`` and an affine."""

TARGETS = (None, "network", "scan")
REGISTERED_MM = 1.0
"""Scans with finer voxels are registered at this voxel size, unless the network works at a finer one."""

EVERYWHERE = 10_000  # voxels of margin: more than any image has
LEAST_AGREEMENT = 0.2
"""Of the voxels that two aligned atlases label, this share has the same id where ids mean the same: by far more."""


class Preprocessing(Transform):
    """Makes of a scan what the network sees; the one definition for inference, evaluation and training.

    Called with a sample, it does all steps; :meth:`prepare`, :meth:`align` and :meth:`network_input` do them one by
    one. Each scan is read once, and checked as it is read. Nothing is random.

    Args:
        atlas: the atlas.
        settings: how to align, the voxel size and the margin.
        further_atlases: atlases with the same labels that vote beside it. One that is the scan itself, by its file or
            by its content, does not vote; one that cannot be aligned is left out with a warning.
        min_overlap: alignment with a lower overlap of foregrounds has failed.
        cache: alignments computed before, or the folder to keep them in; in memory only by default.
        votes_at_voxels: whether atlases vote at the scan's voxels as well: several, for a network that sees each of
            them, and one where ``settings.vote_weight`` says so; never with the target ``"network"``.
        target: where the sample's label map is wanted: ``"network"``, on the network's grid, to train on;
            ``"scan"``, on its own grid, to score against; ``None``, not at all.

    Raises:
        ValueError: when further atlases are given and ``settings.align`` is ``"none"``.

    Example:
        >>> from monai_lcs.labels import LabelTable
        >>> image = MetaTensor(torch.rand(1, 20, 20, 20), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
        >>> labels = torch.zeros(1, 20, 20, 20, dtype=torch.int32)
        >>> labels[:, 8:12, 8:12, 8:12] = 17
        >>> atlas = Atlas(image, MetaTensor(labels, affine=image.affine), LabelTable.from_ids([17]))
        >>> sample = Preprocessing(atlas, Settings(align="none", margin_mm=6))({"image": image})
        >>> [tuple(sample[key].shape) for key in NETWORK_KEYS]  # the label and 3 voxels around it
        [(1, 10, 10, 10), (1, 10, 10, 10), (1, 10, 10, 10)]
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        atlas: Atlas,
        settings: Settings | None = None,
        further_atlases: Sequence[Atlas] = (),
        min_overlap: float = 0.5,
        cache: AlignmentCache | PathLike | None = None,
        target: str | None = None,
        votes_at_voxels: bool = True,
    ) -> None:
        self.atlas = atlas
        self.settings = settings or Settings()
        self.further_atlases = tuple(further_atlases)
        self.aligner = AtlasAligner(self.settings.align, min_overlap)
        # The first atlas tells how the scan lies: no need to ask each further one
        self.further_aligner = AtlasAligner(self.settings.align, min_overlap, check_orientation=False)
        self.cache = cache if isinstance(cache, AlignmentCache) else AlignmentCache(cache)
        self.target = look_up_option(target, TARGETS) if target else None
        self._said_lost = False
        if self.settings.vote_weight and not votes_at_voxels:
            warnings.warn(
                "With `upsample` the masks have no part in the answer: `vote_weight` is not used.", stacklevel=3
            )
        wanted = votes_at_voxels and self.target != "network"
        self.vote_at_voxels = wanted and bool(self.further_atlases) and self.settings.sees_each_atlas
        self.vote_alone = wanted and self.settings.vote_weight > 0  # where all further atlases may be left out as well
        if self.further_atlases and self.settings.align == "none":
            raise ValueError("Further atlases must be aligned: give `align` 'rigid', 'affine' or 'deformable'.")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Preprocess one sample.

        Args:
            data: ``"image"``, a file or a volume; with a target ``"label"``, the label map, likewise.

        Returns:
            The sample with ``"image"``, ``"atlas_image"`` and ``"atlas_label"``, on the network's grid, with channels
            as :meth:`network_input` says; ``"source"``, the scan as read; ``"label"`` as asked for; ``"alignment"``,
            its report; with further atlases ``"agreement"``; where the masks answer for labels, ``"atlas_native"``.

        Raises:
            ValueError: naming the file that cannot be used, or the two that cannot be aligned.
        """
        return self.finish(self.load(data))

    def load(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The first half of the steps: read and check the files, bring them to the network's grid."""
        d = dict(data)
        scan = self.prepare(d["image"])
        d["image"], d["source"] = scan.image, scan.source
        if self.target is not None:
            d["label"] = self._target(d, scan.source)
        return d

    def finish(self, loaded: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The second half, the long work: align the atlas, scale and crop."""
        d = dict(loaded)
        scan = Scan(d["image"], d["source"])
        aligned = self.align(scan)
        target = {"label": d["label"]} if self.target == "network" else {}
        d.update(self.network_input(scan, aligned, target))
        if self.target != "network":
            name_scan_grid(d["image"], scan.source, aligned.scan_votes, aligned.vote_weight)
        d["alignment"] = aligned.quality
        if aligned.agreement is not None:
            d["agreement"] = aligned.agreement
        if aligned.native is not None and self.target != "network":
            d["atlas_native"] = aligned.native
        if self.target == "network":
            for key in (*NETWORK_KEYS, "label"):  # a crop is a view: only a copy of it lets the rest go
                d[key] = d[key].clone()
            # Training needs neither, and samples must collate
            del d["source"]
            d.pop("agreement", None)
        return d

    # ---- the steps ---------------------------------------------------------------------------------------------------

    def prepare(
        self, image: PathLike | np.ndarray | torch.Tensor, mask: PathLike | np.ndarray | torch.Tensor | None = None
    ) -> Scan:
        """Read and check a scan, leave out what is not brain, and bring it to the network's grid.

        Args:
            image: a file; or a volume ``(1, *spatial)`` or ``(*spatial)`` with its affine
                (:class:`monai.data.MetaTensor`; without one, voxels of 1 mm in RAS orientation).
            mask: the brain, on the grid of the scan, not 0 where it is; by default all of the scan.

        Raises:
            ValueError: when scan or mask cannot be used, or their grids differ.
        """
        source = as_volume(image)
        inside = None if mask is None else _as_mask(mask, source)
        return Scan(self.on_network_grid(brain_of(source, inside)), source, inside)

    def align(self, scan: Scan) -> AlignedAtlas:
        """Align the atlas to a scan, and fuse it with the further atlases.

        What is registered does not depend on the network's voxel size where that is the coarser one, see
        :data:`REGISTERED_MM`. A skull that nobody looked for is warned of, where the atlas has none.
        """
        if scan.skull == NOT_LOOKED_FOR and scan.mask is None and not self._atlas_has_skull:
            warn_of_skull(scan.source)
        to_register = self._to_register(scan)
        first, known = self._align(scan, to_register, self.atlas, self.aligner)
        quality = {**first.quality, "aligned": "cached" if known else "new"}
        quality["without_voxels"] = self._say_lost(first.label_map, scan)
        atlases = [first, *self.align_each(scan, self.further_atlases, to_register, part=first.in_part)]
        _warn_of_other_ids(*atlases)
        alone: dict[str, Any] = {}
        if len(atlases) == 1:
            own_votes = first.own_votes and first.own_votes()
            alone = {"native": first.native, "scan_votes": own_votes, "vote_weight": self.settings.vote_weight}
        if alone and not self.settings.soft_masks:
            return AlignedAtlas(first.image, first.label_map, quality, **alone)
        voters = [atlas.voter or LabelMapVoter(atlas.label_map) for atlas in atlases]
        images = [atlas.image for atlas in atlases]
        weights: Any = vote_weights(scan.image, images) if len(atlases) > 1 else None
        image, ballot = fuse_votes(scan.image, images, voters, weights)
        if not ballot.ids[0].any():
            raise ValueError(
                "No label has more votes than the background anywhere in "
                f"{scan.source.meta.get('filename_or_obj') or 'the scan'}: labels are too small for the voxels of the"
                " network, or the atlases do not agree on them."
            )

        def like_atlas(voxels: torch.Tensor) -> MetaTensor:
            return on_grid_of(first.image, voxels, first.image.meta)

        label_map = like_atlas(ballot.ids[:1].to(first.label_map.dtype))
        votes = like_atlas(ballot.channels()) if self.settings.soft_masks else None
        if alone:
            return AlignedAtlas(first.image, label_map, quality, votes=votes, **alone)
        native = to_native(label_map, scan.source) if self.settings.propagated else None
        agreement = like_atlas(ballot.shares[:1])
        parts: Any = [atlas.in_part for atlas in atlases]
        at_voxels = votes_in_part(parts, like_atlas(weights)) if self.vote_at_voxels else None
        fused = AlignedAtlas(
            like_atlas(image), label_map, quality, agreement, votes, native=native, scan_votes=at_voxels
        )
        if not self.settings.sees_each_atlas:
            return fused
        return replace(fused, each=tuple(replace(atlas, in_part=None, own_votes=None) for atlas in atlases))

    def align_each(
        self,
        scan: Scan,
        atlases: Sequence[Atlas],
        to_register: MetaTensor | None = None,
        check_orientation: bool = False,
        part: MetaTensor | None = None,
    ) -> Iterator[AlignedAtlas]:
        """Align each atlas that is not the scan itself; one that cannot be aligned is left out with a warning.

        Args:
            scan: on the network's grid.
            atlases: the atlases.
            to_register: what is registered of the scan; made of it by default.
            check_orientation: whether the first alignment looks if the scan's header turns it the wrong way.
            part: a volume on the part of the scan's grid where they vote at its voxels.
        """
        to_register = self._to_register(scan) if to_register is None else to_register
        aligner = self.aligner if check_orientation else self.further_aligner
        for atlas in atlases:
            if atlas.is_image(scan.source):
                continue
            try:
                aligned, _ = self._align(scan, to_register, atlas, aligner, part)
            except ValueError as error:
                warnings.warn(f"The atlas {atlas.files['image']} is left out: {error}", stacklevel=2)
                continue
            aligner = self.further_aligner
            yield aligned

    def network_input(
        self, scan: Scan, aligned: AlignedAtlas, more: Mapping[str, MetaTensor] | None = None
    ) -> dict[str, MetaTensor]:
        """Scale both images and crop all volumes to the box of all labels, grown by the margin.

        Args:
            scan: on the network's grid.
            aligned: the atlas on the same grid.
            more: further volumes to crop.

        Returns:
            :data:`NETWORK_KEYS` and the keys of ``more``, ``(1, *spatial)`` each; images in [0, 1]. With soft masks
            ``"atlas_label"`` are the votes, of which the last channel is the label map. Where the network sees each of
            K atlases ``"atlas_image"`` has their K images, and ``"atlas_label"`` K label maps and that of the vote.
        """
        atlases = aligned.each or (aligned,)
        label_maps = [aligned.label_map if aligned.votes is None else aligned.votes]
        label_maps = [*(atlas.label_map for atlas in aligned.each), *label_maps]
        volumes: Any = {
            "image": scale_intensity(scan.image),
            "atlas_image": _channels([scale_intensity(atlas.image) for atlas in atlases]),
            "atlas_label": _channels(label_maps),
        }
        volumes.update(more or {})
        crop: Any = CropForegroundd(
            list(volumes), source_key="atlas_label", channel_indices=-1, margin=self.margin, allow_smaller=True
        )
        return crop(volumes)

    @property
    def margin(self) -> list[int]:
        """Voxels of the network's grid around the labels."""
        mm = self.settings.margin_mm
        return [EVERYWHERE if mm is None else math.ceil(mm / size) for size in self.settings.spacing]

    def on_network_grid(self, volume: MetaTensor, mode: str = "bilinear") -> MetaTensor:
        """``(1, *spatial)`` turned to RAS and resampled, float32."""
        return self._resampled(volume, self.settings.spacing, mode)

    # ---- parts of steps ----------------------------------------------------------------------------------------------

    def _resampled(self, volume: MetaTensor, spacing: Sequence[float], mode: str = "bilinear") -> MetaTensor:
        return _on_grid(volume, _grid_at(volume, spacing), mode)

    def _target(self, d: Mapping[Hashable, Any], source: MetaTensor) -> MetaTensor:
        """The sample's label map, checked, on the grid where it is wanted."""
        label: Any = d["label"] if isinstance(d["label"], MetaTensor) else read_label_map(d["label"])
        names = (str(volume.meta.get("filename_or_obj") or "the image") for volume in (source, label))
        check_same_grid(source, label, *names)
        return self.on_network_grid(label, "nearest") if self.target == "network" else label

    @cached_property
    def _atlas_has_skull(self) -> bool:
        """Also for what is no volume, or is not aligned: there is nothing to warn of."""
        image = self.atlas.image
        return self.settings.align == "none" or image.ndim != 4 or has_skull(image)

    @cached_property
    def _atlas_on_network_grid(self) -> Atlas:
        """The atlas for scans that share its grid: what is resampled with a scan must be resampled like it."""
        return self._atlas_at(_grid_at(self.atlas.image, self.settings.spacing))

    def _atlas_like(self, scan: Scan) -> Atlas:
        """The atlas on the network's grid of a scan that shares its grid, though their headers round it otherwise."""
        atlas = self._atlas_on_network_grid
        ours, theirs = _grid_of(atlas.image), _grid_of(scan.image)
        as_it_is = ours[0] == theirs[0] and np.array_equal(ours[1], theirs[1])
        if as_it_is or not same_grid(*_upright_grid(scan.source), *_upright_grid(self.atlas.image)):
            return atlas
        return self._atlas_at(theirs)

    def _atlas_at(self, grid: Grid) -> Atlas:
        image = _on_grid(self.atlas.image, grid)
        label_map: Any = self.atlas.label_map.float()
        return Atlas(image, _on_grid(label_map, grid, "nearest"), self.atlas.table)

    def _to_register(self, scan: Scan) -> MetaTensor:
        """The scan with voxels as fine as its own, down to 1 mm; on the network's grid where that is no coarser."""
        own = np.linalg.norm(affine_of(scan.source)[:-1, :-1], axis=0).min()
        spacing = [min(mm, max(own, REGISTERED_MM)) for mm in self.settings.spacing]
        if self.settings.align == "none" or spacing == list(self.settings.spacing):
            return scan.image
        return self._resampled(brain_of(scan.source, scan.mask), spacing)

    def _align(
        self,
        scan: Scan,
        to_register: MetaTensor,
        atlas: Atlas,
        aligner: AtlasAligner,
        part: MetaTensor | None = None,
    ) -> tuple[AlignedAtlas, bool]:
        if self.settings.align == "none":
            atlas = self._atlas_like(scan)
        alignment, known = self.cache.align(aligner, to_register, atlas)
        if to_register is not scan.image:
            alignment = alignment.on_grid_of(scan.image, atlas.image)
        label_map = aligner.propagate(alignment, atlas.label_map, scan.image)
        voter = PartialVolumeVoter(alignment, atlas.label_map, label_map) if self.settings.soft_masks else None
        native = None
        if self.settings.propagated and aligner is self.aligner:
            native = self._native(alignment, atlas, label_map, scan)
        own_votes = None
        if self.vote_alone and aligner is self.aligner:
            own_votes = partial(votes_of_one, alignment, self.atlas.label_map, part_of(scan.source, label_map))
        if part is None and self.vote_at_voxels:
            part = part_of(scan.source, label_map)
        # A field of displacements takes more memory than labels: it is not kept
        in_part = None if part is None else replace(alignment, image=part).propagate(atlas.label_map)
        report = alignment.report
        found = AlignedAtlas(alignment.image, label_map, report, None, None, voter, native, in_part, own_votes)
        return found, known

    def _native(self, alignment: Alignment, atlas: Atlas, label_map: MetaTensor, scan: Scan) -> MetaTensor:
        """The propagated labels on the scan's own grid: thin ones do not survive a coarser one."""
        if alignment.mode == "none":
            return to_native(label_map, scan.source)
        return replace(alignment, image=scan.source).propagate(atlas.label_map)

    def _say_lost(self, label_map: MetaTensor, scan: Scan) -> str:
        """Name the labels without a voxel on the network's grid; a warning says it of the first scan that has any."""
        present = set(present_labels(label_map))
        lost = [f"{id} ({self.atlas.table[id].name[:30]})" for id in self.atlas.ids if id not in present]
        if not lost:
            return ""
        said = f"{len(lost)} of {len(self.atlas.ids)} labels: {shorten_names(lost)}"
        if not self._said_lost:
            self._said_lost = True
            size = " x ".join(f"{mm:g}" for mm in self.settings.spacing)
            file = scan.source.meta.get("filename_or_obj") or "the scan"
            warnings.warn(
                f"With voxels of {size} mm the atlas aligned to {file} has no voxel of {said}. They are not segmented "
                "there: that takes a smaller `spacing` (of the bundle), or a scan that shows them.",
                stacklevel=3,
            )
        return said


def _warn_of_other_ids(first: AlignedAtlas, *others: AlignedAtlas) -> None:
    """Warn of atlases whose ids seem to mean other structures than those of the first one."""
    own = first.label_map.as_tensor()
    for other in others:
        ids = other.label_map.as_tensor()
        both = (own != 0) & (ids != 0)
        agreement = float((own == ids)[both].float().mean()) if both.any() else 0.0
        if agreement < LEAST_AGREEMENT:
            warnings.warn(
                f"The ids of the further atlas {other.image.meta.get('filename_or_obj') or ''} seem to mean other"
                f" structures: of the voxels that it and the atlas label, only {agreement:.0%} have the same id."
                " It votes all the same; leave it out if that is so.",
                stacklevel=3,
            )


def _channels(volumes: Sequence[MetaTensor]) -> MetaTensor:
    """Volumes of one grid as one, float32, with the affine of the first and no other metadata."""
    return MetaTensor(torch.cat([each.as_tensor().float() for each in volumes]), affine=volumes[0].affine)


def scale_intensity(image: MetaTensor) -> MetaTensor:
    """Scale an image from its 0.5 and 99.5 percentiles to [0, 1].

    Example:
        >>> scale_intensity(MetaTensor(torch.arange(401.0)[None])).flatten()[[0, 2, 101, 200, 398, 400]]
        metatensor([0.0000, 0.0000, 0.2500, 0.5000, 1.0000, 1.0000])
    """
    scaled: Any = ScaleIntensityRangePercentiles(0.5, 99.5, 0.0, 1.0, clip=True)(image)
    return scaled


def as_volume(image: Any) -> MetaTensor:
    """A scan as ``(1, *spatial)`` with its affine, checked; of a file, it is read now.

    Args:
        image: a file; a :class:`monai.data.MetaTensor` ``(1, *spatial)`` or ``(*spatial)``; an image of nibabel; or a
            pair of an array and its affine ``(4, 4)``.

    Raises:
        ValueError: for anything else, as nothing would say where left is and how large a voxel.

    Example:
        >>> as_volume((np.zeros((4, 5, 6)), np.diag([1.0, 1, 2, 1]))).shape
        torch.Size([1, 4, 5, 6])
    """
    if isinstance(image, str) or hasattr(image, "__fspath__"):
        return read_scan(image)
    if hasattr(image, "dataobj") or (isinstance(image, tuple) and len(image) == 2):
        image = volume_of_nibabel(image)
    if not isinstance(image, MetaTensor):
        raise ValueError(
            "A scan must be a file, a MetaTensor, an image of nibabel or a pair (array, affine), got"
            f" {type(image).__name__}: without an affine nothing says which side is left."
        )
    volume: Any = image.float()
    volume = volume[None] if volume.ndim == 3 else volume
    check_scan(volume, str(volume.meta.get("filename_or_obj") or "the scan"))
    return volume


def _as_mask(mask: Any, source: MetaTensor) -> MetaTensor:
    """A mask of the user's as 0 and 1, uint8, checked against its scan."""
    volume = as_volume(mask)
    names = [
        str(each.meta.get("filename_or_obj") or name) for each, name in ((source, "the scan"), (volume, "the mask"))
    ]
    check_same_grid(source, volume, *names)
    inside: Any = volume != 0
    if inside.all() or not inside.any():
        value = "not 0" if inside.any() else "0"
        raise ValueError(f"{names[1]} is {value} everywhere: give a mask that is 1 in the brain and 0 elsewhere.")
    return MetaTensor(inside.as_tensor().to(torch.uint8), affine=source.affine.clone())


def to_native(volume: MetaTensor, source: MetaTensor, mode: str = "nearest") -> MetaTensor:
    """Carry a volume to the grid of the scan it belongs to, 0 more than half a voxel beyond its border.

    Args:
        volume: ``(1, *spatial)``, on any grid.
        source: the scan as read.
        mode: ``"nearest"`` for label maps, which come back as int32; ``"bilinear"`` for the rest.

    Returns:
        ``(1, *source_spatial)`` with exactly the affine of ``source``, and its metadata.

    Example:
        >>> coarse = MetaTensor(torch.tensor([[[[1]], [[2]]]]), affine=torch.diag(torch.tensor([2.0, 1, 1, 1])))
        >>> to_native(coarse, MetaTensor(torch.zeros(1, 3, 1, 1))).flatten().tolist()  # the middle goes to the right
        [1, 2, 2]
    """
    values: Any = volume.int() if mode == "nearest" else volume.float()
    there = _grid_of(volume)
    if there[0] == tuple(source.shape[1:]) and np.array_equal(there[1], affine_of(source)):
        return on_grid_of(source, values.as_tensor(), source.meta)  # without a copy
    return on_grid_of(source, resample(values, source.shape[1:], affine_of(source), mode, outside=0), source.meta)


def _grid_of(volume: MetaTensor) -> Grid:
    return tuple(volume.shape[1:]), affine_of(volume)


def _upright_grid(volume: MetaTensor) -> Grid:
    """The grid of a volume that is turned to RAS."""
    empty, affine = upright(np.broadcast_to(np.float32(0), volume.shape[1:]), affine_of(volume))
    return empty.shape, affine


def _on_grid(volume: MetaTensor, grid: Grid, mode: str = "bilinear") -> MetaTensor:
    """``(1, *spatial)`` resampled to a grid, float32."""
    shape, affine = grid
    voxels = resample(volume, shape, affine, mode).float()
    meta = meta_on_grid(volume.meta, shape)
    return MetaTensor(voxels.to(volume.device), affine=torch.as_tensor(affine), meta=meta)


def _grid_at(volume: MetaTensor, spacing: Sequence[float]) -> Grid:
    """The grid that :class:`monai.transforms.Spacing` gives a volume turned to RAS; an error if it is giant."""
    check_resampled_size(volume, spacing, str(volume.meta.get("filename_or_obj") or "the scan"))
    shape, affine = _upright_grid(volume)
    turned = MetaTensor(torch.zeros(1).expand(1, *shape), affine=torch.as_tensor(affine))
    planned: Any = Spacing(pixdim=spacing, lazy=True)(turned)  # its own resampling takes 67 bytes a voxel
    return tuple(map(int, planned.peek_pending_shape())), np.asarray(planned.peek_pending_affine(), dtype=float)


class ToNatived(MapTransform):
    """Carry results to the grid of the scan, see :func:`to_native`: label maps by nearest neighbor, agreement linearly.

    Of several channels, those of votes, only the last is carried, the label map.

    Args:
        keys: the volumes; ``"agreement"`` is interpolated.
        source_key: the scan as read.
        allow_missing_keys: pass over the keys that a sample lacks.

    Example:
        >>> sample = {"pred": MetaTensor(torch.ones(1, 2, 2, 2)), "source": MetaTensor(torch.zeros(1, 3, 2, 2))}
        >>> ToNatived("pred")(sample)["pred"].shape
        torch.Size([1, 3, 2, 2])
    """

    def __init__(self, keys: KeysCollection, source_key: Hashable = "source", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.source_key = source_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The sample with its volumes on the grid of ``data[source_key]``."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = to_native(d[key][-1:], d[self.source_key], "bilinear" if key == "agreement" else "nearest")
        return d
