"""What watches a training: seeds, gradients, progress, the last validation; and its learning rate."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from monai.data.utils import set_rnd
from monai.utils import optional_import, set_determinism

from monai_lcs.pipeline.ranks import rank

__all__ = ["ClipGradient", "SeedEpochs", "polynomial_decay", "show_epochs", "validate_last"]

Events, _ = optional_import("ignite.engine", name="Events")
IterationEvents, _ = optional_import("monai.engines", name="IterationEvents")


class SeedEpochs:
    """Seeds all random generators anew for each epoch, by the seed, the epoch and the process.

    So no epoch depends on the draws before it: a training that is resumed draws what it would have drawn without the
    interruption, and each of several processes draws other labels. A handler of MONAI's trainers, whose data loader
    must start its workers anew for each epoch (``persistent_workers=False``).

    Args:
        seed: >= 0; ``None`` for other draws each time.
    """

    def __init__(self, seed: int | None) -> None:
        self.seed = seed

    def attach(self, trainer: Any) -> None:
        """Watch a trainer."""
        if self.seed is not None:
            trainer.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, trainer: Any) -> None:
        """Before an epoch: seed Python, NumPy, torch and the random transforms."""
        sequence = np.random.SeedSequence([self.seed or 0, trainer.state.epoch, rank()])
        seed = int(sequence.generate_state(1)[0])
        set_determinism(seed)
        set_rnd(trainer.data_loader.dataset, seed)


class ClipGradient:
    """Shortens the gradient of all weights to a largest norm before each step of the optimizer.

    A handler of MONAI's trainers. A step whose gradient is not finite would spoil all weights: it is left out, with a
    warning; in mixed precision by the scaler, without.

    Args:
        max_norm: the largest Euclidean norm, > 0; infinity or ``None`` for no limit.

    Raises:
        ValueError: when the norm is not > 0.
    """

    def __init__(self, max_norm: float | None) -> None:
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"`max_norm` must be > 0 or None, got {max_norm}.")
        self.max_norm = float("inf") if max_norm is None else max_norm

    def attach(self, trainer: Any) -> None:
        """Watch a trainer."""
        trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, trainer: Any) -> None:
        """After a backward: shorten the gradient."""
        scaled = trainer.amp and trainer.scaler is not None
        if scaled and self.max_norm == float("inf"):
            return
        if scaled:  # mixed precision has scaled it, and leaves out steps that overflow by itself
            trainer.scaler.unscale_(trainer.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(trainer.network.parameters(), self.max_norm)
        if not scaled and not norm.isfinite():
            trainer.optimizer.zero_grad()  # without a gradient the optimizer changes nothing
            warnings.warn(
                f"Step {trainer.state.iteration} of the training was left out: its gradient is not finite.",
                stacklevel=2,
            )


def show_epochs(trainer: Any, evaluator: Any, log_dir: str) -> None:
    """Show a progress bar over the epochs, with the loss and the last validation; log the validation in TensorBoard.

    Args:
        trainer: the trainer.
        evaluator: the evaluator of the validation.
        log_dir: of TensorBoard.
    """
    if rank() > 0:
        return
    tensorboard, _ = optional_import("monai.handlers", name="TensorBoardStatsHandler")
    handlers, _ = optional_import("ignite.handlers")
    tensorboard(log_dir=log_dir, iteration_log=False, global_epoch_transform=lambda _: trainer.state.epoch).attach(
        evaluator
    )
    bar = handlers.ProgressBar(desc="Epoch", persist=True)

    def shown(output: Any) -> dict[str, float]:
        return {"loss": output["loss"].item(), **evaluator.state.metrics}

    bar.attach(trainer, event_name=Events.EPOCH_COMPLETED, closing_event_name=Events.COMPLETED, output_transform=shown)


def validate_last(trainer: Any, evaluator: Any, interval: int) -> None:
    """Validate at the end of a training whose last epoch is not one to validate.

    Args:
        trainer: before its run, and before :func:`monai_lcs.pipeline.checkpoints.keep_resumable`, so that the last
            checkpoint knows the result.
        evaluator: the evaluator of the validation.
        interval: epochs between two validations.
    """

    def validate() -> None:
        if trainer.state.epoch % interval:
            evaluator.run(trainer.state.epoch)

    trainer.add_event_handler(Events.COMPLETED, validate)


def polynomial_decay(epochs: int, power: float = 0.9) -> Callable[[int], float]:
    """The factor of the learning rate in each epoch: from 1 to 0, to be given to ``LambdaLR``.

    Example:
        >>> decay = polynomial_decay(10)
        >>> decay(0), decay(10), round(decay(5), 3)
        (1.0, 0.0, 0.536)
    """
    return lambda epoch: (1 - min(epoch / epochs, 1)) ** power
