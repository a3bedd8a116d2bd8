"""Several networks that answer together: the mean of their probabilities."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from monai_lcs.boxes import Box, padded_shape
from monai_lcs.networks.crops import Mask
from monai_lcs.networks.unet import Features, LabelConditionedUNet

__all__ = ["MeanNetwork"]

SHARED_ROOM = 1 << 22  # voxels of boxes, at least, that are decoded together where labels share their decoder


class MeanNetwork(nn.Module):
    """Several label conditioned networks as one, for inference: its probability is the mean of theirs.

    Networks of different kinds err in different places. It is a
    :class:`monai_lcs.networks.LabelConditionedNetwork`, and costs what its networks cost one after the other. It cannot
    be trained: train each by itself.

    Args:
        networks: two or more, each with an atlas, for the same image and atlas channels.

    Attributes:
        stride: see :class:`monai_lcs.networks.LabelConditionedUNet`; what suits all of them.
        depends_on_box: likewise, where this holds for any of them.
        stitches: never.
        competes: where this holds for all of them.

    Raises:
        TypeError: for something else than :class:`monai_lcs.networks.LabelConditionedUNet`, such as a compiled one.
        ValueError: for fewer than two networks, a plain multi-channel one, or different channels.

    Example:
        >>> networks = [LabelConditionedUNet(channels=(4, 8), conditioning=c).eval() for c in ("multiscale", "shared")]
        >>> x = torch.rand(1, 4, 8, 8, 8)  # image, atlas image, and the masks of two labels
        >>> both = MeanNetwork(networks).eval()(x)
        >>> mean = (networks[0](x).sigmoid() + networks[1](x).sigmoid()) / 2
        >>> both.shape, torch.allclose(both.sigmoid(), mean, atol=1e-6)
        (torch.Size([1, 2, 8, 8, 8]), True)
    """

    def __init__(self, networks: Sequence[LabelConditionedUNet]) -> None:
        super().__init__()
        _check_networks(networks)
        self.networks = nn.ModuleList(networks)
        self.image_channels, self.atlas_channels = networks[0].image_channels, networks[0].atlas_channels
        self.stride = math.lcm(*(network.stride for network in networks))
        self.depends_on_box = any(network.depends_on_box for network in networks)
        self.stitches = False
        self.competes = all(network.competes for network in networks)

    @property
    def _members(self) -> list[LabelConditionedUNet]:
        return cast(list[LabelConditionedUNet], [*self.networks])

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, K, *spatial)`` of ``(B, image_channels + atlas_channels + K, *spatial)``, everywhere."""
        return mean_logit([network(x) for network in self._members])

    def encode(self, image: Tensor, atlas_image: Tensor) -> Features:
        """The features of all networks, one after the other; see :meth:`LabelConditionedUNet.encode`."""
        of_each = [network.encode(image, atlas_image) for network in self._members]
        return Features(tuple(level for features in of_each for level in features.levels), of_each[0].spatial_shape)

    def decode_boxes(
        self,
        features: Features,
        masks: Sequence[Mask],
        boxes: Sequence[Box],
        *,
        halo: int | str = "exact",
        room: float | None = None,
        wanted: Collection[int] | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """See :meth:`LabelConditionedUNet.decode_boxes`. The logits of a batch of labels are in memory at a time."""
        of_each = self._divide(features)
        for batch, _ in self.batches(boxes, features.spatial_shape, room or math.inf):
            chosen = [i for i in batch if wanted is None or i in wanted]
            some = [masks[i] for i in chosen], [boxes[i] for i in chosen]
            answers = [
                dict(network.decode_boxes(own, *some, halo=halo, room=_room_for(network, room)))
                for network, own in zip(self._members, of_each, strict=True)
            ]
            for n, i in enumerate(chosen):
                yield i, mean_logit([answer.pop(n) for answer in answers])

    def batches(
        self, boxes: Sequence[Box], window: Sequence[int], room: float
    ) -> list[tuple[list[int], tuple[int, ...]]]:
        """Which boxes are decoded together; see :meth:`LabelConditionedUNet.batches`.

        A network whose labels share their decoder decides, if there is one: many of them are hardly more work than one.
        """
        sharing = next((network for network in self._members if network.competes), None)
        if sharing is None:
            return self._members[0].batches(boxes, padded_shape(window, self.stride), room)
        return sharing.batches(boxes, padded_shape(window, self.stride), _room_for(sharing, room) or math.inf)

    def _divide(self, features: Features) -> list[Features]:
        """The features of each network."""
        levels = iter(features.levels)
        counts = [network.depth + 1 if network.decodes_by_label else 1 for network in self._members]
        return [Features(tuple(islice(levels, count)), features.spatial_shape) for count in counts]


def _room_for(network: LabelConditionedUNet, room: float | None) -> float | None:
    """How many voxels of boxes a network decodes at a time, see :data:`SHARED_ROOM`."""
    return max(room, SHARED_ROOM) if room and network.competes else room


def mean_logit(logits: Sequence[Tensor]) -> Tensor:
    """The logit of the mean of probabilities, from their logits; it does not round where they are near 0 or 1.

    Example:
        >>> mean_logit([torch.tensor([0.0, -40.0, 40.0]), torch.tensor([0.0, -40.0, 0.0])])
        tensor([  0.0000, -40.0000,   1.0986])
    """
    true, false = (
        functools.reduce(torch.logaddexp, [logsigmoid(sign * x.float()) for x in logits]) for sign in (1, -1)
    )
    return true - false


def _check_networks(networks: Sequence[LabelConditionedUNet]) -> None:
    if not all(isinstance(network, LabelConditionedUNet) for network in networks):
        kinds_of = [type(network).__name__ for network in networks]
        raise TypeError(
            f"The networks of a mean must be LabelConditionedUNet, got {kinds_of}: compile the mean instead."
        )
    if len(networks) < 2:
        raise ValueError(f"A mean needs two or more networks, got {len(networks)}.")
    kinds = {(network.spatial_dims, network.image_channels, network.atlas_channels) for network in networks}
    if len(kinds) > 1 or any(network.conditioning is None for network in networks):
        raise ValueError(
            "The networks of a mean must see an atlas, and have the same numbers of axes and channels, got (axes, image"
            f" channels, atlas channels) {sorted(kinds)} and conditionings {[n.conditioning for n in networks]}."
        )
