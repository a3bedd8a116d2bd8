"""The label conditioned U-Net: encode an image once, decode it for any label."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.networks.layers.factories import Conv, Pool
from monai.utils import UpsampleMode, look_up_option
from torch import Tensor, nn

from monai_lcs.boxes import (
    Box,
    batch_sizes,
    crop_pyramid,
    cut,
    pad_end,
    place,
    reach_out,
    scale,
    shift,
    slabs_of,
)
from monai_lcs.networks.blocks import (
    Block,
    LabelHead,
    Mask,
    UpConvolution,
    gather,
    norm_name,
    recrop,
    up,
)

__all__ = ["Features", "LabelConditionedUNet", "check_halo"]

CONDITIONINGS = ("bottleneck", "multiscale", "shared")
BOX_NORMS = ("instance", "instance_nvfuser", "group", "layer")  # their statistics are the box's
OUTSIDE = -20.0  # logit where a label cannot be: a probability of 2e-9, finite in half precision
EXACT_HALO = 3  # voxels that a level of the decoder looks beyond what it gives: two convolutions, one going up
BOX_MULTIPLE = 8  # sizes of boxes are rounded up to it where the answer depends on the box


@dataclass(frozen=True)
class Features:
    """What :meth:`LabelConditionedUNet.encode` knows of a window, whatever the label.

    Attributes:
        levels: ``(B, C_i, *padded_spatial / 2**i)`` for each level ``i`` that the label-dependent part takes.
        spatial_shape: the window's spatial shape before it was padded.
    """

    levels: tuple[Tensor, ...]
    spatial_shape: tuple[int, ...]


class LabelConditionedUNet(nn.Module):
    """U-Net that segments the label whose atlas mask it is given, in one output channel.

    Ma, Lee, Sabuncu: "Label conditioned segmentation", MIDL 2022, https://arxiv.org/abs/2203.10091.
    The image alone passes through the encoder. The atlas image and the atlas mask of the requested label, max-pooled to
    the bottleneck's size, are concatenated there, and the decoder answers for this label. The defaults are the
    paper's: two 3x3x3 convolutions with batch norm and ReLU at each level, max-pooling down, nearest
    up-sampling and a convolution up, dropout at the bottleneck, a 1x1x1 head that gives logits.

    With ``conditioning="shared"`` image and atlas image pass through encoder *and* decoder together, once for all
    labels, and a label costs only a light part (:class:`monai_lcs.networks.blocks.LabelHead`): many labels take hardly
    more time than one.

    Any spatial size works: the input is padded at its end (edge values) to a multiple of :attr:`stride`. On a CPU, 3D
    convolutions are up to twice as fast after ``net.to(memory_format=torch.channels_last_3d)``.

    Args:
        spatial_dims: 2 or 3.
        image_channels: channels of the image.
        atlas_channels: channels of the atlas image, 0 or more.
        channels: width of each level, the bottleneck's last; at least two.
        conditioning: where the network sees the label: ``"bottleneck"``; ``"multiscale"``: at every decoder level as
            well, pooled to that level's size; ``"shared"``: after a decoder that all labels share; ``None``: nowhere, a
            plain multi-channel U-Net.
        out_channels: output channels of the plain U-Net (``conditioning=None``); otherwise 1.
        dropout: probability of dropout after the bottleneck.
        act: activation, as MONAI names it.
        norm: normalization, as MONAI names it; ``None`` for none.
        upsample: ``"nontrainable"`` (nearest, then a 3x3x3 convolution) or ``"deconv"`` (transposed convolution).
        residual: concatenate the input of every block to its output.
        prior_logit: added to the logit inside the atlas mask and subtracted outside, so that training starts from the
            atlas label carried over instead of from nothing; 0, as in the paper, for none.

    Attributes:
        stride: what an input's sizes are padded to a multiple of.
        stitches: whether features of neighboring windows can be blended before any label is decoded: they
            are those of ``conditioning="shared"``, all at full resolution.
        depends_on_box: whether the answer in a box depends on the box, because the label-dependent part normalizes
            over it (instance or group norm). Then decode the same boxes in training and at inference.

    Raises:
        ValueError: When an argument is out of range.

    Example:
        >>> import torch
        >>> net = LabelConditionedUNet(spatial_dims=3, channels=(4, 8, 16), conditioning="shared")
        >>> image, atlas_image = torch.rand(2, 1, 1, 16, 18, 20)
        >>> masks = torch.ones(1, 3, 16, 18, 20)  # of three labels
        >>> net(torch.cat([image, atlas_image, masks], dim=1)).shape  # one channel of logits for each mask
        torch.Size([1, 3, 16, 18, 20])
        >>> features = net.encode(image, atlas_image)  # once for all labels
        >>> net.decode(features, masks[:, :1]).shape  # once for each label
        torch.Size([1, 1, 16, 18, 20])
        >>> net.decode(features, masks, box=(slice(3, 12), slice(0, 16), slice(8, 20))).shape
        torch.Size([1, 3, 9, 16, 12])
    """

    pool: Any

    def __init__(
        self,
        spatial_dims: int = 3,
        image_channels: int = 1,
        atlas_channels: int = 1,
        channels: Sequence[int] = (32, 64, 128, 256, 512),
        conditioning: str | None = "bottleneck",
        out_channels: int = 1,
        dropout: float = 0.5,
        act: str | tuple = "relu",
        norm: str | tuple | None = "batch",
        upsample: str = "nontrainable",
        residual: bool = False,
        prior_logit: float = 0.0,
    ) -> None:
        super().__init__()
        _check(spatial_dims, image_channels, atlas_channels, channels, conditioning, out_channels)
        self.spatial_dims = spatial_dims
        self.image_channels = image_channels
        self.atlas_channels = atlas_channels if conditioning else 0
        self.conditioning = conditioning
        self.prior_logit = prior_logit
        self.channels = tuple(channels)
        self.depth = len(channels) - 1
        self.stride = 2**self.depth
        by_label = conditioning in ("bottleneck", "multiscale")  # whether the decoder depends on the label
        self.depends_on_box = by_label and norm_name(norm) in BOX_NORMS
        self.stitches = conditioning == "shared"
        upsample = look_up_option(upsample, (UpsampleMode.NONTRAINABLE, UpsampleMode.DECONV))

        def block(label_channels: int, shared_channels: int, width: int) -> Block:
            return Block(spatial_dims, label_channels, shared_channels, width, act, norm, residual)

        self.pool = Pool[Pool.MAX, spatial_dims](kernel_size=2)
        self.encoder = nn.ModuleList()
        skip_channels = [image_channels + (self.atlas_channels if conditioning == "shared" else 0)]
        for width in channels[:-1]:
            encoder_block = block(0, skip_channels[-1], width)
            self.encoder.append(encoder_block)
            skip_channels.append(encoder_block.out_channels)

        atlas = self.atlas_channels if by_label else 0
        self.bottleneck = block(1 if by_label else 0, skip_channels[-1] + atlas, channels[-1])
        self.dropout = nn.Dropout(dropout)
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()  # from the coarsest level to the finest
        in_channels = [self.bottleneck.out_channels]
        at_every_level = conditioning == "multiscale"
        for width, skip in zip(reversed(channels[:-1]), reversed(skip_channels[1:]), strict=True):
            self.up.append(up(spatial_dims, in_channels[-1], width, upsample))
            decoder_block = block(width + at_every_level, skip + (atlas if at_every_level else 0), width)
            self.decoder.append(decoder_block)
            in_channels.append(decoder_block.out_channels)
        if conditioning == "shared":
            self.label_head = LabelHead(spatial_dims, in_channels[-1], in_channels[-2], max(8, channels[0] // 2), act)
        else:
            self.head = Conv[Conv.CONV, spatial_dims](in_channels[-1], out_channels, kernel_size=1)

    def forward(
        self, x: Tensor, boxes: Sequence[Sequence[Box | None]] | None = None, halo: int | str = "exact"
    ) -> Tensor:
        """Segment every label whose atlas mask is among the last channels.

        Args:
            x: ``(B, image_channels + atlas_channels + K, *spatial)``, the K >= 1 atlas masks last;
                ``(B, image_channels, *spatial)`` for the plain U-Net.
            boxes: where to decode each mask, ``boxes[item][k]``, ``None`` for nowhere; the logit is -20 (probability
                2e-9) outside. Everywhere by default.
            halo: see :meth:`decode`.

        Returns:
            Logits ``(B, K, *spatial)``, one channel for each mask; ``(B, out_channels, *spatial)`` for the plain U-Net.

        Raises:
            ValueError: When ``x`` has the wrong number of dimensions or channels.
        """
        first_mask = self.image_channels + self.atlas_channels
        self._check_input(x, first_mask + (1 if self.conditioning else 0))
        image, atlas_image, masks = (
            x[:, : self.image_channels],
            x[:, self.image_channels : first_mask],
            x[:, first_mask:],
        )
        if not self.conditioning:
            return self.decode(self.encode(image), None)
        features = self.encode(image, atlas_image)
        if boxes is None:
            return self.decode(features, masks)
        asked = [(i, k, box) for i, of_item in enumerate(boxes) for k, box in enumerate(of_item) if box is not None]
        shape = masks.shape[2:]
        logits = {}
        for n, answer in self.decode_boxes(
            features, [masks[i, k] for i, k, _ in asked], [box for *_, box in asked], [i for i, *_ in asked], halo
        ):
            i, k, box = asked[n]
            logits[i, k] = place(answer, box, shape, OUTSIDE)
        nowhere = x.new_full(shape, OUTSIDE)
        if not asked:  # a training step wants a gradient all the same
            nowhere = nowhere + 0 * features.levels[0].mean()
        return torch.stack(
            [torch.stack([logits.get((i, k), nowhere) for k in range(len(masks[i]))]) for i in range(len(x))]
        )

    def encode(self, image: Tensor, atlas_image: Tensor | None = None) -> Features:
        """All that no label changes: the encoder, what its skips and the atlas image add to the decoder's
        convolutions, and, where all labels share it, the decoder.

        Args:
            image: ``(B, image_channels, *spatial)``.
            atlas_image: ``(B, atlas_channels, *spatial)``; ignored by the plain U-Net.
        """
        if self.atlas_channels and (atlas_image is None or atlas_image.shape[1] != self.atlas_channels):
            got = None if atlas_image is None else tuple(atlas_image.shape)
            raise ValueError(f"`atlas_image` must have {self.atlas_channels} channels, got shape {got}.")
        for going_up in self.up:
            if isinstance(going_up, UpConvolution):
                going_up.prepare()
        spatial_shape = tuple(image.shape[2:])
        x = pad_end(image, self.stride)
        atlas = pad_end(atlas_image, self.stride) if self.atlas_channels and atlas_image is not None else None
        if self.conditioning == "shared" and atlas is not None:
            x, atlas = torch.cat([x, atlas.to(x.dtype)], dim=1), None
        levels = []
        blocks: list[Any] = [*reversed(self.decoder), self.bottleneck]
        encoder: list[Any] = [*self.encoder]
        for i, block in enumerate(blocks):
            if i < self.depth:
                skip = encoder[i].plain(x)
                x = self.pool(skip)
            else:
                skip = x
            if atlas is not None and (i == self.depth or self.conditioning == "multiscale"):
                skip = torch.cat([skip, _pool(self.pool, atlas, i).to(skip.dtype)], dim=1)
            levels.append(block.share(skip))
            del skip  # a full volume that nothing needs any more
        if self.conditioning in ("bottleneck", "multiscale"):
            return Features(tuple(levels), spatial_shape)
        x = self.dropout(self.bottleneck(levels.pop()))
        coarse = x
        for going_up, block in zip(self.up, self.decoder, strict=True):
            coarse = x
            x = block(levels.pop(), going_up(x))
        if self.conditioning == "shared":
            x = self.label_head.share(x, coarse)
        return Features((x,), spatial_shape)

    def decode(
        self, features: Features, masks: Tensor | None, box: Box | None = None, halo: int | str = "exact"
    ) -> Tensor:
        """All that a label changes, in the whole window or in a box of it.

        A box is decoded from crops of the features that reach beyond it, level by level, never beyond the window.

        Args:
            features: from :meth:`encode`.
            masks: ``(B, K, *spatial)`` of any dtype, the K >= 1 atlas masks; ``None`` for the plain U-Net.
            box: one slice per spatial axis. The whole window by default.
            halo: voxels by which each level's crop reaches beyond what the level above takes of it. ``"exact"``
                (3): all that its convolutions see, so that the answer equals the window's to rounding, unless
                :attr:`depends_on_box`. Less is cheaper: convolutions then see zeros at the crop's border.

        Returns:
            Logits ``(B, K, *spatial)`` inside the box. Their cost grows with B, K and the box.

        Raises:
            ValueError: When the box is not inside the window, or the masks do not have its shape.
        """
        shape = features.spatial_shape
        if not self.conditioning:
            return cut(self.head(features.levels[0]), [slice(0, size) for size in shape])
        if masks is None or masks.ndim != self.spatial_dims + 2 or tuple(masks.shape[2:]) != shape:
            got = None if masks is None else tuple(masks.shape)
            raise ValueError(f"`masks` must be (B, K, {', '.join(map(str, shape))}) as the features are, got {got}.")
        count = masks.shape[1]
        whole = tuple(slice(0, size) for size in shape)
        items = [item for item in range(len(masks)) for _ in range(count)]
        flat = list(masks.flatten(0, 1))
        answers = dict(self.decode_boxes(features, flat, [box or whole] * len(flat), items, halo, room=math.inf))
        return torch.stack([answers[i] for i in range(len(flat))]).unflatten(0, (len(masks), count))

    def decode_boxes(
        self,
        features: Features,
        masks: Sequence[Tensor | Mask],
        boxes: Sequence[Box],
        items: Sequence[int] | None = None,
        halo: int | str = "exact",
        room: float | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """:meth:`decode` for N labels, each in a box of its own; those of about the same size make one batch.

        Args:
            features: from :meth:`encode`.
            masks: N atlas masks ``(*spatial)`` of the window, or where they are not zero, see :class:`Mask`.
            boxes: N boxes.
            items: which of the batch each is asked of; the first by default.
            halo: see :meth:`decode`.
            room: voxels decoded at a time, unless they are of one label whose decoder cannot be cut; an eighth of the
                window's by default.

        Yields:
            As the batches are done, the number of each label and its logits, of the size of its box.
        """
        window = tuple(features.levels[0].shape[2:])
        for box in boxes:
            for axis, limit in zip(box, features.spatial_shape, strict=True):
                if not 0 <= axis.start < axis.stop <= limit:
                    raise ValueError(f"`box` must lie inside the window {features.spatial_shape}, got {box}.")
        room = room or math.prod(window) / 8
        for chosen, size in self._batches(boxes, window, room):
            crops = [reach_out(boxes[i], 0, window, size) for i in chosen]
            logits = self._decode_together(
                features,
                [self._bounded(masks[i], window) for i in chosen],
                crops,
                [items[i] if items else 0 for i in chosen],
                check_halo(halo),
                room,
            )
            for i, crop, answer in zip(chosen, crops, logits, strict=True):
                yield i, answer[0][shift(boxes[i], crop)]

    def _batches(
        self, boxes: Sequence[Box], window: Sequence[int], room: float
    ) -> list[tuple[list[int], tuple[int, ...]]]:
        """Which boxes to decode together, in crops of which size."""
        sizes = [tuple(axis.stop - axis.start for axis in box) for box in boxes]
        if not self.depends_on_box:
            return batch_sizes(sizes, room)
        # The crop must depend on the box alone, not on the others
        together: dict[tuple[int, ...], list[int]] = {}
        for i, size in enumerate(sizes):
            rounded = (min(-(-n // BOX_MULTIPLE) * BOX_MULTIPLE, limit) for n, limit in zip(size, window, strict=True))
            together.setdefault(tuple(rounded), []).append(i)
        return [
            (members[first : first + many], size)
            for size, members in together.items()
            for many in [max(1, int(min(room / math.prod(size), len(members))))]
            for first in range(0, len(members), many)
        ]

    def _decode_together(
        self,
        features: Features,
        masks: Sequence[Mask],
        boxes: Sequence[Box],
        items: Sequence[int],
        reach: int,
        room: float,
    ) -> Tensor:
        """Logits ``(N, 1, *size)`` in boxes of the same size, from masks of the padded window."""
        if self.conditioning == "shared":
            slabs = zip(*(slabs_of(box, room / len(boxes)) for box in boxes), strict=True)
            prototypes = self.label_head.prototypes(features.levels[0], features.spatial_shape, items, masks)
            return torch.cat([self._decode_shared(features, prototypes, items, masks, slab) for slab in slabs], dim=2)
        outer, inner = crop_pyramid(boxes, features.levels[0].shape[2:], self.depth, reach)
        x = None
        blocks = [*reversed(self.decoder), self.bottleneck]
        for i in reversed(range(self.depth + 1)):
            label = []
            if x is not None:
                label.append(recrop(self.up[self.depth - 1 - i](x), [scale(box, 2) for box in inner[i + 1]], outer[i]))
            if x is None or self.conditioning == "multiscale":
                label.append(self._pooled(masks, outer[i], i, features.levels[i].dtype))
            x = torch.cat(label, dim=1) if len(label) > 1 else label[0]
            x = blocks[i](gather(features.levels[i], items, outer[i]), x)
            x = recrop(x if i < self.depth else self.dropout(x), outer[i], inner[i])
        logits = self.head(x)
        return self._add_prior(logits, self._pooled(masks, boxes, 0, logits.dtype) if self.prior_logit else logits)

    def _decode_shared(
        self, features: Features, prototypes: Tensor, items: Sequence[int], masks: Sequence[Mask], boxes: Sequence[Box]
    ) -> Tensor:
        outer = [reach_out(box, LabelHead.REACH, features.levels[0].shape[2:]) for box in boxes]
        logits, mask = self.label_head(features.levels[0], prototypes, items, masks, outer)
        return recrop(self._add_prior(logits, mask), outer, boxes)

    def _pooled(self, masks: Sequence[Mask], boxes: Sequence[Box], level: int, dtype: torch.dtype) -> Tensor:
        """What each mask, max-pooled to a level, is in its box there: ``(N, 1, *size)``."""
        pooled = []
        for mask in masks:
            box = tuple(slice(axis.start >> level, -(-axis.stop >> level)) for axis in mask.box)
            if any(axis.start == axis.stop for axis in box):
                pooled.append(mask)
                continue
            values = Mask.inside([mask], [scale(box, 2**level)], dtype)
            pooled.append(Mask(_pool(self.pool, values, level)[0, 0], box))
        return Mask.inside(pooled, boxes, dtype)

    def _bounded(self, mask: Tensor | Mask, window: tuple[int, ...]) -> Mask:
        """The mask where it is not zero, in the window as it was padded."""
        if not isinstance(mask, Tensor):
            return mask
        if tuple(mask.shape) != window:
            mask = pad_end(mask[None, None].float(), self.stride)[0, 0]
        return Mask.of(mask)

    def _add_prior(self, logits: Tensor, masks: Tensor) -> Tensor:
        return logits + self.prior_logit * (2 * masks - 1) if self.prior_logit else logits

    def _check_input(self, x: Tensor, at_least: int) -> None:
        wrong = x.shape[1] < at_least if self.conditioning else x.shape[1] != at_least
        if x.ndim != self.spatial_dims + 2 or wrong:
            channels = f"{at_least} or more" if self.conditioning else at_least
            raise ValueError(
                f"The input must be (B, C, *spatial) with {self.spatial_dims} spatial axes and {channels} channels"
                f" (image {self.image_channels}, atlas image {self.atlas_channels}, one for each mask),"
                f" got shape {tuple(x.shape)}."
            )


def _pool(pool: nn.Module, x: Tensor, times: int) -> Tensor:
    for _ in range(times):
        x = pool(x)
    return x


def check_halo(halo: int | str) -> int:
    """The halo in voxels of each level; more than is seen changes nothing.

    Raises:
        ValueError: When it is neither ``"exact"`` nor a whole number >= 0.
    """
    if halo == "exact":
        return EXACT_HALO
    if isinstance(halo, str) or halo != int(halo) or halo < 0:
        raise ValueError(f"`halo` must be 'exact' or a whole number >= 0, got {halo!r}.")
    return min(int(halo), EXACT_HALO)


def _check(spatial_dims, image_channels, atlas_channels, channels, conditioning, out_channels) -> None:
    if spatial_dims not in (2, 3):
        raise ValueError(f"`spatial_dims` must be 2 or 3, got {spatial_dims}.")
    if image_channels < 1 or atlas_channels < 0:
        raise ValueError(
            f"`image_channels` must be > 0, `atlas_channels` >= 0, got {image_channels}, {atlas_channels}."
        )
    if len(channels) < 2 or min(channels) < 1:
        raise ValueError(f"`channels` must hold two or more widths > 0, got {tuple(channels)}.")
    if conditioning is not None:
        look_up_option(conditioning, CONDITIONINGS)
        if out_channels != 1:
            raise ValueError(f"`out_channels` must be 1 with conditioning {conditioning!r}, got {out_channels}.")
