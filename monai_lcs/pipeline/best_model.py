"""The best network of a training on disk."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.config import PathLike
from monai.utils import convert_to_numpy, optional_import

from monai_lcs.atlas import Atlas
from monai_lcs.files import write_atomically
from monai_lcs.inferers import AtlasLabelInferer
from monai_lcs.labels import RequestedLabel
from monai_lcs.pipeline.guard import compare_with_propagated, lost_labels
from monai_lcs.pipeline.ranks import rank
from monai_lcs.pipeline.settings import Settings, make_network, on_device
from monai_lcs.pipeline.weights import load_weights
from monai_lcs.pipeline.weights_file import read_state, write_weights
from monai_lcs.results.tsv import write_tsv

__all__ = ["BestModel"]

Events, _ = optional_import("ignite.engine", name="Events")


class BestModel:
    """Writes the weights whenever the validation Dice beats all before, and the settings with them.

    A handler of the validation's evaluator. Weights that were there before are kept as ``model_TIME.pt``; with
    ``keep_better`` they are scored first, and only replaced by better ones. The best weights are part of the
    checkpoint, so that a resumed training mends its ``model.pt``.

    Args:
        folder: for ``model.pt`` and its readable copy of the settings, ``model.json``.
        network: the network in training.
        settings: what it is trained with.
        resume: go on with a training that was interrupted: the model there is its own.
        pretrained: weights to begin with.
        keep_better: score what answers now, ``present`` or without it the propagated atlas labels, before training.
        present: the weights that answer now.
        requests: the labels of the validation, in the order of its Dice. With these and the atlas, ``validation.tsv``
            says for each label whether the network beats its propagated mask, and ``propagated`` of the settings that
            are written names those where it does not.
        atlas: the atlas.

    Attributes:
        score: the best validation Dice so far.
        epoch: the epoch it is of; 0 for none.
        weights: the network's state then; ``None`` for none.
        lost: names of the labels on which it was worse than propagation.
        before: the validation Dice of what answered before, with ``keep_better``.

    Raises:
        ValueError: when weights do not fit.
    """

    def __init__(
        self,
        folder: PathLike,
        network: torch.nn.Module,
        settings: Settings,
        resume: bool = False,
        pretrained: PathLike | None = None,
        keep_better: bool = False,
        present: PathLike | None = None,
        requests: Sequence[RequestedLabel] = (),
        atlas: Atlas | None = None,
    ) -> None:
        self.folder, self.network, self.settings = Path(folder), network, settings
        self.resume, self.keep_better, self.present = resume, keep_better, present
        self.requests, self.atlas = requests, atlas
        self.propagated: Any = None  # the Dice of the propagated masks, (cases, labels)
        self.score = -1.0
        self.epoch = 0
        self.weights: dict[str, torch.Tensor] | None = None
        self.lost: list[str] = []
        self.before: float | None = None
        if pretrained and not resume:
            self._load(pretrained)

    @property
    def path(self) -> Path:
        """The file of the weights."""
        return self.folder / "model.pt"

    def attach(self, evaluator: Any) -> None:
        """Watch an evaluator."""
        evaluator.add_event_handler(Events.COMPLETED, self)

    def prepare(self, evaluator: Any) -> None:
        """Before the first epoch: score what answers now, or keep the earlier weights under another name."""
        by_propagation = self._validate(evaluator, AtlasLabelInferer())
        self.propagated = _dice_by_label(evaluator)
        if self.keep_better and not self.resume:
            self.score = self.before = self._score_present(evaluator) if self.present else by_propagation
        elif not self.resume and rank() == 0:
            self._keep_earlier()

    def __call__(self, evaluator: Any) -> None:
        """After a validation: write the weights if they are the best so far."""
        score = float(evaluator.state.metrics[evaluator.state.key_metric_name])
        if math.isnan(score):
            raise ValueError(
                "The validation cases have none of the labels that are trained: nothing tells the best network."
            )
        if not score > self.score:
            return
        bare: Any = getattr(self.network, "module", self.network)  # DistributedDataParallel
        self.weights = {name: x.detach().cpu().clone() for name, x in bare.state_dict().items()}
        self.score, self.epoch = score, evaluator.state.epoch
        self.lost = self._lost_labels(evaluator)
        self._write()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training must know."""
        return {name: getattr(self, name) for name in ("score", "epoch", "before", "weights", "lost")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, with the files as they were then."""
        for name, value in state.items():
            setattr(self, name, value)
        if self.weights is not None and not self._is_written():
            self._write()

    def _write(self) -> None:
        if rank() == 0 and self.weights is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_weights(self.path, self.weights, self._settings_to_write.to_dict())

    def _is_written(self) -> bool:
        """Whether the files hold the best weights and the settings."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # where the copy of the settings is another's
                kept = read_state(self.path)
                written = self.path.with_suffix(".json").is_file()
                same = written and Settings.of_weights(self.path) == self._settings_to_write
        except (ValueError, UserWarning):
            return False
        best = self.weights or {}
        return same and kept.keys() == best.keys() and all(torch.equal(kept[name], best[name]) for name in best)

    @property
    def _settings_to_write(self) -> Settings:
        return replace(self.settings, propagated=tuple(self.lost))

    def _lost_labels(self, evaluator: Any) -> list[str]:
        """The labels that the network has lost; ``validation.tsv`` compares all."""
        if self.propagated is None or self.atlas is None or not self.requests:
            return []
        comparison = compare_with_propagated(self.requests, self.propagated, _dice_by_label(evaluator))
        if rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.folder / "validation.tsv"
            write_atomically(file, lambda temporary: write_tsv(comparison, temporary, "%.4f"))
        return list(lost_labels(comparison, self.requests, self.atlas.table))

    def _score_present(self, evaluator: Any) -> float:
        """The validation Dice of the weights that answer now, be they of another shape or of several networks."""
        then = self._settings_of(self.present)
        if self.settings.fused and then.sees_each_atlas != self.settings.sees_each_atlas:
            raise ValueError(
                f"{self.present} cannot be compared with this training: one of the two networks looks at each of"
                " several atlases, the other at what their votes make of them. Train without further atlases, or"
                " without `keep_better`."
            )
        differ = [
            name for name in ("spacing", "margin_mm", "halo") if getattr(then, name) != getattr(self.settings, name)
        ]
        if differ:
            warnings.warn(
                f"{self.present} is scored with the {', '.join(differ)} of this training, not with its own: it may be"
                " better than its score.",
                stacklevel=2,
            )
        network = make_network(then)
        load_weights(str(self.present), network)
        trained, evaluator.network = evaluator.network, on_device(network, evaluator.state.device).eval()
        score = self._validate(evaluator, evaluator.inferer)
        evaluator.network = trained
        return score

    def _validate(self, evaluator: Any, inferer: Any) -> float:
        """The validation Dice by another inferer; nothing is written."""
        usual, best = evaluator.inferer, self.score
        evaluator.inferer, self.score = inferer, float("inf")
        evaluator.run()
        evaluator.inferer, self.score = usual, best
        return float(evaluator.state.metrics[evaluator.state.key_metric_name])

    def _load(self, weights: Any) -> None:
        """Load weights, unless their settings say that they compute something else: the shapes would not tell."""
        self._settings_of(weights, "up_activation")
        load_weights(weights, self.network)

    def _settings_of(self, weights: Any, *same: str) -> Settings:
        """The settings of weights, which must see the same input, and be the same in what else is named."""
        then = Settings.of_weights(weights, self.settings)
        for name in ("soft_masks", *same):
            trained, now = getattr(then, name), getattr(self.settings, name)
            if trained != now:
                raise ValueError(f"{weights} was trained with `{name}` {trained}, got {now}: give {trained}.")
        return then

    def _keep_earlier(self) -> None:
        if not self.path.is_file():
            return
        time = datetime.fromtimestamp(self.path.stat().st_mtime).strftime("%Y%m%d-%H%M%S")
        for path in (self.path, self.path.with_suffix(".json")):
            if path.is_file():
                write_atomically(path.with_stem(f"model_{time}"), partial(shutil.copy2, path))


def _dice_by_label(evaluator: Any) -> Any:
    """The Dice ``(cases, labels)`` of the last validation."""
    return convert_to_numpy(evaluator.state.metric_details[evaluator.state.key_metric_name])
