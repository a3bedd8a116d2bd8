"""Shares the labels of a volume among processes: each decodes some, and two reductions merge the best of all."""

from __future__ import annotations

import atexit
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from monai_lcs.boxes import CALL_COST
from monai_lcs.inferers.merger import BestLabelMerger, FineLabelMerger

__all__ = ["Ranks", "digest", "join_ranks", "leave_ranks", "share_out"]


def join_ranks(device: torch.device | str = "cpu", timeout: timedelta | None = None) -> int:
    """Join the other processes that ``torchrun`` has started; on CPUs this one leaves them when it ends.

    Args:
        device: where this one computes; a GPU of its own.
        timeout: how long one waits for another, such as one that :func:`monai_lcs.inferers.follow` waits for;
            PyTorch's by default, some minutes.

    Returns:
        The rank of this process.
    """
    on_gpu = torch.device(device).type == "cuda"
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timeout)
        if not on_gpu:  # NCCL would wait for the others there, also where this one has failed
            atexit.register(leave_ranks)  # threads of gloo still alive at the very end can abort the process
    if on_gpu:
        torch.cuda.set_device(torch.device(device))
    return dist.get_rank()


def leave_ranks() -> None:
    """Leave the other processes, where this one has joined any."""
    if dist.is_initialized():
        dist.destroy_process_group()


class Ranks:
    """The processes of ``torch.distributed`` that work on one volume together.

    Args:
        group: the processes; all by default.

    Attributes:
        rank: the number of this process.
        count: how many there are.

    Raises:
        ValueError: where no processes were started.

    Example:
        >>> Ranks()
        Traceback (most recent call last):
        ValueError: `label_parallel` needs processes: start them by torchrun, and call monai_lcs.inferers.join_ranks().
    """

    def __init__(self, group: Any = None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise ValueError(
                "`label_parallel` needs processes: start them by torchrun, and call monai_lcs.inferers.join_ranks()."
            )
        self.group = group
        self.rank, self.count = dist.get_rank(group), dist.get_world_size(group)

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Do something on all ranks, or fail on all: none waits for one that has failed and gone on.

        Args:
            what: tells the work; it must be the same on all ranks.

        Raises:
            RuntimeError: where another rank has failed, or does other work.
        """
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            failed = error
        said: list[Any] = [None] * self.count
        dist.all_gather_object(said, (what, None if failed is None else str(failed)), group=self.group)
        if failed is not None:
            raise failed
        for rank, (other, message) in enumerate(said):
            if message is not None:
                raise RuntimeError(f"Rank {rank} has failed: {message}")
            if other != what:
                raise RuntimeError(f"Rank {rank} works on another volume, or looks for other labels: {other}.")

    def merge(self, merger: BestLabelMerger | FineLabelMerger) -> None:
        """Give every rank what all ranks have merged, as if one had merged it all."""
        if isinstance(merger, BestLabelMerger):
            self._merge_best(merger)
            return
        self._largest(merger.coarse)
        self._merge_best(merger.fine)
        if merger.as_given is not None:
            self._merge_best(merger.as_given)

    def _merge_best(self, best: BestLabelMerger) -> None:
        """The best label and its logit at every voxel, and what tells the confidence."""
        own, ranks = best.logit, best.ranks
        best.logit = own.clone()
        self._largest(best.logit)
        best.ranks = self._smallest_where(own == best.logit, ranks, len(best.labels))
        if best.second is not None:
            lost = ranks != best.ranks  # against another rank's label: what was best here is its rival
            best.second.copy_(torch.where(lost, own, best.second))
            self._largest(best.second)
            self._gather_expected(best)

    def _smallest_where(self, best: Tensor, labels: Tensor, count: int) -> Tensor:
        """The smallest label of the processes that have the best logit; background, 0, comes first, as for one process.

        Where none has it, since it is not a number, the voxel is background.

        Args:
            best: at which voxels this process has the best logit.
            labels: its labels there, ranks from 0 to ``count``.
            count: the largest that there can be.
        """
        first = count + 1  # what stands for the background; 0 stands for no label at all
        fits = torch.uint8 if first <= torch.iinfo(torch.uint8).max else torch.int32  # gloo reduces no int16
        largest = (first - labels.to(fits)).mul_(best)
        self._largest(largest)
        return (first - largest).mul_(largest > 0).to(labels.dtype)

    def _gather_expected(self, best: BestLabelMerger) -> None:
        """The voxels to expect of each label in the boxes of all ranks."""
        gathered: list[Any] = [None] * self.count
        dist.all_gather_object(gathered, dict(best.expected), group=self.group)
        best.expected.clear()
        for found in gathered:
            for label, voxels in found.items():
                best.expected[label].extend(voxels)

    def merge_masks(self, masks: Tensor) -> None:
        """Give every rank the masks of all ranks, integers 0 and 1."""
        self._largest(masks)

    def _largest(self, values: Tensor) -> None:
        """Replace each value by the largest of all ranks."""
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)


def share_out(batches: Sequence[tuple[Sequence[int], Sequence[int]]], count: int) -> dict[int, int]:
    """Share work among ranks: whole batches, the largest first, each to the rank that has the least so far.

    What is decoded together stays together, so that every logit has the bits that one process would give it.

    Args:
        batches: for each batch, its members and the size that each of them has.
        count: the number of ranks.

    Returns:
        The rank of each member.

    Example:
        >>> sorted(share_out([([0, 3], (40, 40)), ([1], (90, 90)), ([2], (20, 20))], count=2).items())
        [(0, 1), (1, 0), (2, 1), (3, 1)]
    """
    loads, owners = [0] * count, dict[int, int]()
    costs = [len(members) * math.prod(size) + CALL_COST for members, size in batches]
    for i in sorted(range(len(batches)), key=lambda i: (-costs[i], i)):
        rank = loads.index(min(loads))
        loads[rank] += costs[i]
        owners.update(dict.fromkeys(batches[i][0], rank))
    return owners


def digest(volume: Tensor, groups: Mapping[int, Sequence[int]]) -> str:
    """A text that two ranks share where they have the same volume and look for the same labels.

    Example:
        >>> digest(torch.zeros(2, 3), {1: (1,)}) == digest(torch.zeros(2, 3), {2: (2,)})
        False
    """
    found = hashlib.blake2b(repr((tuple(volume.shape), volume.dtype, sorted(groups.items()))).encode())
    found.update(volume.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()[:32]
