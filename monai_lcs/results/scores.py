"""Scores label maps against true ones: overlap, surfaces and volumes of each label; summaries and a plot of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from monai.config import PathLike
from monai.data import MetaTensor

from monai_lcs.files import check_absent, write_atomically
from monai_lcs.grids import affine_of
from monai_lcs.labels import LabelTable
from monai_lcs.labels.groups import label_sizes
from monai_lcs.metrics import label_dice
from monai_lcs.results.picture import require_matplotlib
from monai_lcs.results.tsv import write_tsv
from monai_lcs.study.cases import shorten_names
from monai_lcs.surface_distances import surface_scores

__all__ = [
    "label_scores",
    "one_sided_labels",
    "plot_scores",
    "scores_by_case",
    "scores_by_label",
    "scores_summary",
    "scores_table",
    "write_scores_tsv",
]

_DIGITS = {"mm": 2, "mm3": 1, "percent": 2}
_LEAST_CASES = 3  # for a correlation


def label_scores(pred: MetaTensor, true: MetaTensor, tolerance_mm: float = 1.0) -> pd.DataFrame:
    """Scores a label map against the true one, for each label that is in either.

    Args:
        pred: label map, integers ``(1, *spatial)``.
        true: the true label map on the same grid; its affine says what a millimeter is.
        tolerance_mm: how far apart surfaces may lie to count as the same in the surface Dice.

    Returns:
        Indexed by the id; NaN where a measure is not defined:

        - ``dice``: see :func:`monai_lcs.metrics.label_dice`; NaN where the true label map lacks the label;
        - ``hd95_mm``, ``surface_dice``: see :func:`monai_lcs.surface_distances.surface_scores`, the distance NaN and
          the share 0 where one of the two lacks it;
        - ``true_mm3``, ``predicted_mm3``: the volumes;
        - ``volume_percent``: how much larger the predicted volume is than the true one, in percent of that;
        - ``present_in``: ``"both"``, ``"truth"`` or ``"prediction"``.

    Example:
        >>> import torch
        >>> true = MetaTensor(torch.tensor([[[4, 4, 0, 7]]]), affine=torch.diag(torch.tensor([2.0, 1.0, 1.0])))
        >>> pred = MetaTensor(torch.tensor([[[4, 4, 4, 0]]]), affine=true.affine)
        >>> scores = label_scores(pred, true)
        >>> scores.loc[4, ["dice", "true_mm3", "predicted_mm3", "volume_percent"]].astype(float).round(3).to_dict()
        {'dice': 0.8, 'true_mm3': 4.0, 'predicted_mm3': 6.0, 'volume_percent': 50.0}
        >>> scores["present_in"].to_dict()
        {4: 'both', 7: 'truth'}
    """
    predicted, held = label_sizes(pred), label_sizes(true)
    ids = sorted(predicted.keys() | held.keys())
    affine = affine_of(true)
    surfaces = surface_scores(pred, true, ids, affine, tolerance_mm)
    voxel_mm3 = abs(np.linalg.det(affine[:-1, :-1]))
    mm3 = [np.array([sizes.get(id, 0) * voxel_mm3 for id in ids], float) for sizes in (held, predicted)]
    scores = pd.DataFrame(
        {
            "dice": label_dice(pred.as_tensor(), true.as_tensor(), ids).double().numpy() if ids else [],
            "hd95_mm": [surfaces[id].hd95_mm for id in ids],
            "surface_dice": [surfaces[id].surface_dice for id in ids],
            "true_mm3": mm3[0],
            "predicted_mm3": mm3[1],
        },
        index=pd.Index(ids, name="id"),
    )
    of_true = scores["true_mm3"].where(scores["true_mm3"] > 0)
    scores["volume_percent"] = 100 * (scores["predicted_mm3"] - of_true) / of_true
    scores["present_in"] = [_where(id in held, id in predicted) for id in ids]
    return scores


def _where(in_truth: bool, in_prediction: bool) -> str:
    if in_truth:
        return "both" if in_prediction else "truth"
    return "prediction" if in_prediction else "neither"


def scores_table(scores: Mapping[str, pd.DataFrame], table: LabelTable) -> pd.DataFrame:
    """Returns the scores of all cases as one long table.

    Args:
        scores: the name of each case and its :func:`label_scores`.
        table: the labels to show. One that a case lacks in both label maps has NaN and volumes of 0.

    Returns:
        Columns ``case``, ``id`` and ``name``, and those of :func:`label_scores`; a row for each case and label.

    Example:
        >>> import torch
        >>> one = MetaTensor(torch.tensor([[[4, 4, 0, 7]]]), affine=torch.eye(3))
        >>> scores_table({"ann": label_scores(one, one)}, LabelTable.from_ids([4, 9])).present_in.tolist()
        ['both', 'neither']
    """
    parts = []
    for case, of_case in scores.items():
        rows = of_case.reindex(table.ids)
        rows[["true_mm3", "predicted_mm3"]] = rows[["true_mm3", "predicted_mm3"]].fillna(0.0)
        rows["present_in"] = rows["present_in"].fillna("neither")
        parts.append(rows.rename_axis("id").reset_index().assign(case=case, name=table.names))
    columns = ["case", "id", "name"]
    long = pd.concat(parts, ignore_index=True)
    return long[[*columns, *long.columns.difference(columns, sort=False)]]


def write_scores_tsv(scores: pd.DataFrame, path: PathLike, overwrite: bool = False) -> None:
    """Writes a table of this module, with NaN as ``n/a``; see :func:`monai_lcs.results.tsv.read_tsv`.

    Raises:
        FileExistsError: if the file exists and ``overwrite`` is False.
        OSError: naming the file, if it cannot be written.
    """
    digits = {name: _DIGITS.get(str(name).rpartition("_")[2], 4) for name in scores.select_dtypes("float").columns}
    check_absent([Path(path)], overwrite)
    write_atomically(Path(path), lambda temporary: write_tsv(scores.round(digits), temporary))


# ---- summaries


def scores_by_case(scores: pd.DataFrame) -> pd.DataFrame:
    """Summarizes a :func:`scores_table`: the means over the labels of each case, and over the cases in a row ``mean``.

    Returns:
        Indexed by the case: ``dice``, ``surface_dice`` and ``hd95_mm``, over the labels that the truth has;
        ``volume_percent``, the mean of the absolute differences; ``labels``, how many the truth has; ``missed``, how
        many of them the prediction lacks.

    Example:
        >>> import torch
        >>> one = MetaTensor(torch.tensor([[[4, 4, 0, 7]]]), affine=torch.eye(3))
        >>> half = MetaTensor(torch.tensor([[[4, 0, 0, 0]]]), affine=torch.eye(3))
        >>> scores = scores_table({"ann": label_scores(half, one)}, LabelTable.from_ids([4, 7]))
        >>> scores_by_case(scores).loc["mean", ["dice", "volume_percent", "missed"]].round(3).to_dict()
        {'dice': 0.333, 'volume_percent': 75.0, 'missed': 1.0}
    """
    means = _means(scores, "case").astype(float)
    means.loc["mean"] = means.mean()
    return means


def scores_by_label(scores: pd.DataFrame) -> pd.DataFrame:
    """Summarizes a :func:`scores_table` by structure: the means over the cases, and how far the volumes correlate.

    Returns:
        Columns ``id``, ``name``, those of :func:`scores_by_case` with ``labels`` counting cases, and
        ``volume_correlation``: Pearson's, of the predicted and the true volumes of the cases whose truth has the label;
        NaN for less than three of them, or where volumes do not vary. The label with the highest Dice comes first.
    """
    scores = scores[scores["present_in"] != "neither"]
    by_label = _means(scores, ["id", "name"])
    true = scores[scores["true_mm3"] > 0].groupby(["id", "name"], sort=False)
    pairs = {key: _correlation(rows["true_mm3"], rows["predicted_mm3"]) for key, rows in true}
    by_label["volume_correlation"] = [pairs.get(key, np.nan) for key in by_label.index]
    by_label = by_label.rename(columns={"labels": "cases"}).reset_index()
    return by_label.sort_values("dice", ascending=False, kind="stable", ignore_index=True)


def _means(scores: pd.DataFrame, by: str | list[str]) -> pd.DataFrame:
    """The means over the rows whose truth has the label."""
    held = scores["present_in"].isin(("both", "truth"))
    measured = pd.DataFrame(
        {
            "dice": scores["dice"],
            "surface_dice": scores["surface_dice"].where(held),
            "hd95_mm": scores["hd95_mm"],
            "volume_percent": scores["volume_percent"].abs(),
        }
    )
    keys = [scores[key] for key in ([by] if isinstance(by, str) else by)]
    means = measured.groupby(keys, sort=False).mean()
    means["labels"] = held.groupby(keys, sort=False).sum()
    means["missed"] = (scores["present_in"] == "truth").groupby(keys, sort=False).sum()
    return means


def _correlation(x: pd.Series, y: pd.Series) -> float:
    if len(x) < _LEAST_CASES or x.nunique() < 2 or y.nunique() < 2:
        return np.nan
    return float(np.corrcoef(x, y)[0, 1])


def scores_summary(scores: pd.DataFrame) -> str:
    """Shows :func:`scores_by_case` as text, and below it which labels are in one of the label maps alone.

    Example:
        >>> import torch
        >>> one = MetaTensor(torch.tensor([[[4, 4, 0, 7]]]), affine=torch.eye(3))
        >>> half = MetaTensor(torch.tensor([[[4, 0, 0, 0]]]), affine=torch.eye(3))
        >>> print(scores_summary(scores_table({"ann": label_scores(half, one)}, LabelTable.from_ids([4, 7]))))
               dice  surface_dice hd95_mm volume_percent labels missed
        ann  0.3333        0.5000    0.95           75.0      2      1
        mean 0.3333        0.5000    0.95           75.0      2      1
        In the true label map alone: 7 (label-7).
    """
    means = scores_by_case(scores)
    show = {"hd95_mm": "{:.2f}".format, "volume_percent": "{:.1f}".format}
    show |= dict.fromkeys(("labels", "missed"), "{:.4g}".format)
    text = means.rename_axis(None).to_string(formatters=show, float_format="{:.4f}".format)
    return "\n".join([text, *one_sided_labels(scores)])


def one_sided_labels(scores: pd.DataFrame) -> list[str]:
    """Says which labels are in the true or in the predicted label map alone, a sentence for each of the two."""
    sentences = []
    cases = scores["case"].nunique()
    for side, where in (("truth", "true"), ("prediction", "predicted")):
        rows = scores[scores["present_in"] == side]
        counts = rows.groupby(["id", "name"]).size()
        labels = [
            f"{id} ({name})" + (f" in {count} of {cases} cases" if cases > 1 else "")
            for (id, name), count in counts.items()
        ]
        if labels:
            sentences.append(f"In the {where} label map alone: {shorten_names(labels, most=10)}.")
    return sentences


# ---- plot


def plot_scores(scores: pd.DataFrame, path: PathLike, overwrite: bool = False) -> None:
    """Draws Dice, surface Dice and distance of each label, sorted by the Dice: the mean, and the range of the cases.

    Args:
        scores: a :func:`scores_table`.
        path: the file to write, ``.png`` or another format of matplotlib.
        overwrite: whether to replace an existing file.

    Raises:
        FileExistsError: if the file exists and ``overwrite`` is False.
        ImportError: if matplotlib is not installed.

    Example:
        >>> import torch
        >>> import tempfile
        >>> one = MetaTensor(torch.tensor([[[4, 4, 0, 7]]]), affine=torch.eye(3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_scores(scores_table({"ann": label_scores(one, one)}, LabelTable.from_ids([4])), f"{folder}/a.png")
        ...     Path(folder, "a.png").is_file()
        True
    """
    require_matplotlib()
    from matplotlib.figure import Figure  # an extra

    check_absent([Path(path)], overwrite)
    held = scores[scores["present_in"].isin(("both", "truth"))]
    order = scores_by_label(held)["id"].tolist()[::-1]
    names = held.drop_duplicates("id").set_index("id")["name"]
    figure = Figure(figsize=(12, 1.5 + 0.17 * len(order)), layout="constrained")
    panels = {"dice": "Dice", "surface_dice": "surface Dice", "hd95_mm": "95% distance, mm"}
    axes = figure.subplots(1, len(panels), sharey=True)
    for panel, (measure, title) in zip(axes, panels.items(), strict=True):
        _draw_ranges(panel, held.groupby("id")[measure].agg(["mean", "min", "max"]).loc[order])
        panel.set_title(title)
        if measure != "hd95_mm":
            panel.set_xlim(0, 1)
    axes[0].set_yticks(range(len(order)), [f"{names[id]} ({id})" for id in order], fontsize=7, parse_math=False)
    axes[0].set_ylim(-0.7, len(order) - 0.3)
    cases = held["case"].nunique()
    figure.suptitle(f"{cases} case{'s' * (cases != 1)}, {len(order)} labels")
    write_atomically(Path(path), figure.savefig)


def _draw_ranges(axes: Any, ranges: pd.DataFrame) -> None:
    """Draws a dot at the mean and a line over the range, a row for each label."""
    rows = range(len(ranges))
    axes.hlines(rows, ranges["min"], ranges["max"], color="0.75", linewidth=2)
    axes.plot(ranges["mean"], rows, "o", markersize=3, color="C0")
    axes.grid(axis="x", alpha=0.4)
