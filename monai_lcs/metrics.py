"""Dice of many labels from two label maps, in one pass over the voxels and without one-hot encoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric
from monai.metrics.utils import do_metric_reduction
from monai.utils import MetricReduction

__all__ = ["LabelMapDice", "label_dice"]


def label_dice(pred: torch.Tensor, target: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
    """Dice of each label: twice the voxels that both label maps give to it, over the voxels that the two give to it.

    Counts all labels in one pass, so time and memory hardly depend on how many there are.

    Args:
        pred: label map `(1, *spatial)` or `(*spatial)`, integers in any dtype; values not in `ids` count as background.
        target: the true label map, of the same shape.
        ids: labels to score, unique and >= 0, in the order of the result.

    Returns:
        float32 `(len(ids),)`. A label that the target lacks is NaN, even where it is predicted (as `ignore_empty=True`,
        the default of MONAI's `DiceMetric`): the mean over the rest is then over labels that could be found.

    Raises:
        ValueError: if the shapes differ, a label map holds values that are not integers, or `ids` are not as above.

    Example:
        >>> import torch
        >>> target = torch.tensor([[1, 1, 2, 0]])
        >>> pred = torch.tensor([[1, 2, 2, 7]])
        >>> label_dice(pred, target, ids=[2, 1, 7])
        tensor([0.6667, 0.6667,    nan])
    """
    if pred.shape != target.shape:
        raise ValueError(
            f"`pred` and `target` must have the same shape, got {tuple(pred.shape)} and {tuple(target.shape)}."
        )
    ids = _check_ids(ids)
    n = len(ids)

    # Position of each id in `ids`; one slot more, for all values above the highest id and (as index -1) below zero.
    position = torch.full((max(ids) + 2,), n, dtype=torch.int32, device=pred.device)
    position[torch.tensor(ids, device=pred.device)] = torch.arange(n, dtype=torch.int32, device=pred.device)
    p, t = (position[_as_ids(label_map).clamp(-1, max(ids) + 1)] for label_map in (pred, target))

    predicted, true, agreed = (torch.bincount(x, minlength=n + 1)[:n] for x in (p, t, p[p == t]))
    dice = (2 * agreed / (predicted + true)).float()
    return dice.masked_fill(true == 0, torch.nan)


def _check_ids(ids: Sequence[int]) -> list[int]:
    """Ids as a list, not empty, unique and >= 0."""
    ids = [int(id) for id in ids]
    if not ids or len(set(ids)) != len(ids) or min(ids) < 0:
        raise ValueError(f"`labels` must be unique ids >= 0, at least one, got {ids}.")
    return ids


def _as_ids(label_map: torch.Tensor) -> torch.Tensor:
    """A label map as a flat int64 tensor without metadata."""
    flat = label_map.as_subclass(torch.Tensor).flatten()
    if flat.is_floating_point() and not torch.equal(flat, flat.round()):
        wrong = flat[flat != flat.round()][0].item()
        raise ValueError(f"Label maps must hold integers, got {wrong:g}: take the argmax or threshold first.")
    return flat.long()


class LabelMapDice(CumulativeIterationMetric):
    """Mean Dice over labels and cases, from label maps; see :func:`label_dice`.

    Call it with `y_pred` and `y`, label maps `(B, 1, *spatial)` or lists of `(1, *spatial)` whose sizes may differ.
    `get_buffer()` is then float32 `(cases, labels)`, in the order of the calls and of `labels`, NaN where a label is
    absent from `y`. It equals MONAI's `DiceMetric` on the one-hot encoded maps, which for 133 labels of a brain at 1 mm
    would take gigabytes.

    In a bundle, `monai.handlers.IgniteMetricHandler(metric_fn=LabelMapDice(...), output_transform=...)` makes it a
    metric of an engine, and keeps the buffer in `engine.state.metric_details`.

    Args:
        labels: ids to score, unique and >= 0.
        reduction: how `aggregate()` reduces `(cases, labels)`, by name as in MONAI. The default `"mean"` is over the
            labels of each case, then over cases; `"mean_batch"` is over cases, for each label. NaN is left out.

    Example:
        >>> import torch
        >>> metric = LabelMapDice(labels=[1, 2])
        >>> metric(torch.tensor([[[1, 2, 2, 0]]]), torch.tensor([[[1, 1, 2, 0]]]))
        tensor([[0.6667, 0.6667]])
        >>> metric(torch.tensor([[[1, 1, 2, 0]]]), torch.tensor([[[1, 1, 0, 0]]]))
        tensor([[1., nan]])
        >>> metric.aggregate()
        tensor([0.8333])
    """

    def __init__(self, labels: Sequence[int], reduction: MetricReduction | str = MetricReduction.MEAN) -> None:
        super().__init__()
        self.labels = _check_ids(labels)
        self.reduction = reduction

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        """Dice `(B, labels)` of a batch of label maps `(B, 1, *spatial)`."""
        if y is None:
            raise ValueError("LabelMapDice needs `y`, the true label maps.")
        if y_pred.shape != y.shape or y.shape[1] != 1:
            raise ValueError(
                f"`y_pred` and `y` must be label maps (B, 1, *spatial), got {tuple(y_pred.shape)} and {tuple(y.shape)}."
            )
        return torch.stack([label_dice(p, t, self.labels) for p, t in zip(y_pred, y, strict=True)])

    def aggregate(self) -> torch.Tensor:
        """Mean Dice `(1,)` by default, `(labels,)` for `"mean_batch"`; NaN where no case had a label to score.

        Raises:
            ValueError: if no case was scored since the last `reset()`.
        """
        buffer = self.get_buffer()
        if buffer is None:
            raise ValueError("There is no Dice to aggregate: call the metric on at least one case first.")
        # MONAI's reduction gives 0 where nothing is left to average.
        dice, counted = do_metric_reduction(buffer, self.reduction)
        return torch.where(counted > 0, dice, torch.nan)
