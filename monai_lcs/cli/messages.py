"""What a command says on stderr besides its errors: one line for each thing, above the bars of progress."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

LOGGER = logging.getLogger("monai_lcs")


class _Lines(logging.Handler):
    """Writes to the stderr of the moment, and leaves a bar of progress whole."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def messages(options: argparse.Namespace) -> Iterator[None]:
    """Show what the package says, as far as ``--verbose`` and ``--quiet`` go; a warning is one line without a path."""
    quiet, verbose = (getattr(options, name, False) for name in ("quiet", "verbose"))
    lines, level, form = _Lines(), LOGGER.level, warnings.formatwarning
    LOGGER.addHandler(lines)
    LOGGER.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    warnings.formatwarning = _one_line
    try:
        yield
    finally:
        LOGGER.removeHandler(lines)
        LOGGER.setLevel(level)
        warnings.formatwarning = form


def are_quiet() -> bool:
    """Whether only what is wrong is said."""
    return not LOGGER.isEnabledFor(logging.INFO)


def _one_line(message: Any, *_: Any, **__: Any) -> str:
    return f"Warning: {message}\n"
