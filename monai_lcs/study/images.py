"""Reads image files, and says which endings they have."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import PathLike
from monai.data import MetaTensor, NibabelReader, is_supported_format
from monai.transforms import LoadImage
from monai.transforms.io.array import SUPPORTED_READERS
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys, convert_to_numpy
from nibabel.spatialimages import SpatialImage

from monai_lcs.files import IMAGE_EXTENSIONS
from monai_lcs.study.dicom import read_series
from monai_lcs.study.file_data import FileImage, ImageFileError, as_float32
from monai_lcs.study.metaimage import META_EXTENSIONS, metaimage_shape, read_metaimage
from monai_lcs.study.nibabel_files import NIBABEL_EXTENSIONS, image_of_nibabel, nibabel_shape, read_with_nibabel
from monai_lcs.study.nrrd import NRRD_EXTENSIONS, nrrd_shape, read_nrrd

__all__ = [
    "IMAGE_EXTENSIONS",
    "GridWarning",
    "MGHReader",
    "check_there",
    "notes_of",
    "read_image",
    "read_shape",
    "volume_of_nibabel",
]

_READERS = {NIBABEL_EXTENSIONS: read_with_nibabel, META_EXTENSIONS: read_metaimage, NRRD_EXTENSIONS: read_nrrd}
_SHAPES = {NIBABEL_EXTENSIONS: nibabel_shape, META_EXTENSIONS: metaimage_shape, NRRD_EXTENSIONS: nrrd_shape}
_NUMPY_EXTENSIONS = (".npy", ".npz")
_NOTES = "notes"
_POINTER = re.compile(rb"\s*(version https://git-lfs|(\.\./|/)*(\.git/)?annex/objects/)")
"""How the files begin that git-lfs and git-annex put in the place of content that they did not fetch."""


class GridWarning(UserWarning):
    """The header of an image leaves its grid open, such as which side is left; the message says what was guessed."""


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


def read_image(path: PathLike, series: str | None = None) -> MetaTensor:
    """Reads an image file as ``(1, *spatial)`` float32, with the affine that the file has.

    The affine is what nibabel finds in the file, or ITK in NRRD and MetaImage, in millimeters and RAS orientation. What
    the header leaves open is guessed as they do, and said in a :class:`GridWarning` and by :func:`notes_of`. Files with
    other endings than those of :data:`IMAGE_EXTENSIONS` are read as :class:`monai.transforms.LoadImage` does. A folder
    is read as a DICOM series, see :func:`monai_lcs.study.dicom.read_series`.

    Args:
        path: the file, or the folder.
        series: which series of a folder.

    Raises:
        ValueError: naming the file, if it does not exist, is empty, cannot be read to its end, holds more or less data
            than its header claims, or more than one real number a voxel.

    Example:
        >>> import nibabel as nib, numpy as np, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     nib.save(nib.Nifti1Image(np.ones((4, 5, 6)), np.diag([1, 2, 3, 1])), f"{folder}/scan.nii")
        ...     image = read_image(f"{folder}/scan.nii")
        >>> image.shape, image.dtype, image.pixdim.tolist()
        (torch.Size([1, 4, 5, 6]), torch.float32, [1.0, 2.0, 3.0])
    """
    check_there(path)
    try:
        image = _as_tensor(Path(path), read_series(path, series)) if Path(path).is_dir() else _read(Path(path))
    except ImageFileError:
        raise
    except Exception as error:  # each of the readers has errors of its own
        raise ValueError(
            f"{path} cannot be read as an image, it may be truncated or damaged: {_reason(error, str(path))}"
        ) from error
    _warn_of_notes(image, str(path))
    return image


def volume_of_nibabel(image: Any, name: str = "the scan") -> MetaTensor:
    """Converts an image of nibabel, or a pair of an array and its affine, as :func:`read_image` reads a file.

    Args:
        image: the image; or an array, ``(*spatial)`` or ``(1, *spatial)``, and an affine ``(4, 4)``, voxels to mm in
            RAS orientation.
        name: what messages call it.

    Returns:
        ``(1, *spatial)``, float32, with no file name in its metadata: the voxels may be others than those of its file.

    Raises:
        ValueError: if a voxel is more than one real number, or the affine is not ``(4, 4)``.

    Example:
        >>> volume_of_nibabel((np.zeros((4, 5, 6), ">i2"), np.diag([1.0, 1, 2, 1]))).pixdim.tolist()
        [1.0, 1.0, 2.0]
    """
    if isinstance(image, tuple):
        voxels, affine = (np.asarray(convert_to_numpy(part)) for part in image)
        if affine.shape != (4, 4):
            raise ValueError(f"The affine of {name} must have the shape (4, 4), got {affine.shape}.")
        voxels = voxels[0] if voxels.ndim == 4 and len(voxels) == 1 else voxels
        image = SpatialImage(voxels, affine)
    found = image_of_nibabel(image, name)
    meta = {_NOTES: "\n".join(found.notes)} if found.notes else {}
    volume = MetaTensor(
        torch.from_numpy(as_float32(name, found)[None]), affine=torch.from_numpy(found.affine), meta=meta
    )
    _warn_of_notes(volume, name)
    return volume


def _warn_of_notes(image: MetaTensor, name: str) -> None:
    """Says what the header left open, at the line that calls the caller."""
    if notes := notes_of(image):
        warnings.warn(f"{name}: {'; '.join(notes)}.", GridWarning, stacklevel=3)


def read_shape(path: PathLike) -> tuple[int, ...]:
    """Reads the shape that the header of an image file claims, channels included; the voxels are not read.

    Raises:
        ValueError: naming the file, if it has none of :data:`IMAGE_EXTENSIONS`, or no header of its format.

    Example:
        >>> read_shape("scan.png")
        Traceback (most recent call last):
        ValueError: scan.png is no image that can be read.
    """
    for extensions, shape in _SHAPES.items():
        if Path(path).name.lower().endswith(extensions):
            check_there(path)
            try:
                return shape(Path(path))
            except ImageFileError:
                raise
            except Exception as error:
                raise ValueError(f"{path} is no image that can be read: {_reason(error, str(path))}") from error
    raise ValueError(f"{path} is no image that can be read.")


def check_there(path: PathLike) -> None:
    """Checks that a file exists and has content.

    Raises:
        ValueError: naming the file; for a link or a pointer whose content was not fetched it says so.

    Example:
        >>> check_there("none.nii")
        Traceback (most recent call last):
        ValueError: none.nii does not exist.
    """
    if "\0" in str(path):
        raise ValueError(f"{str(path)!r} is no path: it holds a null byte.")
    file = Path(path)
    if file.is_symlink() and not file.exists():
        raise ValueError(f"{path} is a link to content that is not there: fetch it, such as by `datalad get`.")
    try:
        size = file.stat().st_size
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise ValueError(f"{path} {reason}.") from None
    if file.is_file():
        _check_content(path, size)
    elif not file.is_dir():
        raise ValueError(f"{path} is no file but a pipe or a device.")
    elif file.name.lower().endswith(IMAGE_EXTENSIONS):
        raise ValueError(f"{path} is a folder: give the files in it.")


def _check_content(path: PathLike, size: int) -> None:
    """Checks that there is content, and not only the place of content that was not fetched."""
    if size == 0:
        raise ValueError(f"{path} is empty (0 bytes).")
    if size < 1000 and _POINTER.match(Path(path).read_bytes()):
        raise ValueError(f"{path} stands for content that is not there: fetch it, such as by `git lfs pull`.")


def notes_of(image: Any) -> list[str]:
    """Returns what the header of an image left open and was guessed, a sentence each.

    They are kept in the metadata as ``"notes"``, a line each: a text, because lists of several lengths do not collate.

    Example:
        >>> import torch
        >>> notes_of(MetaTensor(torch.zeros(1, 2, 2), meta={"notes": "left is guessed"})), notes_of(torch.zeros(1))
        (['left is guessed'], [])
    """
    return str(getattr(image, "meta", {}).get(_NOTES) or "").splitlines()


def _read(path: Path) -> MetaTensor:
    """Reads a file by its ending."""
    name = path.name.lower()
    for extensions, read in _READERS.items():
        if name.endswith(extensions):
            return _as_tensor(path, read(path))
    if name.endswith(_NUMPY_EXTENSIONS):  # MONAI would unpickle what is in there, which runs its code
        raise ImageFileError(f"{path} is an array without an affine: convert it to NIfTI.")
    image: MetaTensor = LoadImage(ensure_channel_first=True)(path)
    return image


def _as_tensor(path: Path, image: FileImage) -> MetaTensor:
    """Makes the tensor, with the metadata that MONAI's readers give."""
    meta = {
        **{name: value for name, value in image.header.items() if not _is_text_array(value)},
        MetaKeys.AFFINE: image.affine,
        MetaKeys.ORIGINAL_AFFINE: image.affine.copy(),
        MetaKeys.SPATIAL_SHAPE: np.array(image.voxels.shape),
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),
        ImageMetaKey.FILENAME_OR_OBJ: str(path),
    }
    if image.notes:
        meta[_NOTES] = "\n".join(image.notes)
    voxels = as_float32(path, image)
    volume: MetaTensor = MetaTensor.ensure_torch_and_prune_meta(voxels[None], meta)
    return volume


def _is_text_array(value: Any) -> bool:
    """Tells arrays of text, which do not collate; MONAI's readers leave them out as well."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "SUO"


def _reason(error: Exception, path: str) -> str:
    """Shortens the message of a reader, without its own source files, addresses and the path."""
    if isinstance(error, KeyError):
        return f"its header has the unknown code {error}"
    text = re.split(r"(?:ITK|sitk::) ?ERROR:", str(error))[-1].replace(path, "it")
    text = re.sub(r"\S+\.(?:cxx|cpp|cc|hxx|txx|c|h)\b:?(?:\d+:?)?|\(?0x[0-9a-f]+\)?:?", "", text)
    text = " ".join(text.split())
    return text[:120] or type(error).__name__
