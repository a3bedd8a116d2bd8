"""The segmenter: a scan in, a segmentation out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monai.config import PathLike
from monai.data import MetaTensor

from monai_lcs.atlas import AlignmentCache, Atlas
from monai_lcs.boxes import whole_box
from monai_lcs.inferers import HelpedInferer, ScanVotes, name_scan_grid
from monai_lcs.labels import LabelTable, RequestedLabel, parse_request, present_labels, requested_table
from monai_lcs.pipeline.guard import answer_with_masks, propagated_requests
from monai_lcs.pipeline.preprocessing import NETWORK_KEYS, AlignedAtlas, Preprocessing, Scan, as_volume, to_native
from monai_lcs.pipeline.settings import Settings, make_network, on_device
from monai_lcs.pipeline.skull import SkullStripper
from monai_lcs.pipeline.weights import check_trained_for, load_weights
from monai_lcs.results import Segmentation

__all__ = ["Segmenter", "select_requested"]

logger = logging.getLogger(__name__)


class Segmenter:
    """Segments scans by an atlas: any of its labels, or unions of them, in the scan's own space.

    The steps are methods, in this order: :meth:`prepare` reads the scan and brings it to the network's grid,
    :meth:`align` aligns the atlas to it, :meth:`predict` finds the requested labels, :meth:`to_native` carries them to
    the scan's grid. Several threads may share a segmenter.

    Args:
        atlas: the atlas.
        network: a trained network; without one the labels are those of the aligned atlas, propagated.
        settings: what the network was trained with. Without a network and settings, labels are propagated with voxels
            of 1 mm.
        further_atlases: atlases with the same labels that vote beside it.
        device: where the network runs.
        min_overlap: alignment with a lower overlap of foregrounds has failed.
        threshold: background where no label's probability exceeds it.
        upsample: ``None`` to choose the best label at the scan's voxels; or how many times finer than the network's the
            grid is on which it is chosen, before nearest neighbor carries it to the scan's.
        roi_size: the window in voxels; the whole image by default.
        cache: alignments computed before, or the folder to keep them in; by default the last 8, in memory.
        progress: show a bar over the labels.
        strip: whether to remove the skull, ``"auto"``, ``"yes"`` or ``"no"``, see
            :class:`monai_lcs.pipeline.skull.SkullStripper`. By default it stays, with a warning where a scan seems to
            have one and the atlas has none.
        label_parallel: share the labels of each scan among the processes that ``torchrun`` has started and
            :func:`monai_lcs.inferers.join_ranks` has joined. The first one segments, inside
            :func:`monai_lcs.inferers.leading`, with the same result; the others :func:`monai_lcs.inferers.follow`.
            Probabilities are not told.

    Example:
        >>> labels = torch.zeros(1, 12, 12, 12, dtype=torch.int32)
        >>> labels[:, 3:9, 3:9, 3:9] = 17
        >>> image = MetaTensor(labels.float())
        >>> atlas = Atlas(image, MetaTensor(labels), LabelTable.from_ids([17]))
        >>> segmenter = Segmenter(atlas, settings=Settings(align="none", spacing=(1, 1, 1)))
        >>> result = segmenter(image)
        >>> result.volumes
           id      name  voxels    mm3
        0  17  label-17     216  216.0
    """

    def __init__(
        self,
        atlas: Atlas,
        network: torch.nn.Module | None = None,
        settings: Settings | None = None,
        *,
        further_atlases: Sequence[Atlas] = (),
        device: torch.device | str = "cpu",
        min_overlap: float = 0.5,
        threshold: float = 0.5,
        upsample: int | None = None,
        roi_size: Sequence[int] | int | None = None,
        cache: AlignmentCache | PathLike | None = None,
        progress: bool = False,
        strip: str | None = None,
        label_parallel: bool = False,
    ) -> None:
        self.settings = settings or (Settings.of_weights(None) if network is None else Settings())
        self.stripper = None if strip is None else SkullStripper(strip, atlas.image)
        self.preprocessing = Preprocessing(
            atlas, self.settings, further_atlases, min_overlap, cache, votes_at_voxels=upsample is None
        )
        self.network = None if network is None else on_device(network, device).eval()
        self.device = device
        self.checkpoint: PathLike | None = None
        self.label_parallel = label_parallel
        self.sweep_options = {
            "threshold": threshold,
            "upsample": upsample,
            "roi_size": roi_size,
            "progress": progress,
        }

    @classmethod
    def load(
        cls,
        checkpoint: PathLike | None,
        atlas: Atlas,
        device: torch.device | str = "cpu",
        defaults: Settings | None = None,
        align: str | None = None,
        **options: Any,
    ) -> Segmenter:
        """A segmenter with the weights of a file and the settings that are kept beside it.

        Args:
            checkpoint: the file of the weights; ``None`` for no network.
            atlas: the atlas.
            device: where the network runs.
            defaults: settings for weights that come without.
            align: how to align, instead of as in training: ``"deformable_fine"`` follows the anatomy more closely than
                ``"deformable"`` and takes longer.
            **options: the other arguments of :class:`Segmenter`.

        Raises:
            ValueError: when weights or settings cannot be read or do not fit each other.
        """
        settings = Settings.of_weights(checkpoint, defaults)
        if align is not None:
            settings = replace(settings, align=align)
        network = None
        if checkpoint:
            network = make_network(settings)
            load_weights(checkpoint, network)
            check_trained_for(checkpoint, atlas)
        segmenter = cls(atlas, network, settings, device=device, **options)
        segmenter.checkpoint = checkpoint
        return segmenter

    @property
    def atlas(self) -> Atlas:
        """The atlas."""
        return self.preprocessing.atlas

    def __call__(
        self, image: PathLike | np.ndarray | torch.Tensor, labels: Any = None, case: str | None = None
    ) -> Segmentation:
        """Segment a scan.

        Args:
            image: a file, a MetaTensor ``(1, *spatial)``, an image of nibabel, or a pair (array, affine).
            labels: the requested labels, see :func:`monai_lcs.labels.parse_request`; all by default.
            case: what the names of its files start with; the name of the scan's file by default.

        Returns:
            The segmentation on the scan's own grid, with volumes and quality.

        Raises:
            ValueError: when a label is unknown, the scan cannot be used or the atlas not be aligned to it.
        """
        return self.segment(image, self.request(labels), case)

    def segment(
        self,
        image: PathLike | np.ndarray | torch.Tensor,
        requests: Sequence[RequestedLabel],
        case: str | None = None,
        mask: PathLike | np.ndarray | torch.Tensor | None = None,
        on_probability: Callable[[int, MetaTensor], Any] | None = None,
    ) -> Segmentation:
        """Segment a scan as calling the segmenter does, for requests that are parsed already.

        Args:
            image: the scan.
            requests: from :meth:`request`.
            case: its name.
            mask: the brain, on the scan's grid; found by default, as far as ``strip`` says.
            on_probability: called with the id of each requested label that the aligned atlas has, and its probability
                ``(1, *spatial)`` on the scan's grid.

        Returns:
            The segmentation; ``quality["stages"]`` has the seconds of each step.
        """
        seconds: dict[str, float] = {}
        confidence: dict[int, float] = {}
        with _timed(seconds, "read"):
            source = as_volume(image)
        with _timed(seconds, "skull"):
            scan = self.prepare(source, mask)
        with _timed(seconds, "align"):
            aligned = self.align(scan)
        with _timed(seconds, "predict"):
            finished = None if on_probability is None else _on_grid(scan, aligned, requests, on_probability)
            found = self._predict(scan, aligned, requests, confidence=confidence, on_probability=finished)
        with _timed(seconds, "to the grid of the scan"):
            label_map = self.to_native(found, scan)
        propagated = self.propagated(requests)
        if propagated:
            assert aligned.native is not None
            label_map = answer_with_masks(label_map, aligned.native, propagated)
        agreement: Any = None
        if aligned.agreement is not None:  # 0 where the atlases' own vote is another label
            votes = to_native(aligned.label_map, scan.source)
            agreement = to_native(aligned.agreement, scan.source, "bilinear") * (votes == label_map)
        quality = {
            **aligned.quality,
            "network": self.network is not None,
            "propagated": "; ".join(request.name for request in propagated),
            "skull": scan.skull,
            "stages": seconds,
        }
        return Segmentation(
            label_map, scan.source, self.table(requests), quality, agreement, case, confidence or None, scan.mask
        )

    def request(self, labels: Any = None) -> list[RequestedLabel]:
        """The labels that words, patterns, ids or unions ask for."""
        return parse_request(labels, self.atlas.table, self.atlas.ids)

    def propagated(self, requests: Sequence[RequestedLabel]) -> list[RequestedLabel]:
        """Those that the aligned atlas answers for, though there is a network, as it was worse in validation."""
        if self.network is None:
            return []
        return propagated_requests(requests, self.settings.propagated, self.atlas.table)

    def table(self, requests: Sequence[RequestedLabel]) -> LabelTable:
        """The label table of a result."""
        return requested_table(requests, self.atlas.table)

    # ---- the steps --------------------------------------------------------------------------------------------------

    def prepare(
        self, image: PathLike | np.ndarray | torch.Tensor, mask: PathLike | np.ndarray | torch.Tensor | None = None
    ) -> Scan:
        """Read and check a scan, remove the skull as far as ``strip`` says, and bring the brain to the network's grid.

        Args:
            image: the scan.
            mask: the brain, where it is known: nothing is looked for then.
        """
        source = as_volume(image)
        if mask is not None:
            return replace(self.preprocessing.prepare(source, mask), skull="skull removed by the given mask")
        if self.stripper is None:
            return self.preprocessing.prepare(source)
        stripped = self.stripper(source)
        if self.stripper.mode != "no":
            logger.info("%s: %s.", source.meta.get("filename_or_obj") or "the scan", stripped.said)
        return replace(self.preprocessing.prepare(source, stripped.mask), skull=stripped.said)

    def align(self, scan: Scan) -> AlignedAtlas:
        """Align the atlas to a scan; known alignments are not computed again."""
        return self.preprocessing.align(scan)

    def predict(
        self,
        scan: Scan,
        aligned: AlignedAtlas,
        requests: Sequence[RequestedLabel],
        flip: bool = False,
        on_probability: Callable[[int, MetaTensor], Any] | None = None,
    ) -> MetaTensor:
        """Find the requested labels in an aligned scan, but for those of :meth:`propagated`.

        Args:
            scan: from :meth:`prepare`.
            aligned: from :meth:`align`.
            requests: from :meth:`request`.
            flip: show the network all of it mirrored from left to right; the answer lies where the scan does.
            on_probability: called with the id of each label that was found and its probability, ``(1, *spatial)`` on
                the network's grid or one ``upsample`` times as fine; not with ``flip``.

        Returns:
            ``(1, *spatial)`` int32 on the scan's grid, or on one ``upsample`` times as fine as the network's; on the
            network's where there is none and the labels are propagated, or none of them is in the aligned atlas.
        """
        return self._predict(scan, aligned, requests, flip, on_probability=on_probability)

    def _predict(
        self,
        scan: Scan,
        aligned: AlignedAtlas,
        requests: Sequence[RequestedLabel],
        flip: bool = False,
        confidence: dict[int, float] | None = None,
        on_probability: Callable[[int, MetaTensor], Any] | None = None,
    ) -> MetaTensor:
        """As :meth:`predict`; puts into ``confidence`` the Dice to expect of each label that it found."""
        if on_probability is not None and (self.network is None or flip):
            raise ValueError("Probabilities are those of a network: give weights.")
        if self.network is None:
            return select_requested(aligned.label_map, requests)
        volumes = self.preprocessing.network_input(scan, aligned)
        inputs = torch.cat([volumes[key].as_tensor() for key in NETWORK_KEYS])[None].to(self.device)
        affine = volumes["atlas_label"].affine
        here = set(present_labels(volumes["atlas_label"][-1:]))
        masks = self.propagated(requests)
        labels = {one.id: one.ids for one in requests if here.intersection(one.ids) and one not in masks}
        if not labels:
            return MetaTensor(torch.zeros(1, *inputs.shape[2:], dtype=torch.int32), affine=affine)
        options: dict[str, Any] = dict(self.sweep_options)
        if confidence is not None:
            options["on_confidence"] = lambda _, found: confidence.update(found)
        if on_probability is not None:
            grid = affine / torch.tensor([*[options["upsample"] or 1] * 3, 1])
            options["on_label"] = lambda _, label, probability: on_probability(
                label, MetaTensor(probability.cpu(), affine=grid)
            )
        sweep: Any = self.settings.label_sweep(labels, label_parallel=self.label_parallel, **options)
        if self.label_parallel:
            sweep = HelpedInferer(sweep)
        if flip:  # the scan's grid stays where it is
            affine = affine @ _mirror(inputs.shape[2])
        volume = MetaTensor(inputs.flip(2) if flip else inputs, affine=affine)
        named = name_scan_grid(volume, scan.source, aligned.scan_votes, aligned.vote_weight)
        result: Any = sweep(named, self.network)
        return MetaTensor(result.as_tensor()[0].cpu(), affine=result.affine)

    def to_native(self, prediction: MetaTensor, scan: Scan) -> MetaTensor:
        """Carry a prediction to the scan's own grid: ``(1, *spatial)`` int32 with exactly its affine."""
        return to_native(prediction, scan.source)


def _mirror(size: int) -> torch.Tensor:
    """From the voxels of a volume to those of its mirror image, along the first axis."""
    mirror = torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64))
    mirror[0, 3] = size - 1
    return mirror


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Keeps the seconds that a stage takes."""
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 2)
    logger.debug("%s: %.1f s", stage, seconds[stage])


def _on_grid(
    scan: Scan, aligned: AlignedAtlas, requests: Sequence[RequestedLabel], use: Callable[[int, MetaTensor], Any]
) -> Callable[[int, MetaTensor], Any]:
    """Carries a probability to the scan's grid before it is used; there the atlases may vote."""
    votes, weight = aligned.scan_votes, aligned.vote_weight
    at_voxels = None if votes is None else ScanVotes.at(scan.source, votes, weight)
    ids = {one.id: one.ids for one in requests}

    def carry(label: int, probability: MetaTensor) -> None:
        there = to_native(probability, scan.source, "bilinear")
        if at_voxels is not None:
            there[0] = at_voxels.averaged(there.as_tensor()[0], ids[label], whole_box(there.shape[1:]))
        use(label, there)

    return carry


def select_requested(label_map: MetaTensor, requests: Sequence[RequestedLabel]) -> MetaTensor:
    """The requested labels of a label map, int32; where two of them overlap, the smaller id wins.

    Example:
        >>> requests = [RequestedLabel(1, "both", (1, 2)), RequestedLabel(2, "second", (2,))]
        >>> select_requested(MetaTensor(torch.tensor([[[[1, 2, 3]]]])), requests).tolist()
        [[[[1, 1, 0]]]]
    """
    values = label_map.as_tensor().int()
    found = torch.zeros_like(values)
    for one in sorted(requests, key=lambda each: each.id, reverse=True):
        found[torch.isin(values, torch.tensor(one.ids, dtype=torch.int32))] = one.id
    return MetaTensor(found, affine=label_map.affine)
