"""Files that are never half-written and never lost."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["check_absent", "check_writable", "write_atomically"]


def check_absent(paths: Sequence[Path], overwrite: bool) -> None:
    """No result is lost without being asked for."""
    for path in paths:
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists: write elsewhere or set overwrite=True.")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a new file next to `path` and renames it, so that nothing half-written looks like a result."""
    temporary = path.with_name(f".{uuid.uuid4().hex}_{path.name}")
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        raise OSError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        # not `unlink(missing_ok=True)`, which fails where the folder is a file
        if temporary.exists():
            temporary.unlink()


def check_writable(folder: str | Path) -> None:
    """Creates a folder for results where it is missing, and makes sure that files can be written there.

    Raises:
        OSError: naming the folder and the reason.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=str(folder)):
            pass
    except OSError as error:
        raise OSError(f"Cannot write to the output folder {folder}: {error.strerror or error}.") from error
