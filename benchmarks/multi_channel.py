"""The multi-channel U-Net, with one channel per label: the baseline that label conditioning is measured against."""

from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch.nn.functional import interpolate


class MultiChannelInferer(Inferer):
    """Logits of a plain U-Net, or, with ``labels``, the label map with the best one at each voxel.

    Args:
        labels: the id of each channel but the first, which is the background.
        upsample: how many times finer the grid is on which the best one is chosen, as in ``LabelSweepInferer``.
    """

    def __init__(self, labels: Sequence[int] | None = None, upsample: int = 1) -> None:
        self.ids = None if labels is None else torch.tensor([0, *labels], dtype=torch.int32)
        self.upsample = upsample

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Logits ``(B, C, *spatial)`` or ids ``(B, 1, *finer)``, of the first channel of ``inputs``."""
        logits = network(inputs.as_subclass(torch.Tensor)[:, :1])  # metadata cost time at every layer
        if self.ids is None:
            return logits
        channel = self._best_channel(logits.softmax(dim=1))
        result = MetaTensor(self.ids.to(channel.device)[channel], meta=inputs.meta)
        result.affine = inputs.affine / torch.tensor([*[self.upsample] * 3, 1])
        return result

    def _best_channel(self, probabilities: torch.Tensor) -> torch.Tensor:
        """The channel with the highest probability on the finer grid, ``(B, 1, *finer)``."""
        fine = [(size - 1) * self.upsample + 1 for size in probabilities.shape[2:]]
        best = probabilities.new_zeros(len(probabilities), 1, *fine)
        channel = torch.zeros_like(best, dtype=torch.int64)
        for k in range(probabilities.shape[1]):  # one at a time: all of them on the finer grid would not fit
            score = interpolate(probabilities[:, k : k + 1], fine, mode="trilinear", align_corners=True)
            channel[score > best] = k
            torch.maximum(best, score, out=best)
        return channel
