"""Words of commands that work through many cases: what to skip, who shares the work, what is said at the end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monai_lcs.cli.messages import are_quiet
from monai_lcs.cli.words import end

_PROCESS = "import sys; from monai_lcs.cli import main; sys.exit(main(sys.argv[1:]))"


def add_cohort(command: argparse.ArgumentParser) -> None:
    """What is there already, and who does the work."""
    there = command.add_mutually_exclusive_group()
    there.add_argument("--overwrite", action="store_true", help="replace earlier results")
    there.add_argument(
        "--skip-existing", action="store_true", help="go on where an earlier run stopped: finished scans are checked"
    )
    command.add_argument(
        "--retries", type=int, default=2, metavar="N", help="try again what may pass by itself (default: %(default)s)"
    )
    command.add_argument("--jobs", type=int, default=1, metavar="N", help="processes on this machine")
    command.add_argument("--shard", metavar="I/N", help="the I-th of N parts of the scans, as for an array of jobs")
    command.add_argument(
        "--dask", metavar="ADDRESS", help='workers of a Dask scheduler, or "local": --jobs of this machine'
    )
    command.add_argument("--worker", metavar="RUN", help=argparse.SUPPRESS)  # one of --jobs


def open_folder(options: argparse.Namespace, cases: Sequence[dict[str, Any]]) -> Any:
    """The folder of the results, in which no result replaces another unless that is asked for."""
    from monai_lcs.cohort import CohortFolder, shard

    for word, number, least in (("--jobs", options.jobs, 1), ("--retries", options.retries, 0)):
        if number < least:
            raise ValueError(f"{word} takes a number from {least} on, got {number}.")
    mine = shard(cases, options.shard)
    folder = CohortFolder(options.out)
    there = folder.existing(mine)
    if there and not (options.overwrite or options.skip_existing or options.worker):
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise ValueError(
            f"{options.out} has results: {there[0]}{more}. Choose another -o, add --skip-existing to go on with them, "
            "or --overwrite."
        )
    return folder


def run_cohort(
    options: argparse.Namespace,
    folder: Any,
    cases: Sequence[dict[str, Any]],
    work: Callable[[dict[str, Any]], Any],
    made_with: Mapping[str, str],
) -> int:
    """Do the work on all cases, in this process or in others; report, and return the exit status.

    Args:
        options: the words.
        folder: from :func:`open_folder`.
        cases: all cases; a shard takes its part of them.
        work: what to do with a case, see :class:`monai_lcs.cohort.Cohort`.
        made_with: likewise.
    """
    from monai_lcs.cohort import Cohort, shard, write_report
    from monai_lcs.cohort.processes import stoppable

    name = {"name": options.worker} if options.worker else {}
    cohort = Cohort(folder, work, made_with, options.retries, **name)
    mine = shard(cases, options.shard)
    if options.overwrite and not options.worker:
        folder.forget(mine)
    folder.check_ours(mine, made_with)
    with stoppable():
        records = _records(options, cohort, mine)
    if options.worker:
        return 0
    failed = [_line(record) for record in records if record.state == "failed"]
    if not are_quiet() or failed:
        print(f"{len(mine) - len(failed)} of {len(mine)} scans are in {options.out}.")
    if len(cases) > 1:
        paths = write_report(folder, [case["case"] for case in cases])
        print("All scans of this folder:", *paths.values(), sep="\n  ")
    return end(failed, f"{len(mine)} scans")


def _records(options: argparse.Namespace, cohort: Any, cases: Sequence[dict[str, Any]]) -> Any:
    """What became of the cases, wherever they are computed."""
    from monai_lcs.cohort.on_dask import run_on_dask
    from monai_lcs.cohort.processes import run_processes

    if options.worker:
        return cohort.run(cases, progress=False)
    if options.dask:
        return run_on_dask(cohort, cases, options.dask, options.jobs, _say)
    if options.jobs > 1:
        command = [sys.executable, "-c", _PROCESS, *options.words, "--worker", cohort.name]
        run_processes(command, min(options.jobs, len(cases)), cohort, cases)
        return [cohort.folder.read(case["case"]) for case in cases]
    return cohort.run(cases, say=_say, progress=not are_quiet())


def _line(record: Any) -> str:
    """What is told of a failed case."""
    return record.error if record.image in record.error else f"{record.image}: {record.error}"


def _say(text: str) -> None:
    print(text, file=sys.stderr)
