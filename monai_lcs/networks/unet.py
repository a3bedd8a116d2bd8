"""The label conditioned U-Net: encode an image once, decode it for any label."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from monai.networks.layers.factories import Conv, Pool
from monai.utils import UpsampleMode, look_up_option
from torch import Tensor, nn

from monai_lcs.boxes import (
    Box,
    batch_neighbors,
    batch_rounded_sizes,
    batch_sizes,
    crop,
    crop_pyramid,
    pad,
    pad_end,
    reach_out,
    scale,
    shift,
    size_of,
    whole_box,
)
from monai_lcs.networks.atlas_attention import AtlasAttention
from monai_lcs.networks.blocks import Block, UpConvolution, norm_name, up
from monai_lcs.networks.crops import CropSource, Mask, check_halo, crop_source, gather, pool_times, recrop

__all__ = ["Features", "LabelConditionedUNet"]

CONDITIONINGS = ("bottleneck", "multiscale", "shared")
BOX_NORMS = ("instance", "instance_nvfuser", "group", "layer")  # their statistics are those of the box
OUTSIDE = -20.0  # logit where a label cannot be: a probability of 2e-9, finite in half precision
BOX_MULTIPLE = 8  # sizes of boxes are rounded up to a multiple of it where the logits depend on the box

SLAB = 32  # voxels along the first axis in which labels that share their decoder are decoded together

BlockMaker = Callable[..., Block]  # from label channels, shared channels, width and, if any, dropout
UpMaker = Callable[[int, int], nn.Module]  # from the channels of input and output


@dataclass(frozen=True)
class Features:
    """The label-independent features of a window, from :meth:`LabelConditionedUNet.encode`.

    Attributes:
        levels: ``(B, C_i, *padded_spatial / 2**i)`` for each level ``i`` that the label-dependent part takes.
        spatial_shape: spatial shape of the window before it was padded.

    Example:
        >>> features = LabelConditionedUNet(2, channels=(4, 8)).encode(*torch.rand(2, 1, 1, 9, 10))
        >>> [tuple(level.shape) for level in features.levels], features.spatial_shape
        ([(1, 4, 10, 10), (1, 8, 5, 5)], (9, 10))
    """

    levels: tuple[Tensor, ...]
    spatial_shape: tuple[int, ...]


class LabelConditionedUNet(nn.Module):
    """U-Net that segments, in one output channel, the label whose atlas mask it is given.

    Ma, Lee, Sabuncu: "Label conditioned segmentation", MIDL 2022, https://arxiv.org/abs/2203.10091.
    The encoder sees the image alone. The atlas image and the atlas mask of the requested label are max-pooled to the
    bottleneck's size and concatenated there; the decoder predicts this label. The defaults are the paper's: two 3x3x3
    convolutions with batch norm and ReLU at each level, max-pooling down, nearest up-sampling and a convolution with
    ReLU up, dropout between the two convolutions of the bottleneck, and a 1x1x1 head that gives logits. What differs,
    and what is known of the widths, is in ``docs/paper.md``.

    With ``conditioning="shared"`` the image passes through encoder *and* decoder, and so does the atlas image, once for
    all labels. The voxels of the image then look for their like among the atlas voxels around them and take their
    labels (:class:`monai_lcs.networks.atlas_attention.AtlasAttention`). No weight knows of labels, and many labels take
    hardly more time than one.

    Any spatial size works: the input is padded at its end, with the values of its edge, to a multiple of
    :attr:`stride`. On a CPU, 3D convolutions are up to twice as fast after
    ``net.to(memory_format=torch.channels_last_3d)``.

    Args:
        spatial_dims: 2 or 3.
        image_channels: channels of the image.
        atlas_channels: channels of the atlas image, 0 or more.
        channels: width of each level, at least two; the last is the bottleneck's.
        conditioning: where the network sees the label: ``"bottleneck"``; ``"multiscale"``: at every decoder level as
            well, pooled to that level's size; ``"shared"``: after the decoder, which all labels share; ``None``:
            nowhere, a plain multi-channel U-Net.
        out_channels: output channels of the plain U-Net (``conditioning=None``); otherwise 1.
        dropout: probability of dropout between the two convolutions of the bottleneck.
        act: activation, as MONAI names it.
        norm: normalization, as MONAI names it; ``None`` for none.
        upsample: ``"nontrainable"`` (nearest, then a 3x3x3 convolution) or ``"deconv"`` (transposed convolution, kernel
            3 and stride 2).
        up_activation: whether the activation follows each up-sampling convolution, as in the paper. It has no weights
            of its own: weights fit both, and belong to the one that they were trained with.
        residual: concatenate the input of every block to its output.
        prior_logit: added to the logit inside the atlas mask and subtracted outside, so that training starts from the
            propagated label instead of from nothing; 0, as in the paper, for none. Of a soft mask its logit is added,
            but not more than this and not less than its negative. Not used with ``conditioning="shared"``: there,
            training starts from it anyway.

    Attributes:
        stride: the sizes of an input are padded to a multiple of it.
        stitches: whether the features of neighboring windows can be blended before any label is decoded. This holds for
            ``conditioning="shared"``, whose features are all at full resolution.
        competes: whether the probabilities of labels that do not overlap add up to 1 at most, so that a label may be
            the best with less than a half. This holds for ``conditioning="shared"``.
        depends_on_box: whether the logits in a box depend on the box, because the label-dependent part normalizes over
            it (instance or group norm). Then decode the same boxes in training and at inference.

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
        up_activation: bool = True,
    ) -> None:
        super().__init__()
        _check_arguments(spatial_dims, image_channels, atlas_channels, channels, conditioning, out_channels)
        self.spatial_dims = spatial_dims
        self.image_channels = image_channels
        self.atlas_channels = atlas_channels if conditioning else 0
        self.conditioning = conditioning
        self.prior_logit = prior_logit
        self.channels = tuple(channels)
        self.depth = len(channels) - 1
        self.stride = 2**self.depth
        self.decodes_by_label = conditioning in ("bottleneck", "multiscale")
        self.depends_on_box = self.decodes_by_label and norm_name(norm) in BOX_NORMS
        self.stitches = self.competes = conditioning == "shared"

        def block(label_channels: int, shared_channels: int, width: int, dropout: float = 0.0) -> Block:
            return Block(spatial_dims, label_channels, shared_channels, width, act, norm, residual, dropout)

        def going_up(in_channels: int, out_channels: int) -> nn.Module:
            return up(spatial_dims, in_channels, out_channels, upsample, act if up_activation else None)

        upsample = look_up_option(upsample, (UpsampleMode.NONTRAINABLE, UpsampleMode.DECONV))
        self.pool = Pool[Pool.MAX, spatial_dims](kernel_size=2)
        skip_channels = self._add_encoder(block)
        in_channels = self._add_decoder(block, going_up, skip_channels, dropout)
        if conditioning == "shared":
            self.attention = AtlasAttention(spatial_dims, in_channels[-1], max(8, channels[0]))
        else:
            self.head = Conv[Conv.CONV, spatial_dims](in_channels[-1], out_channels, kernel_size=1)

    def _add_encoder(self, block: BlockMaker) -> list[int]:
        """Add the encoder's blocks; return the channels of each level's skip connection."""
        self.encoder = nn.ModuleList()
        width_in = self.image_channels
        skip_channels = []
        for width in self.channels[:-1]:
            encoder_block = block(0, width_in, width)
            self.encoder.append(encoder_block)
            width_in = encoder_block.out_channels
            skip_channels.append(width_in)
        return skip_channels

    def _add_decoder(
        self, block: BlockMaker, going_up: UpMaker, skip_channels: Sequence[int], dropout: float
    ) -> list[int]:
        """Add bottleneck and decoder; return the output channels of each of their blocks, from the coarsest level."""
        atlas = self.atlas_channels if self.decodes_by_label else 0
        self.bottleneck = block(int(self.decodes_by_label), skip_channels[-1] + atlas, self.channels[-1], dropout)
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()  # from the coarsest level to the finest
        out_channels = [self.bottleneck.out_channels]
        at_every_level = self.conditioning == "multiscale"
        for width, skip in zip(reversed(self.channels[:-1]), reversed(skip_channels), strict=True):
            self.up.append(going_up(out_channels[-1], width))
            decoder_block = block(width + at_every_level, skip + (atlas if at_every_level else 0), width)
            self.decoder.append(decoder_block)
            out_channels.append(decoder_block.out_channels)
        return out_channels

    def __prepare_scriptable__(self) -> None:
        """Called by ``torch.jit.script``.

        Raises:
            RuntimeError: always, with what to use instead.
        """
        raise RuntimeError(
            "LabelConditionedUNet cannot be compiled by torch.jit.script: use torch.jit.trace(net, example_inputs),"
            " torch.export.export, or monai.bundle ckpt_export with --use_trace True --input_shape '[1,3,96,96,96]'."
        )

    def forward(
        self,
        x: Tensor,
        boxes: Sequence[Sequence[Box | None]] | None = None,
        halo: int | str = "exact",
        masks: Sequence[Sequence[Mask | Sequence[Mask]]] | None = None,
    ) -> Tensor | list[list[Tensor | None]]:
        """Segment every label whose atlas mask is among the last channels, or among ``masks``.

        Args:
            x: ``(B, image_channels + atlas_channels + K, *spatial)``, the K >= 1 atlas masks last;
                ``(B, image_channels, *spatial)`` for the plain U-Net.
            boxes: where to decode each mask, ``boxes[item][k]``; ``None`` for nowhere. Outside its box the logit is -20
                (probability 2e-9). Everywhere by default.
            halo: see :meth:`decode`.
            masks: the atlas masks where ``x`` has none: ``masks[item][k]`` for each of ``boxes``. The logits are then
                not padded, so that their memory is that of the boxes alone. With ``conditioning="shared"``, ``x`` may
                then have the images of several atlases, and a label as many masks.

        Returns:
            Logits ``(B, K, *spatial)``, one channel for each mask; ``(B, out_channels, *spatial)`` for the plain U-Net.
            With ``masks`` the logits ``[item][k]``, each of the size of its box; ``None`` for nowhere.

        Raises:
            ValueError: When ``x`` has the wrong number of dimensions or channels.
        """
        first_mask = self.image_channels + self.atlas_channels
        self._check_input(x, first_mask + (1 if self.conditioning and masks is None else 0))
        image, channels = x[:, : self.image_channels], x[:, first_mask:]
        if not self.conditioning:
            return self.decode(self.encode(image), None)
        features = self.encode(image, x[:, self.image_channels : first_mask if masks is None else None])
        if boxes is None:
            return self.decode(features, channels)
        if masks is not None:
            return self._decode_each(features, masks, boxes, halo)
        return self._pad_each(features, self._decode_each(features, channels, boxes, halo), boxes)

    def encode(self, image: Tensor, atlas_image: Tensor | None = None) -> Features:
        """Compute the label-independent features: everything that no atlas mask changes.

        These are, for each level, the contribution of the encoder's skip connection and of the atlas image to the
        decoder's first convolution there. With ``conditioning="shared"`` the decoder is label-independent as well, and
        its output is what is returned.

        Args:
            image: ``(B, image_channels, *spatial)``.
            atlas_image: ``(B, atlas_channels, *spatial)``; ignored by the plain U-Net. With ``conditioning="shared"``
                also the images of several atlases, one after the other: voxels then look for their like in all.

        Raises:
            ValueError: When the atlas image is missing, or has another number of channels.
        """
        self._check_atlas_image(atlas_image)
        for going_up in self.up:
            if isinstance(going_up, UpConvolution):
                going_up.prepare()
        spatial_shape = tuple(image.shape[2:])
        if self.conditioning == "shared" and atlas_image is not None:
            return Features((self._queries_and_keys(image, atlas_image),), spatial_shape)
        levels = self._encode_levels(image, atlas_image)
        if self.decodes_by_label:
            return Features(tuple(levels), spatial_shape)
        return Features((self._decode_for_all_labels(levels),), spatial_shape)

    def decode(
        self, features: Features, masks: Tensor | None, box: Box | None = None, halo: int | str = "exact"
    ) -> Tensor:
        """Compute the label-dependent part, in the whole window or in a box of it.

        A box is decoded from crops of the features. At each level the crop reaches beyond the box, never beyond the
        window.

        Args:
            features: from :meth:`encode`.
            masks: ``(B, K, *spatial)`` of any dtype, the K >= 1 atlas masks; ``None`` for the plain U-Net.
            box: one slice for each spatial axis. The whole window by default.
            halo: by how many voxels the crop of a level exceeds what the level above takes of it. ``"exact"`` is 3, all
                that its convolutions see: the logits then equal the window's up to rounding, unless
                :attr:`depends_on_box`. Less is cheaper; convolutions then see zeros at the border of the crop.

        Returns:
            Logits ``(B, K, *spatial)`` inside the box. Their cost grows with B, K and the box.

        Raises:
            ValueError: When the box is not inside the window, or the masks do not have its shape.
        """
        if not self.conditioning:
            return crop(self.head(features.levels[0]), whole_box(features.spatial_shape))
        masks = self._check_masks(masks, features.spatial_shape)
        batch, count = masks.shape[:2]
        items = [item for item in range(batch) for _ in range(count)]
        boxes = [box or whole_box(features.spatial_shape)] * len(items)
        answers = dict(self.decode_boxes(features, list(masks.flatten(0, 1)), boxes, items, halo, room=math.inf))
        return torch.stack([answers[i] for i in range(len(items))]).unflatten(0, (batch, count))

    def decode_boxes(
        self,
        features: Features,
        masks: Sequence[Tensor | Mask | Sequence[Mask]],
        boxes: Sequence[Box],
        items: Sequence[int] | None = None,
        halo: int | str = "exact",
        room: float | None = None,
        wanted: Collection[int] | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Decode N labels as :meth:`decode` does, each in a box of its own; boxes of similar sizes make one batch.

        Args:
            features: from :meth:`encode`.
            masks: N atlas masks ``(*spatial)`` of the window, or the same masks cropped, see
                :class:`monai_lcs.networks.crops.Mask`; where several atlases were encoded, N lists of cropped masks.
            boxes: N boxes.
            items: for each label, the index in the batch; the first by default.
            halo: see :meth:`decode`.
            room: the most voxels to decode at a time, an eighth of the window by default, and no limit with
                ``conditioning="shared"``. One label may exceed it where its decoder cannot be divided.
            wanted: the numbers of the labels to decode, all by default. The others only take their place: a batch
                without any wanted one is not computed.

        Yields:
            The number of a label and its logits, of the size of its box, as soon as its batch is done.

        Raises:
            ValueError: When a box is not inside the window, or a label has not as many masks as there are atlases.

        Example:
            >>> net = LabelConditionedUNet(2, channels=(4, 8))
            >>> features = net.encode(*torch.rand(2, 1, 1, 16, 16))
            >>> masks, boxes = torch.ones(2, 16, 16), [(slice(0, 4), slice(0, 4)), (slice(5, 10), slice(8, 16))]
            >>> dict(sorted((i, tuple(logits.shape)) for i, logits in net.decode_boxes(features, list(masks), boxes)))
            {0: (4, 4), 1: (5, 8)}
        """
        _check_boxes(boxes, features.spatial_shape)
        window = tuple(features.levels[0].shape[2:])
        room = room or (math.inf if self.conditioning == "shared" else math.prod(window) / 8)
        sources = [] if self.conditioning == "shared" else [crop_source(level) for level in features.levels]
        for chosen, size in self.batches(boxes, window, room):
            if wanted is not None and not any(i in wanted for i in chosen):
                continue
            cropped = [self._crop_mask(masks[i], window) for i in chosen]
            of_items = [items[i] if items else 0 for i in chosen]
            if self.conditioning == "shared":
                wide = [boxes[i] for i in chosen]
                answers = self.attention(features.levels[0], of_items, cropped, wide, features.spatial_shape)
            else:
                crops = [reach_out(boxes[i], 0, window, size) for i in chosen]
                logits = self._decode_levels(features, sources, cropped, crops, of_items, check_halo(halo))
                inside = [shift(boxes[i], around) for i, around in zip(chosen, crops, strict=True)]
                answers = [answer[0][box] for answer, box in zip(logits, inside, strict=True)]
            for i, answer in zip(chosen, answers, strict=True):
                if wanted is None or i in wanted:
                    yield i, answer

    def _decoder_blocks(self) -> list[Block]:
        """The decoder's blocks from the finest level to the bottleneck."""
        return cast(list[Block], [*reversed(self.decoder), self.bottleneck])

    def _encode_levels(self, image: Tensor, atlas_image: Tensor | None) -> list[Tensor]:
        """The encoder: what each level contributes to the decoder's block there, the bottleneck's last."""
        x = pad_end(image, self.stride)
        atlas = None
        if self.decodes_by_label and self.atlas_channels and atlas_image is not None:
            atlas = pad_end(atlas_image, self.stride)
        levels = []
        encoder = cast(list[Block], [*self.encoder])
        for level, block in enumerate(self._decoder_blocks()):
            skip = x
            if level < self.depth:
                skip = encoder[level].plain(x)
                x = self.pool(skip)
            pooled = None
            if atlas is not None and (level == self.depth or self.conditioning == "multiscale"):
                pooled = pool_times(self.pool, atlas, level).to(skip.dtype)
            levels.append(block.share(skip, pooled))
            del skip  # a full volume that nothing needs any more
        return levels

    def _queries_and_keys(self, image: Tensor, atlas_image: Tensor) -> Tensor:
        """What image and atlas images give to the attention, ``(B, (1 + atlases) * width, *spatial)``.

        In training all pass at once: batch norm has statistics of both. Otherwise one passes after the other, so that
        there is one volume of features at a time.
        """
        volumes = [image, *atlas_image.to(image.dtype).split(self.atlas_channels, dim=1)]
        if self.training:
            features = self._decode_for_all_labels(self._encode_levels(torch.cat(volumes), None))
            return self.attention.share(features.chunk(len(volumes)), len(volumes))
        one_by_one = (self._decode_for_all_labels(self._encode_levels(x, None)) for x in volumes)
        return self.attention.share(one_by_one, len(volumes))

    def _decode_for_all_labels(self, levels: list[Tensor]) -> Tensor:
        """The decoder without any label; it removes the levels as it goes, to free their memory."""
        x = self.bottleneck(levels.pop())
        for going_up, block in zip(self.up, self.decoder, strict=True):
            x = block(levels.pop(), going_up(x))
        return x

    def _decode_each(
        self,
        features: Features,
        masks: Tensor | Sequence[Sequence[Mask | Sequence[Mask]]],
        boxes: Sequence[Sequence[Box | None]],
        halo: int | str,
    ) -> list[list[Tensor | None]]:
        """Decode each mask in its box, ``[item][k]``; ``None`` for nowhere."""
        asked = {(i, k): box for i, of_item in enumerate(boxes) for k, box in enumerate(of_item) if box is not None}
        numbers = list(asked)
        chosen, items = [masks[i][k] for i, k in numbers], [i for i, _ in numbers]
        logits: list[list[Tensor | None]] = [[None] * len(of_item) for of_item in boxes]
        for n, answer in self.decode_boxes(features, chosen, list(asked.values()), items, halo):
            i, k = numbers[n]
            logits[i][k] = answer
        return logits

    def _pad_each(
        self,
        features: Features,
        logits: Sequence[Sequence[Tensor | None]],
        boxes: Sequence[Sequence[Box | None]],
    ) -> Tensor:
        """Pad logits in boxes to the window, ``(B, K, *spatial)``."""
        shape = features.spatial_shape
        nowhere = features.levels[0].new_full(shape, OUTSIDE)
        if all(answer is None for of_item in logits for answer in of_item):
            # A training step needs a gradient; processes that train together wait for that of every weight
            nowhere = nowhere + 0 * sum(weight.sum() for weight in self.parameters())
        padded = [
            nowhere if answer is None or box is None else pad(answer, box, shape, OUTSIDE)
            for of_item in zip(logits, boxes, strict=True)
            for answer, box in zip(*of_item, strict=True)
        ]
        return torch.stack(padded).unflatten(0, (len(boxes), -1))

    def batches(
        self, boxes: Sequence[Box], window: Sequence[int], room: float
    ) -> list[tuple[list[int], tuple[int, ...]]]:
        """Which boxes :meth:`decode_boxes` decodes together, and in crops of which size.

        Args:
            boxes: N boxes.
            window: shape of the padded window.
            room: see :meth:`decode_boxes`.

        Example:
            >>> net = LabelConditionedUNet(2, channels=(4, 8))
            >>> net.batches([(slice(0, 4), slice(0, 4)), (slice(5, 9), slice(8, 12))], (16, 16), room=100)
            [([1, 0], (4, 4))]
        """
        if self.conditioning == "shared":
            return batch_neighbors(boxes, room, thick=None if math.isinf(room) else SLAB)
        sizes = [size_of(box) for box in boxes]
        if self.depends_on_box:
            return batch_rounded_sizes(sizes, window, room, BOX_MULTIPLE)
        return batch_sizes(sizes, room)

    def _decode_levels(
        self,
        features: Features,
        sources: Sequence[Tensor | CropSource],
        masks: Sequence[Mask],
        boxes: Sequence[Box],
        items: Sequence[int],
        reach: int,
    ) -> Tensor:
        """The decoder, from the coarsest level to the finest: logits ``(N, 1, *size)`` in boxes of the same size."""
        outer, inner = crop_pyramid(boxes, features.levels[0].shape[2:], self.depth, reach)
        blocks = self._decoder_blocks()
        x: Tensor | None = None
        for level in reversed(range(self.depth + 1)):
            pooled = None
            if x is None or self.conditioning == "multiscale":
                pooled = self._pooled_masks(masks, outer[level], level, features.levels[level].dtype)
            if x is not None:
                going_up = self.up[self.depth - 1 - level]
                x = recrop(going_up(x), [scale(box, 2) for box in inner[level + 1]], outer[level])
            own = (pooled,) if x is None else (x, pooled)
            x = recrop(blocks[level](gather(sources[level], items, outer[level]), *own), outer[level], inner[level])
        logits = self.head(x)
        if not self.prior_logit:
            return logits
        shares = self._pooled_masks(masks, boxes, 0, logits.dtype).clamp(0, 1)  # beyond them the logit is NaN
        votes = (shares / (1 - shares)).log()  # torch.logit takes six times as long
        return logits + self.prior_logit * (votes / abs(self.prior_logit)).clamp(-1, 1)

    def _pooled_masks(self, masks: Sequence[Mask], boxes: Sequence[Box], level: int, dtype: torch.dtype) -> Tensor:
        """Max-pool the masks to a level and crop them to their boxes there, ``(N, 1, *size)``."""
        return Mask.inside([mask.pooled(self.pool, level, dtype) for mask in masks], boxes, dtype)

    def _crop_mask(self, mask: Tensor | Mask | Sequence[Mask], window: tuple[int, ...]) -> Any:
        """Pad the mask as the window was padded, and crop it to its bounding box."""
        if not isinstance(mask, Tensor):
            return mask
        if tuple(mask.shape) != window:
            mask = pad_end(mask[None, None].float(), self.stride)[0, 0]
        return Mask.of(mask)

    def _check_input(self, x: Tensor, at_least: int) -> None:
        wrong = x.shape[1] < at_least if self.conditioning else x.shape[1] != at_least
        if x.ndim != self.spatial_dims + 2 or wrong:
            channels = f"{at_least} or more" if self.conditioning else at_least
            raise ValueError(
                f"The input must be (B, C, *spatial) with {self.spatial_dims} spatial axes and {channels} channels"
                f" (image {self.image_channels}, atlas image {self.atlas_channels}, one for each mask),"
                f" got shape {tuple(x.shape)}."
            )

    def _check_atlas_image(self, atlas_image: Tensor | None) -> None:
        if not self.atlas_channels:
            return
        count = 0 if atlas_image is None else atlas_image.shape[1]
        several = self.conditioning == "shared" and count > 0 and count % self.atlas_channels == 0
        if count != self.atlas_channels and not several:
            got = None if atlas_image is None else tuple(atlas_image.shape)
            raise ValueError(f"`atlas_image` must have {self.atlas_channels} channels, got shape {got}.")

    def _check_masks(self, masks: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        if masks is None or masks.ndim != self.spatial_dims + 2 or tuple(masks.shape[2:]) != shape:
            got = None if masks is None else tuple(masks.shape)
            raise ValueError(f"`masks` must be (B, K, {', '.join(map(str, shape))}) as the features are, got {got}.")
        return masks


def _check_boxes(boxes: Sequence[Box], shape: tuple[int, ...]) -> None:
    for box in boxes:
        for axis, limit in zip(box, shape, strict=True):
            if not 0 <= axis.start < axis.stop <= limit:
                raise ValueError(f"`box` must lie inside the window {shape}, got {box}.")


def _check_arguments(
    spatial_dims: int,
    image_channels: int,
    atlas_channels: int,
    channels: Sequence[int],
    conditioning: str | None,
    out_channels: int,
) -> None:
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
        if conditioning == "shared" and atlas_channels != image_channels:
            raise ValueError(
                "With conditioning 'shared' the image is compared with the atlas image, so that they must have the same"
                f" number of channels, got {image_channels} and {atlas_channels}."
            )
        if out_channels != 1:
            raise ValueError(f"`out_channels` must be 1 with conditioning {conditioning!r}, got {out_channels}.")
