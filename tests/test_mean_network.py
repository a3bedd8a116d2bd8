"""Several networks in one file: the mean of their probabilities, at every door."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.utils import set_determinism
from phantom import AFFINE, SETTINGS, TABLE, make_volume

import monai_lcs as lcs
from monai_lcs.inferers import LabelSweepInferer
from monai_lcs.networks import LabelConditionedNetwork, LabelConditionedUNet, MeanNetwork
from monai_lcs.networks.crops import Mask
from monai_lcs.networks.mean import mean_logit
from monai_lcs.pipeline import Settings, join_weights, load_weights, make_network
from monai_lcs.pipeline.best_model import BestModel
from monai_lcs.pipeline.weights_file import read_state, write_weights

KINDS = ("multiscale", "shared")
IDS = (3, 7, 9)


@pytest.fixture
def networks():
    set_determinism(0)
    made = [
        LabelConditionedUNet(3, channels=channels, conditioning=kind, norm="instance").eval()
        for kind, channels in zip(KINDS, ((4, 6, 8), (4, 8)), strict=True)
    ]
    set_determinism(None)
    return made


@pytest.fixture
def volume():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.random((2, 20, 20, 16), dtype=np.float32))
    labels = torch.zeros(1, 20, 20, 16)  # of the strides of both: padding changes norms
    labels[:, 2:9, 3:9, 2:8], labels[:, 10:16, 5:12, 4:9], labels[:, 12:19, 12:17, 8:13] = IDS
    return torch.cat([images, labels])[None]


def found_by(network, volume, **options):
    """The probability of each label, and the label map."""
    got = {}
    sweep = LabelSweepInferer(on_label=lambda _, label, p: got.setdefault(label, p[0].numpy()), **options)
    with torch.no_grad():
        return got, sweep(volume, network)[0, 0].numpy()


@pytest.mark.filterwarnings("ignore:This network normalizes over a label's box")
@pytest.mark.parametrize("roi_size", [None, (16, 16, 16)])
def test_the_sweep_answers_with_the_mean_of_the_probabilities(networks, volume, roi_size):
    options = {"margin_mm": 3, "halo": 0, "overlap": 0}
    mean, label_map = found_by(MeanNetwork(networks), volume, roi_size=roi_size, **options)
    if roi_size is None:
        alone = [found_by(network, volume, **options)[0] for network in networks]
        for label in IDS:
            np.testing.assert_allclose(mean[label], (alone[0][label] + alone[1][label]) / 2, atol=1e-6)
    best = np.max([mean[label] for label in IDS], 0)
    winner = np.array(IDS)[np.argmax([mean[label] for label in IDS], 0)]
    np.testing.assert_array_equal(label_map, np.where(best > 0.5, winner, 0))


def test_it_is_a_network_that_encodes_once(networks):
    mean = MeanNetwork(networks)
    assert isinstance(mean, LabelConditionedNetwork)
    assert (mean.stride, mean.depends_on_box, mean.stitches, mean.competes) == (4, True, False, False)
    assert MeanNetwork([networks[1], networks[1]]).competes


def test_the_mean_of_a_network_and_itself_is_the_network(networks, volume):
    for network in networks:
        twice = MeanNetwork([network, network])
        torch.testing.assert_close(twice(volume), network(volume), atol=1e-4, rtol=1e-4)


def test_labels_that_others_answer_change_nothing(networks, volume):
    """What the processes of a label parallel sweep do: each decodes its own labels."""
    mean = MeanNetwork(networks)
    boxes = [(slice(0, 12), slice(0, 12), slice(0, 11)), (slice(8, 20), slice(2, 15), slice(1, 12))]
    masks = [Mask.of(volume[0, 2] == label) for label in IDS[:2]]
    with torch.no_grad():
        features = mean.encode(volume[:, :1], volume[:, 1:2])
        both = dict(mean.decode_boxes(features, masks, boxes, halo=0))
        second = dict(mean.decode_boxes(features, masks, boxes, halo=0, wanted={1}))
        in_parts = dict(mean.decode_boxes(features, masks, boxes, halo=0, room=1))
    assert list(second) == [1]
    for i, logits in {**second, **in_parts}.items():
        torch.testing.assert_close(logits, both[i])


def test_the_mean_logit_against_double_precision():
    rng = np.random.default_rng(0)
    logits = rng.uniform(-30, 30, (3, 200))
    expected = np.mean(1 / (1 + np.exp(-logits)), 0)
    expected = np.log(expected / np.mean(1 / (1 + np.exp(logits)), 0))
    found = mean_logit([torch.tensor(x, dtype=torch.float32) for x in logits])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)
    assert mean_logit([torch.tensor([-200.0]), torch.tensor([-300.0])]).item() == pytest.approx(-200 - math.log(2))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([{}], r"two or more networks, got 1"),
        ([{}, {"conditioning": None}], r"must see an atlas"),
        ([{}, {"atlas_channels": 2}], r"same numbers of axes and channels"),
    ],
)
def test_networks_that_make_no_mean(options, problem):
    with pytest.raises(ValueError, match=problem):
        MeanNetwork([LabelConditionedUNet(channels=(4, 8), **each) for each in options])


# ---- the file -------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_files(tmp_path):
    """Weights of two trainings with their settings."""
    set_determinism(0)
    paths = []
    for kind in KINDS:
        settings = Settings.from_dict({**SETTINGS, "conditioning": kind})
        paths.append(tmp_path / f"{kind}.pt")
        card = {"license": "X"} if kind == "multiscale" else {}
        write_weights(paths[-1], make_network(settings).state_dict(), {**settings.to_dict(), "card": card})
    set_determinism(None)
    return paths


def test_a_joined_file_segments_a_scan_as_its_networks_do_together(two_files, tmp_path):
    both = tmp_path / "both.pt"
    join_weights(two_files, both, propagated=["Stem"])
    image, labels = make_volume()
    affine = torch.from_numpy(AFFINE)
    atlas = lcs.Atlas(
        MetaTensor(torch.from_numpy(image)[None], affine=affine),
        MetaTensor(torch.from_numpy(labels.astype(np.int32))[None], affine=affine),
        TABLE,
    )
    loaded = lcs.Segmenter.load(both, atlas)
    assert isinstance(loaded.network, MeanNetwork)
    assert loaded.settings.propagated == ("Stem",)
    networks = [lcs.Segmenter.load(path, atlas).network for path in two_files]
    by_hand = lcs.Segmenter(atlas, MeanNetwork(networks), replace(loaded.settings, further_networks=()))
    scan = (make_volume(np.random.default_rng(3))[0], AFFINE)
    found, expected = (np.asarray(each(scan).label_map) for each in (loaded, by_hand))
    assert (found > 0).any()
    assert (found != expected).mean() < 1e-3  # the file has half precision


def test_a_single_network_takes_the_first_of_several(two_files, tmp_path):
    both = tmp_path / "both.pt"
    join_weights(two_files, both)
    first = make_network(Settings.of_weights(two_files[0]))
    with pytest.warns(UserWarning, match=r"both\.pt has 2 networks whose answers are averaged: the first alone"):
        load_weights(both, first)
    for name, weight in read_state(two_files[0]).items():
        torch.testing.assert_close(first.state_dict()[name], weight, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="are another network's"):
        load_weights(two_files[0], make_network(Settings.of_weights(both)))


def test_files_that_cannot_be_joined(two_files, tmp_path):
    other = Settings.from_dict({**SETTINGS, "soft_masks": True})
    write_weights(tmp_path / "soft.pt", make_network(other).state_dict(), other.to_dict())
    with pytest.raises(ValueError, match=r"soft\.pt and .* cannot be joined: they differ in soft_masks"):
        join_weights([two_files[0], tmp_path / "soft.pt"], tmp_path / "both.pt")
    join_weights(two_files, tmp_path / "both.pt")
    kept = (tmp_path / "both.pt").read_bytes()
    with pytest.raises(ValueError, match=r"both\.pt is there already: give another name, or remove it"):
        join_weights(two_files, tmp_path / "both.pt")
    assert (tmp_path / "both.pt").read_bytes() == kept
    with pytest.raises(ValueError, match="has several networks already"):
        join_weights([two_files[0], tmp_path / "both.pt"], tmp_path / "more.pt")
    with pytest.raises(ValueError, match="There are no settings"):
        join_weights(two_files, tmp_path / "more.pt", threshold=0.4)
    with pytest.raises(ValueError, match="two or more"):
        join_weights(two_files[:1], tmp_path / "more.pt")
    assert not (tmp_path / "more.pt").exists()


@pytest.mark.parametrize(
    "further",
    ["shared", [{"spacing": [1, 1, 1]}], ["shared"], [{"channels": [4]}], [{}] * 8, {"conditioning": "shared"}],
)
def test_settings_of_a_stranger_are_refused(further):
    with pytest.raises(ValueError, match=r"`(further_networks|channels)` must"):
        Settings(further_networks=further)


def test_what_answers_now_is_scored_with_all_its_networks(two_files, tmp_path):
    """With ``keep_better``, one network of a mean would be an easier rival than the mean."""
    both = tmp_path / "both.pt"
    join_weights(two_files, both)
    settings = Settings.of_weights(two_files[0])
    network = make_network(settings)

    class Evaluator:
        inferer = None
        scored = ()

        def __init__(self):
            self.network = network
            self.state = type("State", (), {"metrics": {"dice": 0.5}, "key_metric_name": "dice", "device": "cpu"})()

        def run(self):
            self.scored = (*self.scored, type(self.network).__name__)

    evaluator = Evaluator()
    best = BestModel(tmp_path / "new", network, settings, keep_better=True, present=both)
    assert best._score_present(evaluator) == 0.5
    assert evaluator.scored == ("MeanNetwork",)
    assert evaluator.network is network


def test_the_research_weights_are_two_networks():
    weights = lcs.shipped_weights("research")
    settings = Settings.of_weights(weights)
    network = make_network(settings)
    load_weights(weights, network)
    assert isinstance(network, MeanNetwork)
    assert [each.conditioning for each in settings.of_each_network()] == list(KINDS)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.random((1, 3, 16, 16, 16), dtype=np.float32))
    x[:, 2] = x[:, 2] > 0.5
    with torch.no_grad():
        first, second = (each(x).sigmoid() for each in network.eval().networks)
        torch.testing.assert_close(network(x).sigmoid(), (first + second) / 2, atol=1e-5, rtol=1e-4)
    assert (first - second).abs().max() > 0.01


def test_what_answers_now_and_cannot_be_compared_is_said(two_files, tmp_path):
    settings = Settings.of_weights(two_files[0])
    finer = replace(settings, spacing=(2.0, 2.0, 2.0))
    evaluator = type("Evaluator", (), {"network": None, "inferer": None, "run": lambda self: None})()
    evaluator.state = type("State", (), {"metrics": {"dice": 0.5}, "key_metric_name": "dice", "device": "cpu"})()
    best = BestModel(tmp_path / "new", make_network(finer), finer, keep_better=True, present=two_files[0])
    with pytest.warns(UserWarning, match="is scored with the spacing of this training, not with its own"):
        best._score_present(evaluator)
    fused = replace(settings, fused=True)
    best = BestModel(tmp_path / "new", make_network(fused), fused, keep_better=True, present=two_files[1])
    with pytest.raises(
        ValueError, match="cannot be compared with this training: one of the two networks looks at each"
    ):
        best._score_present(evaluator)
