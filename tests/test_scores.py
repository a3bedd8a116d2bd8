"""Scores of label maps: surfaces as MONAI measures them, volumes, the command, the bundle's option."""

import re
import time
import warnings

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import save_nifti
from monai.data import MetaTensor
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from monai.networks import one_hot
from scipy import ndimage

from monai_lcs import cli
from monai_lcs.labels import Label, LabelTable
from monai_lcs.results.scores import label_scores, scores_by_case, scores_by_label, scores_table
from monai_lcs.results.tsv import read_tsv
from monai_lcs.surface_distances import surface_points, surface_scores


def blobs(shape, seed=0, count=5):
    """A label map of random regions that touch each other and the border."""
    noise = np.random.default_rng(seed).standard_normal((count + 1, *shape))
    return ndimage.gaussian_filter(noise, (0, *[1.5] * len(shape))).argmax(0).astype(np.int16)


def monai_scores(pred, true, ids, spacing, tolerance):
    masks = [one_hot(torch.as_tensor(x.astype(int))[None, None], max(ids) + 1)[:, ids] for x in (pred, true)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty masks
        hd95 = compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=spacing)
        dice = compute_surface_dice(*masks, [tolerance] * len(ids), include_background=True, spacing=spacing)
    return hd95[0].numpy(), dice[0].numpy()


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 1.2, 3.0), (2.0, 0.7)])
@pytest.mark.parametrize("tolerance", [0, 1.0, 2.5])
def test_surfaces_are_those_of_monai(spacing, tolerance):
    shape = (14, 16, 12)[: len(spacing)]
    true, pred = blobs(shape), np.roll(blobs(shape), 2, 0)
    pred[true == 2] = 3
    pred[pred == 2] = 0  # missed
    true[true == 5] = 0  # invented
    ids = [1, 2, 3, 4, 5, 6]
    scores = surface_scores(pred[None], true[None], ids, np.diag([*spacing, 1]), tolerance)
    hd95, dice = monai_scores(pred, true, ids, spacing, tolerance)
    one_sided = ~np.isfinite(hd95)
    assert one_sided.tolist() == [False, True, False, False, True, True]
    np.testing.assert_allclose([scores[id].surface_dice for id in ids], dice, rtol=1e-6)
    np.testing.assert_allclose([scores[id].hd95_mm for id in ids], np.where(one_sided, np.nan, hd95), rtol=1e-6)


def test_distances_are_those_of_the_world():
    """Axes that are permuted, flipped and turned change nothing, nor does a tolerance of exactly a voxel."""
    true, pred = blobs((12, 13, 14)), np.roll(blobs((12, 13, 14)), 1, 2)
    plain = np.diag([1.0, 1.5, 0.9, 1])
    turned = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3, -0.4, 1.1), [7, -90, 30]) @ plain
    expected = surface_scores(pred[None], true[None], [1, 2, 3], plain, 0.9)
    oblique = surface_scores(pred[None], true[None], [1, 2, 3], turned.astype(np.float32), 0.9)
    swapped = [np.ascontiguousarray(np.swapaxes(x, 0, 2)[:, ::-1])[None] for x in (pred, true)]
    other = surface_scores(*swapped, [1, 2, 3], np.diag([0.9, -1.5, 1.0, 1]), 0.9)
    for id in (1, 2, 3):
        assert oblique[id] == pytest.approx(expected[id], abs=1e-4)
        assert other[id] == pytest.approx(expected[id])


def test_surface_is_what_an_erosion_takes_away():
    labels = blobs((9, 10, 11))
    points = surface_points(labels[None], np.eye(4))
    assert sorted(points) == [1, 2, 3, 4, 5]
    for id, found in points.items():
        mask = labels == id
        np.testing.assert_array_equal(found, np.argwhere(mask & ~ndimage.binary_erosion(mask)))
    assert surface_points(np.zeros((1, 4, 4), int), np.eye(3)) == {}


def test_surface_errors():
    one = np.ones((1, 4, 4), int)
    with pytest.raises(ValueError, match=r"same shape, got \(1, 4, 4\) and \(1, 4, 3\)"):
        surface_scores(one, one[..., :3], [1], np.eye(3))
    for tolerance in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=f"`tolerance_mm` must be >= 0, got {tolerance}"):
            surface_scores(one, one, [1], np.eye(3), tolerance)


@pytest.mark.slow
def test_two_hundred_labels_at_1_mm_take_seconds():
    seeds = np.random.default_rng(0).integers(0, (160, 200, 160), (200, 3))
    marks = np.ones((160, 200, 160), bool)
    marks[tuple(seeds.T)] = False
    nearest = ndimage.distance_transform_edt(marks, return_distances=False, return_indices=True)
    names = np.zeros(marks.shape, np.int16)
    names[tuple(seeds.T)] = range(1, 201)
    true = MetaTensor(torch.as_tensor(names[tuple(nearest)])[None], affine=torch.eye(4))
    pred = MetaTensor(torch.roll(true.as_tensor(), (3, -2, 1), (1, 2, 3)), affine=torch.eye(4))
    pred[0, 0, 0, 0] = pred[0, -1, -1, -1] = 7  # a box of it would be the whole image
    start = time.process_time()
    scores = label_scores(pred, true)
    assert time.process_time() - start < 20
    assert len(scores) == 200


# ---- tables


def volume(ids, shape=(4, 5, 6), mm=(1, 1, 2)):
    values = np.zeros(shape, np.int16)
    values.ravel()[: len(ids)] = ids
    return MetaTensor(torch.as_tensor(values)[None], affine=torch.diag(torch.tensor([*mm, 1.0])))


def test_volumes_and_where_labels_are():
    scores = label_scores(volume([4, 4, 4, 9]), volume([4, 4, 7, 7]))
    assert scores.index.tolist() == [4, 7, 9]
    assert scores["true_mm3"].tolist() == [4, 4, 0]
    assert scores["predicted_mm3"].tolist() == [6, 0, 2]
    np.testing.assert_array_equal(scores["volume_percent"], [50, -100, np.nan])
    assert scores["present_in"].tolist() == ["both", "truth", "prediction"]
    np.testing.assert_allclose(scores["dice"], [0.8, 0, np.nan])
    assert scores["hd95_mm"].isna().tolist() == [False, True, True]
    assert scores["surface_dice"].tolist()[1:] == [0, 0]
    assert label_scores(volume([]), volume([])).empty


def test_means_are_over_what_the_truth_has():
    table = LabelTable([Label(4, "four"), Label(7, "seven"), Label(9, "nine"), Label(11, "none")])
    pairs = {
        "ann": (volume([4, 4, 9]), volume([4, 4, 7])),
        "bo": (volume([4, 4, 4, 7]), volume([4, 4, 4, 7, 7, 7])),
        "cy": (volume([4, 7, 7, 7, 7]), volume([4, 7, 7, 7, 7])),
    }
    scores = scores_table({case: label_scores(*maps) for case, maps in pairs.items()}, table)
    assert scores[["case", "id"]].values.tolist() == [[case, id] for case in pairs for id in table.ids]
    means = scores_by_case(scores)
    np.testing.assert_allclose(means["dice"], [0.5, 0.75, 1, 0.75])
    np.testing.assert_allclose(means["volume_percent"], [50, 100 / 3, 0, 250 / 9])
    assert means["labels"].tolist() == [2, 2, 2, 2]
    assert means["missed"].tolist() == [1, 0, 0, 1 / 3]

    by_label = scores_by_label(scores)
    assert by_label["id"].tolist() == [4, 7, 9]  # by Dice; 11 is nowhere
    np.testing.assert_allclose(by_label["dice"], [1, (0 + 0.5 + 1) / 3, np.nan])
    assert by_label["cases"].tolist() == [3, 3, 0]
    np.testing.assert_allclose(
        by_label["volume_correlation"], [1, np.corrcoef([1, 3, 4], [0, 1, 4])[0, 1], np.nan], rtol=1e-6
    )


# ---- the command


@pytest.fixture
def folders(tmp_path):
    """Three cases, with a label that one lacks and one that nobody painted."""
    for i in range(3):
        true = blobs((12, 13, 14), seed=i)
        pred = np.roll(true, 1, 0)
        if i == 1:
            pred[pred == 2] = 0
        if i == 2:
            pred[0, 0, 0] = 77
        save_nifti(pred, tmp_path / f"pred/s{i}_dseg.nii.gz", np.diag([1.0, 1, 2, 1]))
        save_nifti(true, tmp_path / f"true/s{i}.nii.gz", np.diag([1.0, 1, 2, 1]))
    return tmp_path


def test_evaluate_folders(folders, capsys):
    out = [str(folders / name) for name in ("new/scores.tsv", "labels.tsv", "plot.png")]
    run = ["evaluate", str(folders / "pred"), str(folders / "true"), "--tolerance", "2"]
    run += ["-o", out[0], "--by-label", out[1], "--plot", out[2]]
    assert cli.main(run) == 0
    shown = capsys.readouterr().out
    assert "In the true label map alone: 2 (label-2) in 1 of 3 cases." in shown
    assert "In the predicted label map alone: 77 (label-77) in 1 of 3 cases." in shown
    scores = read_tsv(out[0])
    of_case = scores[(scores.case == "s0") & (scores.id < 77)]
    true = blobs((12, 13, 14))
    hd95, dice = monai_scores(np.roll(true, 1, 0), true, [1, 2, 3, 4, 5], (1.0, 1.0, 2.0), 2.0)
    np.testing.assert_allclose(of_case["hd95_mm"], hd95, atol=0.006)
    np.testing.assert_allclose(of_case["surface_dice"], dice, atol=1e-4)
    assert scores[(scores.case == "s1") & (scores.id == 2)].present_in.item() == "truth"
    assert set(read_tsv(out[1])["id"]) == {1, 2, 3, 4, 5, 77}
    assert (folders / "plot.png").stat().st_size > 10_000

    assert cli.main(run) == 2
    error = capsys.readouterr().err
    assert "scores.tsv exists: write elsewhere" in error
    assert "of the same atlas" not in error
    assert cli.main([*run, "--overwrite"]) == 0


def test_evaluate_only_the_labels_of_a_table(folders, capsys):
    table = folders / "labels.tsv"
    LabelTable([Label(3, "three"), Label(78, "nowhere")]).write(table)
    run = ["evaluate", str(folders / "pred/s0_dseg.nii.gz"), str(folders / "true/s0.nii.gz"), "--table", str(table)]
    assert cli.main([*run, "-o", str(folders / "a.tsv")]) == 0
    scores = read_tsv(folders / "a.tsv")
    assert scores[["id", "name", "present_in"]].values.tolist() == [[3, "three", "both"], [78, "nowhere", "neither"]]
    LabelTable([Label(78, "nowhere")]).write(table, overwrite=True)
    assert cli.main(run) == 2
    assert f"true label maps hold no label of {table}" in capsys.readouterr().err


def test_evaluate_needs_one_grid(folders, capsys):
    pair = [str(folders / "pred/s0_dseg.nii.gz"), str(folders / "true/s0.nii.gz")]
    turned = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1), [0, 0, 0]) @ np.diag([1.0, 1, 2, 1])
    for values, affine, message in (
        (blobs((12, 13, 14)), turned, r"must have the same grid, got affines up to 1.\d+ mm apart: resample one"),
        (blobs((12, 13, 15)), np.diag([1.0, 1, 2, 1]), r"got shapes \(12, 13, 15\) and \(12, 13, 14\)"),
    ):
        save_nifti(values, folders / "pred/s0_dseg.nii.gz", affine)
        assert cli.main(["evaluate", *pair]) == 1
        assert re.search(message, capsys.readouterr().err)


def test_evaluate_empty_truth(folders, capsys):
    save_nifti(np.zeros((12, 13, 14), np.uint8), folders / "none.nii.gz", np.diag([1.0, 1, 2, 1]))
    assert cli.main(["evaluate", str(folders / "true/s0.nii.gz"), str(folders / "none.nii.gz")]) == 2
    assert "There is nothing to score" in capsys.readouterr().err


def test_a_table_of_scores_can_be_compared_as_one_of_dice(folders):
    from monai_lcs.results.dice import compare_dice

    out = str(folders / "scores.tsv")
    assert cli.main(["evaluate", str(folders / "pred"), str(folders / "true"), "-o", out]) == 0
    means = compare_dice({"this": read_tsv(out), "that": read_tsv(out)})
    assert isinstance(means, pd.DataFrame)
    assert means["this"].tolist() == means["that"].tolist()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "a.tsv", "--by-label", "a.tsv"], "give each another name"),
        (["--tolerance", "-1"], "--tolerance takes mm, 0 or more, got -1"),
        (["--plot", "p.foo"], "--plot p.foo must end in one of"),
    ],
)
def test_mistakes_are_found_before_the_work(folders, monkeypatch, capsys, words, message):
    monkeypatch.chdir(folders)
    assert cli.main(["evaluate", "pred", "true", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (folders / "a.tsv").exists()


def test_results_of_other_file_types_are_scored_once(folders, capsys):
    """Beside the label map of a FreeSurfer scan lies a copy in its own type; and a union has the id of a member."""
    image = nib.load(folders / "pred/s0_dseg.nii.gz")
    nib.save(nib.MGHImage(np.asarray(image.dataobj).astype(np.int32), image.affine), folders / "pred/s0_dseg.mgz")
    LabelTable([Label(3, "three + four")]).write(folders / "pred/s0_dseg.tsv")
    LabelTable([Label(3, "three")]).write(folders / "labels.tsv")
    words = ["evaluate", str(folders / "pred"), str(folders / "true"), "--table", str(folders / "labels.tsv")]
    assert cli.main(words) == 0
    said = "name ids otherwise: 3 is three + four there and three in the table ("
    assert said in capsys.readouterr().err


def test_label_maps_of_two_atlases_are_suspected(folders, capsys):
    for i in range(3):
        pred = folders / f"pred/s{i}_dseg.nii.gz"
        save_nifti(np.asarray(nib.load(pred).dataobj) + 3, pred, np.diag([1.0, 1, 2, 1]))
    assert cli.main(["evaluate", str(folders / "pred"), str(folders / "true")]) == 0
    assert re.search(r"Note: \d+% of the labels are in both .* of the same atlas\?", capsys.readouterr().err)
