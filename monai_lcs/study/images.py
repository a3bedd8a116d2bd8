"""Reads image files, and says which endings they have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai.config import PathLike
from monai.data import MetaTensor, NibabelReader, is_supported_format
from monai.transforms import LoadImage
from monai.transforms.io.array import SUPPORTED_READERS

__all__ = ["IMAGE_EXTENSIONS", "MGHReader", "read_image"]

IMAGE_EXTENSIONS = (".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr")
"""Endings of the file names that count as images in a folder, the longer ones first."""


class MGHReader(NibabelReader):
    """Reads FreeSurfer's ``.mgz`` and ``.mgh``.

    MONAI would choose ITK for these files, which cannot read them. Importing this module adds the reader to MONAI's
    ``SUPPORTED_READERS``, so a plain ``LoadImage()`` reads them too. (``LoadImage(reader="NibabelReader")`` would as
    well, but it falls back to ITK for files that nibabel rejects, and ITK fills a truncated NIfTI with zeros.)

    Example:
        >>> MGHReader().verify_suffix("bert/T1.mgz"), MGHReader().verify_suffix("scan.nii.gz")
        (True, False)
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Tells whether the reader is meant for a file, or for all of several files."""
        return is_supported_format(filename, ["mgz", "mgh"])


SUPPORTED_READERS["mghreader"] = MGHReader


def read_image(path: PathLike) -> MetaTensor:
    """Reads an image file as ``(C, *spatial)`` float32, with its affine.

    Raises:
        ValueError: naming the file, if it does not exist, is empty or cannot be read to its end.

    Example:
        >>> import nibabel as nib, numpy as np, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     nib.save(nib.Nifti1Image(np.ones((4, 5, 6)), np.diag([1, 2, 3, 1])), f"{folder}/scan.nii")
        ...     image = read_image(f"{folder}/scan.nii")
        >>> image.shape, image.dtype, image.pixdim.tolist()
        (torch.Size([1, 4, 5, 6]), torch.float32, [1.0, 2.0, 3.0])
    """
    if not Path(path).exists():
        raise ValueError(f"{path} does not exist.")
    if Path(path).stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes).")
    try:
        return LoadImage(ensure_channel_first=True)(path)
    except Exception as error:  # each of the readers has errors of its own
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{path} cannot be read as an image, it may be truncated or damaged: {reason}") from error
