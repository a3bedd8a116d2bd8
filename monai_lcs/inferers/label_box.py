"""Decode each label in its own box, as in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from monai_lcs.boxes import Box, grow_box, mask_box
from monai_lcs.inferers.margin import check_margin, margin_voxels
from monai_lcs.networks import check_halo

__all__ = ["LabelBoxInferer"]


class LabelBoxInferer(Inferer):
    """Encode each image once and decode every mask in its own box: the inferer for training.

    One encoding serves K labels, and the cost of a label is that of its box. Outside the box the logit is -20
    (probability 2e-9), so that the loss still counts the voxels of the target there.

    Args:
        margin_mm: half-width of what is added around the atlas mask; ``None`` for the whole image. Use the same value
            in :class:`LabelSweepInferer`: where the logits depend on the box, the margin is part of the model.
        halo: see :meth:`monai_lcs.networks.LabelConditionedUNet.decode`. Use the same value there as well.
        image_channels: channels of the image, which come first.
        atlas_channels: channels of the atlas image, which come next; the rest are atlas masks.

    Raises:
        ValueError: When an argument is out of range.

    Example:
        >>> import torch
        >>> from monai_lcs.networks import LabelConditionedUNet
        >>> net = LabelConditionedUNet(spatial_dims=2, channels=(4, 8))
        >>> masks = torch.zeros(1, 3, 20, 20)
        >>> masks[:, :, 4:9, 4:9] = 1
        >>> LabelBoxInferer(margin_mm=4)(torch.cat([torch.rand(1, 2, 20, 20), masks], dim=1), net).shape
        torch.Size([1, 3, 20, 20])
    """

    def __init__(
        self,
        margin_mm: float | None = None,
        halo: int | str = "exact",
        image_channels: int = 1,
        atlas_channels: int = 1,
    ) -> None:
        super().__init__()
        check_margin(margin_mm)
        check_halo(halo)
        self.margin_mm = margin_mm
        self.halo = halo
        self.image_channels = image_channels
        self.first_mask = image_channels + atlas_channels

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Predict every label whose atlas mask is among the last channels.

        Args:
            inputs: ``(B, image + atlas image + K, *spatial)``, the atlas masks last.
            network: takes ``inputs``; with a margin also ``boxes`` and ``halo``, as
                :class:`~monai_lcs.networks.LabelConditionedUNet` does.
            *args: passed to the network where there is no margin.
            **kwargs: likewise.

        Returns:
            Logits ``(B, K, *spatial)``.
        """
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs  # metadata cost time at every layer
        if self.margin_mm is None:
            return network(plain, *args, **kwargs)
        # Through forward, where wrappers such as DistributedDataParallel expect the call
        return network(plain, boxes=self.boxes(inputs), halo=self.halo)

    def boxes(self, inputs: Tensor) -> list[list[Box | None]]:
        """Find the box of every mask, ``boxes[item][k]``; ``None`` for an empty mask.

        Example:
            >>> import torch
            >>> inputs = torch.zeros(1, 4, 1, 9)  # image, atlas image, two masks
            >>> inputs[:, 2, :, 4] = 1
            >>> LabelBoxInferer(margin_mm=2).boxes(inputs)
            [[(slice(0, 1, None), slice(2, 7, None)), None]]
        """
        assert self.margin_mm is not None
        shape = inputs.shape[2:]
        masks = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        boxes = []
        for item, masks_of_item in enumerate(masks[:, self.first_mask :]):
            margin = margin_voxels(self.margin_mm, inputs, item)
            boxes.append([box and grow_box(box, margin, shape) for box in map(mask_box, masks_of_item)])
        return boxes
