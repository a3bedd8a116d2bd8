"""The atlas: an image, its label map and the table of its labels, read and checked once."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from monai.config import PathLike
from monai.data import MetaTensor
from monai.utils import convert_to_numpy

from monai_lcs.grids import affine_of, from_sitk, to_sitk
from monai_lcs.labels import LabelTable
from monai_lcs.labels.groups import present_labels
from monai_lcs.labels.label_map import as_plain_tensor, check_label_map
from monai_lcs.labels.rows import cut
from monai_lcs.study.cases import shorten_names
from monai_lcs.study.checks import check_same_grid, read_label_map, read_scan

__all__ = ["SAME_IMAGE", "Atlas", "fingerprint"]

SAME_IMAGE = 0.985
"""Two images that correlate by this much are copies of one another. Scans of two people reached 0.974 after a
deformable alignment, and resampled and rescaled copies of a scan 0.983 to 1."""


@dataclass(frozen=True, eq=False)
class Atlas:
    """A labeled image that says what a label looks like.

    Args:
        image: ``(1, *spatial)``, float32.
        label_map: ``(1, *spatial)`` on the same grid, ids > 0 of labels and 0 for background.
        table: names of the labels. It may name labels that the label map lacks; these cannot be requested.

    Example:
        >>> from monai_lcs.labels import Label
        >>> labels = MetaTensor(torch.tensor([[[[4, 4, 0], [7, 0, 0]]]]))
        >>> atlas = Atlas(MetaTensor(torch.rand(1, 1, 2, 3)), labels, LabelTable.from_ids([4, 5, 7]))
        >>> atlas.ids, atlas
        ((4, 7), Atlas(2 labels, (1, 2, 3) voxels))
    """

    image: MetaTensor
    label_map: MetaTensor
    table: LabelTable

    @classmethod
    def read(cls, image: PathLike, labels: PathLike, table: PathLike | LabelTable | None = None) -> Atlas:
        """Read an atlas from its files and check it.

        Args:
            image: the image file.
            labels: the label map file, on the grid of the image.
            table: the label table or its file, see :meth:`monai_lcs.labels.LabelTable.read`; without one the labels
                are named after their ids. What :attr:`mismatch` says of it is to be shown to the user.

        Raises:
            ValueError: naming the file and what is wrong with it: it is missing or cannot be read, is not 3D, has
                voxels that are NaN or no ids, the grids differ, or image and table have no label in common.
            FileNotFoundError: when there is no such label table.
        """
        image_volume, label_map = read_scan(image), read_label_map(labels)
        check_same_grid(image_volume, label_map, str(image), str(labels))
        ids: Any = label_map.int()
        named = LabelTable.read(table) if isinstance(table, str | os.PathLike) else table
        atlas = cls(image_volume, ids, named or LabelTable.from_ids(present_labels(label_map)))
        if not atlas.ids:
            present = list(present_labels(label_map)[:8])
            raise ValueError(
                f"The atlas label map {labels} has no label of {table}:"
                f" the table has {list(atlas.table.ids[:8])} ..., the atlas {present} ... ."
            )
        return atlas

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """Ids that have both a voxel and a name, ascending. These labels can be requested."""
        return tuple(i for i in present_labels(self.label_map) if i in self.table)

    @cached_property
    def unnamed(self) -> dict[int, int]:
        """Ids that have voxels but no name, ascending, with their voxels. They cannot be requested."""
        if set(present_labels(self.label_map)) <= set(self.table.ids):
            return {}
        values, counts = np.unique(convert_to_numpy(self.label_map), return_counts=True)
        voxels = dict(zip(map(int, values), map(int, counts), strict=True))
        return {id: n for id, n in voxels.items() if id > 0 and id not in self.table}

    @cached_property
    def absent(self) -> LabelTable:
        """Labels that have a name but no voxel. They cannot be requested either."""
        present = set(present_labels(self.label_map))
        return LabelTable(label for label in self.table if label.id not in present)

    @property
    def mismatch(self) -> str:
        """One line that says which ids label map and table do not share; empty where they share all."""
        said = []
        if self.unnamed:
            ids = [f"{id} ({n} voxels)" for id, n in self.unnamed.items()]
            names = f"has ids without a name in {self.table.source}, which are left out"
            said.append(f"{names}: {shorten_names(ids, most=4)}")
        if self.absent:
            absent = [f"{label.id} ({cut(label.name, 30)})" for label in self.absent]
            said.append(f"has no voxel of {len(absent)} labels of the table: {shorten_names(absent, most=3)}")
        return f"The atlas label map {self.files['label']} {'; it '.join(said)}." if said else ""

    @cached_property
    def fingerprint(self) -> str:
        """Tells the atlas image by its content, see :func:`fingerprint`; the labels do not matter."""
        return fingerprint(self.image)

    @property
    def files(self) -> dict[str, str]:
        """The files it was read from, as ``"image"`` and ``"label"``; empty strings where it was not."""
        volumes = {"image": self.image, "label": self.label_map}
        return {name: str(volume.meta.get("filename_or_obj") or "") for name, volume in volumes.items()}

    def is_image(self, scan: MetaTensor) -> bool:
        """Whether a scan is the atlas image itself, by its file (links resolved) or by its content.

        A scan that does not know its file may be a resampled or rescaled copy. It counts as the atlas image where the
        two, as they lie in the world, correlate by :data:`SAME_IMAGE` or more.
        """
        file, own = scan.meta.get("filename_or_obj"), self.files["image"]
        same_file = bool(file and own) and os.path.realpath(str(file)) == os.path.realpath(own)
        return same_file or fingerprint(scan) == self.fingerprint or (not file and self._is_copy(scan))

    def _is_copy(self, scan: MetaTensor) -> bool:
        """Whether a scan has the content of the atlas image on another grid or in other units."""
        if scan.ndim != self.image.ndim or len(scan) != 1:
            return False
        fixed, moving = (to_sitk(x.float(), affine_of(x)) for x in (scan, self.image))
        same_place = sitk.Transform(fixed.GetDimension(), sitk.sitkIdentity)
        atlas, _ = from_sitk(sitk.Resample(moving, fixed, same_place, sitk.sitkLinear, math.nan))
        inside = ~atlas.isnan()
        if inside.sum() < 2:
            return False
        voxels = torch.stack([scan.as_tensor().cpu().float()[inside], atlas[inside]])
        return bool(torch.corrcoef(voxels)[0, 1] >= SAME_IMAGE)

    def with_labels(self, label_map: torch.Tensor | np.ndarray, table: LabelTable) -> Atlas:
        """The same image with other labels: alignments of this atlas hold for that one too.

        Args:
            label_map: ``(1, *spatial)`` on the grid of the image.
            table: names of the labels.

        Raises:
            ValueError: when the shape is another, a MetaTensor has another affine, or a voxel is no id.
        """
        if tuple(label_map.shape) != tuple(self.image.shape):
            raise ValueError(
                f"`label_map` must have the image's shape {tuple(self.image.shape)}, got {tuple(label_map.shape)}."
            )
        check_label_map(label_map)
        if isinstance(label_map, MetaTensor):
            check_same_grid(self.image, label_map, "the atlas image", "the label map")
        ids: Any = MetaTensor(as_plain_tensor(label_map).cpu().int(), affine=self.image.affine)
        return replace(self, label_map=ids, table=table)

    def check_present(self, ids: Sequence[int]) -> None:
        """Raise a ValueError that names the labels without a voxel in the label map."""
        present = set(present_labels(self.label_map))
        missing = [id for id in ids if id not in present]
        if missing:
            names = [f"{id} ({self.table[id].name})" if id in self.table else f"{id}" for id in missing]
            which = shorten_names(names, most=10)
            raise ValueError(f"The atlas label map {self.files['label']} has no voxel of label {which}.")

    def __repr__(self) -> str:
        return f"Atlas({len(self.ids)} labels, {tuple(self.image.shape[1:])} voxels)"


def fingerprint(volume: MetaTensor) -> str:
    """A text that two volumes share when they have the same voxels and the same affine, whatever their files.

    Example:
        >>> fingerprint(MetaTensor(torch.ones(1, 2, 2))) == fingerprint(MetaTensor(torch.ones(1, 2, 2)))
        True
    """
    voxels = np.ascontiguousarray(convert_to_numpy(volume))
    digest = hashlib.sha256(repr((voxels.shape, voxels.dtype.str, affine_of(volume).tolist())).encode())
    digest.update(voxels.data)
    return digest.hexdigest()
