"""What the label conditioned U-Net is built of: convolution blocks, up-sampling, and the light part for one label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv, Pool
from monai.utils import UpsampleMode
from torch import Tensor, nn

from monai_lcs.boxes import Box, cut, intersect, mask_box, shift

__all__ = ["Block", "LabelHead", "Mask", "UpConvolution", "convolve", "gather", "norm_name", "recrop", "up"]

CONVOLVE = {2: F.conv2d, 3: F.conv3d}
CONVOLVE_TRANSPOSED = {2: F.conv_transpose2d, 3: F.conv_transpose3d}


def exporting() -> bool:
    """Whether the network is being compiled, exported or traced: then nothing may depend on the values of tensors."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


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
    if x.is_contiguous():
        return torch.stack([cut(x[item], box) for item, box in zip(items, boxes, strict=True)])
    voxels_first = x.movedim(1, -1)  # channels-last, and stacked as such
    parts = [voxels_first[item][box] for item, box in zip(items, boxes, strict=True)]
    return torch.stack(parts).movedim(-1, 1)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 3x3 or 3x3x3 convolution that keeps the size.

    PyTorch sends a single small volume on a CPU (channels times the first two axes 20480 or less) to a path that is six
    to fifteen times slower than the oneDNN kernel it takes for two; that kernel is called here for one as well.
    """
    small = x.device.type == "cpu" and x.ndim == 5 and len(x) == 1 and x.shape[1] * x.shape[2] * x.shape[3] <= 20480
    if (
        small
        and x.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not torch.compiler.is_compiling()
    ):
        return torch.mkldnn_convolution(x, weight, bias, [1] * 3, [1] * 3, [1] * 3, 1)
    return CONVOLVE[x.ndim - 2](x, weight, bias, padding=1)


def recrop(x: Tensor, boxes: Sequence[Box], inner: Sequence[Box]) -> Tensor:
    """Of N tensors ``(N, C, *size)`` that fill their boxes, what is in the boxes inside, all of one size."""
    inside = [shift(small, box) for small, box in zip(inner, boxes, strict=True)]
    return gather(x, range(len(x)), inside)


def norm_name(norm: str | tuple | None) -> str:
    """The lower-case name of a normalization as MONAI takes it, empty for none."""
    return "" if norm is None else (norm if isinstance(norm, str) else norm[0]).lower()


def normalization(norm: str | tuple | None, width: int) -> str | tuple | None:
    """An instance norm as a group norm of one channel each: the same numbers, three times faster on a CPU."""
    options = {} if norm is None or isinstance(norm, str) else norm[1]
    if norm_name(norm) != "instance" or options.get("track_running_stats"):
        return norm
    return "group", {"num_groups": width, "affine": options.get("affine", False), "eps": options.get("eps", 1e-5)}


def in_place(act: str | tuple) -> str | tuple:
    """A ReLU that overwrites its input, which a convolution or a norm has just made and nothing else needs."""
    return ("relu", {"inplace": True}) if isinstance(act, str) and act.lower() == "relu" else act


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

    first: Any  # a Convolution, whose parts are used one by one
    second: Any

    def __init__(
        self, spatial_dims: int, label_channels: int, shared_channels: int, width: int, act, norm, residual: bool
    ) -> None:
        super().__init__()
        in_channels = label_channels + shared_channels
        norm = normalization(norm, width)
        act = in_place(act)
        self.first = Convolution(spatial_dims, in_channels, width, act=act, norm=norm, adn_ordering="NA")
        self.second = Convolution(spatial_dims, width, width, act=act, norm=norm, adn_ordering="NA")
        self.label_channels = label_channels
        self.residual = residual
        self.out_channels = width + (in_channels if residual else 0)

    def share(self, shared: Tensor) -> Tensor:
        """What :meth:`forward` takes as ``shared``, from the channels ``(B, shared_channels, *spatial)``."""
        if self.residual:  # the output needs them as they are
            return shared
        conv = self.first.conv
        return convolve(shared, conv.weight[:, self.label_channels :], conv.bias)

    def forward(self, shared: Tensor, label: Tensor | None = None) -> Tensor:
        """Features ``(B, out_channels, *spatial)``.

        Args:
            shared: from :meth:`share`.
            label: ``(B, label_channels, *spatial)``; ``None`` where there are none.
        """
        if self.residual:
            x = shared if label is None else torch.cat([label, shared], dim=1)
            conv = self.first.conv
            return torch.cat([self._finish(convolve(x, conv.weight, conv.bias)), x], dim=1)
        if label is not None:
            own = convolve(label, self.first.conv.weight[:, : self.label_channels])
            shared = own.add_(shared)  # in place: these are the largest volumes there are
            del own
        return self._finish(shared)

    def plain(self, x: Tensor) -> Tensor:
        """:meth:`forward` of what :meth:`share` makes of ``x``, with one volume less in memory."""
        return self.forward(x) if self.residual else self._finish(self.share(x))

    def _finish(self, x: Tensor) -> Tensor:
        x = self.first.adn(x)
        x = convolve(x, self.second.conv.weight, self.second.conv.bias)
        return self.second.adn(x)


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
        self.folded: Tensor | None = None

    def prepare(self) -> None:
        """At inference, fold the kernel once for all calls until the next time this is called."""
        self.folded = None if torch.is_grad_enabled() or exporting() else self._fold(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, out_channels, *(2 * spatial))``."""
        kernel = self._fold(self.conv.weight) if self.folded is None or torch.is_grad_enabled() else self.folded
        return CONVOLVE_TRANSPOSED[self.spatial_dims](x, kernel, self.conv.bias, stride=2, padding=1)

    def _fold(self, weight: Tensor) -> Tensor:
        kernel = weight.flip(list(range(2, self.spatial_dims + 2))).transpose(0, 1)
        for axis in range(self.spatial_dims):
            before, after = [0] * 2 * self.spatial_dims, [0] * 2 * self.spatial_dims
            before[2 * axis], after[2 * axis + 1] = 1, 1
            kernel = F.pad(kernel, before) + F.pad(kernel, after)
        return kernel


def up(spatial_dims: int, in_channels: int, out_channels: int, upsample: str) -> nn.Module:
    """Twice the size: ``"nontrainable"`` (nearest, then a convolution) or ``"deconv"`` (transposed convolution)."""
    if upsample == UpsampleMode.DECONV:
        return Conv[Conv.CONVTRANS, spatial_dims](in_channels, out_channels, kernel_size=2, stride=2)
    return UpConvolution(spatial_dims, in_channels, out_channels)


class Mask(NamedTuple):
    """An atlas mask of a window that is zero outside a box of it.

    Example:
        >>> mask = Mask.of(torch.tensor([[0, 0, 0, 0], [0, 1, 1, 0]]))
        >>> mask.values, mask.box
        (tensor([[1, 1]]), (slice(1, 2, None), slice(1, 3, None)))
        >>> Mask.inside([mask], [(slice(0, 2), slice(0, 2))], torch.int64)
        tensor([[[[0, 0],
                  [0, 1]]]])
    """

    values: Tensor  # (*size of the box)
    box: Box  # empty where the mask is

    @classmethod
    def of(cls, mask: Tensor) -> Mask:
        """A mask ``(*spatial)`` and the box of what is not zero."""
        if exporting():  # where that is depends on the data
            return cls(mask, tuple(slice(0, size) for size in mask.shape))
        box = mask_box(mask) or (slice(0, 0),) * mask.ndim
        return cls(mask[box], box)

    @staticmethod
    def inside(masks: Sequence[Mask], boxes: Sequence[Box], dtype: torch.dtype) -> Tensor:
        """What each of N masks is in its box, all of one size: ``(N, 1, *size)``."""
        size = [axis.stop - axis.start for axis in boxes[0]]
        filled = torch.zeros(len(masks), 1, *size, dtype=dtype, device=masks[0].values.device)
        for out, mask, box in zip(filled, masks, boxes, strict=True):
            shared = intersect(mask.box, box)
            if shared is not None:
                out[0][shift(shared, box)] = mask.values[shift(shared, mask.box)].to(dtype)
        return filled


class LabelHead(nn.Module):
    """The light part of ``conditioning="shared"``: from features that are the same for every label to one label.

    The shared network gives, at every voxel, an embedding and a displacement in voxels to where the atlas shows the
    same anatomy. Of a label, this part takes its atlas mask, and the mask blurred (a soft distance), both sampled
    through the displacement; and its prototype: the mean of the embedding inside its atlas mask. A 1x1x1 convolution of
    the embedding whose weights depend on the prototype, and one 3x3x3 convolution, give the answer. It has no
    normalization, so that the answer does not depend on the box it is computed in.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the features at full resolution, which the embedding comes from.
        coarse_channels: of those at half the resolution, which the displacement comes from.
        width: of the embedding and of the hidden layers.
        act: activation, as MONAI names it.
    """

    hidden: Any  # a Convolution, likewise

    REACH = 1  # voxels that the answer looks beyond its box
    BLUR = 4  # the blurred mask is one of so much coarser voxels, interpolated

    def __init__(self, spatial_dims: int, in_channels: int, coarse_channels: int, width: int, act) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        self.spatial_dims = spatial_dims
        self.linear = "bilinear" if spatial_dims == 2 else "trilinear"
        self.embedding = conv(in_channels, width, kernel_size=1)
        self.displacement = conv(coarse_channels, spatial_dims, kernel_size=3, padding=1)
        nn.init.normal_(self.displacement.weight, std=1e-3)
        nn.init.zeros_(self.displacement.bias)
        self.first = nn.Linear(width, width)
        self.similarity = nn.Parameter(torch.empty(width, width))
        nn.init.normal_(self.similarity, std=width**-0.5)
        self.prototype = nn.Linear(width, width, bias=False)
        self.mask = nn.Linear(2, width, bias=False)
        self.hidden = Convolution(spatial_dims, width, width, act=in_place(act), norm=None, adn_ordering="A")
        self.head = conv(width, 1, kernel_size=1)
        self.pool = Pool[Pool.AVG, spatial_dims](kernel_size=self.BLUR)

    def share(self, features: Tensor, coarse: Tensor) -> Tensor:
        """What no label changes, ``(B, spatial_dims + width, *spatial)``: the displacement, then the embedding."""
        up = F.interpolate(self.displacement(coarse), scale_factor=2, mode=self.linear, align_corners=False)
        return torch.cat([up, self.embedding(features)], dim=1)

    def forward(
        self,
        shared: Tensor,
        prototypes: Tensor,
        items: Sequence[int],
        masks: Sequence[Mask],
        boxes: Sequence[Box],
    ) -> tuple[Tensor, Tensor]:
        """Answer for N labels, each in its box.

        Args:
            shared: from :meth:`share`, in any precision.
            prototypes: from :meth:`prototypes`, ``(N, width)``.
            items: for each label which of the batch it is asked of.
            masks: its atlas mask in the window.
            boxes: where to answer; all of the same size.

        Returns:
            Logits and sampled atlas masks, both ``(N, 1, *size)``; valid up to ``REACH`` voxels from a box's border, or
            up to the border where that is the window's.
        """
        own = gather(shared, items, boxes).to(self.first.weight.dtype)
        sampled = self._sample(own[:, : self.spatial_dims], masks, boxes)
        weight = self.first.weight + self.similarity * prototypes[:, None]  # (N, width, width)
        weight = torch.cat([self.mask.weight.expand(len(masks), -1, -1), weight], dim=2)
        bias = self.first.bias + self.prototype(prototypes)
        own = torch.cat([sampled.to(own.dtype), own[:, self.spatial_dims :]], dim=1).movedim(1, -1)
        x = torch.baddbmm(bias[:, None].to(own.dtype), own.flatten(1, -2), weight.transpose(1, 2).to(own.dtype))
        x = x.unflatten(1, own.shape[1:-1]).movedim(-1, 1)
        del own
        x = convolve(self.hidden.adn(x), self.hidden.conv.weight, self.hidden.conv.bias)
        return self.head(self.hidden.adn(x)), sampled[:, :1]

    def prototypes(
        self, shared: Tensor, spatial_shape: Sequence[int], items: Sequence[int], masks: Sequence[Mask]
    ) -> Tensor:
        """The mean of the embedding inside each mask ``(N, width)``, 0 for an empty one.

        Args:
            shared: from :meth:`share`.
            spatial_shape: of the window before it was padded; padding does not count.
            items: for each label which of the batch it is asked of.
            masks: its atlas mask in the window.
        """
        exact = torch.promote_types(shared.dtype, torch.float32)  # sums over large masks overflow in half precision
        window = tuple(slice(0, size) for size in spatial_shape)
        means = []
        for item, mask in zip(items, masks, strict=True):
            box = intersect(mask.box, window)
            if box is None:
                means.append(shared.new_zeros(shared.shape[1] - self.spatial_dims, dtype=exact))
                continue
            inside = mask.values[shift(box, mask.box)].to(exact)[..., None]
            embedding = shared[item, self.spatial_dims :].movedim(0, -1)[box].to(exact)
            means.append((embedding * inside).flatten(0, -2).sum(dim=0) / inside.sum().clamp(min=1))
        return torch.stack(means).to(self.first.weight.dtype)

    def _sample(self, displacement: Tensor, masks: Sequence[Mask], boxes: Sequence[Box]) -> Tensor:
        """Masks and blurred masks ``(N, 2, *size)`` at the displaced voxels of the boxes; 0 beyond the window.

        Each is sampled from the part of the window around its mask, as it is 0 elsewhere.
        """
        dims, blur, device = self.spatial_dims, self.BLUR, displacement.device
        exact = torch.promote_types(displacement.dtype, torch.float32)  # half precision misses by parts of a voxel
        # Coarse voxels lie where they do for every box of the window; one more on each side, for the interpolation
        first = [[axis.start // blur - 1 for axis in mask.box] for mask in masks]
        last = [[-(-axis.stop // blur) + 1 for axis in mask.box] for mask in masks]
        size = [blur * max(b[axis] - a[axis] for a, b in zip(first, last, strict=True)) for axis in range(dims)]
        around = [tuple(slice(blur * a, blur * a + n) for a, n in zip(corner, size, strict=True)) for corner in first]
        if len(masks) > 1 and math.prod(size) > 2 * math.prod(displacement.shape[2:]):  # large masks, one at a time
            each = zip(displacement.split(1), masks, boxes, strict=True)
            return torch.cat([self._sample(own, [mask], [box]) for own, mask, box in each])
        source = Mask.inside(masks, around, exact)
        blurred = F.interpolate(self.pool(source), scale_factor=blur, mode=self.linear, align_corners=False)
        # align_corners=False: -1 and 1 are the borders of the first and the last voxel
        grid = torch.empty(displacement.movedim(1, -1).shape, dtype=exact, device=device)
        for axis, n in enumerate(displacement.shape[2:]):
            start = torch.tensor([box[axis].start - part[axis].start for box, part in zip(boxes, around, strict=True)])
            along = torch.arange(n).view([-1 if a == axis else 1 for a in range(dims)])
            voxel = (start.view(-1, *[1] * dims) + along).to(device)
            grid[..., dims - 1 - axis] = (displacement[:, axis].to(exact) + (voxel + 0.5)) * (2 / size[axis]) - 1
        return F.grid_sample(torch.cat([source, blurred], dim=1), grid, align_corners=False)
