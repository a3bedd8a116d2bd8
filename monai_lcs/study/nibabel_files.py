"""Reads NIfTI, Analyze and MGH files as nibabel does, with the affine of the file."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.imageglobals import LoggingOutputSuppressor

from monai_lcs.grids import grid_distance, same_grid
from monai_lcs.study.file_data import (
    FileImage,
    ImageFileError,
    check_byte_order,
    check_directions,
    check_one_number,
    check_possible,
    compare_sizes,
    count_bytes,
    is_gzip,
    stored_bytes,
)

__all__ = ["NIBABEL_EXTENSIONS", "image_of_nibabel", "mm_by_unit", "nibabel_shape", "read_with_nibabel"]

NIBABEL_EXTENSIONS = (".nii.gz", ".nii", ".mgz", ".mgh", ".hdr", ".img", ".hdr.gz", ".img.gz")
"""Endings of the files that are read with nibabel."""

_MM_BY_UNIT = {1: 1000.0, 3: 0.001}
"""Millimeters by NIfTI's code of spatial units: meters and micrometers; the others are millimeters or unknown."""

_MGH_FOOTER = 20
"""Bytes of scan parameters after the voxels of an MGH file: five numbers."""

_MGH_TAGS = range(1, 101)
"""What may follow them: FreeSurfer's tags have numbers up to about 50."""


def read_with_nibabel(path: Path) -> FileImage:
    """Reads a NIfTI, Analyze or MGH file.

    Raises:
        ImageFileError: if header and data disagree, or the file holds more than one number a voxel.
        Exception: nibabel's, if it cannot read the file.

    Example:
        >>> path = getfixture("tmp_path") / "scan.nii"
        >>> nib.save(nib.Nifti1Image(np.ones((4, 5, 6)), np.diag([1, 2, 3, 1])), path)
        >>> image = read_with_nibabel(path)
        >>> image.voxels.shape, image.affine.diagonal().tolist(), image.notes
        ((4, 5, 6), [1.0, 2.0, 3.0, 1.0], ())
    """
    name = path.name.lower()
    if name.endswith((".mgz", ".mgh")):
        return _read_mgh(path)
    if name.endswith((".nii", ".nii.gz")):
        return _read_nifti(path)
    return _read_pair(path)


def image_of_nibabel(image: Any, name: str) -> FileImage:
    """Takes an image that nibabel has loaded or made, with its affine in mm.

    Args:
        image: the image.
        name: what an error message calls it.

    Raises:
        ImageFileError: if a voxel is more than one real number.

    Example:
        >>> image_of_nibabel(nib.Nifti1Image(np.ones((4, 5, 6, 1)), np.eye(4)), "the scan").voxels.shape
        (4, 5, 6)
    """
    affine, notes = np.array(image.affine, dtype=np.float64), []
    if isinstance(image, nib.Nifti1Pair):
        affine[:3] *= mm_by_unit(image.header["xyzt_units"])
        notes = _orientation_notes(image.header, image.shape[:3])
    voxels = np.asanyarray(image.dataobj)
    check_one_number(name, voxels.dtype, voxels.shape)
    return FileImage(voxels.reshape(voxels.shape[:3]), affine, notes=tuple(notes))


def nibabel_shape(path: Path) -> tuple[int, ...]:
    """Reads the shape alone.

    Example:
        >>> path = getfixture("tmp_path") / "scan.nii"
        >>> nib.save(nib.Nifti1Image(np.ones((4, 5, 6)), np.eye(4)), path)
        >>> nibabel_shape(path)
        (4, 5, 6)
    """
    with LoggingOutputSuppressor():
        image: Any = nib.load(path)
    return tuple(int(size) for size in image.shape)


# ---- one file, perhaps compressed


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Opens a file for reading, and decompresses it if it is gzip."""
    with gzip.open(path) if is_gzip(path) else open(path, "rb") as stream:
        yield stream


def _read_nifti(path: Path) -> FileImage:
    """Reads a single NIfTI file."""
    with _opened(path) as stream:
        start = stream.read(540)
        image_type = _nifti_type(start)
        if image_type is None:
            raise ValueError("it does not begin with the header of a NIfTI file")
        raw = image_type.header_class(start[: image_type.header_class.sizeof_hdr], check=False)
        _check_bits(path, raw)
        end = _claimed(path, raw) + raw.get_data_offset()
        content = _read_all(path, stream, end)
        compare_sizes(path, end, len(content) + count_bytes(stream))
    with LoggingOutputSuppressor():  # what nibabel corrects is in the notes, with the file's name
        image = image_type.from_bytes(content)
    return _nifti_image(path, image, raw, content)


def _nifti_type(start: bytes) -> Any:
    """Finds whether a file begins with the header of NIfTI 1 or 2; None for neither."""
    for image_type in (nib.Nifti1Image, nib.Nifti2Image):
        if image_type.header_class.may_contain_header(start):
            return image_type
    return None


def _read_mgh(path: Path) -> FileImage:
    """Reads an MGH file."""
    with _opened(path) as stream:
        start = stream.read(284)
        header = nib.MGHImage.header_class(start, check=False)
        end = _claimed(path, header) + header.get_data_offset()
        content = _read_all(path, stream, end + 2 * _MGH_FOOTER)
        _check_mgh_end(path, content, end, count_bytes(stream))
    image = nib.MGHImage.from_bytes(content)
    notes = []
    if not struct.unpack(">h", start[28:30])[0]:
        notes.append("its header says nothing about orientation (goodRASFlag is 0): which side is left is guessed")
    check_directions(path, image.header["Mdc"].T)
    return _file_image(path, image, image.affine, notes, content)


def _read_all(path: Path, stream: Any, end: int) -> bytes:
    """Reads a file from its beginning up to the byte ``end`` or the end of the stream."""
    check_possible(path, end, os.path.getsize(path))
    stream.seek(0)  # once more, since to put two parts together would take the memory of both
    content: bytes = stream.read(end)
    return content


def _check_mgh_end(path: Path, content: bytes, end: int, rest: int) -> None:
    """Voxels may be followed by scan parameters and tags of FreeSurfer, but not by more voxels."""
    behind = len(content) - end + rest
    if behind <= _MGH_FOOTER:
        compare_sizes(path, end, min(end, end + behind))
        return
    tag = content[end + _MGH_FOOTER : end + _MGH_FOOTER + 4]
    if len(tag) < 4 or struct.unpack(">i", tag)[0] not in _MGH_TAGS:
        compare_sizes(path, end, end + behind)


# ---- a header and its data


def _read_pair(path: Path) -> FileImage:
    """Reads an Analyze or NIfTI pair, by the name of either file."""
    stem = path.with_name(re.sub(r"\.(hdr|img)(\.gz)?$", "", path.name, flags=re.IGNORECASE))
    for ending in (".hdr", ".img", ".mat", ".hdr.gz", ".img.gz"):
        part = Path(f"{stem}{ending}")
        if part.exists() and not part.is_file():
            raise ImageFileError(f"{part} is no file but a pipe, a device or a folder.")
    with LoggingOutputSuppressor():
        image: Any = nib.load(path)
    data = Path(image.file_map["image"].filename)
    header_file = Path(image.file_map["header"].filename)
    with _opened(header_file) as stream:
        raw = type(image.header)(stream.read(image.header.sizeof_hdr), check=False)
    _check_bits(path, raw)
    offset = image.dataobj.offset
    if offset < 0:
        raise ImageFileError(f"{path} must have an offset of its voxels >= 0, got {offset}: convert the scan anew.")
    compare_sizes(data, _claimed(path, image.header) + offset, stored_bytes(data))
    if isinstance(image, nib.Nifti1Pair):
        return _nifti_image(path, image, raw)
    notes = []
    if np.allclose(image.affine, image.header.get_best_affine()):  # otherwise SPM's .mat file says it
        notes.append("Analyze files say nothing about orientation: which side is left is guessed")
    return _file_image(path, image, image.affine, notes)


def _claimed(path: Path, header: Any) -> int:
    """Counts the bytes of voxels by shape and data type of a header."""
    dtype, shape = header.get_data_dtype(), header.get_data_shape()
    if not shape or min(shape) < 1:
        raise ImageFileError(f"{path} must have at least one voxel along each axis, got the shape {tuple(shape)}.")
    check_one_number(path, dtype, shape)
    return int(np.prod([int(size) for size in shape], dtype=object)) * int(dtype.itemsize)


def _check_bits(path: Path, raw: Any) -> None:
    """Data type and bits of a voxel must agree; nibabel would correct the bits in silence."""
    bits, expected = int(raw["bitpix"]), 8 * int(raw.get_data_dtype().itemsize)
    if bits not in (0, expected):
        raise ImageFileError(
            f"{path} has {bits} bits a voxel by `bitpix` of its header, {expected} by `datatype`: "
            "convert the scan anew."
        )


def _file_image(
    path: Path, image: Any, affine: np.ndarray, notes: list[str], content: bytes | None = None
) -> FileImage:
    """Takes the voxels from the content of the file, where it was read already, and keeps the header's fields."""
    data = image.dataobj
    if content is None:
        raw = data.get_unscaled()
    else:
        raw = np.ndarray(data.shape, data.dtype, content, data.offset, order="F")  # nibabel would copy them
    check_byte_order(path, raw)
    raw = raw.reshape(raw.shape[:3], order="A")  # without further axes of length 1
    fields = _fields(image.header)
    # As nibabel scales; the voxels were read in any case
    return FileImage(raw, np.array(affine, dtype=np.float64), fields, tuple(notes), data.slope, data.inter)


def _fields(header: Any) -> dict[str, Any]:
    """Returns the fields of a header in the order of bytes that torch has, as MONAI keeps them."""
    with contextlib.suppress(ValueError):  # MGH is big-endian and stays so
        header = header.as_byteswapped("<")
    fields = dict(header)
    if "pixdim" in fields:
        fields["original_pixdim"] = np.array(fields["pixdim"])
    return fields


# ---- NIfTI's two affines


def _nifti_image(path: Path, image: Any, raw: Any, content: bytes | None = None) -> FileImage:
    """Reads the voxels, the affine in mm, and what is left open of it; ``raw`` is the header before corrections."""
    header, affine = image.header, np.array(image.affine, dtype=np.float64)
    notes = _correction_notes(raw, header) + _orientation_notes(header, image.shape[:3])
    affine[:3] *= mm_by_unit(header["xyzt_units"])
    return _file_image(path, image, affine, notes, content)


def mm_by_unit(xyzt_units: Any) -> float:
    """Returns how many millimeters the unit of a NIfTI file has: 1, unless it is meters or micrometers.

    Example:
        >>> mm_by_unit(3), mm_by_unit(2 + 8), mm_by_unit(0)
        (0.001, 1.0, 1.0)
    """
    return _MM_BY_UNIT.get(int(xyzt_units) & 7, 1.0)


def _correction_notes(raw: Any, header: Any) -> list[str]:
    """Says what nibabel corrected of the fields that place the grid, apart from a ``qfac`` of 0."""
    notes = []
    for name, part in (("qform_code", ()), ("sform_code", ()), ("pixdim", slice(1, 4))):
        before, after = np.asarray(raw[name])[part], np.asarray(header[name])[part]
        if not np.array_equal(before, after, equal_nan=True):
            notes.append(f"{name} of its header is {before.tolist()}, which is not valid: read as {after.tolist()}")
    return notes


def _orientation_notes(header: Any, shape: tuple[int, ...]) -> list[str]:
    """Says what the header leaves open: where left is, which of two affines holds, how large a voxel is."""
    q_code, s_code = int(header["qform_code"]), int(header["sform_code"])
    if not q_code and not s_code:
        return [
            "its header says nothing about orientation (qform_code = sform_code = 0): which side is left is guessed"
        ]
    if not s_code:
        return []
    sform = header.get_sform()
    notes = _size_notes(header, sform)
    if q_code:
        notes += _form_notes(header, sform, shape)
    return notes


def _form_notes(header: Any, sform: np.ndarray, shape: tuple[int, ...]) -> list[str]:
    """Compares sform and qform, where both are given."""
    try:
        qform = header.get_qform()
    except ValueError:
        return ["the quaternion of its qform is invalid: its sform is used"]
    if np.linalg.det(sform) * np.linalg.det(qform) < 0:
        return ["its sform and qform mirror each other: which side is left is taken from the sform"]
    if same_grid(shape, sform, shape, qform):
        return []
    names = [nib.nifti1.xform_codes.label[int(header[field])] for field in ("sform_code", "qform_code")]
    distance = grid_distance(sform, qform, shape) * mm_by_unit(header["xyzt_units"])
    return [f"its sform ({names[0]}) and qform ({names[1]}) lie up to {distance:.3g} mm apart: the sform is used"]


def _size_notes(header: Any, sform: np.ndarray) -> list[str]:
    """Compares the voxel sizes of sform and ``pixdim``; a percent in length is three in volume."""
    sizes = np.linalg.norm(sform[:3, :3], axis=0)
    zooms = np.array([*header.get_zooms()[:3], *sizes[len(header.get_zooms()) :]], dtype=float)
    if not sizes.all() or not np.isfinite(sizes).all() or np.allclose(sizes, zooms, rtol=0.01, atol=0):
        return []
    texts = [" x ".join(f"{value:.4g}" for value in values) for values in (sizes, zooms)]
    return [f"its voxels are {texts[0]} by the sform, {texts[1]} by pixdim: volumes follow the sform"]
