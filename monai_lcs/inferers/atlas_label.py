"""The propagated labels as the result."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

__all__ = ["AtlasLabelInferer"]


class AtlasLabelInferer(Inferer):
    """Return the propagated atlas labels, whatever the network: the baseline that every network must beat.

    Example:
        >>> AtlasLabelInferer()(torch.tensor([[[[0.5, 0.5]], [[0.4, 0.6]], [[17.0, 0.0]]]]), None)
        tensor([[[[17,  0]]]], dtype=torch.int32)
    """

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the last channel of ``inputs``, ``(B, 1, *spatial)``, as int32."""
        return inputs[:, -1:].to(torch.int32)
