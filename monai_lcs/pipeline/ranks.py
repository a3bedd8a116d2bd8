"""Which of several processes this is, in a training by torchrun."""

from __future__ import annotations

from monai.utils import optional_import

__all__ = ["rank"]


def rank() -> int:
    """The number of this process among those that train together; 0 where it is alone.

    Example:
        >>> rank()
        0
    """
    distributed, _ = optional_import("ignite.distributed")
    return distributed.get_rank()
