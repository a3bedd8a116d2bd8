"""The light, label-dependent part of a network that decodes once for all labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn

from monai_lcs.boxes import Box, intersect, shift, volume_of, whole_box
from monai_lcs.networks.blocks import convolve, in_place, kernel_of
from monai_lcs.networks.crops import CropSource, Mask, gather

__all__ = ["LabelHead"]


class LabelHead(nn.Module):
    """The label-dependent part of ``conditioning="shared"``: features that all labels share go in, one label comes out.

    The shared network gives two things at every voxel: an embedding, and a displacement, in voxels, to where the atlas
    shows the same anatomy. The head uses three inputs for each label. Two are sampled through the displacement: the
    atlas mask, and the blurred atlas mask (a soft distance). The third is the prototype of the label: the mean of the
    embedding inside its atlas mask. A 1x1x1 convolution whose weights depend on the prototype, and a 3x3x3 convolution,
    give the logits. There is no normalization, so the logits do not depend on the box in which they are computed.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the features at full resolution, from which the embedding is computed.
        coarse_channels: channels of the features at half the resolution, from which the displacement is computed.
        width: channels of the embedding and of the hidden layers.
        act: activation, as MONAI names it.

    Example:
        >>> head = LabelHead(2, in_channels=4, coarse_channels=6, width=8, act="relu")
        >>> shared = head.share(torch.rand(1, 4, 16, 16), coarse=torch.rand(1, 6, 8, 8))  # once for all labels
        >>> mask, box = Mask.of(torch.ones(16, 16)), (slice(0, 9), slice(4, 16))
        >>> prototypes = head.prototypes(shared, (16, 16), items=[0], masks=[mask])
        >>> logits, sampled_mask = head(shared, prototypes, items=[0], masks=[mask], boxes=[box])
        >>> logits.shape
        torch.Size([1, 1, 9, 12])
    """

    REACH = 1  # voxels that the logits depend on beyond their box
    BLUR = 4  # the blurred mask is the mask averaged over so many voxels along each axis, then interpolated

    def __init__(self, spatial_dims: int, in_channels: int, coarse_channels: int, width: int, act: str | tuple) -> None:
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
        """Compute the displacement and the embedding, ``(B, spatial_dims + width, *spatial)`` in this order.

        Args:
            features: ``(B, in_channels, *spatial)``.
            coarse: ``(B, coarse_channels, *(spatial / 2))``.
        """
        displacement = F.interpolate(self.displacement(coarse), scale_factor=2, mode=self.linear, align_corners=False)
        return torch.cat([displacement, self.embedding(features)], dim=1)

    def forward(
        self,
        shared: Tensor | CropSource,
        prototypes: Tensor,
        items: Sequence[int],
        masks: Sequence[Mask],
        boxes: Sequence[Box],
    ) -> tuple[Tensor, Tensor]:
        """Compute the logits of N labels, each in its box.

        Args:
            shared: from :meth:`share`, in any precision, or a :class:`~monai_lcs.networks.crops.CropSource` of it.
            prototypes: from :meth:`prototypes`, ``(N, width)``.
            items: for each label, the index in the batch.
            masks: for each label, its atlas mask in the window.
            boxes: for each label, where to answer; all of the same size.

        Returns:
            Logits and sampled atlas masks, both ``(N, 1, *size)``. The logits are valid from ``REACH`` voxels inside
            the border of the box; where that border is the window's, they are valid up to it.
        """
        own = gather(shared, items, boxes).to(self.first.weight.dtype)
        sampled = self._sample(own[:, : self.spatial_dims], masks, boxes)
        own = torch.cat([sampled.to(own.dtype), own[:, self.spatial_dims :]], dim=1)
        x = self._apply_prototypes(own, prototypes)
        del own
        activation = self.hidden.get_submodule("adn")
        x = convolve(activation(x), *kernel_of(self.hidden))
        return self.head(activation(x)), sampled[:, :1]

    def prototypes(
        self, shared: Tensor | CropSource, spatial_shape: Sequence[int], items: Sequence[int], masks: Sequence[Mask]
    ) -> Tensor:
        """Average the embedding inside each mask, ``(N, width)``; 0 for an empty mask.

        Args:
            shared: as for :meth:`forward`.
            spatial_shape: shape of the window before it was padded; the padding does not count.
            items: for each label, the index in the batch.
            masks: for each label, its atlas mask in the window.
        """
        weight = self.first.weight
        exact = torch.promote_types(weight.dtype, torch.float32)  # sums over large masks overflow in half precision
        means = []
        for item, mask in zip(items, masks, strict=True):
            box = intersect(mask.box, whole_box(spatial_shape))
            if box is None:
                means.append(weight.new_zeros(weight.shape[1], dtype=exact))
                continue
            inside = mask.values[shift(box, mask.box)].to(exact)[..., None]
            embedding = gather(shared, [item], [box])[0, self.spatial_dims :].movedim(0, -1).to(exact)
            means.append((embedding * inside).flatten(0, -2).sum(dim=0) / inside.sum().clamp(min=1))
        return torch.stack(means).to(weight.dtype)

    def _apply_prototypes(self, x: Tensor, prototypes: Tensor) -> Tensor:
        """A 1x1x1 convolution of ``(N, 2 + width, *size)`` with its own weights and bias for each label."""
        weight = self.first.weight + self.similarity * prototypes[:, None]  # (N, width, width)
        weight = torch.cat([self.mask.weight.expand(len(x), -1, -1), weight], dim=2)
        bias = self.first.bias + self.prototype(prototypes)
        x = x.movedim(1, -1)
        out = torch.baddbmm(bias[:, None].to(x.dtype), x.flatten(1, -2), weight.transpose(1, 2).to(x.dtype))
        return out.unflatten(1, x.shape[1:-1]).movedim(-1, 1)

    def _sample(self, displacement: Tensor, masks: Sequence[Mask], boxes: Sequence[Box]) -> Tensor:
        """Sample masks and blurred masks at the displaced voxels of the boxes, ``(N, 2, *size)``; 0 beyond the window.

        Each is sampled from the part of the window around its mask, since it is 0 elsewhere.
        """
        around = self._boxes_around(masks)
        if len(masks) > 1 and volume_of(around[0]) > 2 * math.prod(displacement.shape[2:]):  # large: one at a time
            each = zip(displacement.split(1), masks, boxes, strict=True)
            return torch.cat([self._sample(own, [mask], [box]) for own, mask, box in each])
        exact = torch.promote_types(displacement.dtype, torch.float32)  # half precision misses by parts of a voxel
        source = Mask.inside(masks, around, exact)
        blurred = F.interpolate(self.pool(source), scale_factor=self.BLUR, mode=self.linear, align_corners=False)
        grid = _sampling_grid(displacement.to(exact), boxes, around)
        return F.grid_sample(torch.cat([source, blurred], dim=1), grid, align_corners=False)

    def _boxes_around(self, masks: Sequence[Mask]) -> list[Box]:
        """Boxes of the same size around the masks, which may reach beyond the window.

        They start at multiples of ``BLUR``, so that the average of a mask over ``BLUR`` voxels is the same for every
        box of the window. On each side there is one more such average, for the interpolation.
        """
        first = [[axis.start // self.BLUR - 1 for axis in mask.box] for mask in masks]
        last = [[-(-axis.stop // self.BLUR) + 1 for axis in mask.box] for mask in masks]
        size = [max(b[axis] - a[axis] for a, b in zip(first, last, strict=True)) for axis in range(self.spatial_dims)]
        return [
            tuple(slice(self.BLUR * a, self.BLUR * (a + n)) for a, n in zip(corner, size, strict=True))
            for corner in first
        ]


def _sampling_grid(displacement: Tensor, boxes: Sequence[Box], sources: Sequence[Box]) -> Tensor:
    """The displaced voxels of N boxes as ``grid_sample`` takes them, ``(N, *size, dims)``.

    Args:
        displacement: ``(N, dims, *size)``, in voxels.
        boxes: N boxes of this size.
        sources: N boxes of one size, of what is sampled.
    """
    dims, device = displacement.shape[1], displacement.device
    grid = torch.empty(displacement.movedim(1, -1).shape, dtype=displacement.dtype, device=device)
    for axis, n in enumerate(displacement.shape[2:]):
        start = torch.tensor([box[axis].start - source[axis].start for box, source in zip(boxes, sources, strict=True)])
        along = torch.arange(n).view([-1 if a == axis else 1 for a in range(dims)])
        voxel = (start.view(-1, *[1] * dims) + along).to(device)
        length = sources[0][axis].stop - sources[0][axis].start
        # align_corners=False: -1 and 1 are the outer borders of the first and of the last voxel
        grid[..., dims - 1 - axis] = (displacement[:, axis] + (voxel + 0.5)) * (2 / length) - 1
    return grid
