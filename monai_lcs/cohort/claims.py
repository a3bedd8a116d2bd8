"""Claims: who works on a case. A claim ends with its process, however that ends, and no clock has a say in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["claim"]


@contextmanager
def claim(path: Path, wait: bool = False) -> Iterator[bool]:
    """Claim what a file stands for, until the end of the ``with`` block.

    The operating system holds the lock of the file for the process, and drops it when the process is killed or the
    machine fails: there are no stale claims. Its word counts between machines as well where the file system has locks
    for all of them, as NFS and Lustre (mounted with ``flock``) do. The file itself stays; it is empty.

    Args:
        path: the claim file; it is created if it does not exist.
        wait: whether to wait while another has the claim.

    Yields:
        Whether the claim is ours. False: another thread or process has it.

    Example:
        >>> path = getfixture("tmp_path") / "ann.claim"
        >>> with claim(path) as ours, claim(path) as again:
        ...     ours, again
        (True, False)
    """
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
