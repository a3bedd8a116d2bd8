"""monai-lcs bids: segment the T1-weighted scans of a BIDS dataset, as a BIDS App."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from monai_lcs.cli.options import add_files, add_segmenting, add_talk, load_segmenter, make_output
from monai_lcs.cli.words import end, for_each


def add_arguments(command: argparse.ArgumentParser) -> None:
    """A dataset, the derivatives, the level, which people."""
    command.add_argument("bids", metavar="BIDS", help="the dataset")
    command.add_argument("out", metavar="OUT", help="folder for the derivatives, such as BIDS/derivatives/monai-lcs")
    command.add_argument("level", choices=["participant"], help="each scan by itself")
    for word, prefix in (("participant", "sub-"), ("session", "ses-")):  # with a dash, and as BIDS Apps spell it
        spellings = f"--{word}-label", f"--{word}_label"
        command.add_argument(*spellings, nargs="+", metavar="LABEL", help=f"of these only, with or without {prefix}")
    add_segmenting(command)
    add_files(command)
    command.add_argument("--overwrite", action="store_true", help="replace earlier results")
    spellings = "--skip-bids-validation", "--skip_bids_validation"
    command.add_argument(*spellings, action="store_true", help="nothing is validated here in any case")
    add_talk(command)


def run(options: argparse.Namespace) -> int:
    """Segment the T1-weighted scans of a BIDS dataset into derivatives, as a BIDS App."""
    from monai_lcs.files import check_writable, write_atomically
    from monai_lcs.pipeline.scan_to_files import segment_to_files
    from monai_lcs.study.bids import check_derivatives, derivatives_folder, derivatives_texts, find_t1w

    cases = find_t1w(options.bids, options.participant_label or (), options.session_label or ())
    check_writable(options.out)
    check_derivatives(options.out)
    _check_new(options, cases)
    segmenter = load_segmenter(options, progress=len(cases) == 1)
    requests = segmenter.request(options.labels)
    for name, text in derivatives_texts(options.bids).items():
        path = Path(options.out) / name
        if path.suffix == ".json" or not path.exists():  # the user may have added to the others
            write_atomically(path, partial(Path.write_text, data=text, encoding="utf-8"))

    def segment_and_save(case: dict[str, Any]) -> None:
        folder = derivatives_folder(options.out, case["image"])
        segment_to_files(segmenter, case, requests, make_output(options, folder))

    failed = for_each(cases, segment_and_save)
    print(f"{len(cases) - len(failed)} of {len(cases)} scans are in {options.out}.")
    return end(failed, f"{len(cases)} scans")


def _check_new(options: argparse.Namespace, cases: Sequence[dict[str, Any]]) -> None:
    """No result replaces another unless that is asked for."""
    from monai_lcs.study.bids import derivatives_folder

    files = [derivatives_folder(options.out, case["image"]) / f"{case['case']}_dseg.nii.gz" for case in cases]
    there = [file for file in files if file.exists()]
    if there and not options.overwrite:
        raise ValueError(f"{there[0]} exists: choose another OUT, or add --overwrite.")
