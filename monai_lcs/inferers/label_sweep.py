"""The inferer for whole volumes: windows outside, labels inside."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import BlendMode, ensure_tuple_rep, look_up_option
from nibabel.affines import from_matvec
from torch import Tensor
from tqdm import tqdm

from monai_lcs.boxes import Box, label_boxes, refine, size_of, union_box, whole_box
from monai_lcs.grids import affine_of
from monai_lcs.inferers.adapters import Adapter, adapt
from monai_lcs.inferers.atlas_masks import count_label_channels
from monai_lcs.inferers.margin import Part, check_margin, in_slabs, label_parts, margin_voxels
from monai_lcs.inferers.merger import (
    BACKGROUND,
    BestLabelMerger,
    FineLabelMerger,
    ScanLabelMerger,
    VolumeMerger,
    logit_of,
    upsample_logits,
)
from monai_lcs.inferers.ranks import Ranks, digest
from monai_lcs.inferers.scan_votes import WEIGHT, ScanVotes
from monai_lcs.inferers.splitter import WindowSplitter
from monai_lcs.inferers.sweep import VolumeSweep
from monai_lcs.labels.exact import EXACT_INTEGERS
from monai_lcs.labels.groups import LabelGroup, as_groups
from monai_lcs.labels.label_map import check_label_map
from monai_lcs.networks import check_halo
from monai_lcs.networks.unet import SLAB

__all__ = ["LabelSweepInferer", "check_input", "name_scan_grid"]

SCAN_SHAPE, SCAN_AFFINE = "scan_shape", "scan_affine"
SCAN_VOTES, VOTES_START, VOTES_WEIGHT = "scan_votes", "scan_votes_start", "scan_votes_weight"


class ScanGrid(NamedTuple):
    """The shape of a scan; the affine from its voxels to those of the input; and what the atlases vote for there."""

    shape: tuple[int, ...]
    to_input: np.ndarray
    votes: ScanVotes | None = None


class LabelSweepInferer(Inferer):
    """Predict any number of labels on whole volumes, in the time and memory of a few.

    A window slides over the image. It is encoded once, every label is decoded in it, logits are blended over windows,
    and each finished label is merged into the best label of each voxel.

    The result equals, voxel for voxel, what follows from running the whole network once per label through
    :class:`monai.inferers.SlidingWindowInferer`: keep every label's probability, and take the argmax where it exceeds
    the threshold. Logits are blended over windows as MONAI does, and then pass through a sigmoid. On a tie the smallest
    id wins, so the order of ``labels`` does not matter. A network that decodes once for all labels
    (``conditioning="shared"``) is treated differently: where there are several windows its features are blended, in
    half precision, and labels are decoded from all of them; and its labels compete with the background, see
    ``threshold``.

    With ``margin_mm`` a label is decoded only in the box of its atlas mask grown by this margin; elsewhere its
    probability is 0. A label whose mask fills little of its box (the left and right halves of a union, a thin ribbon)
    is split into several boxes where that is cheaper, but not where labels compete. Inside its boxes the logits are
    those of the whole window, with two exceptions: ``halo`` is less than exact, or the logits depend on the box. In the
    second case each label has one box, and it is the box of training (see :class:`LabelBoxInferer`) only with one
    window (``roi_size=None``).

    The memory in bytes, besides the input, for float32, is about::

        V * (4 + b) + W * C * 4 * 5 + (V * 4 * C where features are blended, else 4 * U)

    V is the number of voxels (in the first term those of the result, see ``upsample``) and W that of a window. C is the
    number of channels at the network's first level; of several atlases, each further one adds a half of ``V * 4 * C``
    where features are blended, and ``V * 4 * C`` where there is one window. b is 1, 2 or 4, to hold the number of
    labels. U is the largest number of voxels in unfinished boxes: a box that lies in several windows is unfinished, and
    its blended logits are in memory, from its first window to its last. The windows go through the volume in the order,
    of six in 3D, for which U is smallest. On a CPU, PyTorch's kernels add about 0.2 GiB; ``docs/performance.md`` has
    the measured figures.

    So only U grows with the number of labels, and it is bounded by how often boxes overlap. ``on_label`` and
    ``output="masks"`` add a volume for each label. With several windows and no margin all labels would be unfinished at
    once. Then ``labels_per_pass`` of them are in work at a time, and the features of all windows are kept for the next
    pass.

    Args:
        labels: the requested labels. ``None`` for all in the atlas label map; a list of ids and unions, where a union
            is a list of ids and is written as its smallest id; or a mapping from the id to write to the ids of the
            union.
        roi_size: size of the window; ``None`` or non-positive components for the whole image.
        overlap: overlap of neighboring windows, a fraction in [0, 1), one or for each axis.
        mode: how windows are blended, ``"constant"`` or ``"gaussian"``.
        sigma_scale: width of the Gaussian as a fraction of the window.
        threshold: voxels where no label's probability exceeds it are background. A network whose labels compete
            (``conditioning="shared"``) finds the background of a label map as it finds a label, as what the union of
            all requested labels leaves: where several labels meet, the best one may have less than a half.
        margin_mm: half-width of what is added around the atlas mask; ``None`` to decode everywhere. The voxel size
            comes from the input's affine (:class:`monai.data.MetaTensor`), and is 1 mm without one.
        halo: how far the crops of features reach beyond a label's box, ``"exact"`` or voxels of each level, see
            :meth:`monai_lcs.networks.LabelConditionedUNet.decode`.
        labels_per_pass: labels in work at a time where there are several windows and no margin, and labels in one call
            of a network of one tensor.
        output: ``"label_map"``, ``(B, 1, *spatial)`` of ids; or ``"masks"``, ``(B, L, *spatial)`` of 0 and 1, one
            channel for each of ``labels`` in their order (ascending where ``None``), which may overlap.
        on_label: called as ``on_label(item, label, probability)`` for each finished label, with its index in the batch,
            its id, and its probability ``(1, *spatial)``, which is not kept.
        on_confidence: called as ``on_confidence(item, confidence)`` for each item of the batch, with the Dice to expect
            of each label that was found, by its id, see :meth:`BestLabelMerger.confidence`. It takes 4 bytes more a
            voxel of the result.
        upsample: make the result finer: along each axis it has this many voxels where the input has one, and the first
            and the last voxel stay where they are (``(size - 1) * upsample + 1`` voxels). Each label's probability is
            interpolated linearly before the best label is chosen, so that outlines are finer than the network's voxels,
            see :class:`monai_lcs.inferers.merger.FineLabelMerger`; for ``on_label`` and ``output="masks"``, which know
            one label each, its logits. Time and memory of the merge grow accordingly. ``None`` for the grid of the
            scan, which the input's metadata tell (see :func:`name_scan_grid`): each label's probability is interpolated
            linearly at the scan's voxels, see :class:`monai_lcs.inferers.merger.ScanLabelMerger`. Then ``on_label``
            gets the probabilities on the input's grid.
        select_fn: what is foreground, for instance ``lambda image: image > 0``. It is called with the image
            ``(C, *spatial)`` and returns booleans of its shape. Windows without foreground are skipped; where no other
            window lies, all probabilities are 0. Everything is foreground by default.
        image_channels: channels of the image, which come first.
        votes: whether the network sees soft masks: the last :data:`monai_lcs.labels.votes.VOTE_CHANNELS` channels are
            votes, of which the very last is the label map of the winners. Where a label is decoded is the same.
        progress: show a bar with the labels done.
        label_parallel: share the labels among the processes of ``torch.distributed``, all of them or a group that is
            given instead of ``True``. Each calls the inferer with the same input, decodes its part of the labels, and
            gets the result of all: the same, voxel for voxel, as that of one process. The image is encoded by each. The
            merge takes 8 bytes more a voxel of the result. Not with ``on_label``.
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
        on_confidence: Callable[[int, dict[int, float]], Any] | None = None,
        upsample: int | None = 1,
        select_fn: Callable[[Tensor], Tensor] | None = None,
        image_channels: int = 1,
        votes: bool = False,
        progress: bool = False,
        label_parallel: Any = False,
        device: torch.device | str | None = None,
        sw_device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.groups = None if labels is None else _output_groups(labels)
        _check_arguments(threshold, labels_per_pass, upsample, overlap)
        check_margin(margin_mm)
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
        self.on_confidence = on_confidence
        self.upsample = 1 if upsample is None else int(upsample)
        self.on_scan = upsample is None
        if self.on_scan and output != "label_map":
            raise ValueError(f"`upsample` None makes a label map on the grid of the scan, got `output` {output!r}.")
        self.select_fn = select_fn
        self.image_channels = image_channels
        self.votes = votes
        self.progress = progress
        self.label_parallel = label_parallel
        if label_parallel and on_label is not None:
            raise ValueError("`on_label` sees each label whole: it does not go with `label_parallel`.")
        self.device = device
        self.sw_device = sw_device

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Segment a batch of volumes.

        Args:
            inputs: ``(B, image + atlas image + 1, *spatial)``, the atlas label map last, on the image's grid; with
                ``votes`` the votes instead. A network whose labels compete takes several atlases as well: image, the
                atlas images, the atlas label maps, and the label map of their vote, which says where to look.
            network: a :class:`monai_lcs.networks.LabelConditionedNetwork`, which is encoded once; or any network that
                takes one tensor (image, atlas image and one mask) and returns one channel of logits, which gives the
                same answer more slowly. It may be wrapped by ``DistributedDataParallel``.
            *args: passed to a network of the second kind.
            **kwargs: likewise.

        Returns:
            ``(B, 1, *spatial)`` int32 or ``(B, L, *spatial)`` uint8, as ``output`` says, with the metadata of
            ``inputs``.

        Raises:
            ValueError: When the input has the wrong shape, its last channel is no label map, or its type does not hold
                the label ids exactly.
        """
        adapter = adapt(network, self.image_channels, self.halo, self.labels_per_pass, args, kwargs)
        labels = self._label_channels(inputs, adapter)
        check_input(inputs, self.image_channels, labels, self.votes)
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        scans = _scan_grids(inputs) if self.on_scan else [None] * len(inputs)
        results = []
        for item, volume in enumerate(plain):
            margin = None if self.margin_mm is None else margin_voxels(self.margin_mm, inputs, item)
            results.append(self._sweep(item, volume, labels, adapter, margin, scans[item]))
        result = results[0][None] if len(results) == 1 else torch.stack(results)  # of one, no copy
        return self._with_metadata(result, inputs) if isinstance(inputs, MetaTensor) else result

    def _label_channels(self, inputs: Tensor, adapter: Adapter) -> int:
        """How many channels at the end are label maps or votes: only labels that compete may be of several atlases.

        A network whose labels compete has atlas images with as many channels as the image, as it compares them.
        """
        if not (self.votes or adapter.competes):
            return 1
        return count_label_channels(inputs.shape[1], self.image_channels, self.image_channels, self.votes)

    def _with_metadata(self, result: Tensor, inputs: MetaTensor) -> MetaTensor:
        """Give the result the metadata of ``inputs``, and the affine of the finer grid."""
        labeled = MetaTensor(result)
        labeled.copy_meta_from(inputs)
        for key in (SCAN_VOTES, VOTES_START, VOTES_WEIGHT):
            labeled.meta.pop(key, None)
        if self.on_scan:
            labeled.affine = torch.as_tensor(inputs.meta[SCAN_AFFINE])
            return labeled
        # The first voxel stays where it is: on a file of twice the resolution, fine voxels and the file's coincide
        labeled.affine = inputs.affine / torch.tensor([*[self.upsample] * (inputs.affine.shape[-1] - 1), 1])
        return labeled

    def _sweep(
        self,
        item: int,
        volume: Tensor,
        label_channels: int,
        adapter: Adapter,
        margin: Sequence[int] | None,
        scan: ScanGrid | None,
    ) -> Tensor:
        """Segment one volume ``(C, *spatial)``: choose windows and boxes; then encode, decode, blend, and merge."""
        roi_size = self.roi_size
        if adapter.competes and roi_size is not None:  # a window's padding would be a place without any label
            sizes = ensure_tuple_rep(roi_size, volume.ndim - 1)
            roi_size = [min(size, n) for size, n in zip(sizes, volume.shape[1:], strict=True)]
        splitter = WindowSplitter(volume.shape[1:], roi_size, self.overlap, self.mode, self.sigma_scale)
        volume = splitter.pad(volume)
        found = label_boxes(volume[-1])
        groups = self.groups or {label: (label,) for label in found}
        _warn_of_absent(groups, found)
        if self.select_fn is not None:
            covered = splitter.skip_background(self.select_fn(volume[: self.image_channels]).any(dim=0))
            n = label_channels
            volume = torch.cat([volume[:-n], volume[-n:] * covered])
        if adapter.depends_on_box and margin is not None and len(splitter.windows) > 1:
            _warn_of_seams()
        # Interpolation does not go from one box to the next: boxes of a label that are side by side must overlap
        parts = label_parts(volume[-1], groups, margin, split=adapter.splits, overlap=self.on_scan or self.upsample > 1)
        if parts and self._background_competes(adapter):
            everything = tuple(sorted({i for ids in groups.values() for i in ids}))
            parts.append(Part(BACKGROUND, everything, union_box([part.box for part in parts])))
            _warn_of_rivals(groups)
        if adapter.competes and self.output == "label_map" and self.on_label is None and not adapter.depends_on_box:
            # What labels share is computed once for all that are decoded together
            parts = in_slabs(parts, SLAB, overlap=self.on_scan or self.upsample > 1)
        sweep = VolumeSweep(
            volume,
            splitter,
            adapter,
            device=self.device or volume.device,
            sw_device=self.sw_device or volume.device,
            parts_per_pass=self.labels_per_pass if margin is None else None,
            label_channels=label_channels,
            votes=self.votes,
        )
        return self._merge(item, sweep, parts, groups, scan)

    def _merge(
        self,
        item: int,
        sweep: VolumeSweep,
        parts: Sequence[Part],
        groups: Mapping[int, tuple[int, ...]],
        scan: ScanGrid | None,
    ) -> Tensor:
        """Merge all parts; of several ranks each its own, and then what all have found."""
        if not self.label_parallel:
            best = self._label_merger(sweep, groups, scan)
            return self._finished(item, best, self._merge_parts(item, sweep, parts, best), groups, sweep)
        ranks = Ranks(None if self.label_parallel is True else self.label_parallel)
        with ranks.together(digest(sweep.volume, groups)):
            if sweep.dtype != torch.float32:
                raise ValueError(f"`label_parallel` takes volumes up to float32, got {sweep.dtype}.")
            wanted = {i for i, rank in enumerate(sweep.owners(parts, ranks.count)) if rank == ranks.rank}
            best = self._label_merger(sweep, groups, scan)
            masks = self._merge_parts(item, sweep, parts, best, wanted)
        ranks.merge(best)
        found = self._finished(item, best, masks, groups, sweep)
        if self.output == "masks":
            ranks.merge_masks(found)
        return found

    def _merge_parts(
        self,
        item: int,
        sweep: VolumeSweep,
        parts: Sequence[Part],
        best: BestLabelMerger | FineLabelMerger,
        wanted: Collection[int] | None = None,
    ) -> dict[int, Tensor]:
        """Merge each part as soon as the sweep has blended it; report each label as soon as its parts are merged."""
        inner = refine(sweep.splitter.inner, self.upsample)
        volumes = (
            VolumeMerger(size_of(refine(whole_box(sweep.splitter.shape), self.upsample)))
            if self.output == "masks" or self.on_label is not None
            else None
        )
        masks: dict[int, Tensor] = {}
        asked = [part.label for i, part in enumerate(parts) if wanted is None or i in wanted]
        unfinished = Counter(label for label in asked if label != BACKGROUND)
        with tqdm(total=len(unfinished), desc="labels", disable=not self.progress) as bar:
            for part, logits in sweep.blended(parts, wanted):
                if part.label == BACKGROUND:
                    best.aggregate_union(logits, part.box, part.again)
                    continue
                best.aggregate(part.label, logits, part.box, part.again)
                if volumes is not None:
                    fine = upsample_logits(logits, self.upsample)
                    volumes.aggregate(part.label, fine, refine(part.box, self.upsample))
                unfinished[part.label] -= 1
                if unfinished[part.label]:
                    continue
                bar.update()
                if volumes is not None:
                    self._report(item, part.label, volumes.finalize(part.label)[inner][None], masks)
        return masks

    def _finished(
        self,
        item: int,
        best: BestLabelMerger | FineLabelMerger,
        masks: Mapping[int, Tensor],
        groups: Mapping[int, tuple[int, ...]],
        sweep: VolumeSweep,
    ) -> Tensor:
        """What the inferer returns of one volume, without the padding; the confidence is told."""
        inner = refine(sweep.splitter.inner, self.upsample)
        if self.on_confidence is not None:
            self.on_confidence(item, best.confidence())
        if self.on_scan:
            return best.finalize()[None]
        if self.output == "label_map":
            return best.finalize()[inner][None]
        absent = torch.zeros(1, *size_of(inner), dtype=torch.bool, device=sweep.device)
        return torch.cat([masks.get(label, absent) for label in groups]).to(torch.uint8)

    def _label_merger(
        self, sweep: VolumeSweep, groups: Mapping[int, Any], scan: ScanGrid | None
    ) -> BestLabelMerger | FineLabelMerger:
        """What makes a label map of the logits."""
        shape, competing = sweep.splitter.shape, self._background_competes(sweep.adapter)
        options = (self.threshold, sweep.device, sweep.dtype, self.on_confidence is not None, competing)
        if scan is not None:
            padding = [axis.start for axis in sweep.splitter.inner]
            to_logits = from_matvec(np.eye(3), padding) @ scan.to_input
            return ScanLabelMerger(groups, shape, scan.shape, to_logits, *options, votes=scan.votes)
        if self.upsample == 1:
            return BestLabelMerger(groups, shape, *options)
        return FineLabelMerger(groups, shape, self.upsample, *options)

    def _background_competes(self, adapter: Adapter) -> bool:
        """Whether the background of a label map is found as a label is, instead of by the threshold alone."""
        return adapter.competes and self.output == "label_map"

    def _report(self, item: int, label: int, logits: Tensor, masks: dict[int, Tensor]) -> None:
        """Use the logits of a finished label, ``(1, *spatial)``: add its mask to ``masks``, call ``on_label``."""
        if self.output == "masks":
            masks[label] = logits > logit_of(self.threshold)
        if self.on_label is not None:
            self.on_label(item, label, torch.sigmoid(logits))


def name_scan_grid(
    inputs: MetaTensor, scan: MetaTensor, votes: MetaTensor | None = None, weight: float = WEIGHT
) -> MetaTensor:
    """Write into the metadata of an input on which grid the scan is, for a sweep with ``upsample=None``.

    Args:
        inputs: ``(C, x, y, z)`` or ``(B, C, x, y, z)``, with its affine; its metadata are changed.
        scan: ``(1, x, y, z)``, with its affine; only its grid is used.
        votes: of atlases for the labels, at the scan's voxels in a box of it, see :mod:`monai_lcs.labels.votes`; with
            the affine of the box. The weighted mean of the network's probabilities and the votes decides, see
            :class:`monai_lcs.inferers.ScanVotes`. Metadata of a batch have one row for each item, or serve all.
        weight: of the votes.

    Returns:
        The input itself.

    Example:
        >>> inputs = name_scan_grid(MetaTensor(torch.zeros(3, 2, 2, 2)), MetaTensor(torch.zeros(1, 4, 4, 3)))
        >>> inputs.meta["scan_shape"]
        tensor([4, 4, 3])
    """
    inputs.meta[SCAN_SHAPE] = torch.tensor(scan.shape[1:])
    inputs.meta[SCAN_AFFINE] = torch.as_tensor(affine_of(scan))
    if votes is not None:
        at_voxels = ScanVotes.at(scan, votes, weight)
        inputs.meta[SCAN_VOTES] = at_voxels.channels
        inputs.meta[VOTES_START] = torch.tensor([axis.start for axis in at_voxels.box])
        inputs.meta[VOTES_WEIGHT] = torch.tensor([at_voxels.weight], dtype=torch.float64)
    return inputs


def _scan_grids(inputs: Tensor) -> list[ScanGrid]:
    """The grid of the scan of each item of a batch, which the metadata tell."""
    if not isinstance(inputs, MetaTensor) or SCAN_SHAPE not in inputs.meta or inputs.ndim != 5:
        raise ValueError(
            "`upsample` None takes volumes (B, C, x, y, z) whose metadata tell the grid of the scan:"
            " see monai_lcs.inferers.name_scan_grid."
        )
    count = len(inputs)  # metadata of a batch have one row for each item, or serve all
    shapes = torch.as_tensor(inputs.meta[SCAN_SHAPE]).expand(count, 3).tolist()
    affines = (
        torch.as_tensor(x).double().cpu().expand(count, 4, 4).numpy() for x in (inputs.affine, inputs.meta[SCAN_AFFINE])
    )
    votes = [_scan_votes(inputs, item) for item in range(count)]
    return [
        ScanGrid(tuple(shape), np.linalg.solve(*grids), of_item)
        for shape, *grids, of_item in zip(shapes, *affines, votes, strict=True)
    ]


def _scan_votes(inputs: MetaTensor, item: int) -> ScanVotes | None:
    """What the metadata tell of the atlases' votes for an item of a batch."""
    if SCAN_VOTES not in inputs.meta:
        return None
    votes, start = (torch.as_tensor(inputs.meta[key]) for key in (SCAN_VOTES, VOTES_START))
    weight = torch.as_tensor(inputs.meta[VOTES_WEIGHT]).expand(len(inputs), 1)[item].item()
    of_item = votes.expand(len(inputs), *votes.shape[-4:])[item]
    return ScanVotes(of_item, start.expand(len(inputs), 3)[item].tolist(), weight)


def _warn_of_absent(groups: Mapping[int, tuple[int, ...]], found: Mapping[int, Box]) -> None:
    absent = sorted(label for label, ids in groups.items() if found.keys().isdisjoint(ids))
    if absent:
        warnings.warn(
            f"The atlas label map has no voxel of {absent} on this image: nothing is found there.", stacklevel=5
        )


def _warn_of_rivals(groups: Mapping[int, tuple[int, ...]]) -> None:
    """Labels compete: a union has the probabilities of all its ids, and so wins over each of them."""
    owners = Counter(i for ids in groups.values() for i in set(ids))
    shared = sorted(i for i, count in owners.items() if count > 1)
    if shared:
        warnings.warn(
            f"The ids {shared} are in several of the requested labels. In the label map of this network a union wins"
            " over its parts: request them separately.",
            stacklevel=5,
        )


def _warn_of_seams() -> None:
    warnings.warn(
        "This network normalizes over a label's box, which several windows cut: labels may show seams."
        " Use one window (roi_size=None) or a norm that does not look at the box.",
        stacklevel=5,
    )


def _check_arguments(
    threshold: float, labels_per_pass: int, upsample: int | None, overlap: Sequence[float] | float
) -> None:
    if not 0 <= threshold < 1:
        raise ValueError(f"`threshold` must be in [0, 1), got {threshold}.")
    if labels_per_pass < 1:
        raise ValueError(f"`labels_per_pass` must be > 0, got {labels_per_pass}.")
    if upsample is not None and (upsample < 1 or upsample != int(upsample)):
        raise ValueError(f"`upsample` must be a whole number > 0, got {upsample}.")
    if any(not 0 <= o < 1 for o in (overlap if isinstance(overlap, Sequence) else (overlap,))):
        raise ValueError(f"`overlap` must be in [0, 1), got {overlap}.")


def check_input(inputs: Tensor, image_channels: int, label_channels: int = 1, votes: bool = False) -> None:
    """Raise a ValueError unless the input is ``(B, image + atlas image + 1, *spatial)`` with a label map at its end."""
    if inputs.ndim not in (4, 5) or inputs.shape[1] < image_channels + label_channels:
        labels = f"{label_channels} channels of votes" if votes else "atlas label map"
        raise ValueError(
            f"The input must be (B, image + atlas image + {labels}, *spatial) with 2 or 3 spatial axes,"
            f" got shape {tuple(inputs.shape)} with `image_channels` {image_channels}."
        )
    label_map = inputs[:, -1:] if votes else inputs[:, -label_channels:]
    largest = EXACT_INTEGERS.get(inputs.dtype)
    if largest is not None and label_map.max() > largest:
        raise ValueError(
            f"{inputs.dtype} does not hold label ids above {largest} exactly, got {label_map.max().item():g}:"
            " give the input in float32; the network may still compute in half precision under autocast."
        )
    last = "The last channel, the atlas label map," if votes or label_channels == 1 else "The atlas label maps together"
    check_label_map(label_map, last)


def _output_groups(labels: Sequence[LabelGroup] | Mapping[int, Sequence[int]]) -> dict[int, tuple[int, ...]]:
    """The ids of the union for each id to write."""
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
