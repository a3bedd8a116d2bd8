"""Label maps scored against true ones, from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from monai.config import PathLike

from monai_lcs.labels import LabelTable, present_labels
from monai_lcs.metrics import label_dice
from monai_lcs.results.dice import dice_table
from monai_lcs.study.cases import case_name, shorten_names
from monai_lcs.study.checks import check_same_grid, read_label_map
from monai_lcs.study.images import IMAGE_EXTENSIONS

__all__ = ["pair_label_maps", "score_label_maps"]


def pair_label_maps(predictions: PathLike, truths: PathLike) -> dict[str, tuple[Path, Path]]:
    """Pair predicted and true label maps by name; ``CASE_dseg`` is a prediction for ``CASE``.

    Args:
        predictions: a file, or a folder of label maps; of other results in it, those that end in ``_dseg`` count.
        truths: the true label map, or a folder of them.

    Returns:
        The two files of each case.

    Raises:
        ValueError: when a folder has no label maps, or one has no partner.

    Example:
        >>> list(pair_label_maps("results/ann_dseg.nii.gz", "labels/ann.nii.gz"))
        ['ann']
    """
    if not Path(predictions).is_dir():
        return {case_name(truths): (Path(predictions), Path(truths))}
    predicted, true = (_by_case(Path(folder)) for folder in (predictions, truths))
    alone = sorted(predicted.keys() ^ true.keys())
    if alone or not predicted:
        names = shorten_names(alone)
        raise ValueError(f"{predictions} and {truths} must hold the same cases, these are in only one: {names}.")
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


def score_label_maps(pairs: dict[str, tuple[Path, Path]], table: LabelTable | None = None) -> pd.DataFrame:
    """The Dice of each label in each case.

    Args:
        pairs: from :func:`pair_label_maps`.
        table: the labels to score; by default those that occur in a true label map.

    Returns:
        See :func:`monai_lcs.results.dice.dice_table`.

    Raises:
        ValueError: naming the file that is no label map, or the two that do not share a grid.
    """
    maps = {}
    for case, (predicted, true) in pairs.items():
        maps[case] = read_label_map(predicted), read_label_map(true)
        check_same_grid(*maps[case], str(predicted), str(true))
    ids: Sequence[int] = table.ids if table else sorted({i for _, true in maps.values() for i in present_labels(true)})
    table = table or LabelTable.from_ids(ids)
    rows = [label_dice(predicted, true, ids) for predicted, true in maps.values()]
    return dice_table(torch.stack(rows), list(maps), table)
