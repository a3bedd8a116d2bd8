"""Options of every command that segments: how, with what, what is written, what is said."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from monai_lcs.cli.words import DEFAULT_ATLAS, add_atlas, read_atlas

ALIGNMENTS = ("none", "rigid", "affine", "deformable", "deformable_fine")  # the pipeline's, which is slow to import
TABLES = {"slicer": ".ctbl", "itksnap": ".label", "freesurfer": ".txt"}

logger = logging.getLogger(__name__)


def add_segmenting(command: argparse.ArgumentParser) -> None:
    """How scans are segmented."""
    add_atlas(command, DEFAULT_ATLAS)
    command.add_argument(
        "--more-atlases",
        metavar="STUDY",
        help="a folder with images/ and labels/: labeled scans that vote beside the atlas where they are like the scan;"
        " far more accurate, and each takes an alignment",
    )
    command.add_argument(
        "--weights",
        default="permissive",
        metavar="WEIGHTS",
        help="permissive: any use and any atlas; research: not for commercial use, for the atlas neuromorphometrics;"
        " generalist: not for commercial use, for labeled scans as atlases; none: the aligned atlas labels; or a file"
        " (default: %(default)s)",
    )
    command.add_argument(
        "--strip",
        choices=("auto", "yes", "no"),
        default="auto",
        help="remove the skull: where one is seen, always, never (default: %(default)s)",
    )
    how = command.add_mutually_exclusive_group()
    how.add_argument("--align", choices=ALIGNMENTS, help="how, from no freedom to the most; default: as in training")
    how.add_argument("--careful", action="store_true", help="align at 1 mm: more accurate, takes longer")
    how.add_argument("--fast", action="store_true", help="align by an affine transform alone: less accurate, quicker")
    command.add_argument("--cache", metavar="DIR", help="keep alignments in this folder")
    command.add_argument("--threads", type=int, metavar="N", help="processor threads; default: all cores")


def add_files(command: argparse.ArgumentParser) -> None:
    """What is written of each scan."""
    command.add_argument("--no-picture", action="store_true", help="draw no picture")
    command.add_argument("--masks", action="store_true", help="also write a mask of each label")
    command.add_argument("--probabilities", action="store_true", help="also write the probability of each label")
    command.add_argument(
        "--tables", nargs="+", choices=TABLES, default=[], help="also write the label table for these programs"
    )


def add_talk(command: argparse.ArgumentParser) -> None:
    """What is said meanwhile."""
    talk = command.add_mutually_exclusive_group()
    talk.add_argument("-v", "--verbose", action="store_true", help="say how long each step takes")
    talk.add_argument("-q", "--quiet", action="store_true", help="say only what is wrong")


def load_segmenter(options: argparse.Namespace, progress: bool = False) -> Any:
    """The segmenter that the words ask for; which weights and atlas it uses is said."""
    from monai_lcs.atlas import AlignmentCache
    from monai_lcs.pipeline import Segmenter, describe_untrained_fusion, describe_weights

    use_threads(options.threads)
    weights = find_weights(options.weights)
    if not weights and getattr(options, "probabilities", False):
        raise ValueError("--probabilities are those of a network: --weights none has none.")
    logger.info(describe_weights(weights))
    atlas = read_atlas(options)
    further = read_more_atlases(options, atlas)
    align = "deformable_fine" if options.careful else "affine" if options.fast else options.align
    shown = progress and not options.quiet
    cache = AlignmentCache(options.cache, in_memory=0)  # no scan comes twice
    more = {"align": align, "cache": cache, "strip": options.strip, "progress": shown, "further_atlases": further}
    if getattr(options, "label_parallel", False):
        more["label_parallel"] = True
    segmenter = Segmenter.load(weights, atlas, options.device, **more)
    if said := describe_untrained_fusion(weights, segmenter.settings, further):
        logger.warning(said)
    return segmenter


def read_more_atlases(options: argparse.Namespace, atlas: Any) -> list[Any]:
    """The labeled scans that vote beside the atlas; what is known of them is said."""
    from monai_lcs.pipeline import describe_other_labels, read_further_atlases
    from monai_lcs.study.cases import find_cases

    if not options.more_atlases:
        return []
    found = find_cases(options.more_atlases, section="testing", exclude=list(atlas.files.values()))
    further = read_further_atlases(found, atlas, progress=not options.quiet)
    logger.info(f"{len(further)} further atlases of {options.more_atlases} vote beside it.")
    if said := describe_other_labels(further, atlas):
        logger.warning(said)
    return further


def find_weights(words: str) -> Any:
    """The file of weights: shipped ones by their name, a file, or ``None`` for none."""
    from monai_lcs.pipeline import shipped_weights
    from monai_lcs.pipeline.weights import SHIPPED_WEIGHTS

    if words == "none":
        return None
    return shipped_weights(words) if words in SHIPPED_WEIGHTS else words


def use_threads(number: int | None) -> None:
    """Let PyTorch and SimpleITK use so many threads.

    Raises:
        ValueError: for less than one.
    """
    if number is None:
        return
    if number < 1:
        raise ValueError(f"--threads must be 1 or more, got {number}.")
    import SimpleITK as sitk
    import torch

    torch.set_num_threads(number)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(number)


def make_output(options: argparse.Namespace, folder: Any) -> Any:
    """Which files are written; who calls it has seen to it that they may replace others."""
    from monai_lcs.pipeline.scan_to_files import Output

    left_out = ("run", "scans", "words", "worker", "label_parallel")
    given = {name: value for name, value in vars(options).items() if name not in left_out and value is not None}
    tables = tuple(TABLES[name] for name in options.tables)
    picture, seg = not options.no_picture, getattr(options, "dicom_seg", False)
    return Output(folder, True, picture, options.masks, options.probabilities, tables, seg, given)
