"""Checks of cases before long work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import PathLike
from tqdm import tqdm

from monai_lcs.grids import grid_distance
from monai_lcs.labels import LabelTable
from monai_lcs.labels.label_map import as_array, check_ids
from monai_lcs.study.cases import shorten_names
from monai_lcs.study.images import read_image

__all__ = ["check_case", "check_cases", "check_labels", "require_valid"]


def check_case(case: Mapping[str, Any], spatial_dims: int = 3) -> None:
    """Reads the files of a case and raises if a network could not be trained or evaluated on them.

    Checks the keys `"image"`, `"label"`, `"atlas_image"` and `"atlas_label"` where present: each file exists, can be
    read to its end, has `spatial_dims` dimensions and one channel, and finite values; label maps hold integers from 0
    to 2**24 - 1, which float32, the type of the network's input, holds exactly; an image and its label map have the
    same shape, and affines that place no corner of the grid more than a tenth of a voxel apart. Reads every voxel, one
    key after the other: as slow as loading the case, and no more memory.

    Raises:
        ValueError: one sentence that names the file and what is wrong with it.
    """
    for image_key, label_key in (("image", "label"), ("atlas_image", "atlas_label")):
        grids = {}
        for key in (image_key, label_key):
            if key in case:
                volume = read_image(case[key])
                _check_dims(volume, case[key], spatial_dims)
                _check_values(volume, case[key], is_label=key == label_key)
                grids[key] = tuple(volume.shape[1:]), np.asarray(volume.affine, dtype=float)
                del volume
        if len(grids) == 2:
            _check_same_grid(case[image_key], *grids[image_key], case[label_key], *grids[label_key])


def _check_dims(volume: torch.Tensor, path: PathLike, spatial_dims: int) -> None:
    """One channel of `spatial_dims` dimensions; a file of a single slice is 2D, whichever axis has the length 1."""
    channels, *spatial = volume.shape
    if channels != 1:
        raise ValueError(f"{path} must be {spatial_dims}D, got a {len(spatial) + 1}D file of {channels} channels.")
    if len(spatial) != spatial_dims or (spatial_dims == 3 and 1 in spatial):
        dims = len(spatial) if len(spatial) != spatial_dims else 2
        raise ValueError(f"{path} must be {spatial_dims}D, got a {dims}D file of shape {tuple(spatial)}.")


def _check_values(volume: torch.Tensor, path: str, is_label: bool) -> None:
    """Finite values, and in a label map integers >= 0 that float32 holds exactly."""
    finite = torch.isfinite(volume)
    if not finite.all():
        raise ValueError(f"{path} has {int((~finite).sum())} NaN or Inf voxels of {volume.numel()}.")
    if is_label:
        check_ids(as_array(volume), f"The label map {path}")
        # 2**24 itself may be a rounded 2**24 + 1.
        if volume.max() >= 2**24:
            raise ValueError(
                f"The label map {path} must hold ids below 2**24 = {2**24}, which float32 holds exactly, "
                f"got {volume.max().item():.0f}: renumber its labels."
            )


def _check_same_grid(
    path: str, shape: tuple[int, ...], affine: np.ndarray, path_2: str, shape_2: tuple[int, ...], affine_2: np.ndarray
) -> None:
    """The same shape, and affines less than a tenth of a voxel apart."""
    if shape != shape_2:
        raise ValueError(f"{path} and {path_2} must have the same grid, got shapes {shape} and {shape_2}.")
    distance = grid_distance(affine, affine_2, shape)
    if distance > 0.1 * np.linalg.norm(affine[:-1, :-1], axis=0).min():
        raise ValueError(
            f"{path} and {path_2} must have the same grid, got affines up to {distance:.3g} mm apart: "
            f"{affine.round(4).tolist()} and {affine_2.round(4).tolist()}."
        )


def check_cases(
    cases: Sequence[Mapping[str, Any]], spatial_dims: int = 3, progress: bool = True
) -> list[tuple[Mapping[str, Any], str]]:
    """The cases that fail :func:`check_case`, each with its error message; shows a progress bar.

    An atlas that all cases share is read once if it is checked by a case of its own:
    `check_cases([{"atlas_image": ..., "atlas_label": ...}, *cases])`.
    """
    bad = []
    for case in tqdm(cases, desc="Checking files", unit="case", disable=not progress):
        try:
            check_case(case, spatial_dims)
        except ValueError as error:
            bad.append((case, str(error)))
    return bad


def require_valid(cases: Sequence[Mapping[str, Any]], spatial_dims: int = 3, progress: bool = True) -> None:
    """Checks all cases and raises one ValueError that lists what is wrong: how many are bad, and the first ten."""
    bad = check_cases(cases, spatial_dims, progress)
    if bad:
        lines = [message for _, message in bad[:10]] + ["..."] * (len(bad) > 10)
        raise ValueError("\n  ".join([f"{len(bad)} of {len(cases)} cases cannot be used:", *lines]))


def check_labels(atlas_label_path: PathLike, ids: Sequence[int], table: LabelTable) -> None:
    """Makes sure that the atlas has at least one voxel of each requested label.

    Raises:
        ValueError: naming the file and the missing ids with their names.
    """
    present = set(read_image(atlas_label_path).unique().tolist())
    missing = [id for id in ids if id not in present]
    if missing:
        names = [f"{id} ({table[id].name})" if id in table.ids else f"{id}" for id in missing]
        raise ValueError(
            f"The atlas label map {atlas_label_path} has no voxel of label {shorten_names(names, most=10)}."
        )
