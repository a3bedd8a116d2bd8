"""What the label conditioned U-Net is built of: convolution blocks, up-sampling, and the light part for one label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv, Pool
from monai.utils import UpsampleMode
from torch import Tensor, nn

from .boxes import Box, cut, mask_box, shift

__all__ = ["Block", "LabelHead", "UpConvolution", "gather", "recrop", "up"]

CONVOLVE = {2: F.conv2d, 3: F.conv3d}
CONVOLVE_TRANSPOSED = {2: F.conv_transpose2d, 3: F.conv_transpose3d}


def gather(x: Tensor, items: Sequence[int], boxes: Sequence[Box]) -> Tensor:
    """For each of N boxes of the same size its part of an item of the batch, ``(N, C, *size)``.

    Nothing is copied where all ask for the same part of the same item, or each for that of its own.
    """
    if all(box == boxes[0] for box in boxes):
        part = cut(x, boxes[0])
        if list(items) == list(range(len(x))):
            return part
        if all(item == items[0] for item in items):
            return part[items[0]].expand(len(items), *part.shape[1:])
        return part[list(items)]
    # Voxels first, so that the parts are stacked in the memory format of x
    voxels_first = x.movedim(1, -1)
    parts = [voxels_first[item][box] for item, box in zip(items, boxes, strict=True)]
    return torch.stack(parts).movedim(-1, 1)


def pair(x: Tensor) -> Tensor:
    """The same volume twice where that is faster: PyTorch's CPU convolution of a single small one takes a path that is
    six to fifteen times slower than that of two, where channels times the first two axes are 20480 or less.
    """
    if len(x) > 1 or x.device.type != "cpu" or x.ndim < 5 or torch.compiler.is_compiling():
        return x
    return x.expand(2, *x.shape[1:]) if x.shape[1] * x.shape[2] * x.shape[3] <= 20480 else x


def recrop(x: Tensor, boxes: Sequence[Box], inner: Sequence[Box]) -> Tensor:
    """Of N tensors ``(N, C, *size)`` that fill their boxes, what is in the boxes inside, all of one size."""
    inside = [shift(small, box) for small, box in zip(inner, boxes, strict=True)]
    return gather(x, range(len(x)), inside)


def normalization(norm: str | tuple, width: int) -> str | tuple:
    """An instance norm as a group norm of one channel each: the same numbers, three times faster on a CPU."""
    name, options = (norm, {}) if isinstance(norm, str) else norm
    if name.lower() != "instance" or options.get("track_running_stats"):
        return norm
    return "group", {"num_groups": width, "affine": False, **options}


class Block(nn.Module):
    """Two 3x3x3 convolutions with norm and activation, whose input is partly the same for every label.

    The first convolution is linear: what it makes of the channels that no label changes is computed once, by
    :meth:`share`, and added to what it makes of a label's own channels.

    Args:
        spatial_dims: 2 or 3.
        label_channels: input channels that differ from label to label, 0 or more.
        shared_channels: input channels that do not.
        width: output channels.
        act: activation, as MONAI names it.
        norm: normalization, as MONAI names it.
        residual: concatenate the input to the output.
    """

    def __init__(
        self, spatial_dims: int, label_channels: int, shared_channels: int, width: int, act, norm, residual: bool
    ) -> None:
        super().__init__()
        in_channels = label_channels + shared_channels
        norm = normalization(norm, width)
        self.first = Convolution(spatial_dims, in_channels, width, act=act, norm=norm, adn_ordering="NA")
        self.second = Convolution(spatial_dims, width, width, act=act, norm=norm, adn_ordering="NA")
        self.convolve = CONVOLVE[spatial_dims]
        self.label_channels = label_channels
        self.residual = residual
        self.out_channels = width + (in_channels if residual else 0)

    def share(self, shared: Tensor) -> Tensor:
        """What :meth:`forward` takes as ``shared``, from the channels ``(B, shared_channels, *spatial)``."""
        if self.residual:  # the output needs them as they are
            return shared
        conv = self.first.conv
        return self.convolve(pair(shared), conv.weight[:, self.label_channels :], conv.bias, padding=1)[: len(shared)]

    def forward(self, shared: Tensor, label: Tensor | None = None) -> Tensor:
        """Features ``(B, out_channels, *spatial)``.

        Args:
            shared: from :meth:`share`.
            label: ``(B, label_channels, *spatial)``; ``None`` where there are none.
        """
        if self.residual:
            x = shared if label is None else torch.cat([label, shared], dim=1)
            return torch.cat([self.second(self.first(pair(x)))[: len(x)], x], dim=1)
        if label is not None:
            own = self.convolve(pair(label), self.first.conv.weight[:, : self.label_channels], padding=1)
            shared = own[: len(label)] + shared
        return self.second(pair(self.first.adn(shared)))[: len(shared)]


class UpConvolution(nn.Module):
    """Nearest up-sampling by 2, then a 3x3x3 convolution, computed as one transposed convolution.

    The same numbers to rounding with a third of the multiplications and without the up-sampled volume in memory: along
    each axis the three taps fall on two voxels of the input only.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = Conv[Conv.CONV, spatial_dims](in_channels, out_channels, kernel_size=3, padding=1)
        self.spatial_dims = spatial_dims

    def forward(self, x: Tensor) -> Tensor:
        """``(B, out_channels, *(2 * spatial))``."""
        kernel = self.conv.weight.flip(list(range(2, self.spatial_dims + 2))).transpose(0, 1)
        for axis in range(self.spatial_dims):
            before, after = [0] * 2 * self.spatial_dims, [0] * 2 * self.spatial_dims
            before[2 * axis], after[2 * axis + 1] = 1, 1
            kernel = F.pad(kernel, before) + F.pad(kernel, after)
        return CONVOLVE_TRANSPOSED[self.spatial_dims](pair(x), kernel, self.conv.bias, stride=2, padding=1)[: len(x)]


def up(spatial_dims: int, in_channels: int, out_channels: int, upsample: str) -> nn.Module:
    """Twice the size: ``"nontrainable"`` (nearest, then a convolution) or ``"deconv"`` (transposed convolution)."""
    if upsample == UpsampleMode.DECONV:
        return Conv[Conv.CONVTRANS, spatial_dims](in_channels, out_channels, kernel_size=2, stride=2)
    return UpConvolution(spatial_dims, in_channels, out_channels)


class LabelHead(nn.Module):
    """The light part of ``conditioning="shared"``: from features that are the same for every label to one label.

    The shared network gives, at every voxel, features and a displacement in voxels to where the atlas shows the same
    anatomy. Of a label, this part takes its atlas mask, sampled through the displacement at full resolution
    and at a quarter of it (a soft distance), and its prototype: the mean of the features inside its atlas mask. A 1x1x1
    convolution of the features whose weights depend on the prototype, and one 3x3x3 convolution, give the answer. It
    has no normalization, so that the answer does not depend on the box it is computed in.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the features.
        coarse_channels: of the features at half the resolution, which the displacement comes from.
        width: of the hidden layers.
        act: activation, as MONAI names it.
    """

    REACH = 1  # voxels that the answer looks beyond its box
    COARSE = 4  # the soft distance is a mask of so much coarser voxels

    def __init__(self, spatial_dims: int, in_channels: int, coarse_channels: int, width: int, act) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        self.spatial_dims = spatial_dims
        self.displacement = conv(coarse_channels, spatial_dims, kernel_size=3, padding=1)
        nn.init.normal_(self.displacement.weight, std=1e-3)
        nn.init.zeros_(self.displacement.bias)  # type: ignore[arg-type]
        self.features = nn.Linear(in_channels, width)
        self.similarity = nn.Parameter(torch.empty(width, in_channels))
        nn.init.normal_(self.similarity, std=in_channels**-0.5)
        self.prototype = nn.Linear(in_channels, width, bias=False)
        self.mask = nn.Linear(2, width, bias=False)
        self.hidden = Convolution(spatial_dims, width, width, act=act, norm=None, adn_ordering="A")
        self.act = self.hidden.adn
        self.head = conv(width, 1, kernel_size=1)
        self.pool = Pool[Pool.AVG, spatial_dims](kernel_size=self.COARSE)

    def displace(self, coarse: Tensor) -> Tensor:
        """The displacement ``(B, spatial_dims, *spatial)`` in voxels, from features of half the resolution."""
        mode = "bilinear" if self.spatial_dims == 2 else "trilinear"
        return F.interpolate(self.displacement(coarse), scale_factor=2, mode=mode, align_corners=False)

    def forward(
        self, features: Tensor, displacement: Tensor, items: Sequence[int], masks: Sequence[Tensor], boxes: Sequence[Box]
    ) -> tuple[Tensor, Tensor]:
        """Answer for N labels, each in its box.

        Args:
            features: ``(B, C, *spatial)``.
            displacement: ``(B, spatial_dims, *spatial)``.
            items: for each label which of the batch it is asked of.
            masks: its atlas mask ``(*spatial)``, of the whole window.
            boxes: where to answer; all of the same size.

        Returns:
            Logits and sampled atlas masks, both ``(N, 1, *size)``; valid up to ``REACH`` voxels from a box's border, or
            up to the border where that is the window's.
        """
        where = [mask_box(mask) for mask in masks]
        sampled = self._sample(gather(displacement, items, boxes), masks, where, boxes)
        prototypes = self._prototypes(features, items, masks, where)
        weight = self.features.weight + self.similarity * prototypes[:, None]  # (N, width, C)
        bias = self.features.bias + self.prototype(prototypes)
        own = gather(features, items, boxes).movedim(1, -1)
        x = torch.bmm(own.reshape(len(own), -1, own.shape[-1]), weight.transpose(1, 2).to(own.dtype))
        x = x.reshape(*own.shape[:-1], -1) + bias[:, *[None] * self.spatial_dims].to(own.dtype)
        x = (x + self.mask(sampled.movedim(1, -1)).to(own.dtype)).movedim(-1, 1)
        return self.head(self.hidden(pair(self.act(x)))[: len(x)]), sampled[:, :1]

    def _prototypes(
        self, features: Tensor, items: Sequence[int], masks: Sequence[Tensor], where: Sequence[Box | None]
    ) -> Tensor:
        """The mean of the features inside each mask ``(N, C)``, 0 for an empty one."""
        means = []
        for item, mask, box in zip(items, masks, where, strict=True):
            if box is None:
                means.append(features.new_zeros(features.shape[1]))
                continue
            inside = mask[box].to(features.dtype)
            own = features[item].movedim(0, -1)[box]
            means.append(inside.flatten() @ own.reshape(-1, own.shape[-1]) / inside.sum())
        return torch.stack(means)

    def _sample(
        self, displacement: Tensor, masks: Sequence[Tensor], where: Sequence[Box | None], boxes: Sequence[Box]
    ) -> Tensor:
        """Masks and soft distances ``(N, 2, *size)`` at the displaced voxels of the boxes; 0 beyond the window.

        Each is sampled from the part of the window that holds its mask, as it is 0 elsewhere.
        """
        dims, coarse, device = self.spatial_dims, self.COARSE, displacement.device
        parts = [box or (slice(0, 1),) * dims for box in where]
        starts = [[axis.start - axis.start % coarse for axis in part] for part in parts]
        stops = [[axis.stop for axis in part] for part in parts]
        size = [max(-(-(b[a] - s[a]) // coarse) * coarse for s, b in zip(starts, stops, strict=True)) for a in range(dims)]
        sources = displacement.new_zeros(len(masks), 1, *size)
        for source, mask, start, stop in zip(sources, masks, starts, stops, strict=True):
            part = mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
            source[(0, *(slice(0, s) for s in part.shape))] = part.to(source.dtype)
        corner = torch.tensor(
            [[b.start - s for b, s in zip(box, start, strict=True)] for box, start in zip(boxes, starts, strict=True)]
        )
        shape = displacement.shape[2:]
        steps = torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"), dim=-1)
        voxels = (corner.view(-1, *[1] * dims, dims) + steps).to(device) + displacement.float().movedim(1, -1)
        # align_corners=False: -1 and 1 are the borders of the first and the last voxel, at any resolution
        grid = ((2 * voxels + 1) / torch.tensor(size, device=device) - 1).flip(-1).to(sources.dtype)
        return torch.cat([F.grid_sample(x, grid, align_corners=False) for x in (sources, self.pool(sources))], dim=1)
