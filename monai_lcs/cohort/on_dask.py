"""A cohort on Dask: each case is one task, on the workers of a scheduler or of this machine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from monai.utils import optional_import
from tqdm import tqdm

from monai_lcs.cohort.processes import threads_each
from monai_lcs.cohort.records import Record
from monai_lcs.cohort.run import POLL_SECONDS, Cohort
from monai_lcs.study.splits import Case

__all__ = ["run_on_dask"]


def run_on_dask(
    cohort: Cohort, cases: Sequence[Case], address: str, jobs: int = 1, say: Callable[[str], Any] = lambda _: None
) -> list[Record]:
    """Do what :meth:`Cohort.run` does, on Dask. Workers must see the scans and the output folder under the same paths.

    Args:
        cohort: what to do; it goes to each worker once.
        cases: the cases.
        address: of the scheduler, such as ``"tcp://10.0.0.1:8786"``; or ``"local"`` for workers on this machine.
        jobs: how many workers this machine has; each is ended and replaced when it takes more than its share of the
            memory.
        say: told of how many cases of other runs this one waits for.

    Raises:
        ImportError: naming the extra to install, if dask.distributed is missing.
        OSError: when the output folder takes no more results, or there is no scheduler.
    """
    known = {case["case"]: cohort.folder.read(case["case"]) for case in cases}
    before = {name: cohort.attempts_before(record) for name, record in known.items()}
    found: dict[str, Record] = {}
    killed: Counter[str] = Counter()
    claimed = 0
    with _client(address, jobs) as client, tqdm(total=len(cases), desc="Cases", unit="case") as bar:
        shared = client.scatter(cohort, broadcast=True)

        def submit(case: Case) -> Any:
            future = client.submit(_attempt, shared, case, before[case["case"]], pure=False)
            pending[future.key] = case
            return future

        pending: dict[str, Case] = {}
        queue = _distributed().as_completed([submit(case) for case in cases])
        for future in queue:
            case = pending.pop(future.key)
            name = case["case"]
            record = _result(future, cohort, killed, name)
            if record is not None and cohort.is_settled(record, before[name]):
                found[name] = record
                bar.update()
                continue
            claimed = claimed + 1 if record is None else 0
            if claimed > len(pending):  # all that is left
                say(f"Waiting for {claimed} cases that another run works on.")
                time.sleep(POLL_SECONDS)
                claimed = 0
            queue.add(submit(case))
    return [found[case["case"]] for case in cases]


def _attempt(cohort: Cohort, case: Case, before: int) -> Record | None:
    """The task of a worker."""
    return cohort.attempt(case, before)


def _result(future: Any, cohort: Cohort, killed: Counter[str], name: str) -> Record | None:
    """What a task gave; the record tells of the workers that died at it."""
    try:
        record: Record | None = future.result()
        return record
    except _distributed().KilledWorker:
        killed[name] += 1
        if killed[name] > cohort.retries + 1:
            raise OSError(f"The workers die before they begin with {name}: see what they print.") from None
        return cohort.folder.read(name)


@contextmanager
def _client(address: str, jobs: int) -> Iterator[Any]:
    """A connection to a scheduler, or to one with workers on this machine that end with it."""
    distributed = _distributed()
    if address != "local":
        with distributed.Client(address) as client:
            yield client
        return
    threads = {"distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": str(threads_each(jobs))}
    with (
        optional_import("dask.config")[0].set(threads),
        distributed.LocalCluster(n_workers=jobs, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def _distributed() -> Any:
    """The package, which only this needs.

    Raises:
        ImportError: naming the extra to install.
    """
    module, there = optional_import("distributed")
    if not there:
        raise ImportError("--dask needs dask.distributed: pip install 'monai-lcs[cohort]'.")
    return module
