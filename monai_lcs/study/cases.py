"""Finds cases: images and label maps on disk, by folders or by a datalist, and the splits of a study."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeAlias

from monai.config import PathLike
from monai.utils import ensure_tuple, look_up_option

from monai_lcs.study.images import IMAGE_EXTENSIONS

__all__ = ["case_name", "case_names", "find_cases", "find_images", "shorten_names"]

Case: TypeAlias = dict[str, Any]

N_FOLDS = 5
"""Folds of cases that come without fold numbers of their own."""


def case_name(path: PathLike) -> str:
    """The name of a case: its file name without folder and extension, if that is one of `IMAGE_EXTENSIONS`.

    Example:
        >>> case_name("scans/sub-01.v2.nii.gz"), case_name("bert/T1.mgz")
        ('sub-01.v2', 'T1')
    """
    name = Path(path).name
    for extension in IMAGE_EXTENSIONS:
        if name.lower().endswith(extension):
            return name[: -len(extension)]
    return name


def case_names(paths: Sequence[PathLike]) -> list[str]:
    """A name for each image file that no other of them has, to call its results by.

    The :func:`case_name` where that is unique; otherwise as many folders before it as it takes, joined by `_`. The
    second of two files that differ in their extension only, or not at all, gets a number.

    Example:
        >>> case_names(["ann/mri/T1.mgz", "ben/mri/T1.mgz", "cleo.nii", "cleo.nii.gz"])
        ['ann_mri_T1', 'ben_mri_T1', 'cleo', 'cleo_2']
    """
    # without the root or drive of a path, nor its "..", which no file name should start with
    full = [Path(os.path.abspath(path)) for path in paths]
    parts = [(*path.parent.parts[1:], case_name(path)) for path in full]
    depths = dict.fromkeys(parts, 1)
    while True:
        names = {stem: "_".join(stem[-depth:]) for stem, depth in depths.items()}
        counts = Counter(names.values())
        equal = [stem for stem, depth in depths.items() if counts[names[stem]] > 1 and depth < len(stem)]
        if not equal:
            break
        for stem in equal:
            depths[stem] += 1

    unique: dict[str, None] = {}  # ordered
    for name in (names[stem] for stem in parts):
        numbered = (f"{name}_{number}" for number in count(2))
        unique[next(text for text in chain([name], numbered) if text not in unique)] = None
    return list(unique)


def find_cases(
    dataset_dir: PathLike | None = None,
    datalist: PathLike | None = None,
    section: str = "training",
    fold: int | None = None,
    with_labels: bool = True,
    exclude: PathLike | Sequence[PathLike] | None = None,
) -> list[Case]:
    """Images, and their label maps, of one section of a data set.

    With a `datalist`, its sections `training`, `validation` and `testing` (or `test`) are used. Without one, the files
    of `dataset_dir/images` are paired with those of `dataset_dir/labels` by name (extensions may differ, and an image
    may carry nnU-Net's `_0000`), sorted by name; `testing` is then all of them.

    Training and validation cases are told apart by, in this order: the datalist's `validation` section, where there is
    one and `fold` is None; the `fold` number of each item (validation is that fold, training the rest); the position i
    in the list, which belongs to fold i % 5. `fold` is 0 by default. Files are numbered before `exclude` is applied, so
    the folds do not depend on it.

    Args:
        dataset_dir: folder with `images` and `labels`, or the folder that the datalist's relative paths start from.
        datalist: MONAI or Decathlon JSON file. Its relative paths start from its own folder if `dataset_dir` is None.
        section: `"training"`, `"validation"` or `"testing"`.
        fold: validation fold.
        with_labels: whether each case needs a label map; if False, only images are looked for and returned.
        exclude: file or files to leave out, such as the atlas: no case with one of them is returned.

    Returns:
        Dictionaries with keys `"image"` and, `with_labels`, `"label"`: absolute paths; and `"case"`: a name that no
        other case of the section has, see :func:`case_names`. `"label_groups"`, the labels that a partly labeled case
        has (see :class:`monai_lcs.transforms.RandSelectLabelsd`), is taken over from a datalist; other keys are not.

    Raises:
        ValueError: if neither source is given, a source is missing or broken, nothing matches or nothing is left.
    """
    section = look_up_option(section, ("training", "validation", "testing"))
    files = ("image", "label") if with_labels else ("image",)
    if datalist is not None:
        cases = _cases_of_datalist(Path(datalist), dataset_dir, section, fold, files)
    elif dataset_dir is not None:
        cases = _cases_of_folders(Path(dataset_dir), with_labels)
        if section != "testing":
            cases = _split(cases, [i % N_FOLDS for i in range(len(cases))], section, fold, str(dataset_dir))
    else:
        raise ValueError("Give `dataset_dir`, a folder with images/ and labels/, or `datalist`, a JSON file.")

    excluded = {Path(path).resolve() for path in ensure_tuple(exclude)} if exclude is not None else set()
    kept = [case for case in cases if excluded.isdisjoint(Path(case[key]).resolve() for key in files)]
    if not kept:
        raise ValueError(f"No {section} cases are left in {datalist or dataset_dir}: {len(cases)} before `exclude`.")
    return kept


def find_images(paths: PathLike | Sequence[PathLike]) -> list[Case]:
    """Images to segment, from a file, a list of files, or a folder (its image files, sorted by name).

    Of a folder, files whose names end in `_dseg` are left out: label maps by BIDS, and results of an earlier run. Files
    need not exist: :func:`check_case` tells the bad ones from the good ones.

    Returns:
        Dictionaries with keys `"image"`, the absolute path, and `"case"`, a name that no other has, see
        :func:`case_names`.

    Raises:
        ValueError: if a folder holds no image.
    """
    images: list[str] = []
    for path in map(Path, ensure_tuple(paths)):
        files = [path]
        if path.is_dir():
            files = [file for file in _image_files(path) if not case_name(file).endswith("_dseg")]
        if not files:
            raise ValueError(f"{path} holds no images: no file there ends in {', '.join(IMAGE_EXTENSIONS)}.")
        images += [str(file.absolute()) for file in files]
    return _named([{"image": image} for image in images])


def _named(cases: list[Case]) -> list[Case]:
    """The cases with a key `"case"`."""
    names = case_names([case["image"] for case in cases])
    return [{**case, "case": name} for case, name in zip(cases, names, strict=True)]


def _cases_of_datalist(
    path: Path, dataset_dir: PathLike | None, section: str, fold: int | None, files: Sequence[str]
) -> list[Case]:
    """Cases of a section of a JSON file, relative paths made absolute."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"Cannot read the datalist {path}: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"The datalist {path} must hold a JSON object of sections, got a {type(content).__name__}.")

    sections = {name: items for name, items in content.items() if isinstance(items, list)}
    if section == "testing" and section not in sections:
        found = "test"
    elif section == "validation" and (section not in sections or fold is not None):
        found = "training"
    else:
        found = section
    if found not in sections:
        raise ValueError(f'The datalist {path} has no section "{found}", only {sorted(sections)}.')

    # Decathlon's "test" holds plain file names; MONAI's own loader takes them under that one name only.
    items = [{"image": item} if isinstance(item, str) else item for item in sections[found]]
    base = Path(path.parent if dataset_dir is None else dataset_dir).absolute()
    cases = []
    for item in items:
        missing = [key for key in files if not (isinstance(item, dict) and isinstance(item.get(key), str))]
        if missing:
            raise ValueError(
                f'An item of section "{found}" of {path} names no {" and no ".join(missing)} file: {item}.'
            )
        partial = {key: item[key] for key in ("label_groups",) if key in item}
        cases.append({key: str(base / item[key]) for key in files} | partial)
    cases = _named(cases)

    if found in ("test", "testing", "validation") or (fold is None and "validation" in sections):
        return cases
    numbered = [item.get("fold") for item in items]
    if None in numbered and any(number is not None for number in numbered):
        item = items[numbered.index(None)]
        raise ValueError(f'Some items of section "{found}" of {path} have a "fold" and some do not: {item}.')
    folds = [i % N_FOLDS for i in range(len(items))] if None in numbered else numbered
    return _split(cases, folds, section, fold, str(path))


def _split(cases: list[Case], folds: Sequence[Any], section: str, fold: int | None, source: str) -> list[Case]:
    """The validation cases, which are those of `fold`, or the training cases, which are the rest."""
    fold = 0 if fold is None else fold
    if fold not in folds:
        raise ValueError(f"`fold` must be one of {sorted(set(folds), key=str)}, which {source} has, got {fold}.")
    return [case for case, number in zip(cases, folds, strict=True) if (number == fold) == (section == "validation")]


def _cases_of_folders(folder: Path, with_labels: bool) -> list[Case]:
    """Images and label maps of the same name, sorted."""
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder.absolute()}.")
    image_dir, label_dir = folder.absolute() / "images", folder.absolute() / "labels"
    images = _by_name(_image_files(image_dir))
    if not with_labels:
        if not images:
            raise ValueError(f"{image_dir} holds no images: no file there ends in {', '.join(IMAGE_EXTENSIONS)}.")
        return _named([{"image": str(path)} for path in images.values()])

    labels = _by_name(_image_files(label_dir))
    label_of = {name: name if name in labels else name.removesuffix("_0000") for name in images}
    cases = [
        {"image": str(path), "label": str(labels[label_of[name]])}
        for name, path in images.items()
        if label_of[name] in labels
    ]
    unpaired = [path.name for name, path in images.items() if label_of[name] not in labels]
    if not cases:
        raise ValueError(
            f"No image of {image_dir} has a label map of the same name in {label_dir}: "
            f"found images {shorten_names(unpaired)} and labels "
            f"{shorten_names([path.name for path in labels.values()])}."
        )
    unpaired += [path.name for name, path in labels.items() if name not in label_of.values()]
    if unpaired:
        warnings.warn(
            f"Left out of {folder}, without a partner of the same name: {shorten_names(unpaired)}.", stacklevel=3
        )
    return _named(cases)


def _image_files(folder: Path) -> list[Path]:
    """Image files right in a folder, sorted by name; none if there is no such folder."""
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(
        path.absolute()
        for path in files
        if path.name.lower().endswith(IMAGE_EXTENSIONS) and not path.name.startswith(".") and path.is_file()
    )


def _by_name(files: Any) -> dict[str, Path]:
    """Files by case name, which must be unique."""
    named: dict[str, Path] = {}
    for path in files:
        other = named.setdefault(case_name(path), path)
        if other != path:
            raise ValueError(f'Two images are named "{case_name(path)}", rename one of them: {other} and {path}.')
    return named


def shorten_names(names: Sequence[str], most: int = 3) -> str:
    """The first few names and how many more there are.

    Example:
        >>> shorten_names(["a", "b", "c", "d"], most=2), shorten_names([])
        ('a, b and 2 more', 'none')
    """
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest if names else "none"
