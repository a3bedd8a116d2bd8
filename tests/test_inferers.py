"""The sweep over labels against the naive one, and its laws."""

import copy
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.utils import set_determinism
from scipy.ndimage import map_coordinates

from monai_lcs.boxes import intersect, mask_box, shift
from monai_lcs.grids import affine_of
from monai_lcs.inferers import LabelBoxInferer, LabelSweepInferer, label_sweep, name_scan_grid
from monai_lcs.inferers.accumulator import NOWHERE, LogitAccumulator
from monai_lcs.inferers.adapters import EncodeOnceAdapter, PlainAdapter, adapt, unwrapped
from monai_lcs.inferers.margin import label_parts
from monai_lcs.inferers.merger import BestLabelMerger
from monai_lcs.inferers.splitter import WindowSplitter, touching, window_order
from monai_lcs.inferers.sweep import VolumeSweep
from monai_lcs.networks import Features, LabelConditionedNetwork, LabelConditionedUNet
from monai_lcs.networks.crops import Mask

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
    wrapped = torch.nn.Module()  # as DistributedDataParallel
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
        stride, depends_on_box, stitches = network.stride, False, False
        encoded = 0

        def encode(self, *args):
            Counting.encoded += 1
            return network.encode(*args)

        decode_boxes = staticmethod(network.decode_boxes)

    assert isinstance(Counting(), LabelConditionedNetwork)
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


def probabilities(inputs, network, **kwargs):
    """Every label's probability and the label map."""
    got = {}
    inferer = LabelSweepInferer(on_label=lambda item, label, p: got.setdefault((item, label), p[0]), **kwargs)
    return got, inferer(inputs, network)


def boxes_of(inputs, item, label, margin, mm):
    """The box of a label grown by a margin, by hand."""
    where = np.argwhere(inputs[item, -1].numpy() == label)
    voxels = [int(np.ceil(margin / size)) for size in mm]
    low = [max(a - m, 0) for a, m in zip(where.min(0), voxels, strict=True)]
    high = [min(b + m + 1, n) for b, m, n in zip(where.max(0), voxels, inputs.shape[2:], strict=True)]
    return tuple(slice(a, b) for a, b in zip(low, high, strict=True))


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize(("roi_size", "overlap"), [((16, 16, 16), 0.5), ((16, 12, 24), (0.25, 0.5, 0)), (None, 0.25)])
@pytest.mark.parametrize("conditioning", ["bottleneck", "multiscale", "shared"])
def test_exact_boxes_equal_the_unrestricted_sweep(inputs, conditioning, roi_size, overlap, mode):
    """Two volumes, anisotropic voxels, labels at the border (label 53 touches it in the first)."""
    set_determinism(1)
    net = LabelConditionedUNet(3, channels=(4, 6, 8), conditioning=conditioning, prior_logit=0.2).eval().double()
    set_determinism(None)
    mm = (1.0, 2.0, 0.5)
    image = MetaTensor(inputs, affine=torch.diag(torch.tensor([*mm, 1.0])))
    kwargs = {"roi_size": roi_size, "overlap": overlap, "mode": mode}
    everywhere, _ = probabilities(image, net, **kwargs)
    boxed, label_map = probabilities(image, net, margin_mm=2, **kwargs)
    assert set(boxed) == set(everywhere) == {(item, label) for item in range(2) for label in IDS}
    best, winner = np.full(inputs[:, :1].shape, 0.5), np.zeros(inputs[:, :1].shape, dtype=np.int32)
    for item, label in sorted(boxed):
        box = boxes_of(inputs, item, label, 2, mm)
        expected = torch.zeros_like(boxed[item, label])
        expected[box] = everywhere[item, label][box]
        assert torch.allclose(boxed[item, label], expected, atol=1e-6)
        better = boxed[item, label].numpy() > best[item, 0]
        best[item, 0][better], winner[item, 0][better] = boxed[item, label].numpy()[better], label
    if conditioning != "shared":  # its background competes, see below
        assert np.array_equal(label_map.numpy(), winner)


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_shared_features_are_blended_as_monai_does(inputs, mode):
    """MONAI's sliding window over the label-free part, then every label on the whole volume."""
    set_determinism(1)
    net = LabelConditionedUNet(3, channels=(4, 6, 8), conditioning="shared", norm="instance").eval()
    set_determinism(None)
    volume = inputs[:1].float()
    window = SlidingWindowInferer((16, 12, 16), overlap=0.25, mode=mode)
    padded = torch.nn.functional.pad(volume, (0, 0, 0, 2, 0, 3), mode="replicate")  # to multiples of 4
    with torch.no_grad():
        shared = window(volume[:, :2], lambda x: net.encode(x[:, :1], x[:, 1:]).levels[0])
        shared = torch.nn.functional.pad(shared, (0, 0, 0, 2, 0, 3))
        features = Features((shared,), SHAPE)
        masks = torch.cat([(volume[:, 2:] == i).float() for i in IDS], 1)
        expected = torch.sigmoid(net.decode(features, masks))[0]
    assert padded.shape[2:] == shared.shape[2:]
    got, _ = probabilities(volume, net, roi_size=(16, 12, 16), mode=mode)
    for label, p in zip(IDS, expected, strict=True):
        assert torch.allclose(got[0, label], p, atol=2e-3)  # half precision
        assert p.std() > 0


def test_union_of_distant_parts_is_decoded_in_parts():
    net = LabelConditionedUNet(2, channels=(4, 6)).eval().double()
    inputs = torch.rand(1, 3, 200, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs[:, 2] = 0
    inputs[:, 2, 4:12, 4:12], inputs[:, 2, 180:190, 8:16] = 2, 3
    decoded = []
    original = net.decode_boxes
    net.decode_boxes = lambda features, masks, boxes, **kwargs: (
        decoded.extend(boxes) or original(features, masks, boxes, **kwargs)
    )
    got, _ = probabilities(inputs, net, labels={5: (2, 3)}, margin_mm=3)
    assert sorted(decoded, key=str) == [(slice(1, 15), slice(1, 15)), (slice(177, 193), slice(5, 19))]
    net.decode_boxes = original
    everywhere, _ = probabilities(inputs, net, labels={5: (2, 3)})
    expected = torch.zeros(200, 40, dtype=torch.float64)
    for box in decoded:
        expected[box] = everywhere[0, 5][box]
    assert torch.allclose(got[0, 5], expected, atol=1e-7)


@pytest.fixture
def many_labels():
    """1000 labels, pieces of 2 x 2 x 2 voxels in 20 x 20 x 20."""
    blocks = torch.arange(1, 1001).reshape(10, 10, 10)
    labels = blocks.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2).float()
    images = torch.rand(1, 2, 20, 20, 20, generator=torch.Generator().manual_seed(0))
    return torch.cat([images, labels[None, None]], 1)


def test_few_boxes_are_alive(many_labels, monkeypatch):
    """Windows of 8 with an overlap of 2: a label lives in the rows of windows that its box meets, not longer."""
    peak, begun = [0], set()
    original = LogitAccumulator.add

    def counting(self, i, w, logits):
        original(self, i, w, logits)
        begun.add(i)
        peak[0] = max(peak[0], len(self.sums))

    monkeypatch.setattr(LogitAccumulator, "add", counting)
    net = LabelConditionedUNet(3, channels=(2, 3), norm=None).eval()
    kwargs = {"roi_size": (8, 8, 8), "margin_mm": 0}
    label_map = LabelSweepInferer(threshold=0, **kwargs)(many_labels, net)
    assert torch.equal(label_map, many_labels[:, 2:].int())  # each label's box is its own: it wins everywhere in it
    # Windows at 0, 6, 12; voxels 6, 7 and 12, 13 in two of them: one piece of ten along an axis in each
    assert len(begun) == 1000 - 8**3
    assert peak[0] < 200

    alive, finalize = [], LogitAccumulator.finalize
    monkeypatch.setattr(LogitAccumulator, "add", original)
    monkeypatch.setattr(
        LogitAccumulator, "finalize", lambda self, i: (finalize(self, i), alive.append(len(self.sums)))[0]
    )
    for _ in LabelSweepInferer(**kwargs)(many_labels, net):
        pass
    assert alive[-1] == 0


def test_windows_go_along_the_axis_that_keeps_the_fewest_alive():
    windows = [(slice(a, a + 4), slice(b, b + 4)) for a in (0, 4) for b in (0, 4, 8, 12)]
    boxes = [(slice(0, 8), slice(b, b + 4)) for b in (0, 4, 8, 12)]  # each spans the first axis
    touches = touching(boxes, windows)
    assert touches.sum() == 8
    order = window_order(windows, touches, [32] * 4)
    assert [windows[w][1].start for w in order] == [0, 0, 4, 4, 8, 8, 12, 12]  # one box alive, not four


def test_windows_without_foreground_are_skipped(network, inputs):
    image = inputs[:1].clone()
    image[:, 0, 12:] = 0
    encoded = []
    original = network.encode
    network.encode = lambda x, *args: encoded.append(bool((x > 0).any())) or original(x, *args)
    kwargs = {"roi_size": (8, 18, 20), "overlap": 0, "margin_mm": 1}
    try:
        everything, _ = probabilities(image, network, **kwargs)
        assert encoded == [True, True, False]  # windows at 0, 8 and 13
        encoded.clear()
        got, label_map = probabilities(image, network, select_fn=lambda x: x > 0, **kwargs)
    finally:
        network.encode = original
    assert encoded == [True, True]
    assert not label_map[:, :, 16:].any()
    for key, p in got.items():
        assert (p[16:] == 0).all()
        assert torch.allclose(p[:8], everything[key][:8])


@pytest.mark.parametrize("upsample", [1, 2])
@pytest.mark.parametrize("conditioning", ["bottleneck", "shared"])
def test_a_union_half_of_which_is_skipped(conditioning, upsample):
    """What is left is answered, everywhere it can be, and finished; the other half scores zero."""
    net = LabelConditionedUNet(2, channels=(4, 6), conditioning=conditioning, prior_logit=5.0).eval().double()
    if conditioning == "shared":
        net.attention.position.data *= 50  # each voxel sees the atlas at its own place alone
    inputs = torch.rand(1, 3, 64, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs[:, 2] = 0
    inputs[:, 2, 4:12, 4:12], inputs[:, 2, 52:60, 4:12] = 2, 3
    inputs[:, 0, 40:] = 0
    kwargs = {"labels": {5: (2, 3)}, "roi_size": (16, 16), "overlap": 0, "margin_mm": 2, "upsample": upsample}
    inferer = LabelSweepInferer(output="masks", select_fn=lambda x: x > 0, **kwargs)
    mask = inferer(inputs, net)[0, 0]
    got, label_map = probabilities(inputs, net, select_fn=lambda x: x > 0, **kwargs)
    assert torch.isfinite(got[0, 5]).all()
    if upsample == 1 or conditioning == "bottleneck":  # a mask's logits are interpolated, a map's probabilities
        assert torch.equal(mask.bool(), label_map[0, 0] == 5)
    assert mask[4 * upsample : 11 * upsample, 4 * upsample : 11 * upsample].all()
    assert (got[0, 5][48 * upsample :] == 0).all()
    inputs[:, 0] = 0
    assert not LabelSweepInferer(select_fn=lambda x: x > 0, **kwargs)(inputs, net).any()


@pytest.mark.parametrize("shape", [(13, 18), (40, 6), (5, 5)])
@pytest.mark.parametrize("conditioning", ["bottleneck", "multiscale", "shared"])
def test_one_window_is_the_network(conditioning, shape):
    """Also where a label touches the end, which is padded, and where an axis is shorter than the stride."""
    set_determinism(0)
    net = LabelConditionedUNet(2, channels=(3, 4, 5, 6), conditioning=conditioning).eval().double()
    set_determinism(None)
    inputs = torch.rand(1, 3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs[:, 2] = 0
    inputs[:, 2, shape[0] - 4 :, shape[1] - 3 :] = 7
    mask = (inputs[:, 2:] == 7).double()
    with torch.no_grad():
        expected = torch.sigmoid(net(torch.cat([inputs[:, :2], mask], 1)))[0, 0]
    got, _ = probabilities(inputs, net)
    assert torch.allclose(got[0, 7], expected, atol=1e-6)
    windows, _ = probabilities(inputs, net, roi_size=(8, -1), margin_mm=1)  # several windows, one of them thin
    assert torch.isfinite(windows[0, 7]).all()


def test_a_box_cut_by_windows_is_said(inputs):
    net = LabelConditionedUNet(3, channels=(4, 6), conditioning="multiscale", norm="instance").eval().double()
    with pytest.warns(UserWarning, match="normalizes over a label's box, which several windows cut"):
        LabelSweepInferer(margin_mm=3, roi_size=(16, 16, 16))(inputs[:1], net)


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


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"threshold": 1.0}, r"`threshold` must be in \[0, 1\), got 1.0"),
        ({"margin_mm": -1}, "`margin_mm` must be >= 0 or None, got -1"),
        ({"upsample": 1.5}, "`upsample` must be a whole number > 0, got 1.5"),
        (
            {"upsample": None, "output": "masks"},
            "`upsample` None makes a label map .* got `output` 'masks'",
        ),
        ({"halo": "exactly"}, "`halo` must be 'exact' or a whole number >= 0, got 'exactly'"),
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


def test_a_batch_on_the_grid_of_its_scans(network, inputs):
    """A scan of the input's grid gets what the input does, one twice as fine what the finer merge finds."""
    image, network = MetaTensor(inputs.float()), copy.deepcopy(network).float()
    expected = LabelSweepInferer(margin_mm=3)(image, network)
    fine = LabelSweepInferer(margin_mm=3, upsample=2)(image, network)
    for scan, wanted in ((expected, expected), (fine, fine)):
        named = name_scan_grid(image.clone(), scan[0])
        found = LabelSweepInferer(margin_mm=3, upsample=None)(named, network)
        assert (found == wanted).float().mean() > 0.999  # but for rounding: this network is unsure everywhere
        assert torch.equal(found.affine, torch.as_tensor(affine_of(scan[0])))
    with pytest.raises(ValueError, match="whose metadata tell the grid of the scan"):
        LabelSweepInferer(upsample=None)(image, network)


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


def test_compiled_network_is_encoded_once(network, inputs):
    compiled = torch.compile(network, backend="eager")
    assert unwrapped(compiled) is network
    assert isinstance(adapt(compiled, 1, "exact", 16), EncodeOnceAdapter)
    expected = LabelSweepInferer(margin_mm=1)(inputs[:1], network)
    assert torch.equal(LabelSweepInferer(margin_mm=1)(inputs[:1], compiled), expected)


def test_a_network_that_lacks_a_part_of_the_protocol_is_called_with_one_tensor():
    net = LabelConditionedUNet(2, channels=(2, 3))
    assert isinstance(net, LabelConditionedNetwork)
    assert isinstance(adapt(net, 1, "exact", 16), EncodeOnceAdapter)
    for missing in ("stride", "stitches", "depends_on_box", "encode", "decode_boxes"):
        members = {"stride", "stitches", "depends_on_box", "encode", "decode_boxes"} - {missing}
        partial = SimpleNamespace(**{name: getattr(net, name) for name in members})
        assert not isinstance(partial, LabelConditionedNetwork)
        assert isinstance(adapt(partial, 1, "exact", 16), PlainAdapter)


def test_features_are_kept_for_the_next_pass_only(network, inputs):
    """One pass keeps none; several keep those of all windows, so that each window is encoded once."""
    volume = inputs[0]
    for parts_per_pass, kept, encoded in ((5, 0, 8), (2, 8, 8)):
        splitter = WindowSplitter(SHAPE, (16, 16, 16), 0)
        adapter = EncodeOnceAdapter(network, 1, "exact")
        calls = []
        adapter.encode = lambda window, calls=calls: (
            calls.append(1) or network.encode(window[None, :1], window[None, 1:])
        )
        sweep = VolumeSweep(volume, splitter, adapter, parts_per_pass=parts_per_pass)
        parts = label_parts(volume[-1], {label: (label,) for label in IDS}, margin=None)
        with torch.no_grad():
            assert sorted(part.label for part, _ in sweep.blended(parts)) == list(IDS)
        assert (len(sweep.kept), len(calls)) == (kept, encoded)


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_accumulator_is_the_weighted_mean_over_windows(mode):
    """Against all windows' logits in numpy; a window that was skipped says nothing."""
    rng = np.random.default_rng(0)
    splitter = WindowSplitter((11, 9), (4, 5), 0.5, mode)
    windows, weight = splitter.windows[:-1], splitter.importance.numpy()
    boxes = [(slice(1, 10), slice(2, 9)), (slice(0, 3), slice(0, 4)), (slice(7, 11), slice(3, 9))]
    accumulator = LogitAccumulator(boxes, windows, splitter.importance)
    sums, weights = np.zeros((3, 11, 9)), np.zeros((3, 11, 9))
    got = {}
    for w in accumulator.window_order():
        logits = rng.normal(size=(3, 4, 5)).astype(np.float32)
        for i in accumulator.boxes_in(w):
            sums[i][windows[w]] += logits[i] * weight
            weights[i][windows[w]] += weight
            local = shift(intersect(windows[w], boxes[i]), windows[w])
            blended = accumulator.aggregate(i, w, torch.from_numpy(logits[i][local]))
            if blended is not None:
                assert i not in got
                got[i] = blended.numpy()
    assert set(got) == {0, 1, 2}
    for i, box in enumerate(boxes):
        seen = weights[i][box] > 0
        assert np.allclose(got[i][seen], (sums[i][box] / np.where(seen, weights[i][box], 1))[seen], atol=1e-5)
        assert (got[i][~seen] == NOWHERE).all()
    assert (weights[2][boxes[2]] == 0).any()


def test_merger_is_the_argmax_above_the_threshold():
    rng = np.random.default_rng(0)
    logits = rng.integers(-3, 4, (5, 6, 7)).astype(np.float32)  # with many ties
    labels = [9, 2, 70000, 5, 11]
    merger = BestLabelMerger(labels, (6, 7), threshold=0.7)
    for label, one in zip(labels, logits, strict=True):
        merger.aggregate(label, torch.from_numpy(one), (slice(0, 6), slice(0, 7)))
    order = np.argsort(labels)
    winner = np.array(labels)[order][logits[order].argmax(0)]  # the first of equals is the smallest id
    expected = np.where(1 / (1 + np.exp(-logits.max(0))) > 0.7, winner, 0)
    assert np.array_equal(merger.finalize().numpy(), expected)


IMPORTS = """
import sys, warnings
warnings.simplefilter("ignore")
import monai.data, monai.inferers, monai.networks.nets, monai.transforms, scipy.ndimage, tqdm
functions = {
    (name, key): value
    for name, module in list(sys.modules.items()) if name.split(".")[0] == "monai"
    for key, value in [*vars(module).items()]
}
methods = {
    (cls, key): value
    for cls in {c for c in functions.values() if isinstance(c, type) and c.__module__.startswith("monai.")}
    for key, value in vars(cls).items() if callable(value)
}
before = set(sys.modules)
import %s
print(sorted(name for name in set(sys.modules) - before if name.split(".")[0] != "monai_lcs"))
print("SimpleITK" in sys.modules)
print([name for (name, key), value in functions.items() if vars(sys.modules[name]).get(key) is not value])
print([cls.__name__ for (cls, key), value in methods.items() if vars(cls).get(key) is not value])
"""


def test_import_brings_nothing_and_patches_nothing():
    code = IMPORTS % "monai_lcs.networks, monai_lcs.inferers"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n") == ["[]", "False", "[]", "[]", ""]


@pytest.mark.parametrize("roi_size", [None, (16, 16)])
@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_labels_of_a_shared_decoder_compete_with_the_background(threshold, roi_size):
    """Where three labels meet, the best one may have less than a half; a label alone is cut at the threshold."""
    net = LabelConditionedUNet(2, channels=(4, 6), conditioning="shared", norm="instance").eval().double()
    net.attention.position.data *= 0.3  # wide
    inputs = torch.rand(1, 3, 24, 26, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    atlas = torch.zeros(24, 26, dtype=torch.float64)
    atlas[4:12, 4:12], atlas[4:12, 12:21], atlas[12:20, 4:21] = 2, 3, 5
    inputs[0, 2] = atlas

    def shares(labels):
        masks = torch.stack([torch.isin(atlas, torch.tensor(ids, dtype=atlas.dtype)) for ids in labels])
        features = net.encode(inputs[:, :1], inputs[:, 1:2])
        return net.decode(features, masks[None])[0].sigmoid().detach()

    options = {"threshold": threshold, "roi_size": roi_size, "overlap": 0.5}
    found = LabelSweepInferer(**options)(inputs, net)[0, 0]
    if roi_size is None:
        *each, union = shares([(2,), (3,), (5,), (2, 3, 5)])
        odds = (1 - union) / union * (threshold / (1 - threshold)) ** 2
        best, index = torch.stack([odds / (1 + odds), *each]).max(0)
        assert torch.equal(found, torch.tensor([0, 2, 3, 5], dtype=torch.int32)[index])
        assert ((best < 0.5) & (found > 0)).sum() > 3
        alone = LabelSweepInferer(labels=[3], **options)(inputs, net)[0, 0]
        assert torch.equal(alone == 3, each[1] > threshold)
    fine = LabelSweepInferer(upsample=2, **options)(inputs, net)[0, 0]
    assert (fine[::2, ::2] == found).float().mean() > 0.99


def several_atlases(atlases=2):
    """A network, and an input of an image, images and label maps of several atlases, and one more label map."""
    net = LabelConditionedUNet(2, channels=(4, 6), conditioning="shared", norm="instance", dropout=0.0).double()
    random = torch.Generator().manual_seed(0)
    images = torch.rand(1, 1 + atlases, 24, 26, dtype=torch.float64, generator=random)
    label_map = torch.zeros(1, 1, 24, 26, dtype=torch.float64)
    label_map[..., 4:12, 4:12], label_map[..., 4:12, 12:21], label_map[..., 12:20, 4:21] = 2, 3, 5
    maps = [label_map.roll(3 * i, -1) for i in range(atlases)]
    return net, torch.cat([images, *maps, label_map], 1)


@pytest.mark.parametrize("roi_size", [None, (16, 16)])
def test_copies_of_an_atlas_are_one_atlas(roi_size):
    net, inputs = several_atlases(1)
    image, atlas_image, label_map = inputs[:, :1], inputs[:, 1:2], inputs[:, -1:]
    sweep = LabelSweepInferer(margin_mm=4, roi_size=roi_size, overlap=0.5)
    one = sweep(torch.cat([image, atlas_image, label_map], 1), net.eval())
    copies = torch.cat([image, *[atlas_image] * 3, *[label_map] * 4], 1)
    assert (sweep(copies, net) == one).float().mean() > (0.995 if roi_size else 0.9999)  # half precision of windows
    assert len(one.unique()) == 4
    box, groups = LabelBoxInferer(margin_mm=4), torch.tensor([[[2, 0], [3, 5]]])
    found = [box(x, net.train(), groups=groups) for x in (copies, torch.cat([image, atlas_image, label_map], 1))]
    for a, b in zip(*found, strict=True):
        assert a[:3] == b[:3]
        torch.testing.assert_close(a.logits, b.logits)


def test_several_atlases_are_looked_at_together():
    """As attention says, which is tested by itself; in any order of the atlases; boxes are those of the last map."""
    net, inputs = several_atlases()
    net.eval()
    first, second = inputs[0, 3], inputs[0, 4]
    labels = [(2,), (3,), (5,), (2, 3, 5)]
    masks = [
        [Mask.of(torch.isin(each, torch.tensor(ids, dtype=each.dtype))) for each in (first, second)] for ids in labels
    ]
    with torch.no_grad():
        features = net.encode(inputs[:, :1], inputs[:, 1:3])
        logits = dict(net.decode_boxes(features, masks, [(slice(0, 24), slice(0, 26))] * 4))
    *each, union = [logits[i].sigmoid() for i in range(4)]
    expected = torch.tensor([0, 2, 3, 5], dtype=torch.int32)[torch.stack([1 - union, *each]).argmax(0)]
    assert torch.equal(LabelSweepInferer()(inputs, net)[0, 0], expected)
    swapped = inputs[:, [0, 2, 1, 4, 3, 5]]
    assert torch.equal(LabelSweepInferer()(swapped, net)[0, 0], expected)
    assert not torch.equal(LabelSweepInferer()(inputs[:, [0, 1, 3]], net)[0, 0], expected)
    inside = LabelSweepInferer(margin_mm=2)(inputs, net)[0, 0]
    assert not inside[:2].any()
    assert inside.any()
    inputs[0, 3, 0, 0] = 0.5
    with pytest.raises(ValueError, match="atlas label map"):
        LabelSweepInferer()(inputs, net)


def test_several_atlases_in_batches_and_without_background():
    """Each item by itself; where nothing is foreground nothing is found."""
    net, inputs = several_atlases(3)
    net.eval()
    batch = torch.cat([inputs, inputs.flip(-1)])
    sweep = LabelSweepInferer(margin_mm=4)
    assert torch.equal(sweep(batch, net), torch.cat([sweep(inputs, net), sweep(inputs.flip(-1), net)]))
    windows = {"roi_size": (12, 13), "overlap": 0.25, "margin_mm": 4}
    found = LabelSweepInferer(select_fn=lambda image: (torch.arange(26) < 8).expand(image.shape), **windows)(
        inputs, net
    )
    assert found[..., :12].any()
    assert not found[..., 13:].any()
    box, groups = LabelBoxInferer(margin_mm=4), torch.tensor([[[2, 0], [3, 5]]])
    net.train()
    both, one = box(batch, net, groups=groups.expand(2, -1, -1)), box(inputs, net, groups=groups)
    for a, b in zip(both, one, strict=False):
        torch.testing.assert_close(a.logits, b.logits)


def test_channels_that_are_no_atlases_are_refused():
    net, inputs = several_atlases()
    with pytest.raises(ValueError, match="must have"):
        LabelSweepInferer()(inputs[:, :5], net)
    with pytest.raises(ValueError, match="`atlas_image` must have 1 channels"):
        LabelSweepInferer()(inputs.float(), LabelConditionedUNet(2, channels=(4, 6)))
    with pytest.raises(ValueError, match="that of their vote"):
        LabelBoxInferer(margin_mm=4, atlas_channels=0)(inputs, net, groups=torch.tensor([[[2]]]))


@pytest.mark.parametrize("upsample", [1, 2])
def test_slabs_change_nothing(monkeypatch, upsample):
    """Labels are decoded slab by slab: label map and confidence are those of one slab."""
    net = LabelConditionedUNet(2, channels=(4, 6), conditioning="shared", norm="instance").eval().double()
    inputs = torch.rand(1, 3, 40, 26, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs[0, 2] = 0
    inputs[0, 2, 4:22, 4:12], inputs[0, 2, 9:33, 12:21] = 2, 3
    results = []
    for slab in (8, 1000):
        monkeypatch.setattr(label_sweep, "SLAB", slab)
        confidence = {}
        inferer = LabelSweepInferer(
            margin_mm=3, upsample=upsample, on_confidence=lambda i, x, to=confidence: to.update(x)
        )
        results.append((inferer(inputs, net), confidence))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1].keys() == {2, 3}
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-6)


@pytest.mark.parametrize("conditioning", ["bottleneck", "shared"])
def test_a_label_may_be_written_as_0(conditioning):
    """Its voxels are then those of the background; the other labels do not change."""
    net = LabelConditionedUNet(2, channels=(4, 6), conditioning=conditioning, prior_logit=3.0, norm="instance").eval()
    inputs = torch.rand(1, 3, 24, 26, generator=torch.Generator().manual_seed(0))
    inputs[0, 2] = 0
    inputs[0, 2, 4:12, 4:12], inputs[0, 2, 4:12, 12:21] = 2, 3
    as_nine, as_zero = (LabelSweepInferer(labels={i: (3,), 5: (2,)})(inputs, net) for i in (9, 0))
    assert (as_nine == 9).any()
    assert torch.equal(torch.where(as_nine == 9, 0, as_nine), as_zero)


def test_a_union_that_holds_a_label_wins_over_it_where_labels_compete():
    net = LabelConditionedUNet(2, channels=(4, 6), conditioning="shared").eval()
    inputs = torch.rand(1, 3, 24, 26, generator=torch.Generator().manual_seed(0))
    inputs[0, 2] = 0
    inputs[0, 2, 4:12, 4:12], inputs[0, 2, 4:12, 12:21] = 2, 3
    with pytest.warns(UserWarning, match=r"The ids \[3\] are in several of the requested labels"):
        LabelSweepInferer(labels={100: (2, 3), 3: (3,)})(inputs, net)


def test_confidence_of_competing_labels_is_the_dice_to_expect():
    """Truth drawn from the probabilities of three labels and a background: known Dice of each label."""
    rng = np.random.default_rng(0)
    p = torch.from_numpy(rng.dirichlet(np.full(4, 0.3), 100_000).T)  # (label, voxel); the last is the background
    truth = (torch.from_numpy(rng.random(100_000)) > p.cumsum(0)[:3]).sum(0)
    merger = BestLabelMerger([1, 2, 3], (100_000,), dtype=torch.float64, confidence=True, competing=True)
    whole = (slice(0, 100_000),)
    merger.aggregate_union(torch.logit(p[:3].sum(0), 1e-12), whole)
    for label in (1, 2, 3):
        merger.aggregate(label, torch.logit(p[label - 1], 1e-12), whole)
    found = merger.finalize()
    assert torch.equal(found, torch.tensor([1, 2, 3, 0], dtype=torch.int32)[p.argmax(0)])
    for label, dice in merger.confidence().items():
        both = ((found == label) & (truth == label - 1)).sum()
        assert dice == pytest.approx(
            2 * both.item() / ((found == label).sum() + (truth == label - 1).sum()).item(), abs=0.01
        )


def test_a_window_larger_than_the_image_takes_nothing_from_competing_labels():
    """The window's padding has no label; a label that fills the image fills the result."""
    net = LabelConditionedUNet(2, channels=(4, 6), conditioning="shared").eval()
    inputs = torch.rand(1, 3, 20, 21, generator=torch.Generator().manual_seed(0))
    inputs[0, 2] = 7
    for roi_size in (None, (32, 32), (32, 8), -1):
        assert (LabelSweepInferer(roi_size=roi_size)(inputs, net) == 7).all()
