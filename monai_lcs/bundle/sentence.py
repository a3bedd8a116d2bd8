"""A mistake that the user can mend ends the program with one sentence."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["one_sentence"]

T = TypeVar("T", bound=Callable[..., Any])


def one_sentence(function: T) -> T:
    """Turn what a user can mend into one sentence on stderr and exit status 1."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (ValueError, OSError) as error:
            raise SystemExit(f"Error: {error}") from error

    return wrapped  # type: ignore[return-value]
