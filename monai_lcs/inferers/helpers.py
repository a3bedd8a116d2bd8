"""One process works through the scans; the others wait for its sweeps, and decode their part of the labels of each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from monai.inferers import Inferer
from torch import Tensor

from monai_lcs.inferers.label_sweep import LabelSweepInferer

__all__ = ["HelpedInferer", "follow", "leading"]


class HelpedInferer(Inferer):
    """A :class:`LabelSweepInferer` of the first rank, whose labels the ranks in :func:`follow` decode with it.

    Reading, alignment and writing are the first rank's alone. So a scan that cannot be used concerns no other rank.

    Args:
        inferer: with ``label_parallel=True``. The other ranks need no copy of it.
    """

    def __init__(self, inferer: LabelSweepInferer) -> None:
        super().__init__()
        self.inferer = inferer

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Call the inferer on all ranks."""
        amp = torch.is_autocast_enabled(inputs.device.type)
        _broadcast((_of_a_helper(self.inferer), inputs.cpu(), amp, args, kwargs))
        return self.inferer(inputs, network, *args, **kwargs)


def follow(network: Any, device: torch.device | str = "cpu") -> None:
    """Help the first rank with each of its sweeps, until it leaves :func:`leading`.

    A sweep that fails is the first rank's to report; this one waits for the next.

    Args:
        network: with the weights of the first rank's.
        device: where it is.
    """
    while (sweep := _broadcast(None)) is not None:
        inferer, inputs, amp, args, kwargs = sweep
        inputs = inputs.to(device)
        # What fails here is known to the first rank, see `Ranks.together`
        with suppress(Exception), torch.autocast(inputs.device.type, enabled=amp):
            inferer(inputs, network, *args, **kwargs)


@contextmanager
def leading() -> Iterator[None]:
    """What the first rank does while the others :func:`follow`; at its end they go on.

    They go on as well where cases failed and the process is to end with their status. When it is stopped from outside,
    in the middle of a sweep, torchrun stops the others.
    """
    try:
        yield
    except (Exception, SystemExit):  # whatever it is, it is told by the caller; an interrupt may come within a sweep
        _broadcast(None)
        raise
    _broadcast(None)


def _of_a_helper(inferer: LabelSweepInferer) -> LabelSweepInferer:
    """The inferer as another rank calls it: it computes the same, and tells nobody."""
    helper = copy.copy(inferer)
    helper.progress = False
    helper.device = helper.sw_device = None
    helper.on_confidence = None if inferer.on_confidence is None else _nobody
    return helper


def _nobody(item: int, confidence: dict[int, float]) -> None:
    """Nobody is told."""


def _broadcast(value: Any) -> Any:
    """What the first rank gives."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
