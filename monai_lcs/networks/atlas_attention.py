"""The label-dependent part of a network that decodes once for all labels: voxels take the labels of atlas voxels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from monai_lcs.boxes import Box, shared_box, shift, whole_box
from monai_lcs.networks.crops import Mask, exporting

__all__ = ["AtlasAttention"]

BLOCK = 4  # voxels along each axis that look at the same atlas voxels
REACH = 2  # voxels beyond the block, on each side, at which they look
WIDE = BLOCK + 2 * REACH
BLOCKS_AT_A_TIME = {"cpu": 16}  # their scores fit its cache
MANY_BLOCKS = 512  # on other devices
BEYOND = -1e4  # added to the scores of what lies beyond the image: its weight is 0
KEPT_BYTES = 2**29  # of what the gradient of an item needs; the rest is computed again, to save memory
SPREAD = 1.5  # voxels: before any training the weights are a Gaussian of this standard deviation
SURE = 1e-6  # probabilities are kept from 0 and 1 by this; logits are within 14


class AtlasAttention(nn.Module):
    """The label-dependent part of ``conditioning="shared"``: each voxel looks around in the atlas and takes its labels.

    The network gives features of the image and of the atlas image; those of the image are queries, those of the atlas
    keys. The voxels of a block of 4 along each axis compare their queries with the keys of the atlas voxels in the
    block and up to 2 voxels beyond. The softmax of the products, and of a learned term that depends on the distance,
    are weights; the probability of a label at a voxel is the weighted share of atlas voxels that its mask has. So one
    network registers, by features that it learned, and fuses what it registered: nothing in it belongs to a label,
    labels compete with each other and with the background, and the weights are computed once for all labels that are
    asked for together. Of several atlases the voxels of all are looked at together: those that are more alike weigh
    more, whichever atlas they are of. Masks may be soft. What lies beyond the image gets no weight. Before any
    training, the weights fall with the distance: labels start where the atlas has them.

    The idea is that of patch-based label fusion (Coupe et al., NeuroImage 54, 2011,
    https://doi.org/10.1016/j.neuroimage.2010.09.018), with the attention of Vaswani et al. (2017,
    https://arxiv.org/abs/1706.03762) instead of the difference of patches.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the features at full resolution.
        width: channels of queries and of keys.

    Example:
        >>> attention = AtlasAttention(2, in_channels=4, width=8)
        >>> shared = attention.share(torch.rand(2, 1, 4, 16, 16), count=2)  # once for all labels
        >>> mask, box = Mask.of(torch.ones(16, 16)), (slice(0, 9), slice(4, 16))
        >>> [logits.shape for logits in attention(shared, items=[0], masks=[mask], boxes=[box])]
        [torch.Size([9, 12])]
    """

    def __init__(self, spatial_dims: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.width = width
        self.query = Conv[Conv.CONV, spatial_dims](in_channels, width, kernel_size=1)
        self.key = Conv[Conv.CONV, spatial_dims](in_channels, width, kernel_size=1)
        far = WIDE - REACH - 1  # the largest distance along an axis
        offsets = torch.arange(-far, far + 1.0)
        distances = torch.stack(torch.meshgrid(*[offsets] * spatial_dims, indexing="ij")).square().sum(0)
        self.position = nn.Parameter(-distances / (2 * SPREAD**2))  # of the distance along each axis
        apart = torch.arange(WIDE) - REACH - torch.arange(BLOCK)[:, None] + far  # (query, key) along an axis
        self.register_buffer("apart", apart, persistent=False)
        self.apart: Tensor

    def share(self, features: Iterable[Tensor], count: int) -> Tensor:
        """Compute queries and keys.

        Args:
            features: ``(B, in_channels, *spatial)`` of the image, and then of each of K atlas images.
            count: 1 + K.

        Returns:
            ``(B, (1 + K) * width, *spatial)``; without gradients the channels of a voxel are adjacent in memory.
        """
        projected = (self.key(x) if i else self.query(x) for i, x in enumerate(features))
        if exporting():
            return torch.cat(list(projected), dim=1)
        if torch.is_grad_enabled():  # a voxel's gradient is a sum over all that looked at it: in float32 at least
            both = torch.cat(list(projected), dim=1)
            return both.to(torch.promote_types(both.dtype, torch.float32))
        shared = torch.empty(0)
        for i, x in enumerate(projected):  # into one tensor, so that no volume is in memory twice
            if not i:
                shared = x.new_empty(len(x), *x.shape[2:], count * self.width)
            shared[..., i * self.width : (i + 1) * self.width] = x.movedim(1, -1)
        return shared.movedim(-1, 1)

    def forward(
        self,
        shared: Tensor,
        items: Sequence[int],
        masks: Sequence[Mask | Sequence[Mask]],
        boxes: Sequence[Box],
        spatial_shape: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Compute the logits of N labels, each in its box.

        Args:
            shared: from :meth:`share`, in any precision.
            items: for each label, the index in the batch.
            masks: for each label, its atlas mask in the window, from 0 to 1; of several atlases one mask each.
            boxes: for each label, where to answer.
            spatial_shape: shape of the window before it was padded; the padding gets no weight.

        Returns:
            Logits of the size of each box, within 14. They do not depend on the box. The cost is that of the blocks
            that all boxes together have, about 500 products of ``width`` numbers for each of their voxels in 3D and
            each atlas.

        Raises:
            ValueError: When a label has not as many masks as there are atlases.
        """
        of_atlases = [[mask] if isinstance(mask, Mask) else list(mask) for mask in masks]
        atlases = shared.shape[1] // self.width - 1
        if any(len(each) != atlases for each in of_atlases):
            raise ValueError(f"Each label must have {atlases} atlas masks, got {[len(each) for each in of_atlases]}.")
        answers: list[Tensor] = [shared.new_empty(0)] * len(boxes)
        for item in sorted(set(items)):
            of_item = [i for i, other in enumerate(items) if other == item]
            chosen = [of_atlases[i] for i in of_item], [boxes[i] for i in of_item]
            pairs = _Pairs.of(*chosen, shared.shape[2:], spatial_shape or shared.shape[2:])
            probabilities = self._attend(shared[item], pairs)
            for i, volume in zip(of_item, pairs.volumes(probabilities), strict=True):
                share = volume.clamp(max=1)  # a sum of hundreds of weights may round to more
                p = SURE + (1 - 2 * SURE) * share  # a gradient everywhere, and no two values become one
                answers[i] = (p / (1 - p)).log()
        return answers

    def _attend(self, shared: Tensor, pairs: _Pairs) -> Tensor:
        """The probabilities of each pair of a label and a block, ``(pairs, voxels of a block)``."""
        x, position = shared.movedim(0, -1).contiguous(), self._position()
        if torch.is_grad_enabled() and not exporting():
            return _Attention.apply(x, position, pairs)
        return torch.cat([_probabilities(x, position, pairs, part)[1] for part in pairs.parts()])

    def _position(self) -> Tensor:
        """What the distance adds to a score, ``(queries of a block, keys)``."""
        dims, index = self.spatial_dims, []
        for axis in range(dims):
            shape = [BLOCK if i == axis else WIDE if i == dims + axis else 1 for i in range(2 * dims)]
            index.append(self.apart.view(shape))
        return self.position[tuple(index)].reshape(BLOCK**dims, WIDE**dims)


@dataclass
class _Pairs:
    """The pairs of a label and a block in which it is asked for, sorted by blocks.

    Attributes:
        values: what each label's masks have of the voxels that its block looks at, ``(pairs, keys)``: ``WIDE ** dims``
            voxels, each in all atlases.
        block: of each pair, the number of its block.
        slot: of each pair, its place among those of its block.
        corners: the first voxel of each block, ``(blocks, dims)``.
        ends: of each block, the number of the pair after its last.
        atlases: how many.
        spatial_shape: shape of the image, beyond which no key is.
        order: of the pairs, label by label.
        hulls: of each label, its blocks along each axis.
        boxes: of each label, what is asked for.
    """

    values: Tensor
    block: Tensor
    slot: Tensor
    corners: np.ndarray
    ends: list[int]
    atlases: int
    spatial_shape: tuple[int, ...]
    order: Tensor
    hulls: list[Box]
    boxes: Sequence[Box]

    @classmethod
    def of(
        cls, masks: Sequence[Sequence[Mask]], boxes: Sequence[Box], shape: Sequence[int], spatial_shape: Sequence[int]
    ) -> _Pairs:
        """Find the pairs of N labels, each with its mask in each atlas, and its box in a window."""
        along = tuple(-(-int(n) // BLOCK) for n in shape)  # a tensor, where the network is traced
        hulls = [tuple(slice(int(a.start) // BLOCK, -(-int(a.stop) // BLOCK)) for a in box) for box in boxes]
        windows = [
            torch.stack([_windows(mask, hull) for mask in of], -1) for of, hull in zip(masks, hulls, strict=True)
        ]
        values = torch.cat(windows).flatten(1)
        # Not by PyTorch: a network that is exported cannot depend on the values of a tensor
        blocks = np.arange(math.prod(along)).reshape(along)
        numbers = np.concatenate([blocks[hull].ravel() for hull in hulls])
        by_block = numbers.argsort(kind="stable")
        found, first, block, counts = np.unique(
            numbers[by_block], return_index=True, return_inverse=True, return_counts=True
        )

        def tensor(x: np.ndarray) -> Tensor:
            return torch.from_numpy(x).to(values.device)

        return cls(
            values=values[tensor(by_block)],
            block=tensor(block),
            slot=tensor(np.arange(len(numbers)) - first[block]),
            corners=BLOCK * np.stack(np.unravel_index(found, along), axis=1),
            ends=counts.cumsum().tolist(),
            atlases=len(masks[0]),
            spatial_shape=tuple(int(n) for n in spatial_shape),
            order=tensor(by_block.argsort()),
            hulls=hulls,
            boxes=boxes,
        )

    def beyond(self, blocks: slice) -> Tensor | None:
        """What is added to the scores of the voxels that blocks look at, ``(blocks, WIDE ** dims)``; ``None`` for 0."""
        firsts = self.corners[blocks] - REACH
        if (firsts >= 0).all() and (firsts + WIDE <= self.spatial_shape).all():
            return None
        outside = np.zeros((len(firsts), *[1] * firsts.shape[1]), bool)
        for seen, n in zip(_along_axes(firsts, WIDE), self.spatial_shape, strict=True):
            outside = outside | (seen < 0) | (seen >= n)
        return torch.from_numpy(outside.reshape(len(firsts), -1)).to(self.block.device) * BEYOND

    def parts(self) -> Iterator[tuple[slice, slice]]:
        """The blocks to compute together, and their pairs."""
        step = max(BLOCKS_AT_A_TIME.get(self.block.device.type, MANY_BLOCKS) // self.atlases, 1)
        for first in range(0, len(self.corners), step):
            last = min(first + step, len(self.corners))
            yield slice(first, last), slice(self.ends[first - 1] if first else 0, self.ends[last - 1])

    def volumes(self, x: Tensor) -> list[Tensor]:
        """The values of each pair, ``(pairs, voxels of a block)``, in the box of each label."""
        dims = len(self.boxes[0])
        sizes = [[axis.stop - axis.start for axis in hull] for hull in self.hulls]
        answers = []
        for part, size, hull, box in zip(
            x[self.order].split([math.prod(size) for size in sizes]), sizes, self.hulls, self.boxes, strict=True
        ):
            volume = part.view(*size, *[BLOCK] * dims)
            volume = volume.permute([i for axis in range(dims) for i in (axis, dims + axis)])
            volume = volume.reshape([n * BLOCK for n in size])
            around = tuple(slice(axis.start * BLOCK, axis.stop * BLOCK) for axis in hull)
            answers.append(volume[shift(box, around)])
        return answers


def _windows(mask: Mask, hull: Box) -> Tensor:
    """What each block of a hull sees of a mask, ``(blocks, WIDE ** dims)``."""
    around = tuple(slice(axis.start * BLOCK - REACH, axis.stop * BLOCK + REACH) for axis in hull)
    seen = Mask.inside([mask], [around], mask.values.dtype)[0, 0]
    for axis in range(seen.ndim):
        seen = seen.unfold(axis, WIDE, BLOCK)
    return seen.reshape(-1, WIDE ** len(hull))


def _along_axes(firsts: np.ndarray, size: int) -> list[np.ndarray]:
    """The coordinates of the voxels from N first ones on: for each axis an array that broadcasts to ``(N, *size)``."""
    dims = firsts.shape[1]
    shapes = [[len(firsts), *(size if i == axis else 1 for i in range(dims))] for axis in range(dims)]
    return [(firsts[:, axis, None] + np.arange(size)).reshape(shape) for axis, shape in enumerate(shapes)]


def _rows(x: Tensor, firsts: np.ndarray, size: int) -> Tensor:
    """The channels of the voxels from N first ones on, ``(N, size ** dims, channels)``; beyond ``x``, of its edge."""
    index: Any = 0
    for along, n in zip(_along_axes(firsts, size), x.shape, strict=False):
        index = index * int(n) + along.clip(0, int(n) - 1)
    rows = torch.from_numpy(index.ravel()).to(x.device)
    return x.flatten(0, -2).index_select(0, rows).view(len(firsts), -1, x.shape[-1])


def _probabilities(
    x: Tensor, position: Tensor, pairs: _Pairs, part: tuple[slice, slice]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The weights of some blocks and what the gradient needs of them; and the probabilities of their pairs.

    Args:
        x: queries and keys, ``(*spatial, (1 + atlases) * width)``.
        position: see :meth:`AtlasAttention._position`.
        pairs: of a label and a block.
        part: some of the blocks, and their pairs.
    """
    blocks, chosen = part
    corners, width = pairs.corners[blocks], x.shape[-1] // (1 + pairs.atlases)
    exact = torch.promote_types(x.dtype, torch.float32)  # sums of hundreds of weights
    with torch.autocast(x.device.type, enabled=False):
        q = _rows(x[..., :width], corners, BLOCK).to(exact)
        k = _rows(x[..., width:], corners - REACH, WIDE).to(exact).view(len(corners), -1, width)
        beyond = pairs.beyond(blocks)
        if beyond is not None:
            q = F.pad(q, [0, 1], value=1.0)
            k = torch.cat([k, beyond.to(exact).repeat_interleave(pairs.atlases, 1)[..., None]], -1)
        position = position.to(exact).repeat_interleave(pairs.atlases, 1)  # the atlases of a voxel follow each other
        weights = torch.baddbmm(position.expand(len(corners), -1, -1), q, k.transpose(1, 2)).softmax(-1)
        block, slot = pairs.block[chosen] - blocks.start, pairs.slot[chosen]
        ends = [chosen.start, *pairs.ends[blocks]]
        slots = max(stop - start for start, stop in pairwise(ends))
        values = weights.new_zeros(len(corners), slots, weights.shape[-1])
        values[block, slot] = pairs.values[chosen].to(exact)
        shares = torch.bmm(values, weights.transpose(1, 2))  # (blocks, slots, voxels of a block)
    return (q, k, weights, values, shares, block, slot), shares[block, slot]


class _Attention(torch.autograd.Function):
    """The probabilities of all pairs; what the gradient needs is kept, or made again a few blocks at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, position: Tensor, pairs: _Pairs) -> Tensor:
        ctx.save_for_backward(x, position)
        ctx.pairs, ctx.kept, room = pairs, [], KEPT_BYTES
        answers = []
        for part in pairs.parts():
            needed, probabilities = _probabilities(x, position, pairs, part)
            room -= sum(each.nbytes for each in needed)
            ctx.kept.append(needed if room > 0 else None)
            answers.append(probabilities)
        return torch.cat(answers)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, position = ctx.saved_tensors
        by_x, by_position = torch.zeros_like(x), torch.zeros_like(position)
        width = x.shape[-1] // (1 + ctx.pairs.atlases)
        with torch.autocast(x.device.type, enabled=False):
            for i, part in enumerate(ctx.pairs.parts()):
                needed, ctx.kept[i] = ctx.kept[i] or _probabilities(x, position, ctx.pairs, part)[0], None
                by_scores, by_q, by_k = _by_scores(gradient[part[1]], *needed)
                by_position += by_scores.sum(0).unflatten(1, (position.shape[1], -1)).sum(-1)
                corners = ctx.pairs.corners[part[0]]
                _add_rows(by_x[..., :width], by_q[..., :width], corners, BLOCK)
                _add_rows(by_x[..., width:], by_k[..., :width], corners - REACH, WIDE)
        return by_x, by_position, None


def _by_scores(
    gradient: Tensor, q: Tensor, k: Tensor, weights: Tensor, values: Tensor, shares: Tensor, block: Tensor, slot: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by scores, queries and keys of some blocks; see :func:`_probabilities`."""
    by_shares = torch.zeros_like(shares)
    by_shares[block, slot] = gradient.to(shares.dtype)
    common = (by_shares * shares).sum(1)[..., None]
    by_scores = torch.baddbmm(-common.expand_as(weights), by_shares.transpose(1, 2), values)
    by_scores *= weights
    return by_scores, torch.bmm(by_scores, k), torch.bmm(by_scores.transpose(1, 2), q)


def _add_rows(x: Tensor, rows: Tensor, firsts: np.ndarray, size: int) -> None:
    """Add to each voxel what :func:`_rows` took from it; what lies beyond ``x`` is left out, as its weight is 0."""
    window, shape = whole_box(x.shape[:-1]), [size] * firsts.shape[1]
    for first, each in zip(firsts.tolist(), rows, strict=True):
        around = tuple(slice(start, start + size) for start in first)
        there = shared_box(window, around)
        x[there] += each.reshape(*shape, -1)[shift(there, around)]
