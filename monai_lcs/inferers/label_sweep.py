"""Inferers: from a network that answers for one label to the labels of a whole volume."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import BlendMode, look_up_option
from torch import Tensor
from tqdm import tqdm

from monai_lcs.boxes import (
    Box,
    crop as cut,
    grow_box,
    intersect,
    label_boxes,
    mask_box,
    pad_end,
    shift,
    split_box,
    union_box,
    unshift,
)
from monai_lcs.grids import voxel_size
from monai_lcs.inferers.sweep import (
    NOWHERE,
    AnyDecoder,
    Decoder,
    Live,
    Merge,
    Part,
    PlainDecoder,
    Windows,
    check_sweep_input,
    shared_box,
    touching,
    union_mask,
    volume_of,
    window_order,
)
from monai_lcs.labels.groups import LabelGroup, as_groups, label_mask
from monai_lcs.networks import Features, check_halo

__all__ = ["AtlasLabelInferer", "LabelBoxInferer", "LabelSweepInferer"]


class LabelSweepInferer(Inferer):
    """Slide a window over the image, encode it once, decode every label in it, and keep the best label of each voxel.

    Equal, voxel for voxel, to running the whole network once per label through
    :class:`monai.inferers.SlidingWindowInferer`, keeping every label's probability, and taking the argmax where it
    exceeds the threshold; in the time and memory of a few labels. Logits are blended over windows as MONAI does, then
    squashed by a sigmoid. On a tie the smallest id wins, so the order of ``labels`` does not matter. Of a network that
    decodes once for all labels (``conditioning="shared"``) the features are blended instead, in half precision, and
    every label is decoded in one piece; in one window that is the same.

    With ``margin_mm`` a label is decoded only in the box of its atlas mask grown by this margin, and scores zero
    elsewhere. A label whose mask fills little of its box (the left and right halves of a union, a thin ribbon) is split
    into several boxes where that is cheaper. Inside its boxes the answer is that of the whole window, unless ``halo``
    is less than exact or the network's answer depends on the box: such a network sees each label in one box, and only
    with one window (``roi_size=None``) the same one as in training (see :class:`LabelBoxInferer`).

    Memory, in bytes, beside the input, for V voxels (in the first term those of the result, see ``upsample``), a window
    of W voxels, a network whose first level has C channels, and float32::

        V * (4 + b) + W * C * 4 * 5 + (V * 2 * (E + 3) where features are blended, else 4 * live)

    b is 1, 2 or 4, to hold the number of labels, and E the channels of the embedding; on a CPU, PyTorch's kernels add
    about 0.2 GiB (``docs/performance.md`` has the measured figures). ``live`` are the voxels of the boxes that lie in
    more than one window, from their first window to their last. The order of the windows is the one of six, in 3D,
    with the fewest live voxels. Nothing grows with the number of labels but ``live``, and that is bounded by how often
    boxes overlap. ``on_label`` and ``output="masks"`` add a volume for each label. Without a margin and with several
    windows all labels would be alive at once: then ``labels_per_pass`` of them are in work at a time, and the features
    of all windows are kept for the next ones.

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
        halo: how far the crops of features reach beyond a label's box, ``"exact"`` or voxels of each level, see
            :meth:`monai_lcs.networks.LabelConditionedUNet.decode`.
        labels_per_pass: labels in work at a time, where there are several windows and no margin, and in one call of a
            network without ``decode_boxes``.
        output: ``"label_map"``, ``(B, 1, *spatial)`` of ids; or ``"masks"``, ``(B, L, *spatial)`` of 0 and 1, one
            channel for each of ``labels`` in their order (ascending where ``None``), which may overlap.
        on_label: called as ``on_label(item, label, probability)`` for each finished label: index in the batch, id,
            ``(1, *spatial)``. It is not kept.
        upsample: put this many voxels where there was one along each axis, the first and the last staying where they
            are (``(size - 1) * upsample + 1``): each label's logits are interpolated linearly before the best label is
            chosen, so that outlines are finer than the network's voxels. Time and memory of the merge grow accordingly.
        select_fn: what is foreground, for instance ``lambda image: image > 0``: called with the image
            ``(C, *spatial)``, gives booleans of its shape. Windows without a voxel of it are skipped: what only they
            see scores zero. Everything is foreground by default.
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
        >>> inferer = LabelSweepInferer(roi_size=(16, 16), overlap=0.5, mode="gaussian", margin_mm=3)
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
        halo: int | str = "exact",
        labels_per_pass: int = 16,
        output: str = "label_map",
        on_label: Callable[[int, int, Tensor], Any] | None = None,
        upsample: int = 1,
        select_fn: Callable[[Tensor], Tensor] | None = None,
        image_channels: int = 1,
        progress: bool = False,
        device: torch.device | str | None = None,
        sw_device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.groups = None if labels is None else _output_groups(labels)
        if not 0 <= threshold < 1:
            raise ValueError(f"`threshold` must be in [0, 1), got {threshold}.")
        if labels_per_pass < 1:
            raise ValueError(f"`labels_per_pass` must be > 0, got {labels_per_pass}.")
        if upsample < 1 or upsample != int(upsample):
            raise ValueError(f"`upsample` must be a whole number > 0, got {upsample}.")
        if any(not 0 <= o < 1 for o in (overlap if isinstance(overlap, Sequence) else (overlap,))):
            raise ValueError(f"`overlap` must be in [0, 1), got {overlap}.")
        _check_margin(margin_mm)
        check_halo(halo)
        self.roi_size = roi_size
        self.overlap = overlap
        self.mode = look_up_option(mode, BlendMode)
        self.sigma_scale = sigma_scale
        self.threshold = threshold
        self.margin_mm = margin_mm
        self.halo = halo
        self.labels_per_pass = labels_per_pass
        self.output = look_up_option(output, ("label_map", "masks"))
        self.on_label = on_label
        self.upsample = int(upsample)
        self.select_fn = select_fn
        self.image_channels = image_channels
        self.progress = progress
        self.device = device
        self.sw_device = sw_device

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Segment a batch of volumes.

        Args:
            inputs: ``(B, image + atlas image + 1, *spatial)``, the atlas label map last, on the image's grid.
            network: with ``encode`` and ``decode_boxes`` as :class:`~monai_lcs.networks.LabelConditionedUNet` has
                them; or any that takes one tensor, image, atlas image and one mask, and returns one channel of logits
                (slower, the same answer).
            *args: passed to a network of the second kind.
            **kwargs: likewise.

        Returns:
            ``(B, 1, *spatial)`` int32 or ``(B, L, *spatial)`` uint8, as ``output`` says, with the metadata of
            ``inputs``.
        """
        check_sweep_input(inputs, self.image_channels)
        bare = getattr(network, "module", network)  # DistributedDataParallel has no encode
        if getattr(bare, "conditioning", "any") is None:
            raise ValueError("A network with conditioning=None answers for no label: use SlidingWindowInferer with it.")
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        results = []
        for item, volume in enumerate(plain):
            decoder: AnyDecoder = PlainDecoder(network, self.labels_per_pass, args, kwargs)
            if hasattr(bare, "encode") and hasattr(bare, "decode_boxes"):
                decoder = Decoder(bare, self.image_channels, self.halo)
            margin = None if self.margin_mm is None else _margin_voxels(self.margin_mm, inputs, item)
            results.append(self._sweep(item, volume, decoder, margin))
        result = torch.stack(results)
        if not isinstance(inputs, MetaTensor):
            return result
        result = MetaTensor(result).copy_meta_from(inputs)
        # The first voxel stays where it is: on a file of twice the resolution, fine voxels and the file's coincide
        result.affine = inputs.affine / torch.tensor([*[self.upsample] * (inputs.affine.shape[-1] - 1), 1])
        return result

    def _sweep(self, item: int, volume: Tensor, decoder: AnyDecoder, margin: Sequence[int] | None) -> Tensor:
        """Segment one volume ``(C, *spatial)``."""
        device = torch.device(self.device or volume.device)
        grid = Windows(volume.shape[1:], self.roi_size, self.overlap, self.mode, self.sigma_scale)
        if any(grid.padding):
            volume = F.pad(volume, grid.padding)
        groups = self.groups or {label: (label,) for label in label_boxes(volume[-1])}
        _warn_of_absent(groups, volume[-1])
        volume = self._skip_background(volume, grid)
        parts = self._parts(volume[-1], groups, margin, split=decoder.splits)
        if decoder.depends_on_box and margin is not None and len(grid.windows) > 1:
            warnings.warn(
                "This network normalizes over a label's box, which several windows cut: labels may show seams."
                " Use one window (roi_size=None) or a norm that does not look at the box.",
                stacklevel=3,
            )
        dtype = torch.promote_types(volume.dtype, torch.float32)  # half precision is for the network, not for sums
        fine = [(size - 1) * self.upsample + 1 for size in grid.shape]
        inner = _refine(grid.inner, self.upsample)
        merge = Merge(groups, fine, self.threshold, device, dtype)
        unfinished = Counter(part.label for part in parts)
        masks: dict[int, Tensor] = {}
        logits_of: dict[int, Tensor] = {}
        with tqdm(total=len(unfinished), desc="labels", disable=not self.progress) as bar:
            for part, logits in self._finished(volume, grid, parts, decoder, device, dtype):
                box = _refine(part.box, self.upsample)
                if self.upsample > 1:
                    mode = "bilinear" if logits.ndim == 2 else "trilinear"
                    size = [axis.stop - axis.start for axis in box]
                    logits = F.interpolate(logits[None, None], size=size, mode=mode, align_corners=True)[0, 0]
                merge.add(part.label, logits, box)
                unfinished[part.label] -= 1
                if self.output == "masks" or self.on_label is not None:
                    if part.label not in logits_of:
                        logits_of[part.label] = logits.new_full(fine, NOWHERE)
                    whole = logits_of[part.label]
                    whole[box] = torch.maximum(whole[box], logits)
                if unfinished[part.label]:
                    continue
                bar.update()
                if part.label in logits_of:
                    whole = logits_of.pop(part.label)[inner][None]
                    if self.output == "masks":
                        masks[part.label] = whole > merge.threshold
                    if self.on_label is not None:
                        self.on_label(item, part.label, torch.sigmoid(whole))
        if self.output == "label_map":
            return merge.label_map()[inner][None]
        absent = torch.zeros(fine, dtype=torch.bool, device=device)[inner][None]
        return torch.cat([masks.get(label, absent) for label in groups]).to(torch.uint8)

    def _finished(
        self,
        volume: Tensor,
        grid: Windows,
        parts: Sequence[Part],
        decoder: AnyDecoder,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Iterator[tuple[Part, Tensor]]:
        """Each part with its logits, as soon as no later window touches it."""
        sw_device = torch.device(self.sw_device or volume.device)
        importance = grid.importance.to(device, dtype)
        if not parts:
            return
        # On a CPU batches that fit its caches are the fastest, on a GPU few calls
        room = volume_of(grid.windows[0]) / (1 if sw_device.type != "cpu" else 2 if decoder.stitches else 8)
        windows = [tuple(slice(0, size) for size in grid.shape)] if decoder.stitches else grid.windows
        touches = touching([part.box for part in parts], windows)
        # Without a margin every label is everywhere, so that with several windows all would be alive
        everywhere = self.margin_mm is None and len(windows) > 1
        size = self.labels_per_pass if everywhere else max(len(parts), 1)
        for first in range(0, len(parts), size):
            chosen = range(first, min(first + size, len(parts)))
            order = window_order(windows, touches[chosen], [volume_of(parts[i].box) for i in chosen])
            last = {i: max((step for step, w in enumerate(order) if touches[i, w]), default=-1) for i in chosen}
            live = Live(parts, windows, importance)
            for step, w in enumerate(order):
                here = [i for i in chosen if touches[i, w]]
                if not here:
                    continue
                window = windows[w]
                features: Any
                view = cut(volume, window).to(sw_device)
                view = pad_end(view[None], decoder.stride)[0] if decoder.stride > 1 else view
                if isinstance(decoder, Decoder) and decoder.stitches:
                    features = self._stitched(volume, grid, view.shape[1:], decoder, sw_device)
                else:
                    features = decoder.encode(view[:-1], key=w if everywhere else None)
                found = label_boxes(view[-1])
                of_label = {parts[i].label: union_mask(view[-1], found, parts[i].ids) for i in here}
                masks = [of_label[parts[i].label] for i in here]
                boxes = [shift(shared_box(window, parts[i].box), window) for i in here]
                for n, logits in decoder.decode(features, masks, boxes, room=room):
                    i = here[n]
                    if decoder.stitches and grid.covered is not None:
                        covered = grid.covered[parts[i].box].to(logits.device)
                        logits = logits.masked_fill(~covered, NOWHERE)
                    if intersect(window, parts[i].box) == parts[i].box and touches[i].sum() == 1:  # nothing to blend
                        yield parts[i], logits.to(device, dtype)
                        continue
                    live.add(i, w, logits.to(device, dtype))
                    if last[i] == step:
                        yield parts[i], live.pop(i)
                del features

    def _stitched(
        self, volume: Tensor, grid: Windows, shape: Sequence[int], decoder: Decoder, sw_device: torch.device
    ) -> Features:
        """The features of all windows as those of one of ``shape``; in half precision where they are several."""
        if len(grid.windows) == 1 and grid.covered is None:
            return decoder.encode(volume[:-1].to(sw_device), key=None)
        importance = grid.importance.to(sw_device, torch.float32)[..., None]
        weights = importance.new_zeros(*shape, 1)
        for window in grid.windows:
            weights[window] += importance
        blended = None
        for window in grid.windows:
            features = decoder.encode(cut(volume, window)[:-1].to(sw_device), key=None).levels[0][0].movedim(0, -1)
            features = features[tuple(slice(0, axis.stop - axis.start) for axis in window)]
            if blended is None:
                blended = torch.zeros(*shape, features.shape[-1], dtype=torch.float16, device=sw_device)
            blended[window] += features * (importance / weights[window])
        assert blended is not None
        return Features((blended.movedim(-1, 0)[None],), tuple(grid.shape))

    def _parts(self, label_map: Tensor, groups: Mapping[int, tuple[int, ...]], margin, split: bool) -> list[Part]:
        """The boxes of each label the atlas has here; the whole (padded) volume without a margin."""
        shape = label_map.shape
        found = label_boxes(label_map)
        parts = []
        for label, ids in groups.items():
            boxes = [found[i] for i in ids if i in found]
            if not boxes:
                continue
            if margin is None:
                parts.append(Part(label, ids, tuple(slice(0, size) for size in shape)))
                continue
            box = union_box(boxes)
            tight = (
                split_box(label_mask(label_map[box], ids), margin)
                if split
                else [tuple(slice(0, s.stop - s.start) for s in box)]
            )
            # Interpolation does not go from one box to the next: those side by side must overlap
            more = [max(m, 1) for m in margin] if len(tight) > 1 and self.upsample > 1 else margin
            for piece in tight:
                parts.append(Part(label, ids, grow_box(unshift(piece, box), more, shape)))
        return parts

    def _skip_background(self, volume: Tensor, grid: Windows) -> Tensor:
        """Leave out the windows without foreground, and the atlas labels that are in no other."""
        if self.select_fn is None:
            return volume
        foreground = self.select_fn(volume[: self.image_channels]).any(dim=0)
        grid.windows = [window for window in grid.windows if foreground[window].any()]
        grid.covered = torch.zeros_like(foreground)
        for window in grid.windows:
            grid.covered[window] = True
        return torch.cat([volume[:-1], (volume[-1] * grid.covered)[None]])


class LabelBoxInferer(Inferer):
    """Encode each image once and decode every mask in its own box: what a network is trained with.

    One encoding serves K labels, and a label costs as much as its box. Outside the box the logit is -20 (probability
    2e-9), so that the loss still counts the target's voxels there.

    Args:
        margin_mm: half-width of what is added around the atlas mask; ``None`` for everywhere. Use the same
            in :class:`LabelSweepInferer`: a network whose answer depends on the box is defined by it.
        halo: see :meth:`monai_lcs.networks.LabelConditionedUNet.decode`; likewise.
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

    def __init__(
        self,
        margin_mm: float | None = None,
        halo: int | str = "exact",
        image_channels: int = 1,
        atlas_channels: int = 1,
    ) -> None:
        super().__init__()
        _check_margin(margin_mm)
        check_halo(halo)
        self.margin_mm = margin_mm
        self.halo = halo
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
        return network(plain, boxes=self.boxes(inputs), halo=self.halo)

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


def _refine(box: Box, factor: int) -> Box:
    return tuple(slice(axis.start * factor, (axis.stop - 1) * factor + 1) for axis in box)


def _margin_voxels(margin_mm: float, inputs: Tensor, item: int) -> list[int]:
    return [math.ceil(margin_mm / mm - 1e-6) for mm in voxel_size(inputs, item)]


def _check_margin(margin_mm: float | None) -> None:
    if margin_mm is not None and not 0 <= margin_mm < math.inf:
        raise ValueError(f"`margin_mm` must be >= 0 or None, got {margin_mm}.")


def _warn_of_absent(groups: Mapping[int, tuple[int, ...]], label_map: Tensor) -> None:
    found = label_boxes(label_map)
    absent = sorted(label for label, ids in groups.items() if found.keys().isdisjoint(ids))
    if absent:
        warnings.warn(
            f"The atlas label map has no voxel of {absent} on this image: nothing is found there.", stacklevel=4
        )


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


class AtlasLabelInferer(Inferer):
    """The atlas labels as they were aligned, whatever the network: the baseline every network must beat.

    Example:
        >>> AtlasLabelInferer()(torch.tensor([[[[0.5, 0.5]], [[0.4, 0.6]], [[17.0, 0.0]]]]), None)
        tensor([[[[17,  0]]]], dtype=torch.int32)
    """

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """``(B, 1, *spatial)`` int32, the last channel of ``inputs``."""
        return inputs[:, -1:].to(torch.int32)
