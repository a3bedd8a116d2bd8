"""From errors to answers that a client understands, and uploads that leave nothing behind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import HTTPException

__all__ = ["NotFound", "as_answer", "is_upload"]


class NotFound(ValueError):
    """There is nothing of the name asked for."""


STATUS = {NotFound: 404, FileExistsError: 409, OverflowError: 413}


def is_upload(path: Any) -> bool:
    """Whether a path is a file that a request brought, right in the folder for temporary files."""
    if not path or not isinstance(path, str | os.PathLike):
        return False
    return Path(path).resolve().parent == Path(tempfile.gettempdir()).resolve()


@contextmanager
def as_answer(*uploads: Any) -> Iterator[None]:
    """Answer 400 with one sentence for what the client can mend (404, 409 and 413 likewise); uploads are removed then.

    MONAI Label removes the file that came with a request only after an answer without an error.

    Args:
        uploads: files that the request may have brought; others are left alone.
    """
    brought = [str(path) for path in uploads if is_upload(path)]
    try:
        yield
    except BaseException as error:
        for path in brought:
            Path(path).unlink(missing_ok=True)
        if not isinstance(error, ValueError | OverflowError | FileExistsError):
            raise
        text = str(error)
        for path in brought:
            text = text.replace(path, "The uploaded file")
        raise HTTPException(STATUS.get(type(error), 400), text) from error
