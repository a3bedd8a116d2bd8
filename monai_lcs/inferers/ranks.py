"""Shares the labels of a volume among processes: each decodes some, and one all-reduce merges the best of all."""

from __future__ import annotations

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

__all__ = ["Ranks", "digest", "from_keys", "join_ranks", "share_out", "to_keys"]


def join_ranks(device: torch.device | str = "cpu", timeout: timedelta | None = None) -> int:
    """Join the other processes that ``torchrun`` has started.

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
    if on_gpu:
        torch.cuda.set_device(torch.device(device))
    return dist.get_rank()


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
        own = None if best.second is None else (best.logit.clone(), best.ranks.clone())
        keys = to_keys(best)
        self._largest(keys)
        from_keys(keys, best)
        if best.second is not None and own is not None:
            lost = own[1] != best.ranks  # against another rank's label: what was best here is its rival
            best.second.copy_(torch.where(lost, own[0], best.second))
            self._largest(best.second)
            self._gather_expected(best)

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


def to_keys(best: BestLabelMerger) -> Tensor:
    """The best logit and its label as one int64, which is larger for the better one: on a tie, for the smaller id.

    Args:
        best: with logits in float32.

    Example:
        >>> merger = BestLabelMerger([17, 53], shape=(2,))
        >>> merger.aggregate(53, torch.tensor([2.0, 2.0]), (slice(0, 2),))
        >>> other = BestLabelMerger([17, 53], shape=(2,))
        >>> other.aggregate(17, torch.tensor([2.0, 1.0]), (slice(0, 2),))
        >>> from_keys(torch.maximum(to_keys(merger), to_keys(other)), merger)
        >>> merger.finalize()
        tensor([17, 53], dtype=torch.int32)
    """
    ordered = _order((best.logit + 0.0).view(torch.int32))  # -0.0 becomes 0.0, which equals it
    keys = ordered.long()
    keys <<= 32
    keys += len(best.labels) - best.ranks.int()  # background, rank 0, wins a tie
    return keys


def from_keys(keys: Tensor, best: BestLabelMerger) -> None:
    """Replace the best labels and their logits by those that :func:`to_keys` put into the keys, which are used up."""
    best.logit.copy_(_order((keys >> 32).int()).view(torch.float32))
    best.ranks.copy_(keys.bitwise_and_(0xFFFFFFFF).neg_().add_(len(best.labels)))


def _order(bits: Tensor) -> Tensor:
    """Bits of floats as integers in the order of the floats, in place; and back, which is the same."""
    bits ^= (bits >> 31).bitwise_and_(0x7FFFFFFF)  # of negative numbers the larger bits are the smaller number
    return bits


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
