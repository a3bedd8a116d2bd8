"""monai-lcs evaluate."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from monai_lcs.cli.words import end, for_each

FEW = 0.5  # of the labels in both label maps: less looks like two atlases


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Label maps, true ones, a table, and what is written."""
    command.add_argument("predictions", metavar="PREDICTIONS", help="a label map, or a folder of them")
    command.add_argument("truths", metavar="TRUTHS", help="the true label map, or a folder of them; paired by name")
    command.add_argument(
        "--table",
        metavar="FILE",
        help="label table: which labels to score, and their names; default: all ids of the label maps",
    )
    command.add_argument(
        "--tolerance",
        type=float,
        default=1.0,
        metavar="MM",
        help="surfaces this far apart count as the same in the surface Dice (default: %(default)s)",
    )
    command.add_argument("-o", "--out", metavar="FILE.tsv", help="write the scores of each label in each case here")
    command.add_argument(
        "--by-label", metavar="FILE.tsv", help="write the means of each label here, and how its volumes correlate"
    )
    command.add_argument("--plot", metavar="FILE.png", help="draw the scores of the labels here, sorted by Dice")
    command.add_argument("--overwrite", action="store_true", help="replace earlier files")


def run(options: argparse.Namespace) -> int:
    """Score label maps against true ones: for each label the Dice, how far surfaces lie apart, and the volumes."""
    from monai_lcs.files import check_absent, check_writable
    from monai_lcs.labels import LabelTable
    from monai_lcs.pipeline.evaluation import other_names, pair_label_maps, score_case, score_table
    from monai_lcs.results.picture import require_matplotlib
    from monai_lcs.results.scores import scores_summary
    from monai_lcs.study.cases import shorten_names

    table = LabelTable.read(options.table) if options.table else None
    results = [Path(file) for file in (options.out, options.by_label, options.plot) if file]
    if len({file.absolute() for file in results}) < len(results):
        raise ValueError("-o, --by-label and --plot write three files: give each another name.")
    if not options.tolerance >= 0:
        raise ValueError(f"--tolerance takes mm, 0 or more, got {options.tolerance:g}.")
    check_absent(results, options.overwrite)
    if options.plot:
        require_matplotlib()
        from matplotlib.backend_bases import FigureCanvasBase

        known = FigureCanvasBase.get_supported_filetypes()
        if Path(options.plot).suffix.lower().removeprefix(".") not in known:
            raise ValueError(f"--plot {options.plot} must end in one of .{', .'.join(known)}.")
    for file in results:
        check_writable(file.parent)
    pairs = pair_label_maps(options.predictions, options.truths)
    cases = [{"case": case, "image": str(predicted), "label": true} for case, (predicted, true) in pairs.items()]
    scores: dict[str, Any] = {}
    renamed: list[str] = []

    def score(case: dict[str, Any]) -> None:
        if table:
            renamed.extend(f"{name} ({case['image']})" for name in other_names(case["image"], table))
        scores[case["case"]] = score_case(case["image"], case["label"], options.tolerance)

    failed = for_each(cases, score)
    if renamed:
        print(f"Note: the label tables beside results name ids otherwise: {shorten_names(renamed)}.", file=sys.stderr)
    if scores:
        rows = score_table(scores, table)
        print(scores_summary(rows))
        share = (rows["present_in"] == "both").sum() / max((rows["present_in"] != "neither").sum(), 1)
        if share < FEW:
            print(
                f"Note: {share:.0%} of the labels are in both label maps: are they of the same atlas?", file=sys.stderr
            )
        _write(rows, options)
    return end(failed, f"{len(cases)} cases")


def _write(scores: Any, options: argparse.Namespace) -> None:
    """Write what was asked for, and say where it is."""
    from monai_lcs.results.scores import plot_scores, scores_by_label, write_scores_tsv

    if options.out:
        write_scores_tsv(scores, options.out, options.overwrite)
        print(f"Scores of each label in each case: {options.out}")
    if options.by_label:
        write_scores_tsv(scores_by_label(scores), options.by_label, options.overwrite)
        print(f"Scores of each label: {options.by_label}")
    if options.plot:
        plot_scores(scores, options.plot, options.overwrite)
        print(f"Plot: {options.plot}")
