"""Writes what became of a cohort: a table of all cases, a table of the failures, and one page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from monai_lcs.cohort.page import page
from monai_lcs.cohort.records import CohortFolder, Record
from monai_lcs.cohort.summary import COLUMNS, Summary
from monai_lcs.files import write_atomically
from monai_lcs.results.tsv import write_tsv

__all__ = ["write_report"]


def write_report(folder: CohortFolder, cases: Sequence[str] = ()) -> dict[str, str]:
    r"""Write what became of all cases that have a record in a folder, whichever run they are of.

    The files are ``cohort.tsv`` with ``cohort.json``, which describes its columns as BIDS does; ``failed.tsv``, which
    is removed where no case failed; and ``index.html``. Of processes that are through at the same time, the last one to
    write has seen all records.

    Args:
        folder: the folder of the results.
        cases: names of all cases of the study. Those without a record are listed as open.

    Returns:
        The paths written, by ``"table"``, ``"columns"``, ``"page"`` and, where a case failed, ``"failed"``.

    Example:
        >>> folder = CohortFolder(getfixture("tmp_path"))
        >>> folder.write(Record("ann", "ann.nii", "failed", attempts=3, error="no voxels"))
        >>> print(Path(write_report(folder)["failed"]).read_text().replace("\t", " "))
        case image attempts error
        ann ann.nii 3 no voxels
        <BLANKLINE>
    """
    with folder.claim(".report", wait=True):
        records = folder.records()
        known = {record.case for record in records}
        records += [Record(name) for name in cases if name not in known]
        corrected = frozenset(record.case for record in records if record.state == "done" and folder.is_newer(record))
        summary = Summary(sorted(records, key=lambda record: record.case), corrected)
        return _write(summary, folder.path)


def _write(summary: Summary, folder: Path) -> dict[str, str]:
    table, failures = summary.table(), summary.failures()
    labels = {name: {"Description": "Volume of the label.", "Units": "mm3"} for name in table.columns[len(COLUMNS) :]}
    columns = {**{name: {"Description": text} for name, text in COLUMNS.items()}, **labels}
    paths = {"table": "cohort.tsv", "columns": "cohort.json", "page": "index.html", "failed": "failed.tsv"}
    found = {kind: folder / name for kind, name in paths.items()}
    write_atomically(found["table"], lambda temporary: write_tsv(table, temporary))
    write_atomically(found["columns"], lambda temporary: temporary.write_text(json.dumps(columns, indent=2) + "\n"))
    write_atomically(found["page"], lambda temporary: temporary.write_bytes(page(summary).encode(errors="replace")))
    if len(failures):
        write_atomically(found["failed"], lambda temporary: write_tsv(failures, temporary))
    else:
        found.pop("failed").unlink(missing_ok=True)
    return {kind: str(path) for kind, path in found.items()}
