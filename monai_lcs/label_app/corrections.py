"""Training on corrections: the labeled scans of a study, each on the labels it has; the best network is kept."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from monai.utils import optional_import

from monai_lcs.atlas import Atlas
from monai_lcs.files import write_atomically
from monai_lcs.label_app.segmenter import StudySegmenter, Weights
from monai_lcs.labels import LabelTable, is_integer, label_names, present_labels
from monai_lcs.pipeline import BestModel, train
from monai_lcs.study.cases import split_by_name
from monai_lcs.study.checks import list_failures, read_label_map
from monai_lcs.transforms import MapLabels

__all__ = ["TrainOptions", "atlas_ids", "train_on_corrections"]

logger = logging.getLogger(__name__)

Events, _ = optional_import("ignite.engine", name="Events")


@dataclass(frozen=True)
class TrainOptions:
    """How to train; everything else is as the bundle has it.

    Args:
        max_epochs: passes over the scans.
        learning_rate: of Adam, at the start.
        labels_per_image: labels drawn for each scan in each step.
        pretrained: go on from the present weights; else from random ones, which still have to beat the present ones.
        device: where to train.

    Raises:
        ValueError: for a number that is not > 0.
    """

    max_epochs: int = 50
    learning_rate: float = 1e-3
    labels_per_image: int = 16
    pretrained: bool = True
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("max_epochs", "learning_rate", "labels_per_image"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be > 0, got {getattr(self, name)}.")


def atlas_ids(values: Iterable[int], label_info: Sequence[Mapping[str, Any]], table: LabelTable) -> dict[int, int]:
    """What the values of a saved label map are in the atlas; a value of a name that the atlas lacks is left out.

    Args:
        values: those that occur.
        label_info: their names, ``[{"name": ..., "idx": ...}]``; without it they are ids of the atlas.
        table: the labels of the atlas.

    Example:
        >>> table = LabelTable.from_channel_def({"17": "Left-Hippocampus"})
        >>> atlas_ids([1, 2], [{"name": "Left-Hippocampus", "idx": 1}, {"name": "lesion", "idx": 2}], table)
        {1: 17}
    """
    if not label_info:
        return {value: value for value in values if value in table}
    id_of = {name: id for id, name in label_names(table).items()}
    named = {info.get("idx"): info.get("name") for info in label_info if is_integer(info.get("idx"))}
    return {value: id_of[str(named[value])] for value in values if named.get(value) in id_of}


def train_on_corrections(
    segmenter: StudySegmenter,
    weights: Weights,
    cases: Sequence[Mapping[str, Any]],
    model_dir: Path,
    options: TrainOptions,
    handlers: Sequence[Any] = (),
) -> dict[str, Any]:
    """Train on labeled scans by the bundle's recipe; keep the network whenever it beats all before on validation scans.

    What answers now, the present weights or without any the alignment, is validated first, so that a run never replaces
    anything better.

    Args:
        segmenter: of the study; it has the atlas and its alignments.
        weights: the present ones.
        cases: ``image`` and ``label`` files and ``label_info``, see :func:`atlas_ids`.
        model_dir: for ``model.pt``, ``model.json`` (settings) and ``train_stats.json``.
        options: how.
        handlers: of the trainer, in addition.

    Returns:
        The statistics, as ``train_stats.json`` has them after each epoch.

    Raises:
        ValueError: when files cannot be used, or there are too few scans with labels of the atlas.
    """
    atlas = segmenter.atlas()
    train_cases, val_cases = split_by_name(_labeled(cases, atlas))
    scored = {id for case in val_cases for (id,) in case["label_groups"]}
    statistics = Statistics(Path(model_dir), options, len(train_cases), len(val_cases), len(scored))
    attached: list[Callable[..., Any]] = [_attacher(handler) for handler in handlers]
    present = None if weights.path is None else str(weights.path)
    train(
        None,
        atlas,
        model_dir,
        settings=weights.settings,
        cases=(train_cases, val_cases),
        handlers=[statistics.attach, *attached],
        cache_dir=segmenter.cache,
        min_overlap=segmenter.options["min_overlap"],
        epochs=options.max_epochs,
        val_interval=1,
        learning_rate=options.learning_rate,
        labels_per_image=options.labels_per_image,
        device=options.device,
        labels=sorted(scored | {id for case in train_cases for (id,) in case["label_groups"]}),
        keep_better=True,
        present=present,
        pretrained=present if options.pretrained else None,
    )
    return statistics.values


def _attacher(handler: Any) -> Callable[..., Any]:
    return lambda trainer, *_: handler.attach(trainer)


def _labeled(cases: Sequence[Mapping[str, Any]], atlas: Atlas) -> list[dict[str, Any]]:
    """The cases with labels of the atlas: ``image``, ``label``, a label map of atlas ids, and ``label_groups``."""
    found, failed = [], []
    for case in cases:
        try:
            label_map: Any = read_label_map(case["label"])
        except ValueError as error:
            failed.append(str(error))
            continue
        ids = atlas_ids(present_labels(label_map), case.get("label_info") or (), atlas.table)
        groups = [(id,) for id in sorted(set(ids.values()) & set(atlas.ids))]
        if groups:
            label_map = MapLabels(ids, unmapped="background")(label_map)
            found.append({"image": case["image"], "label": label_map, "label_groups": groups})
        else:
            logger.warning(f"{case['label']} has no label of the atlas: not used.")
    if failed:
        raise ValueError(list_failures(failed, len(cases)))
    return found


class Statistics:
    """What a run has come to, on disk after each epoch, as MONAI Label shows it."""

    def __init__(self, model_dir: Path, options: TrainOptions, train_scans: int, val_scans: int, labels: int) -> None:
        self.model_dir = model_dir
        self.began = time.time()
        self.values: dict[str, Any] = {
            "start_ts": int(self.began),
            "epoch": 0,
            "total_epochs": options.max_epochs,
            "best_metric": -1.0,
            "best_metric_epoch": 0,
            "train": {"scans": train_scans},
            "eval": {"scans": val_scans, "labels": labels, "key_metric_name": "val_mean_dice"},
        }

    def attach(self, trainer: Any, evaluator: Any, best: BestModel) -> None:
        """Watch a training."""
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: self._epoch(trainer, evaluator, best))

    def _epoch(self, trainer: Any, evaluator: Any, best: BestModel) -> None:
        """One more epoch was trained and validated."""
        values, epoch = self.values, trainer.state.epoch
        loss, dice = float(trainer.state.output[0]["loss"]), _rounded(evaluator.state.metrics["val_mean_dice"])
        values.update(epoch=epoch, best_metric=_rounded(best.score), best_metric_epoch=best.epoch)
        values["train"]["loss"], values["eval"]["val_mean_dice"] = loss, dice
        values["eval"]["before"] = _rounded(best.before if best.before is not None else -1.0)
        seconds = str(timedelta(seconds=int(time.time() - self.began)))
        values["total_time" if epoch == values["total_epochs"] else "current_time"] = seconds
        self.model_dir.mkdir(parents=True, exist_ok=True)
        text = json.dumps(values, indent=4)
        write_atomically(self.model_dir / "train_stats.json", lambda temporary: temporary.write_text(text))
        so_far = f"{values['best_metric']:.4f} of epoch {best.epoch}"
        logger.info(
            f"Epoch {epoch}/{values['total_epochs']}: loss {loss:.4f}, validation Dice {dice:.4f}, best {so_far}"
        )


def _rounded(dice: float) -> float:
    return round(float(dice), 4)
