"""Where the propagated mask answers: hand-made arrays, a hopeless training, and the same answer at every door."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor

import monai_lcs as lcs
from monai_lcs.atlas.alignment import Alignment
from monai_lcs.labels import Label, LabelTable, RequestedLabel
from monai_lcs.pipeline import Preprocessing, Settings, make_network, to_native
from monai_lcs.pipeline.guard import (
    AnswerWithMasksd,
    answer_with_masks,
    compare_with_propagated,
    expected_gains,
    lost_labels,
    propagated_requests,
)

TABLE = LabelTable([Label(4, "ventricle"), Label(17, "hippocampus"), Label(18, "amygdala")])
ONE = [RequestedLabel(label.id, label.name, (label.id,)) for label in TABLE]
UNION = RequestedLabel(17, "both", (17, 18))


def test_masks_are_written_over_what_the_network_found():
    found = MetaTensor(torch.tensor([[[[17, 17, 0, 0, 18]]]]))
    masks = MetaTensor(torch.tensor([[[[0, 4, 4, 17, 4]]]]))
    assert answer_with_masks(found, masks, ONE[:1]).flatten().tolist() == [17, 4, 4, 0, 4]
    assert found.flatten().tolist() == [17, 17, 0, 0, 18]
    both = RequestedLabel(3, "both", (4, 17))
    assert answer_with_masks(found, masks, [both, ONE[0]]).flatten().tolist() == [17, 3, 3, 3, 3]
    sample = AnswerWithMasksd("pred", ONE[:1])({"pred": found, "atlas_native": masks})
    assert sample["pred"].flatten().tolist() == [17, 4, 4, 0, 4]
    assert AnswerWithMasksd("pred", [])({"pred": found})["pred"] is found


def test_compare_with_propagated():
    nan = float("nan")
    propagated = np.array([[0.8, 0.5, nan], [nan, 0.5, nan]])
    network = np.array([[0.8, 0.6, nan], [nan, 0.4, nan]])
    table = compare_with_propagated(ONE, propagated, network)
    assert table.propagated.tolist()[:2] == [0.8, 0.5]
    assert table.network_wins.tolist() == [True, True, True]  # equal means, and a label that no case has
    network[0] = [0.7, 0.4, nan]
    table = compare_with_propagated(ONE, propagated, network)
    assert lost_labels(table, ONE, TABLE) == ("ventricle", "hippocampus")


def test_a_loss_in_one_case_is_held_against_what_chance_does():
    """Labels of equal worth and noisy cases: none is lost by the one that chance picks out; a true loss is."""
    rng = np.random.default_rng(0)
    names = [f"{side}-{n}" for side in ("Left", "Right") for n in range(60)]
    one_case = 0.1 + 0.08 * rng.standard_normal((1, 120))
    assert (one_case < 0).any()
    assert not (expected_gains(one_case, names) < 0).any()
    several = 0.1 + 0.08 * rng.standard_normal((4, 120))
    assert abs(expected_gains(several, names) - 0.1).max() < abs(several.mean(0) - 0.1).max() / 2
    worse = np.tile(np.linspace(-0.2, 0.4, 60), 2)  # labels differ, cases hardly
    for cases in (1, 3):
        gains = worse + 0.01 * rng.standard_normal((cases, 120))
        np.testing.assert_allclose(expected_gains(gains, names), worse, atol=0.05)


def test_expected_gains_by_hand():
    """Two cases whose labels differ by -0.1 and 0.1 in turn: their variance is 0.02, that of a mean of two 0.01."""
    means = np.linspace(0, 0.6, 12)
    wobble = 0.1 * (-1.0) ** np.arange(12)
    names = [str(n) for n in range(12)]
    between = means.var(ddof=1) - 0.02 / 2
    expected = 0.3 + between / (between + 0.01) * (means - 0.3)
    np.testing.assert_allclose(expected_gains(np.array([means + wobble, means - wobble]), names), expected)
    # what all labels of a case share is no noise of a label
    np.testing.assert_allclose(expected_gains(np.array([means + 0.2, means - 0.2]), names), means)


def test_a_label_that_always_loses_is_lost_and_one_that_wins_is_not():
    rng = np.random.default_rng(1)
    noisy = 0.1 + 0.1 * rng.standard_normal((6, 120))
    certain = -0.02 + 0.001 * rng.standard_normal((6, 6))
    gains = np.hstack([noisy, certain])
    assert (expected_gains(gains, [str(n) for n in range(126)])[120:] < 0).all()
    # nothing tells the labels apart, and the mean is below 0: who won in the cases is not lost for that
    requests = [RequestedLabel(n, str(n), (n,)) for n in range(1, 61)]
    network = 0.5 - 0.02 + 0.08 * rng.standard_normal((2, 60))
    table = compare_with_propagated(requests, np.full((2, 60), 0.5), network)
    assert not (~table.network_wins & (network.mean(0) > 0.5)).any()
    assert (~table.network_wins).any()


def test_few_labels_are_taken_as_they_are():
    gains = np.array([[-0.1, 0.3, float("nan")]])
    np.testing.assert_array_equal(expected_gains(gains, ["a", "b", "c"]), gains[0])
    unpaired = np.linspace(-0.1, 0.5, 30)[None]
    np.testing.assert_array_equal(expected_gains(unpaired, [str(n) for n in range(30)]), unpaired[0])


def test_unions_are_lost_and_found_by_their_members():
    requests = [ONE[0], UNION]
    table = compare_with_propagated(requests, np.array([[0.5, 0.5]]), np.array([[0.6, 0.4]]))
    lost = lost_labels(table, requests, TABLE)
    assert lost == ("hippocampus", "amygdala")
    assert propagated_requests([*ONE, UNION], lost, TABLE) == [*ONE[1:], UNION]
    assert propagated_requests([UNION], lost[:1], TABLE) == []
    other = LabelTable([Label(4, "hippocampus"), Label(17, "ventricle")])  # an atlas where the ids mean something else
    fine = [RequestedLabel(4, "hippocampus", (4,)), RequestedLabel(17, "ventricle", (17,))]
    assert propagated_requests(fine, lost, other) == fine[:1]


def test_settings_refuse_what_is_no_name():
    with pytest.raises(ValueError, match=r"`propagated` must be names of labels, got 'ventricle'"):
        Settings(propagated="ventricle")
    with pytest.raises(ValueError, match=r"`propagated` must be names of labels, got \(4,\)"):
        Settings(propagated=[4])
    assert Settings.from_dict({"propagated": ["a"]}) == Settings(propagated=("a",))


@pytest.fixture
def atlas():
    """Two cubes in a bright head, 2 mm."""
    labels = torch.zeros(1, 24, 24, 24, dtype=torch.int32)
    labels[:, 4:10, 6:14, 6:14], labels[:, 13:19, 6:14, 6:14] = 4, 17
    image = 100 + 40.0 * (labels == 4) + 80.0 * (labels == 17)
    affine = torch.diag(torch.tensor([2.0, 2, 2, 1]))
    return lcs.Atlas(MetaTensor(image, affine=affine), MetaTensor(labels, affine=affine), TABLE)


def test_the_segmenter_uses_the_mask_of_a_lost_label(atlas):
    """Voxel by voxel, though the network works at a coarser grid."""
    torch.manual_seed(0)
    settings = Settings(align="none", spacing=(3, 3, 3), channels=(4, 8), propagated=["ventricle"])
    network = make_network(settings)
    torch.nn.init.constant_(network.head.bias, -100.0)  # it finds nothing
    coarse = lcs.Segmenter(atlas, None, settings)(atlas.image).label_map
    result = lcs.Segmenter(atlas, network, settings)(atlas.image)
    assert torch.equal(result.label_map, coarse * (coarse == 4))
    assert result.quality["propagated"] == "ventricle"
    alone = lcs.Segmenter(atlas, network, settings)(atlas.image, "ventricle")
    assert torch.equal(alone.label_map, result.label_map)
    none = lcs.Segmenter(atlas, network, replace(settings, propagated=()))
    with pytest.warns(UserWarning, match="is empty"):
        assert none(atlas.image).quality["propagated"] == ""


def test_the_mask_is_propagated_to_the_scans_own_grid(atlas, monkeypatch):
    """Not by way of the network's, which is coarser."""
    preprocessing = Preprocessing(atlas, Settings(align="rigid", spacing=(5, 5, 5), propagated=["ventricle"]))
    scan = preprocessing.prepare(atlas.image)
    identity = Alignment(atlas.image, sitk.Transform(3, sitk.sitkIdentity), "rigid", 1.0, 1.0, 0.0)
    monkeypatch.setattr(preprocessing.cache, "align", lambda *args: (identity, True))
    aligned = preprocessing.align(scan)
    assert torch.equal(aligned.native, atlas.label_map)
    assert not torch.equal(to_native(aligned.label_map, atlas.image), atlas.label_map)


@pytest.mark.filterwarnings("ignore:parsing config_file")
def test_a_training_names_the_labels_it_loses(atlas, tmp_path):
    """The validation scan is the atlas: no network beats the propagated mask there."""
    case = {"image": atlas.image, "label": atlas.label_map}
    settings = Settings(align="none", channels=(4, 8))
    other = MetaTensor(atlas.image.as_tensor() + 1, affine=atlas.image.affine)
    cases = [{**case, "image": other}], [case]
    fast = {"epochs": 1, "labels_per_image": 2, "device": "cpu", "num_workers": 0, "learning_rate": 1.0}
    weights = lcs.train(None, atlas, tmp_path, settings=settings, cases=cases, **fast)
    written = pd.read_csv(tmp_path / "validation.tsv", sep="\t")
    assert written.name.tolist() == ["ventricle", "hippocampus"]
    assert written.propagated.tolist() == [1.0, 1.0]
    lost = tuple(written.name[written.network < 1])
    assert lost
    assert Settings.of_weights(weights) == replace(settings, propagated=lost)
    with pytest.raises(ValueError, match="already has 1 epochs"):  # the settings of the training are the same
        lcs.train(None, atlas, tmp_path, settings=settings, cases=cases, resume=True, **fast)
