"""What NRRD and MetaImage files have in common: a header in text, and data as they are, compressed, or in text.

They are read with numpy: ITK crashes on some headers that no program should write, reads others without looking whether
the data have the size that is claimed, and prints that compressed data are damaged, but goes on with noise.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from monai_lcs.study.file_data import (
    FileImage,
    ImageFileError,
    check_byte_order,
    check_possible,
    compare_sizes,
    count_bytes,
    shown,
)

__all__ = [
    "Data",
    "check_3d",
    "field_error",
    "file_image",
    "read_data",
    "read_lines",
    "to_floats",
    "to_int",
    "to_shape",
    "unit_in_mm",
]

_LONGEST = 1 << 24
"""Bytes of the longest header: those of segmentations describe each label."""

_DIMENSIONS = range(2, 6)

_MM_BY_UNIT = {
    **dict.fromkeys(("", "?", "mm", "millimeter", "millimeters", "millimetre"), 1.0),
    **dict.fromkeys(("cm", "centimeter", "centimeters"), 10.0),
    **dict.fromkeys(("m", "meter", "meters"), 1000.0),
    **dict.fromkeys(("um", "\u00b5m", "\u03bcm", "micron", "microns", "micrometer", "micrometers"), 0.001),
}


@dataclass(frozen=True)
class Data:
    """Where the voxels are.

    Args:
        file: the file that holds them.
        start: the first byte of them, or of the compressed stream.
        encoding: ``"raw"``, ``"deflate"``, ``"text"`` or ``"hex"``.
        skip: bytes to skip after decompression; -1 if the data are at the end of the file.
    """

    file: Path
    start: int
    encoding: str
    skip: int = 0


def field_error(path: Path, field: str, value: object, must: str) -> ImageFileError:
    """Makes the error for a field of a header.

    Example:
        >>> field_error(Path("scan.mha"), "NDims", -1, "2 to 5")
        ImageFileError("scan.mha must have 2 to 5 as 'NDims' in its header, got -1.")
    """
    return ImageFileError(f"{path} must have {must} as {field!r} in its header, got {shown(value)}.")


def read_lines(path: Path, last: Callable[[str], bool]) -> tuple[list[str], int]:
    r"""Reads the lines of a header up to its last one, and the position after it.

    Example:
        >>> path = getfixture("tmp_path") / "scan.mha"
        >>> _ = path.write_bytes(b"NDims = 3\nElementDataFile = LOCAL\n12345")
        >>> read_lines(path, lambda line: line.startswith("ElementDataFile"))
        (['NDims = 3', 'ElementDataFile = LOCAL'], 34)
    """
    found = []
    with open(path, "rb") as stream:
        while stream.tell() < _LONGEST:
            line = stream.readline(_LONGEST)
            text = line.decode("utf-8", errors="replace").rstrip("\r\n")
            if not line:
                break
            found.append(text)
            if last(text):
                break
        return found, stream.tell()


# ---- fields


def to_int(path: Path, fields: Mapping[str, str], name: str, default: str | None = None) -> int:
    """Reads an integer.

    Example:
        >>> to_int(Path("scan.mha"), {"NDims": "3"}, "NDims")
        3
    """
    text = fields.get(name, default)
    try:
        return int(text or "")
    except ValueError:
        raise field_error(path, name, text, "an integer") from None


def to_floats(path: Path, name: str, text: str, count: int) -> list[float]:
    """Reads finite numbers.

    Example:
        >>> to_floats(Path("scan.mha"), "Offset", "1 2.5", 2)
        [1.0, 2.5]
    """
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        values = []
    if len(values) != count or not all(abs(value) < 1e15 for value in values):  # NaN is not
        raise field_error(path, name, text, f"{count} finite numbers")
    return values


def to_shape(path: Path, fields: Mapping[str, str], dims_field: str, shape_field: str) -> tuple[int, ...]:
    """Reads the number of axes and the voxels along each.

    Example:
        >>> to_shape(Path("scan.mha"), {"NDims": "3", "DimSize": "4 5 6"}, "NDims", "DimSize")
        (4, 5, 6)
    """
    dims = to_int(path, fields, dims_field)
    if dims not in _DIMENSIONS:
        raise field_error(path, dims_field, dims, f"{_DIMENSIONS[0]} to {_DIMENSIONS[-1]}")
    text = fields.get(shape_field, "")
    try:
        shape = tuple(int(word) for word in text.split())
    except ValueError:
        shape = ()
    if len(shape) != dims or min(shape) < 1:
        raise field_error(path, shape_field, text, f"{dims} integers > 0")
    return shape


def check_3d(path: Path, shape: tuple[int, ...]) -> None:
    """Axes beyond the third must have one entry.

    Example:
        >>> check_3d(Path("scan.mha"), (4, 5, 6, 1))
    """
    channels = math.prod(shape[3:])
    if channels > 1:
        raise ImageFileError(f"{path} must be 3D, got a {len(shape)}D file of {channels} channels: give one of them.")


def unit_in_mm(text: str) -> tuple[float, list[str]]:
    """Returns the millimeters of a unit of length, and a note where it is unknown.

    Example:
        >>> unit_in_mm("um"), unit_in_mm("ft")
        ((0.001, []), (1.0, ["its unit of length 'ft' is unknown: read as mm"]))
    """
    key = text.strip().strip('"').lower()
    if key in _MM_BY_UNIT:
        return _MM_BY_UNIT[key], []
    return 1.0, [f"its unit of length {shown(text)} is unknown: read as mm"]


# ---- data


def read_data(path: Path, data: Data, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> np.ndarray:
    """Reads the voxels, of which there must be as many as the header claims.

    Args:
        path: the file of the header, which messages name.
        data: where the voxels are.
        shape: of the header; the first axis runs fastest.
        dtype: of the header, with the order of bytes.

    Returns:
        ``(*spatial)``, without axes beyond the third.

    Raises:
        ImageFileError: if there are more or fewer.

    Example:
        >>> path = getfixture("tmp_path") / "scan.raw"
        >>> _ = path.write_bytes(bytes([1, 2, 3, 4, 5, 6]))
        >>> read_data(path, Data(path, 0, "raw"), (3, 2), np.dtype("u1")).tolist()
        [[1, 4], [2, 5], [3, 6]]
    """
    claimed = math.prod(shape) * dtype.itemsize
    if not data.file.is_file():  # nor a device, which has no end
        raise ImageFileError(f"{path} has its voxels in {shown(data.file.name)}, which is not there.")
    stored = data.file.stat().st_size
    check_possible(path, claimed, stored)
    start = stored - claimed if data.skip < 0 else data.start
    with open(data.file, "rb") as stream:
        stream.seek(max(start, 0))
        voxels = _DECODERS[data.encoding](path, stream, claimed + max(data.skip, 0), dtype)
    content = voxels[max(data.skip, 0) :]
    compare_sizes(path, claimed, len(content))
    array = np.frombuffer(content, dtype).reshape(shape, order="F")
    check_byte_order(path, array)
    return array.reshape(shape[:3])


def _raw(path: Path, stream: IO[bytes], most: int, dtype: np.dtype[np.generic]) -> bytes:
    """Reads bytes as they are."""
    content = stream.read(most)
    compare_sizes(path, most, len(content) + count_bytes(stream))
    return content


def _deflated(path: Path, stream: IO[bytes], most: int, dtype: np.dtype[np.generic]) -> bytes:
    """Decompresses gzip or zlib, as the first bytes say."""
    start = stream.read(2)
    stream.seek(-len(start), 1)
    if start == b"\x1f\x8b":
        with gzip.GzipFile(fileobj=stream) as inflated:
            content = inflated.read(most)
            compare_sizes(path, most, len(content) + count_bytes(inflated))
        return content
    inflate = zlib.decompressobj()
    content = inflate.decompress(stream.read(), most + 1)
    if len(content) == most and not inflate.eof:
        raise ValueError("its compressed data have no end")
    return content


def _text(path: Path, stream: IO[bytes], most: int, dtype: np.dtype[np.generic]) -> bytes:
    """Reads numbers in text."""
    words = stream.read().split()
    compare_sizes(path, most, len(words) * dtype.itemsize)
    values = np.array([float(word) for word in words])
    if dtype.kind != "f" and not ((values == np.rint(values)) & (np.abs(values) < 2**53)).all():
        raise ValueError("its text holds other numbers than integers")
    with np.errstate(all="raise"):
        converted = values.astype(dtype)
    if not np.array_equal(converted, values, equal_nan=True) and dtype.kind != "f":
        raise ValueError("its text holds numbers that its data type lacks")
    return converted.tobytes()


def _hex(path: Path, stream: IO[bytes], most: int, dtype: np.dtype[np.generic]) -> bytes:
    """Reads bytes in hexadecimal text."""
    return bytes.fromhex(stream.read().decode("ascii"))


_DECODERS = {"raw": _raw, "deflate": _deflated, "text": _text, "hex": _hex}


def file_image(voxels: np.ndarray, axes: np.ndarray, origin: np.ndarray, mm: float, notes: list[str]) -> FileImage:
    """Makes the image.

    Args:
        voxels: ``(*spatial)``.
        axes: ``(d, d)``, for each axis a column from a voxel to the next, in the file's unit and RAS orientation.
        origin: ``(d,)``, the first voxel, likewise.
        mm: millimeters of the unit.
        notes: what the header leaves open.

    Example:
        >>> file_image(np.zeros((4, 5)), np.eye(2), np.zeros(2), 10.0, []).affine.diagonal().tolist()
        [10.0, 10.0, 1.0]
    """
    dims = voxels.ndim
    affine = np.eye(dims + 1)
    affine[:-1, :-1], affine[:-1, -1] = axes[:dims, :dims] * mm, origin[:dims] * mm
    return FileImage(voxels, affine, notes=tuple(notes))
