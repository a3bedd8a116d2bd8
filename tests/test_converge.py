"""What benchmarks/converge.py decides by itself: its loss, its stop rule, its way from 1 mm to 3 mm and back."""

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import converge
import converge_scans
import converge_slices
import converge_table

GRID = (8, 9, 10)
SIZE = tuple(3 * n for n in GRID)
WHOLE = tuple(slice(0, n) for n in GRID)


@pytest.fixture
def scan(monkeypatch):
    """Slabs of one label each, in a box that reaches beyond the scan at some ends and not at others."""
    monkeypatch.setattr(converge_scans, "GRID", GRID)
    monkeypatch.setattr(converge, "WHOLE", WHOLE)
    monkeypatch.setattr(converge_scans, "SIZE", SIZE)
    labels = torch.tensor([0, 1, 1, 1, 2, 2, 3, 3.0]).view(-1, 1, 1).expand(2, *GRID)
    fine = F.interpolate(labels[None], scale_factor=3)[0]
    truth = F.pad(fine[0, 2:, :, 1:-2], (0, 0, 4, 0, 0, 1)).to(torch.uint8)
    torch.manual_seed(0)
    return converge_scans.Scan("scan", torch.rand(2, *SIZE), fine, truth, corner=(-2, 4, -1))


@pytest.mark.parametrize("with_prior", [False, True])
def test_loss_equals_plain_autograd(with_prior, monkeypatch):
    monkeypatch.setattr(converge, "CHUNK", 100)
    torch.manual_seed(0)
    voxels, width, count = 250, 5, 7
    leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((voxels, width), (count, width), count)]
    target = torch.randint(0, count - 1, (voxels,))  # the last is absent
    prior = torch.randint(0, count, (voxels,)) if with_prior else None
    ours = converge.MultiChannelLoss.apply(*leaves, target, prior)

    logits = F.linear(*leaves)
    if prior is not None:
        logits = logits + converge.PRIOR * F.one_hot(prior, count)
    p, true = logits.softmax(1), F.one_hot(target, count)
    dice = (2 * (p * true).sum(0) + 1) / (p.square().sum(0) + true.sum(0) + 1)
    plain = 1 - dice[1:].mean() + F.cross_entropy(logits, target)

    assert torch.allclose(ours, plain)
    for a, b in zip(torch.autograd.grad(3 * ours, leaves), torch.autograd.grad(3 * plain, leaves), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_loss_is_in_float32_under_autocast():
    """A head of many channels in bfloat16 would be a percent off."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(300, 16), torch.randn(90, 16), torch.randn(90)
    target = torch.randint(0, 90, (300,))
    plain = converge.MultiChannelLoss.apply(x, weight, bias, target, None)
    with torch.autocast("cpu", torch.bfloat16):
        ours = converge.MultiChannelLoss.apply(x, weight, bias, target, None)
    assert torch.equal(ours, plain)


def progress(dices, **more):
    """A training whose validations, every 500 steps, gave these."""
    curve = [{"step": 500.0 * i, "validation_dice": dice} for i, dice in enumerate(dices, start=1)]
    return converge.Progress(step=500 * len(dices), curve=curve, **more)


def test_stop_rule():
    rising = [0.1, 0.2, 0.3, 0.4, 0.5, 0.51]  # 0.4 after two thirds of the steps
    assert not progress(rising).converged(0)
    assert progress([*rising, 0.5, 0.4, 0.51]).converged(0)  # 0.51 before
    assert progress([0.5, 0.6, 0.604]).converged(0)
    assert not progress([0.5, 0.6, 0.606]).converged(0)
    assert not progress([0.0] * 6).converged(10_000)  # too early
    assert not progress([0.5] * 4, dropped_at=2000).converged(0)  # nor right after the drop
    assert progress([0.5] * 5, dropped_at=2000).converged(0)


def test_a_training_of_fixed_length(tmp_path, monkeypatch):
    """The rate drops once, after four fifths of the steps; the last step is validated; what is interrupted goes on."""
    contender = replace(converge.CONTENDERS["lcs-shared-short"], steps=5)

    class Short(converge.Training):
        contenders = MappingProxyType({"short": contender})
        validate_every = 5

        def read_labels(self):
            return pd.DataFrame({"id": [1], "name": ["a"], "mirrored": [1]})

        def make_model(self):
            self.seen = None
            model = torch.nn.Linear(1, 1)
            model.labels_a_step = 1
            return model

        def cases(self, section):
            return [None]

        def loss(self, cases, rng):
            self.rates = [*getattr(self, "rates", []), self.optimizer.param_groups[0]["lr"]]
            return self.model.weight.square().sum()

        def dice(self, scan, testing=False):
            return torch.tensor([0.5])

    monkeypatch.setattr(converge, "SAVE_EVERY", 1)
    first = Short("short", 0, tmp_path, tmp_path)
    assert not first.run(last_step=4)
    second = Short("short", 0, tmp_path, tmp_path)
    assert second.run()
    assert first.rates + second.rates == pytest.approx([0.002] * 4 + [0.0002])
    assert second.progress.step == 5
    assert second.progress.dropped_at == 4
    assert second.progress.validations() == [(5, 0.5)]


def test_stop_rule_knows_validations_of_weights_that_are_lost():
    """After a training went on from a copy, they are no best weights, but they tell how far it had come."""
    nan = float("nan")
    went_on = progress([nan, nan, nan, 0.5, 0.504])
    for row, before in zip(went_on.curve, [0.3, 0.5, 0.503, nan, nan], strict=True):
        row["validation_before"] = before
    assert went_on.best(1500) == 0
    assert went_on.best_ever(1500) == 0.503
    assert went_on.converged(0)
    went_on.curve[1]["validation_before"] = went_on.curve[2]["validation_before"] = 0.49
    assert not went_on.converged(0)


def test_scan_to_the_grid_and_back(scan):
    images, labels = converge_scans.plain(scan)
    assert images.shape == labels.shape == (2, *GRID)
    assert torch.equal(labels[0], scan.labels[0, 1::3, 1::3, 1::3].long())
    one_hot = ((k, (labels[0] == k).float(), WHOLE) for k in range(4))
    assert torch.equal(converge_scans.score(one_hot, scan, 0.0, 3), torch.ones(3))
    nothing = converge_scans.carried([], scan, 0.5)
    assert nothing.shape == scan.truth.shape
    assert not nothing.any()


def test_boxes_say_the_same_as_whole_volumes(scan):
    values, box = torch.rand(4, 4, 4), (slice(0, 4), slice(3, 7), slice(6, 10))
    whole = torch.zeros(GRID)
    whole[box] = values
    carried = [converge_scans.carried([a], scan, 0.3) for a in ((1, values, box), (1, whole, WHOLE))]
    assert carried[0].any()
    assert torch.equal(*carried)


def test_deformation(scan, monkeypatch):
    swapped = torch.tensor([0, 2, 1, 3])
    first, again = (converge_scans.deformed(scan, swapped, np.random.default_rng([0, 1])) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for name in ("ROTATION", "SCALING", "ELASTIC_MM", "GAMMA", "NOISE"):
        monkeypatch.setattr(converge_scans, name, 0)
    images, labels = converge_scans.plain(scan)
    flipped = images.flip(1), swapped[labels.flip(1)]
    seen = set()
    for seed in range(8):
        draw = converge_scans.deformed(scan, swapped, np.random.default_rng(seed))
        is_flipped = torch.equal(draw[1], flipped[1])
        seen.add(is_flipped)
        for ours, expected in zip(draw, flipped if is_flipped else (images, labels), strict=True):
            assert torch.allclose(ours, expected, atol=1e-4)
    assert seen == {False, True}


def test_rotation_is_one():
    matrix = converge_scans._rotation(np.array([0.1, -0.2, 0.3]))
    assert np.allclose(matrix @ matrix.T, np.eye(3))
    assert np.linalg.det(matrix) == pytest.approx(1)


def test_chunks_are_all_voxels():
    parts = converge._chunks(2 * converge.CHUNK + 3)
    assert parts[0].start == 0
    assert parts[-1].stop == 2 * converge.CHUNK + 3
    assert all(a.stop == b.start for a, b in pairwise(parts))


TABLE = pd.DataFrame(
    {
        "id": [47, 48, 4, 100, 101, 138, 139],
        "name": ["Right Hippocampus", "Left Hippocampus", "3rd Ventricle"]
        + [f"{side} {gyrus}" for gyrus in ("ACgG anterior", "MCgG middle") for side in ("Right", "Left")],
    }
)


@pytest.mark.parametrize(
    ("kind", "groups", "unseen"),
    [
        ("sides", [[1, 2], [3], [4, 5], [6, 7]], [47, 48, 100, 101, 138, 139]),
        ("lobes", [[1], [2], [3], [4, 6], [5, 7]], [100, 101, 138, 139]),
        ("left out", [[1], [2], [3], [4], [6], [7]], [101]),
    ],
)
def test_what_is_trained_and_what_is_not(kind, groups, unseen):
    assert converge.seen_groups(kind, TABLE) == groups
    assert converge_table.unseen_ids(kind, TABLE) == unseen


def test_groups_are_what_a_merged_label_map_says(scan):
    groups, contender = [[1, 3], [2]], converge.CONTENDERS["unseen-sides"]
    images, labels = converge_scans.plain(scan)
    merged = torch.tensor([0, 1, 2, 1])[labels]

    def model(*arguments):
        torch.manual_seed(1)
        return converge.LabelConditioned(contender, *arguments)

    ours = model(3, groups).loss(images, labels, np.random.default_rng(0))
    assert torch.allclose(ours, model(2).loss(images, merged, np.random.default_rng(0)))

    by_groups = converge.dice_of(model(3, groups), scan, 3, groups)
    of_merged = converge_scans.Scan(
        "scan",
        scan.images,
        torch.tensor([0, 1, 2, 1.0])[scan.labels.long()],
        torch.tensor([0, 1, 2, 1], dtype=torch.uint8)[scan.truth.long()],
        scan.corner,
    )
    assert torch.allclose(by_groups, converge.dice_of(model(2), of_merged, 2))


def test_share_of_the_gain_that_is_kept():
    zeros = np.zeros((3, 4))
    of = {"atlas": zeros + 0.4, "x": zeros + 0.55, "lcs-shared-short": zeros + 0.6}
    assert converge_table.kept(of, "x", np.random.default_rng(0)) == "75% (75% to 75%)"


def test_slices_are_compared_with_slices():
    zeros = np.zeros((3, 4))
    dice = {name: zeros + x for name, x in (("multi-channel", 0.7), ("slices-multi-channel", 0.6), ("slices-x", 0.65))}
    rng = np.random.default_rng(0)
    assert converge_table.difference(dice, "slices-x", rng) == "+0.050 (+0.050 to +0.050)"
    assert converge_table.difference(dice, "slices-multi-channel", rng) == ""


@pytest.fixture
def slices():
    """Three slices, the last without a label of the atlas."""
    labels = torch.zeros(3, 2, 16, 16, dtype=torch.int64)
    labels[0, :, 2:6], labels[0, :, 9:14] = 1, 2
    labels[1, 0, 2:6], labels[1, 1, 3:6] = 1, 1
    torch.manual_seed(0)
    return converge_slices.Slices("scan", torch.rand(3, 2, 16, 16), labels)


def test_dice_of_slices(slices):
    dice = converge_slices.dice_of(converge_slices.AtlasAlone(), slices, 2)
    assert dice.tolist() == pytest.approx([2 * 7 / (8 + 7), 1])
    merged = converge_slices.channels_of([slices], pd.DataFrame({"id": [2]}))[0]
    assert merged.labels.unique().tolist() == [0, 1]
    assert (merged.labels == 1).equal(slices.labels == 2)


def test_steps_of_slices(slices, monkeypatch):
    """Flips swap sides; slices without a label of the atlas are not drawn; both kinds of network learn from them."""
    seen = []

    class Model:
        def loss(self, images, labels, rng):
            seen.append((images, labels))

    monkeypatch.setattr(converge_slices, "BATCH", 400)
    training = converge_slices.SliceTraining.__new__(converge_slices.SliceTraining)
    training.model, training.mirrored = Model(), torch.tensor([0, 2, 1])
    training.loss([slices], np.random.default_rng(1))
    images, labels = seen[0]
    plain = [torch.equal(image, slices.images[i]) for image in images for i in (0, 1)]
    assert 160 < sum(plain) < 240  # the others are flipped
    for image, of_image in zip(images, labels, strict=True):
        i = int(torch.equal(image, slices.images[1]) or torch.equal(image.flip(1), slices.images[1]))
        flipped = torch.tensor([0, 2, 1])[slices.labels[i].flip(1)]
        whole = torch.equal(image, slices.images[i])
        assert torch.equal(of_image, slices.labels[i] if whole else flipped)


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("name", ["slices-lcs-paper", "slices-multi-channel"])
def test_networks_of_slices(slices, name, bfloat16):
    conditioning = converge_slices.CONTENDERS[name].conditioning
    kind = converge_slices.LabelConditioned if conditioning else converge_slices.MultiChannel
    torch.manual_seed(0)
    model = kind(conditioning, 2) if conditioning else kind(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss = model.loss(slices.images[:2], slices.labels[:2], np.random.default_rng(0))
    loss.backward()
    assert loss.dtype == torch.float32
    assert 0 < loss < 4
    assert all(p.grad is not None for p in model.parameters())
    assert converge_slices.dice_of(model, slices, 2).shape == (2,)
    assert model.training


def test_loss_of_slices_is_monais(slices):
    """Dice + cross-entropy over the whole batch, of the same logits."""
    torch.manual_seed(0)
    model = converge_slices.MultiChannel(2)
    model.network.bottleneck.dropout.p = 0.0
    images, labels = slices.images[:2], slices.labels[:2]
    plain = DiceCELoss(
        include_background=False,
        to_onehot_y=True,
        softmax=True,
        squared_pred=True,
        batch=True,
        smooth_nr=1,
        smooth_dr=1,
    )(model.network(images[:, :1]), labels[:, :1])
    ours = model.loss(images, labels, np.random.default_rng(0))
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


def test_a_copy_of_8_bits_is_near_the_weights():
    """Each output channel to half a step of its own largest weight; what has one weight a channel exactly."""
    torch.manual_seed(0)
    weights = {"conv": torch.randn(4, 3, 3, 3, 3) * torch.tensor([1e-3, 1.0, 50.0, 0.0]).view(-1, 1, 1, 1, 1)}
    weights |= {f"norm.{name}": w for name, w in torch.nn.BatchNorm3d(6).state_dict().items()}
    found = converge.restored(converge.rounded(weights))
    step = weights["conv"].abs().amax((1, 2, 3, 4), keepdim=True) / 127
    assert ((found["conv"] - weights["conv"]).abs() <= step / 2 + 1e-9).all()
    assert all(torch.equal(found[name], w) for name, w in weights.items() if name != "conv")


def test_slices_stop_by_the_rule_or_after_all_steps():
    training = converge_slices.SliceTraining.__new__(converge_slices.SliceTraining)

    def done(*dices):
        curve = [{"step": 2000.0 * i, "validation_dice": dice} for i, dice in enumerate(dices, start=1)]
        training.progress = converge.Progress(step=2000 * len(dices), curve=curve)
        return training.is_done()

    assert not done(0.5, 0.5, 0.5, 0.5)  # too early
    assert done(0.4, 0.5, 0.5, 0.5, 0.5)
    assert not done(0.1, 0.2, 0.3, 0.4, 0.5)
    assert not done(*(0.1 * i for i in range(9)))
    assert done(*(0.1 * i for i in range(10)))


def test_a_training_goes_on_in_its_own_precision(tmp_path):
    class Tiny(converge.Training):
        contenders = {"tiny": converge.Contender(None, (), 0.1, 0)}

        def read_labels(self):
            return pd.DataFrame({"id": [1], "name": ["a"], "mirrored": [1]})

        def make_model(self):
            return torch.nn.Conv3d(1, 1, 1)

    Tiny("tiny", 0, tmp_path, tmp_path, bfloat16=True).save()
    assert Tiny("tiny", 0, tmp_path, tmp_path, bfloat16=True).bfloat16
    with pytest.raises(SystemExit, match="was trained with --bfloat16"):
        Tiny("tiny", 0, tmp_path, tmp_path)
