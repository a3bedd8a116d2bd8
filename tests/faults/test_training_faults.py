"""Faults in a training: whatever happens, it goes on to the very weights of the training that nothing happened to.

    python -m pytest -m slow -s tests/faults

Each run is a process of its own, forked from this one, where nothing has run yet but imports.
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import ignite.handlers
import monai.bundle
import monai.engines
import monai.handlers
import numpy as np
import pytest
import torch.utils.tensorboard
from tiny_training import epochs_saved, make_study, outcome, same, train

import monai_lcs as lcs
from monai_lcs.pipeline.weights_file import read_state, read_torch

torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # imports more
assert ignite.handlers
assert monai.bundle
assert monai.engines
assert monai.handlers
assert torch.utils.tensorboard

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

EPOCHS = 4
KILLED = -signal.SIGKILL


def in_child(work, kill_after=None, log=None):
    """Do some work in a process of its own; its exit status, or minus the signal that ended it."""
    return end_of(start_child(work, log, kill_after))


def start_child(work, log=None, kill_after=None):
    """Fork; after ``kill_after`` seconds of CPU time, whatever else this machine has to do, the process is no more."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        output = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if kill_after is not None:  # its signal ends a process as SIGKILL does, without a last word
            signal.setitimer(signal.ITIMER_PROF, kill_after)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def end_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def expected(study, tmp_path_factory):
    """What a training leaves that nothing happens to, and the CPU seconds that it takes."""
    out = tmp_path_factory.mktemp("expected")
    status, usage = os.wait4(start_child(lambda: train(study, out)), 0)[1:]
    assert os.waitstatus_to_exitcode(status) == 0
    return outcome(out), usage.ru_utime + usage.ru_stime


def finish(study, out):
    """Go on as a user would: resume where there is a checkpoint, else begin; once more must be enough."""
    log = out.parent / "finish.log"
    if epochs_saved(out)[-1:] == [EPOCHS]:
        return
    status = in_child(lambda: train(study, out, resume=bool(epochs_saved(out))), log=log)
    assert status == 0, log.read_text(encoding="utf-8")[-2000:]


def check_files(out):
    """At any moment: what is there under its final name is complete."""
    for path in out.glob("resume_*.pt"):
        read_torch(path)
    if (out / "model.pt").is_file():
        read_state(out / "model.pt")
        assert lcs.Settings.of_weights(out / "model.pt").channels == (2, 4)


class Deaths:
    """Kills this process at the Nth moment at which it changes the folder: half-way through a write, before the disk
    has it, before and after a file gets its name, before and after one is removed."""

    def __init__(self, folder, n=None):
        self.folder, self.n, self.count = str(folder), n, 0

    def point(self):
        self.count += 1
        if self.count == self.n:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(self):
        for name in ("replace", "unlink"):
            setattr(os, name, self._around(getattr(os, name)))
        sync = os.fsync
        os.fsync = lambda descriptor: (self.point(), sync(descriptor))
        for name in ("write_bytes", "write_text"):
            setattr(Path, name, self._half(getattr(Path, name)))

    def _around(self, change):
        def changed(path, *more, **options):
            here = str(path).startswith(self.folder)
            if here:
                self.point()
            change(path, *more, **options)
            if here:
                self.point()

        return changed

    def _half(self, write):
        def written(path, data, *more, **options):
            if str(path).startswith(self.folder):
                write(path, data[: len(data) // 2], *more, **options)
                self.point()
            return write(path, data, *more, **options)

        return written


def test_killed_at_every_hooked_write(study, expected, tmp_path):
    def work(out, n=None):
        deaths = Deaths(out, n)
        deaths.hook()
        train(study, out)
        (tmp_path / "count").open("w").write(str(deaths.count))

    (tmp_path / "whole").mkdir()
    assert in_child(lambda: work(tmp_path / "whole")) == 0
    points = int((tmp_path / "count").read_text(encoding="utf-8"))
    assert points > 50
    for n in range(1, points + 1):
        out = tmp_path / "out"
        out.mkdir()
        assert in_child(lambda out=out, n=n: work(out, n)) == KILLED
        check_files(out)
        finish(study, out)
        assert same(outcome(out), expected[0]), n
        assert not list(out.glob(".*_*.*")), n  # no temporary file is left
        shutil.rmtree(out)
    print(f"\nkilled at hooked writes: {points} injected, {points} survived")


@pytest.mark.parametrize("count", [50])
def test_killed_at_random_points(study, expected, tmp_path, count):
    rng, seconds, in_the_middle = random.Random(0), expected[1], 0
    for n in range(count):
        out = tmp_path / "out"
        out.mkdir()
        status = in_child(lambda out=out: train(study, out), kill_after=rng.uniform(0.05, 1) * seconds)
        assert status in (-signal.SIGPROF, 0)
        in_the_middle += bool(epochs_saved(out)) and epochs_saved(out) != [EPOCHS - 1, EPOCHS]
        check_files(out)
        finish(study, out)
        assert same(outcome(out), expected[0]), n
        shutil.rmtree(out)
    assert in_the_middle > count / 10
    print(f"\nkilled at random points: {count} injected, {count} survived, {in_the_middle} between two checkpoints")


def test_killed_again_and_again(study, expected, tmp_path):
    """Also the resumed trainings are killed."""
    rng, kills = random.Random(1), 0
    for n in range(5):
        out = tmp_path / f"out{n}"
        out.mkdir()
        while epochs_saved(out)[-1:] != [EPOCHS]:
            resume = bool(epochs_saved(out))
            wait = rng.uniform(0.3, 0.9) * expected[1]
            kills += in_child(lambda out=out, resume=resume: train(study, out, resume=resume), kill_after=wait) != 0
            check_files(out)
        assert same(outcome(out), expected[0]), n
    assert kills >= 10
    print(f"\nfive trainings killed again and again: {kills} injected, {kills} survived")


def test_files_that_may_not_grow(study, expected, tmp_path):
    """RLIMIT_FSIZE, as a quota or a full disk, at sizes from nothing to just too little for a checkpoint."""
    (tmp_path / "whole").mkdir()
    assert in_child(lambda: train(study, tmp_path / "whole")) == 0
    checkpoint = (tmp_path / "whole/resume_checkpoint_4.pt").stat().st_size
    model = (tmp_path / "whole/model.pt").stat().st_size
    sizes = [0, 100, model // 2, model - 1, model, checkpoint // 2, checkpoint - 1]

    def work(out, size, resume):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        train(study, out, resume=resume)

    injected = 0
    for size in sizes:
        for interrupted in (False, True):
            out = tmp_path / "out"
            out.mkdir()
            if interrupted:
                in_child(lambda out=out: train(study, out), kill_after=0.7 * expected[1])
            resume = bool(epochs_saved(out))
            if epochs_saved(out)[-1:] != [EPOCHS]:
                assert in_child(lambda out=out, size=size, resume=resume: work(out, size, resume)) == 1
                injected += 1
            check_files(out)
            finish(study, out)
            assert same(outcome(out), expected[0]), size
            shutil.rmtree(out)
    print(f"\nfiles that may not grow: {injected} injected, {injected} survived")


def test_full_disk(study, expected, tmp_path):
    """On a file system of its own, which is full at various moments."""
    disk = tmp_path / "disk"
    disk.mkdir()
    injected = 0
    for kilobytes in (8, 24, 40, 56, 72, 88, 104):
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("this user may not mount a file system")
        try:
            out = disk / "out"
            out.mkdir()
            log = tmp_path / "log"
            status = in_child(lambda out=out: train(study, out), log=log)
            check_files(out)
            if status:
                injected += 1
                assert "No space left" in log.read_text(encoding="utf-8"), log.read_text(encoding="utf-8")[-2000:]
            kept = tmp_path / f"kept{kilobytes}"
            shutil.copytree(out, kept)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
        finish(study, kept)
        assert same(outcome(kept), expected[0]), kilobytes
    assert injected > 2
    print(f"\nfull disk: {injected} injected, {injected} survived")


def damage(path, rng):
    """Cut a file, empty it, overwrite a block of it, or flip bits of it."""
    content, kind = bytearray(path.read_bytes()), rng.choice(["cut", "empty", "zeros", "noise", "bit"])
    start = int(rng.integers(len(content)))
    if kind == "cut":
        del content[start:]
    elif kind == "empty":
        content.clear()
    elif kind == "bit":
        content[start] ^= 1 << int(rng.integers(8))
    else:
        block = content[start : start + 4096]
        content[start : start + 4096] = bytes(len(block)) if kind == "zeros" else rng.bytes(len(block))
    path.write_bytes(content)


@pytest.mark.parametrize("count", [40])
def test_damaged_files(study, expected, tmp_path, count):
    """The newest checkpoint, the best model, or its copy of the settings."""
    stopped = tmp_path / "stopped"
    for wait in np.linspace(0.5, 1, 6):  # until one is killed with two checkpoints
        shutil.rmtree(stopped, ignore_errors=True)
        stopped.mkdir()
        in_child(lambda: train(study, stopped), kill_after=wait * expected[1])
        if epochs_saved(stopped) in ([1, 2], [2, 3]):
            break
    assert len(epochs_saved(stopped)) == 2
    rng = np.random.default_rng(0)
    for n in range(count):
        out = tmp_path / "out"
        shutil.copytree(stopped, out)
        names = [f"resume_checkpoint_{epochs_saved(out)[-1]}.pt", "model.pt", "model.json"]
        for name in rng.choice(names, int(rng.integers(1, 4)), replace=False):
            damage(out / name, rng)
        finish(study, out)
        assert same(outcome(out), expected[0]), n
        assert lcs.Settings.of_weights(out / "model.pt").channels == (2, 4)
        shutil.rmtree(out)
    print(f"\ndamaged files: {count} injected, {count} survived")


@pytest.mark.parametrize("count", [10])
def test_two_at_once(study, expected, tmp_path, count):
    rng = random.Random(0)
    for n in range(count):
        out = tmp_path / "out"
        out.mkdir()
        logs = [tmp_path / f"log{i}" for i in range(2)]
        first = start_child(lambda out=out, log=logs[0]: train(study, out), logs[0])
        time.sleep(0 if n % 2 else rng.uniform(0, 0.8) * expected[1])
        second = start_child(lambda out=out, log=logs[1]: train(study, out), logs[1])
        ends = [end_of(first), end_of(second)]
        assert sorted(ends) == [0, 1], [log.read_text(encoding="utf-8")[-1000:] for log in logs]
        assert "trains in" in logs[ends.index(1)].read_text(encoding="utf-8")
        assert same(outcome(out), expected[0]), n
        shutil.rmtree(out)
    print(f"\ntwo trainings at once: {count} injected, {count} survived")


@pytest.mark.parametrize("count", [6])
def test_a_clock_that_jumps(study, expected, tmp_path, count):
    rng = np.random.default_rng(0)
    for n in range(count):
        out = tmp_path / "out"
        out.mkdir()
        in_child(lambda out=out: train(study, out), kill_after=rng.uniform(0.5, 0.9) * expected[1])
        for path in out.iterdir():
            os.utime(path, (0, float(rng.uniform(0, 4e9))))
        finish(study, out)
        assert same(outcome(out), expected[0]), n
        shutil.rmtree(out)
    print(f"\na clock that jumps: {count} injected, {count} survived")


@pytest.mark.parametrize("count", [6])
def test_a_folder_that_vanishes(study, expected, tmp_path, count):
    rng = random.Random(0)
    for n in range(count):
        out = tmp_path / "out"
        out.mkdir()
        child = start_child(lambda out=out: train(study, out))
        time.sleep(rng.uniform(0.2, 3) * expected[1])
        shutil.rmtree(out, ignore_errors=True)
        end_of(child)
        out.mkdir(exist_ok=True)
        check_files(out)
        finish(study, out)
        assert same(outcome(out), expected[0]), n
        shutil.rmtree(out)
    print(f"\na folder that vanishes: {count} injected, {count} survived")
