"""The training task: the options that a client may set, and the statistics that MONAI Label shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monai.utils import optional_import
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.others.generic import device_list, name_to_device, strtobool

from monai_lcs.label_app.corrections import TrainOptions, train_on_corrections
from monai_lcs.label_app.segmenter import StudySegmenter, Weights
from monai_lcs.label_app.server.datastore import LCSDatastore

__all__ = ["LCSTrainTask"]


class LCSTrainTask(TrainTask):
    """Trains on the scans with a final label, see :func:`monai_lcs.label_app.corrections.train_on_corrections`.

    Args:
        segmenter: the segmenter of the study.
        weights: gives the weights to use now.
        model_dir: the folder for the network and its statistics.
    """

    def __init__(self, segmenter: StudySegmenter, weights: Callable[[], Weights], model_dir: Path) -> None:
        super().__init__("Train on the labeled scans, each on the labels it has; the best network is kept")
        self.segmenter = segmenter
        self.weights = weights
        self.model_dir = model_dir

    def config(self) -> dict[str, Any]:
        """Give the options that a client may set, with their defaults; of a list the first value is the default."""
        return {
            "max_epochs": TrainOptions.max_epochs,
            "learning_rate": TrainOptions.learning_rate,
            "labels_per_image": TrainOptions.labels_per_image,
            "pretrained": TrainOptions.pretrained,
            "device": device_list(),
            "tracking": ["None", "mlflow"],
            "tracking_uri": "",
        }

    def stats(self) -> dict[str, Any]:
        """Give the statistics of the last training; empty before the first."""
        path = self.model_dir / "train_stats.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def __call__(self, request: Mapping[str, Any], datastore: LCSDatastore) -> dict[str, Any]:
        """Train on the labeled scans of the study, and return the statistics."""
        asked = {**self.config(), **request}
        options = TrainOptions(
            max_epochs=int(asked["max_epochs"]),
            learning_rate=float(asked["learning_rate"]),
            labels_per_image=int(asked["labels_per_image"]),
            pretrained=bool(strtobool(asked["pretrained"])),
            device=str(name_to_device(asked["device"])),
        )
        handlers = self._tracking(asked)
        return train_on_corrections(
            self.segmenter, self.weights(), datastore.datalist(), self.model_dir, options, handlers
        )

    def _tracking(self, asked: Mapping[str, Any]) -> list[Any]:
        tracking = asked["tracking"][0] if isinstance(asked["tracking"], list) else asked["tracking"]
        if str(tracking).lower() != "mlflow":
            return []
        handler, _ = optional_import("monai.handlers", name="MLFlowHandler")
        uri = asked["tracking_uri"] or f"sqlite:///{self.model_dir / 'mlflow.db'}"
        loss = {"output_transform": lambda output: output["loss"].item()}
        return [handler(tracking_uri=uri, experiment_name="lcs", iteration_log=True, close_on_complete=True, **loss)]
