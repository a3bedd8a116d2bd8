"""Summarizes a cohort: what became of each case, which volumes are unusual, which cases to look at first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from monai_lcs.cohort.outliers import outlying, quality_order, remarks, volume_frame
from monai_lcs.cohort.records import Record

__all__ = ["COLUMNS", "Summary"]

COLUMNS = {
    "case": "The name of the case, with which the names of its files start.",
    "state": "done, failed, or open: not yet begun or not yet finished.",
    "overlap": "The overlap of the foregrounds of the scan and of the atlas aligned to it, 0 to 1.",
    "orientation": "In which orientation the scan fits the atlas.",
    "seconds": "How long the last attempt took.",
    "attempts": "How many attempts were begun.",
    "outliers": "How many volumes are outliers of their label.",
    "remarks": "What asks for a look at the case.",
}
"""The columns of the table of cases before those of the labels."""


@dataclass(frozen=True)
class Summary:
    """What became of the cases of a folder.

    Args:
        records: the record of each case.
        corrected: the cases whose label maps were changed since.
    """

    records: Sequence[Record]
    corrected: frozenset[str] = frozenset()

    @cached_property
    def volumes(self) -> pd.DataFrame:
        """See :func:`monai_lcs.cohort.outliers.volume_frame`."""
        return volume_frame(self.records)

    @cached_property
    def outliers(self) -> pd.DataFrame:
        """See :func:`monai_lcs.cohort.outliers.outlying`."""
        return outlying(self.volumes)

    @cached_property
    def remarks(self) -> dict[str, list[str]]:
        """What asks for a look at each finished case."""
        names = self.outliers.columns.to_numpy()
        rows = zip(self.outliers.index, self.outliers.to_numpy(dtype=bool), strict=True)
        unusual = {case: list(names[row]) for case, row in rows}
        return {
            record.case: remarks(record, unusual[record.case], record.case in self.corrected) for record in self.done
        }

    @property
    def done(self) -> list[Record]:
        """Finished cases."""
        return [record for record in self.records if record.state == "done"]

    @property
    def failed(self) -> list[Record]:
        """Failed cases."""
        return [record for record in self.records if record.state == "failed"]

    @property
    def open(self) -> list[Record]:
        """Cases that are neither."""
        return [record for record in self.records if record.state not in ("done", "failed")]

    @property
    def worst_first(self) -> list[Record]:
        """Finished cases, sorted by quality."""
        return sorted(self.done, key=lambda record: quality_order(record, self.remarks[record.case]))

    def table(self) -> pd.DataFrame:
        """A row for each case: its state, quality, and the volume of each label in mm3."""
        counts = self.outliers.sum(axis=1)
        rows = [self._row(record, int(counts.get(record.case, 0))) for record in self.records]
        volumes = self.volumes.rename(columns=lambda name: f"{name} (mm3)" if name in COLUMNS else name)
        return pd.DataFrame(rows, columns=list(COLUMNS)).join(volumes, on="case")

    def _row(self, record: Record, outliers: int) -> dict[str, Any]:
        done, quality = record.state == "done", record.quality
        return {
            "case": record.case,
            "state": record.state if record.state in ("done", "failed") else "open",
            "overlap": quality.get("overlap"),
            "orientation": quality.get("orientation"),
            "seconds": record.seconds or None,
            "attempts": record.attempts,
            "outliers": outliers if done else None,
            "remarks": _cell(" ".join(self.remarks[record.case])) or None if done else None,
        }

    def failures(self) -> pd.DataFrame:
        """A row for each failed case, with its error."""
        rows = [(one.case, _cell(one.image), one.attempts, _cell(one.error)) for one in self.failed]
        return pd.DataFrame(rows, columns=["case", "image", "attempts", "error"])


def _cell(text: str) -> str:
    """A text that a table can hold: no tabs and lines, and no bytes that are no UTF-8."""
    return " ".join(text.encode(errors="replace").decode().split())
