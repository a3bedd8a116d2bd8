"""Inference tasks: labels on request, and the label of the segment that is being edited."""

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
from monai_lcs.labels.groups import present_labels
from monai_lcs.labels.queries import RequestedLabel, label_names, parse_request

__all__ = ["ClickInferTask", "PromptInferTask"]

logger = logging.getLogger(__name__)


class PromptInferTask(InferTask):
    """Segments what the request's ``label_prompt`` asks for, see :func:`monai_lcs.labels.queries.parse_request`.

    Other parameters: ``result_extension`` (``.nii.gz``, ``.nrrd``, ...), ``result_dtype``, ``result_compress`` and
    ``device``. The answer has ``label_names``, name to id of the labels that were found, ascending by id, which is the
    order in which 3D Slicer names them; ``absent``, the names of those asked for that were not found; ``overlap`` and
    ``aligned``, how the atlas was aligned; ``network``, whether one was used; and ``latencies``.

    Args:
        segmenter: of the study.
        weights: gives the weights to use now.
        most_voxels: of an image that comes with the request.
    """

    def __init__(self, segmenter: StudySegmenter, weights: Callable[[], Weights], most_voxels: float = 3e8) -> None:
        self.segmenter = segmenter
        self.weights = weights
        self.most_voxels = most_voxels
        super().__init__(InferType.SEGMENTATION, None, 3, "", self.options())

    def options(self) -> dict[str, Any]:
        """What a client may set, with defaults."""
        return {"label_prompt": "all", "device": device_list()}

    def is_valid(self) -> bool:
        """There is always an answer: without a network that of the alignment."""
        return True

    def info(self) -> dict[str, Any]:
        """As the atlas is now."""
        self.labels = {name: id for id, name in label_names(self.segmenter.store.current.table).items()}
        return {**super().info(), "description": self.describe()}

    def describe(self) -> str:
        """What gives the answers."""
        path = self.weights().path
        how = (
            f"found by the network {path.name}"
            if path
            else "carried over by alignment alone until a network is trained"
        )
        return f"Labels by id, name, pattern or union (label_prompt), {how}"

    def asked(self, request: Mapping[str, Any]) -> list[RequestedLabel]:
        """The labels of a request."""
        version = self.segmenter.store.current
        return parse_request(request.get("label_prompt"), version.table, version.present)

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Segment ``request["image"]``, a file."""
        start = time.perf_counter()
        request = {**self._config, **request}
        image = str(request["image"])
        with as_answer(image, request.get("label")):
            extension = check_extension(request.get("result_extension") or ".nii.gz")
            asked = self.asked(request)
            if is_upload(image):
                check_size(image, self.most_voxels)
            result_type(request.get("result_dtype"), 0)
            weights, device = self.weights(), str(name_to_device(request.get("device")))
            label_map, said = self.segmenter.segment(image, asked, weights, device)
            dtype = result_type(request.get("result_dtype"), int(label_map.max()))
            with tempfile.NamedTemporaryFile(suffix=extension, delete=False) as file:
                pass
            write_label_map(label_map, file.name, dtype, bool(request.get("result_compress", True)))
        present = set(present_labels(label_map))
        seconds = round(time.perf_counter() - start, 3)
        logger.info(f"Segmented {len(present)} of {len(asked)} labels in {seconds} s: {said}")
        return file.name, {
            "label_names": {one.name: one.id for one in asked if one.id in present},
            "absent": [one.name for one in asked if one.id not in present],
            "atlas_version": self.segmenter.store.current.number,
            "latencies": {"total": seconds},
            **said,
        }


class ClickInferTask(PromptInferTask):
    """Segments the label of the segment that is being edited, ``label``; where was clicked does not matter."""

    def __init__(self, segmenter: StudySegmenter, weights: Callable[[], Weights], most_voxels: float = 3e8) -> None:
        super().__init__(segmenter, weights, most_voxels)
        self.type = InferType.DEEPGROW

    def options(self) -> dict[str, Any]:
        """What a client may set, with defaults."""
        return {"device": device_list()}

    def asked(self, request: Mapping[str, Any]) -> list[RequestedLabel]:
        """The one label, or union, of a request."""
        label = request.get("label") or request.get("label_prompt")
        if not label:
            raise ValueError("Which label? Select a segment whose name is a label of the atlas.")
        version = self.segmenter.store.current
        found = parse_request([label], version.table, version.present)
        return [RequestedLabel(found[0].id, str(label), tuple(sorted({id for one in found for id in one.ids})))]
