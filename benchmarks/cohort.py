"""What many scans cost: CPU time over the bare loop, one and two processes, and the report of a large cohort.

python benchmarks/cohort.py OUT SCAN [SCAN ...]            # CPU time inside the bare work, and around it
python benchmarks/cohort.py OUT SCAN [SCAN ...] --jobs 1 2 # a bare loop, then the command with one and two processes
python benchmarks/cohort.py OUT --records 10000            # records and report of so many cases, without scans
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from monai_lcs.atlas import AlignmentCache, named_atlas
from monai_lcs.cohort import Cohort, CohortFolder, Outcome, Record, made_with, outcome, write_report
from monai_lcs.pipeline import Segmenter, shipped_weights
from monai_lcs.study.cases import find_images

COMMAND = "import sys; from monai_lcs.cli import main; sys.exit(main(sys.argv[1:]))"
LOOP = """
import sys
from monai_lcs import Segmenter, named_atlas
from monai_lcs.pipeline import shipped_weights

out, align, *scans = sys.argv[1:]
segmenter = Segmenter.load(shipped_weights(), named_atlas("desikan-killiany"), align=align or None)
for scan in scans:
    segmenter.segment(scan, segmenter.request()).save(out, overwrite=True)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("scans", nargs="*")
    parser.add_argument("--jobs", nargs="+", type=int, default=[])
    parser.add_argument("--align", help="as of monai-lcs segment")
    parser.add_argument("--records", type=int)
    options = parser.parse_args()
    if options.records:
        many_records(options.out, options.records)
    elif options.jobs:
        throughput(options.out, options.scans, options.jobs, options.align)
    else:
        overhead(options.out, options.scans, options.align)


def overhead(out, scans, align):
    """CPU seconds of each case inside the bare work, and around it."""
    segmenter = Segmenter.load(shipped_weights(), named_atlas("desikan-killiany"), align=align)
    requests = segmenter.request()
    inside = []

    def work(case):
        start = time.process_time()
        segmenter.preprocessing.cache = AlignmentCache()  # nothing is known
        result = segmenter.segment(case["image"], requests, case["case"])
        paths = result.save(out, overwrite=True)
        inside.append(time.process_time() - start)
        return outcome(result, paths)

    made, folder = made_with(segmenter, requests), CohortFolder(out)
    cohort = Cohort(folder, work, made)
    cases = find_images(scans)
    whole = cpu(lambda: cohort.run(cases, progress=False))
    print("inside:", *(f"{seconds:.2f}" for seconds in inside), "s")
    print(f"around: {1000 * (whole - sum(inside)) / len(cases):.0f} ms a case, {100 * (whole / sum(inside) - 1):.2f}%")
    print(f"once: digests {cpu(lambda: made_with(segmenter, requests)):.2f} s", end=", ")
    print(f"report {cpu(lambda: write_report(folder)):.2f} s", end=", ")
    print(f"again, all finished: {cpu(lambda: cohort.run(cases, progress=False)):.3f} s")


def throughput(out, scans, numbers, align):
    """Wall and CPU seconds, and the peak memory of a process, of a bare loop over the scans and of the command."""
    more = ["--align", align] if align else []
    contenders = {"bare loop": [LOOP, str(out / "loop"), align or "", *scans]}
    for jobs in numbers:
        words = ["segment", *scans, "-o", str(out / f"jobs-{jobs}"), "--jobs", str(jobs), "--overwrite", *more]
        contenders[f"--jobs {jobs}"] = [COMMAND, *words]
    print(f"{len(scans)} scans, one thread a process\n| | wall | CPU | scans an hour | peak so far of a process |")
    print("| :-- | --: | --: | --: | --: |")
    one_thread = os.environ | dict.fromkeys(["OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"], "1")
    for name, (program, *words) in contenders.items():
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-W", "ignore", "-c", program, *words], check=True, env=one_thread)
        after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        each = f"{3600 * len(scans) / wall:.0f} | {after.ru_maxrss / 2**20:.2f} GiB |"
        print(f"| {name} | {wall:.0f} s | {used:.0f} s | {each}", flush=True)


def many_records(out, count):
    """What a cohort of so many cases costs besides its segmentations."""
    rng = np.random.default_rng(0)
    names = [f"label-{i}" for i in range(136)]
    folder = CohortFolder(out)
    cases = [{"case": f"sub-{i:05}", "image": str(out / "none.nii")} for i in range(count)]

    def work(case):
        label_map = folder.label_map(case["case"])
        label_map.write_bytes(bytes(300_000))
        volumes = dict(zip(names, rng.normal(5000, 500, len(names)).round(), strict=True))
        return Outcome([label_map], {"overlap": rng.uniform(0.9, 1)}, volumes)

    cohort = Cohort(folder, work)
    for what, do in {
        "all records": lambda: cohort.run(cases),
        "the same run again": lambda: cohort.run(cases),
        "report": lambda: write_report(folder),
    }.items():
        print(f"{what}: {cpu(do):.1f} CPU s", flush=True)
    size = sum(path.stat().st_size for path in (out / "status").iterdir())
    print(f"records {size / 1e6:.1f} MB, page {(out / 'index.html').stat().st_size / 1e6:.1f} MB")
    assert folder.read("sub-00000") == folder.records()[0] != Record("sub-00000")


def cpu(do):
    """CPU seconds of all threads of this process."""
    start = time.process_time()
    do()
    return time.process_time() - start


if __name__ == "__main__":
    main()
