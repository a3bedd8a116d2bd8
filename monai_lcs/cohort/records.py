"""Records: what became of each case, a small file each, written before and after the work."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import PathLike

from monai_lcs.cohort.claims import claim
from monai_lcs.files import check_writable, write_atomically
from monai_lcs.results.segmentation import ENDINGS
from monai_lcs.study.cases import shorten_names
from monai_lcs.study.splits import Case

__all__ = ["CohortFolder", "Outcome", "Record", "scan_state"]

PROBE_BYTES = 2**22
"""What is written for a trial, about as much as the results of a case."""

_GO_ON = "What is finished is kept: mend it and start again with --skip-existing."


@dataclass(frozen=True)
class Outcome:
    """What the work on a case gave.

    Attributes:
        files: the paths written.
        quality: measures of quality by name, as :class:`monai_lcs.results.Segmentation` has them.
        volumes: mm3 of each label by its name.
    """

    files: Sequence[PathLike]
    quality: Mapping[str, Any] = field(default_factory=dict)
    volumes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """What became of a case.

    Attributes:
        case: its name.
        image: its file.
        state: ``"new"``, ``"running"``, ``"done"``, ``"failed"``, or ``"outdated"``: its files are to be replaced.
        attempts: how many were begun.
        deaths: in how many of them the process ended, killed or out of memory.
        run: the run of the last attempt.
        tries: how many of the attempts were that run's.
        error: the sentence of a failure.
        transient: whether the failure may pass by itself: no memory, no network.
        seconds: of the last attempt.
        scan: what tells that the file is still the same, see :func:`scan_state`.
        made_with: the digest of all that a result depends on besides the scan, by what it is.
        files: the digest of each file written, by its name.
        quality: see :class:`Outcome`.
        volumes: see :class:`Outcome`.
    """

    case: str
    image: str = ""
    state: str = "new"
    attempts: int = 0
    deaths: int = 0
    run: str = ""
    tries: int = 0
    error: str = ""
    transient: bool = False
    seconds: float = 0.0
    scan: list[int] = field(default_factory=list)
    made_with: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    volumes: dict[str, float] = field(default_factory=dict)

    @property
    def ended(self) -> int:
        """In how many attempts the process may have ended: those at which it did, and one that was left as it was."""
        return self.deaths + (self.state == "running")

    @property
    def picture(self) -> str | None:
        """The name of the picture's file."""
        return next((name for name in self.files if name.endswith(f"_{ENDINGS['qc']}")), None)


class CohortFolder:
    """The folder of a cohort's results. In its folder ``status`` each case has a record and a claim.

    Args:
        path: the folder; it is created if it does not exist.

    Raises:
        OSError: if it cannot be written to.

    Example:
        >>> folder = CohortFolder(getfixture("tmp_path"))
        >>> folder.write(Record("ann", state="running", attempts=1))
        >>> folder.read("ann").state, folder.read("bo").state, [record.case for record in folder.records()]
        ('running', 'new', ['ann'])
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path).absolute()
        self.status = self.path / "status"
        check_writable(self.status)
        with self.claim(".folder", wait=True):
            if not (token := self._read_token()):
                token = uuid.uuid4().hex
                write_atomically(self._token_file, lambda temporary: temporary.write_text(token))
        self._token = token

    # ---- records ----------------------------------------------------------------------------------------------------

    def read(self, case: str) -> Record:
        """The record of a case: a new one where there is none, ``"running"`` where it cannot be read."""
        return _read(self._file(case))

    def write(self, record: Record) -> None:
        """Write a record. An OSError says that no more results can be kept here."""
        text = json.dumps(asdict(record), default=_plain, indent=0)
        write_atomically(self._file(record.case), lambda temporary: temporary.write_text(text))

    def records(self) -> list[Record]:
        """All records, sorted by case."""
        names = sorted(entry.name for entry in os.scandir(self.status) if entry.name.endswith(".json"))
        return [_read(self.status / name) for name in names if not name.startswith(".")]

    def claim(self, case: str, wait: bool = False) -> AbstractContextManager[bool]:
        """See :func:`monai_lcs.cohort.claims.claim`."""
        return claim(self.status / f"{case}.claim", wait)

    # ---- what is there already --------------------------------------------------------------------------------------

    def existing(self, cases: Sequence[Case]) -> list[str]:
        """The first result file of each case that has any, with or without a record."""
        names = {entry.name for entry in os.scandir(self.path)}
        files = ([f"{case['case']}_{ending}" for ending in ENDINGS.values()] for case in cases)
        return [there[0] for those in files if (there := [name for name in those if name in names])]

    def check_ours(self, cases: Sequence[Case], made_with: Mapping[str, str]) -> None:
        """Check that no result here would be mixed up with another's.

        Raises:
            ValueError: if a label map has no record, or a finished case was made with something else.
        """
        for case in cases:
            record, label_map = self.read(case["case"]), self.label_map(case["case"])
            other = [name for name in made_with if record.made_with.get(name) != made_with[name]]
            if record.state == "done" and other:
                what = f"was made with other {shorten_names(other, most=9)}"
            elif record.state == "new" and label_map.exists():
                what = f"has no record in {self.status.name}/ of how it was made"
            else:
                continue
            raise ValueError(f"{label_map} {what}: write to another folder, or replace what is there with --overwrite.")

    def forget(self, cases: Sequence[Case]) -> None:
        """Mark all results of the cases as out of date: they are made again."""
        names = {entry.name for entry in os.scandir(self.status)}
        there = set(self.existing(cases))
        for case in cases:
            name = case["case"]
            if f"{name}.json" in names or any(f"{name}_{ending}" in there for ending in ENDINGS.values()):
                self.write(Record(name, case["image"], state="outdated"))

    def is_finished(self, record: Record) -> bool:
        """Whether a case is done: its scan is still the same, and its files are those that were written.

        A label map that somebody has corrected stands, whatever became of the scan and the other files.
        """
        if record.state != "done":
            return False
        if self.is_corrected(record):
            return True
        same = all(_digest(self.path / name) == digest for name, digest in record.files.items())
        return same and record.scan == scan_state(record.image)

    def is_corrected(self, record: Record) -> bool:
        """Whether the label map of a case was changed since it was written, and can be read to its end."""
        path = self.label_map(record.case)
        return record.files.get(path.name, "") not in ("", _digest(path)) and _is_readable(path)

    def is_newer(self, record: Record) -> bool:
        """:meth:`is_corrected`, quick for many: files older than their record were not changed after it."""
        try:
            newer = self.label_map(record.case).stat().st_mtime_ns > self._file(record.case).stat().st_mtime_ns
        except OSError:
            return False
        return newer and self.is_corrected(record)

    def digests(self, files: Sequence[PathLike]) -> dict[str, str]:
        """What tells that files of this folder are unchanged, by their names."""
        return {str(Path(file).absolute().relative_to(self.path)): _digest(Path(file)) for file in files}

    def label_map(self, case: str) -> Path:
        """The label map of a case."""
        return self.path / f"{case}_{ENDINGS['dseg']}"

    def remove_results(self, record: Record) -> None:
        """Remove the files of a case, first the label map, which says that the others are complete."""
        known = [f"{record.case}_{ending}" for ending in reversed(ENDINGS.values())]
        for name in [*known, *(name for name in record.files if Path(name).name == name)]:
            (self.path / name).unlink(missing_ok=True)

    def take_back(self, record: Record) -> None:
        """Write what was recorded before an attempt; where that is impossible, as on a full disk, remove its traces."""
        try:
            self.write(replace(record, state="outdated") if record.state == "new" else record)
        except OSError:
            with suppress(OSError):
                self.remove_results(record)
                self._file(record.case).unlink()

    # ---- trouble with the folder itself -----------------------------------------------------------------------------

    def check_place(self) -> None:
        """Check that the folder is still the one it was: a disk may be unmounted, another machine may lack it.

        Raises:
            OSError: if it is not.
        """
        if self._read_token() != self._token:
            raise OSError(f"The output folder {self.path} is gone, or another one is in its place. {_GO_ON}")

    def check(self) -> None:
        """Check that the folder is in its place and takes the results of another case.

        Raises:
            OSError: saying what is wrong.
        """
        self.check_place()
        try:
            with tempfile.TemporaryFile(dir=self.path) as file:
                file.write(bytes(PROBE_BYTES))
        except OSError as error:
            raise OSError(
                f"The output folder {self.path} takes no more: {error.strerror or error}. {_GO_ON}"
            ) from error

    def _file(self, case: str) -> Path:
        return self.status / f"{case}.json"

    @property
    def _token_file(self) -> Path:
        """Holds a random text by which every process knows the folder."""
        return self.status / ".folder"

    def _read_token(self) -> str:
        try:
            return self._token_file.read_text(encoding="utf-8")
        except OSError:
            return ""


def scan_state(path: PathLike) -> list[int]:
    """What changes when a scan is replaced: the size and the time of its file, or of all files of its folder.

    Example:
        >>> scan_state("no/such/scan.nii")
        []
    """
    files = [path, *Path(path).rglob("*")] if os.path.isdir(path) else [path]
    try:
        found = [os.stat(file) for file in files]
    except OSError:
        return []
    return [len(found), sum(one.st_size for one in found), max(one.st_mtime_ns for one in found)]


def _read(path: Path) -> Record:
    """A record by its file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        record = Record(path.stem, **{name: content[name] for name in _NAMES})
    except FileNotFoundError:
        return Record(path.stem)
    except (ValueError, TypeError, KeyError):  # a disk that failed: what lies beside it is half-done
        return Record(path.stem, state="running", attempts=1)
    return replace(record, case=path.stem)


_NAMES = [one.name for one in fields(Record) if one.name != "case"]


def _plain(value: Any) -> Any:
    """What JSON can hold of a number of NumPy or torch, or of anything else."""
    return value.item() if hasattr(value, "item") else str(value)


def _digest(path: Path) -> str:
    """The SHA-256 of a file, empty where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _is_readable(path: Path) -> bool:
    """Whether a label map can be read to its end."""
    try:
        return np.asarray(nib.load(path).dataobj).size > 0  # type: ignore[attr-defined]
    except Exception:  # nibabel and zlib have many
        return False
