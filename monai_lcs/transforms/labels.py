"""Labels of a label map: groups of them, their masks, and fine labels merged into coarse ones."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type, look_up_option

from monai_lcs.labels import is_integer

__all__ = [
    "LabelGroup",
    "MapLabels",
    "MapLabelsD",
    "MapLabelsDict",
    "MapLabelsd",
    "SelectLabels",
    "SelectLabelsD",
    "SelectLabelsDict",
    "SelectLabelsd",
    "as_groups",
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
    members = [group] if is_integer(group) or not isinstance(group, Iterable) else list(group)
    ids = tuple(operator.index(i) if is_integer(i) else -1 for i in members)
    if not ids or min(ids) <= 0 or max(ids) > _MAX_ID or len(set(ids)) != len(ids):
        raise ValueError(f"A label group must hold unique integer ids > 0, got {group!r}.")
    return ids


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


def group_masks(
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


def check_channel(label_map: NdarrayOrTensor) -> None:
    """Raise a ValueError unless a label map is ``(1, *spatial)``."""
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
        check_channel(label_map)
        return group_masks(label_map, self.groups, self.dtype)


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
    if not is_integer(number) or not 0 <= number <= _MAX_ID:
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


SelectLabelsD = SelectLabelsDict = SelectLabelsd
MapLabelsD = MapLabelsDict = MapLabelsd
