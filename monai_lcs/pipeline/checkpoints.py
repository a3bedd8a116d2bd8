"""Checkpoints from which an interrupted training goes on: two generations, the newest readable one is taken."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.config import PathLike
from monai.utils import optional_import

from monai_lcs.files import remove_leftovers
from monai_lcs.pipeline.ranks import rank
from monai_lcs.pipeline.run_definition import RunDefinition
from monai_lcs.pipeline.training_lock import lock_folder
from monai_lcs.pipeline.weights_file import read_torch, write_torch

__all__ = ["KeepNewest", "begin_training", "check_resumed", "keep_resumable", "last_saved"]

Events, _ = optional_import("ignite.engine", name="Events")

GENERATIONS = 2


def begin_training(ckpt_dir: PathLike, epochs: int, resume: bool, restart: bool = False) -> str | None:
    """Lock the folder of a training, and find what it goes on from or make sure that it replaces nothing.

    Args:
        ckpt_dir: the folder; it must exist. Temporary files of a killed process are removed from it.
        epochs: how many there are to be in the end.
        resume: go on with the training there.
        restart: for a new training: remove the checkpoints of one that did not come to its end. Those of one that did
            are removed with a word.

    Returns:
        The checkpoint to go on from, see :func:`last_saved`; ``None`` for a new training.

    Raises:
        ValueError: when another process trains there; when there is nothing to resume, or nothing left to do; when a
            new training would replace an unfinished one.
    """
    folder = Path(ckpt_dir)
    if rank() == 0:
        lock_folder(folder)
        for names in ("resume_*.pt", "model*.pt", "model*.json", "validation.tsv"):
            remove_leftovers(folder, names)
    if resume:
        return last_saved(folder, epochs)
    if rank() == 0:
        _clear(folder, restart)
    return None


def last_saved(ckpt_dir: PathLike, epochs: int) -> str:
    """The newest checkpoint that can be read; one line names those that cannot.

    Args:
        ckpt_dir: where :func:`keep_resumable` saved.
        epochs: how many there are to be in the end.

    Raises:
        ValueError: when there is nothing to resume, or nothing left to do.
    """
    damaged = []
    for epoch, path in _list(Path(ckpt_dir)):
        try:
            read_torch(path)
        except ValueError as error:
            damaged.append(str(error))
            continue
        _say_damaged(damaged, path)
        if epoch >= epochs:
            raise ValueError(
                f"The training in {ckpt_dir} already has {epoch} epochs: give more than that as --epochs.{_lost(path)}"
            )
        return str(path)
    found = f"no checkpoint there can be read:\n  {'; '.join(damaged)}" if damaged else "it has no checkpoint"
    raise ValueError(f"There is no training to resume in {ckpt_dir}: {found}.")


def check_resumed(resume_from: PathLike | None, definition: RunDefinition) -> None:
    """Make sure, before the long work, that a training goes on as what it was.

    Args:
        resume_from: the checkpoint; ``None`` for a new training.
        definition: what is trained now.

    Raises:
        ValueError: naming what differs.
    """
    if resume_from is None:
        return
    saved = read_torch(resume_from).get("run")
    if saved is not None:
        definition.load_state_dict(saved)
    elif rank() == 0:
        print(f"Note: {resume_from} does not say what it trained: make sure that it is the same.", file=sys.stderr)


def keep_resumable(
    trainer: Any, state: Mapping[str, Any], ckpt_dir: str, interval: int, resume_from: str | None = None
) -> None:
    """Save all that a training needs to go on, every few epochs, and go on from there if asked to.

    Args:
        trainer: the trainer; its epoch and iteration, and what scales its loss in mixed precision, are saved as well.
        state: what to save besides: network, optimizer, scheduler, the best network so far, the run's definition.
        ckpt_dir: where to save ``resume_checkpoint_N.pt`` after epoch N; the two newest are kept.
        interval: epochs between two saves.
        resume_from: the file to load when training starts, see :func:`begin_training`.
    """
    handlers, _ = optional_import("ignite.handlers")
    loader, _ = optional_import("monai.handlers", name="CheckpointLoader")
    everything = {**state, "trainer": trainer}
    if trainer.scaler is not None:
        everything["scaler"] = trainer.scaler
    saver = handlers.Checkpoint(
        everything,
        KeepNewest(ckpt_dir),
        filename_prefix="resume",
        global_step_transform=lambda engine, _: engine.state.epoch,
    )
    if resume_from is not None:
        saved = read_torch(resume_from)  # of an earlier version it lacks something
        known = {name: part for name, part in everything.items() if name in saved}
        loader(resume_from, known, map_location="cpu").attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED(every=interval) | Events.COMPLETED, saver)


class KeepNewest:
    """Saves the checkpoints of a training; older ones than the two newest go once a new one is complete.

    So a training that is killed while it saves, or that fills the disk, can still be resumed.

    Args:
        folder: where to save.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> save = KeepNewest(folder)
        >>> for epoch in (9, 10, 11):
        ...     save({"epoch": epoch}, f"resume_checkpoint_{epoch}.pt")
        >>> sorted(path.name for path in folder.iterdir())
        ['resume_checkpoint_10.pt', 'resume_checkpoint_11.pt']
    """

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder)

    def __call__(self, checkpoint: Mapping[str, Any], filename: str, metadata: Any = None) -> None:
        """Save a checkpoint, as ignite's ``Checkpoint`` asks for it."""
        if rank() > 0:
            return
        write_torch(self.folder / filename, checkpoint)
        for _, path in _list(self.folder)[GENERATIONS:]:
            path.unlink(missing_ok=True)


def _list(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints in a folder and their epochs, the newest first; by the epoch, since a clock may jump."""
    found = [(re.fullmatch(r"resume_checkpoint_(\d+)\.pt", path.name), path) for path in folder.glob("resume_*")]
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def _say_damaged(damaged: list[str], taken: Path) -> None:
    """Say in one line what is not gone on from, and put it out of the way of what comes."""
    if not damaged or rank() > 0:
        return
    print(f"Note: {'; '.join(damaged)}. The training goes on from {taken}.", file=sys.stderr)
    for epoch, path in _list(taken.parent):
        if path == taken:
            return
        path.replace(path.with_name(f"damaged_checkpoint_{epoch}.pt"))


def _lost(checkpoint: Path) -> str:
    """What to say of a finished training whose weights were damaged afterwards."""
    try:
        read_torch(checkpoint.with_name("model.pt"))
    except ValueError as error:
        return f" {error} One more epoch writes the best weights again: {checkpoint} has them."
    return ""


def _clear(folder: Path, restart: bool) -> None:
    """Before a new training: remove the checkpoints of one that is finished or given up."""
    there = _list(folder)
    if not there:
        return
    if not restart and not _is_finished(there[0][1]):
        raise ValueError(
            f"{folder} has a training that stopped after epoch {there[0][0]}: give --resume to go on with it, "
            "--restart to begin anew, or another folder."
        )
    print(f"Note: the checkpoints of the earlier training in {folder} are removed.", file=sys.stderr)
    for _, path in reversed(there):
        path.unlink(missing_ok=True)


def _is_finished(path: Path) -> bool:
    try:
        done = read_torch(path)["trainer"]
        return done["iteration"] >= done["epoch_length"] * done["max_epochs"]
    except (ValueError, KeyError, TypeError):
        return False
