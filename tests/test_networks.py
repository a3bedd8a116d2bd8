"""The network against an independent reference, and its laws."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from monai.utils import set_determinism
from torch import nn

from monai_lcs.boxes import pad_end
from monai_lcs.networks import LabelConditionedUNet


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

    def __init__(self, widths, multiscale):
        super().__init__()
        self.multiscale = multiscale

        def block(i, o):
            layers = []
            for a, b in ((i, o), (o, o)):
                layers += [nn.Conv3d(a, b, 3, padding=1), nn.BatchNorm3d(b), nn.ReLU()]
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
        for i, (up, block) in enumerate(zip(self.ups, self.blocks, strict=True)):
            level = n - 1 - i
            image = up(F.interpolate(image, scale_factor=2, mode="nearest"))
            parts = [image, skips[level]]
            if self.multiscale:
                parts = [image, F.max_pool3d(mask, 2**level), skips[level], F.max_pool3d(atlas, 2**level)]
            image = block(torch.cat(parts, 1))
        return self.head(image)


@pytest.mark.parametrize("conditioning", ["bottleneck", "multiscale"])
def test_equals_reference(conditioning):
    net = trained_like(LabelConditionedUNet(channels=(4, 8, 16, 32), conditioning=conditioning))
    reference = ReferenceUNet((4, 8, 16, 32), conditioning == "multiscale").eval()
    ours, theirs = list(net.state_dict().values()), list(reference.state_dict().values())
    order = _order(net, reference)
    assert len(ours) == len(theirs) == len(order)
    reference.load_state_dict(order)
    x = torch.cat([torch.rand(2, 2, 16, 24, 16), (torch.rand(2, 3, 16, 24, 16) > 0.7).float()], 1)
    with torch.no_grad():
        expected = torch.cat([reference(torch.cat([x[:, :2], x[:, k : k + 1]], 1)) for k in (2, 3, 4)], 1)
        assert torch.allclose(net(x), expected, atol=1e-5)
        assert expected.std() > 1e-2


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
@pytest.mark.parametrize("conditioning", ["bottleneck", "multiscale", None])
def test_options_give_one_channel_per_mask(spatial_dims, upsample, residual, conditioning):
    net = LabelConditionedUNet(
        spatial_dims,
        image_channels=2,
        atlas_channels=1,
        channels=(4, 6, 8),
        conditioning=conditioning,
        out_channels=1 if conditioning else 5,
        upsample=upsample,
        residual=residual,
        norm="instance",
    )
    shape = (17, 10, 13)[:spatial_dims]  # not divisible by the stride
    channels, answers = (2 + 1 + 3, 3) if conditioning else (2, 5)
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


@pytest.mark.parametrize("conditioning", ["bottleneck", "multiscale"])
def test_box_equals_window_away_from_border(conditioning):
    net = trained_like(LabelConditionedUNet(2, channels=(3, 4, 6), conditioning=conditioning))
    image, atlas = torch.rand(2, 1, 1, 78, 81)
    masks = (torch.rand(1, 2, 78, 81) > 0.8).float()
    halo = 20  # what the bottleneck sees, 5 voxels of 4: 3 at level 0, 2 + 3 at level 1, 3 + 2 at level 2
    box = (slice(4, 68), slice(8, 84))  # the second axis ends with the window, padded to a multiple of 4
    with torch.no_grad():
        features = net.encode(image, atlas)
        whole = net.decode(features, masks)
        crop = net.decode(features, pad_end(masks, 4)[:, :, 4:68, 8:84], box)
    assert crop.shape == (1, 2, 64, 76)
    inner = whole[:, :, 4 + halo : 68 - halo, 8 + halo : 81]
    assert torch.allclose(crop[:, :, halo:-halo, halo:73], inner, atol=1e-5)
    assert not torch.allclose(crop[:, :, :1, :73], whole[:, :, 4:5, 8:81], atol=1e-4)


def test_box_that_is_the_window_is_exact():
    net = trained_like(LabelConditionedUNet(3, channels=(3, 4, 6), norm=("instance", {"affine": True})))
    x = torch.rand(1, 4, 9, 10, 11)
    window = (slice(0, 9), slice(0, 10), slice(0, 11))
    with torch.no_grad():
        assert torch.allclose(net(x), net(x, boxes=[[window, window]]), atol=1e-5)


def test_forward_in_boxes_is_decode_in_each_box():
    net = trained_like(LabelConditionedUNet(2, channels=(3, 4, 6), norm="instance"))
    x = torch.rand(2, 4, 20, 20)
    box = (slice(6, 15), slice(8, 20))
    with torch.no_grad():
        out = net(x, boxes=[[box, None], [None, box]])
        features = net.encode(x[1:, :1], x[1:, 1:2])
        crop = net.decode(features, x[1:, 3:, 4:20, 4:20], (slice(4, 20), slice(4, 20)))  # 16 voxels
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


def test_exports():
    net = trained_like(LabelConditionedUNet(2, channels=(3, 4, 6), conditioning="multiscale"))
    x = torch.rand(1, 4, 13, 16)
    exported = torch.export.export(net, (x,)).module()
    assert torch.allclose(exported(x), net(x), atol=1e-6)


def test_learns_to_answer_for_the_requested_label():
    """Two bright squares; the atlas mask says which. A network that ignores the mask cannot get this right."""
    net = LabelConditionedUNet(2, channels=(8, 16), conditioning="multiscale", norm="instance", dropout=0.0)
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
    with pytest.raises(ValueError, match="multiples of 4 and lie inside"):
        net.decode(features, torch.zeros(1, 1, 4, 8), (slice(2, 6), slice(0, 8)))
    with pytest.raises(ValueError, match="lie inside"):
        net.decode(features, torch.zeros(1, 1, 12, 8), (slice(0, 12), slice(0, 8)))
    with pytest.raises(ValueError, match=r"`masks` must be \(B, K, 8, 8\) as the features are, got \(1, 1, 4, 8\)"):
        net.decode(features, torch.zeros(1, 1, 4, 8))
