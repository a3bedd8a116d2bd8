"""What several atlases vote for at the scan's voxels, and its mean with a network's answer."""

from dataclasses import replace
from itertools import combinations, permutations, product

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ConcatItemsd
from nibabel.affines import from_matvec

from monai_lcs.atlas import Atlas, AtlasAligner
from monai_lcs.boxes import whole_box
from monai_lcs.grids import affine_of
from monai_lcs.inferers import LabelSweepInferer, ScanVotes, name_scan_grid
from monai_lcs.inferers.scan_votes import WEIGHT
from monai_lcs.labels import LabelTable
from monai_lcs.labels.votes import Ballot, group_votes
from monai_lcs.networks import LabelConditionedUNet
from monai_lcs.pipeline import Segmenter, Settings, voxel_votes
from monai_lcs.pipeline.preprocessing import Preprocessing, to_native
from monai_lcs.pipeline.voxel_votes import part_of, votes_in_part, votes_of_one

SHARED = Settings(align="affine", spacing=(2, 2, 2), channels=(4, 6), conditioning="shared")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return LabelConditionedUNet(3, channels=(4, 6), conditioning="shared", norm="instance", dropout=0.0).eval()


def volume():
    """Image, two atlas images, their label maps and that of their vote, ``(6, *spatial)``, voxels of 2 mm."""
    x = torch.rand(6, 12, 13, 14, generator=torch.Generator().manual_seed(0))
    x[3:] = 0
    x[3:, 2:9, 2:9, 3:6], x[3:, 2:9, 2:9, 6:11] = 7, 9
    return x


def ballot(shape, share=1.0):
    """Votes for 7 on the left and 9 on the right of a box."""
    votes = Ballot(shape)
    half = shape[0] // 2
    votes.add(7, torch.full((half, *shape[1:]), share), (slice(0, half), *whole_box(shape[1:])))
    votes.add(9, torch.full((shape[0] - half, *shape[1:]), share), (slice(half, None), *whole_box(shape[1:])))
    votes.add_background()
    return votes.channels()


def scan_grid(order=(0, 1, 2), signs=(1, 1, 1)):
    """A scan of 1 mm over the volume, its axes in some order and direction: its shape and affine."""
    shape = np.array([24, 26, 28])
    matrix = np.zeros((3, 3))
    for axis, (where, sign) in enumerate(zip(order, signs, strict=True)):
        matrix[where, axis] = sign
    first = [0 if sign > 0 else shape[where] - 1 for where, sign in sorted(zip(order, signs, strict=True))]
    return tuple(int(shape[where]) for where in order), from_matvec(matrix, np.array(first) - 0.5)


def test_the_mean_decides(network):
    """Of both by hand: the network's probabilities as they are told, the votes as they are counted."""
    shape, affine = scan_grid()
    scan = MetaTensor(torch.zeros(1, *shape), affine=torch.as_tensor(affine))
    start = (5, 4, 6)
    votes = MetaTensor(ballot((10, 11, 12), 0.9), affine=torch.as_tensor(affine @ from_matvec(np.eye(3), start)))
    inputs = MetaTensor(volume()[None], affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    told = {}
    # Each label, and the union of both as a third one, which tells the background
    probabilities = LabelSweepInferer({1: (7, 9), 7: (7,), 9: (9,)}, on_label=lambda _, i, p: told.update({i: p}))
    with pytest.warns(UserWarning, match="several of the requested labels"):
        probabilities(inputs, network)
    means = {}
    for label, ids in {7: (7,), 9: (9,), 1: (7, 9)}.items():
        p = to_native(MetaTensor(told[label], affine=inputs.affine), scan, "bilinear")[0].as_tensor()
        share = p.clone()
        share[5:15, 4:15, 6:18] = group_votes(votes.as_tensor(), ids)
        means[label] = (1 - WEIGHT) * p + WEIGHT * share
    best = torch.stack([1 - means[1], means[7], means[9]])
    expected = torch.tensor([0, 7, 9], dtype=torch.int32)[best.argmax(0)]
    found = LabelSweepInferer(upsample=None)(name_scan_grid(inputs.clone(), scan, votes), network)
    inner = (slice(1, -2),) * 3  # beyond the last voxel's middle the merger goes on with 0, `to_native` with the border
    close = best.topk(2, dim=0).values.diff(dim=0)[0].abs() < 1e-6
    assert ((found[0, 0] == expected) | close)[inner].all()
    without = LabelSweepInferer(upsample=None)(name_scan_grid(inputs.clone(), scan), network)
    assert (without != found).any()
    fine = LabelSweepInferer(upsample=2)(name_scan_grid(inputs.clone(), scan, votes), network)
    for result in (found, fine):
        assert not {"scan_votes", "scan_votes_start"} & result.meta.keys()


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_axes_of_the_scan_change_no_voxel(network, order):
    inputs = MetaTensor(volume()[None], affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    shape, affine = scan_grid()
    plain = torch.zeros(8, *shape)
    plain[:, 5:15, 4:15, 6:18] = ballot((10, 11, 12))
    results = []
    for signs in product((1, -1), repeat=3):
        shape, affine = scan_grid(order, signs)
        as_read = plain.permute(0, *(1 + i for i in order)).flip([1 + i for i, s in enumerate(signs) if s < 0])
        box = [(int(x.min()), int(x.max()) + 1) for x in torch.nonzero(as_read[3], as_tuple=True)]
        part = as_read[(slice(None), *(slice(*ends) for ends in box))]
        at = affine @ from_matvec(np.eye(3), [ends[0] for ends in box])
        scan = MetaTensor(torch.zeros(1, *shape), affine=torch.as_tensor(affine))
        named = name_scan_grid(inputs.clone(), scan, MetaTensor(part, affine=torch.as_tensor(at)))
        found = LabelSweepInferer(upsample=None)(named, network)[0, 0].as_tensor().numpy()
        results.append(nib.as_closest_canonical(nib.Nifti1Image(found, affine)).get_fdata())
    assert results[0].any()
    for other in results[1:]:
        assert np.array_equal(other, results[0])


def atlases(count):
    """Atlases of one head, whose labels differ at their border."""
    random = torch.Generator().manual_seed(1)
    grid = torch.stack(torch.meshgrid(*[torch.arange(48.0) - 24] * 3, indexing="ij"))
    head = (grid / torch.tensor([15.0, 18, 13])[:, None, None, None]).square().sum(0) < 1
    image = (head * (1 + 0.02 * grid.sum(0)) + 0.05 * torch.rand(48, 48, 48, generator=random))[None]
    found = []
    for i in range(count):
        labels = torch.zeros(1, 48, 48, 48, dtype=torch.int32)
        labels[0][head & (grid[0] < i - 1)], labels[0][head & (grid[0] >= i - 1)] = 7, 9
        noise = 0.6 * torch.rand(48, 48, 48, generator=random)
        found.append(Atlas(MetaTensor(image + noise), MetaTensor(labels), LabelTable.from_ids([7, 9])))
    return MetaTensor(image), found


@pytest.fixture(scope="module")
def aligned():
    image, found = atlases(3)
    preprocessing = Preprocessing(found[0], SHARED, found[1:])
    scan = preprocessing.prepare(image)
    return scan, preprocessing.align(scan)


def test_atlases_vote_at_the_voxels_of_the_scan(aligned):
    """In the box of the labels and 10 mm more; their shares add up; nobody votes beside the head."""
    scan, found = aligned
    votes = found.scan_votes
    start = np.linalg.solve(affine_of(scan.source), affine_of(votes))[:3, 3]
    assert np.allclose(start, start.round())
    assert np.all(start >= 0)
    assert np.all(start + votes.shape[1:] <= 48)
    assert min(votes.shape[1:]) < 48
    shares, ids = votes.as_tensor().chunk(2)
    share = {i: (shares * (ids == i)).sum(0) for i in (0, 7, 9)}
    assert torch.allclose(sum(share.values()), torch.ones(()), atol=1e-5)
    at = tuple(slice(int(i), int(i) + n) for i, n in zip(start, votes.shape[1:], strict=True))
    inside = scan.source.as_tensor()[0][at] > 0.5
    assert share[0][inside].mean() < 0.05
    assert share[0][~inside].mean() > 0.95
    assert ((share[7] > 0.01) & (share[7] < 0.99)).any()  # where the atlases differ
    assert all(atlas.in_part is None for atlas in found.each)


@pytest.mark.parametrize(
    ("settings", "count", "target"),
    [(SHARED, 1, None), (replace(SHARED, conditioning="multiscale"), 3, None), (SHARED, 3, "network")],
)
def test_no_votes_at_the_voxels(settings, count, target):
    """Of one atlas, for a network that sees what the votes make of several, and in training."""
    image, found = atlases(count)
    preprocessing = Preprocessing(found[0], settings, found[1:], target=target)
    assert preprocessing.align(preprocessing.prepare(image)).scan_votes is None


@pytest.mark.parametrize("upsample", [None, 2])
def test_segmenter_and_probabilities_agree(network, upsample):
    """The label with the largest probability that is told is the label that is written: with votes, and without."""
    image, found = atlases(3)
    segmenter = Segmenter(found[0], network, SHARED, further_atlases=found[1:], upsample=upsample)
    assert (segmenter.align(segmenter.prepare(image)).scan_votes is None) == (upsample is not None)
    told = {}
    result = segmenter.segment(
        image, segmenter.request(), "head", on_probability=lambda label, p: told.update({label: p[0].as_tensor()})
    )
    best = torch.where(told[7] >= told[9], 7, 9)
    written = result.label_map[0].as_tensor()
    assert (written == 7).any()
    assert (written == 9).any()
    clear = (told[7] - told[9]).abs() > (1e-5 if upsample is None else 0.1)  # nearest neighbor carries the label map
    assert torch.equal(best[(written != 0) & clear], written[(written != 0) & clear].long())


def test_votes_of_a_label_map_and_beyond_their_box():
    votes = ScanVotes(torch.tensor([[7, 7, 9]]), start=(-1,))
    p = torch.tensor([0.5, 0.0, 1.0])
    both = torch.tensor([0.5 * (1 - WEIGHT) + WEIGHT, WEIGHT, 1.0])
    torch.testing.assert_close(votes.averaged(p, (7, 9), (slice(0, 3),)), both)
    assert torch.equal(votes.averaged(p, (7,), (slice(8, 11),)), p)
    assert p.tolist() == [0.5, 0.0, 1.0]


def test_votes_that_do_not_fit_are_refused(network):
    scan = MetaTensor(torch.zeros(1, 9, 9, 9))
    coarse = MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    between = MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.as_tensor(from_matvec(np.eye(3), [0.5, 0, 0])))
    for votes in (coarse, between):
        with pytest.raises(ValueError, match="at the voxels of the scan"):
            ScanVotes.at(scan, votes)
    with pytest.raises(ValueError, match="8 channels and a label map has 1, got 2"):
        ScanVotes(torch.zeros(2, 4, 4, 4), (0, 0, 0))
    with pytest.raises(ValueError, match="got 1 and 2"):
        votes_in_part([MetaTensor(torch.zeros(1, 4, 4, 4))], MetaTensor(torch.ones(2, 4, 4, 4)))


@pytest.fixture(scope="module")
def multiscale():
    torch.manual_seed(0)
    return LabelConditionedUNet(3, channels=(4, 6), conditioning="multiscale", norm="instance", dropout=0.0).eval()


def test_the_mean_decides_where_labels_do_not_compete(multiscale):
    """By hand, as above; the background has what the best label and the votes for any label leave."""
    shape, affine = scan_grid()
    scan = MetaTensor(torch.zeros(1, *shape), affine=torch.as_tensor(affine))
    votes = MetaTensor(ballot((10, 11, 12), 0.6), affine=torch.as_tensor(affine @ from_matvec(np.eye(3), (5, 4, 6))))
    inputs = MetaTensor(volume()[None, [0, 1, 3]], affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    told = {}
    LabelSweepInferer([7, 9], on_label=lambda _, i, p: told.update({i: p[0]}))(inputs, multiscale)
    told[0] = torch.maximum(told[7], told[9])
    means = {}
    for label, ids in {7: (7,), 9: (9,), 0: (7, 9)}.items():
        p = to_native(MetaTensor(told[label][None], affine=inputs.affine), scan, "bilinear")[0].as_tensor()
        share = p.clone()
        share[5:15, 4:15, 6:18] = group_votes(votes.as_tensor(), ids)
        means[label] = 0.4 * p + 0.6 * share
    best = torch.stack([1 - means[0], means[7], means[9]])
    expected = torch.tensor([0, 7, 9], dtype=torch.int32)[best.argmax(0)]
    found = LabelSweepInferer(upsample=None)(name_scan_grid(inputs.clone(), scan, votes, 0.6), multiscale)
    inner = (slice(1, -2),) * 3
    close = best.topk(2, dim=0).values.diff(dim=0)[0].abs() < 1e-6
    assert ((found[0, 0] == expected) | close)[inner].all()
    assert len(found.unique()) == 3
    assert (found != LabelSweepInferer(upsample=None)(name_scan_grid(inputs.clone(), scan), multiscale)).any()


ONE = Settings(align="rigid", spacing=(2, 2, 2), channels=(4, 6), vote_weight=0.45)


@pytest.mark.filterwarnings("ignore:.*a skull seems")  # noise around a small head
def test_one_atlas_votes_with_its_partial_volumes():
    """Of an atlas of voxels twice as large as the scan's, parts of a label; of the scan itself, all or nothing."""
    _, (atlas, *_) = atlases(1)
    scan = atlas.image
    volumes = (MetaTensor(x.as_tensor()[:, ::2, ::2, ::2], affine=np.diag([2, 2, 2, 1])) for x in atlas_volumes(atlas))
    coarse = Atlas(*volumes, atlas.table)
    for one, off, in_part in ((atlas, 0.01, False), (coarse, 0.05, True)):
        preprocessing = Preprocessing(one, ONE)
        prepared = preprocessing.prepare(scan)
        votes = ScanVotes.at(scan, preprocessing.align(prepared).scan_votes)
        share = group_votes(votes.channels, [7])
        assert (share - (atlas.label_map.as_tensor()[0] == 7).float()[votes.box]).abs().mean() < off
        assert (((share > 0.2) & (share < 0.8)).float().mean() > 0.01) == in_part
    assert Preprocessing(atlas, replace(ONE, vote_weight=0.0)).align(prepared).scan_votes is None
    assert Preprocessing(atlas, ONE, target="network").align(prepared).scan_votes is None


def atlas_volumes(atlas):
    return atlas.image, atlas.label_map


@pytest.mark.parametrize("align", ["none", "rigid"])
def test_the_vote_of_one_atlas_from_nothing_to_all(multiscale, align):
    """Of nearly all weight it is the result, below half of it the network can say no; the bundle's way is the same."""
    image, (atlas, *_) = atlases(1)
    results, settings = {}, replace(ONE, align=align)
    for weight in (0.0, 0.2, 0.999):
        segmenter = Segmenter(atlas, multiscale, replace(settings, vote_weight=weight))
        results[weight] = segmenter(image).label_map.as_tensor()
        sample = Preprocessing(atlas, segmenter.settings)({"image": image})
        inputs = ConcatItemsd(["image", "atlas_image", "atlas_label"], "image")(sample)["image"][None]
        found = segmenter.settings.label_sweep(upsample=None)(inputs, multiscale)
        assert torch.equal(found.as_tensor()[0], results[weight])
    aligned = segmenter.align(segmenter.prepare(image))
    votes = ScanVotes.at(MetaTensor(torch.zeros(image.shape), affine=image.affine), aligned.scan_votes)
    clear = votes.channels[:4].max(0).values > 0.51
    assert torch.equal(results[0.999][0][votes.box][clear].float(), votes.channels[-1][clear].float())
    for one, other in combinations(results.values(), 2):
        assert (one != other).any()


def test_further_atlases_vote_as_before_and_none_that_is_left_out(network, multiscale):
    image, found = atlases(3)
    several = Preprocessing(found[0], replace(ONE, conditioning="multiscale"), found[1:])
    assert several.align(several.prepare(image)).scan_votes is None  # the network sees what they make of all
    each = Preprocessing(found[0], replace(SHARED, vote_weight=0.45), found[1:])
    assert each.align(each.prepare(image)).vote_weight == WEIGHT
    for weight in (0.0, 0.45):
        itself = Preprocessing(found[0], replace(SHARED, vote_weight=weight), [replace_image(found[1], image)])
        with_none_left = itself.align(itself.prepare(image))
        assert (with_none_left.scan_votes is None) == (weight == 0)
        assert with_none_left.vote_weight == weight


def replace_image(atlas, image):
    return Atlas(image, atlas.label_map, atlas.table)


def test_a_vote_that_upsample_rules_out_is_said(multiscale):
    _, (atlas, *_) = atlases(1)
    with pytest.warns(UserWarning, match="`vote_weight` is not used"):
        segmenter = Segmenter(atlas, multiscale, ONE, upsample=2)
    assert segmenter.align(segmenter.prepare(atlas.image)).scan_votes is None


def test_labels_too_small_for_the_network_are_said():
    labels = torch.zeros(1, 20, 20, 20, dtype=torch.int32)
    labels[:, 9, 9, 9] = 7
    image = MetaTensor(torch.rand(1, 20, 20, 20))
    atlas = Atlas(image, MetaTensor(labels), LabelTable.from_ids([7]))
    preprocessing = Preprocessing(atlas, replace(ONE, align="none", spacing=(4, 4, 4)))
    with pytest.raises(ValueError, match="No label of the atlas has a voxel on the network's grid"):
        preprocessing.align(preprocessing.prepare(image))


def test_probabilities_with_the_votes_of_one_atlas(multiscale):
    image, (atlas, *_) = atlases(1)
    told = {}
    segmenter = Segmenter(atlas, multiscale, ONE)
    result = segmenter.segment(
        image, segmenter.request(), "head", on_probability=lambda label, p: told.update({label: p[0].as_tensor()})
    )
    written = result.label_map[0].as_tensor()
    clear = (written != 0) & ((told[7] - told[9]).abs() > 1e-5)
    assert clear.any()
    assert torch.equal(torch.where(told[7] >= told[9], 7, 9)[clear], written[clear].long())


def test_slabs_change_no_vote(monkeypatch):
    random = torch.Generator().manual_seed(0)
    maps = [MetaTensor(torch.randint(0, 4, (1, 9, 8, 7), generator=random)) for _ in range(3)]
    weights = MetaTensor(torch.rand(3, 5, 5, 5, generator=random), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    whole = votes_in_part(maps, weights)
    monkeypatch.setattr(voxel_votes, "SLAB_VOXELS", 100)
    assert torch.equal(votes_in_part(maps, weights), whole)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_part_of_a_thick_scan_that_its_border_cuts(order):
    """Voxels of 1 x 1 x 4 mm, labels at the first slice: the part ends with the scan, and lies where it lay."""
    affine = np.diag([1.0, 1, 4, 1])[:, [*order, 3]]
    shape = tuple(int(i) for i in np.array([40, 50, 12])[list(order)])
    scan = MetaTensor(torch.arange(24000.0).view(1, *shape), affine=torch.as_tensor(affine))
    labels = torch.zeros(1, 20, 25, 24)
    labels[:, 8:12, 10:15, :3] = 7
    part = part_of(scan, MetaTensor(labels, affine=torch.diag(torch.tensor([2.0, 2, 2, 1]))))
    start = np.linalg.solve(affine, affine_of(part))[:3, 3].round().astype(int)
    cut = tuple(slice(i, i + n) for i, n in zip(start, part.shape[1:], strict=True))
    assert torch.equal(part.as_tensor()[0], scan.as_tensor()[0][cut])
    ends = affine @ np.array([[*start, 1], [*(start + part.shape[1:] - 1), 1]]).T
    assert ends[:3, 0].tolist() == [6, 10, 0]  # 10 mm before the first labels' middles, or the border
    assert ends[:3, 1].tolist() == [32, 38, 16]  # 10 mm after the last ones, the next slice


def test_ids_that_mean_other_structures_are_said():
    """An atlas with the two labels exchanged votes, with a warning; the others vote without one."""
    image, found = atlases(3)
    labels = found[2].label_map.as_tensor()
    exchanged = torch.where(labels == 7, 9, torch.where(labels == 9, 7, 0)).int()
    other = Atlas(found[2].image, MetaTensor(exchanged), LabelTable.from_ids([7, 9]))
    preprocessing = Preprocessing(found[0], SHARED, [found[1], other])
    with pytest.warns(UserWarning, match="seem to mean other structures") as said:
        preprocessing.align(preprocessing.prepare(image))
    assert len([each for each in said if "other structures" in str(each.message)]) == 1


@pytest.mark.parametrize(("ids", "dtype"), [((7, 9), torch.float16), ((7, 4099), torch.float32)])
def test_slabs_change_no_vote_of_one_atlas(monkeypatch, ids, dtype):
    """Nor do the bytes that are saved where a type of two holds the ids."""
    random = torch.Generator().manual_seed(0)
    soft = torch.rand(2, 9, 8, 7, generator=random) * 0.5
    boxes = {ids[0]: whole_box((9, 8, 7)), ids[1]: (slice(2, 9), slice(1, 5), slice(0, 7))}

    class Voter:
        def __init__(self):
            self.boxes = boxes

        def mask(self, label, box):
            return soft[ids.index(label)][box].clone()

    like = MetaTensor(torch.rand(1, 9, 8, 7, generator=random), affine=np.diag([2.0, 2, 2, 1]))
    monkeypatch.setattr(voxel_votes, "PartialVolumeVoter", lambda *_: Voter())
    alignment = AtlasAligner("none").align(like, like)
    whole = votes_of_one(alignment, like, like)
    assert (whole.dtype, whole.affine[0, 0]) == (dtype, 2.0)
    for label in ids:
        expected = torch.zeros(9, 8, 7)
        expected[boxes[label]] = soft[ids.index(label)][boxes[label]]
        torch.testing.assert_close(group_votes(whole.as_tensor(), [label]).float(), expected, atol=3e-4, rtol=0)
    monkeypatch.setattr(voxel_votes, "SLAB_VOXELS", 100)
    assert torch.equal(votes_of_one(alignment, like, like).as_tensor(), whole.as_tensor())
