"""Strategies that choose the image to work on next."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.utils.others.generic import name_to_device

from monai_lcs.label_app.segmenter import StudySegmenter, Weights
from monai_lcs.label_app.server.datastore import LCSDatastore

__all__ = ["LeastCertain", "PaintAtlas"]

logger = logging.getLogger(__name__)

AT_A_TIME = 3
"""Scans that are looked at for one request: each costs an alignment the first time, and two runs of the network."""


class LeastCertain(Strategy):
    """Chooses the unlabeled scan whose labels are least certain, see :meth:`StudySegmenter.certainty`.

    Each request looks at a few scans more. What they showed is kept until the atlas or the weights change. So in a
    study of many scans the choice gets better from one request to the next.

    Args:
        segmenter: the segmenter of the study.
        weights: gives the weights to use now.
    """

    def __init__(self, segmenter: StudySegmenter, weights: Callable[[], Weights]) -> None:
        super().__init__("The unlabeled scan whose labels are least certain")
        self.segmenter = segmenter
        self.weights = weights
        self._known: dict[tuple[Any, ...], dict[str, float]] = {}

    def __call__(self, request: Mapping[str, Any], datastore: LCSDatastore) -> dict[str, Any]:
        """Return ``{"id": ..., "certainty": ...}``, or an empty dictionary if every scan is labeled."""
        weights, device = self.weights(), str(name_to_device(request.get("device")))
        known = self._known.setdefault((weights.key, self.segmenter.store.current.number), {})
        scans = datastore.unlabeled_scans()
        for scan in [scan for scan in scans if scan not in known][:AT_A_TIME]:
            try:
                known[scan] = self.segmenter.certainty(datastore.get_image_uri(scan), weights, device)
            except ValueError as error:  # a scan that the atlas does not fit is worth a look
                logger.warning(f"{scan}: {error}")
                known[scan] = 0.0
        found = [scan for scan in scans if scan in known]
        if not found:
            return {}
        worst = min(found, key=lambda scan: known[scan])
        return {"id": worst, "certainty": round(known[worst], 4)}


class PaintAtlas(Strategy):
    """Chooses the atlas, to add labels to it or to change them.

    Example:
        >>> from types import SimpleNamespace
        >>> PaintAtlas()({}, SimpleNamespace(atlas_id="atlas"))
        {'id': 'atlas'}
    """

    def __init__(self) -> None:
        super().__init__("The atlas: a label painted on it can be asked for on every scan")

    def __call__(self, request: Mapping[str, Any], datastore: LCSDatastore) -> dict[str, Any]:
        """Return ``{"id": ...}``."""
        return {"id": datastore.atlas_id}
