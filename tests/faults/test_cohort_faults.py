"""Faults that are caused on purpose: processes killed, two runs at once, disks that are full or gone."""

import contextlib
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter

import cohort_worker
import nibabel as nib
import numpy as np
import pytest

from monai_lcs.cohort import CohortFolder
from monai_lcs.cohort.run import DIED

FILES = ("dseg.tsv", "volumes.tsv", "dseg.nii.gz")


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for i in range(6):
        (folder / f"sub-{i}.nii.gz").write_bytes(b"scan")
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["monai_lcs.cohort.processes"])  # imported once, for all processes
LOGS = itertools.count()


def start(out, scans, seconds=0.0, **options):
    log = scans.with_name(f"log-{next(LOGS)}")
    process = FORKS.Process(target=cohort_worker.run, args=(out, scans, log, seconds), kwargs=options)
    process.log = log
    process.start()
    return process


def end(process):
    """What a process says, and its status."""
    process.join(300)
    return process.log.read_text(encoding="utf-8") if process.log.exists() else "", process.exitcode


def kill(process):
    process.kill()
    process.join()


DONE = " ".join(f"sub-{i}=done" for i in range(6))


def wait_for(condition, seconds=300.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def begun(out):
    log = out / "begun.log"
    return Counter(log.read_text(encoding="utf-8").split()) if log.exists() else Counter()


def assert_whole(out, scans):
    """All cases are finished, with all their files, and nothing else is left."""
    names = {path.name.split(".")[0] for path in scans.iterdir()}
    folder = CohortFolder(out)
    for name in names:
        assert folder.is_finished(folder.read(name))
        assert np.asarray(nib.load(out / f"{name}_dseg.nii.gz").dataobj).shape == (40, 40, 40)
    left = {path.name for path in out.iterdir()} - {"status", "begun.log"}
    return left - {f"{name}_{ending}" for name in names for ending in FILES}


def test_a_killed_run_goes_on(out, scans):
    process = start(out, scans, 0.4)
    wait_for(lambda: sum(begun(out).values()) == 3)
    kill(process)
    said, status = end(start(out, scans))
    assert (said, status) == (DONE, 0)
    assert_whole(out, scans)
    assert max(begun(out).values()) == 2  # the case at which it was killed
    assert sum(begun(out).values()) == 7


def test_a_process_that_is_asked_to_end_does_so_in_good_order(out, scans):
    """As a scheduler asks before it kills: the case is not to blame, and comes in its turn."""
    process = start(out, scans, 0.4)
    wait_for(lambda: sum(begun(out).values()) == 2)
    process.terminate()
    assert end(process)[1] == 128 + signal.SIGTERM
    folder = CohortFolder(out)
    assert [folder.read(f"sub-{i}").ended for i in range(6)] == [0] * 6
    assert end(start(out, scans))[1] == 0
    assert not assert_whole(out, scans)


def test_a_case_that_kills_its_process_does_not_keep_the_others(out, scans):
    """Each run dies at it, and comes further; the fourth gives it up."""
    states = []
    for _ in range(4):
        said, status = end(start(out, scans, kill="sub-1"))
        states.append(status)
    assert states == [-signal.SIGKILL] * 3 + [0]
    assert said == DONE.replace("sub-1=done", "sub-1=failed")
    assert begun(out) == dict.fromkeys([f"sub-{i}" for i in (0, 2, 3, 4, 5)], 1)
    record = CohortFolder(out).read("sub-1")
    assert (record.deaths, record.error) == (3, DIED)


def test_two_runs_share_a_folder_and_one_is_killed(out, scans):
    first, second = start(out, scans, 0.4), start(out, scans, 0.4)
    wait_for(lambda: sum(begun(out).values()) >= 2)
    kill(first)
    said, status = end(second)
    assert (said, status) == (DONE, 0)
    assert_whole(out, scans)
    assert sum(begun(out).values()) - 6 <= 1  # no case twice but that of the killed one


def test_a_file_that_may_grow_no_further_stops_the_run(out, scans):
    """RLIMIT_FSIZE; the label map does not fit, and neither does a trial file."""

    said, status = end(start(out, scans, file_size=20_000))
    assert status == 1
    assert "takes no more: File too large. What is finished is kept" in said
    assert begun(out) == {"sub-0": 1}  # the others would fail as well
    assert end(start(out, scans))[1] == 0
    assert not assert_whole(out, scans)


def test_a_folder_that_is_moved_away_stops_the_run(out, scans):
    process = start(out, scans, 0.4)
    wait_for(lambda: sum(begun(out).values()) == 2)
    moved = out.with_name("moved")
    out.rename(moved)
    said, status = end(process)
    assert status == 1
    assert "gone" in said or "Cannot write" in said or "No such file" in said
    assert not out.exists()
    moved.rename(out)
    assert end(start(out, scans))[1] == 0
    assert not assert_whole(out, scans) or all(name.startswith(".") for name in assert_whole(out, scans))


@pytest.fixture
def small_disk(tmp_path, request):
    """A folder on a file system of its own, of 200 kB if no other size is asked for."""
    folder, size = tmp_path / "disk", getattr(request, "param", "200k")
    folder.mkdir()
    if not shutil.which("mount") or os.geteuid() != 0:
        pytest.skip("a small file system takes root")
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_stops_the_run(small_disk, scans):
    out = small_disk / "out"
    said, status = end(start(out, scans))
    assert status == 1
    assert "takes no more: No space left on device" in said or "Cannot write" in said
    whole = [name for name in begun(out) if (out / f"{name}_dseg.nii.gz").exists()]
    for name in whole:
        assert np.asarray(nib.load(out / f"{name}_dseg.nii.gz").dataobj).shape == (40, 40, 40)
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert end(start(out, scans))[1] == 0
    assert not assert_whole(out, scans)


@pytest.mark.slow  # the disk can be made read-only only between two files, which a quick run may not leave time for
@pytest.mark.parametrize("small_disk", ["20m"], indirect=True)
def test_a_disk_that_becomes_read_only_stops_the_run(small_disk, scans):
    out = small_disk / "out"
    process = start(out, scans, 0.4)
    wait_for(lambda: sum(begun(out).values()) == 2)
    wait_for(lambda: subprocess.run(["mount", "-o", "remount,ro", small_disk], capture_output=True).returncode == 0)
    said, status = end(process)
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert status == 1
    assert "Read-only file system" in said
    assert end(start(out, scans))[1] == 0
    assert not assert_whole(out, scans)


@pytest.mark.slow
def test_killed_at_random_until_all_is_done(out, scans):
    """Two runs at a time, one killed after the other at random, each replaced until all cases are finished."""
    rng = random.Random(0)
    kills = 0
    while kills < 40:
        processes = [start(out, scans, 0.3) for _ in range(2)]
        time.sleep(rng.uniform(0.1, 2.0))
        for process in processes:
            kills += process.is_alive()
            kill(process)
        for label_map in out.glob("sub-*_dseg.nii.gz"):  # never half a file under its name
            assert np.asarray(nib.load(label_map).dataobj).shape == (40, 40, 40)
        if rng.random() < 0.5:  # more to do
            with contextlib.suppress(FileNotFoundError):
                rng.choice([*out.glob("sub-*_*"), out / "none"]).unlink()
    # a case may have ended as many processes as a case may end; an explicit request tries it again
    folder = CohortFolder(out)
    folder.forget([{"case": f"sub-{i}", "image": str(scans / f"sub-{i}.nii.gz")} for i in range(6)])
    said, status = end(start(out, scans))
    assert (said, status) == (DONE, 0)
    left = assert_whole(out, scans)
    assert all(name.startswith(".") for name in left)  # temporary files of the killed


@pytest.mark.slow
def test_many_runs_at_once(out, scans):
    for i in range(6, 60):
        (scans / f"sub-{i}.nii.gz").write_bytes(b"scan")
    processes = [start(out, scans, 0.05) for _ in range(6)]
    for process in processes:
        said, status = end(process)
        assert status == 0, said
        assert said.count("=done") == 60
    assert begun(out) == dict.fromkeys([f"sub-{i}" for i in range(60)], 1)
    assert not assert_whole(out, scans)
