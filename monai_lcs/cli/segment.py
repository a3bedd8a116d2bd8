"""monai-lcs segment."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_lcs.cli.cohort import add_cohort, open_folder, run_cohort
from monai_lcs.cli.options import add_files, add_segmenting, add_talk, load_segmenter, make_output
from monai_lcs.cli.together import leading_others, run_together
from monai_lcs.cli.words import read_atlas, show_labels

logger = logging.getLogger(__name__)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Scans, an atlas, weights, and where results go."""
    command.add_argument("scans", nargs="*", metavar="SCAN", help="files, folders of files, folders of a DICOM series")
    command.add_argument("-o", "--out", default="results", help="folder for the results (default: %(default)s)")
    add_segmenting(command)
    command.add_argument("--mask", metavar="FILE", help="the brain of the one scan, not 0 there, on the scan's grid")
    command.add_argument("--series", metavar="UID", help="the series of DICOM folders with several: UID or description")
    add_files(command)
    command.add_argument("--dicom-seg", action="store_true", help="also write a DICOM SEG of each DICOM series")
    command.add_argument("--list-labels", action="store_true", help="only show the labels that can be requested")
    add_cohort(command)
    add_talk(command)


def run(options: argparse.Namespace) -> int:
    """Segment scans and write label maps, volumes and pictures."""
    if options.list_labels:
        return show_labels(read_atlas(options), options.labels)
    if options.scans and not any(map(os.path.exists, options.scans)):  # before the long imports
        others = ", nor any of the others" if len(options.scans) > 1 else ""
        raise ValueError(f"There is no {options.scans[0]}{others}.")
    return run_together(options, _segment)


def _segment(options: argparse.Namespace) -> int:
    """Segment the scans, alone or as the first of several processes."""
    from monai_lcs.cohort import made_with, outcome
    from monai_lcs.pipeline.guard import describe_propagated
    from monai_lcs.pipeline.scan_to_files import segment_to_files

    cases = _cases(options)
    folder = open_folder(options, cases)
    output = make_output(options, options.out)
    segmenter = load_segmenter(options, progress=len(cases) == 1)
    requests = segmenter.request(options.labels)
    if said := describe_propagated(segmenter.propagated(requests), len(requests)):
        logger.info(said)

    def segment_and_save(case: dict[str, Any]) -> Any:
        return outcome(*segment_to_files(segmenter, case, requests, output))

    files = [options.masks, options.probabilities, sorted(options.tables), options.dicom_seg]
    skull = [options.strip, options.mask and hashlib.sha256(Path(options.mask).read_bytes()).hexdigest()]
    made = made_with(segmenter, requests, skull=skull, series=options.series, files=files)
    with leading_others(options):
        return run_cohort(options, folder, cases, segment_and_save, made)


def _cases(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The scans to segment."""
    from monai_lcs.study.cases import find_images

    if not options.scans:
        raise ValueError("Give a scan: a file or a folder of files. Scans stand before --labels, --atlas and --tables.")
    cases = find_images(options.scans)
    if options.mask and not Path(options.mask).is_file():
        raise ValueError(f"--mask takes a file, and {options.mask} is none.")
    if options.mask and len(cases) > 1:
        raise ValueError(f"--mask {options.mask} is the mask of one scan, got {len(cases)} scans: give one.")
    if options.dicom_seg:
        _check_dicom(cases)
    return [{**case, "mask": options.mask, "series": options.series} for case in cases]


def _check_dicom(cases: Sequence[dict[str, Any]]) -> None:
    """A DICOM SEG lies on the slices of a DICOM series."""
    from monai_lcs.results.dicom_seg import require_highdicom

    require_highdicom()
    for case in cases:
        if not Path(case["image"]).is_dir():
            raise ValueError(f"--dicom-seg takes folders of a DICOM series, got {case['image']}.")
