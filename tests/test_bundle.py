"""The bundle from end to end, as a user runs it: train, evaluate and segment by overrides alone."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import save_nifti, voxels
from monai.bundle import ConfigWorkflow
from monai.utils import set_determinism
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.processing import resample_from_to
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from monai_lcs.atlas import Atlas, AtlasAligner
from monai_lcs.bundle import further_atlases, settings_of
from monai_lcs.labels import LabelTable
from monai_lcs.pipeline import Settings
from monai_lcs.pipeline.evaluation import score_label_maps
from monai_lcs.results.tsv import read_tsv

# MONAI warns at every run that configs are code.
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")

BUNDLE = Path(__file__).parents[1] / "bundles/whole_brain_lcs_segmentation"
SHAPE, MM = (28, 30, 26), 4.0
AFFINE = np.array([[MM, 0, 0, -56], [0, MM, 0, -64], [0, 0, MM, -40], [0, 0, 0, 1]])

# id: name, parent, hemisphere, center and radii in mm, grey value; the two sides differ
BLOBS = {
    11: ("Left-Caudate", "Striatum", "L", (-16, 14, 12), (11, 15, 11), 0.9),
    50: ("Right-Caudate", "Striatum", "R", (16, 10, 15), (9, 13, 13), 0.9),
    12: ("Left-Putamen", "Striatum", "L", (-30, -12, 4), (9, 16, 12), 0.7),
    51: ("Right-Putamen", "Striatum", "R", (29, -15, 2), (10, 13, 15), 0.7),
    16: ("Brain-Stem", "n/a", "n/a", (0, -16, -22), (11, 11, 15), 0.5),
    300: ("Cerebellum", "n/a", "n/a", (2, -44, -10), (24, 10, 14), 0.35),
}
BASELINE = {"inferer": {"_target_": "monai_lcs.inferers.AtlasLabelInferer"}, "checkpoint": ""}
CASES = [f"sub-{i}" for i in range(6)]


def make_volume(rng=None):
    """A head with six blobs; of another position, size, brightness and noise for each person."""
    xyz = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1) @ AFFINE[:3, :3] + AFFINE[:3, 3]
    if rng:
        xyz = (xyz - rng.uniform(-4, 4, 3)) / rng.uniform(0.92, 1.08, 3)

    def distance(center, radii):
        return (np.square((xyz - center) / radii)).sum(-1)

    head = distance((0, -8, 0), (46, 54, 42)) < 1
    image, labels = 0.15 * head, np.zeros(SHAPE, np.int16)
    for label, (*_, center, radii, grey) in BLOBS.items():
        r = distance(center, radii)
        labels[r < 1] = label
        image += (grey - 0.15) * np.clip(1.5 - r, 0, 1) * head
    if rng:
        image = image * rng.uniform(0.8, 1.2) + 0.02 * rng.standard_normal(SHAPE)
    return (100 * image).astype(np.float32), labels


def save(array, path, affine=AFFINE):
    return save_nifti(array, path, affine)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder of six people with labels, and an atlas."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    for case in CASES:
        image, labels = make_volume(rng)
        save(image, folder / f"images/{case}.nii.gz")
        save(labels, folder / f"labels/{case}.nii.gz")
    image, labels = make_volume()
    save(image, folder / "atlas/T1w.nii.gz")
    save(labels, folder / "atlas/dseg.nii.gz")
    rows = [f"{label}\t{name}\t{parent}\t{side}" for label, (name, parent, side, *_) in BLOBS.items()]
    (folder / "atlas/dseg.tsv").write_text("\n".join(["index\tname\tparent\themisphere", *rows, ""]))
    return folder


@pytest.fixture(autouse=True)
def undetermined():
    """What a training fixes for the whole process."""
    yield
    set_determinism(None)


def overrides(study, **more):
    return {
        "bundle_root": str(BUNDLE),
        "dataset_dir": str(study),
        "atlas_image": str(study / "atlas/T1w.nii.gz"),
        "atlas_labels": str(study / "atlas/dseg.nii.gz"),
        "label_table": str(study / "atlas/dseg.tsv"),
        "align": "none",
        "spacing": [MM, MM, MM],
        "channels": [4, 8, 16],
        "margin_mm": 15.0,
        "prior_logit": 0.0,  # what is learned must come from training
        "device": "cpu",
        **{key: str(value) if isinstance(value, Path) else value for key, value in more.items()},
    }


TRAINED_WITH = ("align", "spacing", "channels", "margin_mm", "prior_logit")


def config_files(*configs):
    return [str(config if isinstance(config, Path) else BUNDLE / f"configs/{config}.json") for config in configs]


def run(study, *configs, **more):
    """``python -m monai.bundle run``, in this process; without the logging settings, which are process-wide."""
    settings = {key: value for key, value in overrides(study, **more).items() if value != "not given"}
    monai.bundle.run(config_file=config_files(*configs), logging_file=False, **settings)


def train(study, folder, **more):
    settings = {"epochs": 1, "val_interval": 1, "labels_per_image": 4, "learning_rate": 0.02}
    run(study, "train", **{**settings, "ckpt_dir": folder, "output_dir": folder, **more})


def command(study, *configs, **more):
    """The same as words of a command line."""
    words = ["-m", "monai.bundle", "run", "--config_file", str(config_files(*configs))]
    return words + [word for key, value in overrides(study, **more).items() for word in (f"--{key}", str(value))]


def evaluate(study, folder, **more):
    run(study, "inference", "evaluate", output_dir=folder, **more)
    return pd.read_csv(folder / "dice.tsv", sep="\t")


def segment(study, folder, images, **more):
    run(study, "inference", dataset_dir=images, output_dir=folder, **more)


def weights(path):
    content = torch.load(path, weights_only=True)
    return content.get("model", content)


def scalars(folder, tag):
    """``{step: value}`` of all TensorBoard files in a folder."""
    found = {}
    for file in sorted(folder.glob("events*")):
        events = EventAccumulator(str(file)).Reload()
        if tag in events.Tags()["scalars"]:
            found |= {event.step: event.value for event in events.Scalars(tag)}
    return found


def numpy_dice(pred, true, label):
    p, t = pred == label, true == label
    return 2 * (p & t).sum() / (p.sum() + t.sum())


@pytest.fixture(scope="module")
def trained(study, tmp_path_factory):
    """A folder with a trained model."""
    folder = tmp_path_factory.mktemp("trained")
    train(study, folder, epochs=15, val_interval=5, labels_per_image=6)
    return folder


@pytest.fixture(scope="module")
def segmented(study, trained, tmp_path_factory):
    """A folder with the segmentations of all people."""
    folder = tmp_path_factory.mktemp("segmented")
    segment(study, folder, study, checkpoint=trained / "model.pt")
    return folder


# ---- training


def test_settings_go_with_the_weights(study, trained, segmented, tmp_path):
    """Segmentation need not be told how the network was trained; what it is told it takes."""
    kept = json.loads((trained / "model.json").read_text(encoding="utf-8"))
    assert (kept["spacing"], kept["channels"], kept["margin_mm"], kept["align"]) == (
        [MM, MM, MM],
        [4, 8, 16],
        15,
        "none",
    )
    scan = study / f"images/{CASES[0]}.nii.gz"
    silent = dict.fromkeys(TRAINED_WITH, "not given")
    segment(study, tmp_path / "same", scan, checkpoint=trained / "model.pt", **silent)
    expected = voxels(segmented / f"{CASES[0]}_dseg.nii.gz")
    assert np.array_equal(voxels(tmp_path / f"same/{CASES[0]}_dseg.nii.gz"), expected)
    segment(study, tmp_path / "told", scan, checkpoint=trained / "model.pt", **{**silent, "margin_mm": 0.0})
    assert not np.array_equal(voxels(tmp_path / f"told/{CASES[0]}_dseg.nii.gz"), expected)

    (tmp_path / "model.json").write_text("{")
    with pytest.raises(SystemExit, match=r"model\.json must hold the settings of a training"):
        settings_of(str(tmp_path / "model.pt"))
    assert settings_of(str(tmp_path / "other.pt")) == Settings()


def test_training_learns(trained):
    loss = list(scalars(trained, "train_loss").values())
    assert len(loss) == 15 * 4
    assert np.mean(loss[-4:]) < 0.6 * np.mean(loss[:4])
    dice = scalars(trained, "val_mean_dice")
    assert list(dice) == [5, 10, 15]
    assert dice[15] > dice[5]


def test_resumes_where_it_stopped(study, tmp_path):
    train(study, tmp_path, epochs=2)
    first = weights(tmp_path / "resume_checkpoint_2.pt")
    assert first["trainer"]["iteration"] == 2 * 4
    # A model better than all that comes is kept.
    first["best"]["score"] = 1.0
    torch.save(first, tmp_path / "resume_checkpoint_2.pt")
    best = (tmp_path / "model.pt").read_bytes()

    train(study, tmp_path, epochs=4, resume=True)
    assert sorted(path.name for path in tmp_path.glob("resume_*")) == [
        "resume_checkpoint_3.pt",
        "resume_checkpoint_4.pt",
    ]
    last = weights(tmp_path / "resume_checkpoint_4.pt")
    assert last["trainer"]["iteration"] == 4 * 4
    assert list(scalars(tmp_path, "val_mean_dice")) == [1, 2, 3, 4]
    assert (tmp_path / "model.pt").read_bytes() == best
    changed = [name for name, weight in first["network"].items() if not torch.equal(weight, last["network"][name])]
    assert changed  # the schedule goes on to the new end, it does not stay at zero

    with pytest.raises(SystemExit, match="already has 4 epochs: give more"):
        train(study, tmp_path, epochs=4, resume=True)


def test_nothing_to_resume(study, tmp_path):
    with pytest.raises(SystemExit, match=f"^Error: There is no training to resume in {tmp_path}"):
        train(study, tmp_path, resume=True)


def test_short_training_is_validated_and_saved(study, tmp_path):
    train(study, tmp_path, val_interval=10)
    assert {path.name for path in tmp_path.glob("*.pt")} == {"model.pt", "resume_checkpoint_1.pt"}


def test_last_epoch_is_validated_and_saved(study, tmp_path):
    train(study, tmp_path, epochs=3, val_interval=2)
    assert sorted(scalars(tmp_path, "val_mean_dice")) == [2, 3]
    last = weights(tmp_path / "resume_checkpoint_3.pt")["best"]
    assert last["epoch"] in (2, 3)
    assert all(torch.equal(weight, last["weights"][name]) for name, weight in weights(tmp_path / "model.pt").items())


def workflow(study, kind, *configs, **more):
    flow = ConfigWorkflow(
        config_file=config_files(*configs),
        meta_file=str(BUNDLE / "configs/metadata.json"),
        logging_file=False,
        workflow_type=kind,
        **overrides(study, **more),
    )
    flow.initialize()
    return flow


def case_names(cases):
    return [Path(case["image"]).name.removesuffix(".nii.gz") for case in cases]


def test_datalist_and_folds(study, tmp_path):
    items = [
        {"image": f"images/{case}.nii.gz", "label": f"labels/{case}.nii.gz", "fold": i % 3}
        for i, case in enumerate(CASES)
    ]
    datalist = tmp_path / "dataset.json"
    datalist.write_text(json.dumps({"training": items[:4], "validation": items[4:5], "test": items[5:]}))
    out = {"datalist": datalist, "output_dir": tmp_path, "ckpt_dir": tmp_path}

    flow = workflow(study, "train", "train", **out)
    assert case_names(flow.parser.get_parsed_content("train_cases")) == CASES[:4]
    assert case_names(flow.parser.get_parsed_content("val_cases")) == CASES[4:5]
    flow = workflow(study, "train", "train", fold=1, **out)
    assert case_names(flow.parser.get_parsed_content("train_cases")) == ["sub-0", "sub-2", "sub-3"]
    assert case_names(flow.parser.get_parsed_content("val_cases")) == ["sub-1"]

    train(study, tmp_path, datalist=datalist, fold=1)
    dice = evaluate(study, tmp_path, datalist=datalist, checkpoint=tmp_path / "model.pt")
    assert set(dice["case"]) == {"sub-5"}


@pytest.mark.parametrize(
    ("coarse", "groups"),
    [
        ("parent", [(11, 12, 50, 51), (16,), (300,)]),
        ({"left": "Left-*", "right": ["Right-Caudate", 51]}, [(11, 12), (50, 51)]),
    ],
)
def test_coarse_labels(study, tmp_path, coarse, groups):
    flow = workflow(study, "train", "train", coarse_labels=coarse, ckpt_dir=tmp_path, output_dir=tmp_path)
    assert flow.parser.get_parsed_content("label_groups") == groups

    drawn = flow.parser.get_parsed_content("train#random_transforms")[-1].selector.groups
    assert [tuple(group) for group in drawn] == groups  # what training draws from

    train(study, tmp_path, coarse_labels=coarse, union_prob=0.0)
    dice = evaluate(study, tmp_path, section="validation", checkpoint=tmp_path / "model.pt")
    assert sorted(set(dice["id"])) == sorted(BLOBS)  # each fine label by itself


def test_batches_of_different_sizes(study, tmp_path):
    """Each case is cropped to its own atlas; in a batch the smaller ones are padded."""
    for size in (1, 2):
        folder = tmp_path / str(size)
        train(study, folder, epochs=2, batch_size=size, align="rigid", margin_mm=4.0)
        assert len(scalars(folder, "train_loss")) == 2 * 4 / size


def test_shared_grid_of_any_orientation_and_spacing(study, trained, tmp_path):
    """With align=none atlas and scans share a grid in their files, which need not be the network's."""
    turned = tmp_path / "study"
    for name in ("images/sub-0", "labels/sub-0", "images/sub-1", "labels/sub-1", "atlas/T1w", "atlas/dseg"):
        source = nib.load(study / f"{name}.nii.gz").as_reoriented(
            ornt_transform(io_orientation(AFFINE), axcodes2ornt("LAS"))
        )
        save(np.asarray(source.dataobj), turned / f"{name}.nii.gz", source.affine)
    shutil.copy(study / "atlas/dseg.tsv", turned / "atlas/dseg.tsv")
    scan = turned / "images/sub-0.nii.gz"
    segment(turned, tmp_path / "same", scan, checkpoint=trained / "model.pt")
    segment(study, tmp_path / "straight", study / "images/sub-0.nii.gz", checkpoint=trained / "model.pt")
    straight = voxels(tmp_path / "straight/sub-0_dseg.nii.gz")
    assert np.array_equal(voxels(tmp_path / "same/sub-0_dseg.nii.gz"), straight[::-1])
    train(turned, tmp_path / "coarse", fold=1, spacing=[8.0, 8.0, 8.0])
    assert (tmp_path / "coarse/model.pt").is_file()


def test_earlier_weights_are_kept(study, tmp_path):
    train(study, tmp_path)
    first = (tmp_path / "model.pt").read_bytes()
    train(study, tmp_path, seed=1)
    (kept,) = tmp_path.glob("model_*.pt")
    assert kept.read_bytes() == first != (tmp_path / "model.pt").read_bytes()
    assert kept.with_suffix(".json").is_file()
    with pytest.raises(SystemExit, match=r"settings\.margin_mm was 15\.0, got 1\.0"):
        train(study, tmp_path, resume=True, epochs=2, margin_mm=1.0)


def test_segments_one_fold(study, tmp_path):
    items = [
        {"image": f"images/{case}.nii.gz", "label": f"labels/{case}.nii.gz", "fold": i % 3}
        for i, case in enumerate(CASES)
    ]
    (tmp_path / "list.json").write_text(json.dumps({"training": items}))
    folds = {"datalist": tmp_path / "list.json", "section": "validation", "fold": 2, "dataset_dir": study}
    run(study, "inference", output_dir=tmp_path / "out", **folds, **BASELINE)
    assert sorted(path.name for path in (tmp_path / "out").glob("*_dseg.nii.gz")) == [
        "sub-2_dseg.nii.gz",
        "sub-5_dseg.nii.gz",
    ]


def test_other_settings(study, tmp_path):
    other = {"conditioning": "bottleneck", "norm": "batch", "margin_mm": "$None"}
    loss = {"_target_": "monai_lcs.losses.LabelBoxLoss", "lambda_ce": 0}
    train(study, tmp_path, dropout=0.5, loss=loss, num_workers=1, **other)
    assert any("running_mean" in name for name in weights(tmp_path / "model.pt"))
    segment(study, tmp_path, study / "images/sub-0.nii.gz", checkpoint=tmp_path / "model.pt", **other)
    assert voxels(tmp_path / "sub-0_dseg.nii.gz").shape == SHAPE


# ---- the paper's training


SMALL_PAPER = {"channels": [2, 3, 4, 5, 6], "epochs": 2, "steps_per_epoch": 3, "val_interval": 2}
"""What the tests must make smaller than it is in paper.json; what they do not give is the overlay's."""
PAPERS_OWN = dict.fromkeys(("margin_mm", "prior_logit"), "not given")


def test_paper_trains_and_segments(study, tmp_path):
    run(study, "train", "paper", ckpt_dir=tmp_path, output_dir=tmp_path, **SMALL_PAPER, **PAPERS_OWN)
    assert len(scalars(tmp_path, "train_loss")) == 2 * 3
    kept = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    norm = ["batch", {"momentum": 0.01, "eps": 0.001}]
    expected = {"conditioning": "bottleneck", "norm": norm, "margin_mm": None, "prior_logit": 0, "up_activation": True}
    assert {name: kept[name] for name in expected} == expected
    assert weights(tmp_path / "resume_checkpoint_2.pt")["optimizer"]["param_groups"][0]["lr"] == 5e-4  # constant
    silent = dict.fromkeys(TRAINED_WITH, "not given")
    segment(study, tmp_path, study / "images/sub-0.nii.gz", checkpoint=tmp_path / "model.pt", **silent)
    assert voxels(tmp_path / "sub-0_dseg.nii.gz").shape == SHAPE


def test_paper_draws_one_label_of_each_subject_in_a_batch(study, tmp_path):
    out = {"ckpt_dir": tmp_path, "output_dir": tmp_path, "margin_mm": "$None"}
    flow = workflow(study, "train", "train", "paper", **out, **{**SMALL_PAPER, "batch_size": 4, "steps_per_epoch": 40})
    batches = list(flow.parser.get_parsed_content("train#dataloader"))
    assert len(batches) == 40
    unions = 0
    for batch in batches:
        assert batch["image"].shape[:2] == (4, 3)  # image, atlas image, the mask of one label or union
        assert sorted(batch["case"]) == ["sub-1", "sub-2", "sub-3", "sub-4"]
        unions += (batch["selected_labels"][..., 1] > 0).sum().item()
    assert 0.35 < unions / 160 < 0.65  # one half, four standard deviations

    network = flow.parser.get_parsed_content("network")
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm3d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.01, 0.001)}
    assert network.bottleneck.dropout.p == 0.5


def test_paper_sums_dice_over_the_batch():
    parser = monai.bundle.ConfigParser()
    parser.read_config(config_files("train", "paper"))
    logits = torch.randn(3, 1, 4, 5, 6)
    target = (torch.rand(3, 1, 4, 5, 6) > 0.8).float()
    p = logits.sigmoid()
    expected = 1 - (2 * (p * target).sum() + 1) / ((p * p).sum() + (target * target).sum() + 1)
    torch.testing.assert_close(parser.get_parsed_content("loss")(logits, target), expected)


# ---- alignment


def test_affine_alignment(study, tmp_path):
    """An atlas on a grid of its own, far away: nothing but registration can bring it here."""
    grid = np.array([[-3.0, 0, 0, 250], [0, 0, 4, 100], [0, 5, 0, -300], [0, 0, 0, 1]])
    here = grid.copy()
    here[:3, 3] = 58, -66, -52
    atlas = {}
    for name, order in (("T1w", 1), ("dseg", 0)):
        source = nib.load(study / f"atlas/{name}.nii.gz")
        turned = resample_from_to(nib.Nifti1Image(source.get_fdata(), source.affine), ((38, 26, 32), here), order=order)
        dtype = np.int16 if order == 0 else np.float32
        atlas[name] = save(np.asarray(turned.dataobj).astype(dtype), tmp_path / f"{name}.nii.gz", grid)
    where = {"atlas_image": atlas["T1w"], "atlas_labels": atlas["dseg"], "align": "affine"}
    dice = evaluate(study, tmp_path, section="validation", **where, **BASELINE)
    assert dice["dice"].mean() > 0.6


# ---- evaluation


def test_dice_of_evaluation_is_that_of_the_files(study, trained, segmented, tmp_path, capsys):
    dice = evaluate(study, tmp_path, checkpoint=trained / "model.pt")
    assert dice["case"].tolist() == [case for case in CASES for _ in BLOBS]
    assert dice["id"].tolist() == sorted(BLOBS) * len(CASES)
    assert dice["name"].tolist() == [BLOBS[label][0] for label in sorted(BLOBS)] * len(CASES)
    expected = [
        numpy_dice(voxels(segmented / f"{case}_dseg.nii.gz"), voxels(study / f"labels/{case}.nii.gz"), label)
        for case in CASES
        for label in sorted(BLOBS)
    ]
    np.testing.assert_allclose(dice["dice"], expected, atol=1e-4)
    assert f"mean  {np.mean(expected):.4f}  6 cases" in capsys.readouterr().out


def test_evaluation_measures_surfaces_where_that_is_asked_for(study, trained, segmented, tmp_path, capsys):
    scores = evaluate(study, tmp_path, checkpoint=trained / "model.pt", surface_tolerance_mm=MM)
    files = {case: (segmented / f"{case}_dseg.nii.gz", study / f"labels/{case}.nii.gz") for case in CASES}
    expected = score_label_maps(files, LabelTable.read(study / "atlas/dseg.tsv"), MM)
    for measure in ("dice", "hd95_mm", "surface_dice", "true_mm3", "predicted_mm3"):
        np.testing.assert_allclose(scores[measure], expected[measure], atol=0.051)  # digits of the file
    assert "surface_dice" in capsys.readouterr().out


def test_alignment_only(study, trained, tmp_path):
    """The atlas labels carried over: perfect for the atlas itself, and what the model must beat."""
    for folder, name in (("images", "T1w"), ("labels", "dseg")):
        (tmp_path / folder).mkdir()
        shutil.copy(study / f"atlas/{name}.nii.gz", tmp_path / folder / "copy.nii.gz")
    dice = evaluate(study, tmp_path, dataset_dir=tmp_path, **BASELINE)
    assert dice["dice"].tolist() == [1.0] * len(BLOBS)

    atlas = evaluate(study, tmp_path / "all", section="validation", **BASELINE)
    assert max(scalars(trained, "val_mean_dice").values()) > atlas["dice"].mean() + 0.05


def test_evaluation_keeps_earlier_results(study, tmp_path):
    (tmp_path / "dice.tsv").write_text("mine")
    with pytest.raises(SystemExit, match=r"dice.tsv exists: .* --overwrite True"):
        evaluate(study, tmp_path, **BASELINE)
    assert len(evaluate(study, tmp_path, overwrite=True, **BASELINE)) == len(CASES) * len(BLOBS)


# ---- inference


def test_files_of_a_case(study, segmented):
    pred = nib.load(segmented / "sub-0_dseg.nii.gz")
    labels = np.asarray(pred.dataobj)
    assert labels.dtype == np.uint16  # id 300
    assert set(np.unique(labels)) <= {0, *BLOBS}
    np.testing.assert_array_equal(pred.affine, AFFINE)

    volumes = pd.read_csv(segmented / "sub-0_volumes.tsv", sep="\t")
    assert volumes["name"].tolist() == [BLOBS[label][0] for label in sorted(BLOBS)]
    assert volumes["voxels"].tolist() == [(labels == label).sum() for label in volumes["id"]]
    assert volumes["mm3"].tolist() == [n * MM**3 for n in volumes["voxels"]]
    assert volumes["voxels"].min() > 0

    picture = (segmented / "sub-0_qc.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


# An even factor puts the centers of the file's voxels halfway between those of the refined grid.
@pytest.mark.parametrize("upsample", ["$None", 1, 2, 3])
@pytest.mark.parametrize("axes", ["LPI", "PSR"])
def test_other_orientation(study, trained, tmp_path, axes, upsample):
    """The same scan with its voxels in another order gets the same labels, voxel for voxel."""
    source = nib.load(study / "images/sub-0.nii.gz")
    turn = ornt_transform(io_orientation(source.affine), axcodes2ornt(axes))
    nib.save(source, tmp_path / "straight.nii.gz")
    nib.save(source.as_reoriented(turn), tmp_path / "turned.nii.gz")
    images = [str(tmp_path / f"{name}.nii.gz") for name in ("straight", "turned")]
    segment(study, tmp_path, images, checkpoint=trained / "model.pt", upsample=upsample)
    pred, expected = (nib.load(tmp_path / f"{name}_dseg.nii.gz") for name in ("turned", "straight"))
    assert nib.aff2axcodes(pred.affine) == tuple(axes)
    np.testing.assert_allclose(pred.affine, AFFINE @ inv_ornt_aff(turn, SHAPE), atol=1e-4)
    np.testing.assert_array_equal(np.asarray(pred.dataobj), np.asarray(expected.as_reoriented(turn).dataobj))


def test_other_spacing(study, trained, tmp_path):
    """Anisotropic and oblique: the answer lies at the same place in the world."""
    angle = 0.15
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine, shape = np.eye(4), (48, 36, 18)
    affine[:3, :3] = turn @ np.diag([-2.5, 3.5, 6.0])
    affine[:3, 3] = [0, -6, 10] - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    image = resample_from_to(nib.load(study / "images/sub-0.nii.gz"), (shape, affine), order=1)
    nib.save(image, tmp_path / "oblique.nii.gz")
    segment(study, tmp_path, tmp_path / "oblique.nii.gz", checkpoint=trained / "model.pt", align="rigid")
    pred = nib.load(tmp_path / "oblique_dseg.nii.gz")
    assert pred.shape == shape
    np.testing.assert_allclose(pred.affine, affine, atol=1e-4)

    true = nib.Nifti1Image(voxels(study / "labels/sub-0.nii.gz").astype(float), AFFINE)
    true = resample_from_to(true, (shape, affine), order=0).get_fdata()
    assert np.mean([numpy_dice(np.asarray(pred.dataobj), true, label) for label in BLOBS]) > 0.65


@pytest.mark.parametrize(
    ("labels", "ids", "dtype"),
    [
        (300, {300}, np.uint16),
        ("Brain-Stem", {16}, np.uint8),
        ("Left-*", {11, 12}, np.uint8),
        (["Striatum", "16"], {11, 12, 50, 51, 16}, np.uint8),
    ],
)
def test_labels(study, trained, tmp_path, labels, ids, dtype):
    segment(study, tmp_path, study / "images/sub-1.nii.gz", labels=labels, checkpoint=trained / "model.pt")
    pred = voxels(tmp_path / "sub-1_dseg.nii.gz")
    assert set(np.unique(pred)) == {0, *ids}
    assert pred.dtype == dtype
    assert set(pd.read_csv(tmp_path / "sub-1_volumes.tsv", sep="\t")["id"]) == ids


def test_without_a_label_table(study, trained, tmp_path):
    image = study / "images/sub-1.nii.gz"
    segment(study, tmp_path, image, label_table="$None", checkpoint=trained / "model.pt")
    assert pd.read_csv(tmp_path / "sub-1_volumes.tsv", sep="\t")["name"].tolist()[0] == "label-11"


def test_keeps_earlier_results(study, trained, tmp_path):
    images = [str(study / f"images/sub-{i}.nii.gz") for i in range(2)]
    with_weights = {"checkpoint": trained / "model.pt", "labels": 16}
    segment(study, tmp_path, images[0], **with_weights)
    earlier = (tmp_path / "sub-0_dseg.nii.gz").read_bytes()
    with pytest.raises(SystemExit, match=r"sub-0_dseg.nii.gz exists: .* --overwrite True"):
        segment(study, tmp_path, images, **with_weights)
    assert not (tmp_path / "sub-1_dseg.nii.gz").exists()
    with pytest.raises(SystemExit, match=r"sub-0_dseg.nii.gz was made with other labels: .* --overwrite"):
        segment(study, tmp_path, images, skip_existing=True, **{**with_weights, "labels": 11})
    segment(study, tmp_path, images, overwrite=True, **{**with_weights, "labels": 11})
    assert (tmp_path / "sub-0_dseg.nii.gz").read_bytes() != earlier
    assert (tmp_path / "sub-1_dseg.nii.gz").exists()


def test_goes_on_where_it_stopped(study, trained, tmp_path, monkeypatch):
    images = [str(study / f"images/sub-{i}.nii.gz") for i in range(3)]
    options = {"checkpoint": trained / "model.pt", "labels": 16}
    segment(study, tmp_path, images[:2], **options)
    (tmp_path / "sub-2_dseg.tsv").write_text("of a run that was killed")
    (tmp_path / "sub-0_qc.png").unlink()
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("sub-*")}
    with monkeypatch.context() as patch:
        patch.setattr(AtlasAligner, "align", lambda *_: pytest.fail("long work has started"))
        with pytest.raises(SystemExit, match=r"sub-2_dseg.tsv exists: .* --overwrite True"):
            segment(study, tmp_path, images[2], **options)
    segment(study, tmp_path, images, skip_existing=True, **options)
    kept = {name for name, time in times.items() if (tmp_path / name).stat().st_mtime_ns == time}
    assert kept == {f"sub-1_{ending}" for ending in ("dseg.nii.gz", "dseg.tsv", "volumes.tsv", "qc.png")}
    table = read_tsv(tmp_path / "cohort.tsv")
    assert table["state"].tolist() == ["done"] * 3
    volumes = [read_tsv(tmp_path / f"sub-{i}_volumes.tsv")["mm3"].item() for i in range(3)]
    assert table["Brain-Stem"].tolist() == volumes
    assert table["overlap"].between(0.5, 1).all()


def test_bad_files_do_not_stop_the_good_ones(study, trained, tmp_path, capsys):
    images = tmp_path / "images"
    shutil.copytree(study / "images", images)
    whole = (images / "sub-0.nii.gz").read_bytes()
    (images / "sub-0.nii.gz").write_bytes(whole[: len(whole) // 2])
    save(np.ones(SHAPE[:2], np.float32), images / "sub-2.nii.gz")
    image = voxels(study / "images/sub-4.nii.gz")
    image[3, 4, 5] = np.nan
    save(image, images / "sub-4.nii.gz")
    save(image[4:], images / "sub-5.nii.gz")  # fails only when it is aligned

    with pytest.raises(SystemExit) as stop:
        segment(study, tmp_path / "out", tmp_path, checkpoint=trained / "model.pt", labels=16)
    assert stop.value.code == 1
    good = ("sub-1", "sub-3")
    assert {path.name for path in (tmp_path / "out").glob("*_dseg.nii.gz")} == {f"{case}_dseg.nii.gz" for case in good}
    lines = capsys.readouterr().err.splitlines()[-5:]
    assert lines[0] == "4 of 6 cases failed:"
    assert "sub-0.nii.gz cannot be read as an image, it may be truncated" in lines[1]
    assert "sub-2.nii.gz must be 3D, got a 2D file" in lines[2]
    assert "sub-4.nii.gz has 1 NaN or Inf voxels" in lines[3]
    assert "sub-5.nii.gz has shape (24, 30, 26)" in lines[4]


# ---- bad input


@pytest.fixture
def copy(study, tmp_path, monkeypatch):
    """A copy of the study to damage; alignment would be the first of the long work."""
    monkeypatch.setattr(AtlasAligner, "align", lambda *_: pytest.fail("long work has started"))
    return Path(shutil.copytree(study, tmp_path / "study"))


def changed(path, change):
    """Rewrite an image."""
    array = voxels(path).astype(np.float32)
    save(change(array), path)


def with_value(value):
    def change(array):
        array[5, 6, 7] = value
        return array

    return change


def truncate(path):
    path.write_bytes(path.read_bytes()[:2000])


def unpair(study):
    for path in (study / "labels").iterdir():
        path.rename(path.with_name(f"seg_{path.name}"))


IMAGE, LABEL, ATLAS, ATLAS_LABELS = (
    "images/sub-3.nii.gz",
    "labels/sub-3.nii.gz",
    "atlas/T1w.nii.gz",
    "atlas/dseg.nii.gz",
)
DAMAGES = {
    "grids differ": (lambda s: changed(s / LABEL, lambda a: a[1:]), rf"{IMAGE} and .*{LABEL} must have the same grid"),
    "affines differ": (
        lambda s: save(voxels(s / LABEL), s / LABEL, AFFINE + np.eye(4, k=3) * 5),
        rf"{LABEL} must have the same grid, got affines up to 5 mm apart",
    ),
    "non-integer label": (lambda s: changed(s / LABEL, with_value(2.5)), rf"{LABEL} must hold integers >= 0, got 2.5"),
    "negative label": (lambda s: changed(s / LABEL, with_value(-1)), rf"{LABEL} must hold integers >= 0, got -1"),
    "NaN": (lambda s: changed(s / IMAGE, with_value(np.nan)), rf"{IMAGE} has 1 NaN or Inf"),
    "Inf": (lambda s: changed(s / IMAGE, with_value(np.inf)), rf"{IMAGE} has 1 NaN or Inf"),
    "2D": (lambda s: changed(s / IMAGE, lambda a: a[:, :, 0]), rf"{IMAGE} must be 3D, got a 2D file"),
    "empty": (lambda s: (s / IMAGE).write_bytes(b""), rf"{IMAGE} is empty"),
    "truncated": (lambda s: truncate(s / IMAGE), rf"{IMAGE} cannot be read as an image, it may be truncated"),
    "no pairs": (unpair, r"No image of .*images has a label map of the same name in .*labels"),
}
ATLAS_DAMAGES = {
    "non-integer atlas": (lambda s: changed(s / ATLAS_LABELS, with_value(2.5)), f"{ATLAS_LABELS} must hold integers"),
    "NaN in atlas": (lambda s: changed(s / ATLAS, with_value(np.nan)), f"{ATLAS} has 1 NaN"),
    "atlas grids differ": (lambda s: changed(s / ATLAS, lambda a: a[1:]), f"{ATLAS} and .* must have the same grid"),
    "no atlas labels": (lambda s: (s / ATLAS_LABELS).unlink(), f"{ATLAS_LABELS} does not exist"),
    "no atlas image": (lambda s: (s / ATLAS).unlink(), f"{ATLAS} does not exist"),
    "no label table": (lambda s: (s / "atlas/dseg.tsv").unlink(), "There is no label table .*dseg.tsv"),
}


def stops(run_it, match):
    """One sentence, or a list of files with one each, and nothing else."""
    with pytest.raises(SystemExit, match=match) as stop:
        run_it()
    assert str(stop.value).startswith("Error: ")
    return str(stop.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_bad_case(copy, tmp_path, damage):
    """A training checks all files before the first alignment."""
    change, match = DAMAGES[damage]
    change(copy)
    stops(lambda: train(copy, tmp_path), match)


@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if damage != "no pairs"])
def test_evaluation_scores_the_other_cases(study, tmp_path, capsys, damage):
    change, match = DAMAGES[damage]
    damaged = Path(shutil.copytree(study, tmp_path / "study"))
    change(damaged)
    with pytest.raises(SystemExit, match="1"):
        evaluate(damaged, tmp_path / "out", **BASELINE)
    assert re.search(match, capsys.readouterr().err)
    dice = pd.read_csv(tmp_path / "out/dice.tsv", sep="\t")
    assert sorted(set(dice["case"])) == [case for case in CASES if case != "sub-3"]


def test_evaluation_of_nothing(copy, tmp_path):
    unpair(copy)
    stops(lambda: evaluate(copy, tmp_path, **BASELINE), DAMAGES["no pairs"][1])


@pytest.mark.parametrize("job", ["train", "evaluate", "segment"])
@pytest.mark.parametrize("damage", ATLAS_DAMAGES)
def test_bad_atlas(copy, tmp_path, damage, job):
    damage, match = ATLAS_DAMAGES[damage]
    damage(copy)
    jobs = {
        "train": lambda: train(copy, tmp_path),
        "evaluate": lambda: evaluate(copy, tmp_path, **BASELINE),
        "segment": lambda: segment(copy, tmp_path, copy, **BASELINE),
    }
    stops(jobs[job], match)


WRONG = {
    "unknown label": (
        {"labels": "Left-Caudatus"},
        r"'Left-Caudatus' names no label of .*; the nearest: .*'Left-Caudate'",
    ),
    "unknown id": ({"labels": [11, 299]}, "There is no label 299 in .*; the nearest: .*300"),
    "no atlas image": ({"atlas_image": ""}, "Give --atlas_image"),
    "no atlas labels": ({"atlas_labels": ""}, "Give --atlas_labels"),
    "no data": ({"dataset_dir": ""}, "Give --dataset_dir .* or --datalist"),
    "no such folder": ({"dataset_dir": "/nowhere"}, "/nowhere"),
    "no such datalist": ({"datalist": "/nowhere.json"}, "Cannot read the datalist /nowhere.json"),
}


@pytest.mark.parametrize("job", ["train", "evaluate", "segment"])
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_override(copy, tmp_path, wrong, job):
    more, match = WRONG[wrong]
    jobs = {
        "train": lambda: train(copy, tmp_path, **more),
        "evaluate": lambda: evaluate(copy, tmp_path, **more, **BASELINE),
        "segment": lambda: run(copy, "inference", output_dir=tmp_path, **more, **BASELINE),
    }
    if (wrong, job) == ("no such folder", "segment"):  # one bad file among the cases of a batch
        with pytest.raises(SystemExit, match="1"):
            jobs[job]()
    else:
        stops(jobs[job], match)


def test_atlas_without_the_label(copy, tmp_path):
    changed(copy / ATLAS_LABELS, lambda a: np.where(a == 16, 0, a))
    with pytest.raises(SystemExit, match=rf"{ATLAS_LABELS} has no voxel of label 16 \(Brain-Stem\)"):
        train(copy, tmp_path, labels=["Striatum", 16])


def test_coarse_labels_of_nothing(copy, tmp_path):
    stops(lambda: train(copy, tmp_path, coarse_labels={"x": "Left-Cat"}), "'Left-Cat' names no label")
    stops(lambda: train(copy, tmp_path, labels=16, coarse_labels={"x": 11}), "No label of `coarse_labels`")
    stops(lambda: train(copy, tmp_path, coarse_labels="lobe"), "`coarse_labels` must be a mapping")


@pytest.mark.parametrize("job", ["train", "evaluate", "segment"])
def test_output_folder_that_cannot_be_written(copy, tmp_path, job):
    (tmp_path / "file").touch()
    folder = tmp_path / "file/out"
    jobs = {
        "train": lambda: train(copy, folder),
        "evaluate": lambda: evaluate(copy, folder, **BASELINE),
        "segment": lambda: segment(copy, folder, copy, **BASELINE),
    }
    stops(jobs[job], f"Cannot write to the output folder {folder}")


def test_weights(copy, trained, tmp_path):
    stops(
        lambda: segment(copy, tmp_path, copy, checkpoint=tmp_path / "no.pt"), f"no weights in {tmp_path}/no.pt: train"
    )
    stops(lambda: evaluate(copy, tmp_path, checkpoint=tmp_path / "no.pt"), f"no weights in {tmp_path}/no.pt: train")
    (tmp_path / "damaged.pt").write_bytes((trained / "model.pt").read_bytes()[:1000])
    stops(lambda: segment(copy, tmp_path, copy, checkpoint=tmp_path / "damaged.pt"), "damaged.pt cannot be read as")
    stops(
        lambda: segment(copy, tmp_path, copy, checkpoint=trained / "model.pt", channels=[4, 8, 16, 32]),
        "model.pt are another network's, .* instead of .*: give the --channels",
    )


# ---- from the command line


def shell(words, **kwargs):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, cwd=BUNDLE, **kwargs)


def test_command_line(study, trained, tmp_path):
    """As the README has it; the last line of a failure is the sentence."""
    image = study / "images/sub-0.nii.gz"
    out = {"dataset_dir": image, "output_dir": tmp_path, "checkpoint": trained / "model.pt"}
    done = shell(command(study, "inference", labels="['Left-*', 16]", bundle_root=".", **out))
    assert done.returncode == 0, done.stderr
    assert set(np.unique(voxels(tmp_path / "sub-0_dseg.nii.gz"))) == {0, 11, 12, 16}


def test_command_line_error(study, tmp_path):
    done = shell(command(study, "train", labels="Brainstem", output_dir=tmp_path, ckpt_dir=tmp_path))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: 'Brainstem' names no label of ")


@pytest.mark.parametrize("kind", ["train", "inference", "evaluate"])
def test_properties(study, trained, tmp_path, kind):
    out = {"output_dir": tmp_path}
    if kind == "train":
        flow = workflow(study, "train", "train", ckpt_dir=tmp_path, **out)
    else:
        configs = ["inference", "evaluate"][: 1 + (kind == "evaluate")]
        flow = workflow(study, "infer", *configs, checkpoint=trained / "model.pt", **out)
    assert flow.check_properties() == []


def test_two_processes(study, tmp_path):
    """The multi-GPU overlay with two CPU processes: one training, not two."""
    report = {
        "+run": [
            "$torch.save(@network.module.state_dict(), @output_dir + f'/rank{dist.get_rank()}.pt')",
            "$torch.save(@validate#evaluator.state.metrics, @output_dir + f'/dice{dist.get_rank()}.pt')",
        ]
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    more = {"epochs": 1, "labels_per_image": 4, "ckpt_dir": tmp_path, "output_dir": tmp_path}
    done = shell(words + command(study, "train", "multi_gpu_train", tmp_path / "report.json", **more))
    assert done.returncode == 0, done.stderr
    ranks = [weights(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    model = weights(tmp_path / "model.pt")
    assert list(model) == list(ranks[0])
    assert all(torch.equal(model[name], rank[name]) for name in model for rank in ranks)
    dice = [weights(tmp_path / f"dice{rank}.pt")["val_mean_dice"] for rank in range(2)]
    assert dice[0] == dice[1]
    assert weights(tmp_path / "resume_checkpoint_1.pt")["trainer"]["iteration"] == 2  # 4 people, two at a time
    assert list(scalars(tmp_path, "train_loss")) == [1, 2]
    assert len(list(tmp_path.glob("events*"))) == 2  # of training and validation, not of each process
    segment(study, tmp_path, study / "images/sub-0.nii.gz", checkpoint=tmp_path / "model.pt")


def test_further_atlases_vote(study, trained, tmp_path, capsys):
    """The training cases vote, of the datalist where it is the same folder; volumes say how far they agree."""
    settings = {"align": "rigid", "checkpoint": trained / "model.pt", "atlases_dir": study}
    segment(study, tmp_path, study / "images/sub-0.nii.gz", **settings)
    volumes = pd.read_csv(tmp_path / "sub-0_volumes.tsv", sep="\t", na_values="n/a")
    assert volumes.agreement.dropna().between(0, 1).all()
    assert (volumes.agreement < 0.999).any()
    said = capsys.readouterr().err
    assert "was trained without further atlases and is used with" in said
    assert f"4 of the 6 cases of {study} are further atlases; the others are its validation fold" in said
    items = [{"image": f"images/sub-{i}.nii.gz", "label": f"labels/sub-{i}.nii.gz"} for i in range(4)]
    datalist = tmp_path / "datalist.json"
    datalist.write_text(json.dumps({"training": items[1:3], "validation": items[3:], "testing": items[:1]}))
    parser = monai.bundle.ConfigParser()
    parser.read_config(config_files("inference"))
    parser.update({**overrides(study, atlases_dir=study, datalist=datalist)})
    found = parser.get_parsed_content("further_atlases")
    assert sorted(Path(atlas.files["image"]).name for atlas in found) == ["sub-1.nii.gz", "sub-2.nii.gz"]


def test_random_atlases_are_the_other_cases_or_the_further_atlases(study, tmp_path):
    """Further atlases then do not vote, and the validation has the given atlas."""
    items = [{"image": f"images/sub-{i}.nii.gz", "label": f"labels/sub-{i}.nii.gz"} for i in (0, 5)]
    datalist = tmp_path / "datalist.json"
    datalist.write_text(json.dumps({"training": items}))
    further = {"atlases_dir": study, "atlases_datalist": datalist, "fold": 0}
    training = ["sub-1", "sub-2", "sub-3", "sub-4"]
    for more, names in (({}, training), (further, ["sub-5"])):
        parser = monai.bundle.ConfigParser()
        parser.read_config(config_files("train"))
        parser.update({**overrides(study, align="rigid", random_atlas=True, **more)})
        pool = parser.get_parsed_content("train#dataset").preprocessing
        assert case_names([atlas.files for atlas in pool.atlases]) == names
        validation = parser.get_parsed_content("validate#dataset").preprocessing
        assert validation.atlas.files["image"] == str(study / "atlas/T1w.nii.gz")
        assert not validation.further_atlases
        assert not parser.get_parsed_content("settings").fused
        draw = parser.get_parsed_content("train#preprocessing").transforms[0]
        assert type(draw).__name__ == "RandDrawAtlasd"


def test_atlases_with_other_labels_are_refused(study, tmp_path):
    for name in ("a", "b"):
        image, labels = make_volume()
        save(image, tmp_path / f"images/{name}.nii.gz")
        save(np.where(labels > 0, labels + 5000, 0).astype(np.int16), tmp_path / f"labels/{name}.nii.gz")
    atlas = Atlas.read(study / "atlas/T1w.nii.gz", study / "atlas/dseg.nii.gz")
    with pytest.raises(SystemExit, match=r"labels of .*\.nii\.gz are none of those of the atlas"):
        further_atlases(str(tmp_path), None, (None, None), None, atlas)


@pytest.mark.parametrize(
    ("name", "word"),
    [("dataset_dir", "1000"), ("output_dir", "2024_01_15"), ("dataset_dir", "scan#2.nii.gz"), ("atlas_image", "1e5")],
)
def test_paths_that_look_like_python(study, tmp_path, name, word):
    words = {**dict(zip(*[iter(command(study, "inference", output_dir=tmp_path / "out")[5:])] * 2, strict=True))}
    words = [part for pair in {**words, f"--{name}": word, "--checkpoint": ""}.items() for part in pair]
    done = shell(["-m", "monai.bundle", "run", "--config_file", str(config_files("inference")), *words])
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert "quote it twice" in last


def test_a_case_that_fails_does_not_take_the_next_with_it(study, trained, tmp_path, capsys):
    """Inside the engine as well: the first scan shares no grid with the atlas, the second ends too early."""
    image = voxels(study / "images/sub-4.nii.gz")
    save(image[4:], tmp_path / "images/a.nii.gz")
    for name, case in (("b", 1), ("c", 2)):
        shutil.copy(study / f"images/sub-{case}.nii.gz", tmp_path / f"images/{name}.nii.gz")
    whole = (tmp_path / "images/b.nii.gz").read_bytes()
    (tmp_path / "images/b.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SystemExit, match="1"):
        segment(study, tmp_path / "out", tmp_path, checkpoint=trained / "model.pt", labels=16)
    assert sorted(path.name for path in (tmp_path / "out").glob("*_dseg.nii.gz")) == ["c_dseg.nii.gz"]
    said = capsys.readouterr()
    assert "1 of 3 cases are in" in said.out
    assert "2 of 3 cases failed" in said.err
