"""The loss in boxes equals MONAI's losses of whole volumes, in value and gradient."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import PrepareBatchExtraInput, SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.losses import DiceLoss
from monai.transforms import Compose, ConcatItemsd
from monai.utils import set_determinism

from monai_lcs.inferers import LabelBoxInferer
from monai_lcs.labels.groups import label_sizes
from monai_lcs.losses import LabelBoxLogits, LabelBoxLoss
from monai_lcs.networks import LabelConditionedUNet
from monai_lcs.pipeline import ClipGradient
from monai_lcs.transforms import RandSelectLabelsd

GROUPS = [[(2,), (1, 3), (4,), (3,)], [(1,), (2, 4), (3,), (9, 1)]]  # 9 is in no map
IDS = torch.tensor([[[*group, 0][:2] for group in of_item] for of_item in GROUPS])


def blocks(shifted, spatial_dims):
    """Label maps of a batch of two with four blocks each, and no label 4 in the second."""
    label_map = torch.zeros(2, 1, *[18] * spatial_dims)
    for i, (a, b) in enumerate([(1, 5), (5, 10), (6, 13), (13, 17)]):
        box = (slice(a + shifted, b + shifted), slice(a, b), slice(2, 9))[:spatial_dims]
        label_map[(slice(None), 0, *box)] = i + 1
    label_map[1][label_map[1] == 4] = 0
    return label_map


def make(conditioning="multiscale", norm=("instance", {"affine": True}), spatial_dims=3):
    """A network in double precision, inputs with the atlas label map, and the true label maps."""
    set_determinism(0)
    net = LabelConditionedUNet(
        spatial_dims, channels=(3, 4, 5), conditioning=conditioning, norm=norm, dropout=0.0, prior_logit=1.0
    ).double()
    inputs = torch.cat([torch.rand(2, 2, *[18] * spatial_dims), blocks(0, spatial_dims)], dim=1).double()
    set_determinism(None)
    return net, inputs, blocks(1, spatial_dims)


def one_hot(label_maps):
    """Masks of ``GROUPS``, from the definition."""
    return torch.stack(
        [
            torch.stack([torch.isin(label_map[0], torch.tensor(group)) for group in of_item])
            for label_map, of_item in zip(label_maps, GROUPS, strict=True)
        ]
    ).double()


def gradients(loss, net):
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()), allow_unused=True) if g is not None]
    )


@pytest.mark.parametrize("squared_pred", [True, False])
@pytest.mark.parametrize("margin_mm", [2.0, None])
@pytest.mark.parametrize(
    ("conditioning", "norm", "spatial_dims"),
    [
        ("multiscale", ("instance", {"affine": True}), 3),
        ("bottleneck", "batch", 3),
        ("shared", "instance", 3),
        ("multiscale", "batch", 2),
    ],
)
def test_equals_losses_of_padded_logits(conditioning, norm, spatial_dims, margin_mm, squared_pred):
    """MONAI's Dice of logits in whole volumes; cross-entropy weighted by the boxes; the gradients of all weights."""
    net, inputs, target = make(conditioning, norm, spatial_dims)
    inferer = LabelBoxInferer(margin_mm=margin_mm, halo=0)
    pred = inferer(MetaTensor(inputs), net, groups=IDS)
    loss = LabelBoxLoss(squared_pred=squared_pred)(pred, MetaTensor(target))

    masks = one_hot(target)
    boxes = inferer.boxes(torch.cat([inputs[:, :2], one_hot(inputs[:, 2:])], dim=1))
    padded = net(torch.cat([inputs[:, :2], one_hot(inputs[:, 2:])], dim=1), boxes=boxes, halo=0)
    dice = DiceLoss(sigmoid=True, squared_pred=squared_pred, smooth_nr=1, smooth_dr=1)(padded, masks)
    inside = torch.zeros_like(padded)
    for i, k in np.ndindex(2, 4):
        if boxes[i][k] is not None:
            inside[i, k][boxes[i][k]] = 1
    mean = inside / inside.sum(dim=tuple(range(2, padded.ndim)), keepdim=True).clamp(min=1)
    entropy = (F.binary_cross_entropy_with_logits(padded, masks, reduction="none") * mean).sum() / 8

    assert [one.ids for one in pred] == [group for of_item in GROUPS for group in of_item]
    assert loss.item() == pytest.approx((dice + entropy).item(), abs=1e-5)
    expected = gradients(dice + entropy, net)
    assert torch.allclose(gradients(loss, net), expected, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("conditioning", ["multiscale", "shared"])
def test_training_in_bfloat16_is_near_float32(conditioning):
    """Loss and gradients, by both ways to ask for labels; logits, loss and the weights' gradients are float32."""
    net, inputs, target = make(conditioning, ("instance", {"affine": True}), 3)
    net, inputs = net.float(), inputs.float()
    masks = torch.cat([inputs[:, :2], one_hot(inputs[:, 2:]).float()], dim=1)
    found = []
    for bfloat16 in (False, True):
        inferer = LabelBoxInferer(margin_mm=2.0, halo=0, bfloat16=bfloat16)
        volumes = inferer(masks, net)
        loss = LabelBoxLoss()(inferer(inputs, net, groups=IDS), target)
        found.append((volumes, loss, gradients(loss, net)))
    (volumes, loss, gradient), (near, near_loss, near_gradient) = found
    assert near.dtype == near_loss.dtype == near_gradient.dtype == torch.float32
    assert not torch.equal(near, volumes)
    torch.testing.assert_close(near, volumes, atol=0.1, rtol=0.02)
    assert near_loss.item() == pytest.approx(loss.item(), abs=0.01)
    assert F.cosine_similarity(near_gradient, gradient, dim=0) > 0.98


def test_weights_and_a_label_that_the_atlas_lacks():
    target = torch.tensor([[[0, 7, 7, 7]], [[0, 7, 7, 7]]])
    logits = torch.tensor([30.0, -30.0])
    pred = [LabelBoxLogits(0, (7,), (slice(1, 3),), logits), LabelBoxLogits(1, (7,), None, None)]
    # 2 * 1 + 1 over 1 + 3 + 1, and 1 over 3 + 1: the voxel beyond the box counts
    assert LabelBoxLoss(lambda_ce=0)(pred, target).item() == pytest.approx((2 / 5 + 3 / 4) / 2)
    assert LabelBoxLoss(lambda_dice=0)(pred, target).item() == pytest.approx((0 + 30) / 2 / 2)  # inside the box alone
    both = LabelBoxLoss(lambda_dice=2, lambda_ce=0.5)(pred, target).item()
    assert both == pytest.approx((2 / 5 + 3 / 4) + 0.5 * 7.5)


def test_half_precision_does_not_overflow():
    """More voxels than the largest number of float16."""
    box = (slice(0, 300), slice(0, 300))
    pred = [LabelBoxLogits(0, (1,), box, torch.full((300, 300), 20.0, dtype=torch.float16))]
    loss = LabelBoxLoss()(pred, torch.ones(1, 1, 300, 300))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0, abs=1e-4)


def test_label_sizes_equal_numpy():
    label_map = np.random.RandomState(0).choice([0, 3, 5, 2**30], (1, 40, 7))
    ids, counts = np.unique(label_map[label_map > 0], return_counts=True)
    assert label_sizes(label_map) == dict(zip(ids.tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smooth": 0}, r"`smooth` must be > 0, got 0\."),
        ({"lambda_dice": -1}, r"`lambda_dice` must be >= 0, got -1\."),
        ({"lambda_ce": float("nan")}, r"`lambda_ce` must be >= 0, got nan\."),
    ],
)
def test_loss_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        LabelBoxLoss(**options)


def test_loss_rejects_what_is_no_label_map():
    pred = [LabelBoxLogits(0, (1,), (slice(0, 2),), torch.zeros(2))]
    with pytest.raises(ValueError, match=r"label maps \(B, 1, \*spatial\), got shape \(1, 2, 4\)"):
        LabelBoxLoss()(pred, torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match=r"must hold integers >= 0, got 0\.5"):
        LabelBoxLoss()(pred, torch.tensor([[[0.5, 1.0]]]))
    with pytest.raises(ValueError, match="at least one label, got none"):
        LabelBoxLoss()([], torch.zeros(1, 1, 4))


def test_inferer_rejects_groups_that_it_cannot_answer():
    net, inputs, _ = make()
    with pytest.raises(ValueError, match=r"hold none of the groups \[\[\(9,\)\], \[\(8, 9\)\]\]"):
        LabelBoxInferer(margin_mm=1)(inputs, net, groups=torch.tensor([[[9, 0]], [[8, 9]]]))
    with pytest.raises(ValueError, match=r"got shapes \(1, 1, 1\) and \(2, 3, 18, 18, 18\)"):
        LabelBoxInferer(margin_mm=1)(inputs, net, groups=torch.tensor([[[1]]]))
    with pytest.raises(ValueError, match=r"got shapes \(2, 4, 2\) and \(2, 4, 18, 18, 18\)"):
        LabelBoxInferer(margin_mm=1)(torch.cat([inputs, inputs[:, 2:]], dim=1), net, groups=IDS)
    with pytest.raises(ValueError, match=r"must hold integers >= 0, got 0\.5"):
        LabelBoxInferer(margin_mm=1)(inputs.where(inputs != 2, 0.5), net, groups=IDS)


# ---- with MONAI's trainer


class Samples:
    """Image, atlas image, label map and atlas label map, with random groups for the draw."""

    def __init__(self):
        _, inputs, target = make()
        self.data = [
            {"image": i[:1].float(), "atlas_image": i[1:2].float(), "atlas_label": i[2:].float(), "label": t.float()}
            for i, t in zip(inputs, target, strict=True)
        ]
        self.transform = Compose(
            [
                RandSelectLabelsd(num_labels=3, groups=[1, 2, (3, 4)], union_prob=0.3, masks=False),
                ConcatItemsd(["image", "atlas_image", "atlas_label"], name="image"),
            ]
        )

    def trainer(self, handlers=(), workers=0, learning_rate=0.02, epochs=3):
        set_determinism(0)
        net = LabelConditionedUNet(3, channels=(4, 6), conditioning="multiscale", norm="instance", dropout=0.0)
        return SupervisedTrainer(
            device="cpu",
            max_epochs=epochs,
            train_data_loader=DataLoader(Dataset(self.data, self.transform), batch_size=2, num_workers=workers),
            network=net,
            optimizer=torch.optim.SGD(net.parameters(), lr=learning_rate),
            loss_function=LabelBoxLoss(),
            inferer=LabelBoxInferer(margin_mm=2),
            prepare_batch=PrepareBatchExtraInput({"groups": "selected_labels"}),
            decollate=False,
            train_handlers=list(handlers),
        )


class Norms:
    """Keeps the norm of the gradient after each step."""

    def __init__(self):
        self.found = []

    def attach(self, trainer):
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, trainer):
        squares = [p.grad.square().sum() for p in trainer.network.parameters() if p.grad is not None]
        self.found.append(torch.stack(squares).sum().sqrt().item())


@pytest.mark.parametrize("workers", [0, 1])
def test_trains_with_monais_trainer(workers):
    trainer = Samples().trainer(workers=workers, epochs=12, learning_rate=0.3)
    losses = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output["loss"].item())
    )
    trainer.run()
    set_determinism(None)
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert all(len(one.ids) in (1, 2, 3, 4) for one in trainer.state.output["pred"])


def test_gradient_is_clipped():
    norms = {}
    for limit in (None, 0.01):
        free = Norms()
        Samples().trainer([ClipGradient(limit), free], learning_rate=0.0).run()
        norms[limit] = free.found
    set_determinism(None)
    assert min(norms[None]) > 0.01
    assert norms[0.01] == pytest.approx([0.01] * 3, rel=1e-3)
    with pytest.raises(ValueError, match="`max_norm` must be > 0 or None, got -1"):
        ClipGradient(-1)


@pytest.mark.parametrize("limit", [None, 5.0])
def test_a_step_whose_gradient_is_not_finite_is_left_out(limit):
    """The weights stay as they were, the training goes on, and the user is told which step it was."""
    kept = []

    class Spoil:
        """Makes the loss of the second step infinitely steep."""

        def attach(self, trainer):
            trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, self.spoil)
            trainer.add_event_handler(Events.ITERATION_COMPLETED, self.keep)

        def spoil(self, trainer):
            if trainer.state.iteration == 2:
                trainer.state.output["loss"] = trainer.state.output["loss"] * float("nan")

        def keep(self, trainer):
            kept.append(torch.cat([p.detach().flatten().clone() for p in trainer.network.parameters()]))

    trainer = Samples().trainer([Spoil(), ClipGradient(limit)], epochs=3)
    with pytest.warns(UserWarning, match="Step 2 of the training was left out: its gradient is not finite"):
        trainer.run()
    set_determinism(None)
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[1], kept[2])
    assert kept[2].isfinite().all()


def test_draw_without_masks_is_the_draw_with_masks():
    sample = {"label": blocks(1, 3)[0], "atlas_label": blocks(0, 3)[0]}
    options = {"num_labels": 5, "union_prob": 0.5, "absent_prob": 0.2}
    with_masks = RandSelectLabelsd(**options).set_random_state(0)(sample)
    without = RandSelectLabelsd(masks=False, **options).set_random_state(0)(sample)
    assert torch.equal(without["selected_labels"], with_masks["selected_labels"])
    assert without["label"] is sample["label"]
    assert without["atlas_label"] is sample["atlas_label"]
    pickle.dumps(without)
