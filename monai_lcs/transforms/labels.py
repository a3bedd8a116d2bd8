"""Labels of a label map to masks, and fine labels merged into coarse ones."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type, look_up_option

from monai_lcs.labels.groups import (
    _MAX_ID,
    LabelGroup,
    _holds,
    _origin,
    _plain,
    _values_and_index,
    _voxel_ids,
    as_groups,
    check_channel,
    group_masks,
    present_labels,
)
from monai_lcs.labels.table import is_integer

__all__ = [
    "MapLabels",
    "MapLabelsD",
    "MapLabelsDict",
    "MapLabelsd",
    "SelectLabels",
    "SelectLabelsD",
    "SelectLabelsDict",
    "SelectLabelsd",
]


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
