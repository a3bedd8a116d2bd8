"""Turn labels into masks, and merge fine labels into coarse ones."""

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

from monai_lcs.labels.exact import holds_exactly
from monai_lcs.labels.groups import LabelGroup, as_groups, group_masks, present_labels
from monai_lcs.labels.label import is_integer
from monai_lcs.labels.label_map import as_plain_tensor, check_channel, origin, values_and_positions, voxel_ids
from monai_lcs.labels.limits import MAX_ID

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

    A label that the map lacks gives an empty mask. Groups may overlap. The masks keep metadata such as the affine.
    A numpy array gives a tensor.

    Args:
        groups: K label ids or sequences of ids, see :py:func:`as_groups`.
        dtype: type of the masks, which hold 0 and 1.

    Raises:
        ValueError: if a group is not valid; when called, if the label map has more or less than one channel.

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
    """Dictionary form of :py:class:`SelectLabels`: K masks replace the label map of every key.

    Args:
        keys: keys of the label maps.
        groups: K label ids or sequences of ids, see :py:func:`as_groups`.
        dtype: type of the masks.
        allow_missing_keys: skip missing keys instead of raising ``KeyError``.

    Example:
        >>> SelectLabelsd("label", [2])({"label": torch.tensor([[0, 1, 2]])})
        {'label': tensor([[0., 0., 1.]])}
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
    """Replace label ids by others in one pass, for example fine labels by the coarse labels they belong to.

    It takes the same time for one label as for hundreds, while :py:class:`monai.transforms.MapLabelValue` passes over
    the map once for each label. The result has the type of the label map: numpy array, tensor, or ``MetaTensor`` with
    its metadata. It has the same dtype as well, unless that cannot hold the new ids. Then it has the smallest of int16,
    int32 and int64, or of float32 and float64, that can.

    Args:
        mapping: ``{old id: new id}``. Several old ids may share a new one, and 0 is background. Keys may be strings of
            digits, as JSON has them.
        unmapped: what becomes of ids without an entry: ``"keep"`` keeps them, ``"background"`` makes them background,
            ``"error"`` raises. Background without an entry stays background.

    Raises:
        ValueError: if the mapping is empty or has ids that are not integers >= 0; when called, if the label map (any
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
        """Return the label map with new ids; the given one does not change."""
        labels = as_plain_tensor(label_map)
        values, positions = values_and_positions(voxel_ids(label_map))
        if self.unmapped == "error":
            self._check_mapped(label_map)
        new_values = self._new_values(values).to(self._dtype(labels.dtype))
        mapped = new_values[positions].reshape(labels.shape)
        if isinstance(label_map, np.ndarray):
            return mapped.numpy()
        return convert_to_dst_type(mapped, label_map, dtype=mapped.dtype)[0]

    def _new_values(self, values: torch.Tensor) -> torch.Tensor:
        """Give the new id of each of the ascending ``values``."""
        new_values = torch.zeros_like(values) if self.unmapped == "background" else values.clone()
        old = torch.tensor(list(self.mapping), device=values.device)
        new = torch.tensor(list(self.mapping.values()), device=values.device)
        position = torch.searchsorted(values, old).clamp(max=len(values) - 1)
        found = values[position] == old
        new_values[position[found]] = new[found]
        return new_values

    def _dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Give ``dtype``, or the next wider type of its kind if it cannot hold the new ids."""
        wider = (torch.float32, torch.float64) if dtype.is_floating_point else (torch.int16, torch.int32, torch.int64)
        return next(d for d in (dtype, *wider) if holds_exactly(d, list(self.mapping.values())))

    def _check_mapped(self, label_map: NdarrayOrTensor) -> None:
        missing = [i for i in present_labels(label_map) if i not in self.mapping]
        if missing:
            raise ValueError(
                f"The label map has labels without an entry in `mapping`{origin(label_map)}: {missing}. "
                'Add them, or use unmapped="keep" or "background".'
            )


def _as_id(value: Any) -> int:
    """Read an id of a mapping, which JSON may have turned into a string."""
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if not is_integer(number) or not 0 <= number <= MAX_ID:
        raise ValueError(f"`mapping` must hold integers >= 0, got {value!r}.")
    return operator.index(number)


class MapLabelsd(MapTransform):
    """Dictionary form of :py:class:`MapLabels`.

    Args:
        keys: keys of the label maps.
        mapping: ``{old id: new id}``.
        unmapped: what becomes of ids without an entry: ``"keep"``, ``"background"`` or ``"error"``.
        allow_missing_keys: skip missing keys instead of raising ``KeyError``.

    Example:
        >>> MapLabelsd("label", {1: 10})({"label": torch.tensor([[0, 1, 2]])})
        {'label': tensor([[ 0, 10,  2]])}
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
