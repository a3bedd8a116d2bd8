"""monai-lcs segment."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_lcs.cli.words import DEFAULT_ATLAS, add_atlas, end, for_each, read_atlas


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Scans, an atlas, weights, and where results go."""
    command.add_argument("scans", nargs="+", metavar="SCAN", help="files, or folders of files")
    command.add_argument("-o", "--out", default="results", help="folder for the results (default: %(default)s)")
    add_atlas(command, DEFAULT_ATLAS)
    command.add_argument(
        "--weights",
        default="permissive",
        metavar="WEIGHTS",
        help="permissive: any use and any atlas; research: not for commercial use, for the atlas neuromorphometrics;"
        " none: the aligned atlas labels; or a file (default: %(default)s)",
    )
    command.add_argument("--align", metavar="MODE", help="how, e.g. deformable_fine; default: as in training")
    command.add_argument("--cache", metavar="DIR", help="keep alignments in this folder")
    command.add_argument("--no-picture", action="store_true", help="draw no picture")
    command.add_argument("--overwrite", action="store_true", help="replace earlier results")


def run(options: argparse.Namespace) -> int:
    """Segment scans and write label maps, volumes and pictures."""
    from monai_lcs.files import check_writable
    from monai_lcs.pipeline import Segmenter, describe_weights
    from monai_lcs.study.cases import find_images

    cases = find_images(options.scans)
    check_writable(options.out)
    _check_new(options, [case["case"] for case in cases])
    weights = _weights(options.weights)
    print(describe_weights(weights), file=sys.stderr)
    segmenter = Segmenter.load(weights, read_atlas(options), options.device, align=options.align, cache=options.cache)
    requests = segmenter.request(options.labels)

    def segment_and_save(case: dict[str, Any]) -> None:
        result = segmenter.segment(case["image"], requests, case["case"])
        result.save(options.out, overwrite=options.overwrite, picture=not options.no_picture)

    failed = for_each(cases, segment_and_save)
    print(f"{len(cases) - len(failed)} of {len(cases)} scans are in {options.out}: label maps, volumes, pictures.")
    return end(failed, f"{len(cases)} scans")


def _check_new(options: argparse.Namespace, names: Sequence[str]) -> None:
    """No result replaces another unless that is asked for."""
    there = [name for name in names if (Path(options.out) / f"{name}_dseg.nii.gz").exists()]
    if there and not options.overwrite:
        raise ValueError(f"{options.out} has results of {', '.join(there[:3])}: choose another -o, or add --overwrite.")


def _weights(words: str) -> Any:
    """The file of weights: shipped ones by their name, a file, or ``None`` for none."""
    from monai_lcs.pipeline import shipped_weights
    from monai_lcs.pipeline.weights import SHIPPED_WEIGHTS

    if words == "none":
        return None
    return shipped_weights(words) if words in SHIPPED_WEIGHTS else words
