"""Reads NRRD files, ``.nrrd`` and ``.nhdr``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from monai_lcs.study.file_data import FileImage, ImageFileError, shown
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

__all__ = ["NRRD_EXTENSIONS", "nrrd_shape", "read_nrrd"]

NRRD_EXTENSIONS = (".nrrd", ".nhdr")

_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), "i8"),
    **dict.fromkeys(("int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
_ENCODINGS = {
    **dict.fromkeys(("gzip", "gz"), "deflate"),
    **dict.fromkeys(("text", "txt", "ascii"), "text"),
    "raw": "raw",
    "hex": "hex",
}
_SKIPS = {"raw": range(-1, 1 << 40), "deflate": range(1 << 40), "text": range(1), "hex": range(1)}
_ENDIANS = {"little": "<", "big": ">"}
_NAMES = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}
_TO_RAS = {
    **dict.fromkeys(("right-anterior-superior", "ras", "right-anterior-superior-time", "rast"), (1, 1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las", "left-anterior-superior-time", "last"), (-1, 1, 1)),
    **dict.fromkeys(("left-posterior-superior", "lps", "left-posterior-superior-time", "lpst"), (-1, -1, 1)),
}
_SPATIAL_KINDS = ("domain", "space", "time", "none", "???", "stub", "scalar")
_VECTOR = re.compile(r"none|\([^()]*\)")
_LONGEST_LINE = 1 << 24


def read_nrrd(path: Path) -> FileImage:
    r"""Reads an NRRD file.

    Raises:
        ImageFileError: naming the field that cannot be, or the sizes of data and header that differ.

    Example:
        >>> path = getfixture("tmp_path") / "scan.nrrd"
        >>> _ = path.write_text("NRRD0004\ntype: float\ndimension: 3\nsizes: 4 -5 6\nencoding: raw\n\n")
        >>> read_nrrd(path)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        monai_lcs.study.file_data.ImageFileError: ...must have 3 integers > 0 as 'sizes' in its header, got '4 -5 6'.
    """
    lines, end = read_lines(path, lambda text: not text)
    fields = _fields(path, lines)
    shape = to_shape(path, fields, "dimension", "sizes")
    vectors = _vectors(path, fields, len(shape))
    _check_one_number(path, fields, shape, vectors)
    axes, origin, notes = _grid(path, fields, shape, vectors)
    mm, more = _unit(path, fields)
    voxels = read_data(path, _data(path, fields, end), shape, _dtype(path, fields))
    return file_image(voxels, axes, origin, mm, notes + more)


def nrrd_shape(path: Path) -> tuple[int, ...]:
    r"""Reads the shape alone; see :func:`read_nrrd`.

    Example:
        >>> path = getfixture("tmp_path") / "scan.nrrd"
        >>> _ = path.write_text("NRRD0004\ndimension: 2\nsizes: 4 5\n\n")
        >>> nrrd_shape(path)
        (4, 5)
    """
    lines, _ = read_lines(path, lambda text: not text)
    return to_shape(path, _fields(path, lines), "dimension", "sizes")


def _fields(path: Path, lines: list[str]) -> dict[str, str]:
    """Reads ``name: value`` lines."""
    if not lines or not re.fullmatch(r"NRRD000\d", lines[0]):
        raise ImageFileError(f"{path} must begin with NRRD0001 to NRRD0005, got {shown(lines[0] if lines else '')}.")
    fields: dict[str, str] = {}
    for line in filter(_is_field, lines[1:]):
        name, colon, value = (part.strip() for part in line.partition(":"))
        name = _NAMES.get(name.lower(), name.lower())
        if not colon or "\0" in line:
            raise ImageFileError(f"{path} must have 'name: value' in each line of its header, got {shown(line)}.")
        if name in fields:
            raise ImageFileError(f"{path} has {shown(name)} twice in its header: remove one of them.")
        fields[name] = value
    return fields


def _is_field(line: str) -> bool:
    """Tells a field from comments and keys of other programs."""
    return bool(line) and not line.startswith("#") and not re.match(r"[^:]*:=", line)


def _dtype(path: Path, fields: Mapping[str, str]) -> np.dtype[np.generic]:
    """Reads the data type with the order of its bytes."""
    kind, endian = _TYPES.get(fields.get("type", "").lower()), fields.get("endian", "").lower()
    if kind is None:
        raise field_error(path, "type", fields.get("type"), "a number type such as short or float")
    ordered = kind[1] == "1" or fields.get("encoding", "").lower() in ("text", "txt", "ascii")
    if endian not in _ENDIANS and not (ordered and not endian):
        raise field_error(path, "endian", fields.get("endian"), "little or big")
    return np.dtype(_ENDIANS.get(endian, "<") + kind)


# ---- the grid


def _vectors(path: Path, fields: Mapping[str, str], dims: int) -> list[str]:
    """Reads ``space directions``, a vector or ``none`` for each axis."""
    text = fields.get("space directions", "")
    vectors = _VECTOR.findall(text)
    if text and (len(vectors) != dims or _VECTOR.sub("", text).strip()):
        raise field_error(path, "space directions", text, f"{dims} vectors or 'none'")
    return vectors


def _check_one_number(path: Path, fields: Mapping[str, str], shape: tuple[int, ...], vectors: list[str]) -> None:
    """Each voxel must be one number: no axis counts the parts of a color or a vector."""
    kinds = fields.get("kinds", "").lower().split() or ["domain"] * len(shape)
    if len(kinds) != len(shape):
        raise field_error(path, "kinds", fields["kinds"], f"{len(shape)} words")
    for i, (size, kind) in enumerate(zip(shape, kinds, strict=True)):
        if kind not in _SPATIAL_KINDS or (i < 3 and vectors and vectors[i] == "none"):
            raise ImageFileError(f"{path} must have one number a voxel, got {size} ({shown(kind)}): give one of them.")
    check_3d(path, shape)


def _grid(
    path: Path, fields: Mapping[str, str], shape: tuple[int, ...], vectors: list[str]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Reads axes and origin as RAS, and says what is left open."""
    dims = min(len(shape), 3)
    if not vectors:
        sizes = fields.get("spacings", "1 " * len(shape)).lower().replace("nan", "1")
        axes, origin = np.diag(to_floats(path, "spacings", sizes, len(shape))[:dims]), np.zeros(dims)
    else:
        rows = [_to_vector(path, "space directions", vector, dims) for vector in vectors[:dims]]
        axes, origin = np.array(rows).T, np.array(_to_vector(path, "space origin", fields.get("space origin"), dims))
    signs = _TO_RAS.get(fields.get("space", "").lower())
    notes = []
    if not vectors:
        notes = ["its header says nothing about orientation (no space directions): which side is left is guessed"]
    elif signs is None and dims == 3:
        said = f"'space' is {shown(fields['space'])}" if "space" in fields else "no 'space'"
        notes = [f"its header does not say which side is left ({said}): it is read as left-posterior-superior"]
    to_ras = np.diag(np.array(signs or (-1, -1, 1), dtype=float)[:dims])
    return to_ras @ axes, to_ras @ origin, notes


def _to_vector(path: Path, name: str, text: str | None, dims: int) -> list[float]:
    """Reads a vector such as ``(1,0,0)``; zeros without one."""
    if text is None:
        return [0.0] * dims
    inner = re.fullmatch(r"\((.*)\)", text.strip())
    return to_floats(path, name, inner[1].replace(",", " ") if inner else "", dims)


def _unit(path: Path, fields: Mapping[str, str]) -> tuple[float, list[str]]:
    """Returns the millimeters of the unit that the axes share."""
    units = re.findall(r'"([^"]*)"', fields.get("space units") or fields.get("units") or "")[:3]
    if len({unit for unit in units if unit}) > 1:
        raise field_error(path, "space units", units, "one unit for all axes")
    return unit_in_mm(next(filter(None, units), ""))


# ---- the data


def _data(path: Path, fields: Mapping[str, str], end: int) -> Data:
    """Finds the data."""
    encoding = _ENCODINGS.get(fields.get("encoding", "").lower())
    if encoding is None:
        raise field_error(path, "encoding", fields.get("encoding"), "raw, gzip, ascii or hex")
    lines, skip = (to_int(path, fields, f"{unit} skip", "0") for unit in ("line", "byte"))
    if lines < 0:
        raise field_error(path, "line skip", lines, "a number >= 0")
    if skip not in _SKIPS[encoding]:
        raise field_error(path, "byte skip", skip, "a number >= 0")
    name = fields.get("data file")
    if name and (name.upper().startswith("LIST") or "%" in name):
        raise ImageFileError(f"{path} has its voxels in several files: convert it to a single one.")
    file = path.parent / name if name else path
    return Data(file, _after_lines(path, file, 0 if name else end, lines), encoding, skip)


def _after_lines(path: Path, file: Path, start: int, lines: int) -> int:
    """Finds the position after some lines."""
    if not lines or not file.is_file():
        return start
    with open(file, "rb") as stream:
        stream.seek(start)
        for _ in range(lines):
            if not stream.readline(_LONGEST_LINE):
                raise field_error(path, "line skip", lines, "no more lines than the file has")
        return stream.tell()
