"""The atlas of a study on disk: every change is a version of its own, so that a mistake can be undone."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import PathLike
from monai.utils import convert_to_numpy

from monai_lcs.labels import Label, LabelTable, is_integer
from monai_lcs.labels.groups import present_labels
from monai_lcs.labels.label_map import as_label_array
from monai_lcs.labels.limits import MAX_FLOAT32_ID
from monai_lcs.labels.queries import label_names
from monai_lcs.study.checks import check_case
from monai_lcs.study.images import read_image

__all__ = ["AtlasStore", "AtlasVersion", "LabelInfo", "atlas_folder", "check_new_name"]

LabelInfo = Sequence[Mapping[str, Any]]
"""What the values of a painted label map are: ``[{"name": "Left-Hippocampus", "idx": 1, "color": [220, 216, 20]}]``."""


def atlas_folder(studies: PathLike) -> Path:
    """Where a study keeps the versions of its atlas."""
    return Path(studies) / "lcs" / "atlas"


@dataclass(frozen=True)
class AtlasVersion:
    """One state of the atlas labels.

    Args:
        folder: holds ``dseg.nii.gz``, ``dseg.tsv`` and ``version.json``; its name is the number.
    """

    folder: Path

    @property
    def number(self) -> int:
        """1 for the atlas as it came."""
        return int(self.folder.name)

    @property
    def labels(self) -> Path:
        """The label map file."""
        return self.folder / "dseg.nii.gz"

    @cached_property
    def table(self) -> LabelTable:
        """Names and colors of the labels."""
        return LabelTable(LabelTable.read(self.folder / "dseg.tsv"))  # messages for clients do not name the file

    @cached_property
    def about(self) -> dict[str, Any]:
        """``change`` in words, ``time``, ``previous`` (version, ``None`` for the first), ``image`` (of the atlas)."""
        return json.loads((self.folder / "version.json").read_text())

    @cached_property
    def present(self) -> tuple[int, ...]:
        """The ids that have voxels and a name, ascending."""
        return tuple(id for id in present_labels(read_image(self.labels)) if id in self.table)


class AtlasStore:
    """The versions of an atlas; the one with the highest number is current.

    A version appears complete or not at all, and is never changed afterwards. Several processes may read while one
    writes.

    Args:
        folder: of the versions, see :func:`atlas_folder`; :meth:`create` makes it.

    Raises:
        FileNotFoundError: when there is no atlas.
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
            image: the atlas image, which stays where it is.
            labels: its label map.
            table: names of the labels; made up from the ids by default.

        Raises:
            FileExistsError: when there is an atlas already.
            ValueError: when the files cannot be used, see :func:`monai_lcs.study.checks.check_case`, or no label has a
                name. Labels without a name are left out.
        """
        folder = Path(folder)
        if _numbers(folder):
            raise FileExistsError(f"There is an atlas in {folder} already.")
        check_case({"atlas_image": str(image), "atlas_label": str(labels)})
        label_map = read_image(labels)
        present = present_labels(label_map)
        table = LabelTable.from_ids(present) if table is None else table
        if not set(present) & set(table.ids):
            raise ValueError(f"The atlas labels {labels} have no label of the label table, only {list(present[:10])}.")
        voxels = as_label_array(label_map)[0]
        named = np.where(np.isin(voxels, table.ids), voxels, 0)
        about = {"change": "the atlas as it came", "previous": None, "image": _relative(image, folder)}
        folder.mkdir(parents=True, exist_ok=True)
        _write_version(folder, 1, named, convert_to_numpy(label_map.affine), table, about)
        return cls(folder)

    def numbers(self) -> list[int]:
        """The versions there are, ascending."""
        return _numbers(self.folder)

    def version(self, number: int) -> AtlasVersion:
        """One version.

        Raises:
            ValueError: when there is none of this number.
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
        """The atlas image file."""
        return (self.folder / self.current.about["image"]).resolve()

    def paint(self, painted: PathLike, label_info: LabelInfo | None = None) -> AtlasVersion:
        """Add labels to the atlas, or change the extent of labels it has.

        A segment with voxels takes the place of the label of its name and wins over other labels where it lies on
        them. Segments without voxels, and labels that are not among the segments, change nothing.

        Args:
            painted: label map file on the grid of the atlas image.
            label_info: names of its values and, for new labels, perhaps a ``color``, three integers from 0 to 255 or
                numbers from 0 to 1. Without it the values are ids of the atlas.

        Returns:
            The new version; the current one where nothing changed.

        Raises:
            ValueError: when the file is no label map on the atlas's grid, a value has no name, two values have the
                same, or a name cannot be used (see :func:`check_new_name`).
        """
        before = self.current
        check_case({"atlas_image": str(self.image), "atlas_label": str(painted)})
        values = as_label_array(read_image(painted))[0]
        found = [int(value) for value in np.unique(values) if value]
        labels = _labels_of_values(found, label_info or (), before.table)
        source = read_image(before.labels)
        old = as_label_array(source)[0]
        new = np.where(np.isin(old, [label.id for label in labels.values()]), 0, old)
        for value, label in labels.items():
            new[values == value] = label.id
        added = [label for label in labels.values() if label.id not in before.table]
        changed = [label.name for label in labels.values() if not np.array_equal(new == label.id, old == label.id)]
        if not changed:
            return before
        about = {
            "change": "painted " + ", ".join(changed),
            "previous": before.number,
            "image": _relative(self.image, self.folder),
        }
        table = LabelTable([*before.table, *added])
        return self._append(new, convert_to_numpy(source.affine), table, about)

    def restore(self, number: int) -> AtlasVersion:
        """Make an earlier version current again, as a new version, so that this can be undone too.

        Raises:
            ValueError: when there is none of this number.
        """
        old = self.version(number)
        about = {**old.about, "change": f"back to version {number}", "image": _relative(self.image, self.folder)}
        source = read_image(old.labels)
        return self._append(as_label_array(source)[0], convert_to_numpy(source.affine), old.table, about)

    def undo(self) -> AtlasVersion:
        """Take back the last change; called again, the one before.

        Raises:
            ValueError: when the atlas is as it came.
        """
        previous = self.current.about["previous"]
        if previous is None:
            raise ValueError("There is nothing to undo: the atlas is as it came.")
        return self.restore(previous)

    def _append(self, labels: np.ndarray, affine: np.ndarray, table: LabelTable, about: dict[str, Any]) -> AtlasVersion:
        number = self.numbers()[-1] + 1
        _write_version(self.folder, number, labels, affine, table, about)
        return self.version(number)


def check_new_name(name: Any, table: LabelTable) -> str:
    """The name of a label to add, without white space around it.

    Raises:
        ValueError: when it is empty, long, not text, or could be taken for a request of other labels: digits, a list,
            a pattern, "all", or the name of another label but for upper and lower case.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"A label needs a name, got {name!r}.")
    name = name.strip()
    if len(name) > 100 or not name.isprintable():
        raise ValueError(f"A label's name must be at most 100 printable characters, got {name[:120]!r}.")
    if set(name) & set(',;*?[]{}"/\\<>|') or " + " in name or ".." in name:
        raise ValueError(
            f'A label\'s name must not hold any of , ; * ? [ ] {{ }} " / \\ < > | " + " "..", got {name!r}.'
        )
    if name.isdecimal() or name.lower() in ("all", "background", "n/a"):
        raise ValueError(f"A label must not be called {name!r}, which asks for other labels.")
    same = [known for known in _known_names(table) if known.lower() == name.lower()]
    if same:
        raise ValueError(f"The atlas has a label {same[0]!r}: write {name!r} like it, or choose another name.")
    return name


def _known_names(table: LabelTable) -> set[str]:
    return {text for label in table for text in (label.name, label.parent) if text}


def _labels_of_values(values: Iterable[int], label_info: LabelInfo, table: LabelTable) -> dict[int, Label]:
    """The label of each value of a painted map; those that the table lacks get the next free ids."""
    named = {int(info["idx"]): info for info in label_info if is_integer(info.get("idx")) and info.get("name")}
    id_of = {name: id for id, name in label_names(table).items()}
    labels: dict[int, Label] = {}
    free = max(table.ids, default=0) + 1
    for value in values:
        info = named.get(value)
        if info is None and (label_info or value not in table):
            known = "no name in `label_info`" if label_info else "not an id of the atlas"
            raise ValueError(
                f'The painted value {value} is {known}: send label_info [{{"name": ..., "idx": {value}}}].'
            )
        if info is not None and info["name"] == "background":
            continue
        if info is None or info["name"] in id_of:
            labels[value] = table[value if info is None else id_of[info["name"]]]
            continue
        labels[value] = _new_label(free, info, table)
        free += 1
    names = [label.name for label in labels.values()]
    ids = [label.id for label in labels.values()]
    if len(set(ids)) < len(ids) or len({name.lower() for name in names}) < len(set(ids)):
        raise ValueError(f"Each segment must have a name of its own, got {sorted(names)}.")
    return labels


def _new_label(id: int, info: Mapping[str, Any], table: LabelTable) -> Label:
    if id > MAX_FLOAT32_ID:
        raise ValueError(
            f"The atlas has no room for another label: its highest id is {id - 1}, {MAX_FLOAT32_ID} at most."
        )
    name = check_new_name(info["name"], table)
    label = LabelTable.from_channel_def({str(id): name})[id]  # tells the hemisphere by the name
    return replace(label, color=_color(info["color"])) if info.get("color") else label


def _color(color: Any) -> tuple[int, int, int]:
    try:
        red, green, blue = (float(part) for part in color)
    except (TypeError, ValueError):
        raise ValueError(f"A color must be three numbers, got {color!r}.") from None
    scale = 255 if max(red, green, blue) <= 1 and any(part % 1 for part in (red, green, blue)) else 1
    return round(red * scale), round(green * scale), round(blue * scale)


def _relative(image: PathLike, folder: Path) -> str:
    """The atlas image as seen from the versions, so that a study can be moved."""
    return os.path.relpath(Path(image).resolve(), folder.resolve())


def _numbers(folder: Path) -> list[int]:
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in found if path.name.isdecimal() and len(path.name) >= 4)


def _write_version(
    folder: Path, number: int, labels: np.ndarray, affine: np.ndarray, table: LabelTable, about: dict[str, Any]
) -> None:
    """Fill a folder under another name and rename it."""
    temporary = folder / f".{uuid.uuid4().hex}"
    try:
        temporary.mkdir()
        image = nib.Nifti1Image(labels.astype(table.dtype), affine, dtype=table.dtype)
        nib.save(image, temporary / "dseg.nii.gz")
        table.write(temporary / "dseg.tsv")
        time = datetime.now().isoformat(timespec="seconds")
        (temporary / "version.json").write_text(json.dumps({**about, "time": time}, indent=4))
        temporary.rename(folder / f"{number:04d}")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """List the versions of a study's atlas, take back the last change, or go back to a version."""
    parser = argparse.ArgumentParser(prog="python -m monai_lcs.label_app.atlas_store", description=main.__doc__)
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
