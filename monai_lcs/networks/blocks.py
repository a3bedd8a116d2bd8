"""The building blocks of the label conditioned U-Net: two convolutions, and up-sampling."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv
from monai.networks.layers.utils import get_act_layer
from monai.utils import UpsampleMode
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from monai_lcs.networks.crops import exporting

__all__ = [
    "Block",
    "InstanceNormalization",
    "UpConvolution",
    "convolve",
    "in_place",
    "instance_norm",
    "kernel_of",
    "norm_name",
    "normalization",
    "normalize_and_activate",
    "up",
]

CONVOLVE = {2: F.conv2d, 3: F.conv3d}
CONVOLVE_TRANSPOSED = {2: F.conv_transpose2d, 3: F.conv_transpose3d}


class FasterConvolution(torch.autograd.Function):
    """A 3x3x3 convolution on a CPU by the fastest oneDNN kernels, forward and backward; see :func:`convolve`.

    The gradient by the volume is the convolution of the gradient with the mirrored kernel. That keeps to the fast
    kernel where there is one volume, and leaves out the channels that are no function of any weight.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, constant: Tensor | None) -> Tensor:
        """Convolve ``(N, C, *spatial)`` to ``(N, width, *spatial)``."""
        ctx.save_for_backward(x, weight, constant)
        ctx.has_bias = bias is not None
        return _onednn(_with_constant(x, constant), weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients by the volume, the weight and the bias, where they are asked for."""
        x, weight, constant = ctx.saved_tensors
        by_x = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            mirrored = weight[:, : x.shape[1]].transpose(0, 1).flip(2, 3, 4)
            by_x = _onednn(gradient, mirrored.contiguous(memory_format=torch.channels_last_3d))
        if ctx.needs_input_grad[1]:
            by_weight = _weight_gradient(_with_constant(x, constant), gradient, weight)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            by_bias = gradient.sum((0, 2, 3, 4))
        return by_x, by_weight, by_bias, None


def _with_constant(x: Tensor, constant: Tensor | None) -> Tensor:
    return x if constant is None else torch.cat([x, constant], dim=1)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.mkldnn_convolution(x, weight, bias, [1] * 3, [1] * 3, [1] * 3, 1)


def _weight_gradient(x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """The gradient of a convolution by its weight.

    For a single small volume PyTorch would choose the slow kernel. The two halves of the volume, with the plane that
    each sees of the other, are a batch of two: the same gradient to rounding.
    """
    padding = [1, 1, 1]
    if _is_small(x):
        half = -(-x.shape[2] // 2)
        missing = 2 * half - x.shape[2]
        x = F.pad(x, (0, 0, 0, 0, 1, 1 + missing))
        gradient = F.pad(gradient, (0, 0, 0, 0, 0, missing)) if missing else gradient
        x = torch.cat([x[:, :, : half + 2], x[:, :, half:]])
        gradient = torch.cat([gradient[:, :, :half], gradient[:, :, half:]])
        padding = [0, 1, 1]  # the planes before and after are there already
    wanted = [False, True, False]
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [1] * 3, padding, [1] * 3, False, [0] * 3, 1, wanted
    )[1]


def _is_small(x: Tensor) -> bool:
    """Whether PyTorch sends a volume to its slow path: one volume, channels times the first two axes 20480 or less."""
    return x.ndim == 5 and len(x) == 1 and x.shape[1] * x.shape[2] * x.shape[3] <= 20480


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, constant: Tensor | None = None) -> Tensor:
    """A 3x3 or 3x3x3 convolution that keeps the size.

    PyTorch sends a single small volume on a CPU to a path that is six to fifteen times slower than the oneDNN kernel it
    takes for two; that kernel is called here for one as well. Under ``torch.autocast("cpu")`` PyTorch's own serves.

    Args:
        x: ``(N, C, *spatial)``.
        weight: ``(width, C, ...)``, for the channels of ``constant`` as well.
        bias: ``(width,)``.
        constant: further channels, of which no gradient is needed.
    """
    plain = x.device.type != "cpu" or x.ndim != 5 or not x.dtype == weight.dtype == torch.float32
    plain = plain or torch.is_autocast_enabled("cpu")
    if not plain and torch.backends.mkldnn.is_available() and not torch.compiler.is_compiling():
        if torch.is_grad_enabled() and not torch.jit.is_tracing():
            return FasterConvolution.apply(
                x.as_subclass(Tensor), weight, bias, constant
            )  # a MetaTensor makes it a view
        if _is_small(both := _with_constant(x, constant)):
            return _onednn(both, weight, bias)
    return CONVOLVE[x.ndim - 2](_with_constant(x, constant), weight, bias, padding=1)


def instance_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize ``(N, C, *spatial)`` over the spatial axes, with the same bits for any number of threads.

    PyTorch's group norm, for channels last in memory, adds up a large volume in as many parts as there are threads,
    and each part without care for rounding: its results are wrong by up to 1e-2 at a million voxels. These are wrong
    by about 1e-5, and take a tenth to a third longer.

    Returns:
        The volume; and ``(N, C)`` each, the means and the inverse standard deviations.

    Example:
        >>> x = torch.tensor([[[1.0, 3.0]]])
        >>> instance_norm(x, torch.ones(1), torch.zeros(1), 0.0)
        (tensor([[[-1.,  1.]]]), tensor([[2.]]), tensor([[1.]]))
    """
    axes, voxels = tuple(range(2, x.ndim)), x[0, 0].numel()
    mean = x.sum(axes) / voxels
    variance = (x.square().sum(axes) / voxels - mean.square()).clamp_(min=0)
    rstd = torch.rsqrt(variance + eps)
    slope = weight * rstd
    slope, constant = (each.view(*each.shape, *[1] * len(axes)) for each in (slope, bias - mean * slope))
    return torch.addcmul(constant, x, slope), mean, rstd


class InstanceNormalization(torch.autograd.Function):
    """:func:`instance_norm`, with a backward that on a CPU is four times faster than that of PyTorch's group norm.

    For volumes with their channels last in memory PyTorch's passes over them one channel at a time. Here each sum and
    the gradient itself is one pass over all channels.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Normalize ``(N, C, *spatial)`` over the spatial axes."""
        y, mean, rstd = instance_norm(x, weight, bias, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients by the volume, the weight and the bias."""
        x, weight, mean, rstd = ctx.saved_tensors
        axes, voxels = list(range(2, x.ndim)), x[0, 0].numel()
        by_bias = gradient.sum(axes)  # of each volume: (N, C)
        by_weight = ((gradient * x).sum(axes) - mean * by_bias) * rstd
        slope = rstd * weight
        by_square = -slope * rstd * by_weight / voxels
        constant = -slope * by_bias / voxels - by_square * mean
        slope, by_square, constant = (each.view(*each.shape, *[1] * len(axes)) for each in (slope, by_square, constant))
        by_x = torch.addcmul(constant, x, by_square).addcmul_(gradient, slope)
        return by_x, by_weight.sum(0), by_bias.sum(0), None


def normalize_and_activate(layers: nn.Module, x: Tensor) -> Tensor:
    """Call the norm and the activation of MONAI's ``Convolution``; on a CPU an instance norm is :func:`instance_norm`.

    Under ``torch.autocast("cpu")`` the instance norm is in float32: sums over a volume are.

    Example:
        >>> layers = Convolution(2, 1, 1, act="relu", norm=normalization("instance", 1), adn_ordering="NA").adn
        >>> normalize_and_activate(layers, torch.tensor([[[[1.0, 3.0]]]])).round(decimals=3)
        tensor([[[[0., 1.]]]])
    """
    layer: Any
    for layer in layers.children():
        if x.dtype == torch.bfloat16 and isinstance(layer, nn.GroupNorm) and torch.is_autocast_enabled("cpu"):
            x = x.to(torch.float32, memory_format=torch.channels_last_3d if x.ndim == 5 else torch.preserve_format)
        if not _is_instance_norm(layer, x):
            x = layer(x)
        elif torch.is_grad_enabled():
            x = InstanceNormalization.apply(x, layer.weight, layer.bias, layer.eps)
        else:
            x = instance_norm(x, layer.weight, layer.bias, layer.eps)[0]
    return x


def _is_instance_norm(layer: Any, x: Tensor) -> bool:
    """Whether to normalize by :func:`instance_norm`: on a CPU, and not in a graph that is recorded."""
    one_each = isinstance(layer, nn.GroupNorm) and layer.num_groups == layer.num_channels and layer.affine
    return one_each and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not exporting()


def kernel_of(convolution: nn.Module) -> tuple[Tensor, Tensor]:
    """The weight and the bias of MONAI's ``Convolution``, whose norm and activation are called separately.

    Example:
        >>> weight, bias = kernel_of(Convolution(2, in_channels=3, out_channels=4))
        >>> tuple(weight.shape), tuple(bias.shape)
        ((4, 3, 3, 3), (4,))
    """
    conv: Any = convolution.get_submodule("conv")
    return conv.weight, conv.bias


def norm_name(norm: str | tuple | None) -> str:
    """The lower-case name of a normalization in MONAI's notation; empty for none.

    Example:
        >>> norm_name(("INSTANCE", {"affine": True})), norm_name(None)
        ('instance', '')
    """
    return "" if norm is None else (norm if isinstance(norm, str) else norm[0]).lower()


def normalization(norm: str | tuple | None, width: int) -> str | tuple | None:
    """Replace an instance norm by a group norm with one channel in each group.

    The numbers are the same; on a CPU it is three times faster. Other norms are returned as they are.

    Example:
        >>> normalization("instance", 8)
        ('group', {'num_groups': 8, 'affine': False, 'eps': 1e-05})
        >>> normalization("batch", 8)
        'batch'
    """
    options = {} if norm is None or isinstance(norm, str) else norm[1]
    if norm_name(norm) != "instance" or options.get("track_running_stats"):
        return norm
    return "group", {"num_groups": width, "affine": options.get("affine", False), "eps": options.get("eps", 1e-5)}


def in_place(act: str | tuple) -> str | tuple:
    """Let a ReLU overwrite its input: a convolution or a norm has just made it, and nothing else needs it.

    Example:
        >>> in_place("RELU"), in_place("PRELU")
        (('relu', {'inplace': True}), 'PRELU')
    """
    return ("relu", {"inplace": True}) if isinstance(act, str) and act.lower() == "relu" else act


class Block(nn.Module):
    """Two 3x3x3 convolutions with norm and activation; part of the input is the same for every label.

    The first convolution is linear in its input channels. :meth:`share` computes the contribution of the
    label-independent channels once, and :meth:`forward` adds the contribution of a label's own channels.

    Args:
        spatial_dims: 2 or 3.
        label_channels: number of input channels that differ from label to label, 0 or more.
        shared_channels: number of label-independent input channels.
        width: number of output channels.
        act: activation, as MONAI names it.
        norm: normalization, as MONAI names it; ``None`` for none.
        residual: concatenate the input to the output.
        dropout: probability of dropout between the two convolutions.

    Example:
        >>> block = Block(2, label_channels=1, shared_channels=3, width=4, act="relu", norm="batch", residual=False)
        >>> shared = block.share(torch.rand(1, 3, 8, 8))  # once
        >>> block(shared, torch.rand(1, 1, 8, 8)).shape  # for each label
        torch.Size([1, 4, 8, 8])
    """

    def __init__(
        self,
        spatial_dims: int,
        label_channels: int,
        shared_channels: int,
        width: int,
        act: str | tuple,
        norm: str | tuple | None,
        residual: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        in_channels = label_channels + shared_channels
        norm = normalization(norm, width)
        act = in_place(act)
        self.first = Convolution(spatial_dims, in_channels, width, act=act, norm=norm, adn_ordering="NA")
        self.second = Convolution(spatial_dims, width, width, act=act, norm=norm, adn_ordering="NA")
        self.dropout = nn.Dropout(dropout)
        self.label_channels = label_channels
        self.residual = residual
        self.out_channels = width + (in_channels if residual else 0)

    def share(self, shared: Tensor, constant: Tensor | None = None) -> Tensor:
        """Compute what :meth:`forward` takes as ``shared``.

        Args:
            shared: ``(B, shared_channels, *spatial)``.
            constant: the last of these channels where they are no function of any weight.
        """
        if self.residual:  # the output needs the channels themselves
            return shared if constant is None else torch.cat([shared, constant], dim=1)
        weight, bias = kernel_of(self.first)
        return convolve(shared, weight[:, self.label_channels :], bias, constant)

    def forward(self, shared: Tensor, label: Tensor | None = None, constant: Tensor | None = None) -> Tensor:
        """Compute features ``(B, out_channels, *spatial)``.

        Args:
            shared: from :meth:`share`.
            label: ``(B, label_channels, *spatial)``; ``None`` where there are no such channels.
            constant: the last of the label channels where they are no function of any weight.
        """
        weight, bias = kernel_of(self.first)
        if self.residual:
            label = label if constant is None or label is None else torch.cat([label, constant], dim=1)
            x = shared if label is None else torch.cat([label, shared], dim=1)
            return torch.cat([self._finish(convolve(x, weight, bias)), x], dim=1)
        if label is not None:
            own = convolve(label, weight[:, : self.label_channels], constant=constant)
            shared = own.add_(shared)  # in place: these are the largest tensors of the network
            del own
        return self._finish(shared)

    def plain(self, x: Tensor) -> Tensor:
        """Compute ``forward(share(x))`` with one volume less in memory."""
        return self.forward(x) if self.residual else self._finish(self.share(x))

    def _finish(self, x: Tensor) -> Tensor:
        """Norm and activation of the first convolution, dropout, then the second convolution."""
        x = self.dropout(normalize_and_activate(self.first.get_submodule("adn"), x))
        x = convolve(x, *kernel_of(self.second))
        return normalize_and_activate(self.second.get_submodule("adn"), x)


class UpConvolution(nn.Module):
    """Nearest up-sampling by 2, a 3x3x3 convolution and an activation; the first two as one transposed convolution.

    The numbers are the same up to rounding. Along each axis the three taps of the kernel fall on only two voxels of the
    input, so this takes a third of the multiplications. The up-sampled input is never in memory.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.
        act: activation, as MONAI names it; ``None`` for none.

    Example:
        >>> UpConvolution(2, in_channels=4, out_channels=3)(torch.rand(1, 4, 5, 6)).shape
        torch.Size([1, 3, 10, 12])
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, act: str | tuple | None = None) -> None:
        super().__init__()
        self.conv = Conv[Conv.CONV, spatial_dims](in_channels, out_channels, kernel_size=3, padding=1)
        self.act = nn.Identity() if act is None else get_act_layer(in_place(act))
        self.spatial_dims = spatial_dims
        self.folded: Tensor | None = None

    def prepare(self) -> None:
        """Fold the kernel for all calls until the next :meth:`prepare`; in training, every call folds it again."""
        self.folded = None if torch.is_grad_enabled() or exporting() else self._fold(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Compute ``(B, out_channels, *(2 * spatial))`` from ``(B, in_channels, *spatial)``."""
        kernel = self._fold(self.conv.weight) if self.folded is None or torch.is_grad_enabled() else self.folded
        return self.act(CONVOLVE_TRANSPOSED[self.spatial_dims](x, kernel, self.conv.bias, stride=2, padding=1))

    def _fold(self, weight: Tensor) -> Tensor:
        """The kernel of the transposed convolution: each axis of 3 becomes one of 4, the sum of two shifted copies."""
        kernel = weight.flip(list(range(2, self.spatial_dims + 2))).transpose(0, 1)
        for axis in range(self.spatial_dims):
            before, after = [0] * 2 * self.spatial_dims, [0] * 2 * self.spatial_dims
            before[2 * axis], after[2 * axis + 1] = 1, 1
            kernel = F.pad(kernel, before) + F.pad(kernel, after)
        return kernel


def up(
    spatial_dims: int, in_channels: int, out_channels: int, upsample: str, act: str | tuple | None = None
) -> nn.Module:
    """Make a layer that doubles the size.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.
        upsample: ``"nontrainable"`` (nearest, then a convolution) or ``"deconv"`` (transposed convolution, kernel 3).
        act: activation of the result, as MONAI names it; ``None`` for none.

    Example:
        >>> up(2, 4, 3, "deconv")(torch.rand(1, 4, 5, 6)).shape
        torch.Size([1, 3, 10, 12])
    """
    if upsample == UpsampleMode.DECONV:
        act = None if act is None else in_place(act)
        return Convolution(
            spatial_dims, in_channels, out_channels, strides=2, act=act, norm=None, adn_ordering="A", is_transposed=True
        )
    return UpConvolution(spatial_dims, in_channels, out_channels, act)
