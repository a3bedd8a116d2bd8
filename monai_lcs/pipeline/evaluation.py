"""Label maps scored against true ones, from files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from monai.config import PathLike

from monai_lcs.labels import LabelTable
from monai_lcs.results.scores import label_scores, scores_table
from monai_lcs.study.cases import case_name, image_files, shorten_names
from monai_lcs.study.checks import check_same_grid, read_label_map

__all__ = ["other_names", "pair_label_maps", "score_case", "score_label_maps", "score_table"]


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
    files = image_files(folder)
    results = [path for path in files if case_name(path).endswith("_dseg")]
    nifti = {case_name(path) for path in results if path.name.endswith(".nii.gz")}
    results = [path for path in results if path.name.endswith(".nii.gz") or case_name(path) not in nifti]  # no copies
    named: dict[str, Path] = {}
    for path in results or files:
        case = case_name(path).removesuffix("_dseg")
        if named.setdefault(case, path) != path:
            raise ValueError(f'Two label maps are named "{case}", rename one of them: {named[case]} and {path}.')
    return named


def score_case(predicted: PathLike, true: PathLike, tolerance_mm: float = 1.0) -> pd.DataFrame:
    """The scores of each label of a case.

    Args:
        predicted: the file of the predicted label map.
        true: the file of the true one.
        tolerance_mm: how far apart surfaces may lie to count as the same in the surface Dice.

    Returns:
        See :func:`monai_lcs.results.scores.label_scores`.

    Raises:
        ValueError: naming the file that is no label map, or the two that do not share a grid.

    Example:
        >>> import nibabel as nib, numpy as np
        >>> path = getfixture("tmp_path") / "dseg.nii"
        >>> nib.save(nib.Nifti1Image(np.full((4, 5, 6), 17, np.uint8), np.eye(4)), path)
        >>> score_case(path, path).dice.to_dict()
        {17: 1.0}
    """
    maps = read_label_map(predicted), read_label_map(true)
    check_same_grid(*maps, str(predicted), str(true))
    return label_scores(*maps, tolerance_mm)


def other_names(predicted: PathLike, table: LabelTable) -> list[str]:
    """Labels that the table beside a result names otherwise: a union has the id of its smallest member.

    Args:
        predicted: the file of the label map, ``CASE_dseg.nii.gz``, beside which ``CASE_dseg.tsv`` may be.
        table: the labels to score.

    Example:
        >>> from monai_lcs.labels import Label
        >>> folder = getfixture("tmp_path")
        >>> LabelTable.from_ids([17, 18]).write(folder / "ann_dseg.tsv")
        >>> other_names(folder / "ann_dseg.nii.gz", LabelTable([Label(17, "Hippocampus"), Label(18, "label-18")]))
        ['17 is label-17 there and Hippocampus in the table']
    """
    beside = Path(predicted).parent / f"{case_name(predicted)}.tsv"
    if not beside.name.endswith("_dseg.tsv") or not beside.is_file():
        return []
    names = {label.id: label.name for label in table}
    try:
        found = LabelTable.read(beside)
    except (ValueError, OSError):  # somebody's file of another kind
        return []
    return [
        f"{label.id} is {label.name} there and {names[label.id]} in the table"
        for label in found
        if names.get(label.id, label.name) != label.name
    ]


def score_table(scores: Mapping[str, pd.DataFrame], table: LabelTable | None = None) -> pd.DataFrame:
    """The scores of all cases as one table.

    Args:
        scores: for each case what :func:`score_case` returns.
        table: the labels to show; by default those that a label map of a case has.

    Returns:
        See :func:`monai_lcs.results.scores.scores_table`.

    Raises:
        ValueError: when there is no label to show.
    """
    if table is None:
        table = LabelTable.from_ids(sorted(set().union(*(of_case.index for of_case in scores.values()))))
    held = [of_case.loc[of_case["present_in"] != "prediction"].index for of_case in scores.values()]
    if not any(id in table for ids in held for id in ids):
        raise ValueError(
            f"There is nothing to score: the true label maps hold no label of {table.source}"
            f" ({shorten_names(list(scores))})."
        )
    return scores_table(scores, table)


def score_label_maps(
    pairs: Mapping[str, tuple[PathLike, PathLike]], table: LabelTable | None = None, tolerance_mm: float = 1.0
) -> pd.DataFrame:
    """The scores of each label in each case: :func:`score_case` for all of them, and :func:`score_table`.

    Args:
        pairs: from :func:`pair_label_maps`.
        table: the labels to score; by default those that occur in a label map.
        tolerance_mm: see :func:`score_case`.
    """
    return score_table({case: score_case(*files, tolerance_mm) for case, files in pairs.items()}, table)
