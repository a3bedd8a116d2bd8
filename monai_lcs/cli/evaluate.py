"""monai-lcs evaluate."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from monai_lcs.cli.words import end, for_each


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Label maps, true ones, a table."""
    command.add_argument("predictions", metavar="PREDICTIONS", help="a label map, or a folder of them")
    command.add_argument("truths", metavar="TRUTHS", help="the true label map, or a folder of them; paired by name")
    command.add_argument(
        "--table",
        metavar="FILE",
        help="label table: which labels to score, and their names; default: all ids of the true maps",
    )
    command.add_argument("-o", "--out", metavar="FILE.tsv", help="write the Dice of each label here")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier file")


def run(options: argparse.Namespace) -> int:
    """Score label maps against true ones: the Dice of each label."""
    from monai_lcs.files import check_absent, check_writable
    from monai_lcs.labels import LabelTable
    from monai_lcs.pipeline.evaluation import pair_label_maps, score_case, score_table
    from monai_lcs.results.dice import dice_summary, write_dice_tsv

    table = LabelTable.read(options.table) if options.table else None
    if options.out:
        check_absent([Path(options.out)], options.overwrite)
        check_writable(Path(options.out).parent)
    pairs = pair_label_maps(options.predictions, options.truths)
    cases = [{"case": case, "image": str(predicted), "label": true} for case, (predicted, true) in pairs.items()]
    scores: dict[str, dict[int, float]] = {}

    def score(case: dict[str, Any]) -> None:
        scores[case["case"]] = score_case(case["image"], case["label"])

    failed = for_each(cases, score)
    if scores:
        dice = score_table(scores, table)
        print(dice_summary(dice))
        if options.out:
            write_dice_tsv(dice, options.out, overwrite=options.overwrite)
            print(f"Dice of each label: {options.out}")
    return end(failed, f"{len(cases)} cases")
