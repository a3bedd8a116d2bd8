"""Devices, and the processes that share the work."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from monai.handlers import from_engine
from monai.utils import set_determinism

from monai_lcs.inferers import join_ranks, leave_ranks
from monai_lcs.pipeline.ranks import rank

__all__ = [
    "check_bfloat16",
    "default_device",
    "default_workers",
    "device_ids",
    "is_cuda",
    "scored_once",
    "start_processes",
    "stop_processes",
]


def default_device() -> torch.device:
    """The GPU where there is one; of several processes each its own."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def is_cuda(device: torch.device | str) -> bool:
    """Whether a device is a GPU.

    Example:
        >>> is_cuda("cpu"), is_cuda("cuda:1")
        (False, True)
    """
    return torch.device(device).type == "cuda"


def check_bfloat16(wanted: bool, device: torch.device | str) -> None:
    """Warn where a CPU lacks AMX instructions: it may train slower in bfloat16 than in float32.

    Args:
        wanted: whether to train in bfloat16.
        device: where.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # of newer versions
    if wanted and torch.device(device).type == "cpu" and capabilities and not capabilities().get("amx_bf16"):
        warnings.warn("--bfloat16 may slow this training down: the CPU has no AMX instructions.", stacklevel=2)


def default_workers(device: torch.device | str) -> int:
    """Processes that prepare samples: a GPU must not wait for them, on a CPU they would take its cores."""
    return 4 if is_cuda(device) else 0


def device_ids(device: torch.device | str) -> list[torch.device] | None:
    """What ``DistributedDataParallel`` wants: the process's own GPU, nothing on a CPU."""
    return [torch.device(device)] if is_cuda(device) else None


def start_processes(device: torch.device | str, seed: int | None) -> None:
    """Join the other processes that ``torchrun`` started; each draws other labels and augmentations."""
    joined = join_ranks(device)
    set_determinism(None if seed is None else seed + joined)


def scored_once(cases: int) -> Callable[[Any], Any]:
    """What the validation scores in each process, where those without a case of their own repeat one.

    The label map of such a process is emptied, so that its Dice is NaN and does not count.

    Args:
        cases: how many there are.

    Example:
        >>> output = [{"pred": torch.ones(1, 2), "label": torch.ones(1, 2)}]
        >>> scored_once(1)(output), scored_once(0)(output)
        (([tensor([[1., 1.]])], [tensor([[1., 1.]])]), ([tensor([[1., 1.]])], [tensor([[0., 0.]])]))
    """
    of_output = from_engine(["pred", "label"])

    def scored(output: Any) -> Any:
        predicted, true = of_output(output)
        return predicted, true if rank() < cases else [torch.zeros_like(label) for label in true]

    return scored


def stop_processes() -> None:
    """Leave the other processes."""
    leave_ranks()
