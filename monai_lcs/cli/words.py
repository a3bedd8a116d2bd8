"""Words that commands share: the atlas, the cases, what is said at the end."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monai_lcs.cli.messages import are_quiet

DEFAULT_ATLAS = "desikan-killiany"

logger = logging.getLogger(__name__)


def add_atlas(command: argparse.ArgumentParser, default: str | None = None) -> None:
    """An atlas, labels of it, and where to compute."""
    command.add_argument(
        "--atlas",
        nargs="+",
        default=[default],
        required=not default,
        metavar="ATLAS",
        help="files: image, label map and perhaps label table; the folder of `monai-lcs atlas`; or a name that"
        " `monai-lcs atlases` lists" + (f" (default: {default})" if default else ""),
    )
    command.add_argument("--labels", nargs="+", metavar="LABEL", help='ids, names, patterns or unions "A + B"')
    command.add_argument("--device", default="cpu", help="where to compute (default: %(default)s)")


def read_atlas(options: argparse.Namespace) -> Any:
    """The atlas of the words; what is known of it is printed."""
    from monai_lcs.atlas import NAMED_ATLASES, Atlas, named_atlas
    from monai_lcs.results.atlas_folder import read_atlas_folder

    if len(options.atlas) == 1 and Path(options.atlas[0]).is_dir():
        atlas = read_atlas_folder(options.atlas[0])
    elif len(options.atlas) == 1:
        known = NAMED_ATLASES.get(options.atlas[0])
        atlas = named_atlas(options.atlas[0])
        if known:
            logger.info(f"Atlas {options.atlas[0]}: {known.count} labels of {known.package}; {known.terms}.")
    elif len(options.atlas) <= 3:
        atlas = Atlas.read(*options.atlas)
    else:
        raise ValueError(f"--atlas takes a name, or an image, its label map and perhaps a table, got {options.atlas}.")
    if atlas.mismatch:
        logger.warning(f"Note: {atlas.mismatch}")
    return atlas


def show_labels(atlas: Any, words: Any = None) -> int:
    """Print the labels that can be requested, or those that words request: id, name, coarse name, side."""
    from monai_lcs.labels import parse_request, requested_table

    table = requested_table(parse_request(words, atlas.table, atlas.ids), atlas.table)
    for label in table:
        print(label.id, label.name, label.parent or "", label.hemisphere or "", sep="\t")
    return 0


def for_each(cases: Sequence[dict[str, Any]], do: Callable[[dict[str, Any]], Any]) -> list[str]:
    """Do something with each case; a bad one does not stop the others. Returns what is wrong with the bad ones."""
    from monai_lcs.pipeline.weights import cause

    failed = []
    for case in tqdm(cases, "Cases", unit="case", disable=are_quiet()):
        try:
            do(case)
        except (ValueError, OSError, ImportError) as error:
            message = str(error)
            failed.append(message if case["image"] in message else f"{case['image']}: {message}")
        except Exception as error:  # such as a GPU without memory left
            failed.append(f"{case['image']}: {type(error).__name__}: {cause(error)[:300]}")
    return failed


def end(failed: Sequence[str], all_cases: str) -> int:
    """List the cases that failed; the exit status."""
    if failed:
        print(f"{len(failed)} of {all_cases} failed:", *failed, sep="\n  ", file=sys.stderr)
    return 1 if failed else 0
