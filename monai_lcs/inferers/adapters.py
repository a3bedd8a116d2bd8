"""Adapters: a network that encodes once, or any network of one tensor, as what decodes the labels of a window."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from monai_lcs.boxes import Box, padded_shape, size_of, whole_box
from monai_lcs.networks import Features, LabelConditionedNetwork, LabelConditionedUNet, MeanNetwork
from monai_lcs.networks.crops import Mask

__all__ = ["Adapter", "EncodeOnceAdapter", "PlainAdapter", "adapt", "unwrapped"]

Batch = tuple[list[int], tuple[int, ...]]
"""Numbers of what is decoded together, and the size in which each is."""


class EncodeOnceAdapter:
    """Adapts a network that encodes a window once for all labels.

    Args:
        network: the network.
        image_channels: channels of the image, which come first; those of the atlas image follow.
        halo: see :meth:`monai_lcs.networks.LabelConditionedUNet.decode`.

    Attributes:
        stride: windows are padded to a multiple of it before they are encoded.
        depends_on_box: whether the logits of a label depend on its box.
        competes: whether the background of a label map is found as a label is.
        splits: whether a label may be decoded in several boxes.
        stitches: whether the features of all windows are blended before labels are decoded.
        encodes: whether the features of a window are worth keeping.

    Example:
        >>> adapter = EncodeOnceAdapter(LabelConditionedUNet(2, channels=(4, 8)), image_channels=1, halo="exact")
        >>> features = adapter.encode(torch.rand(2, 16, 16))  # image and atlas image
        >>> mask = Mask.of(torch.ones(16, 16))
        >>> [(i, logits.shape) for i, logits in adapter.decode(features, [mask], [(slice(0, 4), slice(3, 9))], 1000)]
        [(0, torch.Size([4, 6]))]
    """

    encodes = True

    def __init__(self, network: LabelConditionedNetwork, image_channels: int, halo: int | str) -> None:
        self.network = network
        self.image_channels = image_channels
        self.halo = halo
        self.stride = network.stride
        self.depends_on_box = network.depends_on_box
        self.competes = getattr(network, "competes", False)
        self.splits = not network.depends_on_box and not self.competes
        self.stitches = network.stitches

    def encode(self, window: Tensor) -> Features:
        """Compute the label-independent features of a window ``(image + atlas image, *spatial)``."""
        return self.network.encode(window[None, : self.image_channels], window[None, self.image_channels :])

    def decode(
        self,
        features: Features,
        masks: Sequence[Mask],
        boxes: Sequence[Box],
        room: float,
        wanted: Collection[int] | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of each wanted mask and its logits in its box, about ``room`` voxels at a time."""
        some = {} if wanted is None else {"wanted": wanted}
        return self.network.decode_boxes(features, masks, boxes, halo=self.halo, room=room, **some)

    def batches(self, boxes: Sequence[Box], shape: Sequence[int], room: float) -> list[Batch]:
        """Which boxes are decoded together in a window of a shape, and in which size."""
        if not isinstance(self.network, LabelConditionedUNet | MeanNetwork):
            return [([i], size_of(box)) for i, box in enumerate(boxes)]
        return self.network.batches(boxes, padded_shape(shape, self.stride), room)


class PlainAdapter:
    """Adapts a network of one tensor: image, atlas image and one atlas mask. Nothing is shared between labels.

    Args:
        network: takes ``(N, image + atlas image + 1, *spatial)``, returns logits ``(N, 1, *spatial)``.
        labels_per_call: the largest N.
        args: further arguments of the network.
        kwargs: likewise.

    Example:
        >>> adapter = PlainAdapter(lambda x: x[:, :1] + x[:, -1:], labels_per_call=8)
        >>> masks = [Mask.of(torch.tensor([[0, 1, 1]])), Mask.of(torch.tensor([[1, 0, 0]]))]
        >>> window, boxes = adapter.encode(torch.full((1, 1, 3), 5.0)), [(slice(0, 1), slice(0, 2))] * 2
        >>> dict(adapter.decode(window, masks, boxes, room=100))
        {0: tensor([[5., 6.]]), 1: tensor([[6., 5.]])}
    """

    stride = 1
    depends_on_box = splits = stitches = encodes = competes = False  # the whole window is computed, whatever the box

    def __init__(
        self,
        network: Callable[..., Tensor],
        labels_per_call: int,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.network = network
        self.labels_per_call = labels_per_call
        self.args = args
        self.kwargs = kwargs or {}

    def encode(self, window: Tensor) -> Tensor:
        """Return the window ``(image + atlas image, *spatial)`` itself."""
        return window

    def decode(
        self,
        window: Tensor,
        masks: Sequence[Mask],
        boxes: Sequence[Box],
        room: float,
        wanted: Collection[int] | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of each wanted mask and its logits in its box, cropped from those of the window."""
        for numbers, _ in self.batches(boxes, window.shape[1:], room):
            if wanted is not None and not any(i in wanted for i in numbers):
                continue
            chosen = [masks[i] for i in numbers]
            whole = whole_box(window.shape[1:])
            stacked = Mask.inside(chosen, [whole] * len(chosen), window.dtype)
            inputs = torch.cat([window[None].expand(len(chosen), *window.shape), stacked], dim=1)
            logits = self.network(inputs, *self.args, **self.kwargs)
            for i, one in zip(numbers, logits, strict=True):
                if wanted is None or i in wanted:
                    yield i, one[0][boxes[i]]

    def batches(self, boxes: Sequence[Box], shape: Sequence[int], room: float) -> list[Batch]:
        """Which boxes are decoded together in a window of a shape, and in which size."""
        numbers = range(len(boxes))
        return [
            (list(numbers[first : first + self.labels_per_call]), tuple(shape))
            for first in range(0, len(boxes), self.labels_per_call)
        ]


Adapter = EncodeOnceAdapter | PlainAdapter


def unwrapped(network: Any) -> Any:
    """The network inside ``DistributedDataParallel`` and ``torch.compile``, whose wrappers hide its methods.

    Example:
        >>> net = LabelConditionedUNet(2, channels=(4, 8))
        >>> unwrapped(torch.nn.DataParallel(net)) is net, unwrapped(net) is net
        (True, True)
    """
    for name in ("module", "_orig_mod"):
        network = getattr(network, name, network)
    return network


def adapt(
    network: Callable[..., Tensor],
    image_channels: int,
    halo: int | str,
    labels_per_call: int,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Adapter:
    """Choose the adapter for a network, which may be wrapped.

    Args:
        network: a :class:`monai_lcs.networks.LabelConditionedNetwork`, or any network of one tensor.
        image_channels: see :class:`EncodeOnceAdapter`.
        halo: likewise.
        labels_per_call: see :class:`PlainAdapter`.
        args: likewise.
        kwargs: likewise.

    Raises:
        ValueError: When the network predicts all labels at once.

    Example:
        >>> type(adapt(LabelConditionedUNet(2, channels=(4, 8)), 1, "exact", 16)).__name__
        'EncodeOnceAdapter'
        >>> type(adapt(lambda x: x[:, :1], 1, "exact", 16)).__name__
        'PlainAdapter'
    """
    bare = unwrapped(network)
    if isinstance(bare, LabelConditionedUNet) and bare.conditioning is None:
        raise ValueError("A network with conditioning=None answers for no label: use SlidingWindowInferer with it.")
    if isinstance(bare, LabelConditionedNetwork):
        return EncodeOnceAdapter(bare, image_channels, halo)
    return PlainAdapter(network, labels_per_call, args, kwargs)
