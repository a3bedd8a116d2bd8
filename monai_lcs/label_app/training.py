"""Training on the labeled scans of a study: each on the labels it has, and the best network is kept across runs."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from monai.data import CacheDataset, DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import IgniteMetricHandler, from_engine
from monai.losses import DiceLoss
from monai.transforms import (
    Compose,
    ConcatItemsd,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    ScaleIntensityRangePercentilesd,
    Transform,
)
from monai.utils import optional_import

from monai_lcs.files import write_atomically
from monai_lcs.inferers import AtlasLabelInferer, LabelBoxInferer, LabelSweepInferer
from monai_lcs.label_app.atlas_store import AtlasVersion
from monai_lcs.label_app.segmenter import Segmenter, Weights, crop_to_atlas, make_network, on_network_grid
from monai_lcs.labels import LabelTable, is_integer
from monai_lcs.labels.groups import present_labels
from monai_lcs.labels.queries import label_names
from monai_lcs.metrics import LabelMapDice
from monai_lcs.study.cases import case_name
from monai_lcs.study.checks import require_valid
from monai_lcs.study.images import read_image
from monai_lcs.transforms import MapLabels, RandSelectLabelsd

__all__ = ["TrainOptions", "atlas_ids", "split_cases", "train"]

logger = logging.getLogger(__name__)

Events, _ = optional_import("ignite.engine", name="Events")
KEYS = ("image", "label", "atlas_image", "atlas_label")


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Args:
        max_epochs: passes over the scans.
        learning_rate: of Adam.
        labels_per_image: labels drawn for each scan in each step.
        pretrained: go on from the present weights; else from random ones, which still have to beat the present ones.
        device: where to train.
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


def split_cases(cases: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and validation cases; about every fifth, by its name, is for validation in every run.

    Raises:
        ValueError: when there are fewer than two.
    """
    if len(cases) < 2:
        raise ValueError(f"Training needs two labeled scans or more, one of them to validate on, got {len(cases)}.")

    def number(case: Mapping[str, Any]) -> int:
        return int(hashlib.sha256(case_name(case["image"]).encode()).hexdigest(), 16)

    chosen = [case for case in cases if number(case) % 5 == 0]
    if not chosen or len(chosen) == len(cases):
        chosen = [min(cases, key=number)]
    return [case for case in cases if case not in chosen], chosen


class LoadAligned(Transform):
    """Loads a labeled scan, and the atlas aligned to it, on the network's grid; adds ``label_groups``, what it has."""

    def __init__(self, segmenter: Segmenter, version: AtlasVersion, settings: Mapping[str, Any]) -> None:
        self.segmenter = segmenter
        self.version = version
        self.settings = settings
        scaled = ["image", "atlas_image"]
        self.rest = Compose(
            [ScaleIntensityRangePercentilesd(scaled, 0.5, 99.5, 0.0, 1.0, clip=True), crop_to_atlas(KEYS, settings)]
        )

    def __call__(self, case: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A sample with the four volumes ``(1, *spatial)``."""
        scan, _ = self.segmenter.align(case["image"], self.settings)
        carried = scan.carry(self.segmenter.atlas_labels(self.version))
        label: Any = MapLabels(case["ids"], unmapped="background")(read_image(case["label"]))
        label = on_network_grid(label, self.settings["spacing"], "nearest")
        volumes = {"image": scan.image, "label": label, "atlas_image": scan.atlas_image, "atlas_label": carried}
        return {**self.rest(volumes), "label_groups": case["label_groups"]}


def train(
    segmenter: Segmenter,
    weights: Weights,
    cases: Sequence[Mapping[str, Any]],
    model_dir: Path,
    options: TrainOptions,
    handlers: Sequence[Any] = (),
) -> dict[str, Any]:
    """Train on labeled scans, and keep the network whenever it beats all before on the validation scans.

    What answers now, the present weights or without any the alignment, is validated first, so that a run never replaces
    anything better.

    Args:
        segmenter: aligns the atlas.
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
    version = segmenter.store.current
    train_cases, val_cases = split_cases(_labeled(cases, version))
    settings = weights.settings
    network = make_network(settings).to(options.device)
    ids = sorted({id for case in val_cases for (id,) in case["label_groups"]})
    load = LoadAligned(segmenter, version, settings)
    evaluator = _evaluator(network, val_cases, load, ids, settings, options)
    trainer = _trainer(network, train_cases, load, settings, options, handlers)
    progress = _Progress(network, settings, Path(model_dir), options, len(train_cases), len(val_cases), len(ids))
    _validate_before(network, weights, evaluator, options)
    progress.start(evaluator)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(trainer.state.epoch))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: progress.epoch(trainer, evaluator))
    trainer.run()
    return progress.stats


def _validate_before(network: Any, weights: Weights, evaluator: Any, options: TrainOptions) -> None:
    """Score what answers now; leaves in the network the weights to begin with."""
    if weights.path is None:
        inferer, evaluator.inferer = evaluator.inferer, AtlasLabelInferer()
        evaluator.run()
        evaluator.inferer = inferer
        return
    fresh = {name: value.clone() for name, value in network.state_dict().items()}
    weights.load(network)
    evaluator.run()
    if not options.pretrained:
        network.load_state_dict(fresh)


def _labeled(cases: Sequence[Mapping[str, Any]], version: AtlasVersion) -> list[dict[str, Any]]:
    """The cases with labels of the atlas, each with ``ids`` and ``label_groups``."""
    require_valid([{"image": case["image"], "label": case["label"]} for case in cases], progress=False)
    found = []
    for case in cases:
        ids = atlas_ids(present_labels(read_image(case["label"])), case.get("label_info") or (), version.table)
        groups = [(id,) for id in sorted(set(ids.values()) & set(version.present))]
        if groups:
            found.append({**case, "ids": ids, "label_groups": groups})
        else:
            logger.warning(f"{case['label']} has no label of the atlas: not used.")
    return found


def _trainer(
    network: torch.nn.Module,
    cases: Sequence[Any],
    load: LoadAligned,
    settings: Mapping[str, Any],
    options: TrainOptions,
    handlers: Sequence[Any],
) -> SupervisedTrainer:
    modes = ["bilinear", "nearest", "bilinear", "nearest"]
    transform = Compose(
        [
            load,
            RandFlipd(KEYS, prob=0.5, spatial_axis=0),
            RandAffined(
                KEYS, prob=0.5, rotate_range=[0.1] * 3, scale_range=[0.1] * 3, mode=modes, padding_mode="zeros"
            ),
            RandAdjustContrastd("image", prob=0.5, gamma=(0.7, 1.5)),
            RandGaussianNoised("image", prob=0.5, std=0.05),
            RandSelectLabelsd(["label", "atlas_label"], num_labels=options.labels_per_image, union_prob=0.1),
            ConcatItemsd(["image", "atlas_image", "atlas_label"], name="image"),
        ]
    )
    dataset = CacheDataset(cases, transform, num_workers=None, progress=False)
    return SupervisedTrainer(
        device=torch.device(options.device),
        max_epochs=options.max_epochs,
        train_data_loader=DataLoader(dataset, batch_size=1, shuffle=True),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), options.learning_rate),
        loss_function=DiceLoss(sigmoid=True, squared_pred=True),
        inferer=LabelBoxInferer(settings["margin_mm"], settings["halo"]),
        train_handlers=list(handlers),
        amp=options.device.startswith("cuda"),
    )


def _evaluator(
    network: torch.nn.Module,
    cases: Sequence[Any],
    load: LoadAligned,
    ids: Sequence[int],
    settings: Mapping[str, Any],
    options: TrainOptions,
) -> SupervisedEvaluator:
    def drop(sample: dict[Hashable, Any]) -> dict[Hashable, Any]:
        return {key: sample[key] for key in ("image", "label")}

    concatenate = ConcatItemsd(["image", "atlas_image", "atlas_label"], name="image")
    dataset = CacheDataset(cases, Compose([load, concatenate, drop]), num_workers=None, progress=False)
    dice = IgniteMetricHandler(metric_fn=LabelMapDice(ids), output_transform=from_engine(["pred", "label"]))
    return SupervisedEvaluator(
        device=torch.device(options.device),
        val_data_loader=DataLoader(dataset, batch_size=1),
        network=network,
        inferer=LabelSweepInferer(labels=ids, margin_mm=settings["margin_mm"], halo=settings["halo"]),
        key_val_metric={"val_mean_dice": dice},
        amp=options.device.startswith("cuda"),
    )


class _Progress:
    """What a run has come to: statistics on disk after each epoch, and the best network."""

    def __init__(
        self,
        network: torch.nn.Module,
        settings: Mapping[str, Any],
        model_dir: Path,
        options: TrainOptions,
        train_scans: int,
        val_scans: int,
        labels: int,
    ) -> None:
        self.network = network
        self.settings = settings
        self.model_dir = model_dir
        self.began = time.time()
        self.stats: dict[str, Any] = {
            "start_ts": int(self.began),
            "epoch": 0,
            "total_epochs": options.max_epochs,
            "best_metric": -1.0,
            "best_metric_epoch": 0,
            "train": {"scans": train_scans},
            "eval": {"scans": val_scans, "labels": labels, "key_metric_name": "val_mean_dice"},
        }

    def start(self, evaluator: Any) -> None:
        """What answered before."""
        self.stats["best_metric"] = self.stats["eval"]["before"] = self._dice(evaluator)
        logger.info(f"Before training: validation Dice {self.stats['best_metric']:.4f}")

    def epoch(self, trainer: Any, evaluator: Any) -> None:
        """One more epoch."""
        dice, loss, epoch = self._dice(evaluator), float(trainer.state.output[0]["loss"]), trainer.state.epoch
        self.stats.update(epoch=epoch)
        self.stats["train"]["loss"], self.stats["eval"]["val_mean_dice"] = loss, dice
        if dice > self.stats["best_metric"]:
            self.stats.update(best_metric=dice, best_metric_epoch=epoch)
            self._save()
        seconds = str(timedelta(seconds=int(time.time() - self.began)))
        self.stats["total_time" if epoch == self.stats["total_epochs"] else "current_time"] = seconds
        self.model_dir.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.stats, indent=4)
        write_atomically(self.model_dir / "train_stats.json", lambda temporary: temporary.write_text(text))
        best = f"{self.stats['best_metric']:.4f} of epoch {self.stats['best_metric_epoch']}"
        logger.info(
            f"Epoch {epoch}/{self.stats['total_epochs']}: loss {loss:.4f}, validation Dice {dice:.4f}, best {best}"
        )

    def _save(self) -> None:
        self.model_dir.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**self.settings, "fused": False}, indent=4)
        state = {"model": self.network.state_dict()}
        write_atomically(self.model_dir / "model.json", lambda temporary: temporary.write_text(text))
        write_atomically(self.model_dir / "model.pt", lambda temporary: torch.save(state, temporary))

    @staticmethod
    def _dice(evaluator: Any) -> float:
        return round(float(evaluator.state.metrics["val_mean_dice"]), 4)
