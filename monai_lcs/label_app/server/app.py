"""The app that MONAI Label runs: it puts the parts together and refuses files that are not of the study."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monailabel.interfaces.app import MONAILabelApp

from monai_lcs import __version__
from monai_lcs.label_app.atlas_store import AtlasStore, atlas_folder
from monai_lcs.label_app.files import check_extension
from monai_lcs.label_app.segmenter import StudySegmenter, Weights
from monai_lcs.label_app.server.answers import NotFound, as_answer, is_upload
from monai_lcs.label_app.server.datastore import LCSDatastore
from monai_lcs.label_app.server.infer import ClickInferTask, PromptInferTask
from monai_lcs.label_app.server.strategies import LeastCertain, PaintAtlas
from monai_lcs.label_app.server.train import LCSTrainTask
from monai_lcs.labels import LabelTable

__all__ = ["LabelConditionedApp"]

logger = logging.getLogger(__name__)

SEGMENTER_OPTIONS: dict[str, Callable[[str], Any]] = {"min_overlap": float, "threshold": float, "upsample": int}
OPTIONS = (
    *("atlas_image", "atlas_labels", "label_table", "checkpoint", "settings"),
    *(*SEGMENTER_OPTIONS, "most_voxels", "most_megabytes"),
)


class LabelConditionedApp(MONAILabelApp):
    """Label conditioned segmentation for the scans of a folder.

    Args:
        app_dir: the folder that the app was written to. It keeps alignments, and uploads for as long as they are used.
        studies: the folder of the scans. Labels, atlas versions and trained weights go to its subfolders ``labels`` and
            ``lcs``.
        conf: the options, all texts:

            - ``atlas_image``, ``atlas_labels`` and ``label_table``: the files of the atlas, needed for a new study;
            - ``checkpoint``: weights to begin with;
            - ``settings``: a JSON object of what differs from the defaults of :class:`monai_lcs.pipeline.Settings`, for
              weights that come without settings and for new networks;
            - ``min_overlap``, ``threshold`` and ``upsample``: see :class:`monai_lcs.pipeline.Segmenter`;
            - ``most_voxels``: the most voxels of an uploaded file;
            - ``most_megabytes``: the most megabytes of a request, see :mod:`monai_lcs.label_app.server.asgi`.

    Raises:
        ValueError: if there is no such option, or a file cannot be used.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        unknown = sorted(set(conf) - {*OPTIONS, "server_mode"})
        if unknown:
            raise ValueError(f"There are no options {unknown}, only {', '.join(OPTIONS)}.")
        if "://" in studies:
            raise ValueError(f"The study must be a folder, got {studies}: DICOMweb servers are not supported.")
        self.lcs_dir = Path(studies) / "lcs"
        self.most_voxels = float(conf.get("most_voxels", 3e8))
        self.atlas = _open_atlas(Path(studies), conf)
        options = {name: read(conf[name]) for name, read in SEGMENTER_OPTIONS.items() if name in conf}
        self.segmenter = StudySegmenter(self.atlas, Path(app_dir) / "cache", **options)
        self.settings = json.loads(conf.get("settings", "{}"))
        self.checkpoint = conf.get("checkpoint")
        if self.checkpoint and not Path(self.checkpoint).is_file():
            raise ValueError(f"There is no checkpoint {self.checkpoint}.")
        weights = self.weights()
        logger.info(f"Weights: {weights.path or 'none, labels are propagated by alignment until you train'}")
        if weights.path and weights.settings.fused and not weights.settings.sees_each_atlas:
            logger.warning(f"{weights.path} was trained with further atlases, without them it may be less accurate.")
        super().__init__(
            app_dir,
            studies,
            conf,
            name="Label conditioned segmentation",
            description="Labels on request; what is painted on the atlas can be asked for on every scan",
            version=__version__,
        )

    def weights(self) -> Weights:
        """Give the weights trained on this study; before that those that the server was started with, if any."""
        return Weights.find([self.lcs_dir / "model" / "model.pt", self.checkpoint], self.settings)

    def init_datastore(self) -> LCSDatastore:
        """Open the study folder, with the atlas as one of its images."""
        datastore = LCSDatastore(self.studies, self.most_voxels)
        datastore.attach(self.atlas)
        return datastore

    def init_infers(self) -> dict[str, PromptInferTask]:
        """Make ``lcs`` for requested labels, and ``lcs_click`` for the segment that the user edits."""
        arguments = (self.segmenter, self.weights, self.most_voxels)
        return {"lcs": PromptInferTask(*arguments), "lcs_click": ClickInferTask(*arguments)}

    def init_trainers(self) -> dict[str, LCSTrainTask]:
        """Make the training task ``lcs``."""
        return {"lcs": LCSTrainTask(self.segmenter, self.weights, self.lcs_dir / "model")}

    def init_strategies(self) -> dict[str, Any]:
        """Make the strategies that choose the next image."""
        return {"least_certain": LeastCertain(self.segmenter, self.weights), "paint_atlas": PaintAtlas()}

    def on_init_complete(self) -> None:
        """Give uploads a folder of their own, which is emptied at every start."""
        uploads = Path(self.app_dir) / "uploads"
        shutil.rmtree(uploads, ignore_errors=True)
        uploads.mkdir(parents=True)
        tempfile.tempdir = str(uploads)
        super().on_init_complete()

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Segment an image of the study or one that came with the request, but no other file of this machine."""
        image = str(request.get("image") or "")
        with as_answer(image, request.get("label")):
            if request.get("model") not in self._infers:
                raise NotFound(f"There is no model {request.get('model')!r}, only {', '.join(self._infers)}.")
            if not (is_upload(image) or self._in_session(image) or self.datastore().get_image_uri(image)):
                raise NotFound(f"There is no image {image!r} in the study.")
            return super().infer({**request, "image": image}, datastore)

    def _in_session(self, image: str) -> bool:
        sessions = self.sessions()
        return bool(sessions) and Path(sessions.store_path).resolve() in Path(image).resolve().parents

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """Choose the image to work on next."""
        with as_answer():
            if request.get("strategy") not in self._strategies:
                known = ", ".join(self._strategies)
                raise NotFound(f"There is no strategy {request.get('strategy')!r}, only {known}.")
            return super().next_sample(request)

    def on_save_label(self, image_id: str, label_id: str) -> dict[str, Any]:
        """Tell a client that painted on the atlas what has changed."""
        if image_id != self.datastore().atlas_id:
            return {}
        version = self.atlas.current
        return {"atlas_version": version.number, "change": version.about["change"], "labels": len(version.table)}


def _open_atlas(studies: Path, conf: dict[str, str]) -> AtlasStore:
    """Open the atlas of a study. A study without one gets the atlas that the options name."""
    folder = atlas_folder(studies)
    given = [conf.get(name) for name in ("atlas_image", "atlas_labels")]
    try:
        known = AtlasStore(folder)
        if any(given):
            print(f"Note: the atlas of {studies} stays the one of its first start, in {folder}.", file=sys.stderr)
        return known
    except FileNotFoundError:
        if not all(given):
            raise
    image, labels = (Path(str(path)) for path in given)
    if not image.is_file():
        raise ValueError(f"There is no atlas image {image}.")
    studies.mkdir(parents=True, exist_ok=True)
    if image.resolve().parent != studies.resolve():
        kept = studies / f"atlas{check_extension(image)}"
        if kept.exists() and kept.read_bytes() != image.read_bytes():
            raise ValueError(f"{kept} is another image than {image}: rename it.")
        shutil.copyfile(image, kept)
        image = kept
    table = LabelTable.read(conf["label_table"]) if conf.get("label_table") else None
    store = AtlasStore.create(folder, image, labels, table)
    return _say_note(store)


def _say_note(store: AtlasStore) -> AtlasStore:
    """Say which ids the label map and the label table of a new atlas do not share."""
    if "note" in store.current.about:
        print(f"Note: {store.current.about['note']}", file=sys.stderr)
    return store
