"""Reads a series of DICOM slices as one volume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from monai.config import PathLike

from monai_lcs.grids import from_sitk
from monai_lcs.study.file_data import FileImage, ImageFileError

__all__ = ["find_series", "read_series", "series_files"]

UNEVEN = 0.1
"""Distances of slices that differ by more than this share of their median have gaps between them."""

UNPARALLEL = 1e-3
"""Directions of slices, in unit vectors, and sizes of their pixels that differ by more are those of several stacks."""

SHEARED = 5e-3
"""Slices that are shifted sideways by more than this share of the way from the first to the last make no box."""


def find_series(folder: PathLike) -> dict[str, list[str]]:
    """Find the DICOM series of a folder, not of its subfolders: the files of each, in the order of their slices.

    Example:
        >>> find_series(getfixture("tmp_path"))
        {}
    """
    reader = sitk.ImageSeriesReader
    return {uid: list(reader.GetGDCMSeriesFileNames(str(folder), uid)) for uid in reader.GetGDCMSeriesIDs(str(folder))}


_PLACES = {"position": "0020|0032", "orientation": "0020|0037", "pixel spacing": "0028|0030"}
"""What says where a slice lies, and its tags."""


def read_series(folder: PathLike, series: str | None = None) -> FileImage:
    """Read a DICOM series as a volume in Hounsfield units or what its rescaling says.

    Where slices do not say where they lie, SimpleITK guesses it, and ``notes`` of the result say what was guessed.

    Args:
        folder: holds the slices.
        series: which one: its UID, the end of it, or its description; needed where there are several.

    Raises:
        ImageFileError: where there is none or not one, a slice is missing, several share a position, or the slices are
            shifted sideways.
    """
    files = series_files(folder, series)
    places = {what: _numbers(files, tag) for what, tag in _PLACES.items()}
    _check_slices(Path(folder), files, *places.values())
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    volume, affine = from_sitk(reader.Execute())
    several_frames = volume.ndim > 4 or volume.shape[-1] > len(files)  # they say their places elsewhere
    unknown = [what for what, numbers in places.items() if numbers is None and not several_frames]
    notes = [f"its slices do not say their {what}, which is guessed" for what in unknown]
    if "orientation" in unknown:
        notes.append("which side is left is guessed")
    return FileImage(volume[0].numpy(), affine, notes=tuple(notes))


def series_files(folder: PathLike, series: str | None = None) -> list[str]:
    """Find the files of the one series that is meant, in the order of their slices.

    Args:
        folder: holds the slices.
        series: which one, see :func:`read_series`.

    Raises:
        ImageFileError: where there is none or not one.
    """
    found = find_series(folder)
    if not found:
        raise ImageFileError(f"{folder} holds no images and no DICOM series.")
    said = {uid: _describe(uid, files) for uid, files in found.items()}
    known = "; ".join(said.values())
    meant = [uid for uid in found if series is None or uid.endswith(series) or series == _description(found[uid])]
    if len(meant) != 1:
        what = f"{len(meant)} DICOM series" + (f" that {series!r} names" if series else "")
        raise ImageFileError(f"{folder} holds {what}: choose one by --series, its UID or description: {known}.")
    return found[meant[0]]


def _tag(file: str, tag: str) -> str:
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    reader.ReadImageInformation()
    return str(reader.GetMetaData(tag)).strip() if reader.HasMetaDataKey(tag) else ""


def _numbers(files: Sequence[str], tag: str) -> np.ndarray | None:
    """The numbers of a tag of each file; ``None`` where a file lacks it."""
    texts = [_tag(file, tag) for file in files]
    return np.array([[float(number) for number in text.split("\\")] for text in texts]) if all(texts) else None


def _description(files: Sequence[str]) -> str:
    return _tag(files[0], "0008|103e")


def _describe(uid: str, files: Sequence[str]) -> str:
    return f"{uid} ({_description(files) or 'no description'}, {len(files)} files)"


def _check_slices(
    folder: Path,
    files: Sequence[str],
    points: np.ndarray | None,
    turns: np.ndarray | None,
    sizes: np.ndarray | None,
) -> None:
    """Slices must be parallel, behind one another, and as far from one another as their neighbors are."""
    if len(files) < 2 or points is None:
        return
    if turns is not None and np.abs(turns - turns[0]).max() > UNPARALLEL:
        raise ImageFileError(
            f"{folder} holds slices of several directions, as a localizer has them: give a series with one volume."
        )
    if sizes is not None and np.abs(sizes / sizes[0] - 1).max() > UNPARALLEL:
        raise ImageFileError(f"{folder} holds slices with pixels of several sizes: give a series with one volume.")
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    if (steps < 1e-3).any():
        at = int(np.argmax(steps < 1e-3))
        raise ImageFileError(
            f"{folder} holds several slices at one position ({files[at]} and the next): give a series with one volume."
        )
    if (np.abs(steps - np.median(steps)) > UNEVEN * np.median(steps)).any():
        raise ImageFileError(
            f"{folder} lacks slices: their distances are {steps.min():.2f} to {steps.max():.2f} mm; export it anew."
        )
    if turns is not None and _sideways(points[-1] - points[0], turns[0]) > SHEARED:
        raise ImageFileError(
            f"{folder} holds slices that are shifted sideways, as a tilted gantry does it: convert the series to NIfTI"
            " by a program that corrects the tilt, such as dcm2niix."
        )


def _sideways(way: np.ndarray, turn: np.ndarray) -> float:
    """The share of a way that lies within slices of this direction."""
    return float(np.linalg.norm(np.reshape(turn, (2, 3)) @ way) / np.linalg.norm(way))
