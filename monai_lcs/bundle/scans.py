"""The scans of a study, prepared and aligned."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monai_lcs import pipeline
from monai_lcs.atlas import Atlas
from monai_lcs.bundle.sentence import one_sentence
from monai_lcs.bundle.words import check_words
from monai_lcs.pipeline.prepared_dataset import say_missing_labels
from monai_lcs.study.cases import find_cases, find_images

__all__ = [
    "align_all",
    "cases",
    "images",
    "prepared",
    "with_random_atlas",
]


@one_sentence
def cases(
    dataset_dir: str | None, datalist: str | None, section: str, fold: int | None, atlas: Atlas
) -> list[dict[str, Any]]:
    """Find cases with labels, the atlas's own left out; see :func:`monai_lcs.study.cases.find_cases`."""
    _check_source(dataset_dir, datalist)
    exclude = [file for file in atlas.files.values() if file]
    found = find_cases(dataset_dir or None, datalist or None, section, fold, exclude=exclude or None)
    if section == "testing" and not datalist:
        said = f"Note: these are all {len(found)} cases of {dataset_dir}, also those a network was trained on;"
        print(said, "those left out of its training are --section validation.", file=sys.stderr)
    return found


@one_sentence
def images(dataset_dir: str | None, datalist: str | None, section: str, fold: int | None) -> list[dict[str, Any]]:
    """Find images to segment.

    Args:
        dataset_dir: a file, files or a folder; where it has a folder ``images``, the files in there.
        datalist: a datalist to use instead.
        section: the section of the datalist.
        fold: the fold of its sections.
    """
    _check_source(dataset_dir, datalist)
    if datalist:
        return find_cases(dataset_dir or None, datalist, section, fold, with_labels=False)
    assert dataset_dir is not None
    inner = Path(str(dataset_dir)) / "images"
    return find_images(inner if isinstance(dataset_dir, str) and inner.is_dir() else dataset_dir)


def _check_source(dataset_dir: str | None, datalist: str | None) -> None:
    check_words({"dataset_dir": dataset_dir, "datalist": datalist})
    if not dataset_dir and not datalist:
        raise ValueError("Give --dataset_dir (a folder; for inference also a file or a list of files) or --datalist.")


@one_sentence
def prepared(**arguments: Any) -> pipeline.PreparedDataset:
    """See :class:`monai_lcs.pipeline.PreparedDataset`."""
    return pipeline.PreparedDataset(**arguments)


@one_sentence
def with_random_atlas(
    preprocessing: pipeline.Preprocessing,
    random_atlas: bool,
    cases: Sequence[Mapping[str, Any]],
    further: Sequence[Atlas],
    groups: Sequence[Collection[int]],
) -> pipeline.Preprocessing | pipeline.AtlasPool:
    """The preprocessing of training cases, whose atlas is the given one or, for each sample, a random one.

    Args:
        preprocessing: that of the validation cases, with the given atlas.
        random_atlas: whether to draw.
        cases: the training cases, each other's atlases unless there are further ones.
        further: further atlases, to draw from instead.
        groups: the labels to train.
    """
    if not random_atlas:
        return preprocessing
    table = preprocessing.atlas.table
    pool = further or [
        Atlas.read(case["image"], case["label"], table) for case in tqdm(cases, "Reading atlases", unit="atlas")
    ]
    return pipeline.AtlasPool(preprocessing, pool, groups)


@one_sentence
def align_all(atlas: Atlas, *datasets: pipeline.PreparedDataset) -> None:
    """Align the atlas to the cases of all datasets, whose files are all read and checked by now.

    Before that, one line says which of their labels the atlas lacks.
    """
    say_missing_labels(atlas, *datasets)
    for dataset in datasets:
        dataset.align()
