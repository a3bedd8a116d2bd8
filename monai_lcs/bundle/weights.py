"""Weights, and the training that makes them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from monai.engines import Trainer

from monai_lcs import pipeline
from monai_lcs.atlas import Atlas
from monai_lcs.bundle.sentence import one_sentence
from monai_lcs.labels import RequestedLabel
from monai_lcs.pipeline import Settings, checkpoints
from monai_lcs.pipeline.guard import describe_propagated
from monai_lcs.pipeline.run_definition import RunDefinition
from monai_lcs.pipeline.training_lock import unlock_folder

__all__ = [
    "begin_training",
    "best_model",
    "check_fused",
    "check_resumed",
    "load_weights",
    "run_training",
    "say_propagated",
    "settings_of",
]


@one_sentence
def settings_of(checkpoint: str | None) -> Settings:
    """The settings that weights were trained with, see :meth:`monai_lcs.pipeline.Settings.of_weights`."""
    return Settings.of_weights(checkpoint)


@one_sentence
def load_weights(checkpoint: str | None, network: Any, atlas: Atlas) -> None:
    """See :func:`monai_lcs.pipeline.load_weights`; says which weights, and whether they are for this atlas."""
    if checkpoint:
        pipeline.load_weights(checkpoint, network)
        pipeline.check_trained_for(checkpoint, atlas)
    print(pipeline.describe_weights(checkpoint), file=sys.stderr)


def say_propagated(masked: Sequence[RequestedLabel], requests: Sequence[RequestedLabel]) -> None:
    """Say in one line for which of the requested labels the aligned atlas answers."""
    if said := describe_propagated(masked, len(requests)):
        print(said, file=sys.stderr)


@one_sentence
def best_model(**arguments: Any) -> pipeline.BestModel:
    """See :class:`monai_lcs.pipeline.BestModel`."""
    return pipeline.BestModel(**arguments)


@one_sentence
def begin_training(ckpt_dir: str, epochs: int, resume: bool, restart: bool) -> str | None:
    """See :func:`monai_lcs.pipeline.checkpoints.begin_training`."""
    return checkpoints.begin_training(ckpt_dir, epochs, resume, restart)


@one_sentence
def check_resumed(resume_from: str | None, definition: RunDefinition) -> None:
    """See :func:`monai_lcs.pipeline.checkpoints.check_resumed`."""
    checkpoints.check_resumed(resume_from, definition)


@one_sentence
def run_training(trainer: Trainer, ckpt_dir: str) -> None:
    """Run a trainer, and then let others train in the folder."""
    try:
        trainer.run()
    finally:
        unlock_folder(ckpt_dir)


def check_fused(checkpoint: str | None, settings: Settings, atlases: Sequence[Any]) -> None:
    """Say so where the weights were trained with further atlases and there are none now, or the other way round.

    Args:
        checkpoint: file of the weights; nothing is said where there are none.
        settings: of the weights. Nothing is said of a network that looks at each atlas, however many there are.
        atlases: those that vote now.
    """
    if said := pipeline.describe_untrained_fusion(checkpoint, settings, atlases):
        print(said, file=sys.stderr)
