"""Atlases that vote beside the first one: the labeled scans of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monai.config import PathLike
from tqdm import tqdm

from monai_lcs.atlas import Atlas
from monai_lcs.pipeline.settings import Settings
from monai_lcs.study.cases import shorten_names

__all__ = ["describe_other_labels", "describe_untrained_fusion", "read_further_atlases"]


def read_further_atlases(cases: Sequence[Mapping[str, Any]], atlas: Atlas, progress: bool = True) -> list[Atlas]:
    """Read labeled scans, to vote beside an atlas.

    Args:
        cases: from :func:`monai_lcs.study.cases.find_cases`.
        atlas: the atlas, with which each of them must share labels; theirs are those of its table.
        progress: show a bar.

    Raises:
        ValueError: for a file that cannot be used, and for labels that are none of those of the atlas.
    """
    read = []
    for case in tqdm(cases, "Reading atlases", unit="atlas", disable=not progress):
        try:
            read.append(Atlas.read(case["image"], case["label"], atlas.table))
        except ValueError as error:
            if "has no label of" not in str(error):
                raise
            message = f"The labels of {case['label']} are none of those of the atlas, {atlas.files['label']}."
            raise ValueError(message) from error
    return read


def describe_other_labels(further: Sequence[Atlas], atlas: Atlas) -> str:
    """Which labels further atlases have that cannot be requested, or lack, so that they vote less; empty for none."""
    more = sorted({id for one in further for id in one.unnamed})
    lack = sorted({id for one in further for id in set(atlas.ids).difference(one.ids)})
    found = {"have without a name": more, "lack": lack}
    said = [f"{what}: {shorten_names(list(map(str, ids)), 8)}" for what, ids in found.items() if ids]
    return f"Note: labels that some further atlases {'; '.join(said)}." if said else ""


def describe_untrained_fusion(checkpoint: PathLike | None, settings: Settings, further: Sequence[Any]) -> str:
    """That weights were trained with further atlases and there are none now, or the other way round; else empty.

    Args:
        checkpoint: file of the weights; ``None`` for no network.
        settings: of the weights. Nothing is said of a network that looks at each atlas, however many there are.
        further: the atlases that vote now.

    Example:
        >>> describe_untrained_fusion("model.pt", Settings(), ["an atlas"])
        'Note: model.pt was trained without further atlases and is used with; it may be less accurate.'
    """
    if not checkpoint or settings.fused == bool(further) or settings.sees_each_atlas:
        return ""
    trained, now = ("with", "without") if settings.fused else ("without", "with")
    return f"Note: {checkpoint} was trained {trained} further atlases and is used {now}; it may be less accurate."
