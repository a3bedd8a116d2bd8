"""The network against an independent reference, and its laws."""

import json
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.utils import set_determinism
from torch import nn

from monai_lcs.boxes import crop, pad_end
from monai_lcs.networks import LabelConditionedUNet, atlas_attention
from monai_lcs.networks.atlas_attention import AtlasAttention
from monai_lcs.networks.blocks import InstanceNormalization, UpConvolution, convolve
from monai_lcs.networks.blocks import up as make_up
from monai_lcs.networks.crops import Mask, crop_source, gather
from monai_lcs.pipeline import Settings, load_weights, make_network, shipped_weights


@pytest.fixture(autouse=True)
def _seed():
    set_determinism(0)
    yield
    set_determinism(None)


def trained_like(net):
    """Weights that keep the signal's size, and running statistics that are not the identity's."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return net.eval()


class ReferenceUNet(nn.Module):
    """The paper's network for one mask, written out in plain PyTorch."""

    def __init__(self, widths, multiscale, norm=nn.BatchNorm3d, up_activation=True):
        super().__init__()
        self.up_activation = up_activation
        self.multiscale = multiscale

        def block(i, o):
            layers = []
            for a, b in ((i, o), (o, o)):
                layers += [nn.Conv3d(a, b, 3, padding=1), norm(b), nn.ReLU()]
            return nn.Sequential(*layers)

        down, skips = [], [1, *widths[:-1]]
        for i, o in pairwise(skips):
            down.append(block(i, o))
        self.down = nn.ModuleList(down)
        self.bottom = block(widths[-2] + 2, widths[-1])
        extra = 2 if multiscale else 0
        self.ups = nn.ModuleList(nn.Conv3d(2 * w, w, 3, padding=1) for w in reversed(widths[:-1]))
        self.blocks = nn.ModuleList(block(2 * w + extra, w) for w in reversed(widths[:-1]))
        self.head = nn.Conv3d(widths[0], 1, 1)

    def forward(self, x):
        image, atlas, mask = x[:, :1], x[:, 1:2], x[:, 2:3]
        skips = []
        for block in self.down:
            image = block(image)
            skips.append(image)
            image = F.max_pool3d(image, 2)
        n = len(skips)
        image = torch.cat([F.max_pool3d(mask, 2**n), image, F.max_pool3d(atlas, 2**n)], 1)
        image = self.bottom(image)
        for i, (going_up, block) in enumerate(zip(self.ups, self.blocks, strict=True)):
            level = n - 1 - i
            image = going_up(F.interpolate(image, scale_factor=2, mode="nearest"))
            image = image.relu() if self.up_activation else image
            parts = [image, skips[level]]
            if self.multiscale:
                parts = [image, F.max_pool3d(mask, 2**level), skips[level], F.max_pool3d(atlas, 2**level)]
            image = block(torch.cat(parts, 1))
        return self.head(image)


@pytest.mark.parametrize("up_activation", [True, False])
@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("conditioning", ["bottleneck", "multiscale"])
def test_equals_reference(conditioning, norm, up_activation):
    options = {"conditioning": conditioning, "norm": norm, "up_activation": up_activation}
    net = trained_like(LabelConditionedUNet(channels=(4, 8, 16, 32), **options)).double()
    layer = {"batch": nn.BatchNorm3d, "instance": nn.InstanceNorm3d}[norm]
    reference = ReferenceUNet((4, 8, 16, 32), conditioning == "multiscale", layer, up_activation).double().eval()
    ours, theirs = list(net.state_dict().values()), list(reference.state_dict().values())
    order = _order(net, reference)
    assert len(ours) == len(theirs) == len(order)
    reference.load_state_dict(order)
    x = torch.cat([torch.rand(2, 2, 16, 24, 16), (torch.rand(2, 3, 16, 24, 16) > 0.7).float()], 1).double()
    with torch.no_grad():
        expected = torch.cat([reference(torch.cat([x[:, :2], x[:, k : k + 1]], 1)) for k in (2, 3, 4)], 1)
        assert torch.allclose(net(x), expected, atol=1e-5)
        assert expected.std() > 1e-2


def test_the_shipped_weights_answer_as_they_were_trained():
    """Their settings were written before there was an activation after the up-sampling: the reference without it."""
    settings = Settings.of_weights(shipped_weights())
    assert "up_activation" not in json.loads(shipped_weights().with_suffix(".json").read_text(encoding="utf-8"))
    net = make_network(settings)
    load_weights(shipped_weights(), net)
    layer = partial(nn.InstanceNorm3d, affine=True)
    reference = ReferenceUNet(settings.channels, True, layer, up_activation=False).eval()
    reference.load_state_dict(_order(net, reference))
    x = torch.rand(1, 3, 16, 24, 16)
    x[:, 2] = x[:, 2] > 0.7
    with torch.no_grad():
        expected = reference(x) + settings.prior_logit * (2 * x[:, 2:] - 1)
        assert torch.allclose(net.eval()(x), expected, atol=1e-4)


def _order(net, reference):
    """Our weights under the reference's names: both list their layers in the order of the data's flow."""

    def flow(modules):
        return [value for module in modules for value in module.state_dict().values()]

    ours = flow([*net.encoder, net.bottleneck, *net.up, *net.decoder, net.head])
    assert all(a.shape == b.shape for a, b in zip(ours, reference.state_dict().values(), strict=True))
    return dict(zip(reference.state_dict(), ours, strict=True))


@pytest.mark.parametrize(
    ("kwargs", "count"),
    [
        ({}, 25_916_385),
        ({"channels": (16, 32, 64, 128, 256)}, 6_488_561),
        ({"channels": (8, 16, 32, 64, 128)}, 1_626_873),
        ({"conditioning": None, "out_channels": 133}, 25_893_093),
    ],
)
def test_number_of_parameters(kwargs, count):
    with torch.device("meta"):
        net = LabelConditionedUNet(**kwargs)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == count


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("upsample", ["nontrainable", "deconv"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("conditioning", ["bottleneck", "multiscale", "shared", None])
def test_options_give_one_channel_per_mask(spatial_dims, upsample, residual, conditioning):
    net = LabelConditionedUNet(
        spatial_dims,
        image_channels=2,
        atlas_channels=2 if conditioning == "shared" else 1,
        channels=(4, 6, 8),
        conditioning=conditioning,
        out_channels=1 if conditioning else 5,
        upsample=upsample,
        residual=residual,
        norm="instance",
    )
    shape = (17, 10, 13)[:spatial_dims]  # not divisible by the stride
    channels, answers = (2 + net.atlas_channels + 3, 3) if conditioning else (2, 5)
    out = net(torch.rand(2, channels, *shape))
    assert out.shape == (2, answers, *shape)
    out.mean().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_mask_changes_its_own_channel_only():
    net = trained_like(LabelConditionedUNet(2, channels=(4, 8, 16)))
    x = torch.rand(1, 5, 16, 16)
    changed = x.clone()
    changed[:, 3] = 1 - x[:, 3]
    with torch.no_grad():
        same, other = net(x), net(changed)
    assert torch.allclose(same[:, [0, 2]], other[:, [0, 2]], atol=1e-6)
    assert not torch.allclose(same[:, 1], other[:, 1], atol=1e-4)


BOXES_3D = [
    (slice(0, 9), slice(11, 22), slice(30, 41)),  # at two borders of the window
    (slice(13, 21), slice(7, 8), slice(2, 39)),
    (slice(20, 27), slice(0, 25), slice(17, 33)),
]


def box_case(conditioning, dims, **kwargs):
    """A network, features of a window whose size is no multiple of the stride, three masks and a box for each."""
    net = trained_like(LabelConditionedUNet(dims, channels=(3, 4, 6), conditioning=conditioning, **kwargs))
    shape = (27, 25, 41)[-dims:]
    with torch.no_grad():
        features = net.encode(*torch.rand(2, 1, 1, *shape))
    masks = torch.zeros(1, 3, *shape)
    for k, box in enumerate(BOXES_3D):
        inner = tuple(slice(axis.start, axis.stop - (axis.stop - axis.start) // 3) for axis in box[-dims:])
        masks[(0, k, *inner)] = 1
    return net, features, masks, [box[-dims:] for box in BOXES_3D]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("upsample", ["nontrainable", "deconv"])
@pytest.mark.parametrize("conditioning", ["bottleneck", "multiscale", "shared"])
def test_exact_halo_equals_window(conditioning, upsample, dims):
    net, features, masks, boxes = box_case(conditioning, dims, upsample=upsample, prior_logit=0.5)
    with torch.no_grad():
        whole = net.decode(features, masks)
        assert whole.std() > 1e-2
        found = dict(net.decode_boxes(features, list(masks[0]), boxes))
        for k, box in enumerate(boxes):
            for answer in (found[k], net.decode(features, masks, box)[0, k]):
                expected = whole[(0, k, *box)]
                if conditioning == "shared":  # the logit of a share near 1 has not as many digits
                    answer, expected = answer.sigmoid(), expected.sigmoid()
                assert torch.allclose(answer, expected, atol=1e-5)


@pytest.mark.parametrize("conditioning", ["bottleneck", "multiscale"])
def test_small_halo_differs_at_the_border_of_the_box_only(conditioning):
    """One voxel of zeros less at every level, and what is wrong spreads from the border of the crop."""
    net, features, masks, _ = box_case(conditioning, 2)
    box = (slice(4, 21), slice(9, 34))
    with torch.no_grad():
        whole = net.decode(features, masks)[..., 4:21, 9:34]
        error = {halo: (net.decode(features, masks, box, halo) - whole).abs() for halo in (0, 1, 2, 3, 7)}
    assert error[3].max() < 1e-5
    assert error[7].max() < 1e-5
    assert error[0].mean() > error[1].mean() > error[2].mean() > 1e-4


@pytest.mark.parametrize("conditioning", ["bottleneck", "shared"])
def test_boxes_of_all_sizes_are_answered_once(conditioning):
    net, features, masks, _ = box_case(conditioning, 3)
    boxes = [(slice(0, 3 + i), slice(i, 14 - i % 3), slice(5, 6 + 2 * i)) for i in range(9)]
    with torch.no_grad():
        asked = [masks[0, i % 3] for i in range(9)]
        found = list(net.decode_boxes(features, asked, boxes, room=100))
        whole = net.decode(features, masks)
    assert sorted(i for i, _ in found) == list(range(9))
    for i, logits in found:
        assert torch.allclose(logits, whole[0, i % 3][boxes[i]], atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("atlases", [1, 3])
def test_shared_decoder_equals_reference(dims, atlases):
    """The label-dependent part, one voxel and one neighbor at a time."""
    net, features, masks, boxes = box_case("shared", dims)
    attention = net.attention.double()
    with torch.no_grad():
        attention.position.mul_(0.1).add_(torch.randn_like(attention.position))
        shared = features.levels[0].double() * 0.3  # so that no voxel decides alone
        shared = torch.cat([shared, *[shared[:, attention.width :].roll(i, -1) for i in range(1, atlases)]], 1)
        features = replace(features, levels=(shared,))
        masks = torch.cat([masks[0].double().roll(i, -2)[:, None] for i in range(atlases)], 1)  # (labels, atlases, ...)
        masks[1] *= torch.rand_like(masks[1])  # a soft mask
        masks = pad_end(masks, net.stride)
        found = dict(net.decode_boxes(features, [[Mask.of(mask) for mask in each] for each in masks], boxes))
    queries, *keys = shared[0].numpy().reshape(1 + atlases, attention.width, *shared.shape[2:])
    position, shape = attention.position.detach().numpy(), features.spatial_shape
    random = np.random.default_rng(0)
    for k, box in enumerate(boxes):
        for voxel in random.integers([axis.start for axis in box], [axis.stop for axis in box], (20, dims)):
            weights, shares = [], []
            for seen in np.ndindex(*[8] * dims):  # the block of 4 voxels that the voxel is in, and 2 on each side
                other = voxel // 4 * 4 - 2 + seen
                if not all(0 <= i < n for i, n in zip(other, shape, strict=True)):
                    continue
                for of_atlas, mask in zip(keys, masks[k].numpy(), strict=True):
                    product = queries[(slice(None), *voxel)] @ of_atlas[(slice(None), *other)]
                    weights.append(np.exp(product + position[tuple(other - voxel + 5)]))
                    shares.append(mask[tuple(other)])
            p = 1e-6 + (1 - 2e-6) * np.dot(weights, shares) / np.sum(weights)
            answer = found[k][tuple(voxel - [axis.start for axis in box])]
            assert answer.item() == pytest.approx(np.log(p / (1 - p)), abs=1e-6)


@pytest.mark.parametrize("kept_bytes", [2**31, 10**6, 0])
def test_attention_has_the_gradients_of_autograd(monkeypatch, kept_bytes):
    """The weights are kept or computed twice, and no graph of them is kept: as if it were, in double precision."""
    monkeypatch.setattr(atlas_attention, "KEPT_BYTES", kept_bytes)
    monkeypatch.setattr(atlas_attention, "BLOCKS_AT_A_TIME", {"cpu": 2})
    net, features, masks, boxes = box_case("shared", 3)
    attention = net.attention.double()
    shared = features.levels[0].double().requires_grad_()
    random = torch.Generator().manual_seed(0)
    shared = torch.cat([shared, shared[:, attention.width :].flip(2)], 1).detach().requires_grad_()  # two atlases
    padded = pad_end(masks, net.stride)[0].double()
    masks = [[Mask.of(mask), Mask.of(mask.roll(1, 0))] for mask in padded]

    def gradients():
        shared.grad = attention.position.grad = None
        logits = attention(shared, [0] * 3, masks, boxes)
        random.manual_seed(0)
        torch.stack([(x * torch.rand(x.shape, dtype=x.dtype, generator=random)).sum() for x in logits]).sum().backward()
        return shared.grad, attention.position.grad

    ours = gradients()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atlas_attention, "exporting", lambda: True)
        expected = gradients()
    assert min(float(each.abs().max()) for each in expected) > 0.01
    for own, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12)


def test_what_the_gradient_needs_is_freed():
    """Also while the logits are alive, which a trainer keeps."""
    net = LabelConditionedUNet(2, channels=(4, 8), conditioning="shared")
    features = net.encode(torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16))
    (_, logits), *_ = net.decode_boxes(features, [torch.ones(16, 16)], [(slice(0, 16),) * 2])
    node = logits.grad_fn
    while not hasattr(node, "kept"):
        node = next(each for each, _ in node.next_functions if each is not None)
    assert all(node.kept)
    logits.sum().backward()
    assert not any(node.kept)


def test_as_many_masks_as_atlases():
    net = LabelConditionedUNet(2, channels=(4, 8), conditioning="shared")
    features = net.encode(torch.rand(1, 1, 16, 16), torch.rand(1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"must have 3 atlas masks, got \[1\]"):
        dict(net.decode_boxes(features, [torch.ones(16, 16)], [(slice(0, 16),) * 2]))
    with pytest.raises(ValueError, match=r"`atlas_image` must have 1 channels"):
        LabelConditionedUNet(2, channels=(4, 8)).encode(torch.rand(1, 1, 16, 16), torch.rand(1, 3, 16, 16))


def test_labels_of_a_partition_share_what_there_is():
    """Attention before training: the probabilities of all labels and the background add up to 1."""
    net = LabelConditionedUNet(2, channels=(4, 8), conditioning="shared", norm="instance")
    label_map = torch.arange(4).repeat_interleave(6).repeat_interleave(6).view(1, 1, 12, 12)
    masks = torch.cat([(label_map == label).float() for label in range(4)], dim=1)
    with torch.no_grad():
        p = net(torch.cat([torch.rand(1, 2, 12, 12), masks], 1)).sigmoid()
    torch.testing.assert_close(p.sum(1), torch.ones_like(p[:, 0]), atol=1e-4, rtol=0)  # at the border as well


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_under_autocast_is_in_full_precision(dtype):
    """Sums of hundreds of weights, and probabilities near 1."""
    net, features, masks, boxes = box_case("shared", 3)
    shared = features.levels[0].requires_grad_()
    with torch.autocast("cpu", dtype):
        logits = dict(net.decode_boxes(features, list(masks[0]), boxes))
    plain = dict(net.decode_boxes(features, list(masks[0]), boxes))
    for k in range(3):
        torch.testing.assert_close(logits[k], plain[k])
    sum(x.square().mean() for x in logits.values()).backward()
    assert torch.isfinite(shared.grad).all()
    assert shared.grad.any()


def test_attention_bears_sums_that_round_to_more_than_one(monkeypatch):
    """Weights of one voxel add up to 1 but for rounding: a label that has them all is sure, not NaN."""
    attention = AtlasAttention(2, in_channels=3, width=8)
    shared = attention.share(torch.rand(2, 1, 3, 8, 8), count=2)
    exact = attention._attend
    monkeypatch.setattr(attention, "_attend", lambda *arguments: exact(*arguments) * (1 + 4e-6))
    mask, box = Mask.of(torch.ones(8, 8)), (slice(0, 8), slice(0, 8))
    logits = attention(shared, items=[0], masks=[mask], boxes=[box])[0]
    assert logits.isfinite().all()
    assert logits.min() > 13
    (gradient,) = torch.autograd.grad(logits.sum(), attention.query.weight)
    assert gradient.isfinite().all()


def test_batch_norm_of_a_shared_decoder_has_statistics_of_image_and_atlas():
    net = LabelConditionedUNet(
        2, channels=(4, 6), conditioning="shared", norm=("batch", {"momentum": 1.0}), dropout=0.0
    )
    x = torch.cat([torch.rand(4, 1, 32, 32), 5 + 3 * torch.rand(4, 1, 32, 32), torch.ones(4, 1, 32, 32)], dim=1)
    x[:, 2, :16] = 0
    with torch.no_grad():
        trained = net.train()(x).sigmoid()
        torch.testing.assert_close(net.eval()(x).sigmoid(), trained, atol=5e-3, rtol=0)


@pytest.mark.parametrize("act", [None, "relu"])
@pytest.mark.parametrize("dims", [2, 3])
def test_up_convolution_is_nearest_and_convolution(dims, act):
    up = UpConvolution(dims, 3, 5, act)
    x = torch.rand(2, 3, *(4, 6, 5)[:dims])
    convolve = F.conv2d if dims == 2 else F.conv3d

    def expected():
        out = convolve(F.interpolate(x, scale_factor=2, mode="nearest"), up.conv.weight, up.conv.bias, padding=1)
        return out.relu() if act else out

    assert torch.allclose(up(x), expected(), atol=1e-6)
    with torch.no_grad():  # the kernel is folded when it is prepared, as at each encoding
        for _ in range(2):
            up.prepare()
            assert torch.allclose(up(x), expected(), atol=1e-6)
            up.conv.weight.data.copy_(torch.rand_like(up.conv.weight))
    up.prepare()
    assert torch.allclose(up(x), expected(), atol=1e-6)


@pytest.mark.parametrize("act", [None, "relu"])
def test_transposed_convolution_has_kernel_3_and_stride_2(act):
    """Each voxel adds the kernel, times its value, around twice its position."""
    going_up = make_up(2, 1, 1, "deconv", act)
    ((kernel,),) = going_up.conv.weight.detach().numpy()
    x = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    expected = np.full((10, 12), going_up.conv.bias.item(), np.float32)  # a border of one voxel falls off
    for i, j in np.ndindex(x.shape):
        expected[2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += x[i, j] * kernel
    with torch.no_grad():
        found = going_up(torch.tensor(x)[None, None])[0, 0].numpy()
    expected = expected[1:-1, 1:-1]
    np.testing.assert_allclose(found, np.maximum(expected, 0) if act else expected, atol=1e-5)
    assert (expected < 0).any()


def test_dropout_is_between_the_convolutions_of_the_bottleneck():
    """With all features dropped there, the second convolution gives its bias, whatever the image."""
    net = LabelConditionedUNet(2, channels=(3, 4), norm=None, dropout=1.0)
    seen = []
    net.bottleneck.register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = torch.rand(1, 3, 8, 8)
    net(x)
    dropped = net.bottleneck.second.conv.bias.relu().view(1, -1, 1, 1).expand(1, 4, 4, 4)
    torch.testing.assert_close(seen[0], dropped)
    net.eval()(x)
    assert not torch.allclose(seen[1], dropped)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("batch", "channels", "width", "spatial", "bias"),
    [
        (1, 4, 3, (5, 6, 7), True),
        (1, 1, 8, (1, 4, 3), True),
        (1, 16, 16, (2, 9, 8), False),
        (1, 8, 1, (8, 8, 8), True),
        (1, 128, 64, (7, 9, 7), True),
        (1, 80, 4, (16, 17, 2), True),  # more than 20480: not the slow path
        (2, 4, 3, (5, 6, 7), True),
        (2, 16, 16, (4, 4, 4), False),
    ],
)
def test_convolution_of_small_volumes(batch, channels, width, spatial, bias, dtype, memory_format):
    x = torch.randn(batch, channels, *spatial, dtype=dtype).to(memory_format=memory_format)
    weight = torch.randn(width, channels, 3, 3, 3, dtype=dtype).to(memory_format=memory_format)
    weighting = torch.randn(batch, width, *spatial, dtype=dtype)
    tensors = (x, weight, torch.randn(width, dtype=dtype)) if bias else (x, weight)
    gradients = []
    for function in (convolve, lambda *tensors: F.conv3d(*tensors, padding=1)):
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = function(*leaves)
        (out * weighting).sum().backward()
        gradients.append([out, *(t.grad for t in leaves)])
    for ours, theirs in zip(*gradients, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == dtype
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    with torch.no_grad():
        assert torch.allclose(convolve(*tensors), gradients[0][0])


def test_convolution_gives_only_the_gradients_asked_for():
    x, weight, bias = torch.rand(1, 2, 5, 6, 7), torch.rand(3, 2, 3, 3, 3), torch.rand(3)
    for asked in ((True, False, False), (False, True, False), (False, False, True)):
        leaves = [t.clone().requires_grad_(needed) for t, needed in zip((x, weight, bias), asked, strict=True)]
        convolve(*leaves).square().sum().backward()
        assert [t.grad is not None for t in leaves] == list(asked)
    assert not convolve(x, weight, bias).requires_grad


@pytest.mark.parametrize("constant", [None, torch.linspace(0, 1, 120).view(1, 2, 5, 4, 3)])
def test_convolution_has_second_derivatives(constant):
    weight = torch.rand(2, 2 if constant is None else 4, 3, 3, 3)
    x = torch.rand(1, 2, 5, 4, 3)

    def plain(x, weight):
        return F.conv3d(x if constant is None else torch.cat([x, constant], 1), weight, padding=1)

    second = []
    for function in (lambda x, weight: convolve(x, weight, constant=constant), plain):
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        first = torch.autograd.grad(function(*leaves).pow(3).sum(), leaves, create_graph=True)
        second.append([*first, *torch.autograd.grad(sum(each.square().sum() for each in first), leaves)])
    for ours, theirs in zip(*second, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_convolution_can_be_traced_and_exported():
    class Convolve(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(2, 3, 3)

        def forward(self, x):
            return convolve(x, self.conv.weight, self.conv.bias)

    module, x, other = Convolve(), torch.rand(1, 2, 5, 6, 7), torch.rand(1, 2, 5, 6, 7)
    traced, exported = torch.jit.trace(module, x), torch.export.export(module, (x,)).module()
    assert torch.allclose(traced(other), module(other), atol=1e-6)
    assert torch.allclose(exported(other), module(other), atol=1e-6)


@pytest.mark.parametrize("norm", ["batch", ("instance", {"affine": True})])
def test_box_that_is_the_window_is_exact(norm):
    net = trained_like(LabelConditionedUNet(3, channels=(3, 4, 6), norm=norm))
    x = torch.rand(1, 4, 9, 10, 11)
    window = (slice(0, 9), slice(0, 10), slice(0, 11))
    with torch.no_grad():
        assert torch.allclose(net(x), net(x, boxes=[[window, window]]), atol=1e-5)


def test_forward_in_boxes_is_decode_in_each_box():
    net = trained_like(LabelConditionedUNet(2, channels=(3, 4, 6), norm="instance"))
    assert net.depends_on_box
    x = torch.rand(2, 4, 20, 20)
    box = (slice(6, 15), slice(8, 20))
    with torch.no_grad():
        out = net(x, boxes=[[box, None], [None, box]], halo=0)
        features = net.encode(x[1:, :1], x[1:, 1:2])
        crop = net.decode(features, x[1:, 3:], (slice(4, 20), slice(4, 20)), halo=0)  # 9 x 12 rounded up to 16 x 16
    assert torch.allclose(out[1, 1, 6:15, 8:20], crop[0, 0, 2:11, 4:], atol=1e-5)
    outside = torch.ones(20, 20, dtype=torch.bool)
    outside[box] = False
    assert (out[1, 1][outside] == -20).all()
    assert (out[0, 1] == -20).all()


def test_padding_is_inside():
    """An image whose size is not a multiple of the stride gives what its edge-padded copy gives."""
    net = trained_like(LabelConditionedUNet(2, channels=(3, 4, 6)))
    x = torch.rand(1, 3, 13, 16)
    with torch.no_grad():
        assert torch.allclose(net(x), net(F.pad(x, (0, 0, 0, 3), mode="replicate"))[:, :, :13], atol=1e-6)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 15, 17])
def test_any_size_with_a_norm_that_needs_several_voxels(size):
    net = LabelConditionedUNet(3, channels=(2, 3, 4, 5), conditioning="multiscale", norm="instance")
    x = torch.rand(1, 3, size, size, size)
    window = (slice(0, size),) * 3
    assert net(x).shape == net(x, boxes=[[window]]).shape == (1, 1, size, size, size)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.float64])
def test_masks_of_any_dtype(dtype):
    net = trained_like(LabelConditionedUNet(2, channels=(3, 4)))
    image, atlas = torch.rand(2, 1, 1, 8, 8)
    mask = torch.zeros(1, 1, 8, 8, dtype=dtype)
    mask[..., 2:5, 2:5] = 1
    with torch.no_grad():
        features = net.encode(image, atlas)
        assert torch.equal(net.decode(features, mask), net.decode(features, mask.float()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    net = trained_like(LabelConditionedUNet(2, channels=(3, 4), conditioning="multiscale"))
    image, atlas = torch.rand(2, 1, 1, 7, 8)
    mask = torch.zeros(1, 1, 7, 8, dtype=torch.bool)
    mask[..., 2:5, 2:5] = True
    with torch.no_grad():
        full = net.decode(net.encode(image, atlas), mask)
        half = net.to(dtype)
        answer = half.decode(half.encode(image.to(dtype), atlas.to(dtype)), mask)
    assert answer.dtype == dtype
    assert torch.allclose(answer.float(), full, atol=0.05)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("conditioning", ["bottleneck", "multiscale", "shared"])
def test_traced_network_sees_other_masks(conditioning):
    net = trained_like(LabelConditionedUNet(2, channels=(3, 4, 6), conditioning=conditioning, prior_logit=1.0))
    x, other = torch.rand(2, 1, 3, 16, 16)
    x[:, 2], other[:, 2] = 0, 0
    x[:, 2, 1:4, 1:4], other[:, 2, 9:15, 8:15] = 1, 1
    with torch.no_grad():
        traced = torch.jit.trace(net, x, check_trace=False)
        assert torch.allclose(traced(other), net(other), atol=1e-4)


@pytest.mark.parametrize("options", [{"track_running_stats": False}, {"affine": True, "eps": 1e-3}])
def test_instance_norm_with_options(options):
    net = LabelConditionedUNet(2, channels=(3, 4), norm=("instance", options))
    assert net(torch.rand(1, 3, 8, 8)).shape == (1, 1, 8, 8)


def test_all_boxes_nowhere_still_have_a_gradient():
    net = LabelConditionedUNet(2, channels=(3, 4))
    out = net(torch.rand(1, 3, 8, 8), boxes=[[None]])
    assert (out == -20).all()
    out.mean().backward()


@pytest.mark.parametrize("conditioning", ["multiscale", "shared"])
def test_exports(conditioning):
    net = trained_like(LabelConditionedUNet(2, channels=(3, 4, 6), conditioning=conditioning))
    x = torch.rand(1, 4, 13, 16)
    exported = torch.export.export(net, (x,)).module()
    assert torch.allclose(exported(x), net(x), atol=1e-6)


@pytest.mark.parametrize("conditioning", ["multiscale", "shared"])
def test_learns_to_answer_for_the_requested_label(conditioning):
    """Two bright squares; the atlas mask says which. A network that ignores the mask cannot get this right."""
    net = LabelConditionedUNet(2, channels=(8, 16), conditioning=conditioning, norm="instance", dropout=0.0)
    image = torch.zeros(1, 1, 16, 16)
    image[..., 2:6, 2:6] = image[..., 9:14, 9:14] = 1
    masks = torch.zeros(1, 2, 16, 16)
    masks[:, 0, 3:7, 3:7] = masks[:, 1, 8:13, 8:13] = 1
    target = torch.zeros(1, 2, 16, 16)
    target[:, 0, 2:6, 2:6] = target[:, 1, 9:14, 9:14] = 1
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(net(torch.cat([image, image, masks], 1)), target)
        loss.backward()
        optimizer.step()
    assert ((net(torch.cat([image, image, masks], 1)) > 0) == target.bool()).float().mean() > 0.98


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"spatial_dims": 1}, "`spatial_dims` must be 2 or 3, got 1"),
        ({"channels": (8,)}, r"`channels` must hold two or more widths > 0, got \(8,\)"),
        ({"image_channels": 0}, "`image_channels` must be > 0"),
        ({"image_channels": 2, "conditioning": "shared"}, "the same number of channels, got 2 and 1"),
        ({"conditioning": "multi-scale"}, "multiscale"),
        ({"out_channels": 3}, "`out_channels` must be 1 with conditioning 'bottleneck', got 3"),
        ({"upsample": "bilinear"}, "bilinear"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LabelConditionedUNet(**kwargs)


def test_bad_input():
    net = LabelConditionedUNet(2, channels=(3, 4, 6))
    with pytest.raises(ValueError, match=r"3 or more channels .* got shape \(1, 2, 8, 8\)"):
        net(torch.rand(1, 2, 8, 8))
    with pytest.raises(ValueError, match=r"2 spatial axes .* got shape \(1, 3, 8, 8, 8\)"):
        net(torch.rand(1, 3, 8, 8, 8))
    with pytest.raises(ValueError, match="2 spatial axes and 1 channels"):
        LabelConditionedUNet(2, channels=(3, 4), conditioning=None, out_channels=4)(torch.rand(1, 2, 8, 8))
    with pytest.raises(ValueError, match="`atlas_image` must have 1 channels, got shape None"):
        net.encode(torch.rand(1, 1, 8, 8))
    features = net.encode(torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8))
    masks = torch.zeros(1, 1, 8, 8)
    for box in [(slice(0, 12), slice(0, 8)), (slice(-2, 4), slice(0, 8)), (slice(3, 3), slice(0, 8))]:
        with pytest.raises(ValueError, match=r"`box` must lie inside the window \(8, 8\)"):
            net.decode(features, masks, box)
    for halo in ("all", -1, 1.5):
        with pytest.raises(ValueError, match=f"`halo` must be 'exact' or a whole number >= 0, got {halo!r}"):
            net.decode(features, masks, halo=halo)
    with pytest.raises(ValueError, match=r"`masks` must be \(B, K, 8, 8\) as the features are, got \(1, 1, 4, 8\)"):
        net.decode(features, torch.zeros(1, 1, 4, 8))


@pytest.mark.parametrize("conditioning", ["bottleneck", "multiscale", "shared", None])
def test_a_tensor_with_metadata_trains_as_a_plain_one(conditioning):
    """One small volume on a CPU, as MONAI's SimpleInferer gives it to the network."""
    net = LabelConditionedUNet(channels=(4, 8), conditioning=conditioning, dropout=0.0, norm="instance")
    x = torch.rand(1, 3 if conditioning else 1, 8, 8, 8)
    gradients = []
    for volume in (x, MetaTensor(x)):
        net.zero_grad()
        net(volume).square().mean().backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    for plain, meta in zip(*gradients, strict=True):
        torch.testing.assert_close(torch.as_tensor(meta), torch.as_tensor(plain))


@pytest.mark.parametrize("shape", [(2, 3, 5, 6, 7), (1, 8, 20, 20, 20), (3, 2, 9, 9)])
def test_normalization_has_the_gradients_of_pytorchs_group_norm(shape):
    """To rounding in double precision; in float32, with a mean far from 0, as exact as PyTorch's own."""

    def gradients(normalize, dtype):
        random = torch.Generator().manual_seed(0)
        x = (torch.rand(shape, dtype=torch.float64, generator=random) * 3 + 2).to(dtype)
        x = x.to(memory_format=torch.channels_last_3d if x.ndim == 5 else torch.channels_last).requires_grad_()
        weight, bias = (torch.linspace(a, b, shape[1], dtype=dtype).requires_grad_() for a, b in ((0.5, 2), (-1, 1)))
        y = normalize(x, weight, bias)
        return torch.autograd.grad((y**3 * torch.rand(shape, generator=random)).sum(), (x, weight, bias))

    def own(*arguments):
        return InstanceNormalization.apply(*arguments, 1e-5)

    def pytorchs(x, weight, bias):
        return F.group_norm(x, shape[1], weight, bias, 1e-5)

    exact = gradients(pytorchs, torch.float64)
    single, reference = gradients(own, torch.float32), gradients(pytorchs, torch.float32)
    for a, b, c, e in zip(gradients(own, torch.float64), single, reference, exact, strict=True):
        size = e.abs().max()
        assert torch.allclose(a, e, rtol=0, atol=1e-10 * size.item())
        assert (b - e).abs().max() <= 2 * (c - e).abs().max() + 1e-6 * size


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_crops_have_the_gradients_of_slices(layout):
    """Overlapping crops of both items, one of them the whole; the backward twice."""
    x = torch.rand(2, 3, 6, 7, 8, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    boxes = [(slice(0, 4), slice(1, 4), slice(2, 8)), (slice(2, 6), slice(0, 3), slice(1, 7))]
    whole = (slice(0, 6), slice(0, 7), slice(0, 8))
    source = crop_source(x)
    crops = [gather(source, [1, 0], boxes), gather(source, [1, 1], boxes), gather(source, [1], [whole])]
    slices = [torch.stack([crop(x[i], box) for i, box in zip(items, boxes, strict=True)]) for items in ([1, 0], [1, 1])]
    slices.append(x[1:])
    for a, b in zip(crops, slices, strict=True):
        assert torch.equal(a, b)
    weights = [torch.rand_like(b) for b in slices]
    loss = sum((a**2 * w).sum() for a, w in zip(crops, weights, strict=True))
    expected = torch.autograd.grad(sum((b**2 * w).sum() for b, w in zip(slices, weights, strict=True)), x)[0]
    for _ in range(2):
        assert torch.allclose(torch.autograd.grad(loss, x, retain_graph=True)[0], expected)
