"""Which windows a sweep goes through, and in which order."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map, dense_patch_slices, get_valid_patch_size
from monai.utils import ensure_tuple_rep, fall_back_tuple
from torch import Tensor

from monai_lcs.boxes import Box

__all__ = ["WindowSplitter", "touching", "window_order"]


class WindowSplitter:
    """Split a volume into the windows of MONAI's sliding window, with the same padding and weights.

    Args:
        shape: spatial shape of the volume.
        roi_size: size of a window; ``None`` or non-positive components for the whole volume.
        overlap: overlap of neighboring windows as a fraction, one or for each axis.
        mode: how windows are weighted, ``"constant"`` or ``"gaussian"``.
        sigma_scale: width of the Gaussian as a fraction of the window.

    Attributes:
        padding: what is added where the volume is smaller than the window, as ``torch.nn.functional.pad`` takes it.
        shape: spatial shape of the padded volume.
        inner: the box of the volume in the padded one.
        windows: the boxes of the windows.
        importance: weight of each voxel of a window, ``(*roi_size)``.
        covered: bool ``(*shape)``, where at least one window is left after :meth:`skip_background`; ``None`` before.

    Example:
        >>> splitter = WindowSplitter((10, 4), roi_size=(6, 6), overlap=0)
        >>> splitter.pad(torch.rand(1, 10, 4)).shape
        torch.Size([1, 10, 6])
        >>> [window[0] for window in splitter.windows], splitter.inner
        ([slice(0, 6, None), slice(4, 10, None)], (slice(0, 10, None), slice(1, 5, None)))
    """

    def __init__(
        self,
        shape: Sequence[int],
        roi_size: Sequence[int] | int | None = None,
        overlap: Sequence[float] | float = 0.25,
        mode: str = "constant",
        sigma_scale: Sequence[float] | float = 0.125,
    ) -> None:
        roi = fall_back_tuple(roi_size, shape)
        missing = [max(r - size, 0) for r, size in zip(roi, shape, strict=True)]
        before = [m // 2 for m in missing]
        self.padding = [side for b, m in zip(reversed(before), reversed(missing), strict=True) for side in (b, m - b)]
        self.inner: Box = tuple(slice(b, b + size) for b, size in zip(before, shape, strict=True))
        self.shape = tuple(max(r, size) for r, size in zip(roi, shape, strict=True))
        self.windows = _sliding_windows(self.shape, roi, ensure_tuple_rep(overlap, len(shape)))
        self.importance = compute_importance_map(
            get_valid_patch_size(self.shape, roi), mode=mode, sigma_scale=sigma_scale, device="cpu", dtype=torch.float32
        )
        self.covered: Tensor | None = None

    def pad(self, volume: Tensor) -> Tensor:
        """Pad a volume ``(C, *spatial)`` with zeros to the size of a window, at both ends of each axis."""
        return F.pad(volume, self.padding) if any(self.padding) else volume

    def skip_background(self, foreground: Tensor) -> Tensor:
        """Leave out the windows that contain no foreground.

        Args:
            foreground: bool, ``(*shape)``.

        Returns:
            Where at least one window is left, bool ``(*shape)``; it is kept as ``covered``.

        Example:
            >>> splitter = WindowSplitter((6,), roi_size=(3,), overlap=0)
            >>> splitter.skip_background(torch.tensor([False, True, False, False, False, False]))
            tensor([ True,  True,  True, False, False, False])
            >>> splitter.windows
            [(slice(0, 3, None),)]
        """
        self.windows = [window for window in self.windows if foreground[window].any()]
        self.covered = torch.zeros_like(foreground)
        for window in self.windows:
            self.covered[window] = True
        return self.covered


def _sliding_windows(shape: Sequence[int], roi: Sequence[int], overlap: Sequence[float]) -> list[Box]:
    """The windows of :class:`monai.inferers.SlidingWindowInferer`, in its order."""
    intervals = [
        size if r == size else max(int(r * (1 - o)), 1) for r, size, o in zip(roi, shape, overlap, strict=True)
    ]
    return [
        tuple(slice(int(axis.start), int(axis.stop)) for axis in window)
        for window in dense_patch_slices(shape, roi, intervals)
    ]


def touching(boxes: Sequence[Box], windows: Sequence[Box]) -> np.ndarray:
    """Whether each box meets each window, bool ``(boxes, windows)``.

    Example:
        >>> touching([(slice(2, 5),), (slice(4, 6),)], windows=[(slice(0, 4),), (slice(4, 8),)])
        array([[ True,  True],
               [False,  True]])
    """
    if not boxes:
        return np.zeros((0, len(windows)), dtype=bool)
    (start, stop), (first, end) = _corners(boxes), _corners(windows)
    return np.all((start[:, None] < end) & (first < stop[:, None]), axis=-1)


def _corners(boxes: Sequence[Box]) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops of boxes, each ``(N, dims)``."""
    corners = np.array([[(axis.start, axis.stop) for axis in box] for box in boxes])
    return corners[..., 0], corners[..., 1]


def window_order(windows: Sequence[Box], touches: np.ndarray, sizes: Sequence[int]) -> list[int]:
    """Order the windows so that the fewest voxels of unfinished boxes are in memory at a time.

    A box is unfinished from the first window that it meets to the last. The windows go row by row; of the orders of
    the axes (six in 3D) the best is taken.

    Args:
        windows: W windows.
        touches: whether each of N boxes meets each window, ``(N, W)``, see :func:`touching`.
        sizes: the volumes of the N boxes.

    Returns:
        Indices of the windows.

    Example:
        >>> windows = [(slice(a, a + 4), slice(b, b + 4)) for a in (0, 4) for b in (0, 4)]
        >>> boxes = [(slice(0, 8), slice(0, 4)), (slice(0, 8), slice(4, 8))]  # both are long along the first axis
        >>> window_order(windows, touching(boxes, windows), sizes=[32, 32])
        [0, 2, 1, 3]
    """

    def most_unfinished(order: list[int]) -> int:
        met = touches[:, order]
        begun = np.logical_or.accumulate(met, axis=1)
        to_come = np.logical_or.accumulate(met[:, ::-1], axis=1)[:, ::-1]
        return int(((begun & to_come) * np.asarray(sizes)[:, None]).sum(axis=0).max(initial=0))

    dims = len(windows[0])
    orders = (
        sorted(range(len(windows)), key=lambda w: [windows[w][axis].start for axis in axes])
        for axes in itertools.permutations(range(dims))
    )
    return min(orders, key=most_unfinished)
