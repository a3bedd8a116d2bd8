"""Soft votes: counted by hand and by numpy; what the network is shown of them."""

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from scipy import ndimage

import monai_lcs as lcs
from monai_lcs.atlas.alignment import Alignment
from monai_lcs.atlas.voters import LabelMapVoter, PartialVolumeVoter, count_votes
from monai_lcs.boxes import whole_box
from monai_lcs.inferers import LabelBoxInferer, LabelSweepInferer
from monai_lcs.labels import Label, LabelTable
from monai_lcs.labels.votes import CANDIDATES, VOTE_CHANNELS, Ballot, group_votes, vote_boxes
from monai_lcs.networks import LabelConditionedUNet
from monai_lcs.pipeline import AtlasPool, Preprocessing, Settings
from monai_lcs.transforms import RandDrawAtlasd, RandSelectLabelsd

IDS = [2, 3, 5, 300, 301, 900]


def random_shares(shape, seed=0):
    """Shares of the labels and, first, of the background; they add up to 1, and no two are the same."""
    shares = np.random.default_rng(seed).exponential(size=(len(IDS) + 1, *shape))
    return torch.from_numpy(shares / shares.sum(0)).float()


def ballot_of(shares):
    ballot = Ballot(shares.shape[1:])
    for label, votes in zip(IDS, shares[1:], strict=True):
        ballot.add(label, votes, whole_box(votes.shape))
    ballot.add_background()
    return ballot


def test_a_ballot_keeps_the_largest_shares():
    shares = random_shares((4, 5, 3))
    ballot = ballot_of(shares)
    order = np.argsort(-shares.numpy(), axis=0)[:CANDIDATES]
    assert np.array_equal(ballot.ids.numpy(), np.array([0, *IDS])[order])
    assert np.allclose(ballot.shares, np.take_along_axis(shares.numpy(), order, 0), atol=1e-6)
    votes = ballot.channels()
    assert votes.shape == (VOTE_CHANNELS, 4, 5, 3)
    assert torch.equal(votes[-1], ballot.ids[0].float())
    for group in ([2], [300], [3, 900]):
        kept = np.isin(np.array([0, *IDS])[order], group)
        expected = (np.take_along_axis(shares.numpy(), order, 0) * kept).sum(0)
        assert np.allclose(group_votes(votes, group), expected, atol=1e-6)


def test_ties_of_a_ballot():
    ballot = Ballot((3,))
    for label, votes in ((4, [0.5, 0.25, 0.4]), (7, [0.5, 0.25, 0.4])):
        ballot.add(label, torch.tensor(votes), (slice(0, 3),))
    ballot.add_background()
    assert ballot.ids[:3].T.tolist() == [[4, 7, 0], [0, 4, 7], [4, 7, 0]]  # the smallest id, the background first
    empty = Ballot((2,))
    empty.add_background()
    assert empty.ids.tolist() == [[0, 0]] * CANDIDATES
    assert empty.shares[0].tolist() == [1, 1]


def test_weighted_votes_of_atlases_are_those_of_numpy():
    generator = np.random.default_rng(1)
    maps = generator.choice([0, 3, 300, 301], size=(5, 6, 7, 4))
    weights = generator.random((5, 6, 7, 4)).astype(np.float32)
    ballot = count_votes([LabelMapVoter(torch.from_numpy(x)[None]) for x in maps], (6, 7, 4), torch.from_numpy(weights))
    for label in (0, 3, 300, 301):
        expected = (weights * (maps == label)).sum(0) / weights.sum(0)
        if label:
            assert np.allclose(group_votes(ballot.channels(), [label]), expected, atol=1e-6)
        else:
            assert np.allclose((ballot.shares * (ballot.ids == 0)).sum(0), expected, atol=1e-5)


def test_vote_boxes_hold_all_votes():
    votes = ballot_of(random_shares((5, 4))).channels()
    votes[CANDIDATES:, :2] = 0
    assert {label: [axis.start for axis in box] for label, box in vote_boxes(votes).items()}.keys() <= set(IDS)
    for label, box in vote_boxes(votes).items():
        outside = group_votes(votes, [label])
        outside[box] = 0
        assert not outside.any()


def test_partial_volumes_are_a_linear_interpolation():
    """A shift by 0.25, 0.5 and 0 voxels, as scipy interpolates the masks."""
    label_map = torch.from_numpy(np.random.default_rng(2).choice([0, 4, 9], size=(1, 8, 9, 7))).int()
    image = MetaTensor(torch.rand(1, 8, 9, 7), affine=torch.eye(4))
    # SimpleITK's world is LPS: the first two axes are the other way round
    alignment = Alignment(image, sitk.TranslationTransform(3, (-0.25, -0.5, 0.0)), "affine", 0.0, 1.0, 0.0)
    labels = MetaTensor(label_map, affine=torch.eye(4))
    voter = PartialVolumeVoter(alignment, labels, alignment.propagate(labels))
    assert set(voter.boxes) == {4, 9}
    for label in (4, 9):
        box = (slice(1, 6), slice(0, 8), slice(2, 7))
        mask = np.pad((label_map[0].numpy() == label).astype(float), 1, mode="edge")
        moved = ndimage.shift(mask, (-0.25, -0.5, 0), order=1)[1:-1, 1:-1, 1:-1]
        assert np.allclose(voter.mask(label, box), moved[box], atol=1e-6)
        assert np.allclose(voter.mask(label, voter.boxes[label])[0, 0, 0], moved[voter.boxes[label]][0, 0, 0])


# ---- what the network sees ------------------------------------------------------------------------------------------


def volume_with(votes):
    """Image, atlas image, votes."""
    images = torch.rand(2, *votes.shape[1:], generator=torch.Generator().manual_seed(3))
    return torch.cat([images, votes])[None]


def hard_votes(label_map):
    """The votes of one label map."""
    return count_votes([LabelMapVoter(label_map)], label_map.shape[1:]).channels()


@pytest.mark.parametrize("conditioning", ["multiscale", "shared"])
@pytest.mark.parametrize("options", [{}, {"roi_size": (16, 16), "margin_mm": 3}], ids=["whole", "windows"])
def test_hard_votes_give_the_answer_of_the_label_map(conditioning, options):
    torch.manual_seed(0)
    net = LabelConditionedUNet(2, channels=(4, 8), conditioning=conditioning, prior_logit=2.0).eval()
    label_map = torch.zeros(1, 24, 20)
    label_map[:, 4:12, 3:9], label_map[:, 12:20, 3:9], label_map[:, 6:16, 10:17] = 17, 53, 300
    soft = volume_with(hard_votes(label_map))
    hard = torch.cat([soft[:, :2], label_map[None]], dim=1)
    expected = LabelSweepInferer(**options)(hard, net)
    assert expected.unique().numel() > 2
    assert torch.equal(LabelSweepInferer(votes=True, **options)(soft, net), expected)


def test_the_network_sees_the_share_of_the_votes():
    votes = ballot_of(random_shares((6, 5))).channels()
    seen = []

    def network(x):
        seen.append(x[:, -1])
        return torch.logit(x[:, -1:])

    found = LabelSweepInferer([2, (3, 5)], votes=True, output="masks")(volume_with(votes), network)
    for mask, answer, group in zip(torch.cat(seen), found[0], ([2], [3, 5]), strict=True):
        assert torch.equal(mask, group_votes(votes, group))
        assert torch.equal(answer.bool(), group_votes(votes, group) > 0.5)


def test_training_sees_the_share_of_the_votes_in_the_box_of_the_winners():
    votes = ballot_of(random_shares((6, 7))).channels()
    votes[CANDIDATES:][votes[CANDIDATES:] == 900] = 0  # a label without votes

    def network(x, boxes, halo, masks):
        assert x.shape == (1, 2, 6, 7)
        volume = [torch.zeros(6, 7) for _ in masks[0]]
        for filled, mask in zip(volume, masks[0], strict=True):
            filled[mask.box] = mask.values
        return [[None if box is None else filled[box] for filled, box in zip(volume, boxes[0], strict=True)]]

    groups = torch.tensor([[[2, 0], [3, 300], [900, 0]]])
    pred = LabelBoxInferer(margin_mm=0, votes=True)(volume_with(votes), network, groups=groups)
    for one, group in zip(pred[:2], ([2], [3, 300]), strict=True):
        where = torch.isin(votes[-1], torch.tensor(group, dtype=torch.float32)).nonzero()
        box = tuple(slice(int(a), int(b) + 1) for a, b in zip(where.amin(0), where.amax(0), strict=True))
        assert one.box == box
        assert torch.equal(one.logits, group_votes(votes, group)[box])
    assert pred[2].box is None
    for inferer, more in ((LabelBoxInferer(votes=True), {"groups": groups}), (LabelSweepInferer(votes=True), {})):
        with pytest.raises(ValueError, match="8 channels of votes"):
            inferer(volume_with(votes[-1:]), network, **more)


def test_the_prior_is_the_clipped_logit_of_the_votes():
    net = LabelConditionedUNet(2, channels=(4, 8), conditioning="multiscale", prior_logit=2.0).eval()
    torch.nn.init.zeros_(net.head.weight)
    torch.nn.init.constant_(net.head.bias, 0.25)
    mask = torch.tensor([[0.0, 1.0, 0.5, 0.75], [0.99, 0.01, 1.0, 0.0]])
    x = torch.cat([torch.rand(2, 2, 4), mask[None]])[None]
    expected = np.log(np.array([[np.exp(-2), np.exp(2), 1.0, 3.0], [np.exp(2), np.exp(-2), np.exp(2), np.exp(-2)]]))
    assert np.allclose(net(x)[0, 0].detach(), expected + 0.25, atol=1e-6)


# ---- from end to end ------------------------------------------------------------------------------------------------

TABLE = LabelTable([Label(4, "ventricle"), Label(17, "hippocampus")])
AFFINE = torch.diag(torch.tensor([1.0, 1, 1, 1]))


def make_atlas(seed):
    """Two cubes of voxels of 1 mm in a bright head, and noise: without it all would be copies of one scan."""
    labels = torch.zeros(1, 33, 28, 30, dtype=torch.int32)
    labels[:, 5:14, 7:20, 8:21], labels[:, 18:29, 7:20, 8:21] = 4, 17
    noise = 40 * torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed))
    image = 100 + 40.0 * (labels == 4) + 80.0 * (labels == 17) + noise
    return lcs.Atlas(MetaTensor(image, affine=AFFINE), MetaTensor(labels, affine=AFFINE), TABLE)


SOFT = Settings(align="rigid", spacing=(1.5, 1.5, 1.5), channels=(4, 8), soft_masks=True)


def test_soft_masks_of_one_atlas_and_of_several():
    scan, first, second = (make_atlas(seed) for seed in range(3))
    for further in ((), (second,)):
        preprocessing = Preprocessing(first, SOFT, further)
        prepared = preprocessing.prepare(scan.image)
        aligned = preprocessing.align(prepared)
        votes = preprocessing.network_input(prepared, aligned)["atlas_label"]
        assert votes.shape[0] == VOTE_CHANNELS
        assert np.allclose(votes[:CANDIDATES].sum(0), 1, atol=1e-5)
        share = group_votes(aligned.votes.as_tensor(), [4])
        # Partial volumes keep the volume of the label, to the sum of the shares
        assert float(share.sum()) * 1.5**3 == pytest.approx(9 * 13 * 13, rel=0.05)
        assert ((share > 0.1) & (share < 0.9)).any()
        assert torch.equal(aligned.label_map[0].float().as_tensor(), aligned.votes[-1].as_tensor())
        assert (aligned.agreement is None) == (not further)
    hard = Preprocessing(first, replace(SOFT, soft_masks=False)).align(prepared)
    assert hard.votes is None


def test_a_random_atlas_has_soft_masks():
    scan, first, second = (make_atlas(seed) for seed in range(3))
    pool = AtlasPool(Preprocessing(first, replace(SOFT, soft_masks=True), target="network"), [scan, second])
    case = pool.finish(pool.load({"image": scan.image, "label": scan.label_map}))
    (drawn,) = case["atlases"]  # the scan itself is none
    votes = RandDrawAtlasd()({"atlases": [drawn]})["atlas_label"]
    assert votes.shape == (VOTE_CHANNELS, *case["image"].shape[1:])
    assert drawn["atlas_label"].dtype == torch.float16
    assert np.allclose(votes[:CANDIDATES].sum(0), 1, atol=2e-3)
    selected = RandSelectLabelsd(num_labels=2, masks=False)({**case, "atlas_label": votes})["selected_labels"]
    assert sorted(selected.flatten().tolist()) == [4, 17]


@pytest.mark.filterwarnings("ignore:parsing config_file")
def test_weights_say_whether_they_were_trained_on_soft_masks(tmp_path):
    atlas, scan = make_atlas(0), make_atlas(1)
    case = {"image": scan.image, "label": scan.label_map}
    settings = replace(SOFT, align="none")
    fast = {"epochs": 1, "labels_per_image": 2, "device": "cpu", "num_workers": 0, "cases": ([case], [case])}
    weights = lcs.train(None, atlas, tmp_path, settings=settings, **fast)
    assert Settings.of_weights(weights).soft_masks
    result = lcs.Segmenter.load(weights, atlas, upsample=1)(scan.image)
    assert set(result.label_map.unique().tolist()) == {0, 4, 17}
    hard = {"settings": replace(settings, soft_masks=False), "pretrained": str(weights)}
    with pytest.raises(ValueError, match="was trained with `soft_masks` True, got False: give True"):
        lcs.train(None, atlas, tmp_path / "other", **hard, **fast)


@pytest.mark.parametrize("atlases", [3, 9])
def test_atlases_that_agree_have_all_votes_and_no_more(atlases):
    """Rounded weights add up to a little more than 1, whose logit is no number."""
    ids = torch.full((1, 24, 24, 24), 5)
    weights = torch.rand(atlases, 24, 24, 24)
    ballot = count_votes([LabelMapVoter(ids)] * atlases, ids.shape[1:], weights)
    assert ballot.shares.max() == 1
    assert group_votes(ballot.channels(), [5]).max() == 1


def test_a_share_beyond_1_is_no_hole():
    network = LabelConditionedUNet(channels=(4, 8), conditioning="multiscale", norm="instance", prior_logit=2.0).eval()
    mask = torch.zeros(1, 1, 8, 8, 8)
    mask[..., 2:6, 2:6, 2:6] = 1 + 2**-20
    features = network.encode(*torch.rand(2, 1, 1, 8, 8, 8))
    assert network.decode(features, mask).isfinite().all()
