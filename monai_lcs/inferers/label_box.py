"""Decode each label in its own box, as in training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from monai_lcs.boxes import Box, grow_box, label_boxes, mask_box, union_box, whole_box
from monai_lcs.inferers.atlas_masks import AtlasMasks, count_label_channels
from monai_lcs.inferers.label_sweep import check_input
from monai_lcs.inferers.margin import check_margin, margin_voxels
from monai_lcs.losses import LabelBoxLogits
from monai_lcs.networks import check_halo

__all__ = ["LabelBoxInferer"]


class LabelBoxInferer(Inferer):
    """Encode each image once and decode every label in its own box: the inferer for training.

    One encoding serves K labels, and the cost of a label is that of its box. There are two ways to say which labels:

    - ``groups`` of ids, drawn by ``RandSelectLabelsd(masks=False)``, beside the atlas label map. Masks and logits are
      those of the boxes alone, and :class:`monai_lcs.losses.LabelBoxLoss` is the loss. MONAI's trainer passes them with
      ``prepare_batch=PrepareBatchExtraInput({"groups": "selected_labels"})`` and needs ``decollate=False``.
    - K atlas masks as channels, drawn by ``RandSelectLabelsd()``. The logits are volumes as well, for any loss. Outside
      its box a logit is -20 (probability 2e-9), so that the loss still counts the voxels of the target there.

    Args:
        margin_mm: half-width of what is added around the atlas mask; ``None`` for the whole image. Use the same value
            in :class:`LabelSweepInferer`: where the logits depend on the box, the margin is part of the model.
        halo: see :meth:`monai_lcs.networks.LabelConditionedUNet.decode`. Use the same value there as well.
        image_channels: channels of the image, which come first.
        atlas_channels: channels of the atlas image, which come next; the rest are atlas masks, or the atlas label map.
        votes: with ``groups``: whether the rest are votes, as for :class:`LabelSweepInferer`.
        bfloat16: call the network under ``torch.autocast`` in bfloat16. On a CPU with AMX instructions, wide
            convolutions are then faster; without them all may be far slower. Logits are float32.

    Raises:
        ValueError: When an argument is out of range.

    Example:
        >>> import torch
        >>> from monai_lcs.networks import LabelConditionedUNet
        >>> net = LabelConditionedUNet(spatial_dims=2, channels=(4, 8))
        >>> atlas_labels = torch.zeros(1, 1, 20, 20)
        >>> atlas_labels[..., 4:9, 4:9], atlas_labels[..., 4:9, 9:11] = 17, 53
        >>> inputs = torch.cat([torch.rand(1, 2, 20, 20), atlas_labels], dim=1)
        >>> pred = LabelBoxInferer(margin_mm=2)(inputs, net, groups=torch.tensor([[[17, 0], [17, 53]]]))
        >>> [(one.ids, tuple(one.logits.shape)) for one in pred]
        [((17,), (9, 9)), ((17, 53), (9, 11))]
        >>> masks = (atlas_labels == torch.tensor([17, 53]).view(1, 2, 1, 1)).float()
        >>> LabelBoxInferer(margin_mm=2)(torch.cat([inputs[:, :2], masks], dim=1), net).shape
        torch.Size([1, 2, 20, 20])
    """

    def __init__(
        self,
        margin_mm: float | None = None,
        halo: int | str = "exact",
        image_channels: int = 1,
        atlas_channels: int = 1,
        votes: bool = False,
        bfloat16: bool = False,
    ) -> None:
        super().__init__()
        check_margin(margin_mm)
        check_halo(halo)
        self.margin_mm = margin_mm
        self.halo = halo
        self.image_channels = image_channels
        self.atlas_channels = atlas_channels
        self.first_mask = image_channels + atlas_channels
        self.votes = votes
        self._bfloat16 = bfloat16  # no property of a training: it may go on with or without

    def __call__(
        self, inputs: Tensor, network: Callable[..., Any], *args: Any, groups: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Predict the labels of ``groups``, or every label whose atlas mask is among the last channels.

        Args:
            inputs: ``(B, image + atlas image + 1, *spatial)``, the atlas label map last, or the channels of several
                atlases, as :class:`LabelSweepInferer` takes them; without ``groups``
                ``(B, image + atlas image + K, *spatial)``, the atlas masks last.
            network: takes ``inputs``; with a margin also ``boxes`` and ``halo``, with groups also ``masks``, as
                :class:`~monai_lcs.networks.LabelConditionedUNet` does.
            *args: passed to the network where there is neither margin nor groups.
            groups: ``(B, K, L)``, the ids of K labels or unions of each image, each filled up with 0.
            **kwargs: as ``args``.

        Returns:
            A list of B * K :class:`monai_lcs.losses.LabelBoxLogits`; without ``groups`` logits ``(B, K, *spatial)``.

        Raises:
            ValueError: When the atlas label map is none, or no label of ``groups`` is in it.
        """
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs  # metadata cost time at every layer
        # Through forward, where wrappers such as DistributedDataParallel expect the call
        if groups is not None:
            return self._decode_groups(inputs, plain, network, groups)
        if self.margin_mm is not None:
            args, kwargs = (), {"boxes": self.boxes(inputs), "halo": self.halo}
        with self._precision(inputs):
            logits = network(plain, *args, **kwargs)
        return logits.float() if self._bfloat16 else logits

    def _precision(self, inputs: Tensor) -> AbstractContextManager[Any]:
        return torch.autocast(inputs.device.type, torch.bfloat16) if self._bfloat16 else nullcontext()

    def boxes(self, inputs: Tensor) -> list[list[Box | None]]:
        """Find the box of every mask, ``boxes[item][k]``; ``None`` for an empty mask.

        Example:
            >>> import torch
            >>> inputs = torch.zeros(1, 4, 1, 9)  # image, atlas image, two masks
            >>> inputs[:, 2, :, 4] = 1
            >>> LabelBoxInferer(margin_mm=2).boxes(inputs)
            [[(slice(0, 1, None), slice(2, 7, None)), None]]
        """
        masks = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        return [
            self._grow(map(mask_box, masks_of_item), inputs, item)
            for item, masks_of_item in enumerate(masks[:, self.first_mask :])
        ]

    def _grow(self, boxes: Iterable[Box | None], inputs: Tensor, item: int) -> list[Box | None]:
        """The boxes of masks, grown by the margin."""
        shape = inputs.shape[2:]
        if self.margin_mm is None:
            return [box and whole_box(shape) for box in boxes]
        margin = margin_voxels(self.margin_mm, inputs, item)
        return [box and grow_box(box, margin, shape) for box in boxes]

    def _decode_groups(
        self, inputs: Tensor, plain: Tensor, network: Callable[..., Any], groups: Tensor
    ) -> list[LabelBoxLogits]:
        """Predict each group in its box."""
        label_channels = count_label_channels(plain.shape[1], self.image_channels, self.atlas_channels, self.votes)
        check_input(plain, self.image_channels, label_channels, self.votes)
        atlases = 1 if self.votes or label_channels == 1 else label_channels - 1
        channels = self.image_channels + atlases * self.atlas_channels + label_channels
        if plain.shape[1] != channels or groups.ndim != 3 or len(groups) != len(plain):
            raise ValueError(
                f"`groups` must be (B, K, L), and the input (B, {channels}, *spatial) with the atlas label"
                " map at its end (of A atlases: their images, their A label maps and that of their vote), got shapes"
                f" {tuple(groups.shape)} and {tuple(plain.shape)}."
            )
        asked = [[tuple(i for i in row if i) for row in of_item] for of_item in groups.tolist()]
        votes = plain[:, -label_channels:]
        tight = [_group_boxes(of_item[-1], groups) for of_item, groups in zip(votes, asked, strict=True)]
        if not any(box for of_item in tight for box in of_item):
            raise ValueError(f"The atlas label maps of this step hold none of the groups {asked}.")
        boxes = [self._grow(of_item, inputs, item) for item, of_item in enumerate(tight)]
        masks_of = [AtlasMasks(of_item, self.votes) for of_item in votes]
        masks = [[of.of(ids) for ids in groups] for of, groups in zip(masks_of, asked, strict=True)]
        with self._precision(inputs):
            logits = network(plain[:, :-label_channels], boxes=boxes, halo=self.halo, masks=masks)
        return [
            LabelBoxLogits(item, ids, box, x.float() if self._bfloat16 and x is not None else x)
            for item, of_item in enumerate(zip(asked, boxes, logits, strict=True))
            for ids, box, x in zip(*of_item, strict=True)
        ]


def _group_boxes(label_map: Tensor, groups: Sequence[tuple[int, ...]]) -> list[Box | None]:
    """The bounding box of each group; ``None`` for one that the label map lacks."""
    found = label_boxes(label_map)
    boxes = [[found[i] for i in ids if i in found] for ids in groups]
    return [union_box(of_group) if of_group else None for of_group in boxes]
