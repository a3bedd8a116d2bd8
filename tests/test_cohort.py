"""Cohorts: what is finished stays, what failed is tried again, processes share the work. The work itself is a stub."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import warnings
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread, imsave

from monai_lcs.cohort import Cohort, CohortFolder, Outcome, Record, shard, write_report
from monai_lcs.cohort.on_dask import run_on_dask
from monai_lcs.cohort.outliers import outlying
from monai_lcs.cohort.page import page
from monai_lcs.cohort.processes import run_processes
from monai_lcs.cohort.records import scan_state
from monai_lcs.cohort.run import DIED
from monai_lcs.cohort.summary import Summary
from monai_lcs.results.tsv import read_tsv

MADE_WITH = {"weights": "a", "atlas": "b"}


class Work:
    """Writes what a segmentation would; fails where it is told to."""

    def __init__(self, folder, fails=None):
        self.folder, self.fails, self.done = folder, fails or {}, []

    def __call__(self, case):
        name = case["case"]
        self.done.append(name)
        if self.fails.get(name):
            raise self.fails[name].pop(0)
        files = [self.folder / f"{name}_{ending}" for ending in ("dseg.tsv", "volumes.tsv", "qc.png", "dseg.nii.gz")]
        for file in files[:-1]:
            file.write_text(f"{name} {len(self.done)}")
        nib.save(nib.Nifti1Image(np.full((4, 4, 4), 7, np.uint8), np.eye(4)), files[-1])
        return Outcome(files, {"overlap": 0.9}, {"insula": 64.0})


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def cases(tmp_path):
    scans = [tmp_path / f"{name}.nii" for name in ("ann", "bo", "cleo")]
    for scan in scans:
        scan.write_bytes(b"scan")
    return [{"case": scan.stem, "image": str(scan)} for scan in scans]


def run(out, cases, fails=None, made_with=MADE_WITH, **options):
    """A run in a folder: what was worked on, and the records."""
    work = Work(out, fails)
    cohort = Cohort(CohortFolder(out), work, made_with, **options)
    return work.done, cohort.run(cases, progress=False)


def names(records):
    return [record.case for record in records]


# ---- what is finished -----------------------------------------------------------------------------------------------


def test_finished_cases_are_not_done_again(out, cases):
    done, records = run(out, cases)
    assert done == names(records) == ["ann", "bo", "cleo"]
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    again, later = run(out, cases)
    assert again == []
    assert later == records
    assert {path: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("ending", ["dseg.tsv", "volumes.tsv", "qc.png", "dseg.nii.gz"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_half_done_cases_are_done_again(out, cases, ending, damage):
    run(out, cases)
    file = out / f"bo_{ending}"
    content = file.read_bytes()
    file.unlink() if damage == "missing" else file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    done, records = run(out, cases)
    assert done == ["bo"]
    assert [record.state for record in records] == ["done"] * 3
    assert file.exists()
    assert run(out, cases)[0] == []


def test_a_scan_that_was_replaced_is_done_again(out, cases):
    run(out, cases)
    Path(cases[2]["image"]).write_bytes(b"another scan")
    assert run(out, cases)[0] == ["cleo"]


def test_a_corrected_label_map_stands(out, cases):
    """It must be readable; the page says that it was changed, also where the scan was touched."""
    run(out, cases)
    corrected = nib.Nifti1Image(np.full((4, 4, 4), 9, np.uint8), np.eye(4))
    nib.save(corrected, out / "bo_dseg.nii.gz")
    os.utime(cases[1]["image"], (1, 1))
    assert run(out, cases)[0] == []
    assert np.unique(nib.load(out / "bo_dseg.nii.gz").dataobj).tolist() == [9]
    write_report(CohortFolder(out))
    remarks = read_tsv(out / "cohort.tsv").set_index("case")["remarks"]
    assert remarks["bo"].startswith("The label map was changed after it was written")
    assert remarks.drop("bo").isna().all()


def test_results_are_not_mixed_up(out, cases):
    run(out, cases[:2])
    folder = CohortFolder(out)
    with pytest.raises(ValueError, match=r"ann_dseg.nii.gz was made with other weights: .* --overwrite"):
        folder.check_ours(cases, {**MADE_WITH, "weights": "c"})
    with pytest.raises(ValueError, match="made with other weights"):  # where another run wrote it meanwhile
        run(out, cases, made_with={**MADE_WITH, "weights": "c"})
    (out / "status/ann.json").unlink()
    with pytest.raises(ValueError, match=r"ann_dseg.nii.gz has no record in status/ of how it was made"):
        folder.check_ours(cases, MADE_WITH)
    (out / "ann_dseg.nii.gz").unlink()  # left are files of an earlier version that was killed
    folder.check_ours(cases, MADE_WITH)
    assert run(out, cases)[0] == ["ann", "cleo"]


def test_leftovers_are_found_before_the_work(out, cases):
    folder = CohortFolder(out)
    assert folder.existing(cases) == []
    (out / "cleo_dseg.tsv").write_text("index")
    assert folder.existing(cases) == ["cleo_dseg.tsv"]


def test_forgotten_results_are_replaced_also_by_a_later_run(out, cases):
    run(out, cases[:2])
    CohortFolder(out).forget(cases)
    other = {**MADE_WITH, "weights": "c"}
    CohortFolder(out).check_ours(cases, other)
    assert run(out, cases, made_with=other)[0] == ["ann", "bo", "cleo"]


# ---- what failed ----------------------------------------------------------------------------------------------------


def test_what_may_pass_is_tried_again_after_all_others(out, cases):
    fails = {"ann": [MemoryError("full"), OSError("network")], "bo": [ValueError("no voxels")]}
    done, records = run(out, cases, fails)
    assert done == ["ann", "bo", "cleo", "ann", "ann"]
    assert [(record.state, record.attempts) for record in records] == [("done", 3), ("failed", 1), ("done", 1)]
    assert records[1].error == "no voxels"
    done, records = run(out, cases)  # a new run tries what failed
    assert done == ["bo"]
    assert (records[1].state, records[1].attempts, records[1].error) == ("done", 2, "")


@pytest.mark.parametrize("retries", [0, 2])
def test_failures_are_bounded(out, cases, retries):
    done, records = run(out, cases, {"bo": [RuntimeError("CUDA out of memory")] * 99}, retries=retries)
    assert done.count("bo") == 1 + retries
    assert records[1].error == "RuntimeError: CUDA out of memory"
    failed = read_tsv(write_report(CohortFolder(out))["failed"])
    assert failed.to_dict("list") == {
        "case": ["bo"],
        "image": [cases[1]["image"]],
        "attempts": [1 + retries],
        "error": ["RuntimeError: CUDA out of memory"],
    }
    run(out, cases)
    write_report(CohortFolder(out))
    assert not (out / "failed.tsv").exists()


def test_a_failed_case_leaves_no_old_label_map(out, cases):
    run(out, cases)
    Path(cases[0]["image"]).write_bytes(b"broken")
    run(out, cases, {"ann": [ValueError("broken")]})
    assert not list(out.glob("ann*"))


def test_a_case_that_ends_its_process_is_given_up(out, cases):
    """The process is gone before it can say so: only the record of the attempt is there."""
    for deaths in range(1, 4):
        folder = CohortFolder(out)
        record = folder.read("ann")
        begun = Record("ann", cases[0]["image"], "running", deaths, record.deaths, scan=scan_state(cases[0]["image"]))
        folder.write(begun)
        work = Work(out)
        cohort = Cohort(folder, work, MADE_WITH, retries=2)
        if deaths < 3:  # what a process does before it dies in its turn
            found = cohort._as_found(cases[0])
            assert (found.state, found.deaths, found.error) == ("failed", deaths, DIED)
            assert not cohort.is_settled(found, 0)
            folder.write(found)
    records = cohort.run(cases, progress=False)
    assert work.done == ["bo", "cleo"]
    assert (records[0].state, records[0].error) == ("failed", DIED)
    assert run(out, cases, retries=5)[0] == ["ann"]


def test_a_case_at_which_a_process_ended_comes_last(out, cases):
    CohortFolder(out).write(Record("ann", cases[0]["image"], "running", 1))
    assert run(out, cases)[0] == ["bo", "cleo", "ann"]


def test_an_interrupted_case_does_not_count(out, cases):
    with pytest.raises(KeyboardInterrupt):
        run(out, cases, {"bo": [KeyboardInterrupt()]})
    assert CohortFolder(out).read("bo").ended == CohortFolder(out).read("bo").attempts == 0
    assert run(out, cases)[0] == ["bo", "cleo"]


# ---- the folder ----------------------------------------------------------------------------------------------------


def test_a_full_disk_stops_the_run(out, cases, monkeypatch):
    """The case is not to blame, and nothing is recorded of it."""

    def full(self):
        raise OSError("The output folder takes no more")

    monkeypatch.setattr(CohortFolder, "check", full)
    with pytest.raises(OSError, match="takes no more"):
        run(out, cases, {"bo": [OSError("Cannot write bo_dseg.nii.gz: No space left on device.")]})
    monkeypatch.undo()
    assert CohortFolder(out).read("bo").ended == CohortFolder(out).read("bo").attempts == 0
    assert run(out, cases)[0] == ["bo", "cleo"]


@pytest.mark.parametrize("what", ["gone", "another"])
def test_a_folder_that_vanishes_stops_the_run(out, cases, what):
    class Unmounted(Work):
        def __call__(self, case):
            found = super().__call__(case)
            if case["case"] == "bo":
                out.rename(out.with_name("moved"))
                if what == "another":
                    CohortFolder(out)
            return found

    work = Unmounted(out)
    with pytest.raises(OSError, match=r"is gone, or another one|Cannot write"):
        Cohort(CohortFolder(out), work, MADE_WITH).run(cases, progress=False)
    assert work.done == ["ann", "bo"]
    assert not list(out.glob("*dseg*"))
    out.with_name("moved").rename(out) if what == "gone" else None
    if what == "gone":
        assert run(out, cases)[0] == ["cleo", "bo"]  # for all that is known, bo has ended its process


def test_a_folder_that_takes_no_more_says_so(out, monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    folder = CohortFolder(out)
    folder.check()
    monkeypatch.setattr("monai_lcs.cohort.records.tempfile.TemporaryFile", full)
    with pytest.raises(OSError, match=r"takes no more: No space left on device\. .* --skip-existing"):
        folder.check()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": "done"}', "\0" * 9])
def test_a_damaged_record_is_that_of_a_half_done_case(out, cases, content):
    run(out, cases)
    (out / "status/bo.json").write_text(content)
    assert run(out, cases)[0] == ["bo"]


def test_clocks_do_not_matter(out, cases, monkeypatch):
    clock = iter(10.0 ** np.tile([9, 0, 10, 5], 1000))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    done, records = run(out, cases, {"ann": [OSError("network")]})
    assert done == ["ann", "bo", "cleo", "ann"]
    for record in records:
        os.utime(out / f"status/{record.case}.json", (1, 1))
    assert run(out, cases)[0] == []
    write_report(CohortFolder(out))  # label maps seem newer than their records
    assert read_tsv(out / "cohort.tsv")["remarks"].isna().all()


# ---- several processes ---------------------------------------------------------------------------------------------


def test_threads_share_the_work(out, tmp_path):
    scans = [tmp_path / f"{i}.nii" for i in range(30)]
    for scan in scans:
        scan.touch()
    cases = [{"case": scan.stem, "image": str(scan)} for scan in scans]
    done = [[], [], []]

    def share(i):
        done[i].extend(run(out, cases)[0])

    threads = [threading.Thread(target=share, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for part in done for name in part) == sorted(case["case"] for case in cases)  # each once


def test_what_another_has_claimed_is_waited_for(out, cases, monkeypatch):
    monkeypatch.setattr("monai_lcs.cohort.run.POLL_SECONDS", 0.02)
    said = []
    folder = CohortFolder(out)
    cohort = Cohort(folder, Work(out), MADE_WITH)
    with folder.claim("bo"):
        assert cohort.attempt(cases[1]) is None
        thread = threading.Thread(target=lambda: cohort.run(cases, progress=False, say=said.append))
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        assert sorted(cohort.work.done) == ["ann", "cleo"]
    thread.join(10)
    assert cohort.work.done == ["ann", "cleo", "bo"]
    assert said == ["Waiting for 1 cases that another run works on."]


def test_shards_are_a_partition():
    cases = [{"case": str(i)} for i in range(11)]
    for n in (1, 2, 3, 11, 13):
        parts = [shard(cases, f"{i}/{n}") for i in range(1, n + 1)]
        assert sorted(int(case["case"]) for part in parts for case in part) == list(range(11))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert shard(cases, None) == cases
    for part, message in {"0/2": "1/2 to 2/2", "3/2": "1/2 to 2/2", "2": "written i/n", "-1/2": "written i/n"}.items():
        with pytest.raises(ValueError, match=message):
            shard(cases, part)


# ---- the report ----------------------------------------------------------------------------------------------------


def test_outliers_by_hand():
    volumes = pd.DataFrame(
        {"a": [10.0] * 5 + [11, 11, 11, 12, 12, 30], "b": [5.0] * 10 + [9], "c": [1.0, 99] + [np.nan] * 9}
    )
    median, deviation = 11.0, 1.4826 * 1.0  # of a: distances 1 (five), 0 (three), 1 (two), 19
    expected = (volumes["a"] - median).abs() > 3.5 * deviation
    found = outlying(volumes)
    assert found["a"].tolist() == expected.tolist() == [False] * 10 + [True]
    assert not found[["b", "c"]].to_numpy().any()  # most are equal; too few


def records():
    """Twelve cases: one failed, one with an unusual volume, one with a header that was guessed."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(12):
        volumes = {"insula": round(rng.normal(100, 3), 1), "<cuneus>": 50.0 + i}
        quality = {"overlap": 0.9 + i / 200, "orientation": "as in the header"}
        found.append(Record(f"sub #{i}", f"/scans/sub #{i}.nii", "done", 1, quality=quality, volumes=volumes))
        found[-1].files[f"sub #{i}_qc.png"] = "0"
    found[3].volumes["insula"] = 300.0
    found[5].quality["notes"] = ["The units are guessed.", "Left is <guessed>."]
    found[7] = Record("sub #7", "/scans/sub #7.nii", "failed", 3, error="a & b\nare <not> aligned")
    return [*found, Record("open")]


class Reader(HTMLParser):
    """Reads a page; elements must be closed in their order."""

    VOID = {"meta", "img", "line", "rect"}

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.images, self.headings, self.remarks = [], [], [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if "href" in values else []
        self.images += [values["src"]] if "src" in values else []
        assert tag not in ("script", "link", "iframe")
        if tag not in self.VOID:
            self.open.append((tag, values.get("class")))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, text):
        if self.open and self.open[-1][0] == "h3":
            self.headings.append(text)
        if self.open and self.open[-1] == ("p", "remark"):
            self.remarks.append(text)


def test_the_page_shows_the_worst_first():
    text = page(Summary(records()))
    read = Reader(text)
    assert read.headings[:3] == ["sub #5", "sub #3", "sub #0"]  # two remarks, one, then by overlap
    assert read.headings[3:] == [f"sub #{i}" for i in (1, 2, 4, 6, 8, 9, 10, 11)]
    assert read.remarks == ["The units are guessed.", "Left is <guessed>.", "1 volume is unusual: insula."]
    assert "11 of 13 cases are finished" in text
    assert "1 are open: open" in text
    assert "a &amp; b\nare &lt;not&gt; aligned" in text
    assert len(read.ids) == len(set(read.ids))
    inner = [link[1:] for link in read.links if link.startswith("#")]
    assert set(inner) <= set(read.ids)
    assert inner[:3] == ["failures", "volumes", "cases"]
    assert inner[3:] == [next(id for id in read.ids if unquote(id) == "case-sub #3")]
    assert not re.search(r"https?://|//cdn", text)  # opens without a network
    assert [unquote(image) for image in read.images] == [f"{name}_qc.png" for name in read.headings]


def test_the_table_of_all_cases(out):
    folder = CohortFolder(out)
    for record in records()[:-1]:
        folder.write(record)
    paths = write_report(folder, [*(record.case for record in records())])
    table = read_tsv(paths["table"]).set_index("case")
    assert table["state"].value_counts().to_dict() == {"done": 11, "failed": 1, "open": 1}
    for record in records():
        for name, mm3 in record.volumes.items():
            assert table.loc[record.case, name] == mm3
    assert table["outliers"].sum() == 1
    assert table.loc["sub #5", "remarks"] == "The units are guessed. Left is <guessed>."
    assert set(json.loads(Path(paths["columns"]).read_text(encoding="utf-8"))) == {"case", *table.columns}
    assert read_tsv(paths["failed"])["error"].tolist() == ["a & b are <not> aligned"]
    Reader(Path(paths["page"]).read_text(encoding="utf-8"))


def test_an_empty_cohort_has_a_page(out):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = write_report(CohortFolder(out), ["ann"])
    assert "0 of 1 cases are finished" in Path(paths["page"]).read_text(encoding="utf-8")
    assert read_tsv(paths["table"])["state"].tolist() == ["open"]


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium, apt-get install chromium")
def test_the_page_opens_in_a_browser_without_a_network(out):
    """From disk; pictures whose names have other letters are found."""
    found = records()
    out.mkdir()
    (out / "index.html").write_text(page(Summary(found)))
    for record in found:
        if record.picture:
            imsave(out / record.picture, np.full((30, 100, 3), (255, 0, 255), np.uint8))
    shot = out / "shot.png"
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    words += [f"--screenshot={shot}", "--window-size=1100,2400", f"--user-data-dir={out / 'profile'}"]
    subprocess.run(["chromium", *words, (out / "index.html").as_uri()], check=True, capture_output=True, timeout=300)
    pixels = imread(shot)[..., :3]
    assert (pixels == (1, 0, 1)).all(-1).any(0).sum() > 900  # a picture is as wide as the page
    assert (np.abs(pixels - np.array((0xCC, 0x66, 0x22)) / 255) < 0.02).all(-1).any()  # the outlier


# ---- processes -----------------------------------------------------------------------------------------------------

STUB = """
import json, os, pathlib, signal, sys
status, run, how = sys.argv[1:]
if how == "killed at once":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "no use":
    sys.exit(1)
deaths = pathlib.Path(status, "deaths")
for file in sorted(pathlib.Path(status).glob("*.json")):
    record = json.loads(file.read_text(encoding="utf-8"))
    if record["state"] == "done":
        continue
    record.update(state="running", attempts=record["attempts"] + 1, run=run, tries=record["tries"] + 1)
    file.write_text(json.dumps(record))
    if how == "killed once" and not deaths.exists():
        deaths.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    record["state"] = "done"
    file.write_text(json.dumps(record))
"""


@pytest.mark.parametrize("how", ["well", "killed once", "killed at once", "no use"])
def test_processes_are_replaced(out, cases, how):
    folder = CohortFolder(out)
    for case in cases:
        folder.write(Record(case["case"], state="failed"))
    cohort = Cohort(folder, Work(out), MADE_WITH)
    command = [sys.executable, "-c", STUB, str(folder.status), cohort.name, how]
    if how in ("well", "killed once"):
        run_processes(command, 1, cohort, cases)
        assert [folder.read(case["case"]).state for case in cases] == ["done"] * 3
        assert sum(folder.read(case["case"]).attempts for case in cases) == 3 + (how == "killed once")
    else:
        message = "ended by signal 9 before they begin" if how == "killed at once" else "A worker process has stopped"
        with pytest.raises(OSError, match=message):
            run_processes(command, 2, cohort, cases)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_dask(out, cases):
    """Threads of this process as workers; a case is claimed by another, one fails once."""
    distributed = pytest.importorskip("distributed", reason="needs monai-lcs[cohort]")
    work = Work(out, {"cleo": [OSError("network")]})
    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster:
        cohort = Cohort(CohortFolder(out), work, MADE_WITH)
        found = run_on_dask(cohort, cases, cluster.scheduler_address)
    assert [(record.case, record.state, record.attempts) for record in found] == [
        ("ann", "done", 1),
        ("bo", "done", 1),
        ("cleo", "done", 2),
    ]


def test_dask_names_what_to_install(out, cases, monkeypatch):
    monkeypatch.setattr("monai_lcs.cohort.on_dask.optional_import", lambda _: (None, False))
    with pytest.raises(ImportError, match=r"pip install 'monai-lcs\[cohort\]'"):
        run_on_dask(Cohort(CohortFolder(out), Work(out)), cases, "local")
