"""Real segmentations, read, aligned, decoded and written by the command, killed at each write and at random moments."""

import multiprocessing
import random

import numpy as np
import pytest
import segment_worker
import torch
from helpers import save_nifti, voxels
from phantom import AFFINE, SETTINGS, TABLE, make_volume

from monai_lcs.pipeline import Settings, make_network

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["segment_worker", "monai_lcs.pipeline.scan_to_files", "monai_lcs.cohort"])
CASES = ["sub-0", "sub-1", "sub-2"]
ENDINGS = ["dseg.nii.gz", "dseg.tsv", "qc.png", "run.json", "volumes.tsv"]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The words of the command but for its output folder: three heads, their atlas, a network that was not trained."""
    folder = tmp_path_factory.mktemp("study")
    for i, case in enumerate(CASES):
        save_nifti(make_volume(np.random.default_rng(i))[0], folder / f"scans/{case}.nii.gz", AFFINE)
    for array, name in zip(make_volume(), ("atlas", "labels"), strict=True):
        save_nifti(array, folder / f"{name}.nii.gz", AFFINE)
    TABLE.write(folder / "labels.tsv")
    settings = Settings.from_dict(SETTINGS)
    torch.manual_seed(0)
    torch.save(make_network(settings).state_dict(), folder / "model.pt")
    settings.write(folder / "model.json")
    atlas = [folder / "atlas.nii.gz", folder / "labels.nii.gz", folder / "labels.tsv"]
    options = ["--weights", folder / "model.pt", "--strip", "no", "--skip-existing", "--quiet"]
    return [str(word) for word in ("segment", folder / "scans", *options, "--atlas", *atlas, "-o")]


def start(words, out, die_at=None):
    process = FORKS.Process(target=segment_worker.run, args=([*words, str(out)], die_at))
    process.start()
    return process


def finish(words, out, die_at=None):
    """Run the command to its end, and return its status."""
    process = start(words, out, die_at)
    process.join(300)
    return process.exitcode


@pytest.fixture(scope="module")
def expected(words, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert finish(words, out) == 0
    assert all(len(np.unique(voxels(out / f"{case}_dseg.nii.gz"))) > 1 for case in CASES)
    return out


def assert_same(out, expected):
    """All files of the undisturbed run, with its results, and none besides but temporary ones of the killed."""
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert names == {path.name for path in expected.iterdir()}
    assert names >= {f"{case}_{ending}" for case in CASES for ending in ENDINGS}
    for case in CASES:
        check_label_map(out, expected, case)
        for ending in ("dseg.tsv", "volumes.tsv"):
            assert (out / f"{case}_{ending}").read_text(encoding="utf-8") == (expected / f"{case}_{ending}").read_text(
                encoding="utf-8"
            )


def check_label_map(out, expected, case):
    """What has the name of a result is that result, whole."""
    file = f"{case}_dseg.nii.gz"
    np.testing.assert_array_equal(voxels(out / file), voxels(expected / file))


def test_killed_at_every_write(words, expected, tmp_path):
    """Before and after each renaming of a file: of results, tables, pictures, records, the page."""
    die_at, status = 0.0, -9
    while status:
        out = tmp_path / str(die_at)
        status = finish(words, out, die_at)
        assert status in (0, -9)
        for case in CASES:
            if (out / f"{case}_dseg.nii.gz").exists():
                check_label_map(out, expected, case)
        assert finish(words, out) == 0
        assert_same(out, expected)
        die_at += 0.5
    assert die_at > 2 * len(CASES) * len(ENDINGS)
    print(f"\nkilled at {int(2 * die_at) - 1} moments of {int(die_at)} writes")


def test_killed_at_random_moments(words, expected, tmp_path):
    """One folder, killed again and again, sometimes robbed of a finished file."""
    words = [*words[:-1], "--retries", "1000", "-o"]  # else a case that has ended three processes is given up
    rng, out, kills = random.Random(0), tmp_path / "out", 0
    while kills < 50:
        process = start(words, out)
        process.join(rng.uniform(0.2, 6.0))
        kills += process.is_alive()
        process.kill()
        process.join()
        for case in CASES:
            if (out / f"{case}_dseg.nii.gz").exists():
                check_label_map(out, expected, case)
        finished = sorted(out.glob("sub-*_*"))
        if finished and rng.random() < 0.7:
            rng.choice(finished).unlink()
    assert finish(words, out) == 0
    print(f"\nkilled {kills} times")
    assert_same(out, expected)


def test_two_runs_at_once_and_one_is_killed(words, expected, tmp_path):
    rng = random.Random(1)
    for i in range(6):
        out = tmp_path / str(i)
        first, second = start(words, out), start(words, out)
        first.join(rng.uniform(1.0, 5.0))
        first.kill()
        second.join(300)
        assert second.exitcode == 0
        assert_same(out, expected)
