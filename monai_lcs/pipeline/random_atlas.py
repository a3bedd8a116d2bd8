"""Training with a random atlas: all atlases of a pool are aligned to each case once, each sample draws one."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import SpatialCrop

from monai_lcs.atlas import Atlas
from monai_lcs.atlas.voters import count_votes
from monai_lcs.boxes import grow_box, mask_box, union_box
from monai_lcs.labels import present_labels
from monai_lcs.labels.exact import EXACT_INTEGERS
from monai_lcs.pipeline.preprocessing import AlignedAtlas, Preprocessing, Scan, scale_intensity

__all__ = ["AtlasPool"]


class AtlasPool:
    """The preprocessing of training cases that draw their atlas anew for each sample.

    It takes the place of a :class:`Preprocessing` in :class:`monai_lcs.pipeline.PreparedDataset`. A case then holds all
    atlases of the pool on its grid; :class:`monai_lcs.transforms.RandDrawAtlasd` draws one. A case is never its own
    atlas. An atlas that cannot be aligned to a case, or has none of the labels to train in common with it, is left out
    for this case with a warning that names both.

    The cost grows with the pairs, n * (n - 1) for n cases that are each other's atlases. Time: one alignment each, once
    and for all with a ``cache`` folder. Memory: 3 bytes for a voxel of each pair (float16 and uint8; 4 bytes where ids
    are above 255), in the box of all labels: 56 pairs of 8 cases are 74 MB for 70x90x70 voxels. The pool itself has 8
    bytes for each voxel of its files.

    Args:
        preprocessing: how to load, align and crop, with the target ``"network"``; its own atlas takes no part.
        atlases: the pool.
        groups: the labels to train, as ids of unions; all by default.

    Raises:
        ValueError: when the pool is empty, or when ``preprocessing`` does not align.

    Example:
        >>> import numpy as np
        >>> from monai_lcs.labels import LabelTable
        >>> from monai_lcs.pipeline import Settings
        >>> image = torch.zeros(1, 32, 32, 32)
        >>> image[:, 8:24, 6:26, 10:22] = torch.arange(16.0)[:, None, None] + 5
        >>> scans = [MetaTensor(image.roll(shift, 1), affine=torch.eye(4)) for shift in (0, 2, -3)]
        >>> a, b, c = (Atlas(scan, MetaTensor((scan > 9).int()), LabelTable.from_ids([1])) for scan in scans)
        >>> settings = Settings(align="rigid", spacing=(1, 1, 1))
        >>> pool = AtlasPool(Preprocessing(a, settings, target="network"), [a, b, c])
        >>> case = pool.finish(pool.load({"image": b.image, "label": b.label_map}))
        >>> len(case["atlases"]), case["atlases"][0]["atlas_label"].shape == case["image"].shape
        (2, True)
    """

    def __init__(
        self, preprocessing: Preprocessing, atlases: Sequence[Atlas], groups: Sequence[Collection[int]] | None = None
    ) -> None:
        if not atlases:
            raise ValueError("A random atlas needs atlases to draw from, got none.")
        if preprocessing.settings.align == "none":
            raise ValueError("A random atlas must be aligned: give `align` 'rigid', 'affine' or 'deformable'.")
        self.preprocessing, self.atlases, self.groups = preprocessing, tuple(atlases), groups

    def load(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """:meth:`Preprocessing.load`."""
        return self.preprocessing.load(data)

    def finish(self, loaded: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Align all atlases of the pool to a case, scale, and crop to the box of all their labels.

        Returns:
            The case with ``"atlases"``, a list of ``"atlas_image"`` (float16) and ``"atlas_label"`` in place of one of
            each.

        Raises:
            ValueError: naming the case for which no atlas is left.
        """
        d = dict(loaded)
        scan = Scan(d["image"], d.pop("source"))
        atlases = [_compact(aligned) for aligned in self._aligned(scan, d["label"])]
        if not atlases:
            raise ValueError(f"No atlas is left for {_file(scan.source)}: it needs another one that can be aligned.")
        boxes = (mask_box(atlas["atlas_label"][-1]) for atlas in atlases)
        box = union_box([box for box in boxes if box])
        crop = SpatialCrop(roi_slices=list(grow_box(box, self.preprocessing.margin, scan.image.shape[1:])))
        d["image"], d["label"] = crop(scale_intensity(scan.image)), crop(d["label"])
        # A crop is a view: only a copy of it lets the rest go
        d["atlases"] = [{key: crop(volume).clone() for key, volume in atlas.items()} for atlas in atlases]
        return d

    def _aligned(self, scan: Scan, label_map: torch.Tensor) -> Iterator[AlignedAtlas]:
        """The atlases of the pool on the grid of a scan, without those that share no label with it."""
        target = self._groups_in(label_map)
        for aligned in self.preprocessing.align_each(scan, self.atlases, check_orientation=True):
            if not target.isdisjoint(self._groups_in(aligned.label_map)):
                yield aligned
            else:
                files = f"{_file(aligned.image)} is left out for {_file(scan.source)}"
                warnings.warn(f"The atlas {files}: they share no label to train.", stacklevel=2)

    def _groups_in(self, label_map: torch.Tensor) -> set[Any]:
        """The labels to train that have a voxel: numbers of groups, or ids."""
        ids = present_labels(label_map)
        if self.groups is None:
            return set(ids)
        return {number for number, group in enumerate(self.groups) if not set(ids).isdisjoint(group)}


def _compact(aligned: AlignedAtlas) -> dict[str, MetaTensor]:
    """An aligned atlas in little memory: its image scaled to [0, 1]."""
    image: Any = scale_intensity(aligned.image).half()
    label_map: Any = aligned.label_map
    largest = int(label_map.max())
    if aligned.voter is not None:
        votes = count_votes([aligned.voter], image.shape[1:]).channels()
        fits = torch.float16 if largest <= EXACT_INTEGERS[torch.float16] else torch.float32
        return {"atlas_image": image, "atlas_label": MetaTensor(votes.to(fits), affine=image.affine)}
    fits = next(t for t in (torch.uint8, torch.int16, torch.int32) if largest <= torch.iinfo(t).max)
    return {"atlas_image": image, "atlas_label": label_map.to(fits)}


def _file(volume: MetaTensor) -> str:
    return str(volume.meta.get("filename_or_obj") or "a scan")
