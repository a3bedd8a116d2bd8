"""The sweep over labels against the naive one, and its laws."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.utils import set_determinism
from scipy.ndimage import map_coordinates

from monai_lcs.boxes import batch_sizes, crop_pyramid, grow_box, label_boxes, mask_box, split_box
from monai_lcs.inferers import LabelBoxInferer, LabelSweepInferer, sweep
from monai_lcs.networks import Features, LabelConditionedUNet

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

        decode_boxes = staticmethod(network.decode_boxes)

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
    original = sweep.Live.add

    def counting(self, i, w, logits):
        original(self, i, w, logits)
        begun.add(i)
        peak[0] = max(peak[0], len(self.sums))

    monkeypatch.setattr(sweep.Live, "add", counting)
    net = LabelConditionedUNet(3, channels=(2, 3), norm=None).eval()
    kwargs = {"roi_size": (8, 8, 8), "margin_mm": 0}
    label_map = LabelSweepInferer(threshold=0, **kwargs)(many_labels, net)
    assert torch.equal(label_map, many_labels[:, 2:].int())  # each label's box is its own: it wins everywhere in it
    # Windows at 0, 6, 12; voxels 6, 7 and 12, 13 in two of them: one piece of ten along an axis in each
    assert len(begun) == 1000 - 8**3
    assert peak[0] < 200

    alive, sums = [], sweep.Live
    monkeypatch.setattr(sums, "add", original)
    monkeypatch.setattr(sums, "pop", lambda self, i, pop=sums.pop: (pop(self, i), alive.append(len(self.sums)))[0])
    for _ in LabelSweepInferer(**kwargs)(many_labels, net):
        pass
    assert alive[-1] == 0


def test_windows_go_along_the_axis_that_keeps_the_fewest_alive():
    windows = [(slice(a, a + 4), slice(b, b + 4)) for a in (0, 4) for b in (0, 4, 8, 12)]
    boxes = [(slice(0, 8), slice(b, b + 4)) for b in (0, 4, 8, 12)]  # each spans the first axis
    touches = sweep.touching(boxes, windows)
    assert touches.sum() == 8
    order = sweep.window_order(windows, touches, [32] * 4)
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
    inputs = torch.rand(1, 3, 64, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs[:, 2] = 0
    inputs[:, 2, 4:12, 4:12], inputs[:, 2, 52:60, 4:12] = 2, 3
    inputs[:, 0, 40:] = 0
    kwargs = {"labels": {5: (2, 3)}, "roi_size": (16, 16), "overlap": 0, "margin_mm": 2, "upsample": upsample}
    inferer = LabelSweepInferer(output="masks", select_fn=lambda x: x > 0, **kwargs)
    mask = inferer(inputs, net)[0, 0]
    got, label_map = probabilities(inputs, net, select_fn=lambda x: x > 0, **kwargs)
    assert torch.isfinite(got[0, 5]).all()
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


@pytest.mark.parametrize("reach", [0, 1, 2, 3])
def test_crops_hold_what_the_level_above_takes(reach):
    rng = np.random.default_rng(reach)
    for _ in range(200):
        size = 16 * int(rng.integers(1, 7))
        length = int(rng.integers(1, size + 1))
        boxes = [(slice(int(a), int(a) + length),) for a in rng.integers(0, size - length + 1, 3)]
        outer, inner = crop_pyramid(boxes, (size,), 4, reach)
        assert inner[0] == boxes
        for level in range(5):
            here = size >> level
            assert len({axis.stop - axis.start for (axis,) in inner[level]}) == 1
            assert len({axis.stop - axis.start for (axis,) in outer[level]}) == 1
            for (give,), (take,) in zip(inner[level], outer[level], strict=True):
                assert 0 <= take.start <= max(give.start - min(reach, 2), 0)
                assert min(give.stop + min(reach, 2), here) <= take.stop <= here
            for (take,), (below,) in zip(outer[level], inner[level + 1] if level < 4 else [], strict=False):
                assert 2 * below.start <= max(take.start - max(reach - 2, 0), 0)
                assert 2 * below.stop >= min(take.stop + max(reach - 2, 0), here)


def test_batches_hold_each_box_once():
    rng = np.random.default_rng(0)
    sizes = [tuple(size) for size in rng.integers(1, 40, (200, 3)).tolist()]
    batches = batch_sizes(sizes, room=50_000)
    assert sorted(i for members, _ in batches for i in members) == list(range(200))
    for members, size in batches:
        assert size == tuple(np.max([sizes[i] for i in members], axis=0))
        assert len(members) == 1 or len(members) * np.prod(size) <= 50_000
    assert len(batches) < 100


def test_split_boxes_hold_the_mask():
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = torch.from_numpy(rng.random((60, 50, 7)) > 0.999)
        if not mask.any():
            continue
        boxes = split_box(mask, (2, 2, 2))
        covered = torch.zeros_like(mask)
        for box in boxes:
            assert mask_box(mask[box]) == tuple(slice(0, axis.stop - axis.start) for axis in box)  # tight
            covered[box] = True
        assert covered[mask].all()
    ribbon = torch.zeros(64, 64, dtype=torch.bool)
    ribbon[range(64), range(64)] = True  # a diagonal fills little of its box
    assert len(split_box(ribbon, (1, 1), around=0)) > 2
    assert len(split_box(torch.ones(64, 64), (1, 1))) == 1
    with pytest.raises(ValueError, match="`mask` must not be empty"):
        split_box(torch.zeros(3, 3), (1, 1))
