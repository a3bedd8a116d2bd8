"""Crops of features and of atlas masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from monai_lcs.boxes import Box, crop, intersect, mask_box, scale, shift, size_of, whole_box

__all__ = [
    "EXACT_HALO",
    "CropSource",
    "Mask",
    "check_halo",
    "crop_source",
    "exporting",
    "gather",
    "pool_times",
    "recrop",
]

EXACT_HALO = 3  # voxels that a decoder level sees beyond what it passes on: two convolutions, and one going up


def exporting() -> bool:
    """Whether the network is being compiled, exported or traced: no step may then depend on the values of a tensor.

    Example:
        >>> exporting()
        False
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def check_halo(halo: int | str) -> int:
    """Convert a halo to voxels; more than :data:`EXACT_HALO` changes nothing.

    Raises:
        ValueError: When it is neither ``"exact"`` nor a whole number >= 0.

    Example:
        >>> check_halo("exact"), check_halo(1), check_halo(10)
        (3, 1, 3)
    """
    if halo == "exact":
        return EXACT_HALO
    if isinstance(halo, str) or halo != int(halo) or halo < 0:
        raise ValueError(f"`halo` must be 'exact' or a whole number >= 0, got {halo!r}.")
    return min(int(halo), EXACT_HALO)


class CropSource:
    """A tensor out of which crops are taken; their gradients add up in one tensor.

    PyTorch's backward of an indexing fills a tensor of the whole size with zeros for each crop. With many small crops
    of a large tensor that takes most of a training step.

    Args:
        x: ``(B, C, *spatial)``.

    Example:
        >>> x = torch.ones(1, 1, 5, requires_grad=True)
        >>> source = CropSource(x)
        >>> first, second = gather(source, [0], [(slice(0, 3),)]), gather(source, [0], [(slice(2, 4),)])
        >>> (first.sum() + 5 * second.sum()).backward()
        >>> x.grad
        tensor([[[1., 1., 6., 5., 0.]]])
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x.detach()
        self.gradient: list[Tensor] = []  # empty, or the one tensor in which gradients add up
        self.anchor = _CollectGradient.apply(x, self.gradient)

    def gather(self, items: Sequence[int], boxes: Sequence[Box]) -> Tensor:
        """See :func:`gather`."""
        return _GatherCrops.apply(self.anchor, self.x, self.gradient, items, boxes)


class _CollectGradient(torch.autograd.Function):
    """Makes the scalar that all crops depend on, so that its backward comes after theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: list[Tensor]) -> Tensor:
        ctx.gradient = gradient
        return x.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient.pop(), None


class _GatherCrops(torch.autograd.Function):
    """Takes crops, and adds their gradients to those of the other crops."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, x: Tensor, gradient: list[Tensor], items: Sequence[int], boxes: Sequence[Box]
    ) -> Tensor:
        ctx.shaped_like, ctx.gradient, ctx.items, ctx.boxes = x, gradient, items, boxes
        return _gather(x, items, boxes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_crops: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.gradient:
            ctx.gradient.append(torch.zeros_like(ctx.shaped_like))
        for by_crop, item, box in zip(by_crops, ctx.items, ctx.boxes, strict=True):
            crop(ctx.gradient[0][item], box).add_(by_crop)
        return by_crops.new_zeros(()), None, None, None, None


def gather(x: Tensor | CropSource, items: Sequence[int], boxes: Sequence[Box]) -> Tensor:
    """Crop N boxes of the same size, each out of its own item of a batch, and stack the crops.

    The result is a view where all crops are the same one, or where each item is cropped once with the same box.

    Args:
        x: ``(B, C, *spatial)``; a :class:`CropSource` where it is cropped several times in training.
        items: for each box, the index in the batch.
        boxes: N boxes of the same size.

    Returns:
        ``(N, C, *size)``.

    Example:
        >>> gather(torch.tensor([[[0, 1, 2]], [[3, 4, 5]]]), [1, 0], [(slice(0, 2),), (slice(1, 3),)])
        tensor([[[3, 4]],
        <BLANKLINE>
                [[1, 2]]])
    """
    if isinstance(x, CropSource):
        return x.gather(items, boxes)
    if list(items) == list(range(len(x))) and all(size_of(box) == tuple(x.shape[2:]) for box in boxes):
        return x
    source = crop_source(x)
    return source.gather(items, boxes) if isinstance(source, CropSource) else _gather(x, items, boxes)


def crop_source(x: Tensor) -> Tensor | CropSource:
    """A :class:`CropSource` where ``x`` will get a gradient, otherwise ``x`` itself.

    Example:
        >>> type(crop_source(torch.ones(1, requires_grad=True))).__name__, type(crop_source(torch.ones(1))).__name__
        ('CropSource', 'Tensor')
    """
    return CropSource(x) if x.requires_grad and torch.is_grad_enabled() and not exporting() else x


def _gather(x: Tensor, items: Sequence[int], boxes: Sequence[Box]) -> Tensor:
    if all(box == boxes[0] for box in boxes):
        return _gather_same_box(crop(x, boxes[0]), items)
    if x.is_contiguous():
        return torch.stack([crop(x[item], box) for item, box in zip(items, boxes, strict=True)])
    voxels_first = x.movedim(1, -1)  # the memory is channels-last, and is stacked as such
    parts = [voxels_first[item][box] for item, box in zip(items, boxes, strict=True)]
    return torch.stack(parts).movedim(-1, 1)


def _gather_same_box(part: Tensor, items: Sequence[int]) -> Tensor:
    if list(items) == list(range(len(part))):
        return part
    if all(item == items[0] for item in items):
        return part[items[0]].expand(len(items), *part.shape[1:])
    return part[list(items)]


def recrop(x: Tensor, boxes: Sequence[Box], inner: Sequence[Box]) -> Tensor:
    """Crop N tensors that fill their boxes to smaller boxes, all of one size.

    Args:
        x: ``(N, C, *size)``, the content of ``boxes``.
        boxes: N boxes.
        inner: N boxes, each inside its box.

    Example:
        >>> recrop(torch.tensor([[[5, 6, 7]]]), [(slice(10, 13),)], [(slice(11, 13),)])
        tensor([[[6, 7]]])
    """
    inside = [shift(small, box) for small, box in zip(inner, boxes, strict=True)]
    return gather(x, range(len(x)), inside)


def pool_times(pool: nn.Module, x: Tensor, times: int) -> Tensor:
    """Apply a pooling several times.

    Example:
        >>> pool_times(nn.MaxPool1d(2), torch.arange(8.0)[None], 2)
        tensor([[3., 7.]])
    """
    for _ in range(times):
        x = pool(x)
    return x


class Mask(NamedTuple):
    """An atlas mask of a window, cropped to the box outside which it is zero.

    Attributes:
        values: the mask inside the box, ``(*size)``.
        box: the box in the window; empty where the mask is.

    Example:
        >>> mask = Mask.of(torch.tensor([[0, 0, 0, 0], [0, 1, 1, 0]]))
        >>> mask.values, mask.box
        (tensor([[1, 1]]), (slice(1, 2, None), slice(1, 3, None)))
        >>> Mask.inside([mask], [(slice(0, 2), slice(0, 2))], torch.int64)
        tensor([[[[0, 0],
                  [0, 1]]]])
    """

    values: Tensor
    box: Box

    @classmethod
    def of(cls, mask: Tensor) -> Mask:
        """Crop a mask ``(*spatial)`` to its bounding box."""
        if exporting():  # the bounding box depends on the values
            return cls(mask, whole_box(mask.shape))
        box = mask_box(mask) or (slice(0, 0),) * mask.ndim
        return cls(mask[box], box)

    @staticmethod
    def inside(masks: Sequence[Mask], boxes: Sequence[Box], dtype: torch.dtype) -> Tensor:
        """Write N masks into boxes of the same size, ``(N, 1, *size)``; zero where a mask is not."""
        filled = torch.zeros(len(masks), 1, *size_of(boxes[0]), dtype=dtype, device=masks[0].values.device)
        for out, mask, box in zip(filled, masks, boxes, strict=True):
            shared = intersect(mask.box, box)
            if shared is not None:
                out[0][shift(shared, box)] = mask.values[shift(shared, mask.box)].to(dtype)
        return filled

    def pooled(self, pool: nn.Module, level: int, dtype: torch.dtype) -> Mask:
        """Pool the mask by 2 ``level`` times; its box is then in the voxels of that level.

        Example:
            >>> mask = Mask.of(torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1]]))
            >>> mask.pooled(nn.MaxPool2d(2), 1, torch.float32)
            Mask(values=tensor([[1.]]), box=(slice(0, 1, None), slice(1, 2, None)))
        """
        box = tuple(slice(axis.start >> level, -(-axis.stop >> level)) for axis in self.box)
        if 0 in size_of(box):
            return self
        values = Mask.inside([self], [scale(box, 2**level)], dtype)
        return Mask(pool_times(pool, values, level)[0, 0], box)
