"""What the records of a cohort keep of a segmenter and of its segmentations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import PathLike

from monai_lcs.atlas import Atlas, fingerprint
from monai_lcs.cohort.records import Outcome
from monai_lcs.labels import Label, LabelTable, RequestedLabel
from monai_lcs.labels.queries import label_names
from monai_lcs.pipeline import Segmenter
from monai_lcs.results import Segmentation
from monai_lcs.results.segmentation import ENDINGS
from monai_lcs.results.tsv import read_tsv

__all__ = ["digests", "made_with", "outcome", "saved_outcome"]


def outcome(result: Segmentation, paths: Mapping[str, str]) -> Outcome:
    """What is kept of a segmentation.

    Args:
        result: the segmentation.
        paths: the files that were written, by anything.
    """
    names = label_names(result.table)
    volumes = {names[id]: mm3 for id, mm3 in zip(result.volumes["id"], result.volumes["mm3"], strict=True)}
    return Outcome(list(paths.values()), result.quality, volumes)


def saved_outcome(folder: PathLike, case: str, quality: Mapping[str, Any]) -> Outcome:
    """What is kept of a segmentation that was saved by something else, by its files.

    Args:
        folder: where it was saved.
        case: the name of its files.
        quality: measures of quality, by name.
    """
    paths = [path for ending in ENDINGS.values() if (path := Path(folder) / f"{case}_{ending}").exists()]
    volumes = read_tsv(Path(folder) / f"{case}_{ENDINGS['volumes']}")
    names = label_names(LabelTable([Label(id, name) for id, name in zip(volumes["id"], volumes["name"], strict=True)]))
    mm3 = {names[id]: float(mm3) for id, mm3 in zip(volumes["id"], volumes["mm3"], strict=True)}
    return Outcome(paths, quality, mm3)


def made_with(segmenter: Segmenter, requests: Sequence[RequestedLabel], **more: Any) -> dict[str, str]:
    """:func:`digests` of a segmenter.

    Args:
        segmenter: the segmenter.
        requests: the requested labels.
        **more: further options of the run that change its results; anything that JSON can hold.
    """
    preprocessing = segmenter.preprocessing
    options = {name: value for name, value in segmenter.sweep_options.items() if name != "progress"}
    settings = [segmenter.settings.to_dict(), options, preprocessing.aligner.key]
    return digests(segmenter.network, [segmenter.atlas, *preprocessing.further_atlases], requests, settings, **more)


def digests(
    network: torch.nn.Module | None,
    atlases: Sequence[Atlas],
    requests: Sequence[RequestedLabel],
    settings: Any,
    **more: Any,
) -> dict[str, str]:
    """Digests of all that a segmentation depends on besides the scan.

    Args:
        network: with its weights.
        atlases: the atlas, and those that vote beside it.
        requests: the requested labels.
        settings: all that changes results; anything that JSON can hold.
        **more: likewise, by what an error should call it.

    Returns:
        By what it is: ``"weights"``, ``"atlas"``, ``"labels"``, ``"settings"`` and the names of ``more``.

    Example:
        >>> one, other = (digests(None, [], [], {"threshold": value}) for value in (0.5, 0.6))
        >>> [name for name in one if one[name] != other[name]]
        ['settings']
    """
    return {
        "weights": _weights(network),
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
