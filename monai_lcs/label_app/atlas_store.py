"""The atlas of a study on disk: every change is a version of its own, so that a mistake can be undone."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import PathLike
from monai.data import MetaTensor
from monai.utils import convert_to_numpy

from monai_lcs.atlas import Atlas
from monai_lcs.label_app.segments import LabelInfo, painted_labels
from monai_lcs.labels import Label, LabelTable, present_labels
from monai_lcs.labels.label_map import as_label_array
from monai_lcs.study.checks import check_same_grid, read_label_map, read_scan

__all__ = ["AtlasStore", "AtlasVersion", "atlas_folder"]


def atlas_folder(studies: PathLike) -> Path:
    """The folder in which a study keeps the versions of its atlas.

    Example:
        >>> atlas_folder("study").as_posix()
        'study/lcs/atlas'
    """
    return Path(studies) / "lcs" / "atlas"


@dataclass(frozen=True)
class AtlasVersion:
    """One version of the atlas labels.

    Args:
        folder: holds ``dseg.nii.gz``, ``dseg.tsv`` and ``version.json``. Its name is the number.

    Example:
        >>> version = AtlasVersion(Path("study/lcs/atlas/0002"))
        >>> version.number, version.labels.name
        (2, 'dseg.nii.gz')
    """

    folder: Path

    @property
    def number(self) -> int:
        """The number of the version, 1 for the atlas as it came."""
        return int(self.folder.name)

    @property
    def labels(self) -> Path:
        """The file of the label map."""
        return self.folder / "dseg.nii.gz"

    @cached_property
    def table(self) -> LabelTable:
        """The names and colors of the labels."""
        return LabelTable(LabelTable.read(self.folder / "dseg.tsv"))  # messages for clients do not name the file

    @cached_property
    def about(self) -> dict[str, Any]:
        """What ``version.json`` holds.

        ``change`` says in words what changed, ``time`` when, ``previous`` is the number of the version before (``None``
        for the first), and ``image`` is the atlas image's path, relative to the folder of all versions. ``note`` is
        there where label map and table did not share all ids, see :attr:`monai_lcs.atlas.Atlas.mismatch`.
        """
        return json.loads((self.folder / "version.json").read_text(encoding="utf-8"))


class AtlasStore:
    """The versions of a study's atlas; the one with the highest number is current.

    A version appears complete or not at all and never changes afterwards. Several processes may read while one writes.

    Args:
        folder: holds the versions, see :func:`atlas_folder`; :meth:`create` makes it.

    Raises:
        FileNotFoundError: if there is no atlas.

    Example:
        >>> folder, ids = getfixture("tmp_path"), np.eye(4, dtype=np.uint8)[..., None].repeat(4, -1)
        >>> for name in ("T1w.nii.gz", "dseg.nii.gz"):
        ...     nib.save(nib.Nifti1Image(ids, np.eye(4)), folder / name)
        >>> store = AtlasStore.create(atlas_folder(folder), folder / "T1w.nii.gz", folder / "dseg.nii.gz")
        >>> version = store.paint(folder / "dseg.nii.gz", [{"name": "Left-Cyst", "idx": 1}])
        >>> version.number, version.table.names, store.undo().about["change"]
        (2, ('label-1', 'Left-Cyst'), 'back to version 1')
    """

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder)
        self._read: dict[int, AtlasVersion] = {}
        if not self.numbers():
            raise FileNotFoundError(
                f"There is no atlas in {self.folder}: give --conf atlas_image, atlas_labels and label_table."
            )

    @classmethod
    def create(cls, folder: PathLike, image: PathLike, labels: PathLike, table: LabelTable | None = None) -> AtlasStore:
        """Begin with a labeled image.

        Args:
            folder: where the versions go.
            image: the file of the atlas image, which stays where it is.
            labels: the file of its label map. Labels that the table does not name are left out; ``about["note"]`` of
                the version says so.
            table: the names of the labels. By default they are named after their ids.

        Raises:
            FileExistsError: if there is an atlas already.
            ValueError: if a file cannot be used, the two grids differ, or the table names no label of the label map.
        """
        folder = Path(folder)
        if _numbers(folder):
            raise FileExistsError(f"There is an atlas in {folder} already.")
        label_map = read_label_map(labels)
        scan = read_scan(image)
        check_same_grid(scan, label_map, str(image), str(labels))
        present = present_labels(label_map)
        table = LabelTable.from_ids(present) if table is None else table
        if not set(present) & set(table.ids):
            raise ValueError(f"The atlas labels {labels} have no label of the label table, only {list(present[:10])}.")
        voxels = as_label_array(label_map)[0]
        named = np.where(np.isin(voxels, table.ids), voxels, 0)
        about = {"change": "the atlas as it came", "previous": None, "image": _relative(image, folder)}
        if note := Atlas(scan, label_map, table).mismatch:
            about["note"] = note
        folder.mkdir(parents=True, exist_ok=True)
        _write_version(folder, 1, named, label_map, table, about)
        return cls(folder)

    def numbers(self) -> list[int]:
        """The numbers of all versions, ascending."""
        return _numbers(self.folder)

    def version(self, number: int) -> AtlasVersion:
        """Find the version of a number.

        Raises:
            ValueError: if there is none.
        """
        if number not in self.numbers():
            raise ValueError(f"The atlas has no version {number}, only {self.numbers()}.")
        return self._read.setdefault(number, AtlasVersion(self.folder / f"{number:04d}"))

    @property
    def current(self) -> AtlasVersion:
        """The newest version."""
        return self.version(self.numbers()[-1])

    @property
    def image(self) -> Path:
        """The file of the atlas image."""
        return (self.folder / self.current.about["image"]).resolve()

    def paint(self, painted: PathLike, label_info: LabelInfo | None = None) -> AtlasVersion:
        """Add labels to the atlas, or change where its labels are.

        A segment with voxels replaces the label of its name. It wins over other labels where it lies on them. Segments
        without voxels change nothing, nor do labels that are not among the segments.

        Args:
            painted: the file of the painted label map, on the grid of the atlas image.
            label_info: the names of its values. A new label may have a ``color``: three integers from 0 to 255, or
                numbers from 0 to 1. Without names the values are ids of the atlas.

        Returns:
            The new version, or the current one if nothing changed.

        Raises:
            ValueError: if the file is no label map on the atlas's grid, or as
                :func:`monai_lcs.label_app.segments.painted_labels`.
        """
        before = self.current
        old, values = read_label_map(before.labels), read_label_map(painted)
        check_same_grid(old, values, str(self.image), str(painted))
        labels = painted_labels(present_labels(values), label_info or (), before.table)
        old_ids = as_label_array(old)[0]
        new_ids = _repaint(old_ids, as_label_array(values)[0], labels)
        changed = [label for label in labels.values() if not np.array_equal(new_ids == label.id, old_ids == label.id)]
        if not changed:
            return before
        added = [label for label in labels.values() if label.id not in before.table]
        change = "painted " + ", ".join(label.name for label in changed)
        about = {"change": change, "previous": before.number, "image": _relative(self.image, self.folder)}
        return self._append(new_ids, old, LabelTable([*before.table, *added]), about)

    def restore(self, number: int) -> AtlasVersion:
        """Make an earlier version current again. It is written as a new version, so that this can be undone too.

        Raises:
            ValueError: if there is no version of this number.
        """
        old = self.version(number)
        about = {**old.about, "change": f"back to version {number}", "image": _relative(self.image, self.folder)}
        label_map = read_label_map(old.labels)
        return self._append(as_label_array(label_map)[0], label_map, old.table, about)

    def undo(self) -> AtlasVersion:
        """Take back the last change; the next call takes back the change before it.

        Raises:
            ValueError: if the atlas is as it came.
        """
        previous = self.current.about["previous"]
        if previous is None:
            raise ValueError("There is nothing to undo: the atlas is as it came.")
        return self.restore(previous)

    def _append(self, ids: np.ndarray, grid: MetaTensor, table: LabelTable, about: dict[str, Any]) -> AtlasVersion:
        number = self.numbers()[-1] + 1
        _write_version(self.folder, number, ids, grid, table, about)
        return self.version(number)


def _repaint(old_ids: np.ndarray, values: np.ndarray, labels: Mapping[int, Label]) -> np.ndarray:
    """Take the painted labels off the old label map, and put them where their values are."""
    ids = np.where(np.isin(old_ids, [label.id for label in labels.values()]), 0, old_ids)
    for value, label in labels.items():
        ids[values == value] = label.id
    return ids


def _relative(image: PathLike, folder: Path) -> str:
    """The path of the atlas image as seen from the versions: a study may be moved."""
    return os.path.relpath(Path(image).resolve(), folder.resolve())


def _numbers(folder: Path) -> list[int]:
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in found if path.name.isdecimal() and len(path.name) >= 4)


def _write_version(
    folder: Path, number: int, ids: np.ndarray, grid: MetaTensor, table: LabelTable, about: dict[str, Any]
) -> None:
    """Fill a folder under another name, then rename it; ``ids`` are ``(*spatial)``, with the affine of ``grid``."""
    temporary = folder / f".{uuid.uuid4().hex}"
    try:
        temporary.mkdir()
        image = nib.Nifti1Image(ids.astype(table.dtype), convert_to_numpy(grid.affine), dtype=table.dtype)
        nib.save(image, temporary / "dseg.nii.gz")
        table.write(temporary / "dseg.tsv")
        time = datetime.now().isoformat(timespec="seconds")
        (temporary / "version.json").write_text(json.dumps({**about, "time": time}, indent=4))
        temporary.rename(folder / f"{number:04d}")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """List the versions of a study's atlas, take back the last change, or go back to a version.

    Args:
        arguments: the words of the command line; those of the process by default.
    """
    about = "List the versions of a study's atlas, take back the last change, or go back to a version."
    parser = argparse.ArgumentParser(prog="python -m monai_lcs.label_app.atlas_store", description=about)
    parser.add_argument("studies", help="the study folder")
    parser.add_argument("--undo", action="store_true", help="take back the last change")
    parser.add_argument("--restore", type=int, metavar="N", help="go back to version N")
    options = parser.parse_args(arguments)
    try:
        store = AtlasStore(atlas_folder(options.studies))
        if options.undo:
            store.undo()
        if options.restore is not None:
            store.restore(options.restore)
    except (OSError, ValueError) as error:
        raise SystemExit(f"Error: {error}") from error
    for number in store.numbers():
        version = store.version(number)
        print(f"{number:4d}  {version.about['time']}  {len(version.table):4d} labels  {version.about['change']}")


if __name__ == "__main__":
    main()
