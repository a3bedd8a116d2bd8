"""monai-lcs segment."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from monai_lcs.cli.cohort import add_cohort, open_folder, run_cohort
from monai_lcs.cli.words import DEFAULT_ATLAS, add_atlas, read_atlas


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
    add_cohort(command)


def run(options: argparse.Namespace) -> int:
    """Segment scans and write label maps, volumes and pictures."""
    from monai_lcs.cohort import made_with, outcome
    from monai_lcs.pipeline import Segmenter, describe_weights
    from monai_lcs.pipeline.guard import describe_propagated
    from monai_lcs.study.cases import find_images

    cases = find_images(options.scans)
    folder = open_folder(options, cases)
    weights = _weights(options.weights)
    print(describe_weights(weights), file=sys.stderr)
    segmenter = Segmenter.load(weights, read_atlas(options), options.device, align=options.align, cache=options.cache)
    requests = segmenter.request(options.labels)
    if said := describe_propagated(segmenter.propagated(requests), len(requests)):
        print(said, file=sys.stderr)

    def segment_and_save(case: dict[str, Any]) -> Any:
        result = segmenter.segment(case["image"], requests, case["case"])
        return outcome(result, result.save(options.out, overwrite=True, picture=not options.no_picture))

    return run_cohort(options, folder, cases, segment_and_save, made_with(segmenter, requests))


def _weights(words: str) -> Any:
    """The file of weights: shipped ones by their name, a file, or ``None`` for none."""
    from monai_lcs.pipeline import shipped_weights
    from monai_lcs.pipeline.weights import SHIPPED_WEIGHTS

    if words == "none":
        return None
    return shipped_weights(words) if words in SHIPPED_WEIGHTS else words
