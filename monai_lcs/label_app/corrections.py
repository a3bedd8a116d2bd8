"""Training on corrections: each labeled scan of a study trains on the labels it has, and the best network is kept."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from monai.utils import optional_import

from monai_lcs.atlas import Atlas
from monai_lcs.files import write_atomically
from monai_lcs.label_app.segmenter import StudySegmenter, Weights
from monai_lcs.label_app.segments import atlas_ids
from monai_lcs.labels import present_labels
from monai_lcs.pipeline import BestModel, train
from monai_lcs.study.cases import split_by_name
from monai_lcs.study.checks import list_failures, read_label_map
from monai_lcs.transforms import MapLabels

__all__ = ["Statistics", "TrainOptions", "train_on_corrections"]

logger = logging.getLogger(__name__)

Events, _ = optional_import("ignite.engine", name="Events")


@dataclass(frozen=True)
class TrainOptions:
    """What a client may set for a training; everything else is as in the bundle's ``train.json``.

    Args:
        max_epochs: how often the training passes over the scans.
        learning_rate: the learning rate at the start.
        labels_per_image: how many labels are drawn for each scan in each step.
        pretrained: start from the present weights. Otherwise the training starts from random ones, which still have to
            beat the present ones.
        device: where to train.

    Raises:
        ValueError: if a number is not > 0.

    Example:
        >>> TrainOptions(max_epochs=0)
        Traceback (most recent call last):
        ...
        ValueError: `max_epochs` must be > 0, got 0.
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


def train_on_corrections(
    segmenter: StudySegmenter,
    weights: Weights,
    cases: Sequence[Mapping[str, Any]],
    model_dir: Path,
    options: TrainOptions,
    handlers: Sequence[Any] = (),
) -> dict[str, Any]:
    """Train on labeled scans as the bundle does, and keep the network only if it beats what answers now.

    What answers now is scored first on the validation scans: the present weights, or without any the propagated labels.
    The best network of all epochs replaces it only if its mean Dice is higher.

    Args:
        segmenter: of the study; it has the atlas and its alignments.
        weights: the present weights.
        cases: the ``image`` and ``label`` files of each labeled scan, and ``label_info``, see
            :func:`monai_lcs.label_app.segments.atlas_ids`.
        model_dir: the folder for ``model.pt``, ``model.json`` (its settings) and ``train_stats.json``.
        options: what the client set.
        handlers: further handlers of the trainer, to be attached to it.

    Returns:
        The statistics, as ``train_stats.json`` holds them after each epoch.

    Raises:
        ValueError: if a file cannot be used, or fewer than two scans have labels of the atlas.
    """
    train_cases, val_cases = split_by_name(_labeled(cases, segmenter.atlas()))
    scored = _ids(val_cases)
    statistics = Statistics(Path(model_dir), options, len(train_cases), len(val_cases), len(scored))
    present = None if weights.path is None else str(weights.path)
    train(
        None,
        segmenter.atlas(),
        model_dir,
        settings=weights.settings,
        cases=(train_cases, val_cases),
        handlers=[statistics.attach, *map(_as_pipeline_handler, handlers)],
        labels=sorted(scored | _ids(train_cases)),
        cache_dir=segmenter.cache,
        epochs=options.max_epochs,
        val_interval=1,
        learning_rate=options.learning_rate,
        labels_per_image=options.labels_per_image,
        device=options.device,
        keep_better=True,
        restart=True,
        present=present,
        pretrained=present if options.pretrained else None,
        **{name: value for name, value in segmenter.options.items() if name == "min_overlap"},
    )
    return statistics.values


def _ids(cases: Sequence[Mapping[str, Any]]) -> set[int]:
    """The ids that any of the cases is labeled for."""
    return {id for case in cases for (id,) in case["label_groups"]}


def _as_pipeline_handler(handler: Any) -> Callable[..., Any]:
    return lambda trainer, *_: handler.attach(trainer)


def _labeled(cases: Sequence[Mapping[str, Any]], atlas: Atlas) -> list[dict[str, Any]]:
    """Read the label maps, and keep the cases that have labels of the atlas.

    Returns:
        For each such case ``image``, its file, ``label``, a label map of atlas ids, and ``label_groups``, the labels
        that it has.
    """
    found, failed = [], []
    for case in cases:
        try:
            label_map = read_label_map(case["label"])
        except ValueError as error:
            failed.append(str(error))
            continue
        ids = atlas_ids(present_labels(label_map), case.get("label_info") or (), atlas.table)
        groups = [(id,) for id in sorted(set(ids.values()) & set(atlas.ids))]
        if not groups:
            logger.warning(f"{case['label']} has no label of the atlas: not used.")
            continue
        in_atlas = MapLabels(ids, unmapped="background")(label_map)
        found.append({"image": case["image"], "label": in_atlas, "label_groups": groups})
    if failed:
        raise ValueError(list_failures(failed, len(cases)))
    return found


class Statistics:
    """What a training has come to, as MONAI Label shows it; it is written to disk after each epoch.

    Args:
        model_dir: the folder for ``train_stats.json``.
        options: what the client set.
        train_scans: the number of training scans.
        val_scans: the number of validation scans.
        labels: the number of labels that are scored.

    Example:
        >>> Statistics(Path("model"), TrainOptions(), 4, 1, 83).values["eval"]
        {'scans': 1, 'labels': 83, 'key_metric_name': 'val_mean_dice'}
    """

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
        """Watch a training; a handler of :func:`monai_lcs.pipeline.train`."""
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: self._end_epoch(trainer, evaluator, best))

    def _end_epoch(self, trainer: Any, evaluator: Any, best: BestModel) -> None:
        """One more epoch was trained and validated."""
        values, epoch = self.values, trainer.state.epoch
        loss, dice = trainer.state.output["loss"].item(), _rounded(evaluator.state.metrics["val_mean_dice"])
        values.update(epoch=epoch, best_metric=_rounded(best.score), best_metric_epoch=best.epoch)
        values["train"]["loss"], values["eval"]["val_mean_dice"] = loss, dice
        values["eval"]["before"] = _rounded(best.before if best.before is not None else -1.0)
        seconds = str(timedelta(seconds=int(time.time() - self.began)))
        values["total_time" if epoch == values["total_epochs"] else "current_time"] = seconds
        self._write()
        so_far = f"{values['best_metric']:.4f} of epoch {best.epoch}"
        logger.info(
            f"Epoch {epoch}/{values['total_epochs']}: loss {loss:.4f}, validation Dice {dice:.4f}, best {so_far}"
        )

    def _write(self) -> None:
        self.model_dir.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.values, indent=4)
        write_atomically(self.model_dir / "train_stats.json", lambda temporary: temporary.write_text(text))


def _rounded(dice: float) -> float:
    return round(float(dice), 4)
