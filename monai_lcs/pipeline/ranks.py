"""Several processes that train together by torchrun: which one this is, and what they share."""

from __future__ import annotations

from typing import Any

from monai.utils import optional_import

__all__ = ["MeanLoss", "rank"]

Events, _ = optional_import("ignite.engine", name="Events")
distributed, _ = optional_import("ignite.distributed")


def rank() -> int:
    """The number of this process among those that train together; 0 where it is alone.

    Example:
        >>> rank()
        0
    """
    return distributed.get_rank()


class MeanLoss:
    """Makes the loss that a step shows and logs the mean over the processes, each of which has other cases.

    A handler of MONAI's trainers with ``decollate=False``, to be given before those that read the loss.
    """

    def attach(self, trainer: Any) -> None:
        """Watch a trainer, where it is not alone."""
        if distributed.get_world_size() > 1:
            trainer.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, trainer: Any) -> None:
        """After a step."""
        output = trainer.state.output
        total = distributed.all_reduce(output["loss"].detach().clone())
        output["loss"] = total / distributed.get_world_size()
