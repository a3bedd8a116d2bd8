"""Label maps scored against true ones, from files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from monai.config import PathLike

from monai_lcs.labels import LabelTable, present_labels
from monai_lcs.metrics import label_dice
from monai_lcs.results.dice import dice_table
from monai_lcs.study.cases import case_name, shorten_names
from monai_lcs.study.checks import check_same_grid, read_label_map
from monai_lcs.study.images import IMAGE_EXTENSIONS

__all__ = ["pair_label_maps", "score_case", "score_label_maps", "score_table"]


def pair_label_maps(predictions: PathLike, truths: PathLike) -> dict[str, tuple[Path, Path]]:
    """Pair predicted and true label maps by name; ``CASE_dseg`` is a prediction for ``CASE``.

    Args:
        predictions: a file, or a folder of label maps; of other results in it, those that end in ``_dseg`` count.
        truths: the true label map, or a folder of them.

    Returns:
        The two files of each case.

    Raises:
        ValueError: when one is a folder and the other is none, a folder has no label maps, or one has no partner.

    Example:
        >>> list(pair_label_maps("results/ann_dseg.nii.gz", "labels/ann.nii.gz"))
        ['ann']
    """
    folders = [Path(folder).is_dir() for folder in (predictions, truths)]
    if folders[0] != folders[1]:
        raise ValueError(f"Give two label maps or two folders of them, got {predictions} and {truths}.")
    if not folders[0]:
        return {case_name(truths): (Path(predictions), Path(truths))}
    predicted, true = (_by_case(Path(folder)) for folder in (predictions, truths))
    alone = [
        f"{shorten_names(sorted(only))} in {folder} alone"
        for folder, only in ((predictions, predicted.keys() - true), (truths, true.keys() - predicted))
        if only
    ]
    if alone or not predicted:
        what = "; ".join(alone) or "both have none"
        raise ValueError(f"{predictions} and {truths} must hold label maps of the same cases: {what}.")
    return {case: (predicted[case], true[case]) for case in sorted(predicted)}


def _by_case(folder: Path) -> dict[str, Path]:
    """Label maps of a folder; of results that are saved beside each other only these."""
    files = [path for path in sorted(folder.iterdir()) if path.name.lower().endswith(IMAGE_EXTENSIONS)]
    results = [path for path in files if case_name(path).endswith("_dseg")]
    named: dict[str, Path] = {}
    for path in results or files:
        case = case_name(path).removesuffix("_dseg")
        if named.setdefault(case, path) != path:
            raise ValueError(f'Two label maps are named "{case}", rename one of them: {named[case]} and {path}.')
    return named


def score_case(predicted: PathLike, true: PathLike) -> dict[int, float]:
    """The Dice of each label of a true label map.

    Args:
        predicted: the file of the predicted label map.
        true: the file of the true one.

    Raises:
        ValueError: naming the file that is no label map, or the two that do not share a grid.

    Example:
        >>> import nibabel as nib, numpy as np
        >>> path = getfixture("tmp_path") / "dseg.nii"
        >>> nib.save(nib.Nifti1Image(np.full((4, 5, 6), 17, np.uint8), np.eye(4)), path)
        >>> score_case(path, path)
        {17: 1.0}
    """
    maps = read_label_map(predicted), read_label_map(true)
    check_same_grid(*maps, str(predicted), str(true))
    ids = present_labels(maps[1])
    return dict(zip(ids, label_dice(*maps, ids).tolist(), strict=True)) if ids else {}


def score_table(scores: Mapping[str, Mapping[int, float]], table: LabelTable | None = None) -> pd.DataFrame:
    """The scores of all cases as one table.

    Args:
        scores: for each case what :func:`score_case` returns.
        table: the labels to show; by default those that a case has.

    Returns:
        See :func:`monai_lcs.results.dice.dice_table`; NaN for the labels that a case lacks.

    Raises:
        ValueError: when there is no label to show.

    Example:
        >>> score_table({"ann": {17: 0.5}, "bo": {17: 1.0, 53: 0.25}}).dice.tolist()
        [0.5, nan, 1.0, 0.25]
    """
    table = LabelTable.from_ids(sorted(set().union(*scores.values()))) if table is None else table
    if not table:
        raise ValueError(
            f"There is nothing to score: the true label maps hold no label ({shorten_names(list(scores))})."
        )
    rows = [[of_case.get(id, math.nan) for id in table.ids] for of_case in scores.values()]
    return dice_table(np.array(rows), list(scores), table)


def score_label_maps(pairs: Mapping[str, tuple[PathLike, PathLike]], table: LabelTable | None = None) -> pd.DataFrame:
    """The Dice of each label in each case: :func:`score_case` for all of them, and :func:`score_table`.

    Args:
        pairs: from :func:`pair_label_maps`.
        table: the labels to score; by default those that occur in a true label map.
    """
    return score_table({case: score_case(*files) for case, files in pairs.items()}, table)
