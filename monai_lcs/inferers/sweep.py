"""The sweep over one volume: for each window encode once, decode every label there, and blend with other windows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from monai_lcs.boxes import Box, crop, pad_end, shared_box, shift, size_of, volume_of, whole_box
from monai_lcs.inferers.accumulator import NOWHERE, LogitAccumulator
from monai_lcs.inferers.adapters import Adapter, EncodeOnceAdapter
from monai_lcs.inferers.atlas_masks import AtlasMasks
from monai_lcs.inferers.margin import Part
from monai_lcs.inferers.ranks import share_out
from monai_lcs.inferers.splitter import WindowSplitter
from monai_lcs.networks import Features

__all__ = ["VolumeSweep", "stitched_features"]


COMPETING = 1 << 22  # voxels of boxes of labels that compete, at least, to decode at a time


class VolumeSweep:
    """Go through the windows of one volume and yield the blended logits of each part as soon as they are complete.

    Args:
        volume: image, atlas image and label map, ``(C, *spatial)``, padded by the splitter; see
            :class:`monai_lcs.inferers.LabelSweepInferer`.
        splitter: the windows over the volume.
        adapter: what encodes and decodes a window.
        device: where the logits are blended.
        sw_device: where the network is.
        parts_per_pass: parts in work at a time; ``None`` for all. Several passes keep the features of all windows.
        label_channels: how many channels at the end are label maps or votes, see
            :func:`monai_lcs.inferers.atlas_masks.count_label_channels`.
        votes: whether they are votes.

    Example:
        >>> from monai_lcs.inferers.adapters import PlainAdapter
        >>> volume = torch.tensor([[[5.0, 6.0, 7.0, 8.0]], [[0.0, 3.0, 3.0, 0.0]]])  # image and label map
        >>> splitter = WindowSplitter((1, 4), roi_size=(1, 2), overlap=0)
        >>> sweep = VolumeSweep(volume, splitter, PlainAdapter(lambda x: x[:, :1], labels_per_call=4))
        >>> [(part.label, logits) for part, logits in sweep.blended([Part(3, (3,), (slice(0, 1), slice(1, 3)))])]
        [(3, tensor([[6., 7.]]))]
    """

    def __init__(
        self,
        volume: Tensor,
        splitter: WindowSplitter,
        adapter: Adapter,
        device: torch.device | str = "cpu",
        sw_device: torch.device | str = "cpu",
        parts_per_pass: int | None = None,
        label_channels: int = 1,
        votes: bool = False,
    ) -> None:
        self.volume = volume
        self.images, self.labels, self.votes = volume[:-label_channels], volume[-label_channels:], votes
        self.splitter = splitter
        self.adapter = adapter
        self.device = torch.device(device)
        self.sw_device = torch.device(sw_device)
        self.dtype = torch.promote_types(volume.dtype, torch.float32)  # half precision is for the network, not for sums
        # Features that are stitched are decoded as those of one window
        self.windows: list[Box] = [whole_box(splitter.shape)] if adapter.stitches else splitter.windows
        # Without a margin every part is everywhere, so that with several windows all would be unfinished at once
        self.parts_per_pass = parts_per_pass if len(self.windows) > 1 else None
        self.kept: dict[int, Any] = {}

    def owners(self, parts: Sequence[Part], count: int) -> list[int]:
        """Which of several ranks decodes each part, see :func:`monai_lcs.inferers.ranks.share_out`."""
        shape = size_of(self.windows[0])
        owners = share_out(self.adapter.batches([part.box for part in parts], shape, self._room()), count)
        return [owners[i] for i in range(len(parts))]

    def blended(self, parts: Sequence[Part], wanted: Collection[int] | None = None) -> Iterator[tuple[Part, Tensor]]:
        """Yield each part with its blended logits, of the size of its box.

        Args:
            parts: the parts.
            wanted: the numbers of those to yield, all by default; the others are only decoded where they must be.
        """
        size = self.parts_per_pass or max(len(parts), 1)
        several = len(parts) > size
        importance = self.splitter.importance.to(self.device, self.dtype)
        for first in range(0, len(parts), size):
            chosen = parts[first : first + size]
            accumulator = LogitAccumulator([part.box for part in chosen], self.windows, importance)
            for w in accumulator.window_order():
                numbers = accumulator.boxes_in(w)
                asked = None if wanted is None else {n for n, i in enumerate(numbers) if first + i in wanted}
                if asked is not None and not asked:
                    continue
                features = self._encode(w, keep=several)
                for n, logits in self._decode(features, w, [chosen[i] for i in numbers], asked):
                    blended = accumulator.aggregate(numbers[n], w, logits)
                    if blended is not None:
                        yield chosen[numbers[n]], blended
                del features  # before those of the next window are computed

    def _encode(self, w: int, keep: bool) -> Any:
        """Compute the label-independent features of a window, or return those that an earlier pass has kept."""
        if w in self.kept:
            return self.kept[w]
        if isinstance(self.adapter, EncodeOnceAdapter) and self.adapter.stitches:
            shape = self._window_of(self.labels[-1:], w).shape[1:]
            return stitched_features(self.images, self.splitter, self.adapter, shape, self.sw_device)
        features = self.adapter.encode(self._window_of(self.images, w))
        if keep and self.adapter.encodes:
            self.kept[w] = features
        return features

    def _decode(
        self, features: Any, w: int, parts: Sequence[Part], wanted: Collection[int] | None
    ) -> Iterator[tuple[int, Tensor]]:
        """Decode parts where they meet the window; yield the number of each wanted one and its logits there."""
        masks_of = AtlasMasks(self._window_of(self.labels, w), self.votes)
        ids = {part.label: part.ids for part in parts}
        mask_of = {label: masks_of.of(ids[label]) for label in ids}
        boxes = [shift(shared_box(self.windows[w], part.box), self.windows[w]) for part in parts]
        masks: list[Any] = [mask_of[part.label] for part in parts]
        for n, logits in self.adapter.decode(features, masks, boxes, self._room(), wanted):
            if self.adapter.stitches and self.splitter.covered is not None:
                logits = logits.masked_fill(~self.splitter.covered[parts[n].box].to(logits.device), NOWHERE)
            yield n, logits.to(self.device, self.dtype)

    def _window_of(self, channels: Tensor, w: int) -> Tensor:
        """Crop channels ``(C, *spatial)`` to a window, on the network's device and padded to its stride."""
        window = crop(channels, self.windows[w]).to(self.sw_device)
        return pad_end(window[None], self.adapter.stride)[0] if self.adapter.stride > 1 else window

    def _room(self) -> float:
        """Voxels to decode at a time: on a CPU batches that fit its caches are the fastest, on a GPU few calls.

        Labels that compete share most of the work with those that are decoded with them; a voxel takes some 16 bytes
        for each atlas.
        """
        window = volume_of(self.splitter.windows[0])
        if self.adapter.competes:
            return max(16 * window, COMPETING) / max(len(self.labels) - 1, 1)
        return window / (1 if self.sw_device.type != "cpu" else 2 if self.adapter.stitches else 8)


def stitched_features(
    volume: Tensor, splitter: WindowSplitter, adapter: EncodeOnceAdapter, shape: Sequence[int], device: torch.device
) -> Features:
    """Encode all windows and blend their features to those of the whole volume.

    Args:
        volume: image and atlas image, ``(C, *spatial)``.
        splitter: the windows over the volume.
        adapter: one that ``stitches``.
        shape: of the result, the volume's, padded to the network's stride.
        device: where the network is.

    Returns:
        The features, in half precision where there are several windows.
    """
    if len(splitter.windows) == 1 and splitter.covered is None:
        return adapter.encode(volume.to(device))
    importance = splitter.importance.to(device, torch.float32)[..., None]
    weights = importance.new_zeros(*shape, 1)
    for window in splitter.windows:
        weights[window] += importance
    blended = None
    for window in splitter.windows:
        features = adapter.encode(crop(volume, window).to(device)).levels[0][0].movedim(0, -1)
        features = features[whole_box(size_of(window))]  # without the padding
        if blended is None:
            blended = torch.zeros(*shape, features.shape[-1], dtype=torch.float16, device=device)
        blended[window] += features * (importance / weights[window])
    assert blended is not None
    return Features((blended.movedim(-1, 0)[None],), tuple(splitter.shape))
