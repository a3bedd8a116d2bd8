"""Where a network is expected to be worse than the propagated mask, which a validation tells, the mask answers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from monai_lcs.labels import LabelTable, RequestedLabel, label_mask
from monai_lcs.labels.hemispheres import infer_hemisphere, name_of_both_sides
from monai_lcs.labels.queries import label_names
from monai_lcs.study.cases import shorten_names

__all__ = [
    "AnswerWithMasksd",
    "answer_with_masks",
    "compare_with_propagated",
    "describe_propagated",
    "expected_gains",
    "lost_labels",
    "propagated_requests",
]

LEAST_LABELS = 10
"""Labels, or pairs of sides, that tell how noisy a gain is."""

CERTAIN_CASES = 3
"""A label that loses in each of so many cases, and in all there are, does not lose by chance."""


def compare_with_propagated(
    requests: Sequence[RequestedLabel], propagated: np.ndarray, network: np.ndarray
) -> pd.DataFrame:
    """The Dice of each label in the validation cases, by the propagated masks and by the network.

    Args:
        requests: the labels.
        propagated: Dice ``(cases, labels)`` of the propagated masks; NaN for a label that a case lacks.
        network: likewise, of the network.

    Returns:
        Columns ``id``, ``name``, ``propagated`` and ``network``, means over the cases that have the label;
        ``expected_gain``, see :func:`expected_gains`; and ``network_wins``: unless the network lost and is expected to;
        also for a label that no case has.

    Example:
        >>> requests = [RequestedLabel(4, "ventricle", (4,)), RequestedLabel(17, "hippocampus", (17,))]
        >>> table = compare_with_propagated(requests, np.array([[0.9, 0.6]]), np.array([[0.8, 0.7]]))
        >>> table[["name", "network_wins"]].values.tolist()
        [['ventricle', False], ['hippocampus', True]]
    """
    means = pd.DataFrame({"propagated": pd.DataFrame(propagated).mean(), "network": pd.DataFrame(network).mean()})
    means.insert(0, "id", [request.id for request in requests])
    means.insert(1, "name", [request.name for request in requests])
    gains = expected_gains(network - propagated, list(means.name))
    return means.assign(expected_gain=gains, network_wins=~((gains < 0) & (means.network < means.propagated)))


def expected_gains(gains: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """What to expect of a network on each label, from its gains in Dice in a few cases.

    Of many labels the one that loses most in a few cases does so by chance as well. So means over the cases are drawn
    toward the mean of all labels, the more the noisier they are (empirical Bayes, Efron and Morris 1975). The noise is
    what cases differ in, apart from what all labels of a case share; with one case, what the two sides of a structure
    differ in. With fewer than :data:`LEAST_LABELS` labels or pairs of sides it cannot be told, and means stay as they
    are; so does that of a label that loses in every one of :data:`CERTAIN_CASES` cases or more.

    Args:
        gains: ``(cases, labels)``, the network's Dice minus that of the propagated masks; NaN for what a case lacks.
        names: of the labels; they tell the sides.

    Returns:
        ``(labels,)``; NaN for a label that no case has.

    Example:
        >>> names = [f"{side} {n}" for side in ("left", "right") for n in range(20)]
        >>> gains = np.tile([0.05, 0.1, 0.15, 0.2], 10)[None]
        >>> gains[0, 0] = -0.1  # the other side gains 0.05
        >>> bool(expected_gains(gains, names)[0] > -0.1), expected_gains(gains[:, :1], names[:1]).tolist()
        (True, [-0.1])
    """
    table = pd.DataFrame(gains, columns=range(len(names)))
    means, counts = table.mean(), table.count()
    of_one_case = _noise_of_cases(table)
    of_one_case = _noise_of_sides(means, names) if np.isnan(of_one_case) else of_one_case
    if means.count() < LEAST_LABELS or np.isnan(of_one_case):
        return means.to_numpy()
    noise = of_one_case / counts.clip(lower=1)
    between = max(float(means.var() - noise[counts > 0].mean()), 0.0)
    kept = between / (between + noise).clip(lower=np.finfo(float).tiny)
    certain = (counts >= CERTAIN_CASES) & (table.max() < 0)
    return (means.mean() + kept * (means - means.mean())).where(~certain, means).to_numpy()


def _noise_of_cases(table: pd.DataFrame) -> float:
    """The variance of a label's gain from case to case, the mean over labels; NaN where too few labels tell it."""
    of_each = table.sub(table.mean(axis=1), axis=0).var().dropna()  # a case may be easier for all labels
    return float(of_each.mean()) if len(of_each) >= LEAST_LABELS else float("nan")


def _noise_of_sides(means: pd.Series, names: Sequence[str]) -> float:
    """The same from one case: half the mean squared difference of left and right; NaN where too few pairs tell it."""
    sides: dict[str, dict[str, float]] = {}
    for name, gain in zip(names, means, strict=True):
        side = infer_hemisphere(name)
        if side is not None and not np.isnan(gain):
            sides.setdefault(name_of_both_sides(name), {})[side] = gain
    differences = [pair["L"] - pair["R"] for pair in sides.values() if len(pair) == 2]
    return float(np.mean(np.square(differences)) / 2) if len(differences) >= LEAST_LABELS else float("nan")


def lost_labels(comparison: pd.DataFrame, requests: Sequence[RequestedLabel], table: LabelTable) -> tuple[str, ...]:
    """The names of the atlas labels, those of unions among them, on which a network was worse than propagation.

    Args:
        comparison: from :func:`compare_with_propagated`.
        requests: the labels that it compares.
        table: of the atlas.
    """
    names = label_names(table)
    lost = {i for request, won in zip(requests, comparison.network_wins, strict=True) if not won for i in request.ids}
    return tuple(names[i] for i in sorted(lost))


def propagated_requests(
    requests: Sequence[RequestedLabel], names: Sequence[str], table: LabelTable
) -> list[RequestedLabel]:
    """The requested labels that the propagated mask answers for; a union if it does for all its members.

    Labels are found by their names, since ids mean something else in another atlas.

    Args:
        requests: the labels.
        names: ``propagated`` of :class:`monai_lcs.pipeline.Settings`.
        table: of the atlas that is used.

    Example:
        >>> table = LabelTable.from_ids([4, 17])
        >>> requests = [RequestedLabel(4, "label-4", (4,)), RequestedLabel(17, "both", (4, 17))]
        >>> [request.id for request in propagated_requests(requests, ["label-4"], table)]
        [4]
    """
    lost = {i for i, name in label_names(table).items() if name in names}
    return [request for request in requests if lost.issuperset(request.ids)]


def answer_with_masks(label_map: MetaTensor, masks: MetaTensor, requests: Sequence[RequestedLabel]) -> MetaTensor:
    """Write the propagated masks of labels over what a network has found for the others.

    Args:
        label_map: the answer, ``(1, *spatial)`` on the scan's grid; what it has of these labels is taken away.
        masks: the propagated labels on the same grid.
        requests: from :func:`propagated_requests`; where two overlap, the smaller id wins.

    Example:
        >>> import torch
        >>> found, masks = MetaTensor(torch.tensor([[4, 17, 17, 0]])), MetaTensor(torch.tensor([[17, 17, 4, 4]]))
        >>> answer_with_masks(found, masks, [RequestedLabel(4, "ventricle", (4,))]).tolist()
        [[0, 17, 4, 4]]
    """
    answer = label_map.clone()
    answer[label_mask(answer, [request.id for request in requests])] = 0
    for request in sorted(requests, key=lambda each: each.id, reverse=True):
        answer[label_mask(masks, request.ids)] = request.id
    return answer


class AnswerWithMasksd(MapTransform):
    """:func:`answer_with_masks` for samples of the bundle.

    Args:
        keys: the label maps on the scan's grid.
        requests: from :func:`propagated_requests`; without any, samples stay as they are.
        masks_key: the propagated labels there, from :class:`monai_lcs.pipeline.Preprocessing`.
        allow_missing_keys: pass over the keys that a sample lacks.
    """

    def __init__(
        self,
        keys: KeysCollection,
        requests: Sequence[RequestedLabel],
        masks_key: Hashable = "atlas_native",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.requests, self.masks_key = requests, masks_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The sample with the masks of these labels."""
        d = dict(data)
        for key in self.key_iterator(d) if self.requests else ():
            d[key] = answer_with_masks(d[key], d[self.masks_key], self.requests)
        return d


def describe_propagated(requests: Sequence[RequestedLabel], count: int) -> str:
    """One line that says for which of ``count`` labels the aligned atlas answers, from :func:`propagated_requests`.

    Example:
        >>> describe_propagated([RequestedLabel(4, "ventricle", (4,))], 136)
        'Note: for 1 of 136 labels the aligned atlas answers, better in validation: ventricle.'
        >>> describe_propagated([], 136)
        ''
    """
    if not requests:
        return ""
    names = shorten_names([request.name for request in requests], 8)
    return f"Note: for {len(requests)} of {count} labels the aligned atlas answers, better in validation: {names}."
