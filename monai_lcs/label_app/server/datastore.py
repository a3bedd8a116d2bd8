"""The study folder: scans, their labels and the atlas. Files are checked first, and written complete or not at all."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag

from monai_lcs.files import write_atomically
from monai_lcs.label_app.atlas_store import AtlasStore
from monai_lcs.label_app.files import EXTENSIONS, check_extension, check_item_name, check_size
from monai_lcs.label_app.server.answers import NotFound, as_answer
from monai_lcs.labels import label_names
from monai_lcs.study.cases import case_name
from monai_lcs.study.checks import check_case

__all__ = ["LCSDatastore"]

FINAL = DefaultLabelTag.FINAL.value


class LCSDatastore(LocalDatastore):
    """A study folder whose atlas is one of its images.

    It checks what a client sends. Names that lead out of the folder, files that are no images, labels on another grid
    and images that would replace others get a 4xx answer. A label that is saved on the atlas changes the atlas, see
    :meth:`monai_lcs.label_app.atlas_store.AtlasStore.paint`; deleting it takes the last change back. The folder is
    looked through at each request, not watched.

    Args:
        studies: the folder.
        most_voxels: the most voxels of an uploaded file.

    Example:
        >>> datastore = LCSDatastore(str(getfixture("tmp_path")))
        >>> datastore.list_images(), datastore.atlas_id
        ([], None)
    """

    def __init__(self, studies: str, most_voxels: float = 3e8) -> None:
        self.most_voxels = most_voxels
        self.atlas: AtlasStore | None = None
        super().__init__(studies, extensions=[f"*{ending}" for ending in EXTENSIONS], auto_reload=False)

    @property
    def atlas_id(self) -> str | None:
        """The image id of the atlas, ``None`` before :meth:`attach`."""
        return None if self.atlas is None else case_name(self.atlas.image)

    def attach(self, atlas: AtlasStore) -> None:
        """Make the atlas an image of the study, whose final label is the current version of the atlas labels."""
        self.atlas = atlas
        self.refresh()
        self._keep_atlas_label()

    def scans(self) -> list[str]:
        """List all images but the atlas."""
        return [image for image in self.list_images() if image != self.atlas_id]

    def unlabeled_scans(self) -> list[str]:
        """List the scans without a final label."""
        return [image for image in self.scans() if not self._datastore.label(image, FINAL)]

    # ---- what MONAI Label calls -------------------------------------------------------------------------------------

    def list_images(self) -> list[str]:
        """List all image ids, also of files that were put into the folder since."""
        self.refresh()
        return super().list_images()

    def get_image_uri(self, image_id: str) -> str:
        """Find the file of an image; ``""`` if there is none."""
        if image_id not in self._datastore.objects:
            self.refresh()
        return super().get_image_uri(image_id)

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """List the files of the labeled scans, ``image`` and ``label``, and ``label_info``; the atlas is left out."""
        found = []
        for image_id in self.scans():
            if self._datastore.label(image_id, FINAL):
                info = self.get_label_info(image_id, FINAL).get("label_info", [])
                paths = {"image": self.get_image_uri(image_id), "label": self.get_label_uri(image_id, FINAL)}
                found.append({**paths, "label_info": info})
        return found

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Keep an uploaded image. The same image sent once more changes nothing."""
        with as_answer(image_filename):
            extension = check_extension(image_filename)
            image_id = case_name(check_item_name(image_id or case_name(image_filename)))
            if there := self.get_image_uri(image_id):
                if Path(there).read_bytes() == Path(image_filename).read_bytes():
                    return image_id
                raise FileExistsError(f"There is another image {image_id!r} in the study: choose another name.")
            check_size(image_filename, self.most_voxels)
            check_case({"image": image_filename})
            path = Path(self._datastore.image_path()) / f"{image_id}{extension}"
            with FileLock(self._lock_file):
                write_atomically(path, lambda temporary: shutil.copyfile(image_filename, temporary))
                info = {**(image_info or {}), "ts": int(time.time()), "name": path.name}
                self._datastore.objects[image_id] = ImageLabelModel(image=DataModel(info=info, ext=extension))
                self._update_datastore_file(lock=False)
        return image_id

    def remove_image(self, image_id: str) -> None:
        """Remove an image with its labels; the atlas cannot be removed."""
        with as_answer():
            self._check_known(image_id)
            if image_id == self.atlas_id:
                raise ValueError(f"{image_id!r} is the atlas of the study, which cannot be removed.")
        super().remove_image(image_id)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Keep the label of an image. A final label of the atlas is painted on it instead."""
        with as_answer(label_filename):
            self._check_known(image_id)
            extension = check_extension(label_filename)
            label_tag = check_item_name(str(getattr(label_tag, "value", label_tag)), "label tag")
            check_size(label_filename, self.most_voxels)
            check_case({"image": self.get_image_uri(image_id), "label": label_filename})
            segments = _segments(label_info)
            if image_id == self.atlas_id and label_tag == FINAL:
                assert self.atlas is not None
                self.atlas.paint(label_filename, segments)
                self._keep_atlas_label()
            else:
                self._keep_label(image_id, label_filename, extension, label_tag, dict(label_info or {}))
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label. The final label of the atlas stays; its last change is taken back."""
        with as_answer():
            self._check_known(label_id)
            if label_id == self.atlas_id and label_tag == FINAL:
                assert self.atlas is not None
                self.atlas.undo()
                self._keep_atlas_label()
                return
        super().remove_label(label_id, label_tag)

    # ---- how it is kept ---------------------------------------------------------------------------------------------

    def _check_known(self, image_id: str) -> None:
        if not self.get_image_uri(image_id):
            raise NotFound(f"There is no image {image_id!r} in the study.")

    def _keep_atlas_label(self) -> None:
        assert self.atlas is not None
        assert self.atlas_id is not None
        version = self.atlas.current
        names = label_names(version.table)
        info = [{"name": names[x.id], "idx": x.id, "color": list(x.color)} for x in version.table]
        kept = self._datastore.label(self.atlas_id, FINAL)
        if kept is None or kept.info.get("atlas_version") != version.number:
            about = {"label_info": info, "atlas_version": version.number}
            self._keep_label(self.atlas_id, str(version.labels), ".nii.gz", FINAL, about)

    def _keep_label(self, image_id: str, source: str, extension: str, tag: str, info: dict[str, Any]) -> None:
        path = Path(self._datastore.label_path(tag)) / f"{image_id}{extension}"
        with FileLock(self._lock_file):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda temporary: shutil.copyfile(source, temporary))
            model = DataModel(info={**info, "ts": int(time.time()), "name": path.name}, ext=extension)
            self._datastore.objects[image_id].labels[tag] = model
            self._update_datastore_file(lock=False)

    def _list_files(self, path: str, patterns: list[str]) -> dict[str, str]:
        """Files that end in one of the patterns, without those that are being written."""
        return {name: file for name, file in super()._list_files(path, patterns).items() if not name.startswith(".")}

    def _update_datastore_file(self, lock: bool = True) -> None:
        """Write the list of images completely or not at all: a server that is killed meanwhile must still find it."""
        if lock:
            with FileLock(self._lock_file):
                return self._update_datastore_file(lock=False)
        text = json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str)
        path = Path(self._datastore_config_path)
        write_atomically(path, lambda temporary: temporary.write_text(text))
        self._config_ts = path.stat().st_mtime
        return None


def _segments(label_info: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The segments that a client names.

    Raises:
        ValueError: if they are not a list of objects.
    """
    segments = (label_info or {}).get("label_info") or []
    if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
        raise ValueError(f'`label_info` must be a list like [{{"name": "...", "idx": 1}}], got {segments!r}.')
    return segments
