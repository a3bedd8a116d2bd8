"""The pipeline for one study: its atlas changes as labels are painted, its weights as it is trained."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.config import PathLike
from monai.data import MetaTensor

from monai_lcs.atlas import AlignmentCache, Atlas
from monai_lcs.grids import on_grid_of
from monai_lcs.label_app.atlas_store import AtlasStore, AtlasVersion
from monai_lcs.labels import RequestedLabel
from monai_lcs.metrics import label_dice
from monai_lcs.pipeline import Segmenter, Settings
from monai_lcs.pipeline.segmenter import select_requested
from monai_lcs.study.checks import read_label_map, read_scan

__all__ = ["StudySegmenter", "Weights"]


@dataclass(frozen=True)
class Weights:
    """A trained network's file and how it must be used.

    Args:
        path: the file; ``None`` for no network: labels are propagated by alignment.
        settings: what it was trained with.
    """

    path: Path | None
    settings: Settings

    @classmethod
    def find(cls, paths: Sequence[PathLike | None], settings: Mapping[str, Any]) -> Weights:
        """The first of some files that exists, with the settings kept beside it.

        Args:
            paths: where weights may be.
            settings: what differs from the defaults of :class:`monai_lcs.pipeline.Settings` where a file comes without
                settings.

        Raises:
            ValueError: for settings that do not exist, or cannot be read.

        Example:
            >>> Weights.find([None, "no/model.pt"], {"align": "affine"}).settings.align
            'affine'
        """
        found = next((Path(path) for path in paths if path and Path(path).is_file()), None)
        return cls(found, Settings.of_weights(found, Settings.from_dict(settings)))

    @property
    def key(self) -> tuple[str, int]:
        """Differs as soon as the file does."""
        return ("", 0) if self.path is None else (str(self.path), self.path.stat().st_mtime_ns)


class StudySegmenter:
    """Segments the scans of one study by the atlas and the weights as they are now.

    Several threads may share it. A label map painted on the atlas needs no new alignment.

    Args:
        store: the versions of the atlas.
        cache_dir: folder for alignments; may be emptied at any time.
        min_overlap: alignment with a lower overlap of foregrounds has failed.
        threshold: background where no label's probability exceeds it.
        upsample: how many times finer than the network's grid outlines are before they meet the scan's.
    """

    def __init__(
        self,
        store: AtlasStore,
        cache_dir: PathLike,
        min_overlap: float = 0.5,
        threshold: float = 0.5,
        upsample: int = 2,
    ) -> None:
        self.store = store
        self.cache = AlignmentCache(cache_dir)
        self.options = {"min_overlap": min_overlap, "threshold": threshold, "upsample": upsample}
        self._lock = threading.RLock()
        self._atlases: dict[int, Atlas] = {}
        self._segmenters: dict[str, Segmenter] = {}

    def segment(
        self, image: PathLike, requests: Sequence[RequestedLabel], weights: Weights, device: str = "cpu"
    ) -> tuple[MetaTensor, dict[str, Any]]:
        """Find labels in a scan; the atlas image itself gets the labels as they are in the atlas.

        Args:
            image: the scan's file.
            requests: the requested labels, see :func:`monai_lcs.labels.parse_request`.
            weights: the network.
            device: where it runs.

        Returns:
            The label map ``(1, *spatial)`` int32 on the scan's grid, with the metadata of the file; and what is worth
            saying of it: ``overlap`` of the aligned foregrounds, ``network`` (whether one was used), ``aligned``
            (``"atlas"``, ``"cached"`` or ``"new"``).

        Raises:
            ValueError: when the scan cannot be read or the atlas not be aligned to it.
        """
        scan = read_scan(image)
        segmenter = self.segmenter(weights, device)
        if segmenter.atlas.is_image(scan):
            labels = select_requested(segmenter.atlas.label_map, requests).as_tensor()
            return on_grid_of(scan, labels, scan.meta), {"overlap": 1.0, "network": False, "aligned": "atlas"}
        result = segmenter.segment(scan, requests)
        return result.label_map, {name: result.quality[name] for name in ("overlap", "network", "aligned")}

    def certainty(self, image: PathLike, weights: Weights, device: str = "cpu") -> float:
        """How sure the labels of a scan are, 0 to 1: mean Dice of the answers for the scan and for its mirror image.

        Without a network, the overlap of the foregrounds of the scan and the aligned atlas.
        """
        segmenter = self.segmenter(weights, device)
        scan = segmenter.prepare(image)
        aligned = segmenter.align(scan)
        if weights.path is None:
            return float(aligned.quality["overlap"])
        requests = segmenter.request()
        first, second = (segmenter.predict(scan, aligned, requests, flip).as_tensor() for flip in (False, True))
        dice = label_dice(second, first, segmenter.atlas.ids)
        return float(dice.nanmean()) if dice.isfinite().any() else 0.0

    def atlas(self, version: AtlasVersion | None = None) -> Atlas:
        """A version of the atlas, the current one by default; the image is read once, the last label map kept."""
        version = version or self.store.current
        with self._lock:
            if version.number not in self._atlases:
                label_map: Any = read_label_map(version.labels).int()
                known = next(iter(self._atlases.values()), None)
                image = read_scan(self.store.image) if known is None else known.image
                atlas = Atlas(image, label_map, version.table)
                if known is not None:
                    atlas.__dict__["fingerprint"] = known.fingerprint
                self._atlases = {version.number: atlas}
            return self._atlases[version.number]

    def segmenter(self, weights: Weights, device: str = "cpu") -> Segmenter:
        """The pipeline with the current atlas and these weights; made anew as soon as one of them changes."""
        with self._lock:
            key = repr((self.store.current.number, weights.key, weights.settings, device))
            if key not in self._segmenters:
                segmenter = Segmenter.load(
                    weights.path, self.atlas(), device, weights.settings, cache=self.cache, **self.options
                )
                self._segmenters = {key: segmenter}
            return self._segmenters[key]
