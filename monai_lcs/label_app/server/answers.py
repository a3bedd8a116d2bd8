"""Turns errors into answers that a client understands, and removes uploads that were not used."""

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
    """The study has nothing of the name that a client sent.

    Example:
        >>> STATUS[NotFound]
        404
    """


STATUS = {NotFound: 404, FileExistsError: 409, OverflowError: 413}


def is_upload(path: Any) -> bool:
    """Tell whether a path is that of a file that a request brought: it is directly in the folder for temporary files.

    Example:
        >>> is_upload(f"{tempfile.gettempdir()}/tmp1.nii.gz"), is_upload("/data/study/sub-01.nii.gz"), is_upload(None)
        (True, False, False)
    """
    if not path or not isinstance(path, str | os.PathLike):
        return False
    return Path(path).resolve().parent == Path(tempfile.gettempdir()).resolve()


@contextmanager
def as_answer(*uploads: Any) -> Iterator[None]:
    """Turn an error that the client can mend into an answer with one sentence, and remove the uploads after any error.

    The status is 404 for :class:`NotFound`, 409 for ``FileExistsError``, 413 for ``OverflowError``, and 400 for other
    ``ValueError``. MONAI Label itself removes the file of a request only after an answer without an error.

    Args:
        uploads: paths of files that the request may have brought. Files elsewhere stay, see :func:`is_upload`.

    Raises:
        HTTPException: instead of the errors above; others pass.

    Example:
        >>> with as_answer():
        ...     raise NotFound("There is no image 'sub-99' in the study.")
        Traceback (most recent call last):
        ...
        fastapi.exceptions.HTTPException: 404: There is no image 'sub-99' in the study.
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
