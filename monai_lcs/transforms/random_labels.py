"""Random label selection: the labels that a training sample requests."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import TransformBackends

from monai_lcs.labels.groups import LabelGroup, as_groups, group_masks, present_labels
from monai_lcs.labels.label import is_integer
from monai_lcs.labels.label_map import check_channel

__all__ = ["RandSelectLabels", "RandSelectLabelsD", "RandSelectLabelsDict", "RandSelectLabelsd"]

_Candidate = tuple[tuple[int, ...], float]
"""A label group that can be drawn, and its weight."""


class RandSelectLabels(RandomizableTransform):
    """Draw K label groups and return their masks in a target and in an atlas label map.

    This is the random label selection of Ma, Lee, Sabuncu, "Label conditioned segmentation", MIDL 2022, for K labels
    at once. The candidates are drawn without replacement. If they are fewer than K, they come again once all of them
    were drawn. A slot may become the union of several candidates ("combine_label" in the paper), each of them drawn
    like any other.

    A group that the atlas lacks is never drawn, since the network could not see its mask. A group that the target
    lacks is drawn only with ``absent_prob``: its target mask is empty, which teaches the network to predict nothing.

    Args:
        num_labels: K, the number of masks.
        groups: label ids or sequences of ids to draw from; all single labels of the atlas by default.
        union_prob: probability that a slot is a union of 2 to ``max_union`` (uniformly) different candidates, or of
            all of them where they are fewer.
        max_union: largest number of candidates in a union, at least 2.
        weights: relative frequencies >= 0, one for each of ``groups``; all equal by default. A group of weight 0 is
            never drawn.
        absent_prob: probability that a slot takes groups that the target lacks, if there are any. A target without
            any candidate gets only such groups; with 0 it is an error.
        dtype: type of the masks, which hold 0 and 1.

    Attributes:
        groups_: the K groups drawn last, each a sorted tuple of label ids.

    Raises:
        ValueError: if an argument is out of range; when called, if a label map is not ``(1, *spatial)``, holds a
            value that is not an integer >= 0, or leaves no group to draw.

    Example:
        >>> select = RandSelectLabels(num_labels=2).set_random_state(seed=0)
        >>> target_masks, atlas_masks = select(torch.tensor([[0, 1, 3]]), torch.tensor([[1, 2, 3]]))
        >>> sorted(select.groups_)  # the target has no label 2
        [(1,), (3,)]
        >>> target_masks.shape, atlas_masks.shape
        (torch.Size([2, 3]), torch.Size([2, 3]))
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        num_labels: int,
        groups: Iterable[LabelGroup] | None = None,
        union_prob: float = 0.0,
        max_union: int = 2,
        weights: Sequence[float] | None = None,
        absent_prob: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        for name, value, least in (("num_labels", num_labels, 1), ("max_union", max_union, 2)):
            if not is_integer(value) or value < least:
                raise ValueError(f"`{name}` must be an integer >= {least}, got {value!r}.")
        for name, probability in (("union_prob", union_prob), ("absent_prob", absent_prob)):
            if not 0 <= probability <= 1:
                raise ValueError(f"`{name}` must be between 0 and 1, got {probability!r}.")
        self.num_labels = int(num_labels)
        self.groups = None if groups is None else _distinct(groups)
        self.union_prob = union_prob
        self.max_union = int(max_union)
        self.weights = _group_weights(weights, self.groups)
        self.absent_prob = absent_prob
        self.dtype = dtype
        self.groups_: tuple[tuple[int, ...], ...] = ()

    def randomize(  # type: ignore[override]
        self,
        target_labels: Collection[int],
        atlas_labels: Collection[int],
        groups: Iterable[LabelGroup] | None = None,
    ) -> None:
        """Draw ``self.groups_`` for a target and an atlas.

        Args:
            target_labels: ids in the target.
            atlas_labels: ids in the atlas.
            groups: what the target is labeled for, see :py:meth:`__call__`.

        Example:
            >>> select = RandSelectLabels(num_labels=2)
            >>> select.randomize(target_labels=[1, 3], atlas_labels=[1, 2, 3])
            >>> sorted(select.groups_)
            [(1,), (3,)]
        """
        target, atlas = set(target_labels), set(atlas_labels)
        candidates = [one for one in self._candidates(atlas, groups) if not atlas.isdisjoint(one[0])]
        present, absent = self._fill_urns(candidates, target)
        if not (present or absent):
            raise ValueError(
                f"No label group to draw: the target has labels {sorted(target)}, the atlas has {sorted(atlas)}, and "
                f"the candidates in the atlas are {[group for group, _ in candidates]}. Give other `groups`, or "
                "`absent_prob` > 0 where a target may hold none of them."
            )
        self.groups_ = tuple(self._draw_slot(present, absent) for _ in range(self.num_labels))

    def _candidates(self, atlas: set[int], known: Iterable[LabelGroup] | None) -> list[_Candidate]:
        """List the groups to draw from; of a partly labeled target only those that its ``known`` groups make up."""
        if self.groups is None:
            groups = tuple((i,) for i in sorted(atlas)) if known is None else _distinct(known)
            return [(group, 1.0) for group in groups]
        pairs = zip(self.groups, self.weights, strict=True)
        parts = None if known is None else _distinct(known)
        return [(g, w) for g, w in pairs if w > 0 and (parts is None or _is_union(g, parts))]

    def _fill_urns(self, candidates: Sequence[_Candidate], target: set[int]) -> tuple[_Urn, _Urn]:
        """Put the candidates that the target holds in one urn and, if they may be drawn, the others in a second."""
        present = [one for one in candidates if not target.isdisjoint(one[0])]
        absent = [one for one in candidates if target.isdisjoint(one[0])] if self.absent_prob > 0 else []
        return _Urn(present, self.R), _Urn(absent, self.R)

    def _draw_slot(self, present: _Urn, absent: _Urn) -> tuple[int, ...]:
        """Draw the group of one mask: a candidate or a union of several."""
        urn = absent if absent and (not present or self.R.rand() < self.absent_prob) else present
        size = self.R.randint(2, self.max_union + 1) if self.R.rand() < self.union_prob else 1
        return tuple(sorted(set().union(*urn.draw(size))))

    def draw(
        self,
        label_map: NdarrayOrTensor,
        atlas_label_map: NdarrayOrTensor,
        groups: Iterable[LabelGroup] | None = None,
    ) -> None:
        """Draw ``self.groups_`` for two label maps; the arguments are those of :py:meth:`__call__`.

        Example:
            >>> select = RandSelectLabels(num_labels=1)
            >>> select.draw(torch.tensor([[0, 1, 3]]), torch.tensor([[2, 3, 3]]))
            >>> select.groups_
            ((3,),)
        """
        check_channel(label_map)
        check_channel(atlas_label_map)
        self.randomize(present_labels(label_map), present_labels(atlas_label_map), groups)

    def __call__(  # type: ignore[override]
        self,
        label_map: NdarrayOrTensor,
        atlas_label_map: NdarrayOrTensor,
        groups: Iterable[LabelGroup] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw K groups and return their masks.

        Args:
            label_map: target label map ``(1, *spatial)``.
            atlas_label_map: atlas label map ``(1, *spatial)``; its spatial size may be another.
            groups: what this target is labeled for (partial labels); everything by default. Only these groups are
                drawn. If the transform has ``groups`` of its own, it draws those of them that are one of these or a
                union of several of these.

        Returns:
            Target masks and atlas masks, both ``(K, *spatial)`` with the metadata of their label map.
        """
        self.draw(label_map, atlas_label_map, groups)
        return group_masks(label_map, self.groups_, self.dtype), group_masks(atlas_label_map, self.groups_, self.dtype)


class RandSelectLabelsd(RandomizableTransform, MapTransform):
    """Dictionary form of :py:class:`RandSelectLabels`: K masks replace the target and the atlas label map.

    With ``masks=False`` the label maps stay as they are, and only the draw is added to the sample. This is what
    :py:class:`monai_lcs.inferers.LabelBoxInferer` and :py:class:`monai_lcs.losses.LabelBoxLoss` take: they cut each
    mask in its box, so that no volume of it is ever in memory.

    The drawn groups go to ``"selected_labels"``, an int64 tensor ``(K, L)`` with one row of ids for each mask, filled
    up with 0. L is the number of ids that a row can need at most (1 without unions), whatever was drawn, so that
    samples collate. Only if groups of several labels come from ``groups_key`` alone, L depends on the sample.

    Args:
        keys: key of the target label map, then that of the atlas label map.
        num_labels: K, the number of masks.
        groups: label ids or sequences of ids to draw from; all single labels of the atlas by default.
        union_prob: probability that a slot is a union of groups.
        max_union: largest number of groups in a union.
        weights: relative frequencies of ``groups``.
        absent_prob: probability that a slot takes groups that the target lacks.
        dtype: type of the masks.
        groups_key: if a sample has this key, its value lists the groups that it is labeled for (partial labels), and
            only these are drawn. The key is removed, since lists of different lengths do not collate.
        masks: make the masks.
        allow_missing_keys: return the sample as it is if one of the two label maps is missing, instead of raising
            ``KeyError``.

    Raises:
        ValueError: if there are not two keys, and as :py:class:`RandSelectLabels`.

    Example:
        >>> sample = {"label": torch.tensor([[0, 5]]), "atlas_label": torch.tensor([[5, 5]])}
        >>> sample = RandSelectLabelsd(num_labels=1)(sample)
        >>> sample["label"], sample["atlas_label"], sample["selected_labels"]
        (tensor([[0., 1.]]), tensor([[1., 1.]]), tensor([[5]]))
    """

    backend = RandSelectLabels.backend

    def __init__(
        self,
        keys: KeysCollection = ("label", "atlas_label"),
        num_labels: int = 1,
        groups: Iterable[LabelGroup] | None = None,
        union_prob: float = 0.0,
        max_union: int = 2,
        weights: Sequence[float] | None = None,
        absent_prob: float = 0.0,
        dtype: torch.dtype = torch.float32,
        groups_key: Hashable = "label_groups",
        allow_missing_keys: bool = False,
        masks: bool = True,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self)
        if len(self.keys) != 2:
            raise ValueError(f"`keys` must be those of the target and of the atlas label map, got {self.keys}.")
        self.selector = RandSelectLabels(num_labels, groups, union_prob, max_union, weights, absent_prob, dtype)
        self.groups_key = groups_key
        self.masks = masks

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandSelectLabelsd:
        """Set the random state of the draws."""
        super().set_random_state(seed, state)
        self.selector.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with newly drawn groups, and their masks in place of the label maps."""
        d = dict(data)
        if len(list(self.key_iterator(d))) < 2:
            return d
        target_key, atlas_key = self.keys
        known = d.pop(self.groups_key, None)
        if self.masks:
            d[target_key], d[atlas_key] = self.selector(d[target_key], d[atlas_key], known)
        else:
            self.selector.draw(d[target_key], d[atlas_key][-1:], known)  # the label map, also of votes
        d["selected_labels"] = self._selected(known)
        return d

    def _selected(self, known: Iterable[LabelGroup] | None) -> torch.Tensor:
        """Write the drawn groups as rows of ids, filled up with 0 to the most that a row can need."""
        candidates = self.selector.groups or (() if known is None else as_groups(known))
        unions = self.selector.max_union if self.selector.union_prob > 0 else 1
        width = unions * max(map(len, candidates), default=1)
        rows = [group + (0,) * (width - len(group)) for group in self.selector.groups_]
        return torch.tensor(rows, dtype=torch.int64)


RandSelectLabelsD = RandSelectLabelsDict = RandSelectLabelsd


class _Urn:
    """Groups drawn in weighted random order, each once before any comes again."""

    def __init__(self, candidates: Sequence[_Candidate], random: np.random.RandomState) -> None:
        self.groups = [group for group, _ in candidates]
        self.weights = np.array([weight for _, weight in candidates])
        self.random = random
        self.left: list[int] = []

    def __len__(self) -> int:
        return len(self.groups)

    def draw(self, size: int) -> list[tuple[int, ...]]:
        """Draw ``size`` different groups, or all if they are fewer."""
        taken: list[int] = []
        while len(taken) < min(size, len(self)):
            fresh = [i for i in self.left if i not in taken]
            if fresh:
                taken.append(fresh[0])
                self.left.remove(fresh[0])
            else:
                chances = self.weights / self.weights.sum()
                self.left += self.random.choice(len(self), len(self), replace=False, p=chances).tolist()
        return [self.groups[i] for i in taken]


def _distinct(groups: Iterable[LabelGroup]) -> tuple[tuple[int, ...], ...]:
    """Check the groups to draw from; none may come twice."""
    found = as_groups(groups)
    seen: set[frozenset[int]] = set()
    for group in found:
        if frozenset(group) in seen:
            raise ValueError(
                f"`groups` must differ from each other, got {group} twice; use `weights` to prefer a group."
            )
        seen.add(frozenset(group))
    return found


def _is_union(group: tuple[int, ...], parts: Sequence[tuple[int, ...]]) -> bool:
    """Tell whether ``group`` is one of ``parts`` or a union of some."""
    return set(group) == set().union(*(part for part in parts if set(part) <= set(group)))


def _group_weights(weights: Sequence[float] | None, groups: Sequence[tuple[int, ...]] | None) -> tuple[float, ...]:
    """Check that there is one weight for each group."""
    if weights is None:
        return (1.0,) * len(groups or ())
    if groups is None:
        raise ValueError("`weights` belong to `groups`: give `groups` as well.")
    if isinstance(weights, Mapping):  # {label: weight} would be taken for a list of labels
        raise ValueError(f"`weights` must be a list, one number for each of `groups`, got {weights}.")
    found = tuple(float(weight) for weight in weights)
    if len(found) != len(groups):
        raise ValueError(f"`weights` must hold one number for each of the {len(groups)} groups, got {len(found)}.")
    if not all(np.isfinite(found)) or min(found) < 0 or max(found) == 0:
        raise ValueError(f"`weights` must be finite, >= 0 and not all 0, got {list(found)}.")
    return found
