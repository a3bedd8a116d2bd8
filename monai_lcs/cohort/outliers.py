"""Finds unusual volumes, and what else asks for a look at a case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from monai_lcs.atlas.alignment import UNSUSPICIOUS
from monai_lcs.cohort.records import Record

__all__ = ["FEWEST", "FENCE", "outlying", "quality_order", "remarks", "volume_frame"]

FENCE = 3.5
"""A volume so many robust standard deviations from the median is an outlier (Iglewicz and Hoaglin 1993)."""

FEWEST = 10
"""Of fewer volumes it cannot be said which are unusual."""


def volume_frame(records: Sequence[Record]) -> pd.DataFrame:
    """The volumes in mm3: a row for each finished case, a column for each label; NaN for a label it was not asked for.

    Example:
        >>> volume_frame([Record("ann", state="done", volumes={"insula": 5.0}), Record("bo", state="failed")])
             insula
        ann     5.0
    """
    done = {record.case: record.volumes for record in records if record.state == "done"}
    return pd.DataFrame.from_dict(done, orient="index", dtype=float)


def outlying(volumes: pd.DataFrame) -> pd.DataFrame:
    """Which volumes are outliers of their label.

    A volume is one where it lies more than :data:`FENCE` robust standard deviations, 1.4826 times the median absolute
    deviation, from the median. A label with fewer than :data:`FEWEST` volumes, or of whose volumes half are equal, has
    no outliers.

    Args:
        volumes: from :func:`volume_frame`.

    Returns:
        True and False of the same shape.

    Example:
        >>> frame = pd.DataFrame({"insula": [10, 11, 12, 11, 10, 12, 11, 10, 12, 30.0]})
        >>> outlying(frame)["insula"].to_numpy().nonzero()[0].tolist()
        [9]
    """
    distance = (volumes - volumes.median()).abs()
    deviation = 1.4826 * distance.median()
    enough = (volumes.count() >= FEWEST) & (deviation > 0)
    return (distance > FENCE * deviation) & enough


def remarks(record: Record, unusual: Sequence[str] = (), corrected: bool = False) -> list[str]:
    """What asks for a look at a finished case, a sentence each.

    Args:
        record: its record.
        unusual: the labels whose volumes are outliers.
        corrected: whether its label map was changed since.

    Example:
        >>> remarks(Record("ann", volumes={"insula": 5.0, "cuneus": 0.0}), ["insula"])
        ['1 of 2 labels is empty: cuneus.', '1 volume is unusual: insula.']
    """
    said = [*map(str, record.quality.get("notes") or ())]
    orientation = record.quality.get("orientation")
    if orientation and orientation not in UNSUSPICIOUS:
        said.append(f"Orientation: {orientation}.")
    empty = [name for name, mm3 in record.volumes.items() if not mm3]
    if empty:
        said.append(f"{len(empty)} of {len(record.volumes)} labels {_are(empty)} empty: {_first(empty)}.")
    if unusual:
        volumes = "volume" if len(unusual) == 1 else "volumes"
        said.append(f"{len(unusual)} {volumes} {_are(unusual)} unusual: {_first(unusual)}.")
    if corrected:
        said.append("The label map was changed after it was written; the volumes are those from before.")
    return said


def quality_order(record: Record, said: Sequence[str]) -> tuple[Any, ...]:
    """Sorts finished cases, the worst first: by the number of remarks, then by the overlap with the atlas."""
    return -len(said), _number(record.quality), record.case


def _number(quality: Mapping[str, Any]) -> float:
    overlap = quality.get("overlap")
    return float(overlap) if isinstance(overlap, int | float) and np.isfinite(overlap) else -1.0


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
