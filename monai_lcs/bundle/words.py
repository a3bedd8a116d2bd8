"""What the config parser makes of the words of the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_lcs.bundle.sentence import one_sentence

__all__ = [
    "check_flags",
    "check_paths",
    "check_words",
]


@one_sentence
def check_flags(**flags: Any) -> None:
    """Make sure that flags are true or false: the word ``false`` is a text, which Python takes for true.

    Example:
        >>> check_flags(overwrite=True, skip_existing=0)
        >>> check_flags(overwrite="false")
        Traceback (most recent call last):
        SystemExit: Error: --overwrite takes True or False, got 'false'.
    """
    for name, value in flags.items():
        if value not in (True, False):
            raise ValueError(f"--{name} takes True or False, got {value!r}.")


@one_sentence
def check_paths(**paths: Any) -> None:
    """:func:`check_words` of paths that are not those of scans or of the atlas.

    What is neither a word nor a number comes from Python, such as a cache of alignments, and stays.
    """
    check_words({name: value for name, value in paths.items() if isinstance(value, str | int | float)})


def check_words(arguments: Mapping[str, Any], words: Sequence[str] | None = None) -> None:
    """Make sure that the config parser left the paths of the command line as they were typed.

    It reads values as Python: ``2024_01_15`` is the number 20240115, and in ``scan#2.nii.gz`` a comment begins.

    Args:
        arguments: values by the name of their option, as the parser gave them.
        words: the command line; by default that of ``python -m monai.bundle``, if this process is one.

    Raises:
        ValueError: when a value is another than what was typed, with how to quote it.

    Example:
        >>> check_words({"dataset_dir": "scan"}, ["--dataset_dir", "scan#2.nii.gz"])
        Traceback (most recent call last):
        ValueError: The config parser reads --dataset_dir scan#2.nii.gz as 'scan': quote it twice, "'scan#2.nii.gz'".
    """
    typed = _options(_command_line() if words is None else words)
    for name, value in arguments.items():
        word = typed.get(name)
        if word is not None and word[:1] not in "'\"[($@%" and value is not None and str(value) != word:
            raise ValueError(f"The config parser reads --{name} {word} as {value!r}: quote it twice, \"'{word}'\".")
        if value is not None and not isinstance(value, str | os.PathLike | list | tuple):
            raise ValueError(f"--{name} must be a path, got {value!r}, {type(value).__name__}: quote it twice.")


def _command_line() -> list[str]:
    """The words behind ``python -m monai.bundle``; none in another program, whose words mean something else."""
    return sys.argv[1:] if Path(sys.argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py") else []


def _options(words: Sequence[str]) -> dict[str, str]:
    """``--name value`` and ``--name=value`` of a command line."""
    found = {}
    for i, word in enumerate(words):
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--"):
            found[name] = value if equals else "".join(words[i + 1 : i + 2])
    return found
