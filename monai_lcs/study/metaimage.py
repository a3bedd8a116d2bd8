"""Reads MetaImage files, ``.mha`` and ``.mhd``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from monai_lcs.study.file_data import FileImage, ImageFileError, check_directions, shown
from monai_lcs.study.text_headers import (
    Data,
    check_3d,
    field_error,
    file_image,
    read_data,
    read_lines,
    to_floats,
    to_int,
    to_shape,
    unit_in_mm,
)

__all__ = ["META_EXTENSIONS", "metaimage_shape", "read_metaimage"]

META_EXTENSIONS = (".mha", ".mhd")

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",  # four bytes in this format, on every machine
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_MATRICES = ("TransformMatrix", "Rotation", "Orientation")
_POINTS = ("Offset", "Position", "Origin")
_SIZES = ("ElementSpacing", "ElementSize")
_BYTE_ORDERS = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")


def read_metaimage(path: Path) -> FileImage:
    r"""Reads a MetaImage file.

    Raises:
        ImageFileError: naming the field that cannot be, or the sizes of data and header that differ.

    Example:
        >>> path = getfixture("tmp_path") / "scan.mha"
        >>> _ = path.write_text("NDims = -1\nElementDataFile = LOCAL\n")
        >>> read_metaimage(path)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        monai_lcs.study.file_data.ImageFileError: ...scan.mha must have 2 to 5 as 'NDims' in its header, got -1.
    """
    fields, end = _header(path)
    shape = to_shape(path, fields, "NDims", "DimSize")
    kind = fields.get("ElementType", "")
    if kind not in _TYPES:
        raise field_error(path, "ElementType", kind, "a number type such as MET_SHORT or MET_FLOAT")
    channels = to_int(path, fields, "ElementNumberOfChannels", "1")
    if channels != 1:
        raise ImageFileError(f"{path} must have one number a voxel, got {channels}: give one of them.")
    check_3d(path, shape)
    axes, origin = _grid(path, fields, len(shape))
    big = any(_is_true(path, fields, name, False) for name in _BYTE_ORDERS)
    voxels = read_data(path, _data(path, fields, end), shape, np.dtype((">" if big else "<") + _TYPES[kind]))
    mm, notes = unit_in_mm(fields.get("DistanceUnits", ""))
    if not any(name in fields for name in _MATRICES):
        notes.append("its header says nothing about orientation (no TransformMatrix): which side is left is guessed")
    return file_image(voxels, axes, origin, mm, notes)


def metaimage_shape(path: Path) -> tuple[int, ...]:
    r"""Reads the shape alone, with the numbers of a voxel last; see :func:`read_metaimage`.

    Example:
        >>> path = getfixture("tmp_path") / "scan.mha"
        >>> _ = path.write_text("NDims = 2\nDimSize = 4 5\nElementDataFile = LOCAL\n")
        >>> metaimage_shape(path)
        (4, 5, 1)
    """
    fields, _ = _header(path)
    channels = to_int(path, fields, "ElementNumberOfChannels", "1")
    return (*to_shape(path, fields, "NDims", "DimSize"), channels)


def _header(path: Path) -> tuple[dict[str, str], int]:
    """Reads the fields and the position after them."""
    lines, end = read_lines(path, lambda text: text.split("=")[0].strip() == "ElementDataFile")
    return _fields(path, lines), end


def _fields(path: Path, lines: list[str]) -> dict[str, str]:
    """Reads ``name = value`` lines; the last one must say where the data are."""
    fields: dict[str, str] = {}
    for line in filter(str.strip, lines):
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals or "\0" in line:
            raise ImageFileError(f"{path} must have 'name = value' in each line of its header, got {shown(line)}.")
        if name in fields:
            raise ImageFileError(f"{path} has {shown(name)} twice in its header: remove one of them.")
        fields[name] = value
    if not fields.get("ElementDataFile"):
        raise field_error(path, "ElementDataFile", fields.get("ElementDataFile"), "LOCAL or a file name")
    return fields


def _one_of(path: Path, fields: Mapping[str, str], names: tuple[str, ...], default: str) -> tuple[str, str]:
    """Returns the name and the value of the field that has several names."""
    there = [name for name in names if name in fields]
    if len({fields[name] for name in there}) > 1 and names is not _SIZES:  # the size of an element is not its distance
        raise ImageFileError(f"{path} has {' and '.join(there)} in its header, which differ: remove one of them.")
    return (there[0], fields[there[0]]) if there else (names[0], default)


def _grid(path: Path, fields: Mapping[str, str], dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads axes and origin, whose world is LPS, as RAS."""
    identity = " ".join(str(float(i == j)) for i in range(dims) for j in range(dims))
    matrix = to_floats(path, *_one_of(path, fields, _MATRICES, identity), dims * dims)
    origin = to_floats(path, *_one_of(path, fields, _POINTS, "0 " * dims), dims)
    name, text = _one_of(path, fields, _SIZES, "1 " * dims)
    sizes = to_floats(path, name, text, dims)
    if min(sizes) <= 0:
        raise field_error(path, name, text, f"{dims} numbers > 0")
    directions = np.reshape(matrix, (dims, dims)).T
    check_directions(path, directions)
    to_ras = np.diag([-1.0, -1.0, *[1.0] * (dims - 2)])
    return to_ras @ (directions * sizes), to_ras @ origin


def _data(path: Path, fields: Mapping[str, str], end: int) -> Data:
    """Finds the data."""
    name = fields["ElementDataFile"]
    if name.upper().startswith("LIST") or "%" in name:
        raise ImageFileError(f"{path} has its voxels in several files: convert it to a single one.")
    file, start = (path, end) if name.upper() == "LOCAL" else (path.parent / name, 0)
    skip = to_int(path, fields, "HeaderSize", "0")
    compressed = _is_true(path, fields, "CompressedData", False)
    if skip < -1 or (skip < 0 and compressed):
        raise field_error(path, "HeaderSize", skip, "a number >= 0")
    if compressed:
        _check_stored(path, fields, file, start + skip)
        return Data(file, start + skip, "deflate")
    encoding = "raw" if _is_true(path, fields, "BinaryData", True) else "text"
    return Data(file, start + max(skip, 0), encoding, min(skip, 0))


def _check_stored(path: Path, fields: Mapping[str, str], file: Path, start: int) -> None:
    """Compressed data must have the size that the header claims, where it claims one."""
    claimed = to_int(path, fields, "CompressedDataSize", "0")
    if claimed and file.is_file() and claimed != (stored := file.stat().st_size - start):
        raise field_error(path, "CompressedDataSize", claimed, f"{stored}, the bytes of its data,")


def _is_true(path: Path, fields: Mapping[str, str], name: str, default: bool) -> bool:
    """Reads a truth value."""
    text = fields.get(name, str(default)).lower()
    if text not in ("true", "false", "1", "0", "t", "f"):
        raise field_error(path, name, text, "True or False")
    return text[0] in "t1"
