"""What the sweep over labels is made of: windows and their order, parts of labels, live sums, the merge, decoders."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices, get_valid_patch_size
from monai.utils import ensure_tuple_rep, fall_back_tuple
from torch import Tensor

from monai_lcs.boxes import Box, intersect, shift, union_box
from monai_lcs.labels.groups import label_mask
from monai_lcs.networks.crops import Mask

__all__ = [
    "NOWHERE",
    "AnyDecoder",
    "Decoder",
    "Live",
    "Merge",
    "Part",
    "PlainDecoder",
    "Windows",
    "check_sweep_input",
    "shared_box",
    "touching",
    "union_mask",
    "volume_of",
    "window_order",
]

EXACT_INTEGERS = {torch.bfloat16: 2**8, torch.float16: 2**11, torch.float32: 2**24}
NOWHERE = -1e4  # logit of a probability of 0; finite, as it is interpolated


class Windows:
    """The windows over a volume and how they are weighted, as MONAI's sliding window has them."""

    def __init__(self, shape: Sequence[int], roi_size, overlap, mode, sigma_scale) -> None:
        dims = len(shape)
        roi = fall_back_tuple(roi_size, shape)
        missing = [max(r - size, 0) for r, size in zip(roi, shape, strict=True)]
        before = [m // 2 for m in missing]
        self.padding = [side for b, m in zip(reversed(before), reversed(missing), strict=True) for side in (b, m - b)]
        self.covered: Tensor | None = None  # by windows that are not skipped; None for all
        self.inner = tuple(slice(b, b + size) for b, size in zip(before, shape, strict=True))
        self.shape = tuple(max(r, size) for r, size in zip(roi, shape, strict=True))
        overlap = ensure_tuple_rep(overlap, dims)
        intervals = [
            size if r == size else max(int(r * (1 - o)), 1) for r, size, o in zip(roi, self.shape, overlap, strict=True)
        ]
        self.windows: list[Box] = [
            tuple(slice(int(axis.start), int(axis.stop)) for axis in window)
            for window in dense_patch_slices(self.shape, roi, intervals)
        ]
        size = get_valid_patch_size(self.shape, roi)
        self.importance = compute_importance_map(
            size, mode=mode, sigma_scale=sigma_scale, device="cpu", dtype=torch.float32
        )


class Part(NamedTuple):
    """A label, or a union of ids, in one of its boxes."""

    label: int
    ids: tuple[int, ...]
    box: Box


class Live:
    """Sums of logits of the parts that lie in several windows, from a part's first window to its last."""

    def __init__(self, parts: Sequence[Part], windows: Sequence[Box], importance: Tensor) -> None:
        self.parts, self.windows, self.importance = parts, windows, importance
        self.sums: dict[int, Tensor] = {}
        self.seen: dict[int, list[int]] = {}

    def add(self, i: int, w: int, logits: Tensor) -> None:
        """Add what window ``w`` says of part ``i`` where they meet."""
        box, window = self.parts[i].box, self.windows[w]
        shared = shared_box(window, box)
        self.seen.setdefault(i, []).append(w)
        if shared == box and i not in self.sums:
            self.sums[i] = logits * self.importance[shift(shared, window)]
            return
        if i not in self.sums:
            self.sums[i] = logits.new_zeros([axis.stop - axis.start for axis in box])
        self.sums[i][shift(shared, box)] += logits * self.importance[shift(shared, window)]

    def pop(self, i: int) -> Tensor:
        """The blended logits of part ``i``, in its box; those of windows that were skipped say nothing."""
        box = self.parts[i].box
        weights = torch.zeros_like(self.sums[i])
        for w in self.seen.pop(i):
            shared = shared_box(self.windows[w], box)
            weights[shift(shared, box)] += self.importance[shift(shared, self.windows[w])]
        logits = self.sums.pop(i).div_(weights)
        return logits.masked_fill_(weights == 0, NOWHERE)


class Merge:
    """The best logit and its label so far, at every voxel: where probabilities round to 1, logits still differ."""

    def __init__(
        self, labels: Iterable[int], shape: Sequence[int], threshold: float, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.labels = sorted(labels)
        self.rank = {label: i for i, label in enumerate(self.labels, start=1)}
        fits = next(t for t in (torch.uint8, torch.int16, torch.int32) if len(self.labels) <= torch.iinfo(t).max)
        self.threshold = math.log(threshold / (1 - threshold)) if threshold else -math.inf
        self.logit = torch.full(tuple(shape), self.threshold, dtype=dtype, device=device)
        self.ranks = torch.zeros(tuple(shape), dtype=fits, device=device)

    def add(self, label: int, logits: Tensor, box: Box) -> None:
        """Put the label where it is better than those before, or as good and its id smaller."""
        best, ranks = self.logit[box], self.ranks[box]
        better = (logits > best) | ((logits == best) & (self.rank[label] < ranks))
        ranks.masked_fill_(better, self.rank[label])
        best.copy_(torch.maximum(best, logits))

    def label_map(self) -> Tensor:
        """The ids, int32."""
        table = torch.tensor([0, *self.labels], dtype=torch.int32, device=self.ranks.device)
        return table[self.ranks.int()]


class Decoder:
    """A network with ``encode`` and ``decode_boxes``."""

    def __init__(self, network, image_channels: int, halo: int | str) -> None:
        self.network = network
        self.image_channels = image_channels
        self.halo = halo
        self.stride = getattr(network, "stride", 1)
        self.depends_on_box = getattr(network, "depends_on_box", False)
        self.splits = not self.depends_on_box
        self.stitches = getattr(network, "stitches", False)
        self.kept: dict[int, Any] = {}

    def encode(self, window: Tensor, key: int | None) -> Any:
        """Features of image and atlas image ``(C, *spatial)``; kept under ``key`` for the next time it is asked for."""
        if key in self.kept:
            return self.kept[key]
        features = self.network.encode(window[None, : self.image_channels], window[None, self.image_channels :])
        if key is not None:
            self.kept[key] = features
        return features

    def decode(
        self, features: Any, masks: Sequence[Mask], boxes: Sequence[Box], room: float
    ) -> Iterator[tuple[int, Tensor]]:
        """The number of each mask and its logits in its box."""
        return self.network.decode_boxes(features, masks, boxes, halo=self.halo, room=room)


class PlainDecoder:
    """A network of one tensor: image, atlas image and one mask."""

    stride = 1
    splits = stitches = depends_on_box = False  # the whole window is computed whatever the box

    def __init__(
        self, network: Callable[..., Tensor], most: int, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        self.network, self.most, self.args, self.kwargs = network, most, args, kwargs

    def encode(self, window: Tensor, key: int | None) -> Tensor:
        """Nothing to encode."""
        return window

    def decode(
        self, window: Tensor, masks: Sequence[Mask], boxes: Sequence[Box], room: float
    ) -> Iterator[tuple[int, Tensor]]:
        """The number of each mask and its logits in its box, cut out of the window's."""
        whole = tuple(slice(0, size) for size in window.shape[1:])
        for first in range(0, len(masks), self.most):
            chosen = masks[first : first + self.most]
            stacked = Mask.inside(chosen, [whole] * len(chosen), window.dtype)
            inputs = torch.cat([window[None].expand(len(chosen), *window.shape), stacked], dim=1)
            logits = self.network(inputs, *self.args, **self.kwargs)
            for i, one in enumerate(logits, start=first):
                yield i, one[0][boxes[i]]


AnyDecoder = Decoder | PlainDecoder


def shared_box(window: Box, box: Box) -> Box:
    """What a window and a box that meet share."""
    shared = intersect(window, box)
    assert shared is not None
    return shared


def union_mask(label_map: Tensor, found: Mapping[int, Box], ids: Sequence[int]) -> Mask:
    """The mask of a union, from the boxes of the labels in the map."""
    boxes = [found[i] for i in ids if i in found]
    box = union_box(boxes) if boxes else (slice(0, 0),) * label_map.ndim
    return Mask(label_mask(label_map[box], ids), box)


def volume_of(box: Box) -> int:
    """The number of voxels in a box."""
    return math.prod(axis.stop - axis.start for axis in box)


def _corners(boxes: Sequence[Box]) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops ``(N, dims)``."""
    corners = np.array([[(axis.start, axis.stop) for axis in box] for box in boxes])
    return corners[..., 0], corners[..., 1]


def touching(boxes: Sequence[Box], windows: Sequence[Box]) -> np.ndarray:
    """Whether each box meets each window, ``(boxes, windows)``."""
    if not boxes:
        return np.zeros((0, len(windows)), dtype=bool)
    (start, stop), (first, end) = _corners(boxes), _corners(windows)
    return np.all((start[:, None] < end) & (first < stop[:, None]), axis=-1)


def window_order(windows: Sequence[Box], touches: np.ndarray, sizes: Sequence[int]) -> list[int]:
    """The windows row by row, along the axes in the order that keeps the fewest voxels of boxes alive at a time."""

    def live(order: list[int]) -> int:
        met = touches[:, order]
        begun = np.logical_or.accumulate(met, axis=1)
        to_come = np.logical_or.accumulate(met[:, ::-1], axis=1)[:, ::-1]
        return int(((begun & to_come) * np.asarray(sizes)[:, None]).sum(axis=0).max(initial=0))

    dims = len(windows[0])
    orders = (
        sorted(range(len(windows)), key=lambda w: [windows[w][axis].start for axis in axes])
        for axes in itertools.permutations(range(dims))
    )
    return min(orders, key=live)


def check_sweep_input(inputs: Tensor, image_channels: int) -> None:
    """Raise a ValueError unless the input is ``(B, image + atlas image + 1, *spatial)`` with a label map at its end."""
    if inputs.ndim not in (4, 5) or inputs.shape[1] < image_channels + 1:
        raise ValueError(
            "The input must be (B, image + atlas image + atlas label map, *spatial) with 2 or 3 spatial axes,"
            f" got shape {tuple(inputs.shape)} with `image_channels` {image_channels}."
        )
    label_map = inputs[:, -1]
    largest = EXACT_INTEGERS.get(inputs.dtype)
    if largest is not None and label_map.max() > largest:
        raise ValueError(
            f"{inputs.dtype} does not hold label ids above {largest} exactly, got {label_map.max().item():g}:"
            " give the input in float32; the network may still compute in half precision under autocast."
        )
    if not torch.isfinite(label_map).all() or (label_map < 0).any() or (label_map != label_map.round()).any():
        wrong = label_map[~torch.isfinite(label_map) | (label_map < 0) | (label_map != label_map.round())][0].item()
        raise ValueError(f"The last channel must be the atlas label map, integers >= 0, got {wrong:g}.")
