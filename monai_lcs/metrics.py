"""The Dice of many labels, from two label maps, in one pass over the voxels and without one-hot encoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric
from monai.metrics.utils import do_metric_reduction
from monai.utils import MetricReduction

from monai_lcs.labels.label_map import as_plain_tensor, check_label_map

__all__ = ["LabelMapDice", "label_dice"]


def label_dice(pred: torch.Tensor, target: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
    """Compute the Dice of each label, ``2 |P & T| / (|P| + |T|)``, from two label maps.

    P are the voxels that ``pred`` gives to the label, T those that ``target`` gives to it. All labels are counted in
    one pass over the voxels, so time and memory hardly depend on the number of labels.

    Args:
        pred: label map ``(1, *spatial)`` or ``(*spatial)``, integers in any dtype. Values not in ``ids`` count as
            background.
        target: the true label map, of the same shape.
        ids: labels to score, unique and >= 0, in the order of the result.

    Returns:
        float32 ``(len(ids),)``. A label that the target lacks has NaN, even if it is predicted. MONAI's ``DiceMetric``
        does the same by default (``ignore_empty=True``), so that a mean is over labels that can be found.

    Raises:
        ValueError: if the shapes differ, a label map holds values that are not integers, or ``ids`` are empty, repeat
            or are negative.

    Example:
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

    # The position of each id in `ids`. The last entry serves all values above the highest id and, as index -1, below 0.
    position = torch.full((max(ids) + 2,), n, dtype=torch.int32, device=pred.device)
    position[torch.tensor(ids, device=pred.device)] = torch.arange(n, dtype=torch.int32, device=pred.device)
    p, t = (position[_flat_ids(label_map).clamp(-1, max(ids) + 1)] for label_map in (pred, target))

    predicted, true, agreed = (torch.bincount(x, minlength=n + 1)[:n] for x in (p, t, p[p == t]))
    dice = (2 * agreed / (predicted + true)).float()
    return dice.masked_fill(true == 0, torch.nan)


def _check_ids(ids: Sequence[int]) -> list[int]:
    """Check that ids are unique and >= 0, at least one."""
    ids = [int(id) for id in ids]
    if not ids or len(set(ids)) != len(ids) or min(ids) < 0:
        raise ValueError(f"`labels` must be unique ids >= 0, at least one, got {ids}.")
    return ids


def _flat_ids(label_map: torch.Tensor) -> torch.Tensor:
    """Give a label map as a flat int64 tensor without metadata."""
    check_label_map(label_map, any_integer=True)
    return as_plain_tensor(label_map).flatten().long()


class LabelMapDice(CumulativeIterationMetric):
    """The mean over labels and cases of :py:func:`label_dice`, as a metric of MONAI.

    Call it with ``y_pred`` and ``y``: label maps ``(B, 1, *spatial)``, or lists of ``(1, *spatial)`` whose sizes may
    differ. Each call returns the Dice of its cases. ``get_buffer()`` returns that of all cases so far, float32
    ``(cases, labels)``, with NaN for labels that ``y`` lacks.

    The values equal those of MONAI's ``DiceMetric`` for one-hot encoded label maps. For 133 labels of a brain at 1 mm
    the encoding alone would take gigabytes; here the memory hardly depends on the number of labels.

    In a bundle, ``monai.handlers.IgniteMetricHandler(metric_fn=LabelMapDice(...), output_transform=...)`` makes it a
    metric of an engine, which keeps the buffer in ``engine.state.metric_details``.

    Args:
        labels: ids to score, unique and >= 0.
        reduction: how ``aggregate()`` reduces ``(cases, labels)``, by the names of MONAI. ``"mean"``, the default,
            takes the mean over the labels of each case and then over cases, ``"mean_batch"`` that over cases for each
            label. NaN is left out.

    Raises:
        ValueError: if ``labels`` are empty, repeat or are negative; when called, if ``y_pred`` and ``y`` are not such
            label maps of the same shape, see :py:func:`label_dice`.

    Example:
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
        """Compute the Dice ``(B, labels)`` of a batch of label maps ``(B, 1, *spatial)``."""
        if y is None:
            raise ValueError("LabelMapDice needs `y`, the true label maps.")
        if y_pred.shape != y.shape or y.shape[1] != 1:
            raise ValueError(
                f"`y_pred` and `y` must be label maps (B, 1, *spatial), got {tuple(y_pred.shape)} and {tuple(y.shape)}."
            )
        return torch.stack([label_dice(p, t, self.labels) for p, t in zip(y_pred, y, strict=True)])

    def aggregate(self) -> torch.Tensor:
        """Reduce the Dice of all cases so far.

        Returns:
            The mean ``(1,)`` by default, ``(labels,)`` for ``"mean_batch"``; NaN if no case had a label to score.

        Raises:
            ValueError: if no case was scored since the last ``reset()``.

        Example:
            >>> metric = LabelMapDice(labels=[1, 2], reduction="mean_batch")
            >>> _ = metric(torch.tensor([[[1, 2, 2, 0]]]), torch.tensor([[[1, 0, 0, 0]]]))
            >>> metric.aggregate()
            tensor([1., nan])
        """
        buffer = self.get_buffer()
        if buffer is None:
            raise ValueError("There is no Dice to aggregate: call the metric on at least one case first.")
        # MONAI's reduction gives 0 if nothing is left to average.
        dice, counted = do_metric_reduction(buffer, self.reduction)
        return torch.where(counted > 0, dice, torch.nan)
