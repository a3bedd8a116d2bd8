"""Which labels a sample asks for: masks of given or randomly drawn labels, and fine labels merged into coarse ones."""

from __future__ import annotations

import operator
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import MapTransform, RandomizableTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type, look_up_option

from monai_lcs.labels import Label, LabelTable

__all__ = [
    "LabelGroup",
    "MapLabels",
    "MapLabelsD",
    "MapLabelsDict",
    "MapLabelsd",
    "RandSelectLabels",
    "RandSelectLabelsD",
    "RandSelectLabelsDict",
    "RandSelectLabelsd",
    "SelectLabels",
    "SelectLabelsD",
    "SelectLabelsDict",
    "SelectLabelsd",
    "as_groups",
    "coarse_mapping",
    "label_mask",
    "present_labels",
]

LabelGroup: TypeAlias = int | Sequence[int]
"""One label id, or several whose union is asked for as one."""

_MAX_ID = torch.iinfo(torch.int32).max
_MAX_TABLE = 1 << 22  # ids above this (Allen atlases) are looked up by sorting: a table as long as the id would be slow


def as_groups(groups: Iterable[LabelGroup]) -> tuple[tuple[int, ...], ...]:
    """Check label groups and write each of them as a tuple of ids.

    Args:
        groups: label ids, or sequences of ids that are asked for as one label. Python, numpy and torch integers are
            understood. The list is neither changed nor kept.

    Raises:
        ValueError: when there is no group, a group is empty, or an id is not an integer > 0 or comes twice in a group.

    Example:
        >>> as_groups([4, (17, 53)])
        ((4,), (17, 53))
    """
    if isinstance(groups, str | bytes | Mapping) or not isinstance(groups, Iterable):
        raise ValueError(f"`groups` must be a list of label ids or of lists of ids, got {groups!r}.")
    found = tuple(_as_group(group) for group in groups)
    if not found:
        raise ValueError("`groups` must hold at least one label, got none.")
    return found


def _as_group(group: Any) -> tuple[int, ...]:
    members = [group] if _is_integer(group) or not isinstance(group, Iterable) else list(group)
    ids = tuple(operator.index(i) if _is_integer(i) else -1 for i in members)
    if not ids or min(ids) <= 0 or max(ids) > _MAX_ID or len(set(ids)) != len(ids):
        raise ValueError(f"A label group must hold unique integer ids > 0, got {group!r}.")
    return ids


def _is_integer(value: Any) -> bool:
    """Whether ``value`` is one integer of Python, numpy or torch; True and False are not."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def label_mask(label_map: NdarrayOrTensor, group: LabelGroup) -> torch.Tensor:
    """Where a label map holds a label, or any label of a union.

    Args:
        label_map: label ids of any shape and real dtype.
        group: one label id or a sequence of ids. A label that is absent gives an empty mask.

    Returns:
        Bool tensor of the shape of ``label_map``.

    Example:
        >>> label_mask(torch.tensor([[0, 1], [2, 3]]), (1, 3)).int()
        tensor([[0, 1],
                [0, 1]], dtype=torch.int32)
    """
    labels = _plain(label_map)
    mask = torch.zeros(labels.shape, dtype=torch.bool, device=labels.device)
    for i in _as_group(group):
        if _holds(labels.dtype, [i]):  # torch takes `uint8 == 300` for `uint8 == 44`
            mask |= labels == i  # for the few ids of a union several times faster than torch.isin
    return mask


def present_labels(label_map: NdarrayOrTensor) -> tuple[int, ...]:
    """Ids > 0 that occur in a label map, in ascending order, from one pass over its voxels.

    Args:
        label_map: label ids of any shape and real dtype.

    Raises:
        ValueError: when a voxel is not an integer >= 0 (a label map resampled by interpolation, NaN).

    Example:
        >>> present_labels(torch.tensor([[0.0, 7.0], [3.0, 7.0]]))
        (3, 7)
    """
    values, index = _values_and_index(_voxel_ids(label_map))
    counts = torch.bincount(index, minlength=len(values))
    return tuple(values[(counts > 0) & (values > 0)].tolist())


def _plain(label_map: NdarrayOrTensor) -> torch.Tensor:
    """The label map as a tensor without metadata, sharing memory where it can."""
    if isinstance(label_map, MetaTensor):
        return label_map.as_tensor()
    if isinstance(label_map, torch.Tensor):
        return label_map
    return torch.from_numpy(np.ascontiguousarray(label_map))  # a flipped view has strides that torch refuses


def _holds(dtype: torch.dtype, ids: Sequence[int]) -> bool:
    """Whether every id can be written exactly in ``dtype``."""
    exact = torch.tensor(ids, dtype=torch.int64)
    return torch.equal(exact.to(dtype).to(torch.int64), exact)


def _voxel_ids(label_map: NdarrayOrTensor) -> torch.Tensor:
    """All voxels as a flat int32 tensor, checked to be integers >= 0."""
    labels = _plain(label_map).flatten()
    if labels.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch cannot compare these with other types
        labels = labels.to(torch.int64)
    ids = labels.to(torch.int32)
    bad = (ids != labels) | (ids < 0)
    if bad.any():
        raise ValueError(
            f"A label map must hold integers from 0 to {_MAX_ID}, got {labels[bad][0].item()}{_origin(label_map)}; "
            "resample label maps with nearest-neighbor interpolation."
        )
    return ids


def _values_and_index(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values that ``ids`` may hold, ascending, and for every voxel the position of its own among them."""
    largest = int(ids.max()) if ids.numel() else 0
    if largest <= _MAX_TABLE:
        return torch.arange(largest + 1, device=ids.device), ids
    values, index = torch.unique(ids, return_inverse=True)
    return values.to(torch.int64), index


def _origin(label_map: NdarrayOrTensor) -> str:
    """`` in FILE`` where the metadata know the file, for error messages."""
    file = label_map.meta.get("filename_or_obj") if isinstance(label_map, MetaTensor) else None
    return f" in {file}" if file else ""


def _masks(
    label_map: NdarrayOrTensor, groups: Sequence[tuple[int, ...]], dtype: torch.dtype
) -> torch.Tensor | MetaTensor:
    """Stack the masks of ``groups`` as channels and give them the metadata of the label map."""
    labels = _plain(label_map)
    masks = torch.empty((len(groups), *labels.shape[1:]), dtype=dtype, device=labels.device)
    for mask, group in zip(masks, groups, strict=True):
        mask.copy_(label_mask(labels[0], group))
    if isinstance(label_map, torch.Tensor):
        return convert_to_dst_type(masks, label_map, dtype=dtype)[0]
    return MetaTensor(masks) if get_track_meta() else masks


def _check_channel(label_map: NdarrayOrTensor) -> None:
    if label_map.ndim < 2 or label_map.shape[0] != 1:
        raise ValueError(
            f"A label map must have the shape (1, *spatial), got {tuple(label_map.shape)}{_origin(label_map)}."
        )


class SelectLabels(Transform):
    """Turn a label map ``(1, *spatial)`` into the masks ``(K, *spatial)`` of K labels or unions of labels.

    A label that the map does not hold gives an empty mask. Groups may overlap. Metadata such as the affine are kept;
    a numpy array gives a tensor.

    Args:
        groups: K label ids or sequences of ids, see :py:func:`as_groups`.
        dtype: type of the masks, which hold 0 and 1.

    Raises:
        ValueError: when a group is not valid, or a label map has more or less than one channel.

    Example:
        >>> SelectLabels([2, (1, 3)])(torch.tensor([[0, 1, 2, 3]]))
        tensor([[0., 0., 1., 0.],
                [0., 1., 0., 1.]])
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, groups: Iterable[LabelGroup], dtype: torch.dtype = torch.float32) -> None:
        self.groups = as_groups(groups)
        self.dtype = dtype

    def __call__(self, label_map: NdarrayOrTensor) -> torch.Tensor:
        """Return the masks ``(K, *spatial)`` of a label map ``(1, *spatial)``."""
        _check_channel(label_map)
        return _masks(label_map, self.groups, self.dtype)


class SelectLabelsd(MapTransform):
    """Dictionary form of :py:class:`SelectLabels`: every key's label map is replaced by its K masks.

    Args:
        keys: keys of the label maps.
        groups: K label ids or sequences of ids, see :py:func:`as_groups`.
        dtype: type of the masks.
        allow_missing_keys: skip missing keys instead of raising ``KeyError``.
    """

    backend = SelectLabels.backend

    def __init__(
        self,
        keys: KeysCollection,
        groups: Iterable[LabelGroup],
        dtype: torch.dtype = torch.float32,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.selector = SelectLabels(groups, dtype)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with masks in place of the label maps."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.selector(d[key])
        return d


class RandSelectLabels(RandomizableTransform):
    """Draw K label groups and return their masks in a target and in an atlas label map.

    The random label selection of Ma, Lee, Sabuncu, "Label conditioned segmentation", MIDL 2022, for K labels at once.
    Candidates are drawn without replacement; only when all of them were used does one come again, so that there are
    always K masks. A slot may become the union of several candidates ("combine_label" in the paper), each of them
    drawn like any other. A group of which the atlas holds no label is never drawn, as it could not be asked for;
    one of which the target holds no label only with ``absent_prob``: its target mask is empty and teaches the network
    to answer "none".

    Args:
        num_labels: K, the number of masks.
        groups: label ids or sequences of ids to draw from; all single labels of the atlas by default.
        union_prob: probability that a slot is a union of 2 to ``max_union`` (uniformly) different candidates, or of
            all of them where they are fewer.
        max_union: largest number of candidates in a union, at least 2.
        weights: relative frequencies >= 0 of ``groups``, as a sequence of the same length or as ``{index: weight}``,
            in which groups not mentioned have 1. A group of weight 0 is never drawn.
        absent_prob: probability that a slot takes groups that the target lacks, where there are any.
            A target that holds no candidate at all gets only such groups, or is an error when this is 0.
        dtype: type of the masks, which hold 0 and 1.

    Attributes:
        groups_: the K groups drawn last, each a sorted tuple of label ids.

    Raises:
        ValueError: when an argument is out of range; when called, if a label map is not ``(1, *spatial)``, holds a
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
        weights: Mapping[int, float] | Sequence[float] | None = None,
        absent_prob: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        for name, value, least in (("num_labels", num_labels, 1), ("max_union", max_union, 2)):
            if not _is_integer(value) or value < least:
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
        """Draw ``self.groups_`` for a target and an atlas that hold these label ids."""
        target, atlas = set(target_labels), set(atlas_labels)
        candidates = [
            (group, weight) for group, weight in self._candidates(atlas, groups) if not atlas.isdisjoint(group)
        ]
        present = _Urn([c for c in candidates if not target.isdisjoint(c[0])], self.R)
        absent = _Urn([c for c in candidates if target.isdisjoint(c[0]) and self.absent_prob > 0], self.R)
        if not (present or absent):
            raise ValueError(
                f"No label group to draw: the target has labels {sorted(target)}, the atlas has {sorted(atlas)}, and "
                f"the candidates in the atlas are {[group for group, _ in candidates]}. Give other `groups`, or "
                "`absent_prob` > 0 where a target may hold none of them."
            )
        self.groups_ = tuple(self._draw_slot(present, absent) for _ in range(self.num_labels))

    def _candidates(self, atlas: set[int], known: Iterable[LabelGroup] | None) -> list[tuple[tuple[int, ...], float]]:
        """The groups with their weights, of a partly labeled sample only those that ``known`` groups make up."""
        if self.groups is None:
            groups = tuple((i,) for i in sorted(atlas)) if known is None else _distinct(known)
            return [(group, 1.0) for group in groups]
        pairs = zip(self.groups, self.weights, strict=True)
        parts = None if known is None else _distinct(known)
        return [(g, w) for g, w in pairs if w > 0 and (parts is None or _is_union(g, parts))]

    def _draw_slot(self, present: _Urn, absent: _Urn) -> tuple[int, ...]:
        urn = absent if absent and (not present or self.R.rand() < self.absent_prob) else present
        size = self.R.randint(2, self.max_union + 1) if self.R.rand() < self.union_prob else 1
        return tuple(sorted(set().union(*urn.draw(size))))

    def __call__(  # type: ignore[override]
        self,
        label_map: NdarrayOrTensor,
        atlas_label_map: NdarrayOrTensor,
        groups: Iterable[LabelGroup] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw K groups and return their masks.

        Args:
            label_map: target label map ``(1, *spatial)``.
            atlas_label_map: atlas label map ``(1, *spatial)``; the spatial sizes may differ.
            groups: what this target is labeled for (partial labels); everything by default. Only these groups are
                drawn, or, where the transform has ``groups`` of its own, those of its groups that are one of these
                or a union of several of these.

        Returns:
            Target masks and atlas masks, both ``(K, *spatial)`` with the metadata of their label map.
        """
        _check_channel(label_map)
        _check_channel(atlas_label_map)
        self.randomize(present_labels(label_map), present_labels(atlas_label_map), groups)
        return _masks(label_map, self.groups_, self.dtype), _masks(atlas_label_map, self.groups_, self.dtype)


class _Urn:
    """Groups drawn in weighted random order, each once before any comes again."""

    def __init__(self, weighted_groups: Sequence[tuple[tuple[int, ...], float]], random: np.random.RandomState) -> None:
        self.groups = [group for group, _ in weighted_groups]
        self.weights = np.array([weight for _, weight in weighted_groups])
        self.random = random
        self.left: list[int] = []

    def __len__(self) -> int:
        return len(self.groups)

    def draw(self, size: int) -> list[tuple[int, ...]]:
        """``size`` different groups, or all where they are fewer."""
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
    """The groups to draw from: checked, and none of them given twice."""
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
    """Whether ``group`` is one of ``parts`` or a union of some."""
    return set(group) == set().union(*(part for part in parts if set(part) <= set(group)))


def _group_weights(
    weights: Mapping[int, float] | Sequence[float] | None, groups: Sequence[tuple[int, ...]] | None
) -> tuple[float, ...]:
    """One weight for each group."""
    if weights is None:
        return (1.0,) * len(groups or ())
    if groups is None:
        raise ValueError("`weights` belong to `groups`: give `groups` as well.")
    if isinstance(weights, Mapping):
        unknown = [i for i in weights if i not in range(len(groups))]
        if unknown:
            raise ValueError(f"`weights` must have group indices from 0 to {len(groups) - 1} as keys, got {unknown}.")
        weights = [weights.get(i, 1.0) for i in range(len(groups))]
    found = tuple(float(weight) for weight in weights)
    if len(found) != len(groups):
        raise ValueError(f"`weights` must hold one number for each of the {len(groups)} groups, got {len(found)}.")
    if not all(np.isfinite(found)) or min(found) < 0 or max(found) == 0:
        raise ValueError(f"`weights` must be finite, >= 0 and not all 0, got {list(found)}.")
    return found


class RandSelectLabelsd(RandomizableTransform, MapTransform):
    """Dictionary form of :py:class:`RandSelectLabels`: target and atlas label map are replaced by their K masks.

    Writes the drawn groups to ``"selected_labels"``, an int64 tensor ``(K, L)`` with one row of ids per mask, filled up
    with 0. L is the most ids that a row can need (1 without unions), whatever was drawn, so that samples collate.
    Only where groups of several labels come from ``groups_key`` alone is L that of the sample.

    Args:
        keys: key of the target label map, then that of the atlas label map.
        num_labels: K, the number of masks.
        groups: label ids or sequences of ids to draw from; all single labels of the atlas by default.
        union_prob: probability that a slot is a union of groups.
        max_union: largest number of groups in a union.
        weights: relative frequencies of ``groups``.
        absent_prob: probability that a slot takes groups that the target lacks.
        dtype: type of the masks.
        groups_key: where a sample has this key, its value lists the groups it is labeled for (partial labels), and only
            these are drawn. The key is taken out, as lists of different lengths do not collate.
        allow_missing_keys: return the sample as it is when one of the two label maps is missing, instead of
            raising ``KeyError``.

    Raises:
        ValueError: when there are not two keys, and as :py:class:`RandSelectLabels`.

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
        weights: Mapping[int, float] | Sequence[float] | None = None,
        absent_prob: float = 0.0,
        dtype: torch.dtype = torch.float32,
        groups_key: Hashable = "label_groups",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self)
        if len(self.keys) != 2:
            raise ValueError(f"`keys` must be those of the target and of the atlas label map, got {self.keys}.")
        self.selector = RandSelectLabels(num_labels, groups, union_prob, max_union, weights, absent_prob, dtype)
        self.groups_key = groups_key

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandSelectLabelsd:
        """Set the random state of the draws."""
        super().set_random_state(seed, state)
        self.selector.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with the masks of newly drawn groups in place of the label maps."""
        d = dict(data)
        if len(list(self.key_iterator(d))) < 2:
            return d
        target_key, atlas_key = self.keys
        known = d.pop(self.groups_key, None)
        d[target_key], d[atlas_key] = self.selector(d[target_key], d[atlas_key], known)
        d["selected_labels"] = self._selected(known)
        return d

    def _selected(self, known: Iterable[LabelGroup] | None) -> torch.Tensor:
        """The drawn groups as rows of ids, filled up with 0 to the most that a row can need."""
        candidates = self.selector.groups or (() if known is None else as_groups(known))
        unions = self.selector.max_union if self.selector.union_prob > 0 else 1
        width = unions * max(map(len, candidates), default=1)
        rows = [group + (0,) * (width - len(group)) for group in self.selector.groups_]
        return torch.tensor(rows, dtype=torch.int64)


class MapLabels(Transform):
    """Replace label ids by others, for example fine labels by the coarse ones they belong to, in one pass.

    Unlike :py:class:`monai.transforms.MapLabelValue`, which passes over the map once for each label, this takes the
    same time for one label as for hundreds. The container is kept (numpy array, tensor, ``MetaTensor`` with its
    metadata) and so is the dtype, unless it cannot hold the new ids: then it is the smallest of int16, int32 and
    int64, or of float32 and float64, that can.

    Args:
        mapping: ``{old id: new id}``; several old ids may share a new one, 0 is background. Keys may be strings of
            digits, as JSON has them.
        unmapped: what becomes of ids without an entry: ``"keep"`` them, make them ``"background"``, or ``"error"``.
            Background without an entry stays background.

    Raises:
        ValueError: when the mapping is empty or has ids that are not integers >= 0; when called, if the label map (any
            shape) holds a value that is not an integer >= 0, or, with ``"error"``, an id without an entry.

    Example:
        >>> MapLabels({1: 10, 2: 10}, unmapped="background")(torch.tensor([[0, 1, 2, 3]]))
        tensor([[ 0, 10, 10,  0]])
    """

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]

    def __init__(self, mapping: Mapping[int, int] | Mapping[str, int], unmapped: str = "keep") -> None:
        self.mapping = {_as_id(old): _as_id(new) for old, new in mapping.items()}
        if not self.mapping:
            raise ValueError("`mapping` must hold at least one label, got none.")
        self.unmapped: str = look_up_option(unmapped, ("keep", "background", "error"))

    def __call__(self, label_map: NdarrayOrTensor) -> NdarrayOrTensor:
        """Return the label map with new ids; the one given is not changed."""
        labels = _plain(label_map)
        values, index = _values_and_index(_voxel_ids(label_map))
        if self.unmapped == "error":
            self._check_mapped(label_map)
        table = self._table(values).to(self._dtype(labels.dtype))
        mapped = table[index].reshape(labels.shape)
        if isinstance(label_map, np.ndarray):
            return mapped.numpy()
        return convert_to_dst_type(mapped, label_map, dtype=mapped.dtype)[0]

    def _table(self, values: torch.Tensor) -> torch.Tensor:
        """The new id of each of the ascending ``values``."""
        table = torch.zeros_like(values) if self.unmapped == "background" else values.clone()
        old = torch.tensor(list(self.mapping), device=values.device)
        new = torch.tensor(list(self.mapping.values()), device=values.device)
        position = torch.searchsorted(values, old).clamp(max=len(values) - 1)
        found = values[position] == old
        table[position[found]] = new[found]
        return table

    def _dtype(self, dtype: torch.dtype) -> torch.dtype:
        """``dtype`` or the next wider one of its kind that holds the new ids."""
        wider = (torch.float32, torch.float64) if dtype.is_floating_point else (torch.int16, torch.int32, torch.int64)
        return next(d for d in (dtype, *wider) if _holds(d, list(self.mapping.values())))

    def _check_mapped(self, label_map: NdarrayOrTensor) -> None:
        missing = [i for i in present_labels(label_map) if i not in self.mapping]
        if missing:
            raise ValueError(
                f"The label map has labels without an entry in `mapping`{_origin(label_map)}: {missing}. "
                'Add them, or use unmapped="keep" or "background".'
            )


def _as_id(value: Any) -> int:
    """An id of a mapping, which JSON may have turned into a string."""
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if not _is_integer(number) or not 0 <= number <= _MAX_ID:
        raise ValueError(f"`mapping` must hold integers >= 0, got {value!r}.")
    return operator.index(number)


class MapLabelsd(MapTransform):
    """Dictionary form of :py:class:`MapLabels`.

    Args:
        keys: keys of the label maps.
        mapping: ``{old id: new id}``.
        unmapped: what becomes of ids without an entry: ``"keep"``, ``"background"`` or ``"error"``.
        allow_missing_keys: skip missing keys instead of raising ``KeyError``.
    """

    backend = MapLabels.backend

    def __init__(
        self,
        keys: KeysCollection,
        mapping: Mapping[int, int] | Mapping[str, int],
        unmapped: str = "keep",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mapper = MapLabels(mapping, unmapped)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with new ids in its label maps."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.mapper(d[key])
        return d


def coarse_mapping(table: LabelTable) -> tuple[dict[int, int], LabelTable]:
    """Merge the labels of a table into their parents.

    Args:
        table: fine labels; those without a parent stand for themselves.

    Returns:
        ``{fine id: coarse id}`` for :py:class:`MapLabels`, and the table of the coarse labels, numbered from 1 in the
        order of their first fine label, whose color they take. The hemisphere is kept where all labels share it.

    Example:
        >>> fine = LabelTable([Label(8, "cuneus", "occipital"), Label(9, "lingual", "occipital"), Label(16, "stem")])
        >>> mapping, coarse = coarse_mapping(fine)
        >>> mapping, coarse.names
        ({8: 1, 9: 1, 16: 2}, ('occipital', 'stem'))
    """
    mapping: dict[int, int] = {}
    coarse = []
    for new, (name, ids) in enumerate(table.children().items(), start=1):
        hemispheres = {table[i].hemisphere for i in ids}
        shared = hemispheres.pop() if len(hemispheres) == 1 else None
        coarse.append(Label(new, name, hemisphere=shared, color=table[ids[0]].color))
        mapping.update(dict.fromkeys(ids, new))
    return mapping, LabelTable(coarse)


SelectLabelsD = SelectLabelsDict = SelectLabelsd
RandSelectLabelsD = RandSelectLabelsDict = RandSelectLabelsd
MapLabelsD = MapLabelsDict = MapLabelsd
