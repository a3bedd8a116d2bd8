"""The result does not depend on the number of threads, in no bit."""

import pytest
import torch
import torch.nn.functional as F

from monai_lcs.inferers import LabelSweepInferer
from monai_lcs.networks import LabelConditionedUNet
from monai_lcs.networks.blocks import instance_norm


@pytest.fixture
def with_threads():
    """Calls a function with 1, 2 and 4 threads."""
    before = torch.get_num_threads()

    def call(function):
        found = []
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(function())
        return found

    yield call
    torch.set_num_threads(before)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("shape", [(1, 8, 60, 50, 40), (5, 16, 20, 18, 16), (2, 3, 1, 1, 2)])
def test_instance_norm(with_threads, shape, memory_format):
    """Against PyTorch's in double precision; a mean of twice the deviation, as after a convolution with a bias."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) + 2).to(memory_format=memory_format)
    weight, bias = torch.randn(2, shape[1], generator=generator)
    one, *others = with_threads(lambda: instance_norm(x, weight, bias, 1e-5))
    for other in others:
        assert all(map(torch.equal, one, other))
    expected = F.instance_norm(x.double(), weight=weight.double(), bias=bias.double(), eps=1e-5)
    torch.testing.assert_close(one[0].double(), expected, rtol=1e-4, atol=1e-4)
    assert one[0].stride() == x.stride()
    torch.testing.assert_close(one[1], x.mean((2, 3, 4)), rtol=1e-5, atol=1e-5)


def test_a_constant_volume_becomes_the_bias():
    x = torch.full((1, 2, 7, 7, 7), 1e3)
    assert torch.allclose(
        instance_norm(x, torch.ones(2), torch.tensor([3.0, -1.0]), 1e-5)[0][0, :, 0, 0, 0],
        torch.tensor([3.0, -1.0]),
        atol=0.2,
    )


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("conditioning", ["multiscale", "shared"])
def test_the_sweep(with_threads, norm, conditioning):
    torch.manual_seed(0)
    options = {"affine": True}
    net = LabelConditionedUNet(
        3, channels=(8, 16, 32), conditioning=conditioning, norm=(norm, options), prior_logit=1.0
    )
    net = net.eval().to(memory_format=torch.channels_last_3d)
    inputs = torch.rand(1, 3, 64, 56, 48)
    inputs[:, 2] = 0
    for label, start in enumerate(((5, 5, 5), (30, 20, 10), (12, 30, 24)), start=1):
        inputs[0, 2][tuple(slice(a, a + 14) for a in start)] = label
    one, *others = with_threads(lambda: LabelSweepInferer(margin_mm=6, halo=0, upsample=2)(inputs, net))
    assert len(one.unique()) > 1
    assert all(torch.equal(one, other) for other in others)

    with torch.no_grad():
        one, *others = with_threads(lambda: net.encode(inputs[:, :1], inputs[:, 1:2]).levels)
    assert all(torch.equal(a, b) for other in others for a, b in zip(one, other, strict=True))
