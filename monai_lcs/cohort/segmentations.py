"""What the records of a cohort keep of a segmenter and of its segmentations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from monai_lcs.atlas import Atlas, fingerprint
from monai_lcs.cohort.records import Outcome
from monai_lcs.labels import RequestedLabel
from monai_lcs.labels.queries import label_names
from monai_lcs.pipeline import Segmenter
from monai_lcs.results import Segmentation

__all__ = ["made_with", "outcome"]


def outcome(result: Segmentation, paths: Mapping[str, str]) -> Outcome:
    """What is kept of a segmentation.

    Args:
        result: the segmentation.
        paths: the files that were written, by anything.
    """
    names = label_names(result.table)
    volumes = {names[id]: mm3 for id, mm3 in zip(result.volumes["id"], result.volumes["mm3"], strict=True)}
    return Outcome(list(paths.values()), result.quality, volumes)


def made_with(segmenter: Segmenter, requests: Sequence[RequestedLabel], **more: Any) -> dict[str, str]:
    """Digests of all that a segmentation depends on besides the scan.

    Args:
        segmenter: the segmenter.
        requests: the requested labels.
        **more: further options of the run that change its results; anything that JSON can hold.

    Returns:
        By what it is: ``"weights"``, ``"atlas"``, ``"labels"``, ``"settings"`` and the names of ``more``.
    """
    preprocessing = segmenter.preprocessing
    options = {name: value for name, value in segmenter.sweep_options.items() if name != "progress"}
    settings = [segmenter.settings.to_dict(), options, preprocessing.aligner.key]
    atlases = [segmenter.atlas, *preprocessing.further_atlases]
    return {
        "weights": _weights(segmenter.network),
        "atlas": _digest([_content(atlas) for atlas in atlases]),
        "labels": _digest([[one.id, one.name, one.ids] for one in requests]),
        "settings": _digest(settings),
        **{name: _digest(value) for name, value in more.items()},
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _content(atlas: Atlas) -> list[str]:
    return [fingerprint(atlas.image), fingerprint(atlas.label_map)]


def _weights(network: torch.nn.Module | None) -> str:
    """Tells weights by their values."""
    if network is None:
        return "none"
    digest = hashlib.sha256()
    for name, weight in network.state_dict().items():
        digest.update(name.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
