"""Results must not replace others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_lcs import files
from monai_lcs.bundle.sentence import one_sentence
from monai_lcs.results.segmentation import ENDINGS

__all__ = [
    "check_new",
    "check_new_cases",
    "check_writable",
]


@one_sentence
def check_writable(*folders: str) -> None:
    """Make sure that results can be written, see :func:`monai_lcs.files.check_writable`."""
    for folder in folders:
        if not isinstance(folder, str):
            raise ValueError(f"A folder for results must be a path, got {folder!r}: quote it twice, \"'NAME'\".")
        files.check_writable(folder)


@one_sentence
def check_new(output_dir: str, names: Iterable[str], overwrite: bool, instead: str = "") -> None:
    """Make sure, before the work is done, that its results will not replace others.

    Args:
        output_dir: where results go.
        names: their file names.
        overwrite: do not check.
        instead: what else the user may give.
    """
    there = [name for name in names if (Path(output_dir) / name).exists()]
    if there and not overwrite:
        exists = f"and {len(there) - 1} more exist" if len(there) > 1 else "exists"
        first = Path(output_dir) / there[0]
        raise ValueError(f"{first} {exists}: choose another --output_dir, or give {instead}--overwrite True.")


def check_new_cases(output_dir: str, cases: Sequence[Mapping[str, Any]], overwrite: bool) -> None:
    """:func:`check_new` for the results of all cases; one file of a case is enough, such as a killed run leaves."""
    endings = [ENDINGS["dseg"], *ENDINGS.values()]
    of_cases = ([f"{case['case']}_{ending}" for ending in endings] for case in cases)
    there = (next((name for name in names if (Path(output_dir) / name).exists()), None) for names in of_cases)
    check_new(output_dir, filter(None, there), overwrite, "--skip_existing True to go on with them, or ")
