"""Several processes on this machine: each runs the same command, and they share the cases by their claims."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm

from monai_lcs.cohort.run import Cohort
from monai_lcs.study.splits import Case

__all__ = ["run_processes", "stoppable", "threads_each"]

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


def threads_each(jobs: int) -> int:
    """How many threads each of several processes may use, so that all have as many as there are cores.

    Example:
        >>> threads_each(10_000)
        1
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs)


def run_processes(command: Sequence[str], jobs: int, cohort: Cohort, cases: Sequence[Case]) -> None:
    """Run a command in several processes until all cases are settled.

    A process that dies is replaced; the case at which it died is known by its record, and given up after some deaths.

    Args:
        command: the words of the process. It works on ``cases`` as :meth:`Cohort.run` does, in the same folder and
            under the same name of the run, ends with status 0, and with another one when there is no use to go on.
        jobs: how many processes.
        cohort: tells what is settled.
        cases: the cases.

    Raises:
        OSError: when a process says that there is no use to go on, or new ones die before they begin with a case.
    """
    environment = {**os.environ, **dict.fromkeys(_THREADS, str(threads_each(jobs)))}
    progress = _Progress(cohort, cases)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes = [subprocess.Popen(command, env=environment) for _ in range(jobs)]
        begun_before = [0] * jobs  # attempts of any process when each one started
        while True:
            time.sleep(progress.pause)
            progress.look()
            for i, process in enumerate(processes):
                status = process.poll()
                if status is not None and status > 0:
                    raise OSError("A worker process has stopped, as it says above: so does the run.")
                if status is not None and status < 0:
                    if progress.begun == begun_before[i]:
                        raise OSError(f"Worker processes are ended by signal {-status} before they begin with a case.")
                    processes[i] = subprocess.Popen(command, env=environment)
                    begun_before[i] = progress.begun
            if all(process.poll() == 0 for process in processes):
                return
    finally:
        progress.bar.close()
        _end(processes)


class _Progress:
    """A bar of the settled cases, by their records; looking takes little of the time."""

    def __init__(self, cohort: Cohort, cases: Sequence[Case]) -> None:
        self.cohort = cohort
        known = {case["case"]: cohort.folder.read(case["case"]) for case in cases}
        self.before = {name: cohort.attempts_before(record) for name, record in known.items()}
        self.attempts = {name: record.attempts for name, record in known.items()}
        self.begun = 0
        self.bar = tqdm(total=len(cases), desc="Cases", unit="case")
        self.pause = 0.2

    def look(self) -> None:
        """Look at the records of cases that were not settled before, and count the attempts begun since."""
        start = time.perf_counter()
        for name in list(self.attempts):
            record = self.cohort.folder.read(name)
            self.begun += record.attempts > self.attempts[name]
            self.attempts[name] = record.attempts
            if self.cohort.is_settled(record, self.before[name]) and record.run == self.cohort.name:
                del self.attempts[name]
                self.bar.update()
        self.pause = min(10.0, max(0.2, 50 * (time.perf_counter() - start)))


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the processes that are left; they record that their cases were broken off."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


@contextmanager
def stoppable() -> Iterator[None]:
    """Let a request to end, as a scheduler sends before it kills, end the program in good order."""

    def stop(number: int, _: object) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # no other thread may say what a signal does
        yield
        return
    earlier = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)
