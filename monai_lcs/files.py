"""Writes files safely: no result is left half-written, and none is overwritten by accident."""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["IMAGE_EXTENSIONS", "check_absent", "check_writable", "remove_leftovers", "write_atomically"]

IMAGE_EXTENSIONS = (".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr")
"""Endings of the file names that count as images in a folder, the longer ones first."""


def check_absent(paths: Sequence[Path], overwrite: bool) -> None:
    """Checks that none of the files exists, unless they may be overwritten.

    Raises:
        FileExistsError: naming the first file that exists.

    Example:
        >>> check_absent([Path("/")], overwrite=False)
        Traceback (most recent call last):
        FileExistsError: / exists: write elsewhere, or set overwrite=True (--overwrite).
    """
    for path in paths:
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists: write elsewhere, or set overwrite=True (--overwrite).")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a file so that it is complete once it exists.

    ``write`` fills a temporary file in the same folder, which is then renamed, once the disk has it. An existing file
    is replaced.

    Args:
        path: the file to write.
        write: writes the content to the path that it is given.

    Raises:
        OSError: naming the file that cannot be written. The temporary file is removed.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder, "note.txt"), lambda temporary: temporary.write_text("done"))
        ...     Path(folder, "note.txt").read_text()
        'done'
    """
    # The end of a name says the format; all of it could be too long for the file system
    temporary = path.with_name(f".{uuid.uuid4().hex[:16]}_{path.name[-30:]}")
    try:
        write(temporary)
        _to_disk(temporary)
        temporary.replace(path)
        with contextlib.suppress(OSError):  # not every file system can do it for a folder
            _to_disk(path.parent)
    except OSError as error:
        raise OSError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        # not `unlink(missing_ok=True)`, which fails where the folder is a file
        if temporary.exists():
            temporary.unlink()


def _to_disk(path: Path) -> None:
    """Waits until a file, or the names in a folder, would survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path, names: str) -> None:
    """Removes the temporary files that :func:`write_atomically` left where its process was killed.

    Args:
        folder: where nobody else writes such files now.
        names: a pattern of the files that were to be written, of at most 30 characters.

    Example:
        >>> folder = Path(getfixture("tmp_path"))
        >>> _ = (folder / f".{'0' * 16}_model.pt").write_text("half")
        >>> remove_leftovers(folder, "model.*")
        >>> list(folder.iterdir())
        []
    """
    for path in folder.glob(f".{'[0-9a-f]' * 16}_{names}"):
        path.unlink(missing_ok=True)


def check_writable(folder: str | Path) -> None:
    """Creates a folder for results if it does not exist, and checks that files can be written there.

    Raises:
        OSError: naming the folder and the reason.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_writable(f"{folder}/results/today")
        ...     Path(folder, "results/today").is_dir()
        True
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=str(folder)):
            pass
    except OSError as error:
        raise OSError(f"Cannot write to the output folder {folder}: {error.strerror or error}.") from error
