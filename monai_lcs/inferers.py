"""Inferers: from a network that answers for one label to the labels of a whole volume."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map, dense_patch_slices, get_valid_patch_size
from monai.inferers import Inferer
from monai.utils import BlendMode, ensure_tuple_rep, fall_back_tuple, look_up_option
from torch import Tensor
from tqdm import tqdm

from .boxes import Box, crop_box, cut, grow_box, intersect, label_boxes, mask_box, pad_end, shift, union_box, voxel_size
from .transforms.labels import LabelGroup, as_groups, label_mask

__all__ = ["AtlasLabelInferer", "LabelBoxInferer", "LabelSweepInferer"]

EXACT_INTEGERS = {torch.bfloat16: 2**8, torch.float16: 2**11, torch.float32: 2**24}


class LabelSweepInferer(Inferer):
    """Slide a window over the image, encode it once, decode every label in it, and keep the best label of each voxel.

    Equal, voxel for voxel, to running the whole network once per label through
    :class:`monai.inferers.SlidingWindowInferer`, keeping every label's probability, and taking the argmax where it
    exceeds the threshold; in the memory of a few labels. Logits are blended over windows as MONAI does, then squashed
    by a sigmoid. On a tie the smallest id wins, so the order of ``labels`` does not matter.

    A label can be restricted to the box of its atlas mask grown by ``margin_mm``: it is decoded only there and scores
    zero elsewhere. Use the margin the network was trained with (see :class:`LabelBoxInferer`).

    Memory beside the input: one float and one integer volume, the features of one window, and one volume (with
    ``margin_mm``, one box) for each label whose first window is done and whose last one is not. Without a margin and
    with several windows that would be every label: then ``labels_per_pass`` labels are in work at a time, and the
    features of all windows are kept for the next ones.

    Args:
        labels: which labels: ``None`` for all in the atlas label map; a list of ids and unions (a union, given as a
            list of ids, is written as its smallest id); or a mapping from the id to write to the ids of the union.
        roi_size: the window; ``None`` or non-positive components for the whole image.
        overlap: of neighboring windows, a fraction in [0, 1), one or for each axis.
        mode: how windows are blended, ``"constant"`` or ``"gaussian"``.
        sigma_scale: width of the Gaussian as a fraction of the window.
        threshold: background where no label's probability exceeds it.
        margin_mm: half-width of what is added around the atlas mask; ``None`` for everywhere. The voxel size is taken
            from the input's affine (:class:`monai.data.MetaTensor`), else 1 mm.
        labels_per_pass: labels decoded in one call of the network.
        output: ``"label_map"``, ``(B, 1, *spatial)`` of ids; or ``"masks"``, ``(B, L, *spatial)`` of 0 and 1, one
            channel for each of ``labels`` in their order (ascending where ``None``), which may overlap.
        on_label: called as ``on_label(item, label, probability)`` for each finished label: index in the batch, id,
            ``(1, *spatial)``. It is not kept.
        upsample: put this many voxels where there was one along each axis, the first and the last staying where they
            are (``(size - 1) * upsample + 1``): each label's logits are interpolated linearly before the best label is
            chosen, so that outlines are finer than the network's voxels. Time and memory of the merge grow accordingly.
        image_channels: channels of the image, which come first.
        progress: show a bar with the labels done.
        device: where the result is gathered; the input's by default.
        sw_device: where the network is; the input's by default.

    Raises:
        ValueError: When an argument is out of range.

    Example:
        >>> from monai_lcs.networks import LabelConditionedUNet
        >>> net = LabelConditionedUNet(spatial_dims=2, channels=(4, 8)).eval()
        >>> atlas_labels = torch.zeros(1, 1, 20, 20)
        >>> atlas_labels[..., 4:9, 4:9], atlas_labels[..., 12:18, 3:8] = 17, 53
        >>> inputs = torch.cat([torch.rand(1, 2, 20, 20), atlas_labels], dim=1)  # image, atlas image, atlas labels
        >>> inferer = LabelSweepInferer(roi_size=(16, 16), overlap=0.5, mode="gaussian")
        >>> inferer(inputs, net).shape
        torch.Size([1, 1, 20, 20])
        >>> LabelSweepInferer(labels={100: (17, 53), 53: (53,)}, output="masks")(inputs, net).shape
        torch.Size([1, 2, 20, 20])
    """

    def __init__(
        self,
        labels: Sequence[LabelGroup] | Mapping[int, Sequence[int]] | None = None,
        roi_size: Sequence[int] | int | None = None,
        overlap: Sequence[float] | float = 0.25,
        mode: str = "constant",
        sigma_scale: Sequence[float] | float = 0.125,
        threshold: float = 0.5,
        margin_mm: float | None = None,
        labels_per_pass: int = 8,
        output: str = "label_map",
        on_label: Callable[[int, int, Tensor], Any] | None = None,
        upsample: int = 1,
        image_channels: int = 1,
        progress: bool = False,
        device: torch.device | str | None = None,
        sw_device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.groups = None if labels is None else _output_groups(labels)
        if not 0 <= threshold < 1:
            raise ValueError(f"`threshold` must be in [0, 1), got {threshold}.")
        if margin_mm is not None and not 0 <= margin_mm < math.inf:
            raise ValueError(f"`margin_mm` must be >= 0 or None, got {margin_mm}.")
        if labels_per_pass < 1:
            raise ValueError(f"`labels_per_pass` must be > 0, got {labels_per_pass}.")
        if upsample < 1 or upsample != int(upsample):
            raise ValueError(f"`upsample` must be a whole number > 0, got {upsample}.")
        if any(not 0 <= o < 1 for o in (overlap if isinstance(overlap, Sequence) else (overlap,))):
            raise ValueError(f"`overlap` must be in [0, 1), got {overlap}.")
        self.roi_size = roi_size
        self.overlap = overlap
        self.mode = look_up_option(mode, BlendMode)
        self.sigma_scale = sigma_scale
        self.threshold = threshold
        self.margin_mm = margin_mm
        self.labels_per_pass = labels_per_pass
        self.output = look_up_option(output, ("label_map", "masks"))
        self.on_label = on_label
        self.upsample = int(upsample)
        self.image_channels = image_channels
        self.progress = progress
        self.device = device
        self.sw_device = sw_device

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Segment a batch of volumes.

        Args:
            inputs: ``(B, image + atlas image + 1, *spatial)``, the atlas label map last, on the image's grid.
            network: with ``stride``, ``encode`` and ``decode`` as :class:`~monai_lcs.networks.LabelConditionedUNet`
                has them, and features with ``crop`` and ``cat``; or any that takes one tensor, image, atlas image and
                one mask, and returns one channel of logits (slower, the same answer).
            *args: passed to a network of the second kind.
            **kwargs: likewise.

        Returns:
            ``(B, 1, *spatial)`` int32 or ``(B, L, *spatial)`` uint8, as ``output`` says, with the metadata of
            ``inputs``.
        """
        _check_sweep_input(inputs, self.image_channels)
        bare = getattr(network, "module", network)  # DistributedDataParallel has no encode
        splits = all(hasattr(bare, name) for name in ("stride", "encode", "decode"))
        if getattr(bare, "conditioning", "any") is None:
            raise ValueError("A network with conditioning=None answers for no label: use SlidingWindowInferer with it.")
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        results = []
        for item, volume in enumerate(plain):
            decoder = _Decoder(bare, self.image_channels) if splits else _PlainDecoder(network, args, kwargs)
            margin = None if self.margin_mm is None else _margin_voxels(self.margin_mm, inputs, item)
            results.append(self._sweep(item, volume, decoder, margin))
        result = torch.stack(results)
        if not isinstance(inputs, MetaTensor):
            return result
        result = MetaTensor(result).copy_meta_from(inputs)
        # The first voxel stays where it is: on a file of twice the resolution, fine voxels and the file's coincide
        result.affine = inputs.affine / torch.tensor([*[self.upsample] * (inputs.affine.shape[-1] - 1), 1])
        return result

    def _sweep(self, item: int, volume: Tensor, decoder: _AnyDecoder, margin: Sequence[int] | None) -> Tensor:
        """Segment one volume ``(C, *spatial)``."""
        device = torch.device(self.device or volume.device)
        grid = _Windows(volume.shape[1:], self.roi_size, self.overlap, self.mode, self.sigma_scale)
        volume = F.pad(volume, grid.padding)
        label_map = volume[-1:]
        groups = self.groups or {label: (label,) for label in label_boxes(label_map[0])}
        boxes = self._boxes(label_map, groups, margin)
        dtype = torch.promote_types(volume.dtype, torch.float32)  # half precision is for the network, not for sums
        weights = grid.weights.to(device, dtype)
        fine = [(size - 1) * self.upsample + 1 for size in grid.shape]
        inner = _refine(grid.inner, self.upsample)
        merge = _Merge(fine, self.threshold, device, dtype)
        masks = {}
        with tqdm(total=len(boxes), desc="labels", disable=not self.progress) as bar:
            for label, logits in self._finished(volume, grid, groups, boxes, decoder, weights):
                logits = logits / weights[boxes[label]]
                box = _refine(boxes[label], self.upsample)
                if self.upsample > 1:
                    mode = "bilinear" if logits.ndim == 2 else "trilinear"
                    size = [axis.stop - axis.start for axis in box]
                    logits = F.interpolate(logits[None, None], size=size, mode=mode, align_corners=True)[0, 0]
                merge.add(label, logits, box)
                if self.output == "masks":
                    masks[label] = _paste(logits > merge.threshold, box, fine)[inner][None]
                if self.on_label is not None:
                    self.on_label(item, label, _paste(torch.sigmoid(logits), box, fine)[inner][None])
                bar.update()
        if self.output == "label_map":
            return merge.label_map[inner][None]
        absent = torch.zeros_like(merge.label_map, dtype=torch.bool)[inner][None]
        return torch.cat([masks.get(label, absent) for label in groups]).to(torch.uint8)

    def _finished(
        self, volume: Tensor, grid: _Windows, groups, boxes, decoder: _AnyDecoder, weights: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        """Each label with its weighted sum of logits in its box, as soon as no later window touches it."""
        sw_device = torch.device(self.sw_device or volume.device)
        importance = grid.importance.to(sw_device, weights.dtype)
        for labels in self._passes(boxes, grid):
            live: dict[int, Tensor] = {}
            touched = {label: [i for i, w in enumerate(grid.windows) if intersect(w, boxes[label])] for label in labels}
            for i, window in enumerate(grid.windows):
                here = [label for label in labels if i in touched[label]]
                if not here:
                    continue
                view = cut(volume, window).to(sw_device)
                features = decoder.encode(view[:-1], key=i if len(labels) < len(boxes) else None)
                label_map = pad_end(view[None, -1:], decoder.stride)[0]
                for chunk in self._chunks(here, boxes, window, decoder.stride, label_map.shape[1:]):
                    masks = [label_mask(cut(label_map, crop), groups[label]) for label, crop in chunk]
                    answers = decoder.decode(features, torch.stack(masks), [crop for _, crop in chunk])
                    for (label, crop), logits in zip(chunk, answers, strict=True):
                        shared = _shared(window, boxes[label])
                        inside = shift(shared, window)
                        part = logits[shift(inside, crop)].to(importance.dtype) * importance[inside]
                        if label not in live:
                            live[label] = weights.new_zeros([axis.stop - axis.start for axis in boxes[label]])
                        live[label][shift(shared, boxes[label])] += part.to(weights.device)
                for label in here:
                    if touched[label][-1] == i:
                        yield label, live.pop(label)

    def _boxes(self, label_map: Tensor, groups: Mapping[int, tuple[int, ...]], margin) -> dict[int, Box]:
        """The box of each label the atlas has here; the whole (padded) volume without a margin."""
        shape = label_map.shape[1:]
        found = label_boxes(label_map[0])
        boxes = {}
        for label, ids in groups.items():
            parts = [found[i] for i in ids if i in found]
            if not parts:
                continue
            boxes[label] = (
                tuple(slice(0, size) for size in shape) if margin is None else grow_box(union_box(parts), margin, shape)
            )
        absent = sorted(set(groups) - set(boxes))
        if absent:
            warnings.warn(
                f"The atlas label map has no voxel of {absent} on this image: nothing is found there.", stacklevel=2
            )
        return boxes

    def _passes(self, boxes: Mapping[int, Box], grid: _Windows) -> Iterator[list[int]]:
        """All labels in one pass over the windows, unless they would all be alive at the same time."""
        labels = list(boxes)
        size = self.labels_per_pass if self.margin_mm is None and len(grid.windows) > 1 else max(len(labels), 1)
        for first in range(0, len(labels), size):
            yield labels[first : first + size]

    def _chunks(
        self, labels: Sequence[int], boxes: Mapping[int, Box], window: Box, stride: int, shape: Sequence[int]
    ) -> Iterator[list[tuple[int, Box]]]:
        """Labels that are decoded in one call, those whose crops have the same size, each with its crop."""
        together: dict[tuple[int, ...], list[tuple[int, Box]]] = {}
        for label in labels:
            crop = crop_box(shift(_shared(window, boxes[label]), window), stride, shape)
            together.setdefault(tuple(axis.stop - axis.start for axis in crop), []).append((label, crop))
        for group in together.values():
            for first in range(0, len(group), self.labels_per_pass):
                yield group[first : first + self.labels_per_pass]


class LabelBoxInferer(Inferer):
    """Encode each image once and decode every mask in its own box: what a network is trained with.

    One encoding serves K labels, and a label costs as much as its box. Outside the box the logit is -20 (probability
    2e-9), so that the loss still counts the target's voxels there.

    Args:
        margin_mm: half-width of what is added around the atlas mask; ``None`` for everywhere. Use the same
            in :class:`LabelSweepInferer`: a network with instance norm is defined by it.
        image_channels: channels of the image, which come first.
        atlas_channels: channels of the atlas image, which come next; the rest are atlas masks.

    Example:
        >>> from monai_lcs.networks import LabelConditionedUNet
        >>> net = LabelConditionedUNet(spatial_dims=2, channels=(4, 8))
        >>> masks = torch.zeros(1, 3, 20, 20)
        >>> masks[:, :, 4:9, 4:9] = 1
        >>> LabelBoxInferer(margin_mm=4)(torch.cat([torch.rand(1, 2, 20, 20), masks], dim=1), net).shape
        torch.Size([1, 3, 20, 20])
    """

    def __init__(self, margin_mm: float | None = None, image_channels: int = 1, atlas_channels: int = 1) -> None:
        super().__init__()
        if margin_mm is not None and not 0 <= margin_mm < math.inf:
            raise ValueError(f"`margin_mm` must be >= 0 or None, got {margin_mm}.")
        self.margin_mm = margin_mm
        self.image_channels = image_channels
        self.first_mask = image_channels + atlas_channels

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Answer for every mask.

        Args:
            inputs: ``(B, image + atlas image + K, *spatial)``, the atlas masks last.
            network: with ``encode`` and ``decode``, or, without a margin, any that takes ``inputs``.
            *args: passed to the network when there is no margin.
            **kwargs: likewise.

        Returns:
            Logits ``(B, K, *spatial)``.
        """
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs  # its upkeep costs at every layer
        if self.margin_mm is None:
            return network(plain, *args, **kwargs)
        # Through forward, where wrappers such as DistributedDataParallel expect the call
        return network(plain, boxes=self.boxes(inputs))

    def boxes(self, inputs: Tensor) -> list[list[Box | None]]:
        """The box of every mask, ``None`` for an empty one: ``boxes[item][k]``."""
        assert self.margin_mm is not None
        shape = inputs.shape[2:]
        masks = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        boxes = []
        for item, masks_of_item in enumerate(masks[:, self.first_mask :]):
            margin = _margin_voxels(self.margin_mm, inputs, item)
            boxes.append([box and grow_box(box, margin, shape) for box in map(mask_box, masks_of_item)])
        return boxes


class _Windows:
    """The windows over a volume and their weights, as MONAI's sliding window has them."""

    def __init__(self, shape: Sequence[int], roi_size, overlap, mode, sigma_scale) -> None:
        dims = len(shape)
        roi = fall_back_tuple(roi_size, shape)
        missing = [max(r - size, 0) for r, size in zip(roi, shape, strict=True)]
        before = [m // 2 for m in missing]
        self.padding = [side for b, m in zip(reversed(before), reversed(missing), strict=True) for side in (b, m - b)]
        self.inner = tuple(slice(b, b + size) for b, size in zip(before, shape, strict=True))
        self.shape = tuple(max(r, size) for r, size in zip(roi, shape, strict=True))
        overlap = ensure_tuple_rep(overlap, dims)
        intervals = [
            size if r == size else max(int(r * (1 - o)), 1) for r, size, o in zip(roi, self.shape, overlap, strict=True)
        ]
        self.windows: list[Box] = dense_patch_slices(self.shape, roi, intervals)
        size = get_valid_patch_size(self.shape, roi)
        self.importance = compute_importance_map(
            size, mode=mode, sigma_scale=sigma_scale, device="cpu", dtype=torch.float64
        )
        self.weights = torch.zeros(self.shape, dtype=torch.float64)
        for window in self.windows:
            self.weights[window] += self.importance


class _Merge:
    """The best logit and its label so far, at every voxel: where probabilities round to 1, logits still differ."""

    def __init__(self, shape: Sequence[int], threshold: float, device: torch.device, dtype: torch.dtype) -> None:
        self.threshold = math.log(threshold / (1 - threshold)) if threshold else -math.inf
        self.logit = torch.full(tuple(shape), self.threshold, dtype=dtype, device=device)
        self.label_map = torch.zeros(tuple(shape), dtype=torch.int32, device=device)

    def add(self, label: int, logits: Tensor, box: Box) -> None:
        best, label_map = self.logit[box], self.label_map[box]
        better = (logits > best) | ((logits == best) & (label < label_map))
        best[better] = logits[better]
        label_map[better] = label


class _Decoder:
    """A network with ``encode`` and ``decode``."""

    def __init__(self, network, image_channels: int) -> None:
        self.network = network
        self.image_channels = image_channels
        self.stride = network.stride
        self.kept: dict[int, Any] = {}

    def encode(self, window: Tensor, key: int | None) -> Any:
        """Features of image and atlas image ``(C, *spatial)``; kept under ``key`` for the next time it is asked for."""
        if key in self.kept:
            return self.kept[key]
        features = self.network.encode(window[None, : self.image_channels], window[None, self.image_channels :])
        if key is not None:
            self.kept[key] = features
        return features

    def decode(self, features: Any, masks: Tensor, crops: Sequence[Box]) -> Tensor:
        """Logits ``(N, *size)`` of N masks ``(N, 1, *size)``, each in its own crop."""
        if all(crop == crops[0] for crop in crops):  # nothing of the features need be copied for each mask
            return self.network.decode(features.crop(crops[0]), masks[:, 0][None])[0]
        return self.network.decode(type(features).cat([features.crop(crop) for crop in crops]), masks)[:, 0]


class _PlainDecoder:
    """A network of one tensor: image, atlas image and one mask."""

    stride = 1

    def __init__(self, network: Callable[..., Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.network, self.args, self.kwargs = network, args, kwargs

    def encode(self, window: Tensor, key: int | None) -> Tensor:
        """Nothing to encode."""
        return window

    def decode(self, window: Tensor, masks: Tensor, crops: Sequence[Box]) -> list[Tensor]:
        """Logits ``(*size)`` of N masks ``(N, 1, *size)``, each in its own crop, cut out of the window's."""
        full = window.new_zeros(len(masks), 1, *window.shape[1:])
        for i, crop in enumerate(crops):
            full[i, 0][crop] = masks[i, 0].to(full.dtype)
        inputs = torch.cat([window[None].expand(len(masks), *window.shape), full], dim=1)
        logits = self.network(inputs, *self.args, **self.kwargs)
        return [logits[i, 0][crop] for i, crop in enumerate(crops)]


_AnyDecoder = _Decoder | _PlainDecoder


def _refine(box: Box, factor: int) -> Box:
    return tuple(slice(axis.start * factor, (axis.stop - 1) * factor + 1) for axis in box)


def _paste(part: Tensor, box: Box, shape: Sequence[int]) -> Tensor:
    """The part in an otherwise empty volume."""
    full = part.new_zeros(tuple(shape))
    full[box] = part
    return full


def _margin_voxels(margin_mm: float, inputs: Tensor, item: int) -> list[int]:
    return [math.ceil(margin_mm / mm - 1e-6) for mm in voxel_size(inputs, item)]


def _shared(window: Box, box: Box) -> Box:
    shared = intersect(window, box)
    assert shared is not None
    return shared


def _output_groups(labels: Sequence[LabelGroup] | Mapping[int, Sequence[int]]) -> dict[int, tuple[int, ...]]:
    """The union of ids to ask for, for each id to write."""
    if isinstance(labels, Mapping):
        return dict(zip(labels, as_groups(list(labels.values())), strict=True))
    groups = as_groups(labels)
    named = {min(group): group for group in groups}
    if len(named) < len(groups):
        raise ValueError(
            "`labels` would write the same id for two groups (a union is written as its smallest id);"
            f" give a mapping {{id to write: ids}} instead, got {list(labels)}."
        )
    return named


def _check_sweep_input(inputs: Tensor, image_channels: int) -> None:
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


class AtlasLabelInferer(Inferer):
    """The atlas labels as they were aligned, whatever the network: the baseline every network must beat.

    Example:
        >>> AtlasLabelInferer()(torch.tensor([[[[0.5, 0.5]], [[0.4, 0.6]], [[17.0, 0.0]]]]), None)
        tensor([[[[17,  0]]]], dtype=torch.int32)
    """

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """``(B, 1, *spatial)`` int32, the last channel of ``inputs``."""
        return inputs[:, -1:].to(torch.int32)
