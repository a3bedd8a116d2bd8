"""Inference tasks: one finds requested labels, one the label of the segment that the user edits."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.utils.others.generic import device_list, name_to_device

from monai_lcs.label_app.files import check_extension, check_size, result_type, write_label_map
from monai_lcs.label_app.segmenter import StudySegmenter, Weights
from monai_lcs.label_app.server.answers import as_answer, is_upload
from monai_lcs.labels import RequestedLabel, label_names, present_labels

__all__ = ["ClickInferTask", "PromptInferTask"]

logger = logging.getLogger(__name__)


class PromptInferTask(InferTask):
    """Finds the labels that the request's ``label_prompt`` names, see :func:`monai_lcs.labels.parse_request`.

    A request may also hold ``result_extension`` (``.nii.gz``, ``.nrrd``, ...), ``result_dtype``, ``result_compress``
    and ``device``. The answer holds:

    - ``label_names``: the id of each label that was found, by its name. The ids ascend, since 3D Slicer names the
      values of a result in this order;
    - ``absent``: the names of the requested labels that were not found;
    - ``overlap``, ``aligned`` and ``network``, see :meth:`StudySegmenter.segment`;
    - ``atlas_version``: the number of the atlas version;
    - ``latencies``: ``{"total": seconds}``.

    Args:
        segmenter: the segmenter of the study.
        weights: gives the weights to use now.
        most_voxels: the most voxels of an image that comes with the request.
    """

    def __init__(self, segmenter: StudySegmenter, weights: Callable[[], Weights], most_voxels: float = 3e8) -> None:
        self.segmenter = segmenter
        self.weights = weights
        self.most_voxels = most_voxels
        super().__init__(InferType.SEGMENTATION, None, 3, "", self.options())

    def options(self) -> dict[str, Any]:
        """Give the options that a client may set, with their defaults."""
        return {"label_prompt": "all", "device": device_list()}

    def is_valid(self) -> bool:
        """Tell that the task always has an answer: without a network it propagates the labels."""
        return True

    def info(self) -> dict[str, Any]:
        """Describe the task, with the labels that the atlas has now."""
        self.labels = {name: id for id, name in label_names(self.segmenter.store.current.table).items()}
        return {**super().info(), "description": self.describe()}

    def describe(self) -> str:
        """Say in words what finds the labels."""
        path = self.weights().path
        without = "propagated by alignment alone until a network is trained"
        return f"Labels by id, name, pattern or union (label_prompt), {f'found by {path.name}' if path else without}"

    def requested(self, request: Mapping[str, Any]) -> list[RequestedLabel]:
        """Find the labels that a request names."""
        return self.segmenter.request(request.get("label_prompt"))

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Segment ``request["image"]``, a file.

        Returns:
            The file of the label map, which the caller removes, and the answer.
        """
        start = time.perf_counter()
        request = {**self._config, **request}
        image = str(request["image"])
        with as_answer(image, request.get("label")):
            extension = check_extension(request.get("result_extension") or ".nii.gz")
            requests = self.requested(request)
            if is_upload(image):
                check_size(image, self.most_voxels)
            result_type(request.get("result_dtype"), 0)
            weights, device = self.weights(), str(name_to_device(request.get("device")))
            label_map, facts = self.segmenter.segment(image, requests, weights, device)
            dtype = result_type(request.get("result_dtype"), int(label_map.max()))
            with tempfile.NamedTemporaryFile(suffix=extension, delete=False) as file:
                pass
            write_label_map(label_map, file.name, dtype, bool(request.get("result_compress", True)))
        present = set(present_labels(label_map))
        seconds = round(time.perf_counter() - start, 3)
        logger.info(f"Segmented {len(present)} of {len(requests)} labels in {seconds} s: {facts}")
        return file.name, {
            "label_names": {one.name: one.id for one in requests if one.id in present},
            "absent": [one.name for one in requests if one.id not in present],
            "atlas_version": self.segmenter.store.current.number,
            "latencies": {"total": seconds},
            **facts,
        }


class ClickInferTask(PromptInferTask):
    """Finds the label of the segment that the user edits, the request's ``label``. The clicks do not matter."""

    def __init__(self, segmenter: StudySegmenter, weights: Callable[[], Weights], most_voxels: float = 3e8) -> None:
        super().__init__(segmenter, weights, most_voxels)
        self.type = InferType.DEEPGROW

    def options(self) -> dict[str, Any]:
        """Give the options that a client may set, with their defaults."""
        return {"device": device_list()}

    def requested(self, request: Mapping[str, Any]) -> list[RequestedLabel]:
        """Find the one label that a request names; of several labels of a name the union."""
        label = request.get("label") or request.get("label_prompt")
        if not label:
            raise ValueError("Which label? Select a segment whose name is a label of the atlas.")
        found = self.segmenter.request([label])
        return [RequestedLabel(found[0].id, str(label), tuple(sorted({id for one in found for id in one.ids})))]
