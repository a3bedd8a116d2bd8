"""Which integers a type holds exactly."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["EXACT_INTEGERS", "holds_exactly"]

EXACT_INTEGERS = {torch.bfloat16: 2**8, torch.float16: 2**11, torch.float32: 2**24}
"""For a type of a network's input, the integer up to which it holds every integer exactly."""


def holds_exactly(dtype: torch.dtype, ids: Sequence[int]) -> bool:
    """Tell whether a type holds every one of some integers exactly.

    Args:
        dtype: an integer, floating-point or bool type.
        ids: integers that fit 64 bits.

    Example:
        >>> holds_exactly(torch.uint8, [0, 255]), holds_exactly(torch.uint8, [256])
        (True, False)
        >>> holds_exactly(torch.float32, [2**24]), holds_exactly(torch.float32, [2**24 + 1])
        (True, False)
    """
    exact = torch.tensor(ids, dtype=torch.int64)
    return torch.equal(exact.to(dtype).to(torch.int64), exact)
