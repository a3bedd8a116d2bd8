"""Finds the cases of a study, images and label maps on disk, by folders or by a datalist."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from monai.config import PathLike
from monai.utils import ensure_tuple, look_up_option

from monai_lcs.study.dicom import find_series
from monai_lcs.study.images import IMAGE_EXTENSIONS
from monai_lcs.study.splits import (
    Case,
    folds_by_position,
    folds_of_items,
    has_own_section,
    section_to_read,
    select_fold,
)

__all__ = [
    "MAX_NAME_BYTES",
    "case_name",
    "case_names",
    "find_cases",
    "find_images",
    "image_files",
    "shorten_names",
    "split_by_name",
]

MAX_NAME_BYTES = 200
"""The longest name of a case: file systems allow 255 bytes, of which results and temporary files need some."""

_RESULT = re.compile(r"_(dseg|desc-brain_mask|label-[A-Za-z0-9]+_(mask|probseg))$")  # ends of the names of results

_SECTIONS = ("training", "validation", "testing", "test")


def find_cases(
    dataset_dir: PathLike | None = None,
    datalist: PathLike | None = None,
    section: str = "training",
    fold: int | None = None,
    with_labels: bool = True,
    exclude: PathLike | Sequence[PathLike] | None = None,
) -> list[Case]:
    """Finds the images of one section of a data set, and their label maps.

    With a ``datalist``, its sections ``training``, ``validation`` and ``testing`` (or ``test``) are used. Without one,
    the files of ``dataset_dir/images`` are paired with those of ``dataset_dir/labels`` by name, and sorted by it; their
    extensions may differ, and an image may carry nnU-Net's ``_0000``. The section ``testing`` is then all of them.

    Training and validation cases are told apart by the first of these rules that applies:

    1. The datalist has a section ``validation``, and ``fold`` is None: its cases are for validation.
    2. The items of the datalist have a number ``fold``: the cases of one fold are for validation.
    3. The case at position i belongs to fold i % 5.

    By default, ``fold`` is 0. Folds are numbered before files are excluded, so they do not depend on ``exclude``. Links
    whose content is not there are cases like others: who reads them says so, and the folds do not depend on them.

    Args:
        dataset_dir: folder with ``images`` and ``labels``, or the folder from which the datalist's relative paths
            start.
        datalist: MONAI or Decathlon JSON file. Its relative paths start from its own folder if ``dataset_dir`` is None.
        section: ``"training"``, ``"validation"`` or ``"testing"``.
        fold: validation fold.
        with_labels: whether each case needs a label map. If False, only images are looked for and returned.
        exclude: file or files to leave out, such as the atlas: a case that has one of them is not returned.

    Returns:
        Dictionaries with the keys ``"image"`` and, ``with_labels``, ``"label"``: absolute paths; and ``"case"``: a name
        that no other case of the section has, see :func:`case_names`. ``"label_groups"`` is taken over from a datalist,
        but no other key is. It lists the labels of a partly labeled case, see
        :class:`monai_lcs.transforms.RandSelectLabelsd`.

    Raises:
        ValueError: if neither source is given, a source is missing or broken, nothing matches or nothing is left.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     datalist = Path(folder, "datalist.json")
        ...     _ = datalist.write_text('{"testing": [{"image": "ann.nii", "label": "ann_dseg.nii"}]}')
        ...     [sorted(case) for case in find_cases(datalist=datalist, section="testing")]
        [['case', 'image', 'label']]
    """
    section = look_up_option(section, ("training", "validation", "testing"))
    files = ("image", "label") if with_labels else ("image",)
    if datalist is not None:
        cases = _cases_of_datalist(Path(datalist), dataset_dir, section, fold, files)
    elif dataset_dir is not None:
        cases = _cases_of_folders(Path(dataset_dir), section, fold, with_labels)
    else:
        raise ValueError("Give `dataset_dir`, a folder with images/ and labels/, or `datalist`, a JSON file.")

    kept = _leave_out(cases, files, exclude)
    if not kept:
        why = f"all {len(cases)} are left out by `exclude`, such as the atlas" if cases else "there are none"
        raise ValueError(f"No {section} cases are left in {datalist or dataset_dir}: {why}.")
    return kept


def _leave_out(
    cases: Sequence[Case], files: Sequence[str], exclude: PathLike | Sequence[PathLike] | None
) -> list[Case]:
    """Returns the cases that have none of the excluded files, whatever links lead to them."""
    excluded = set() if exclude is None else {Path(path).resolve() for path in ensure_tuple(exclude)}
    return [case for case in cases if excluded.isdisjoint(Path(case[key]).resolve() for key in files)]


# ---- by a datalist


def _cases_of_datalist(
    path: Path, dataset_dir: PathLike | None, section: str, fold: int | None, files: Sequence[str]
) -> list[Case]:
    """Returns the cases of a section of a JSON file, with absolute paths."""
    sections = _read_datalist(path)
    found = section_to_read(sections, section, fold)
    if found not in sections:
        raise ValueError(f'The datalist {path} has no section "{found}", only {sorted(sections)}.')
    source = f'section "{found}" of {path}'
    # Decathlon's "test" holds plain file names; MONAI's own loader takes them under that one name only.
    items = [{"image": item} if isinstance(item, str) else item for item in sections[found]]
    base = Path(path.parent if dataset_dir is None else dataset_dir).absolute()
    cases = _named([_case_of_item(item, base, files, source) for item in items])
    if has_own_section(sections, found, fold):
        return cases
    return select_fold(cases, folds_of_items(items, source), section, fold, str(path))


def _read_datalist(path: Path) -> dict[str, list[Any]]:
    """Reads the sections of a JSON file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError(f"Cannot read the datalist {path}: its lists or objects are nested too deeply.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"Cannot read the datalist {path}: {reason}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"The datalist {path} must hold a JSON object of sections, got a {type(content).__name__}.")
    for name in _SECTIONS:
        if not isinstance(content.get(name, []), list):
            got = type(content[name]).__name__
            raise ValueError(f'Section "{name}" of the datalist {path} must be a list of cases, got a {got}.')
    return {name: items for name, items in content.items() if isinstance(items, list)}


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a dictionary of a JSON object, of whose equal names only the last would be kept."""
    repeated = [name for name, number in Counter(name for name, _ in pairs).items() if number > 1]
    if repeated:
        raise ValueError(f"it has {_shown(repeated[0])} twice in one object")
    return dict(pairs)


def _shown(item: Any) -> str:
    """Shows a part of a datalist, in a length that fits a message."""
    try:
        text = repr(item)
    except RecursionError:
        text = type(item).__name__
    return text if len(text) <= 100 else f"{text[:100]}..."


def _case_of_item(item: Any, base: Path, files: Sequence[str], source: str) -> Case:
    """Takes over the files of an item, with absolute paths, and its label groups."""
    given: dict[str, Any] = item if isinstance(item, dict) else {}
    missing = [key for key in files if not isinstance(given.get(key), str)]
    if missing:
        raise ValueError(f"An item of {source} names no {' and no '.join(missing)} file: {_shown(item)}.")
    for key in files:
        _check_path(key, item[key], source)
    groups = {key: item[key] for key in ("label_groups",) if key in item}
    return {key: str(base / item[key]) for key in files} | groups


def _check_path(key: str, path: str, source: str) -> None:
    """A path must hold something, but no null byte."""
    if not path or "\0" in path:
        raise ValueError(f'The "{key}" of an item of {source} is no path: {_shown(path)}.')


# ---- by folders


def _cases_of_folders(folder: Path, section: str, fold: int | None, with_labels: bool) -> list[Case]:
    """Returns the cases of a section of a folder with ``images`` and ``labels``."""
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder.absolute()}.")
    image_dir, label_dir = folder.absolute() / "images", folder.absolute() / "labels"
    images = _by_name(image_files(image_dir))
    if with_labels:
        cases = _pairs(images, _by_name(image_files(label_dir)), folder)
    else:
        cases = [{"image": str(path)} for path in images.values()]
        _check_any(cases, image_dir)
    cases = _named(cases)
    if section == "testing":
        return cases
    return select_fold(cases, folds_by_position(len(cases)), section, fold, str(folder))


def _pairs(images: Mapping[str, Path], labels: Mapping[str, Path], folder: Path) -> list[Case]:
    """Pairs images and label maps of the same name, and warns of those without a partner."""
    paired = _label_names(images, labels)
    lone_images = [path.name for name, path in images.items() if name not in paired]
    if not paired:
        raise ValueError(
            f"No image of {folder.absolute() / 'images'} has a label map of the same name in "
            f"{folder.absolute() / 'labels'}: found images {shorten_names(lone_images)} and labels "
            f"{shorten_names([path.name for path in labels.values()])}."
        )
    lone_labels = [path.name for name, path in labels.items() if name not in paired.values()]
    lone = lone_images + lone_labels
    if lone:
        # at the line that calls find_cases
        warnings.warn(f"Left out of {folder}, without a partner of the same name: {shorten_names(lone)}.", stacklevel=4)
    return [{"image": str(images[name]), "label": str(labels[label])} for name, label in paired.items()]


def _label_names(images: Iterable[str], labels: Collection[str]) -> dict[str, str]:
    """Returns the name of the label map of each image that has one; the image may carry nnU-Net's ``_0000``."""
    label_of = {name: name if name in labels else name.removesuffix("_0000") for name in images}
    return {name: label for name, label in label_of.items() if label in labels}


def _check_any(found: Sequence[Any], folder: Path) -> None:
    """A folder of images must hold at least one."""
    if not found:
        raise ValueError(f"{folder} holds no images: no file there ends in {', '.join(IMAGE_EXTENSIONS)}.")


def image_files(folder: Path) -> list[Path]:
    """Returns the image files of a folder but not of its subfolders, sorted by name; none if it does not exist.

    A link whose content is not there counts, so that it is not passed over in silence.
    """
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(
        path.absolute()
        for path in files
        if path.name.lower().endswith(IMAGE_EXTENSIONS)
        and not path.name.startswith(".")
        and (path.is_file() or (path.is_symlink() and not path.exists()))
    )


def _by_name(files: Iterable[Path]) -> dict[str, Path]:
    """Returns the files by case name, which must be unique."""
    named: dict[str, Path] = {}
    for path in files:
        other = named.setdefault(case_name(path), path)
        if other != path:
            raise ValueError(f'Two images are named "{case_name(path)}", rename one of them: {other} and {path}.')
    return named


# ---- images alone


def find_images(paths: PathLike | Sequence[PathLike]) -> list[Case]:
    """Finds the images to segment: a file, a list of files, or a folder (its image files, sorted by name).

    A folder with a DICOM series and no image file is an image itself.

    Files of a folder whose names end in ``_dseg``, ``_desc-brain_mask``, ``_label-*_mask`` or ``_label-*_probseg`` are
    left out: they are results of an earlier run. Files need not exist, nor the content of links:
    :func:`monai_lcs.study.checks.check_case` tells the bad ones from the good ones.

    Returns:
        Dictionaries with the keys ``"image"``, the absolute path, and ``"case"``, a name that no other has, see
        :func:`case_names`.

    Raises:
        ValueError: if a folder holds no image.

    Example:
        >>> [case["case"] for case in find_images(["ann/T1.mgz", "bo/T1.mgz"])]
        ['ann_T1', 'bo_T1']
    """
    images = chain.from_iterable(_images_at(Path(path)) for path in ensure_tuple(paths))
    return _named([{"image": str(image)} for image in images])


def _images_at(path: Path) -> list[Path]:
    """Returns the images of a folder that are no label maps, or the file itself; or the folder, of a DICOM series."""
    if not path.is_dir():
        return [path.absolute()]
    found = image_files(path)
    if not found and find_series(path):
        return [path.absolute()]
    files = [file for file in found if not _RESULT.search(case_name(file))]
    if found and not files:
        raise ValueError(f"{path} holds no images but label maps ({found[0].name}): give their files by name.")
    _check_any(files, path)
    return files


# ---- names


def case_name(path: PathLike) -> str:
    """Returns the name of a case: its file name without the extension, if that is one of ``IMAGE_EXTENSIONS``.

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
    """Returns a unique name for each image file, after which its results are named.

    The name is the :func:`case_name` where that is unique. Otherwise it starts with as many of the file's folders as
    make it unique, joined by ``_``. If two files differ in their extension only, or not at all, the second gets a
    number. A name longer than :data:`MAX_NAME_BYTES`, or one that cannot be printed, is changed with a warning.

    Raises:
        ValueError: if a file is called like an extension alone, such as ``.nii.gz``.

    Example:
        >>> case_names(["ann/mri/T1.mgz", "ben/mri/T1.mgz", "cleo.nii", "cleo.nii.gz"])
        ['ann_mri_T1', 'ben_mri_T1', 'cleo', 'cleo_2']
    """
    # without the root or drive of a path, nor its "..", which no file name should start with
    full = [Path(os.path.abspath(path)) for path in paths]
    parts = [(*path.parent.parts[1:], case_name(path)) for path in full]
    for path, (*_, name) in zip(paths, parts, strict=True):
        if not name:
            raise ValueError(f"{path} has no name before its ending: rename it.")
    names = _shortest_unique(parts)
    return _number_repeats(_file_name(names[part]) for part in parts)


def _file_name(name: str) -> str:
    """Changes a name after which no file can be called, or that cannot be printed, and says so."""
    changed = "".join(letter if letter.isprintable() else "_" for letter in name)  # bytes that are no UTF-8 are not
    if len(changed.encode()) > MAX_NAME_BYTES:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
        kept = changed.encode()[: MAX_NAME_BYTES - 20].decode(errors="ignore")
        changed = f"{kept}_{digest}"
    if changed != name:
        shown = ascii(name) if len(name) < 60 else f"{ascii(name[:60])[:-1]}..."
        warnings.warn(f"The results of {shown} are named {changed}.", stacklevel=4)
    return changed


def _shortest_unique(parts: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Joins as many of the last parts of each path as tell it from the others, or all of them."""
    depths = dict.fromkeys(parts, 1)
    while True:
        names = {path: "_".join(path[-depth:]) for path, depth in depths.items()}
        counts = Counter(names.values())
        ambiguous = [path for path, depth in depths.items() if counts[names[path]] > 1 and depth < len(path)]
        if not ambiguous:
            return names
        for path in ambiguous:
            depths[path] += 1


def _number_repeats(names: Iterable[str]) -> list[str]:
    """Adds the next free number to a name that an earlier one has."""
    unique: dict[str, None] = {}  # ordered
    for name in names:
        numbered = (f"{name}_{number}" for number in count(2))
        unique[next(text for text in chain([name], numbered) if text not in unique)] = None
    return list(unique)


def _named(cases: list[Case]) -> list[Case]:
    """Adds the key ``"case"``."""
    names = case_names([case["image"] for case in cases])
    return [{**case, "case": name} for case, name in zip(cases, names, strict=True)]


def shorten_names(names: Sequence[str], most: int = 3) -> str:
    """Joins the first few names, and says how many more there are.

    Example:
        >>> shorten_names(["a", "b", "c", "d"], most=2), shorten_names([])
        ('a, b and 2 more', 'none')
    """
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest if names else "none"


def split_by_name(cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """Training and validation cases; about every fifth is for validation, chosen by the name of its image.

    A case stays on its side however many others are added: right for a study that grows while it is trained on.

    Raises:
        ValueError: when there are fewer than two cases.

    Example:
        >>> training, validation = split_by_name([{"image": f"scan-{i}.nii.gz"} for i in range(20)])
        >>> len(training), len(validation)
        (17, 3)
    """
    if len(cases) < 2:
        raise ValueError(f"Training needs two labeled scans or more, one of them to validate on, got {len(cases)}.")

    def number(case: Case) -> int:
        return int(hashlib.sha256(case_name(case["image"]).encode()).hexdigest(), 16)

    chosen = {i for i, case in enumerate(cases) if number(case) % 5 == 0}
    if not chosen or len(chosen) == len(cases):
        chosen = {min(range(len(cases)), key=lambda i: number(cases[i]))}
    sides = [[case for i, case in enumerate(cases) if (i in chosen) == side] for side in (False, True)]
    return sides[0], sides[1]
