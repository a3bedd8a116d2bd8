"""Reads the headers of NRRD and MetaImage files as text, before a native library does.

The library crashes on some of the headers that no program should write, and reads others without looking whether the
data have the size that is claimed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from monai_lcs.study.file_data import (
    ImageFileError,
    check_possible,
    compare_sizes,
    count_inflated,
    shown,
)

__all__ = ["TextHeader", "read_meta_header", "read_nrrd_header"]

_LONGEST = 1 << 24
"""Bytes of the longest header: those of segmentations describe each label."""

_DIMENSIONS = range(2, 6)

_MM_BY_UNIT = {"": 1.0, "?": 1.0, "mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "millimetre": 1.0, "cm": 10.0} | {
    **dict.fromkeys(("m", "meter", "meters"), 1000.0),
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns", "micrometer", "micrometers"), 0.001),
}


@dataclass(frozen=True)
class TextHeader:
    """What a header says, checked.

    Args:
        shape: voxels along each axis, trailing axes of length 1 included.
        mm: millimeters of its unit of length.
        notes: what it leaves open.
    """

    shape: tuple[int, ...]
    mm: float = 1.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Data:
    """Where the voxels are: a file, the first byte in it, and the encoding."""

    file: Path
    start: int
    encoding: str
    skip: int = 0  # bytes after decompression; -1: the data are at the end


def _fail(path: Path, field: str, value: object, must: str) -> ImageFileError:
    """Makes the error for a field."""
    return ImageFileError(f"{path} must have {must} as {field!r} in its header, got {shown(value)}.")


def _lines(path: Path, last: Callable[[str], bool]) -> tuple[list[str], int]:
    """Reads the lines of a header up to its last one, and the position after it."""
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


def _number(path: Path, fields: Mapping[str, str], name: str, default: str | None = None) -> int:
    """Reads an integer."""
    text = fields.get(name, default)
    try:
        return int(text or "")
    except ValueError:
        raise _fail(path, name, text, "an integer") from None


def _floats(path: Path, name: str, text: str, count: int) -> list[float]:
    """Reads finite numbers."""
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        raise _fail(path, name, text, f"{count} finite numbers")
    return values


def _shape(path: Path, fields: Mapping[str, str], dims_field: str, shape_field: str) -> tuple[int, ...]:
    """Reads the number of axes and the voxels along each."""
    dims = _number(path, fields, dims_field)
    if dims not in _DIMENSIONS:
        raise _fail(path, dims_field, dims, f"{_DIMENSIONS[0]} to {_DIMENSIONS[-1]}")
    text = fields.get(shape_field, "")
    try:
        shape = tuple(int(word) for word in text.split())
    except ValueError:
        shape = ()
    if len(shape) != dims or min(shape) < 1 or max(shape) >= 1 << 31:
        raise _fail(path, shape_field, text, f"{dims} integers > 0")
    return shape


def _check_3d(path: Path, shape: tuple[int, ...]) -> None:
    """Axes beyond the third must have one entry."""
    channels = math.prod(shape[3:])
    if channels > 1:
        raise ImageFileError(f"{path} must be 3D, got a {len(shape)}D file of {channels} channels: give one of them.")


def _unit(path: Path, text: str) -> tuple[float, list[str]]:
    """Returns the millimeters of a unit of length, and a note where it is unknown."""
    key = text.strip().strip('"').lower()
    if key in _MM_BY_UNIT:
        return _MM_BY_UNIT[key], []
    return 1.0, [f"its unit of length {shown(text)} is unknown: read as mm"]


def _check_data(path: Path, data: _Data, values: int, itemsize: int) -> None:
    """Compares the size of the data with what the header claims."""
    claimed = values * itemsize
    try:
        stored = data.file.stat().st_size
    except OSError:
        raise ImageFileError(f"{path} has its voxels in {data.file}, which does not exist.") from None
    check_possible(path, claimed, stored)
    with open(data.file, "rb") as stream:
        stream.seek(data.start)
        if data.encoding == "raw":
            held = stored - data.start - max(data.skip, 0)
            held = min(held, claimed) if data.skip < 0 else held
        elif data.encoding == "gzip":
            held = count_inflated(stream, claimed + max(data.skip, 0)) - max(data.skip, 0)
        elif data.encoding == "hex":
            held = len(b"".join(stream.read().split())) // 2
        else:
            held = len(stream.read().split()) * itemsize
    compare_sizes(path, claimed, held)


# ---- MetaImage

_META_TYPES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_FLOAT", "MET_LONG", "MET_ULONG"), 4),
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}
_META_MATRICES = ("TransformMatrix", "Rotation", "Orientation")
_META_POINTS = ("Offset", "Position", "Origin")
_META_SIZES = ("ElementSpacing", "ElementSize")
_META_LONGEST = 4096  # characters of a field


def read_meta_header(path: Path) -> TextHeader:
    """Reads and checks the header of a MetaImage file, ``.mha`` or ``.mhd``.

    Raises:
        ImageFileError: naming the field that cannot be, or the sizes of data and header that differ.

    Example:
        >>> path = getfixture("tmp_path") / "scan.mha"
        >>> _ = path.write_text("NDims = -1\\nElementDataFile = LOCAL\\n")
        >>> read_meta_header(path)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        monai_lcs.study.file_data.ImageFileError: ...scan.mha must have 2 to 5 as 'NDims' in its header, got -1.
    """
    lines, end = _lines(path, lambda text: text.split("=")[0].strip() == "ElementDataFile")
    fields = _meta_fields(path, lines)
    shape = _shape(path, fields, "NDims", "DimSize")
    kind = fields.get("ElementType")
    if kind not in _META_TYPES:
        raise _fail(path, "ElementType", kind, "one of " + ", ".join(_META_TYPES))
    channels = _number(path, fields, "ElementNumberOfChannels", "1")
    if channels != 1:
        raise ImageFileError(f"{path} must have one number a voxel, got {channels}: give one of them.")
    _check_meta_grid(path, fields, len(shape))
    _check_3d(path, shape)
    _check_data(path, _meta_data(path, fields, end), math.prod(shape), _META_TYPES[str(kind)])
    mm, notes = _unit(path, fields.get("DistanceUnits", ""))
    if not any(name in fields for name in _META_MATRICES):
        notes.append("its header says nothing about orientation (no TransformMatrix): which side is left is guessed")
    return TextHeader(shape, mm, tuple(notes))


def _meta_fields(path: Path, lines: list[str]) -> dict[str, str]:
    """Reads ``name = value`` lines; the last one must say where the data are."""
    fields: dict[str, str] = {}
    for line in filter(str.strip, lines):
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals or len(line) > _META_LONGEST or "\0" in line:
            raise ImageFileError(f"{path} must have 'name = value' in each line of its header, got {shown(line)}.")
        if name in fields:
            raise ImageFileError(f"{path} has {name!r} twice in its header: remove one of them.")
        fields[name] = value
    if not fields.get("ElementDataFile"):
        raise _fail(path, "ElementDataFile", fields.get("ElementDataFile"), "LOCAL or a file name")
    return fields


def _check_meta_grid(path: Path, fields: Mapping[str, str], dims: int) -> None:
    """Checks the numbers that place the grid."""
    for names, count in ((_META_MATRICES, dims * dims), (_META_POINTS, dims), (_META_SIZES, dims)):
        for name in names:
            if name in fields:
                values = _floats(path, name, fields[name], count)
                if names is _META_SIZES and min(values) <= 0:
                    raise _fail(path, name, fields[name], f"{dims} numbers > 0")


def _meta_data(path: Path, fields: Mapping[str, str], end: int) -> _Data:
    """Finds the data."""
    name = fields["ElementDataFile"]
    skip = _number(path, fields, "HeaderSize", "0")
    if skip < -1:
        raise _fail(path, "HeaderSize", skip, "a number >= -1")
    local = name.upper() == "LOCAL"
    if not local and (name.upper().startswith("LIST") or "%" in name):
        raise ImageFileError(f"{path} has its voxels in several files: convert it to a single one.")
    if _is_true(fields, "CompressedData", False):
        encoding = "gzip"
    else:
        encoding = "raw" if _is_true(fields, "BinaryData", True) else "text"
    return _Data(path if local else path.parent / name, end if local else 0, encoding, skip)


def _is_true(fields: Mapping[str, str], name: str, default: bool) -> bool:
    return fields[name][:1] in ("T", "t", "1") if fields.get(name) else default


# ---- NRRD

_NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), 8),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), 8),
    **dict.fromkeys(("int64", "int64_t", "double"), 8),
    "float": 4,
}
_NRRD_ENCODINGS = {
    **dict.fromkeys(("gzip", "gz"), "gzip"),
    **dict.fromkeys(("text", "txt", "ascii"), "text"),
    "raw": "raw",
    "hex": "hex",
}
_NRRD_NAMES = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}
_SPATIAL_KINDS = ("domain", "space", "time", "none", "???", "stub", "scalar")
_VECTOR = re.compile(r"none|\([^()]*\)")


def read_nrrd_header(path: Path) -> TextHeader:
    """Reads and checks the header of an NRRD file, ``.nrrd`` or ``.nhdr``.

    Raises:
        ImageFileError: naming the field that cannot be, or the sizes of data and header that differ.

    Example:
        >>> path = getfixture("tmp_path") / "scan.nrrd"
        >>> _ = path.write_text("NRRD0004\\ntype: float\\ndimension: 3\\nsizes: 4 -5 6\\nencoding: raw\\n\\n")
        >>> read_nrrd_header(path)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        monai_lcs.study.file_data.ImageFileError: ...must have 3 integers > 0 as 'sizes' in its header, got '4 -5 6'.
    """
    lines, end = _lines(path, lambda text: not text)
    fields = _nrrd_fields(path, lines)
    shape = _shape(path, fields, "dimension", "sizes")
    kind = fields.get("type", "").lower()
    if kind not in _NRRD_TYPES:
        raise _fail(path, "type", fields.get("type"), "a number type such as short or float")
    vectors = _nrrd_vectors(path, fields, len(shape))
    _check_one_number(path, fields, shape, vectors)
    _check_data(path, _nrrd_data(path, fields, end), math.prod(shape), _NRRD_TYPES[kind])
    mm, notes = _nrrd_unit(path, fields)
    if not ("space" in fields and vectors):
        notes.append("its header says nothing about orientation (no space directions): which side is left is guessed")
    return TextHeader(shape, mm, tuple(notes))


def _nrrd_fields(path: Path, lines: list[str]) -> dict[str, str]:
    """Reads ``name: value`` lines, but neither comments nor keys of other programs (``:=``)."""
    if not lines or not re.fullmatch(r"NRRD000\d", lines[0]):
        raise ImageFileError(f"{path} must begin with NRRD0001 to NRRD0005, got {shown(lines[0] if lines else '')}.")
    fields: dict[str, str] = {}
    for line in lines[1:]:
        if not line or line.startswith("#") or re.match(r"[^:]*:=", line):
            continue
        name, colon, value = (part.strip() for part in line.partition(":"))
        name = _NRRD_NAMES.get(name.lower(), name.lower())
        if not colon or "\0" in line:
            raise ImageFileError(f"{path} must have 'name: value' in each line of its header, got {shown(line)}.")
        if name in fields:
            raise ImageFileError(f"{path} has {name!r} twice in its header: remove one of them.")
        fields[name] = value
    return fields


def _nrrd_vectors(path: Path, fields: Mapping[str, str], dims: int) -> list[str]:
    """Reads ``space directions``, a vector for each axis, and checks the other numbers that place the grid."""
    text = fields.get("space directions", "")
    vectors = _VECTOR.findall(text)
    if text and len(vectors) != dims:
        raise _fail(path, "space directions", text, f"{dims} vectors or 'none'")
    space = sum(vector != "none" for vector in vectors)
    for vector in (one for one in vectors if one != "none"):
        _floats(path, "space directions", vector.strip("()").replace(",", " "), space)
    if vectors and "space origin" in fields:
        _floats(path, "space origin", fields["space origin"].strip("() ").replace(",", " "), space)
    if "spacings" in fields and not vectors:
        _floats(path, "spacings", fields["spacings"].lower().replace("nan", "1"), dims)
    return vectors


def _check_one_number(path: Path, fields: Mapping[str, str], shape: tuple[int, ...], vectors: list[str]) -> None:
    """Each voxel must be one number: no axis counts the parts of a color or a vector."""
    kinds = fields.get("kinds", "").lower().split() or ["domain"] * len(shape)
    for i, size in enumerate(shape):
        kind = kinds[i] if i < len(kinds) else "domain"
        if size > 1 and (kind not in _SPATIAL_KINDS or (vectors and vectors[i] == "none")):
            raise ImageFileError(f"{path} must have one number a voxel, got {size} ({kind}): give one of them.")
    _check_3d(path, shape)


def _nrrd_unit(path: Path, fields: Mapping[str, str]) -> tuple[float, list[str]]:
    """Returns the millimeters of the unit that the axes share."""
    units = re.findall(r'"([^"]*)"', fields.get("space units") or fields.get("units") or "")
    if len({unit for unit in units if unit}) > 1:
        raise _fail(path, "space units", units, "one unit for all axes")
    return _unit(path, next(filter(None, units), ""))


def _nrrd_data(path: Path, fields: Mapping[str, str], end: int) -> _Data:
    """Finds the data."""
    encoding = _NRRD_ENCODINGS.get(fields.get("encoding", "").lower())
    if encoding is None:
        raise _fail(path, "encoding", fields.get("encoding"), "raw, gzip, ascii or hex")
    name, lines, skip = fields.get("data file"), *(_number(path, fields, f"{n} skip", "0") for n in ("line", "byte"))
    if lines < 0 or skip < -1 or (skip < 0 and encoding != "raw"):
        raise _fail(path, "line skip, byte skip", (lines, skip), "numbers >= 0")
    if name and (name.upper().startswith("LIST") or "%" in name):
        raise ImageFileError(f"{path} has its voxels in several files: convert it to a single one.")
    file = path.parent / name if name else path
    return _Data(file, _after_lines(path, file, 0 if name else end, lines), encoding, skip)


def _after_lines(path: Path, file: Path, start: int, lines: int) -> int:
    """Finds the position after some lines."""
    if not lines or not file.is_file():
        return start
    with open(file, "rb") as stream:
        stream.seek(start)
        for _ in range(lines):
            if not stream.readline(_LONGEST):
                raise _fail(path, "line skip", lines, "no more lines than the file has")
        return stream.tell()
