"""One training at a time in a folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import os
import socket
import threading
import warnings
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from monai.config import PathLike
from monai.utils import optional_import

__all__ = ["lock_folder", "unlock_folder"]

fcntl, HAS_FCNTL = optional_import("fcntl")  # not on Windows, where nothing is locked

_held: dict[Path, tuple[threading.Thread, IO[str]]] = {}
_guard = threading.Lock()


def lock_folder(folder: PathLike) -> None:
    """Keep other trainings out of a folder, until :func:`unlock_folder` or the end of this process.

    The lock is one of the operating system, on the file ``.training.lock``, which names its owner: no process that was
    killed keeps others out. Workers do not inherit it. A thread may lock a folder again.

    Args:
        folder: where the training writes; it must exist.

    Raises:
        ValueError: naming the process that trains there.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> lock_folder(folder)
        >>> (folder / ".training.lock").read_text().startswith(f"process {os.getpid()} on ")
        True
        >>> unlock_folder(folder)
    """
    path = Path(folder).resolve() / ".training.lock"
    with _guard:
        thread, file = _held.get(path, (None, None))
        if thread is not None and thread is not threading.current_thread() and thread.is_alive():
            raise ValueError(_refusal(folder, f"the thread {thread.name} of this process"))
        _held[path] = threading.current_thread(), file or _open_locked(path)


def unlock_folder(folder: PathLike) -> None:
    """Let others train in a folder; nothing happens where this process has not locked it."""
    with _guard:
        _, file = _held.pop(Path(folder).resolve() / ".training.lock", (None, None))
        if file is not None:
            file.truncate(0)
            file.close()


def _open_locked(path: Path) -> IO[str]:
    file = path.open("a+")
    try:
        if HAS_FCNTL:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise ValueError(_refusal(path.parent, owner)) from error
    except OSError as error:
        warnings.warn(f"{path.parent} cannot be locked: {error}. Start no second training there.", stacklevel=4)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
    file.flush()
    return file


def _refusal(folder: Any, owner: str) -> str:
    return f"{owner[:1].upper()}{owner[1:]} trains in {folder}: wait for its end, or choose another folder."
