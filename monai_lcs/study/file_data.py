"""What an image file holds: its voxels and grid, and whether its data have the size that its header claims."""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from nibabel.volumeutils import apply_read_scaling

__all__ = [
    "FileImage",
    "ImageFileError",
    "as_float32",
    "check_byte_order",
    "check_directions",
    "check_one_number",
    "check_possible",
    "compare_sizes",
    "count_bytes",
    "is_gzip",
    "shown",
    "stored_bytes",
]

_CHUNK = 1 << 24
_MOST_RATIO = 1040
"""Deflate, the compression of gzip and zlib, makes data at most 1032 times smaller."""

_LEAST_PAIRS = 500
"""Fewer neighbors say nothing about the order of bytes."""


class ImageFileError(ValueError):
    """A file that cannot be used; its message is a sentence that names the file and says what to do."""


@dataclass(frozen=True, eq=False)
class FileImage:
    """An image as its file has it.

    Args:
        voxels: ``(*spatial)``, of any real type, as they are stored.
        affine: ``(d + 1, d + 1)`` float64, voxels to mm in RAS orientation.
        header: fields of the header that become metadata.
        notes: what the header left open and was guessed, a sentence each.
        slope: what the stored voxels are to be multiplied by.
        inter: what is added then.
    """

    voxels: np.ndarray
    affine: np.ndarray
    header: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    slope: float = 1.0
    inter: float = 0.0


def shown(value: object, most: int = 60) -> str:
    """Shows what a header says, in a length that fits a message.

    Example:
        >>> shown("LOCAL"), shown("x" * 100, most=8)
        ("'LOCAL'", "'xxxxxxx...")
    """
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def compare_sizes(path: Path, claimed: int, held: int) -> None:
    """Checks that a file holds as many bytes of voxels as its header claims.

    Args:
        path: what the message names.
        claimed: bytes, by the shape and the data type of the header.
        held: bytes from the offset of the header to the end of the data.

    Raises:
        ImageFileError: if the two differ.

    Example:
        >>> compare_sizes(Path("scan.nii"), 240, 480)
        Traceback (most recent call last):
        monai_lcs.study.file_data.ImageFileError: scan.nii holds 480 bytes of voxels, its header claims 240: \
the shape, data type or offset in the header is wrong, convert the scan anew.
    """
    if held < claimed:
        raise ImageFileError(
            f"{path} cannot be read as an image, it may be truncated or damaged: "
            f"its header claims {claimed} bytes of voxels, the file holds {max(held, 0)}."
        )
    if held > claimed:
        raise ImageFileError(
            f"{path} holds {held} bytes of voxels, its header claims {claimed}: "
            "the shape, data type or offset in the header is wrong, convert the scan anew."
        )


def check_possible(path: Path, claimed: int, stored: int) -> None:
    """Checks, before memory is taken, that compressed data can be as large as claimed."""
    if claimed > _MOST_RATIO * stored + _CHUNK:
        compare_sizes(path, claimed, stored)


def count_bytes(stream: IO[bytes] | gzip.GzipFile) -> int:
    """Counts the bytes from here to the end of a stream, in little memory.

    Example:
        >>> import io
        >>> count_bytes(io.BytesIO(b"abc"))
        3
    """
    return sum(len(chunk) for chunk in iter(lambda: stream.read(_CHUNK), b""))


def stored_bytes(path: Path) -> int:
    """Counts the bytes of a file, after decompression where it is gzip."""
    if not is_gzip(path):
        return os.path.getsize(path)
    with gzip.open(path) as stream:
        return count_bytes(stream)


def is_gzip(path: Path) -> bool:
    """Tells by its first bytes whether a file is compressed; names lie."""
    with open(path, "rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def check_one_number(name: object, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Checks that each voxel is one real number; axes of length 1 after the third do not count.

    Args:
        name: what the message names, such as the path.
        dtype: of the voxels.
        shape: of the file.

    Raises:
        ImageFileError: for colors, complex numbers and several channels.

    Example:
        >>> check_one_number("scan.nii", np.dtype(np.int16), (4, 5, 6, 1))
        >>> check_one_number("scan.nii", np.dtype(complex), (4, 5, 6))
        Traceback (most recent call last):
        monai_lcs.study.file_data.ImageFileError: scan.nii is a complex image: give its magnitude.
    """
    if dtype.fields:
        raise ImageFileError(f"{name} is a color image, with {len(dtype.fields)} numbers a voxel: give one of them.")
    if dtype.kind == "c":
        raise ImageFileError(f"{name} is a complex image: give its magnitude.")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 3:
        channels = int(np.prod([int(size) for size in shape[3:]], dtype=object))
        raise ImageFileError(f"{name} must be 3D, got a {len(shape)}D file of {channels} channels: give one of them.")


def as_float32(name: object, image: FileImage) -> np.ndarray:
    """Scales and converts the voxels of a file, slab by slab: the result is all that takes memory.

    Raises:
        ImageFileError: if a value is too large for float32.

    Example:
        >>> as_float32("scan.nii", FileImage(np.array([[1, 2]], np.int16), np.eye(3), slope=0.5)).tolist()
        [[0.5, 1.0]]
        >>> as_float32("scan.nii", FileImage(np.array([[1e300]]), np.eye(3)))
        Traceback (most recent call last):
        monai_lcs.study.file_data.ImageFileError: scan.nii holds the value 1e+300, more than float32 holds: rescale it.
    """
    result = np.empty(image.voxels.shape, np.float32)
    slope, inter = np.float64(image.slope), np.float64(image.inter)
    for i in range(image.voxels.shape[-1]):  # the axis that runs slowest in most files
        slab = apply_read_scaling(image.voxels[..., i], slope, inter)
        if slab.dtype.kind == "f" and slab.dtype.itemsize > 4:
            _check_float32(name, slab)
        result[..., i] = slab
    return result


def _check_float32(name: object, values: np.ndarray) -> None:
    """Values must not become infinite."""
    for extreme in (np.nanmin(values, initial=0), np.nanmax(values, initial=0)):
        if np.finfo(np.float32).max < abs(extreme) < np.inf:
            raise ImageFileError(f"{name} holds the value {extreme:.3g}, more than float32 holds: rescale it.")


# ---- the order of bytes


def check_byte_order(path: Path, voxels: np.ndarray) -> None:
    """Checks that the bytes of voxels are in the order that the header claims.

    Neighbors in an image are alike. Where they look like noise, but are alike once the bytes are swapped, the header
    is wrong.

    Args:
        path: what the message names.
        voxels: as they are in the file, not scaled.

    Raises:
        ImageFileError: if the bytes are swapped.

    Example:
        >>> ramp = np.add.outer(np.arange(40), np.arange(30)).astype(np.int16)
        >>> check_byte_order(Path("ramp.nii"), ramp)
        >>> check_byte_order(Path("ramp.nii"), (ramp * 50).byteswap())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        monai_lcs.study.file_data.ImageFileError: ramp.nii has its bytes in another order than its header claims ...
    """
    if voxels.dtype.itemsize == 1 or voxels.ndim < 2:
        return
    middle = voxels.shape[-1] // 2
    piece = voxels[..., max(middle - 1, 0) : middle + 2] if voxels.ndim > 2 else voxels
    roughness = _roughness(piece)
    if roughness > 0.8 and _roughness(piece.byteswap()) < 0.5 * min(roughness, 1.4):
        raise ImageFileError(
            f"{path} has its bytes in another order than its header claims (endianness): convert the scan anew."
        )


def _roughness(voxels: np.ndarray) -> float:
    """Mean difference of neighbors over the mean difference to the mean, about 1.4 for noise; background apart."""
    with np.errstate(all="ignore"):
        values = voxels.astype(np.float64)
        differences = np.diff(values, axis=0)
        differences = np.abs(differences[(values[1:] != 0) & (values[:-1] != 0)])
        if differences.size < _LEAST_PAIRS:
            return 0.0
        foreground = values[values != 0]
        spread = np.abs(foreground - foreground.mean()).mean()
        ratio = float(differences.mean() / spread) if spread else 0.0
    return ratio if np.isfinite(ratio) else float("inf")


# ---- directions


def check_directions(path: Path, directions: np.ndarray) -> None:
    """Checks that direction cosines are unit vectors; otherwise the voxels have two sizes.

    Args:
        path: what the message names.
        directions: ``(d, d)``, a column for each axis.

    Raises:
        ImageFileError: if a column has another length than 1.

    Example:
        >>> check_directions(Path("T1.mgz"), np.eye(3))
    """
    lengths = np.linalg.norm(directions, axis=0)
    if not np.allclose(lengths, 1, atol=1e-3):
        found = ", ".join(f"{length:.4g}" for length in lengths)
        raise ImageFileError(
            f"{path} must have direction cosines of length 1, got {found}: its voxel sizes are not those of its grid, "
            "correct one of them."
        )
