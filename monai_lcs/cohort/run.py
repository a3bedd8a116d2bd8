"""Does the work on each case of a cohort once, whatever happens: crashes, failures, other runs in the same folder."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tqdm import tqdm

from monai_lcs.cohort.records import CohortFolder, Outcome, Record, scan_state
from monai_lcs.pipeline.weights import cause
from monai_lcs.study.splits import Case

__all__ = ["Cohort", "shard"]

DIED = (
    "The process ended in the middle of its work: killed, out of memory, or the machine failed."
    " Once given up, it is tried again with more --retries."
)

POLL_SECONDS = 1.0
"""How often to look whether another run is through with the cases that it has claimed."""


@dataclass(frozen=True)
class Cohort:
    """Cases, the work to do on each, and the folder of the results.

    Several processes may :meth:`run` the same cohort, or parts of it: each case is claimed by one of them. What is
    finished is not done again. A case that fails for a reason that may pass is tried again, after all others. A case
    at which the process ends, as for want of memory, is tried again last, by any later run.

    Args:
        folder: where results and records go.
        work: does the work on a case, and writes its files, replacing what is there.
        made_with: digests of what results depend on besides the scan, by what it is.
        retries: how often a failed case is tried again in a run, and one that ended its process in all runs.
        name: the name of the run. Processes that share its attempts have the same.

    Example:
        >>> from pathlib import Path
        >>> def write(case):
        ...     path = folder.path / f"{case['case']}_dseg.tsv"
        ...     _ = path.write_text(case["image"])
        ...     return Outcome([path])
        >>> folder = CohortFolder(getfixture("tmp_path"))
        >>> cohort = Cohort(folder, write)
        >>> [record.state for record in cohort.run([{"case": "ann", "image": "ann.nii"}])]
        ['done']
    """

    folder: CohortFolder
    work: Callable[[Case], Outcome]
    made_with: Mapping[str, str] = field(default_factory=dict)
    retries: int = 2
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    def run(
        self, cases: Sequence[Case], progress: bool = True, say: Callable[[str], Any] = lambda _: None
    ) -> list[Record]:
        """Do the work on all cases; those that another run has claimed are waited for.

        Args:
            cases: each with ``"case"``, its name, and ``"image"``, its file.
            progress: show a bar.
            say: told once for how many cases of other runs this one waits.

        Returns:
            The record of each case, done or failed, in their order.

        Raises:
            OSError: when the output folder takes no more results.
        """
        known = {case["case"]: self.folder.read(case["case"]) for case in cases}
        before = {name: self.attempts_before(record) for name, record in known.items()}
        queue = deque(sorted(cases, key=lambda case: known[case["case"]].ended))
        found: dict[str, Record] = {}
        idle = 0
        with tqdm(total=len(cases), desc="Cases", unit="case", disable=not progress) as bar:
            while queue:
                case = queue.popleft()
                record = self.attempt(case, before[case["case"]])
                if record is not None and self.is_settled(record, before[case["case"]]):
                    found[case["case"]] = record
                    bar.update()
                else:
                    queue.append(case)
                idle = 0 if record is not None else idle + 1
                if idle and idle == len(queue):
                    say(f"Waiting for {len(queue)} cases that another run works on.")
                    say, idle = (lambda _: None), 0
                    time.sleep(POLL_SECONDS)
        return [found[case["case"]] for case in cases]

    def attempts_before(self, record: Record) -> int:
        """How many attempts at a case do not count for this run, by the record at its beginning."""
        return record.attempts - (record.tries if record.run == self.name else 0)

    def attempt(self, case: Case, before: int = 0) -> Record | None:
        """Work on a case, unless that is done or has failed often enough.

        Args:
            case: the case.
            before: from :meth:`attempts_before`.

        Returns:
            What became of it; ``None`` when another has claimed it.

        Raises:
            OSError: when the output folder takes no more results.
            ValueError: when another run writes other results to it.
        """
        self.folder.check_place()
        with self.folder.claim(case["case"]) as ours:
            if not ours:
                return None
            record = self._as_found(case)
            return record if self.is_settled(record, before) else self._work_on(case, record)

    def is_settled(self, record: Record, before: int) -> bool:
        """Whether there is nothing left to do for a case in this run."""
        if record.state == "failed":
            most = self.retries if record.transient else 0
            return record.attempts - before > most or record.deaths > self.retries
        return record.state == "done"

    def _as_found(self, case: Case) -> Record:
        """The record of a case that nobody else works on."""
        self.folder.check_ours([case], self.made_with)
        record = self.folder.read(case["case"])
        if record.state == "running":
            record = replace(record, state="failed", deaths=record.deaths + 1, error=DIED, transient=True)
            self.folder.write(record)
        if record.state == "done" and not self.folder.is_finished(record):
            record = replace(record, state="outdated")
        if record.scan != scan_state(case["image"]):
            record = replace(record, deaths=0)  # they were the other file's
        return record

    def _work_on(self, case: Case, found: Record) -> Record:
        """One attempt, recorded before and after; one that is broken off from outside does not count."""
        tries = found.tries if found.run == self.name else 0
        begun = Record(
            case["case"],
            case["image"],
            "running",
            attempts=found.attempts + 1,
            deaths=found.deaths,
            run=self.name,
            tries=tries + 1,
            scan=scan_state(case["image"]),
            made_with=dict(self.made_with),
        )
        self.folder.write(begun)
        try:
            self.folder.remove_results(found)  # old ones must not pass for the new
            done = self._attempted(case, begun)
            self.folder.write(done)
        except BaseException:
            self.folder.take_back(found)
            raise
        return done

    def _attempted(self, case: Case, begun: Record) -> Record:
        """The record of an attempt after its work."""
        start = time.perf_counter()
        try:
            outcome = self.work(case)
            self.folder.check_place()
        except Exception as error:
            self.folder.check()  # is it the case, or the folder?
            transient = not isinstance(_root(error), ValueError | ImportError)
            ended: dict[str, Any] = {"state": "failed", "error": _sentence(error), "transient": transient}
        else:
            ended = {
                "state": "done",
                "files": self.folder.digests(outcome.files),
                "quality": dict(outcome.quality),
                "volumes": dict(outcome.volumes),
            }
        return replace(begun, seconds=round(time.perf_counter() - start, 1), **ended)


def shard(cases: Sequence[Case], part: str | None) -> list[Case]:
    """The cases of one part, ``"2/8"`` for the second of eight: every eighth case, from the second on.

    Raises:
        ValueError: for anything else than two such numbers.

    Example:
        >>> [shard([{"case": name} for name in "abcde"], part) for part in ("1/2", "2/2")]
        [[{'case': 'a'}, {'case': 'c'}, {'case': 'e'}], [{'case': 'b'}, {'case': 'd'}]]
    """
    if part is None:
        return list(cases)
    numbers = part.split("/")
    if len(numbers) != 2 or not all(one.isascii() and one.isdigit() for one in numbers):
        raise ValueError(f"A shard is written i/n, such as 1/8 for the first of eight, got {part!r}.")
    i, n = map(int, numbers)
    if not 1 <= i <= n:
        raise ValueError(f"The shards of {part!r} are 1/{n} to {n}/{n}.")
    return list(cases[i - 1 :: n])


def _root(error: BaseException) -> BaseException:
    """The error itself, where MONAI wraps it in a RuntimeError."""
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    return error


def _sentence(error: Exception) -> str:
    """What is told of an error."""
    root = _root(error)
    text = cause(root)
    return text if isinstance(root, ValueError | OSError) else f"{type(root).__name__}: {text[:300]}"
