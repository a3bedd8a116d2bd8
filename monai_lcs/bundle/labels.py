"""The atlas and the labels that are asked for."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from monai_lcs import pipeline
from monai_lcs.atlas import Atlas
from monai_lcs.bundle.sentence import one_sentence
from monai_lcs.bundle.words import check_words
from monai_lcs.labels import LabelTable, RequestedLabel, group_coarse_labels, parse_request, requested_table
from monai_lcs.study.cases import find_cases

__all__ = [
    "further_atlases",
    "label_groups",
    "label_ids",
    "read_atlas",
    "requested_labels",
    "result_table",
    "truth_ids",
    "union_ids",
]


@one_sentence
def read_atlas(atlas_image: str, atlas_labels: str, label_table: str | None) -> Atlas:
    """Read the atlas, once for all; see :meth:`monai_lcs.atlas.Atlas.read`."""
    check_words({"atlas_image": atlas_image, "atlas_labels": atlas_labels, "label_table": label_table})
    for name, path in (("atlas_image", atlas_image), ("atlas_labels", atlas_labels)):
        if not path:
            raise ValueError(f"Give --{name}, the file.")
    atlas = Atlas.read(atlas_image, atlas_labels, label_table or None)
    if atlas.mismatch:
        print(f"Note: {atlas.mismatch}", file=sys.stderr)
    return atlas


@one_sentence
def further_atlases(
    atlases_dir: str | None, atlases_datalist: str | None, dataset: Sequence[str | None], fold: int | None, atlas: Atlas
) -> list[Atlas]:
    """Read the training cases of a study, to vote beside the atlas; none where no study is named.

    Args:
        atlases_dir: see :func:`monai_lcs.study.cases.find_cases`.
        atlases_datalist: likewise; by default the one of the scans where these are of the same study.
        dataset: folder and datalist of the scans.
        fold: see :func:`monai_lcs.study.cases.find_cases`.
        atlas: the atlas, which does not vote twice; every other one must share labels with it.
    """
    if not atlases_dir and not atlases_datalist:
        return []
    if not atlases_datalist and atlases_dir == dataset[0]:
        atlases_datalist = dataset[1]
    exclude = list(atlas.files.values())
    found = find_cases(atlases_dir or None, atlases_datalist or None, "training", fold, exclude=exclude)
    there = len(found if atlases_datalist else find_cases(atlases_dir, None, "testing", exclude=exclude))
    if len(found) < there:
        said = f"Note: {len(found)} of the {there} cases of {atlases_dir} are further atlases; the others are its"
        print(said, "validation fold (--fold). To choose them, give --atlases_datalist.", file=sys.stderr)
    read = pipeline.read_further_atlases(found, atlas)
    if said := pipeline.describe_other_labels(read, atlas):
        print(said, file=sys.stderr)
    return read


@one_sentence
def requested_labels(atlas: Atlas, labels: Any) -> list[RequestedLabel]:
    """The labels asked for, see :func:`monai_lcs.labels.parse_request`; all of the atlas by default.

    Raises:
        SystemExit: when a label is unknown or has no voxel in the atlas.
    """
    requests = parse_request(labels, atlas.table)
    if labels is None or labels in ("", "all"):
        return parse_request(None, atlas.table, atlas.ids)
    atlas.check_present(sorted({id for request in requests for id in request.ids}))
    return requests


def label_ids(requests: Sequence[RequestedLabel]) -> list[int]:
    """The ids that a result has.

    Example:
        >>> label_ids([RequestedLabel(11, "caudate", (11, 50))])
        [11]
    """
    return [request.id for request in requests]


def union_ids(requests: Sequence[RequestedLabel], masked: Sequence[RequestedLabel] = ()) -> dict[int, tuple[int, ...]]:
    """For each id that a result has the atlas ids it stands for, as the inferer takes them.

    Args:
        requests: the labels.
        masked: those that the network is not asked for, unless they are all there is.

    Example:
        >>> union_ids([RequestedLabel(11, "caudate", (11, 50))])
        {11: (11, 50)}
    """
    asked = [request for request in requests if request not in masked]
    return {request.id: request.ids for request in asked or requests}


@one_sentence
def truth_ids(requests: Sequence[RequestedLabel]) -> dict[int, int]:
    """For each atlas id the id that a result has there: unions are merged in the true label map as well.

    Raises:
        SystemExit: when a label is requested twice, by itself and in a union: the true label map cannot hold both.

    Example:
        >>> truth_ids([RequestedLabel(11, "caudate", (11, 50))])
        {11: 11, 50: 11}
    """
    found: dict[int, int] = {}
    for request in requests:
        for id in request.ids:
            if id in found:
                raise ValueError(f"Label {id} is requested twice: an evaluation needs labels that do not overlap.")
            found[id] = request.id
    return found


def result_table(atlas: Atlas, requests: Sequence[RequestedLabel]) -> LabelTable:
    """The label table of a result."""
    return requested_table(requests, atlas.table)


@one_sentence
def label_groups(
    atlas: Atlas, requests: Sequence[RequestedLabel], coarse_labels: Mapping[str, Any] | str | None
) -> list[tuple[int, ...]]:
    """What a training draws from: each requested label, or coarse labels as unions of their fine ones."""
    if coarse_labels is None:
        return [request.ids for request in requests]
    return group_coarse_labels(atlas.table, label_ids(requests), coarse_labels)
