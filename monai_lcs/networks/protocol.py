"""What an inferer needs of a network that encodes once for all labels."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from monai_lcs.boxes import Box
from monai_lcs.networks.crops import Mask
from monai_lcs.networks.unet import Features

__all__ = ["LabelConditionedNetwork"]


@runtime_checkable
class LabelConditionedNetwork(Protocol):
    """A network that encodes a window once and decodes any label in any box of it.

    :class:`monai_lcs.networks.LabelConditionedUNet` is one. :class:`monai_lcs.inferers.LabelSweepInferer` accepts any
    object with these attributes and methods. It calls a network that lacks one of them as a network of one tensor.

    Attributes:
        stride: windows are padded at their end to a multiple of it before they are encoded; 1 for no padding.
        depends_on_box: whether the logits at a voxel depend on the box that is decoded.
        stitches: whether the features of neighboring windows may be blended before any label is decoded. Then
            ``Features.levels`` holds one tensor, at full resolution.

    A network may have one more attribute, ``competes``: whether the probabilities of labels that do not overlap add up
    to 1 at most. Then the background has, in a label map, what the union of all requested labels leaves.

    Example:
        >>> from monai_lcs.networks import LabelConditionedUNet
        >>> isinstance(LabelConditionedUNet(channels=(4, 8)), LabelConditionedNetwork)
        True
        >>> isinstance(lambda x: x, LabelConditionedNetwork)
        False
    """

    stride: int
    depends_on_box: bool
    stitches: bool

    def encode(self, image: Tensor, atlas_image: Tensor, /) -> Features:
        """Compute the label-independent features of windows ``(B, C, *spatial)``."""

    def decode_boxes(
        self,
        features: Features,
        masks: Sequence[Mask],
        boxes: Sequence[Box],
        *,
        halo: int | str,
        room: float | None,
        wanted: Collection[int] | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of each of N masks of the first window, and its logits ``(*size)`` in its box.

        Args:
            features: from :meth:`encode`.
            masks: N atlas masks of the window, in voxels of the padded window.
            boxes: N boxes, inside the window.
            halo: how far crops reach beyond a box, ``"exact"`` or voxels; see
                :meth:`monai_lcs.networks.LabelConditionedUNet.decode`.
            room: about how many voxels to decode at a time.
            wanted: the numbers of the masks to answer, all by default; the others, which other processes answer, must
                not change the answer.
        """
