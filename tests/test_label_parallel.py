"""Labels shared among processes: the result of two equals that of one, voxel for voxel."""

import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import save_nifti, voxels
from monai.data import MetaTensor
from phantom import AFFINE, SETTINGS, TABLE, make_volume

import monai_lcs as lcs
from monai_lcs.cli import main
from monai_lcs.inferers import LabelSweepInferer, name_scan_grid
from monai_lcs.inferers.merger import BestLabelMerger
from monai_lcs.inferers.ranks import Ranks, digest, share_out
from monai_lcs.networks import LabelConditionedUNet
from monai_lcs.networks.crops import Mask
from monai_lcs.pipeline import make_network

TORCHRUN = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

SCRIPT = """
import atexit
import contextlib
import sys
import torch
from pathlib import Path
from monai_lcs.inferers import HelpedInferer, LabelSweepInferer, follow, join_ranks, leading
from monai_lcs.networks import LabelConditionedUNet

torch.set_num_threads(1)
folder = sys.argv[1]
atexit.register(lambda: Path(f"{folder}/left{rank}").write_text(str(not torch.distributed.is_initialized())))
rank = join_ranks()
cases = torch.load(f"{folder}/cases.pt", weights_only=False)
found = {}
for name, (options, network, arguments, inputs) in cases.items():
    torch.manual_seed(0)
    net = LabelConditionedUNet(3, **network).eval() if network else lambda x: x[:, :1] + x[:, 1:2] * x[:, 2:] - 0.5
    sure, sure_alone = [], []
    told = {"on_confidence": lambda _, found: sure.append(found)}
    told_alone = {"on_confidence": lambda _, found: sure_alone.append(found)}
    found[name] = LabelSweepInferer(label_parallel=True, **told, **options)(inputs, net)
    found[name, "alone"] = LabelSweepInferer(**told_alone, **options)(inputs, net) if rank == 0 else None
    found[name, "confidence"], found[name, "confidence alone"] = sure, sure_alone
    assert torch.equal(found[name], LabelSweepInferer(label_parallel=True, **options)(inputs, net))
torch.save(found, f"{folder}/found{rank}.pt")

inferer, net, inputs = LabelSweepInferer(label_parallel=True), lambda x: x[:, :1], cases["plain"][3]
outlived = []
helped, good = HelpedInferer(inferer), cases["plain"][3]
if rank:
    follow(net)
else:
    with leading():
        for given in (good.double(), good):
            try:
                outlived.append(torch.equal(helped(given, net), LabelSweepInferer()(given, net)))
            except ValueError as error:
                outlived.append(str(error))
if rank:
    follow(net)
    outlived.append("released")
else:
    with contextlib.suppress(SystemExit), leading():
        raise SystemExit(1)
torch.save(outlived, f"{folder}/outlived{rank}.pt")

errors = []
for given in (inputs[..., rank:], inputs.double(), torch.cat([inputs[:, :2], inputs[:, 2:] + 0.5 * rank], 1)):
    try:
        inferer(given, net)
        errors.append("none")
    except Exception as error:
        errors.append(f"{type(error).__name__}: {error}")
torch.save(errors, f"{folder}/errors{rank}.pt")
"""

ONE_WINDOW = {"margin_mm": 3, "upsample": 2, "halo": 0}
WINDOWS = {"margin_mm": 3, "roi_size": (20, 16, 16), "overlap": 0.5, "mode": "gaussian"}
SAME = {9: (1, 2), 4: (1, 2), 30: (2,), 7: (3,), 5: (4,), 6: (5,), 8: (6, 7), 2: (2,)}  # 4 and 9, 2 and 30 tie
NORM = {"channels": (4, 6, 8), "conditioning": "multiscale", "norm": "instance", "prior_logit": 1.0}
BATCH = {"channels": (4, 6), "norm": "batch", "prior_logit": 1.0}
CASES = {
    "one window, instance norm": ({"labels": SAME, **ONE_WINDOW}, NORM),
    "one window, exact halo": ({"labels": SAME, "margin_mm": 2}, BATCH),
    "windows": ({"labels": SAME, **WINDOWS}, BATCH),
    "windows, no margin": ({"labels": SAME, "roi_size": (20, 16, 16), "labels_per_pass": 3}, BATCH),
    "shared": ({"labels": SAME, **WINDOWS}, {**BATCH, "conditioning": "shared"}),
    "masks": ({"labels": SAME, "output": "masks", **ONE_WINDOW}, NORM),
    "threshold 0": ({"labels": SAME, "threshold": 0.0, **ONE_WINDOW}, NORM),
    "windows, finer": ({"labels": SAME, "upsample": 2, **WINDOWS}, BATCH),
    "on the scan's grid": ({"labels": SAME, "upsample": None, "margin_mm": 3}, NORM),
    "plain": ({"labels": SAME, "margin_mm": 3, "labels_per_pass": 2}, None),
    "300 labels": ({"labels": {**SAME, **{i: (i % 8 + 1,) for i in range(100, 400)}}, "margin_mm": 2}, NORM),
    "one label": ({"labels": [3], **ONE_WINDOW}, NORM),
}


def volume():
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(1, 1, 28, 26, 24)
    for label in range(1, 9):
        start = torch.randint(0, 14, (3,), generator=generator).tolist()
        labels[0, 0][tuple(slice(a, a + 6 + label % 4) for a in start)] = label
    return torch.cat([torch.rand(1, 2, 28, 26, 24, generator=generator), labels], dim=1)


def volume_of_a_scan():
    scan = MetaTensor(torch.zeros(1, 40, 12, 24), affine=torch.diag(torch.tensor([-0.7, 2.1, 1.0, 1.0])))
    scan.affine[0, 3] = 27.0
    return name_scan_grid(MetaTensor(volume()), scan)


def run(words, folder):
    done = subprocess.run(
        [*TORCHRUN, *map(str, words)], capture_output=True, text=True, check=False, cwd=folder, timeout=300
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two processes found, and one alone."""
    folder = tmp_path_factory.mktemp("ranks")
    cases = {name: (options, network, (), volume()) for name, (options, network) in CASES.items()}
    cases["on the scan's grid"] = (*cases["on the scan's grid"][:3], volume_of_a_scan())
    torch.save(cases, folder / "cases.pt")
    (folder / "script.py").write_text(textwrap.dedent(SCRIPT))
    status, _, errors = run([folder / "script.py", folder], folder)
    assert status == 0, errors
    ranks = [torch.load(folder / f"found{rank}.pt", weights_only=False) for rank in range(2)]
    for rank in range(2):
        ranks[rank]["outlived"] = torch.load(folder / f"outlived{rank}.pt", weights_only=True)
        ranks[rank]["left"] = (folder / f"left{rank}").read_text(encoding="utf-8")
    return ranks, [torch.load(folder / f"errors{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_the_confidence_of_two_processes_equals_that_of_one(found, name):
    (first, second), _ = found
    assert first[name, "confidence alone"][0]
    assert first[name, "confidence"] == second[name, "confidence"] == first[name, "confidence alone"]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(found, name):
    (first, second), _ = found
    assert torch.equal(first[name], first[name, "alone"])
    assert torch.equal(second[name], first[name])
    if "masks" not in name:
        assert len(first[name].unique()) > 1


def test_ties_go_to_the_smallest_id(found):
    """Of two requests for the same union, which two ranks may decode, only the smaller id is found."""
    (first, _), _ = found
    ids = set().union(*(first[name].unique().tolist() for name in CASES if name not in ("masks", "one label")))
    assert {4, 2} & ids
    assert not {9, 30} & ids


def test_a_rank_that_fails_or_differs_stops_all(found):
    """Other volumes, other types, a label map that is none on one rank: every rank says so, none waits."""
    _, (first, second) = found
    assert "works on another volume" in first[0]
    assert "works on another volume" in second[0]
    assert "takes volumes up to float32, got torch.float64" in first[1]
    assert "ValueError: The last channel, the atlas label map, must hold integers" in second[2]


def test_a_script_that_ends_leaves_the_others(found):
    """Otherwise threads of the group outlive the interpreter, and now and then abort a process that had succeeded."""
    assert [rank["left"] for rank in found[0]] == ["True", "True"]


def test_a_rank_that_ends_with_an_error_ends_all(tmp_path):
    """The others wait for nobody, and torchrun says that the run failed."""
    lines = ["import torch", "from monai_lcs.inferers import join_ranks", "assert join_ranks() == 0, 'rank 1 fails'"]
    (tmp_path / "script.py").write_text("\n".join([*lines, "torch.distributed.all_reduce(torch.ones(2))"]))
    status, _, errors = run([tmp_path / "script.py"], tmp_path)
    assert status == 1
    assert "AssertionError: rank 1 fails" in errors


def test_helpers_outlive_a_sweep_that_fails(found):
    """A process that follows the first knows no scan; after a sweep that has failed, it helps with the next.

    It is released when the first ends, also with the status of cases that have failed.
    """
    (first, second), _ = found
    assert second["outlived"] == ["released"]
    failed, equal = first["outlived"]
    assert "takes volumes up to float32, got torch.float64" in failed
    assert equal is True


class Threads(Ranks):
    """Ranks that are threads of this process."""

    def __init__(self, rank, given, barrier):
        self.rank, self.count, self.group = rank, len(given), None
        self.given, self.barrier = given, barrier

    def _largest(self, values):
        self.given[self.rank] = values.clone()
        self.barrier.wait()
        values.copy_(torch.stack(self.given).amax(dim=0))
        self.barrier.wait()


def merge_in_threads(mergers):
    """Merge what ranks have merged, each in a thread."""
    given, barrier = [None] * len(mergers), threading.Barrier(len(mergers), timeout=60)
    with ThreadPoolExecutor(len(mergers)) as pool:
        list(pool.map(lambda rank: Threads(rank, given, barrier).merge(mergers[rank]), range(len(mergers))))


@pytest.mark.parametrize("count", [3, 254, 255, 256])
def test_three_mergers_equal_one(count):
    """Whatever each rank has merged, with ties, signs and infinities, all get what one merger gets of everything."""
    rng = np.random.default_rng(count)
    values = [*rng.normal(size=5), 0.0, -0.0, np.inf, -np.inf, 1e-45, -1e-45, 3e38, -1e4]
    labels, whole = range(1, count + 1), (slice(0, 500),)
    one, *three = (BestLabelMerger(labels, (500,), threshold=0.0) for _ in range(4))
    for label in [*rng.integers(1, count + 1, 12), count]:
        logits = torch.tensor(rng.choice(values, 500)).float()
        one.aggregate(label, logits, whole)
        three[label % 3].aggregate(label, logits, whole)
    merge_in_threads(three)
    for merger in three:
        assert torch.equal(merger.finalize(), one.finalize())
        assert torch.equal(merger.logit, one.logit)


def test_a_logit_that_is_not_a_number_finds_no_label():
    """As for one process, which would leave the voxel to the background."""
    mergers = [BestLabelMerger([5, 6, 7], (2,)) for _ in range(2)]
    for merger, label in zip(mergers, (5, 6), strict=True):
        merger.aggregate(label, torch.tensor([np.nan, 2.0]), (slice(0, 2),))
    merge_in_threads(mergers)
    assert [merger.finalize().tolist() for merger in mergers] == [[0, 5], [0, 5]]


def test_work_is_shared_evenly():
    """Every part has one rank, what is decoded together stays together, and no rank has much more than its share."""
    rng = np.random.default_rng(0)
    batches = [([2 * i, 2 * i + 1], tuple(rng.integers(4, 40, 3).tolist())) for i in range(40)]
    for count in (1, 2, 3, 7):
        owners = share_out(batches, count)
        assert sorted(owners) == list(range(80))
        assert all(owners[2 * i] == owners[2 * i + 1] for i in range(40))
        loads = np.bincount([owners[2 * i] for i in range(40)], [np.prod(size) * 2 + 1e4 for _, size in batches])
        assert loads.max() - loads.min() <= max(np.prod(size) * 2 + 1e4 for _, size in batches)


def test_wanted_parts_have_the_bits_of_all():
    net = LabelConditionedUNet(3, **NORM).eval()
    image, atlas_image = torch.rand(2, 1, 1, 24, 24, 24)
    boxes = [tuple(slice(a, a + n) for a in (i, 2, 3)) for i, n in enumerate([6, 6, 7, 14, 15, 9])]
    masks = [Mask.of(torch.ones(24, 24, 24))] * 6
    with torch.no_grad():
        features = net.encode(image, atlas_image)
        whole = dict(net.decode_boxes(features, masks, boxes, room=4000))
        some = dict(net.decode_boxes(features, masks, boxes, room=4000, wanted={1, 4}))
    assert sorted(some) == [1, 4]
    assert all(torch.equal(some[i], whole[i]) for i in some)


def test_a_digest_tells_volumes_and_labels():
    x = torch.rand(2, 3, 4)
    assert digest(x, {1: (1,)}) == digest(x.clone(), {1: (1,)})
    assert len({digest(y, g) for y, g in ((x, {1: (1,)}), (x + 1, {1: (1,)}), (x.flip(0), {1: (1,)}), (x, {}))}) == 4


def test_without_processes():
    with pytest.raises(ValueError, match="`label_parallel` needs processes: start them by torchrun"):
        LabelSweepInferer(label_parallel=True)(volume(), lambda x: x[:, :1])
    with pytest.raises(ValueError, match="`on_label` sees each label whole"):
        LabelSweepInferer(label_parallel=True, on_label=print)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """An atlas, two scans, one that is broken, and weights."""
    folder = tmp_path_factory.mktemp("study")
    for case, rng in [("atlas", None), ("a", np.random.default_rng(1)), ("c", np.random.default_rng(2))]:
        image, labels = make_volume(rng)
        save_nifti(image, folder / f"scans/{case}.nii.gz", AFFINE)
        if rng is None:
            save_nifti(labels, folder / "labels.nii.gz", AFFINE)
            (folder / "scans/atlas.nii.gz").rename(folder / "atlas.nii.gz")
    (folder / "scans/b.nii.gz").write_bytes(b"no image")
    TABLE.write(folder / "labels.tsv")
    settings = lcs.Settings.from_dict({**SETTINGS, "vote_weight": 0.4})
    torch.manual_seed(0)
    torch.save(make_network(settings).state_dict(), folder / "model.pt")
    settings.write(folder / "model.json")
    return folder


@pytest.mark.slow
def test_the_command(study, tmp_path):
    """``torchrun ... -m monai_lcs segment``: the files of one process; a bad scan stops no other; one rank speaks."""
    words = ["segment", study / "scans", "--weights", study / "model.pt", "--no-picture", "-o"]
    atlas = ["--atlas", *(study / name for name in ("atlas.nii.gz", "labels.nii.gz", "labels.tsv"))]
    status, out, _ = run(["-m", "monai_lcs", *words, tmp_path / "two", *atlas], tmp_path)
    assert status == 1
    assert out.count("2 of 3 scans are in") == 1
    alone = [sys.executable, "-m", "monai_lcs", *map(str, [*words, tmp_path / "one", *atlas])]
    assert subprocess.run(alone, capture_output=True, check=False).returncode == 1
    names = sorted(path.name for path in Path(tmp_path / "one").iterdir())
    assert sorted(path.name for path in Path(tmp_path / "two").iterdir()) == names
    for case in "ac":
        tables = [(tmp_path / which / f"{case}_volumes.tsv").read_text(encoding="utf-8") for which in ("one", "two")]
        assert tables[0] == tables[1]
        one, two = (voxels(tmp_path / which / f"{case}_dseg.nii.gz") for which in ("one", "two"))
        assert len(np.unique(one)) > 1
        np.testing.assert_array_equal(two, one)
    status, out, _ = run(["-m", "monai_lcs", *words, tmp_path / "one", "--skip-existing", *atlas], tmp_path)
    assert (status, out.count("2 of 3 scans are in")) == (1, 1)  # two processes take the results of one for theirs


@pytest.mark.parametrize("words", [["--probabilities"], ["--jobs", "2"], ["--dask", "local"]])
def test_the_command_says_what_does_not_go_with_it(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scan.nii.gz").touch()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert main(["segment", "scan.nii.gz", *words]) == 2
    expected = f"torchrun's processes share the labels of each scan; leave out {' '.join(words)}, or torchrun."
    assert expected in capsys.readouterr().err


@pytest.mark.slow
def test_the_bundle(study, tmp_path):
    configs = Path(lcs.__file__).parents[1] / "bundles/whole_brain_lcs_segmentation/configs"
    files = [str(configs / f"{name}.json") for name in ("inference", "label_parallel")]
    words = ["-m", "monai.bundle", "run", "--config_file", str(files), "--dataset_dir", study / "scans/a.nii.gz"]
    words += ["--checkpoint", study / "model.pt", "--atlas_image", study / "atlas.nii.gz"]
    words += ["--atlas_labels", study / "labels.nii.gz", "--label_table", study / "labels.tsv"]
    status, out, errors = run([*words, "--output_dir", tmp_path / "two"], tmp_path)
    assert status == 0, errors
    assert out.count("1 of 1 cases are in") == 1
    atlas = lcs.Atlas.read(*(study / name for name in ("atlas.nii.gz", "labels.nii.gz", "labels.tsv")))
    expected = lcs.Segmenter.load(study / "model.pt", atlas)(study / "scans/a.nii.gz").label_map
    np.testing.assert_array_equal(voxels(tmp_path / "two/a_dseg.nii.gz"), expected[0].numpy())
