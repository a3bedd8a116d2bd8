"""Image files: which endings they have, and the one function that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai.config import PathLike
from monai.data import MetaTensor, NibabelReader, is_supported_format
from monai.transforms import LoadImage
from monai.transforms.io.array import SUPPORTED_READERS

__all__ = ["IMAGE_EXTENSIONS", "MGHReader", "read_image"]

IMAGE_EXTENSIONS = (".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr")
"""File name endings taken for images in a folder, the longer ones first."""


class MGHReader(NibabelReader):
    """Reads FreeSurfer's `.mgz` and `.mgh`, which MONAI's own choice of readers leaves to ITK, which cannot.

    Importing this module adds it to MONAI's `SUPPORTED_READERS`, so a plain `LoadImage()` reads these files too.
    (`LoadImage(reader="NibabelReader")` would as well, but it falls back to ITK for files that nibabel rejects,
    and ITK fills a truncated NIfTI with zeros.)
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """True for files this reader is meant for."""
        return is_supported_format(filename, ["mgz", "mgh"])


SUPPORTED_READERS["mghreader"] = MGHReader


def read_image(path: PathLike) -> MetaTensor:
    """An image file as `(C, *spatial)` float32 with its affine."""
    if not Path(path).exists():
        raise ValueError(f"{path} does not exist.")
    if Path(path).stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes).")
    try:
        return LoadImage(ensure_channel_first=True)(path)
    except Exception as error:  # each of the readers has errors of its own
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{path} cannot be read as an image, it may be truncated or damaged: {reason}") from error
