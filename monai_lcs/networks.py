"""The label conditioned U-Net: encode an image once, decode it for any label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv, Pool
from monai.utils import UpsampleMode, look_up_option
from torch import Tensor, nn

from .boxes import Box, crop_box, cut, pad_end, shift

__all__ = ["Features", "LabelConditionedUNet"]

CONDITIONINGS = ("bottleneck", "multiscale")
OUTSIDE = -20.0  # logit where a label cannot be: a probability of 2e-9, finite in half precision


@dataclass(frozen=True)
class Features:
    """What :meth:`LabelConditionedUNet.encode` knows of a window, whatever the label.

    Attributes:
        levels: a tensor ``(B, C_i, *padded_spatial / 2**i)`` for each level ``i``, the bottleneck's input last.
        spatial_shape: the window's spatial shape before it was padded.

    Example:
        >>> features = Features((torch.rand(1, 4, 8, 8), torch.rand(1, 4, 4, 4)), spatial_shape=(7, 8))
        >>> crops = [features.crop((slice(0, 4), slice(4, 8))), features.crop((slice(4, 8), slice(0, 4)))]
        >>> [tuple(level.shape) for level in Features.cat(crops).levels]
        [(2, 4, 4, 4), (2, 4, 2, 2)]
    """

    levels: tuple[Tensor, ...]
    spatial_shape: tuple[int, ...]

    def item(self, index: int) -> Features:
        """The features of one item of the batch, as a batch of one."""
        return Features(tuple(level[index : index + 1] for level in self.levels), self.spatial_shape)

    def crop(self, box: Sequence[slice]) -> Features:
        """The features inside a box of the padded window, whose starts and stops are multiples of the stride."""
        stride = 2 ** (len(self.levels) - 1)
        for axis, size in zip(box, self.levels[0].shape[2:], strict=True):
            if axis.start % stride or axis.stop % stride or not 0 <= axis.start < axis.stop <= size:
                window = tuple(self.levels[0].shape[2:])
                raise ValueError(
                    f"`box` must have multiples of {stride} and lie inside the window {window}, got {box}."
                )
        levels = [
            cut(level, [slice(axis.start >> i, axis.stop >> i) for axis in box]) for i, level in enumerate(self.levels)
        ]
        return Features(tuple(levels), tuple(axis.stop - axis.start for axis in box))

    @staticmethod
    def cat(features: Sequence[Features]) -> Features:
        """Features of the same shape as one batch."""
        levels = zip(*(f.levels for f in features), strict=True)
        return Features(tuple(torch.cat(level) for level in levels), features[0].spatial_shape)


class LabelConditionedUNet(nn.Module):
    """U-Net that segments the label whose atlas mask it is given, in one output channel.

    Ma, Lee, Sabuncu: "Label conditioned segmentation", MIDL 2022, https://arxiv.org/abs/2203.10091.
    The image alone passes through the encoder. The atlas image and the atlas mask of the requested label, max-pooled to
    the bottleneck's size, are concatenated there, and the decoder answers for this label. The defaults are the
    paper's: two 3x3x3 convolutions with batch norm and ReLU at each level, max-pooling down, nearest
    up-sampling and a convolution up, dropout at the bottleneck, a 1x1x1 head that gives logits.

    Any spatial size works: the input is padded at its end (edge values) to a multiple of :attr:`stride`.

    Args:
        spatial_dims: 2 or 3.
        image_channels: channels of the image.
        atlas_channels: channels of the atlas image, 0 or more.
        channels: width of each level, the bottleneck's last; at least two.
        conditioning: where the decoder sees the atlas: ``"bottleneck"``; ``"multiscale"``: at every
            decoder level as well, pooled to that level's size; ``None``: nowhere, a plain multi-channel U-Net.
        out_channels: output channels of the plain U-Net (``conditioning=None``); otherwise 1.
        dropout: probability of dropout after the bottleneck.
        act: activation, as MONAI names it.
        norm: normalization, as MONAI names it.
        upsample: ``"nontrainable"`` (nearest, then a 3x3x3 convolution) or ``"deconv"`` (transposed convolution).
        residual: concatenate the input of every block to its output.
        prior_logit: added to the logit inside the atlas mask and subtracted outside, so that training starts from the
            atlas label carried over instead of from nothing; 0, as in the paper, for none.

    Raises:
        ValueError: When an argument is out of range.

    Example:
        >>> import torch
        >>> net = LabelConditionedUNet(spatial_dims=3, channels=(4, 8, 16), conditioning="multiscale")
        >>> image, atlas_image = torch.rand(2, 1, 1, 16, 18, 20)
        >>> masks = torch.ones(1, 3, 16, 18, 20)  # of three labels
        >>> net(torch.cat([image, atlas_image, masks], dim=1)).shape  # one channel of logits for each mask
        torch.Size([1, 3, 16, 18, 20])
        >>> features = net.encode(image, atlas_image)  # once for all labels
        >>> net.decode(features, masks[:, :1]).shape  # once for each label
        torch.Size([1, 1, 16, 18, 20])
        >>> box = (slice(4, 12), slice(0, 16), slice(8, 20))  # multiples of net.stride
        >>> net.decode(features, masks[:, :, 4:12, 0:16, 8:20], box).shape
        torch.Size([1, 3, 8, 16, 12])
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
        norm: str | tuple = "batch",
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
        upsample = look_up_option(upsample, (UpsampleMode.NONTRAINABLE, UpsampleMode.DECONV))

        def block(in_channels: int, width: int) -> _Block:
            return _Block(spatial_dims, in_channels, width, act, norm, residual)

        condition = self.atlas_channels + 1 if conditioning else 0
        self.pool = Pool[Pool.MAX, spatial_dims](kernel_size=2)
        self.encoder = nn.ModuleList()
        skip_channels: list[int] = [image_channels]
        for width in channels[:-1]:
            encoder_block = block(skip_channels[-1], width)
            self.encoder.append(encoder_block)
            skip_channels.append(encoder_block.out_channels)

        self.bottleneck = block(skip_channels[-1] + condition, channels[-1])
        self.dropout = nn.Dropout(dropout)
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()  # from the coarsest level to the finest
        in_channels = self.bottleneck.out_channels
        for width, skip in zip(reversed(channels[:-1]), reversed(skip_channels[1:]), strict=True):
            self.up.append(_up(spatial_dims, in_channels, width, upsample))
            decoder_block = block(width + skip + (condition if conditioning == "multiscale" else 0), width)
            self.decoder.append(decoder_block)
            in_channels = decoder_block.out_channels
        self.head = Conv[Conv.CONV, spatial_dims](in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor, boxes: Sequence[Sequence[Box | None]] | None = None) -> Tensor:
        """Segment every label whose atlas mask is among the last channels.

        Args:
            x: ``(B, image_channels + atlas_channels + K, *spatial)``, the K >= 1 atlas masks last;
                ``(B, image_channels, *spatial)`` for the plain U-Net.
            boxes: where to decode each mask, ``boxes[item][k]``, ``None`` for nowhere; the logit is -20 (probability
                2e-9) outside. Everywhere by default.

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
        if boxes is None:
            return self.decode(self.encode(image, atlas_image), masks)
        return self._decode_boxes(self.encode(image, atlas_image), masks, boxes)

    def _decode_boxes(self, features: Features, masks: Tensor, boxes: Sequence[Sequence[Box | None]]) -> Tensor:
        """Logits ``(B, K, *spatial)``, each mask decoded in its own box, boxes of the same size together."""
        shape = masks.shape[2:]
        masks = pad_end(masks, self.stride)
        logits: dict[tuple[int, int], Tensor] = {}
        together: dict[tuple[int, ...], list[tuple[int, int, Box, Box]]] = {}
        for i, boxes_of_item in enumerate(boxes):
            for k, box in enumerate(boxes_of_item):
                if box is None:
                    logits[i, k] = masks.new_full(shape, OUTSIDE)
                    continue
                crop = crop_box(box, self.stride, masks.shape[2:])
                together.setdefault(tuple(axis.stop - axis.start for axis in crop), []).append((i, k, box, crop))
        for group in together.values():
            crops = Features.cat([features.item(i).crop(crop) for i, _, _, crop in group])
            answers = self.decode(crops, torch.stack([cut(masks[i, k : k + 1], crop) for i, k, _, crop in group]))
            for (i, k, box, crop), answer in zip(group, answers, strict=True):
                sides = [(axis.start, size - axis.stop) for axis, size in zip(box, shape, strict=True)]
                inside = answer[0][shift(box, crop)].to(masks.dtype)
                logits[i, k] = F.pad(inside, [side for pair in reversed(sides) for side in pair], value=OUTSIDE)
        return torch.stack([torch.stack([logits[i, k] for k in range(masks.shape[1])]) for i in range(len(masks))])

    def encode(self, image: Tensor, atlas_image: Tensor | None = None) -> Features:
        """All that no label changes: the encoder's features and the pooled atlas image.

        Args:
            image: ``(B, image_channels, *spatial)``.
            atlas_image: ``(B, atlas_channels, *spatial)``; ignored by the plain U-Net.
        """
        spatial_shape = tuple(image.shape[2:])
        x = pad_end(image, self.stride)
        levels = []
        for block in self.encoder:
            x = block(x)
            levels.append(x)
            x = self.pool(x)
        levels.append(x)
        if self.conditioning and self.atlas_channels:
            if atlas_image is None or atlas_image.shape[1] != self.atlas_channels:
                got = None if atlas_image is None else tuple(atlas_image.shape)
                raise ValueError(f"`atlas_image` must have {self.atlas_channels} channels, got shape {got}.")
            atlas = self._pyramid(pad_end(atlas_image, self.stride))
            for i in range(self.depth + 1) if self.conditioning == "multiscale" else (self.depth,):
                levels[i] = torch.cat([levels[i], atlas[i].to(levels[i].dtype)], dim=1)
        return Features(tuple(levels), spatial_shape)

    def decode(self, features: Features, masks: Tensor | None, box: Sequence[slice] | None = None) -> Tensor:
        """All that a label changes: the bottleneck, the decoder and the head, in the whole window or in a box of it.

        A crop's border sees zeros where the window would have gone on; away from it, by as much as the decoder can see
        (3, 5, 6, 6, 5 voxels at levels 0 to 4), and with a norm that does not look at the crop (batch
        norm in evaluation), the answer equals the window's.

        Args:
            features: from :meth:`encode`, or crops of them, see :class:`Features`.
            masks: ``(B, K, *spatial)`` of any dtype, the K >= 1 atlas masks, inside the box if there is one; ``None``
                for the plain U-Net.
            box: one slice per spatial axis; starts and stops are multiples of :attr:`stride`, in the window padded to
                such multiples. The whole window by default.

        Returns:
            Logits ``(B, K, *spatial)`` inside the box. Their cost grows with B, K and the box.

        Raises:
            ValueError: When the box is not as described, or the masks do not have its shape.
        """
        if box is not None:
            features = features.crop(box)
        shape, levels = features.spatial_shape, list(features.levels)
        batch, count = levels[0].shape[0], 1
        pyramid: list[Tensor] = []
        if self.conditioning:
            if masks is None or masks.ndim != self.spatial_dims + 2 or tuple(masks.shape[2:]) != shape:
                got = None if masks is None else tuple(masks.shape)
                raise ValueError(
                    f"`masks` must be (B, K, {', '.join(map(str, shape))}) as the features are, got {got}."
                )
            count = masks.shape[1]
            masks = masks.reshape(batch * count, 1, *shape).to(levels[0].dtype)
            pyramid = self._pyramid(pad_end(masks, self.stride))
            levels = [_for_each_label(level, count) for level in levels]
        alone = batch * count == 1 and self._slow_alone(levels[0])
        if alone:
            levels, pyramid = [_twice(level) for level in levels], [_twice(mask) for mask in pyramid]
        logits = self._decoder(levels, pyramid)
        logits = cut(logits[:1] if alone else logits, [slice(0, size) for size in shape])
        return logits.reshape(batch, count * logits.shape[1], *shape)

    def _slow_alone(self, finest: Tensor) -> bool:
        """Whether PyTorch's CPU convolution of this single volume is up to seven times slower than that of two.

        It takes the slow path where channels times the first two axes are 20480 or less.
        """
        if finest.device.type != "cpu" or self.spatial_dims != 3 or torch.compiler.is_compiling():
            return False
        return self.channels[0] * finest.shape[2] * finest.shape[3] <= 20480

    def _decoder(self, levels: Sequence[Tensor], pyramid: Sequence[Tensor]) -> Tensor:
        """Logits of a batch, from the features and the masks of every level."""
        x = torch.cat([levels[-1], pyramid[-1]], dim=1) if self.conditioning else levels[-1]
        x = self.dropout(self.bottleneck(x))
        for i, up, block in zip(reversed(range(self.depth)), self.up, self.decoder, strict=True):
            parts = [up(x), levels[i]]
            if self.conditioning == "multiscale":
                parts.append(pyramid[i])
            x = block(torch.cat(parts, dim=1))
        logits = self.head(x)
        if self.conditioning and self.prior_logit:
            logits = logits + self.prior_logit * (2 * pyramid[0] - 1)
        return logits

    def _pyramid(self, x: Tensor) -> list[Tensor]:
        """``x`` max-pooled to the size of every level."""
        levels = [x]
        for _ in range(self.depth):
            levels.append(self.pool(levels[-1]))
        return levels

    def _check_input(self, x: Tensor, at_least: int) -> None:
        wrong = x.shape[1] < at_least if self.conditioning else x.shape[1] != at_least
        if x.ndim != self.spatial_dims + 2 or wrong:
            channels = f"{at_least} or more" if self.conditioning else at_least
            raise ValueError(
                f"The input must be (B, C, *spatial) with {self.spatial_dims} spatial axes and {channels} channels"
                f" (image {self.image_channels}, atlas image {self.atlas_channels}, one for each mask),"
                f" got shape {tuple(x.shape)}."
            )


class _Block(nn.Sequential):
    """Two 3x3x3 convolutions, each with norm and activation."""

    def __init__(self, spatial_dims: int, in_channels: int, width: int, act, norm, residual: bool) -> None:
        super().__init__(
            Convolution(spatial_dims, in_channels, width, act=act, norm=norm, adn_ordering="NA"),
            Convolution(spatial_dims, width, width, act=act, norm=norm, adn_ordering="NA"),
        )
        self.residual = residual
        self.out_channels = width + (in_channels if residual else 0)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(B, out_channels, *spatial)``."""
        out = super().forward(x)
        return torch.cat([out, x], dim=1) if self.residual else out


def _up(spatial_dims: int, in_channels: int, out_channels: int, upsample: str) -> nn.Module:
    if upsample == UpsampleMode.DECONV:
        return Conv[Conv.CONVTRANS, spatial_dims](in_channels, out_channels, kernel_size=2, stride=2)
    conv = Convolution(spatial_dims, in_channels, out_channels, conv_only=True)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), conv)


def _twice(x: Tensor) -> Tensor:
    return x.expand(2, *x.shape[1:])


def _for_each_label(level: Tensor, count: int) -> Tensor:
    return level if count == 1 else level.repeat_interleave(count, dim=0)


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
