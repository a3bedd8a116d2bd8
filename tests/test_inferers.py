"""The sweep over labels against the naive one, and its laws."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.utils import set_determinism
from scipy.ndimage import map_coordinates

from monai_lcs.boxes import grow_box, label_boxes, mask_box
from monai_lcs.inferers import LabelBoxInferer, LabelSweepInferer
from monai_lcs.networks import LabelConditionedUNet

SHAPE = (21, 18, 20)
IDS = (3, 17, 53, 300, 301)


@pytest.fixture(scope="module")
def network():
    """Answers that differ from label to label, around one half; in double, so that rounding decides no argmax."""
    set_determinism(1)
    net = LabelConditionedUNet(3, channels=(4, 6, 8), conditioning="multiscale").eval()
    with torch.no_grad():
        net.head.weight *= 6
        net.head.bias += 0.3
    set_determinism(None)
    return net.double()


@pytest.fixture(scope="module")
def inputs():
    """Image, atlas image and blocks of labels, two volumes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 2, *SHAPE, generator=generator)
    labels = torch.zeros(2, 1, *SHAPE)
    starts = [(0, 1, 2), (8, 2, 11), (3, 9, 1), (12, 8, 10), (1, 2, 9)]
    for item in range(2):
        for i, label in enumerate(IDS):
            start = starts[(i + item) % len(IDS)]
            labels[(item, 0, *(slice(s, s + 4 + i) for s in start))] = label
    return torch.cat([images, labels], 1).double()


def naive(inputs, network, groups, **kwargs):
    """The whole network once per label, all probabilities kept, argmax in numpy."""
    window = SlidingWindowInferer(sw_batch_size=2, **kwargs)
    probabilities = []
    for ids in groups.values():
        mask = torch.isin(inputs[:, -1:], torch.tensor(ids, dtype=inputs.dtype)).to(inputs)
        with torch.no_grad():
            probabilities.append(torch.sigmoid(window(torch.cat([inputs[:, :-1], mask], 1), network)).numpy())
    p = np.concatenate(probabilities, 1)
    return np.where(p.max(1) > 0.5, np.array(list(groups))[p.argmax(1)], 0)[:, None], p


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize(("roi_size", "overlap"), [((16, 16, 16), 0.5), ((16, 12, 24), (0.25, 0.5, 0)), (None, 0.25)])
def test_equals_naive_sweep(network, inputs, mode, roi_size, overlap):
    groups = {i: (i,) for i in IDS}
    kwargs = {"roi_size": roi_size or SHAPE, "overlap": overlap, "mode": mode}
    expected, p = naive(inputs, network, groups, **kwargs)
    assert len(np.unique(expected)) > 3
    kwargs["roi_size"] = roi_size
    for labels_per_pass in (1, 2, 8):
        result = LabelSweepInferer(labels_per_pass=labels_per_pass, **kwargs)(inputs, network)
        assert result.dtype == torch.int32
        assert np.array_equal(result.numpy(), expected)

    masks = LabelSweepInferer(labels=IDS, output="masks", **kwargs)(inputs, network)
    assert np.array_equal(masks.numpy(), p > 0.5)


def test_plain_network_gives_the_same_answer(network, inputs):
    kwargs = {"roi_size": (16, 16, 16), "mode": "gaussian", "labels_per_pass": 2}
    expected = LabelSweepInferer(**kwargs)(inputs, network)
    assert torch.equal(LabelSweepInferer(**kwargs)(inputs, lambda x: network(x)), expected)
    wrapped = torch.nn.Module()
    wrapped.module = network
    wrapped.forward = lambda x: pytest.fail("the wrapped network has encode and decode")
    assert torch.equal(LabelSweepInferer(**kwargs)(inputs, wrapped), expected)


def test_order_of_labels_does_not_matter(network, inputs):
    kwargs = {"roi_size": (16, 16, 16), "labels_per_pass": 2}
    forward = LabelSweepInferer(labels=list(IDS), **kwargs)(inputs, network)
    assert torch.equal(LabelSweepInferer(labels=list(reversed(IDS)), **kwargs)(inputs, network), forward)


@pytest.mark.parametrize("labels", [(9, 2, 5), (5, 9, 2)])
def test_smallest_id_wins_a_tie(labels):
    inputs = torch.zeros(1, 3, 4, 4)
    inputs[0, 2, 0, :3] = torch.tensor([2.0, 5.0, 9.0])
    result = LabelSweepInferer(labels=labels)(inputs, lambda x: torch.ones(len(x), 1, 4, 4))
    assert (result == 2).all()


def test_union_is_the_union_of_masks(network, inputs):
    union = LabelSweepInferer(labels={7: (17, 53)}, roi_size=(16, 16, 16))(inputs, network)
    merged = inputs.clone()
    merged[:, -1][(merged[:, -1] == 17) | (merged[:, -1] == 53)] = 7
    assert torch.equal(LabelSweepInferer(labels=[7], roi_size=(16, 16, 16))(merged, network), union)
    assert torch.equal(LabelSweepInferer([(53, 17)], (16, 16, 16))(inputs, network) == 17, union == 7)


def test_windows_are_encoded_once(network, inputs):
    class Counting:
        stride = network.stride
        encoded = 0

        def encode(self, *args):
            Counting.encoded += 1
            return network.encode(*args)

        decode = staticmethod(network.decode)

    LabelSweepInferer(roi_size=(16, 16, 16), overlap=0, labels_per_pass=2)(inputs[:1], Counting())
    assert Counting.encoded == 2 * 2 * 2


def test_callback_gets_each_label_once(network, inputs):
    got = {}
    LabelSweepInferer(roi_size=(16, 16, 16), on_label=lambda item, label, p: got.setdefault((item, label), p))(
        inputs, network
    )
    _, p = naive(inputs, network, {i: (i,) for i in IDS}, roi_size=(16, 16, 16), overlap=0.25)
    assert set(got) == {(item, label) for item in range(2) for label in IDS}
    for (item, label), probability in got.items():
        assert probability.shape == (1, *SHAPE)
        assert np.allclose(probability.numpy(), p[item, [IDS.index(label)]], atol=1e-6)


@pytest.mark.parametrize("roi_size", [None, (64, 64)])
def test_margin_restricts_to_the_box(roi_size):
    """In one window, away from the border of the crop: as everywhere. Outside the box: nothing."""
    net = LabelConditionedUNet(2, channels=(4, 6, 8)).eval().double()
    inputs = torch.rand(1, 3, 150, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs[:, 2] = 0
    inputs[:, 2, 50:90, 40:60] = 17
    image = MetaTensor(inputs, affine=torch.diag(torch.tensor([1.0, 2.0, 1.0, 1.0])))
    got, everywhere = {}, {}
    for margin, found in ((30, got), (None, everywhere)):
        LabelSweepInferer(
            margin_mm=margin, roi_size=roi_size, on_label=lambda _, label, p, found=found: found.setdefault(label, p)
        )(image, net)
    probability = got[17][0]
    box = (slice(20, 120), slice(25, 75))  # 30 mm are 30 and 15 voxels
    outside = torch.ones(150, 96, dtype=torch.bool)
    outside[box] = False
    assert (probability[outside] == 0).all()
    assert (probability[box] > 0).all()
    if roi_size is None:
        inner = (slice(40, 112), slice(44, 68))  # 20 voxels inside of the crop, 20:132 and 24:88
        assert torch.allclose(probability[inner], everywhere[17][0][inner], atol=1e-9)


def test_trained_boxes_are_the_sweeps_boxes(inputs):
    """With a norm that looks at the crop, one window: the sweep sees what training saw."""
    set_determinism(0)
    net = LabelConditionedUNet(3, channels=(4, 6, 8), conditioning="multiscale", norm="instance").eval().double()
    set_determinism(None)
    got = {}
    LabelSweepInferer(margin_mm=3, on_label=lambda item, label, p: got.setdefault((item, label), p))(inputs, net)
    masks = torch.cat([(inputs[:, -1:] == i).double() for i in IDS], 1)
    with torch.no_grad():
        logits = LabelBoxInferer(margin_mm=3)(torch.cat([inputs[:, :2], masks], 1), net)
    assert set(got) == {(item, label) for item in range(2) for label in IDS}
    for (item, label), probability in got.items():
        expected = torch.sigmoid(logits[item, [IDS.index(label)]])
        assert torch.allclose(probability, expected, atol=1e-6)


def test_box_inferer_without_margin_is_the_network(network):
    x = torch.rand(1, 4, 8, 8, 8).double()
    with torch.no_grad():
        assert torch.equal(LabelBoxInferer()(x, network), network(x))
    assert LabelBoxInferer(margin_mm=1).boxes(torch.zeros(1, 3, 4, 4)) == [[None]]


def test_metadata_is_kept(network, inputs):
    affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))
    image = MetaTensor(inputs[0], affine=affine, meta={"filename_or_obj": "a.nii.gz"})
    result = LabelSweepInferer(labels=[3])(torch.stack([image]), network)
    assert torch.equal(torch.as_tensor(result.affine).reshape(-1, 4, 4)[0], affine.double())


@pytest.mark.parametrize("margin_mm", [None, 4])
def test_upsampled_labels_lie_where_they_were(network, inputs, margin_mm):
    """In mm, the same logits interpolated with scipy, thresholded, one label at a time."""
    affine = torch.tensor([[0, 0, 3.0, 10], [-2, 0, 0, 20], [0, 1, 0, 30], [0, 0, 0, 1]])
    image = MetaTensor(inputs[:1], affine=affine)
    coarse, fine = {}, {}
    for factor, got in ((1, coarse), (3, fine)):
        LabelSweepInferer(
            margin_mm=margin_mm, upsample=factor, on_label=lambda _, label, p, got=got: got.setdefault(label, p)
        )(image, network)
    result = LabelSweepInferer(margin_mm=margin_mm, upsample=3)(image, network)
    assert result.shape == (1, 1, *(3 * size - 2 for size in SHAPE))
    to_coarse = np.linalg.inv(affine.numpy()) @ result.affine.numpy().reshape(-1, 4, 4)[0]
    voxels = np.indices(result.shape[2:]).reshape(3, -1)
    where = to_coarse[:3, :3] @ voxels + to_coarse[:3, 3:]
    assert set(fine) == set(IDS)
    for label, p in fine.items():
        p = p.numpy().ravel()
        inside = p > 0  # of the box, whose border interpolation does not cross
        logits = np.log(np.maximum(coarse[label][0].numpy(), 1e-300)) - np.log1p(-coarse[label][0].numpy())
        box = mask_box(coarse[label][0] > 0)
        local = where - np.array([[axis.start] for axis in box])
        expected = map_coordinates(logits[box], local, order=1, mode="nearest")
        assert np.allclose(p[inside], 1 / (1 + np.exp(-expected[inside])), atol=1e-6)


def test_absent_label_is_said(network, inputs):
    with pytest.warns(UserWarning, match=r"no voxel of \[99\]"):
        result = LabelSweepInferer(labels=[3, 99], output="masks")(inputs[:1], network)
    assert result.shape == (1, 2, *SHAPE)
    assert not result[:, 1].any()


def test_two_dimensions():
    net = LabelConditionedUNet(2, channels=(4, 6)).eval()
    inputs = torch.rand(1, 3, 20, 21)
    inputs[:, 2] = 0
    inputs[:, 2, 3:9, 4:8] = 2
    expected, _ = naive(inputs, net, {2: (2,)}, roi_size=(8, 8), overlap=0.25)
    assert np.array_equal(LabelSweepInferer(roi_size=8)(inputs, net).numpy(), expected)


def test_boxes_by_hand():
    mask = torch.zeros(6, 7)
    mask[2, 3] = mask[4, 5] = 1
    assert mask_box(mask) == (slice(2, 5), slice(3, 6))
    assert mask_box(torch.zeros(3, 3)) is None
    assert mask_box(torch.tensor([0, 1, 1, 0])) == (slice(1, 3),)
    assert grow_box(mask_box(mask), (1, 9), mask.shape) == (slice(1, 6), slice(0, 7))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"threshold": 1.0}, r"`threshold` must be in \[0, 1\), got 1.0"),
        ({"margin_mm": -1}, "`margin_mm` must be >= 0 or None, got -1"),
        ({"upsample": 1.5}, "`upsample` must be a whole number > 0, got 1.5"),
        ({"labels_per_pass": 0}, "`labels_per_pass` must be > 0, got 0"),
        ({"overlap": 1.0}, r"`overlap` must be in \[0, 1\), got 1.0"),
        ({"mode": "gauss"}, "gauss"),
        ({"output": "mask"}, "masks"),
        ({"labels": [17, (17, 53)]}, "same id for two groups"),
        ({"labels": [0]}, "0"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LabelSweepInferer(**kwargs)


def test_bad_input(network):
    inferer = LabelSweepInferer()
    inputs = torch.zeros(1, 3, 8, 8, 8).double()
    with pytest.raises(ValueError, match=r"got shape \(1, 3, 8\)"):
        inferer(inputs[..., 0, 0], network)
    inputs[0, 2, 0, 0, 0] = 0.5
    with pytest.raises(ValueError, match=r"integers >= 0, got 0\.5"):
        inferer(inputs, network)
    inputs[0, 2, 0, 0, 0] = 257
    with pytest.raises(ValueError, match="does not hold label ids above 256 exactly"):
        inferer(inputs.bfloat16() + 2, network)
    inputs[0, 2, 0, 0, 0] = 2**24 + 2
    with pytest.raises(ValueError, match="does not hold label ids above 16777216 exactly"):
        inferer(inputs.float(), network)
    with pytest.raises(ValueError, match="conditioning=None answers for no label"):
        inferer(inputs, LabelConditionedUNet(3, channels=(2, 3), conditioning=None, out_channels=4))


def test_saturated_probabilities_still_differ():
    """The sigmoid of 18 and of 25 is 1 in float32; the better label wins all the same."""
    inputs = torch.zeros(1, 3, 4, 4)
    inputs[0, 2, 0, :2] = torch.tensor([2.0, 5.0])
    logits = lambda x: 18 + 7 * x[:, 2:3, 0:1, 1:2].expand(len(x), 1, 4, 4)  # noqa: E731
    assert (LabelSweepInferer()(inputs, logits) == 5).all()


def test_huge_ids():
    assert label_boxes(torch.tensor([[0, 60_000_000], [7, 0]])) == {
        7: (slice(1, 2), slice(0, 1)),
        60_000_000: (slice(0, 1), slice(1, 2)),
    }
