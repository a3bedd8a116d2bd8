"""Imports the names of a package when they are first used, so that a command that needs few of them starts at once."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["lazy_names"]


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the functions ``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: ``__name__`` of the package.
        homes: the module of the package in which each name is.

    Example:
        >>> get, _ = lazy_names("monai_lcs", {"LabelTable": "labels"})
        >>> get("LabelTable").__name__
        'LabelTable'
        >>> get("LabelTables")
        Traceback (most recent call last):
        AttributeError: module 'monai_lcs' has no attribute 'LabelTables'
    """

    def get(name: str) -> Any:
        if name in homes:
            return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        """What is offered where a name is completed, also before its first use."""
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names
