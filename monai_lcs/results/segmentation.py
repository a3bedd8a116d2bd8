"""Holds the result of a segmentation, and writes it to files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from monai.config import PathLike
from monai.data import MetaTensor
from monai.utils import ImageMetaKey, convert_to_numpy

from monai_lcs.files import check_absent, check_writable, write_atomically
from monai_lcs.grids import grid_distance, same_grid
from monai_lcs.labels import LabelTable
from monai_lcs.labels.label_map import as_label_array
from monai_lcs.results.picture import qc_picture, require_matplotlib
from monai_lcs.results.tsv import write_tsv
from monai_lcs.results.volumes import volume_table
from monai_lcs.study.cases import MAX_NAME_BYTES, case_names
from monai_lcs.study.images import notes_of
from monai_lcs.study.nibabel_files import mm_by_unit

__all__ = ["ENDINGS", "Segmentation", "image_on_grid", "label_map_image"]

ENDINGS = {"labels": "dseg.tsv", "volumes": "volumes.tsv", "qc": "qc.png", "dseg": "dseg.nii.gz"}
"""The files of a result: the ends of their names, after the case and ``_``. The label map is written last."""

LOW_CONFIDENCE = 0.6
"""Labels with a lower confidence are dashed in the picture."""

# What a NIfTI header says about the grid; MONAI keeps it in the metadata of an image.
_GRID_FIELDS = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The segmentation of one scan: label map, volumes and quality. An empty label map gets a warning.

    Attributes:
        label_map: integers ``(1, *spatial)`` on the scan's own grid: 0 and ids of the table.
        image: the scan ``(1, *spatial)`` as it was read, with ``filename_or_obj`` in its metadata if it came from a
            file.
        table: the requested labels.
        quality: measures of quality by name, such as ``{"overlap": 0.97}``; what the scan's header left open is added
            as ``"notes"``, see :func:`monai_lcs.study.images.notes_of`.
        agreement: ``(1, *spatial)``, 0 to 1: how far several atlases agreed with the label map at each voxel; None
            for a single atlas.
        confidence: the Dice to expect of each label by the network's probabilities, by id; None without a network.
        case: the name of the scan, with which the names of the saved files start. Default: the name of the scan's
            file, see :func:`monai_lcs.study.cases.case_names`, or ``"scan"`` without one.

    Example:
        >>> import tempfile, torch
        >>> image = MetaTensor(torch.rand(1, 8, 8, 8), meta={"filename_or_obj": "scans/ann.mgz"})
        >>> result = Segmentation((image > 0.5) * 300, image, LabelTable.from_ids([4, 300]))
        >>> result, result.volumes["name"].tolist()
        (Segmentation('ann', 2 labels, (8, 8, 8) voxels), ['label-4', 'label-300'])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(Path(path).name for path in result.save(folder, picture=False).values())
        ['ann_dseg.nii.gz', 'ann_dseg.tsv', 'ann_volumes.tsv']
    """

    label_map: MetaTensor
    image: MetaTensor
    table: LabelTable
    quality: dict[str, Any] = field(default_factory=dict)
    agreement: MetaTensor | None = None
    case: str | None = None
    confidence: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        if self.case is None:
            object.__setattr__(self, "case", case_names([self._file])[0] if self._file else "scan")
        if notes := notes_of(self.image):
            object.__setattr__(self, "quality", {**self.quality, "notes": notes})
        if not (self.label_map != 0).any():
            said = (
                f"The label map of {self._source} is empty: none of the requested labels, {len(self.table)}, was found."
            )
            warnings.warn(said, stacklevel=4)

    def __repr__(self) -> str:
        voxels = tuple(self.label_map.shape[1:])
        return f"Segmentation({self.case!r}, {len(self.table)} labels, {voxels} voxels)"

    @cached_property
    def volumes(self) -> pd.DataFrame:
        """Voxels, mm3, agreement of several atlases and confidence of each label, see :func:`volume_table`."""
        labels = as_label_array(self.label_map)
        affine = convert_to_numpy(self.image.affine)
        return volume_table(labels, affine, self.table, self.agreement, self.confidence)

    def save(self, output_dir: PathLike, overwrite: bool = False, picture: bool = True) -> dict[str, str]:
        """Writes the segmentation to files on the grid of the scan's file.

        The files, in ``output_dir``, are:

        - ``CASE_dseg.tsv``: the label table;
        - ``CASE_volumes.tsv``: :attr:`volumes`;
        - ``CASE_qc.png``: a picture, see :func:`monai_lcs.results.picture.qc_picture`;
        - ``CASE_dseg.nii.gz``: the label map, in the smallest unsigned integer type that holds all ids of the table.
          Its affine is that of the scan's file. For a NIfTI scan it has the version, qform, sform, codes and units of
          the file, bit for bit; for other formats the affine in float32, as NIfTI 1 has it.

        Each file is written under another name and then renamed, the label map last: if it exists, all do.

        Args:
            output_dir: folder for the files; it is created if it does not exist.
            overwrite: whether to replace existing files.
            picture: whether to draw the picture, which needs matplotlib.

        Returns:
            The paths written, by ``"labels"``, ``"volumes"``, ``"qc"`` (with ``picture``) and ``"dseg"``.

        Raises:
            ValueError: if label map and scan have different grids, the label map holds other values than 0 and ids
                of the table, or ``case`` is no plain file name.
            FileExistsError: if one of the files exists and ``overwrite`` is False; nothing is written then.
            OSError: naming the file that cannot be written.
            ImportError: if ``picture`` and matplotlib is not installed.
        """
        if picture:
            require_matplotlib()  # before anything is written
        self._check_grid()
        paths = self._paths(Path(output_dir), picture)
        check_absent(list(paths.values()), overwrite)
        try:
            volumes = self.volumes
        except ValueError as error:
            raise ValueError(f"Cannot save the segmentation of {self._source}: {error}") from error
        label_map = self._nifti_image()

        check_writable(Path(output_dir))
        write_atomically(paths["labels"], self.table.write)
        write_atomically(paths["volumes"], lambda temporary: write_tsv(volumes, temporary))
        if picture:
            self._draw(paths["qc"])
        write_atomically(paths["dseg"], lambda temporary: nib.save(label_map, temporary))
        return {kind: str(path) for kind, path in paths.items()}

    def _draw(self, path: Path) -> None:
        """Draws the picture, labels of low confidence dashed."""
        unsure = [id for id, dice in (self.confidence or {}).items() if dice < LOW_CONFIDENCE]
        qc_picture(self.image, self.label_map, self.table, path, title=self._title, overwrite=True, unsure=unsure)

    @property
    def _file(self) -> str:
        """The scan's file, empty for a scan from memory."""
        return str(self.image.meta.get(ImageMetaKey.FILENAME_OR_OBJ) or "")

    @property
    def _title(self) -> str:
        """The line above the picture; what was guessed is below it."""
        notes = "; ".join(notes_of(self.image))
        return f"{self.case}\n{shorten(notes, 150)}" if notes else str(self.case)

    @property
    def _source(self) -> str:
        """What an error message calls the scan."""
        return self._file or "the scan"

    def _paths(self, folder: Path, picture: bool) -> dict[str, Path]:
        """Names the files."""
        case = self.case or ""
        if not case or Path(case).name != case:
            raise ValueError(f"`case` must be a file name without folders, got {case!r} for {self._source}.")
        if len(os.fsencode(case)) > MAX_NAME_BYTES:
            length = len(os.fsencode(case))
            raise ValueError(f"`case` must have at most {MAX_NAME_BYTES} bytes, got {length} for {self._source}.")
        kinds = [kind for kind in ENDINGS if picture or kind != "qc"]
        return {kind: folder / f"{case}_{ENDINGS[kind]}" for kind in kinds}

    def _check_grid(self) -> None:
        """Label map and scan must lie on the same grid."""
        shape = tuple(self.image.shape)
        if tuple(self.label_map.shape) != shape or len(shape) != 4 or shape[0] != 1:
            raise ValueError(
                f"The segmentation of {self._source} must have the shape (1, *spatial) of the image, three dimensions, "
                f"got {tuple(self.label_map.shape)} for {shape}: invert the preprocessing first."
            )
        affine, expected = (convert_to_numpy(tensor.affine) for tensor in (self.label_map, self.image))
        if not same_grid(shape[1:], expected, shape[1:], affine):
            raise ValueError(
                f"The segmentation of {self._source} must have the affine of the image, got one up to "
                f"{grid_distance(affine, expected, shape[1:]):.3g} mm off: invert the preprocessing first."
            )

    def _nifti_image(self) -> nib.Nifti1Image | nib.Nifti2Image:
        """Returns the label map with the scan's affine and header."""
        return label_map_image(self.label_map, self.image, self.table.dtype)


def label_map_image(
    label_map: MetaTensor, image: MetaTensor, dtype: np.dtype[Any]
) -> nib.Nifti1Image | nib.Nifti2Image:
    """Returns a label map as a NIfTI image on the grid of a scan.

    If the scan was read from a NIfTI file, and still lies on the file's grid, all fields that place the grid are the
    file's, and so is the version, since NIfTI 1 would round what NIfTI 2 has. Otherwise its affine is written as the
    sform of a scanner; and as the qform as well, which cannot hold shears, where it can.

    Args:
        label_map: integers ``(1, *spatial)``.
        image: the scan ``(1, *spatial)``.
        dtype: type of the voxels.

    Example:
        >>> import torch
        >>> scan = MetaTensor(torch.zeros(1, 4, 5, 6), affine=torch.diag(torch.tensor([1.0, 2, 3, 1])))
        >>> header = label_map_image(scan, scan, np.dtype(np.uint8)).header
        >>> int(header["sform_code"]), header["pixdim"][1:4].tolist(), header.get_xyzt_units()
        (1, [1.0, 2.0, 3.0], ('mm', 'unknown'))
    """
    return image_on_grid(as_label_array(label_map)[0].astype(dtype), image)


def image_on_grid(voxels: np.ndarray, image: MetaTensor) -> nib.Nifti1Image | nib.Nifti2Image:
    """Returns voxels ``(*spatial)`` as a NIfTI image of their type on the grid of a scan, as :func:`label_map_image`.

    Example:
        >>> import torch
        >>> scan = MetaTensor(torch.zeros(1, 4, 5, 6), affine=torch.eye(4))
        >>> image_on_grid(np.zeros((4, 5, 6), np.float32), scan).get_data_dtype() == np.float32
        True
    """
    header = _file_header(image)
    if header is None:
        header = _new_header(convert_to_numpy(image.affine), voxels.shape)
    image_type = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    # Given an affine, nibabel would compute the fields anew
    return image_type(voxels, None, header, dtype=voxels.dtype)


def _file_header(image: MetaTensor) -> nib.Nifti1Header | None:
    """Returns a header with the fields of the scan's NIfTI file; None if there are none or the scan was moved."""
    meta = image.meta
    if not all(name in meta for name in _GRID_FIELDS):
        return None
    header = nib.Nifti2Header() if int(meta.get("sizeof_hdr", 0)) == nib.Nifti2Header.sizeof_hdr else nib.Nifti1Header()
    header.set_data_shape(image.shape[1:])
    for name in _GRID_FIELDS:
        header[name] = np.asarray(meta[name])
    in_file, affine = header.get_best_affine(), convert_to_numpy(image.affine)
    in_mm = np.diag([*[mm_by_unit(header["xyzt_units"])] * 3, 1]) @ in_file
    # MONAI's own readers leave meters and micrometers as they are
    return header if any(np.allclose(affine, found) for found in (in_mm, in_file)) else None


def _new_header(affine: np.ndarray, shape: tuple[int, ...]) -> nib.Nifti1Header:
    """Returns a header with an affine in mm."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_qform(affine, code="scanner")
    header.set_sform(affine, code="scanner")
    header.set_xyzt_units("mm")
    if not same_grid(shape, affine, shape, header.get_qform()):
        header["qform_code"] = 0
    return header
