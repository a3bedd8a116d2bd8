"""How sure the network is of each label: the second best logit, the margin, and the column of the volumes."""

import itertools

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from monai.data import MetaTensor

from monai_lcs.inferers import LabelSweepInferer
from monai_lcs.inferers.merger import BestLabelMerger
from monai_lcs.labels import Label, LabelTable
from monai_lcs.networks import LabelConditionedUNet
from monai_lcs.results import Segmentation
from monai_lcs.results.volumes import volume_table

WHOLE = (slice(0, 6), slice(0, 7))


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_margin_is_from_the_best_to_the_second_best(threshold):
    rng = np.random.default_rng(0)
    logits = rng.integers(-3, 4, (5, 6, 7)).astype(np.float32)  # with many ties
    rivals = np.concatenate([logits, np.full((1, 6, 7), np.log(threshold / (1 - threshold)), np.float32)])
    second, best = np.sort(rivals, axis=0)[-2:]
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 17):
        merger = BestLabelMerger([9, 2, 70000, 5, 11], (6, 7), threshold, confidence=True)
        for i in order:
            merger.aggregate([9, 2, 70000, 5, 11][i], torch.from_numpy(logits[i]), WHOLE)
        expected = np.where(merger.finalize().numpy() > 0, best - second, 0)
        np.testing.assert_allclose(merger.margin(), expected, atol=1e-6)
    with pytest.raises(ValueError, match="make the merger with `confidence=True`"):
        BestLabelMerger([1], (6, 7)).margin()


def test_a_label_is_no_rival_of_itself():
    """Its boxes overlap; the largest of its logits counts, before and after another label was the best."""
    boxes = {"a": [(9, 0, 4, [3.0, 1, 2, 5]), (9, 2, 6, [4.0, 3, 1, 2])], "b": [(2, 1, 5, [2.0, 3, 4, 6])]}
    steps = [*boxes["a"], *boxes["b"]]
    whole = {9: [3, 1, 4, 5, 1, 2], 2: [-9, 2, 3, 4, 6, -9]}
    second, best = np.sort([[0] * 6, *whole.values()], axis=0)[-2:]
    for order in itertools.permutations(steps):
        merger = BestLabelMerger([9, 2], (6,), confidence=True)
        for label, start, stop, logits in order:
            merger.aggregate(label, torch.tensor(logits), (slice(start, stop),))
        assert merger.margin().tolist() == (best - second).tolist()


def test_the_sweep_reports_the_dice_to_expect():
    torch.manual_seed(0)
    network = LabelConditionedUNet(spatial_dims=2, channels=(4, 8), conditioning="multiscale").eval()
    labels = torch.zeros(2, 1, 24, 20)
    labels[..., 4:12, 4:10], labels[..., 12:20, 3:12], labels[1, 0, 8:14, 10:18] = 17, 53, 5
    inputs = torch.cat([torch.rand(2, 2, 24, 20), labels], dim=1)
    got, probabilities = {}, {0: {}, 1: {}}
    sweep = LabelSweepInferer(
        labels=[5, 17, 53],
        margin_mm=5,
        threshold=0.2,
        on_confidence=got.__setitem__,
        on_label=lambda item, label, p: probabilities[item].__setitem__(label, p.double()),
    )
    with pytest.warns(UserWarning, match=r"no voxel of \[5\]"):
        result = sweep(inputs, network)
    assert sorted(got) == [0, 1]
    for item, confidence in got.items():
        rivals = torch.cat([*probabilities[item].values(), torch.full((1, 24, 20), 0.2)]).double().logit(1e-12)
        best, second = rivals.sort(dim=0, descending=True)[0][:2]
        assert sorted(confidence) == [id for id in result[item].unique().tolist() if id]
        for id, dice in confidence.items():
            voxels = result[item, 0] == id
            right = torch.sigmoid(best - second)[voxels].sum()
            expected = 2 * right / (voxels.sum() + probabilities[item][id].sum())
            assert dice == pytest.approx(expected.item(), rel=1e-3)


def test_confidence_is_the_mean_dice_of_what_is_drawn_from_the_probabilities():
    """Truths drawn at random as the probabilities say have this Dice on average."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 2000)
    merger = BestLabelMerger([3], (2000,), confidence=True)
    merger.aggregate(3, torch.from_numpy(logits).float(), (slice(0, 2000),))
    found, p = logits > 0, 1 / (1 + np.exp(-logits))
    truths = rng.random((400, 2000)) < p
    dice = 2 * (truths & found).sum(1) / (truths.sum(1) + found.sum())
    assert merger.confidence()[3] == pytest.approx(dice.mean(), abs=0.003)


def test_the_picture_shows_labels_of_low_confidence_dashed(tmp_path):
    labels = MetaTensor(torch.zeros(1, 40, 40, 40, dtype=torch.int32), affine=torch.eye(4))
    labels[:, 5:35, 5:35, 5:35] = 4
    shares = {}
    for dice in (0.9, 0.5, None):
        confidence = None if dice is None else {4: dice}
        result = Segmentation(
            labels, labels.float(), LabelTable([Label(4, "x", color=(255, 0, 0))]), confidence=confidence
        )
        picture = imread(result.save(tmp_path, overwrite=True)["qc"])[..., :3]
        shares[dice] = (np.abs(picture - [1, 0, 0]).max(axis=-1) < 0.3).mean()
    assert 0.3 < shares[0.5] / shares[0.9] < 0.9
    assert shares[None] == shares[0.9]


def test_confidence_is_a_column_of_the_volumes():
    table = LabelTable.from_ids([4, 7, 9])
    volumes = volume_table(np.array([[4, 4, 7]]), 1.0, table, confidence={4: 0.87654, 9: 0.5})
    np.testing.assert_array_equal(volumes["confidence"], [0.8765, np.nan, np.nan])  # 9 did not reach the scan's grid
