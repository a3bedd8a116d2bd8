"""Changes the labels of an atlas: merges, splits, paints or removes them; label map and label table stay in step.

An id never comes to mean something else: labels that are merged or split get new ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from monai.data import MetaTensor
from monai.utils import convert_to_numpy
from scipy import ndimage

from monai_lcs.atlas.atlas import Atlas
from monai_lcs.grids import affine_of, voxel_size
from monai_lcs.labels import MAX_FLOAT32_ID, Label, LabelTable
from monai_lcs.labels.groups import label_sizes
from monai_lcs.study.checks import check_same_grid

__all__ = [
    "Plane",
    "changes",
    "hemisphere_plane",
    "in_step",
    "merge_labels",
    "new_id",
    "paint_label",
    "remove_labels",
    "split_into_parts",
    "split_into_sides",
]

MOST_PARTS = 20
"""More connected parts than this are noise rather than structures."""

SIDE_WORDS = {"l", "left", "lh", "r", "right", "rh"}


class Plane(NamedTuple):
    """A plane of the world, in mm: what lies in the direction of ``normal`` is on the right of the patient."""

    point: np.ndarray
    normal: np.ndarray


def in_step(atlas: Atlas) -> Atlas:
    """The same atlas with a table of exactly the ids that have voxels; those without a name are called after the id.

    Example:
        >>> import torch
        >>> ids = MetaTensor(torch.tensor([[[[4, 4, 9]]]]))
        >>> in_step(Atlas(MetaTensor(torch.rand(1, 1, 1, 3)), ids, LabelTable.from_ids([4, 5]))).table.names
        ('label-4', 'label-9')
    """
    return _with(atlas, _ids(atlas), atlas.table)


def merge_labels(atlas: Atlas, ids: Iterable[int], name: str, id: int | None = None) -> Atlas:
    """Join labels to a new one, which has the parent and the hemisphere that all of them share.

    Args:
        atlas: the atlas.
        ids: labels with voxels, two or more.
        name: what the new label is called.
        id: its id; default: :func:`new_id`.

    Raises:
        ValueError: if there are fewer than two labels, one has no voxel, or another label has the name or the id.

    Example:
        >>> import torch
        >>> map = MetaTensor(torch.tensor([[[[4, 5, 9]]]]))
        >>> atlas = Atlas(MetaTensor(torch.rand(1, 1, 1, 3)), map, LabelTable.from_ids([4, 5, 9]))
        >>> merged = merge_labels(atlas, [4, 5], "both")
        >>> merged.table.names, merged.label_map.tolist()
        (('label-9', 'both'), [[[[10, 10, 9]]]])
    """
    members = sorted(set(ids))
    if len(members) < 2:
        raise ValueError(f"To merge takes two labels or more, got {members}.")
    atlas.check_present(members)
    atlas = in_step(atlas)
    old = [atlas.table[i] for i in members]
    label = Label(
        new_id(atlas) if id is None else id,
        name,
        parent=_shared([label.parent for label in old]),
        hemisphere=_shared([label.hemisphere for label in old]),
        color=old[0].color,
    )
    _check_new(label, atlas.table, members)
    labels = _ids(atlas)
    labels[np.isin(labels, members)] = label.id
    return _with(atlas, labels, [*_others(atlas.table, members), label])


def remove_labels(atlas: Atlas, ids: Iterable[int]) -> Atlas:
    """Make labels background.

    Raises:
        ValueError: if one has no voxel, or no label would be left.
    """
    gone = sorted(set(ids))
    atlas.check_present(gone)
    labels = _ids(atlas)
    labels[np.isin(labels, gone)] = 0
    return _with(atlas, labels, _others(atlas.table, gone))


def paint_label(
    atlas: Atlas, mask: MetaTensor, label: Label, name: str = "The mask", only_background: bool = False
) -> Atlas:
    """Give the voxels of a mask to a new label.

    Args:
        atlas: the atlas.
        mask: ``(1, *spatial)`` on the grid of the atlas; voxels other than 0 are painted.
        label: the new label. If the atlas has a label of the same id and name, its old voxels become background first.
        name: what messages call the mask.
        only_background: leave the voxels of other labels to them.

    Raises:
        ValueError: if the grids differ, there is nothing to paint, no label would be left over, or another label has
            the name or the id.
    """
    check_same_grid(atlas.label_map, mask, f"the atlas label map {atlas.files['label']}", name)
    atlas = in_step(atlas)
    same = label.id in atlas.table and atlas.table[label.id].name == label.name
    _check_new(label, atlas.table, [label.id] if same else [])
    labels = _ids(atlas)
    labels[labels == label.id] = 0
    inside = convert_to_numpy(mask) != 0
    if only_background:
        inside &= labels == 0
    if not inside.any():
        where = " outside the labels" if only_background else ""
        raise ValueError(f"{name} has no voxel{where}: there is nothing to paint.")
    labels[inside] = label.id
    return _with(atlas, labels, [*_others(atlas.table, [label.id]), label])


def hemisphere_plane(atlas: Atlas) -> Plane:
    """The plane between the hemispheres.

    It lies midway between the labels of the left and their partners on the right, which have the same name but for the
    side, and is normal to the line between them: a head may be turned. Where there are no such pairs, it goes through
    the center of what is brighter than the mean of the image, and is normal to the left-right axis of the world.
    """
    affine = affine_of(atlas.label_map)
    pairs = _pairs(in_step(atlas).table)
    if not pairs:
        image = convert_to_numpy(atlas.image)
        return Plane(_world(np.argwhere(image[0] > image.mean()).mean(axis=0), affine), np.array([1.0, 0.0, 0.0]))
    labels = _ids(atlas)[0]
    centers = [
        _world(np.array(ndimage.center_of_mass(labels > 0, labels, ids)), affine) for ids in zip(*pairs, strict=True)
    ]
    left, right = (center.mean(axis=0) for center in centers)
    return Plane((left + right) / 2, (right - left) / np.linalg.norm(right - left))


def _pairs(table: LabelTable) -> list[tuple[int, int]]:
    """The ids of the left and the right label of the same name, but for the side."""
    sides: dict[str, dict[tuple[str, ...], int]] = {"L": {}, "R": {}}
    for label in table:
        if label.hemisphere:
            words = re.findall(r"[a-z0-9]+", label.name.lower())
            sides[label.hemisphere][tuple(word for word in words if word not in SIDE_WORDS)] = label.id
    return [(id, sides["R"][words]) for words, id in sides["L"].items() if words in sides["R"]]


def split_into_sides(atlas: Atlas, id: int, plane: Plane | None = None) -> Atlas:
    """Divide a label of both hemispheres into ``Left-NAME`` and ``Right-NAME``, both children of its parent or name.

    Args:
        atlas: the atlas.
        id: the label.
        plane: where to divide it; default: :func:`hemisphere_plane`.

    Raises:
        ValueError: if it has no voxel, has a hemisphere, or lies on one side.
    """
    atlas.check_present([id])
    atlas = in_step(atlas)
    label, labels = atlas.table[id], _ids(atlas)
    if label.hemisphere:
        side = {"L": "left", "R": "right"}[label.hemisphere]
        raise ValueError(f"Label {id} ({label.name}) is one of the {side} hemisphere already.")
    plane = hemisphere_plane(atlas) if plane is None else plane
    where = np.nonzero(labels == id)
    on_right = (_world(np.stack(where[1:], axis=1), affine_of(atlas.label_map)) - plane.point) @ plane.normal > 0
    if on_right.all() or not on_right.any():
        side = "right" if on_right.all() else "left"
        raise ValueError(f"Label {id} ({label.name}) lies on the {side} of the plane alone: there is nothing to split.")
    names = [f"Left-{label.name}", f"Right-{label.name}"]
    return _split(atlas, label, where, on_right.astype(int), names, ["L", "R"])


def split_into_parts(atlas: Atlas, id: int, count: int | None = None) -> Atlas:
    """Divide a label into its connected parts ``NAME-1``, ``NAME-2`` ..., the largest first.

    Voxels that share a face, an edge or a corner are connected.

    Args:
        atlas: the atlas.
        id: the label.
        count: how many parts; the voxels of smaller ones go to the nearest of these. Default: all.

    Raises:
        ValueError: if the label has no voxel, fewer parts than that, only one, or more than 20 without ``count``.
    """
    atlas.check_present([id])
    atlas = in_step(atlas)
    label, labels = atlas.table[id], _ids(atlas)
    box = ndimage.find_objects((labels[0] == id).astype(np.uint8))[0]
    mask = labels[0][box] == id
    parts, found = ndimage.label(mask, np.ones((3,) * mask.ndim))
    count = _count_of_parts(label, found, count)
    largest = np.argsort(-np.bincount(parts[mask])[1:], kind="stable")[:count]
    rank = np.full(found + 1, -1)
    rank[largest + 1] = range(count)
    ranks = rank[parts]
    spacing = voxel_size(atlas.label_map[None])
    nearest = ndimage.distance_transform_edt(ranks < 0, spacing, return_distances=False, return_indices=True)
    which = ranks[tuple(nearest)][mask]
    inside = np.nonzero(mask)
    where = (np.zeros(len(which), int), *(axis + part.start for axis, part in zip(inside, box, strict=True)))
    names = [f"{label.name}-{number}" for number in range(1, count + 1)]
    return _split(atlas, label, where, which, names, [label.hemisphere] * count)


def _count_of_parts(label: Label, found: int, count: int | None) -> int:
    """How many parts to make of the ones found."""
    what = f"Label {label.id} ({label.name})"
    if count is None and found > MOST_PARTS:
        raise ValueError(f"{what} has {found} connected parts: say how many are wanted.")
    wanted = found if count is None else count
    if found == 1 or not 2 <= wanted <= found:
        parts = "one connected part" if found == 1 else f"{found} connected parts"
        raise ValueError(f"{what} has {parts}: it cannot be split into {'more' if count is None else count}.")
    return wanted


def new_id(atlas: Atlas, count: int = 1) -> int:
    """The first of ``count`` ids above all that the atlas has.

    Raises:
        ValueError: if no id is left.
    """
    first = max([*atlas.table.ids, *label_sizes(atlas.label_map)], default=0) + 1
    if first + count - 1 > MAX_FLOAT32_ID:
        raise ValueError(f"There is no id left above {first - 1}: give one, up to {MAX_FLOAT32_ID}.")
    return first


def changes(before: Atlas, after: Atlas) -> list[str]:
    """Say how the labels of an atlas differ from those before: a line for each that is new, gone, larger or smaller.

    Example:
        >>> import torch
        >>> map = MetaTensor(torch.tensor([[[[4, 5, 9]]]]))
        >>> atlas = Atlas(MetaTensor(torch.rand(1, 1, 1, 3)), map, LabelTable.from_ids([4, 5, 9]))
        >>> print(*changes(atlas, merge_labels(atlas, [4, 5], "both")), sep="; ")
        new: 10 (both), 2 voxels; gone: 4 (label-4); gone: 5 (label-5)
    """
    old, new = label_sizes(before.label_map), label_sizes(after.label_map)
    lines = [f"new: {id} ({after.table[id].name}), {n} voxels" for id, n in new.items() if id not in old]
    lines += [
        f"gone: {id}" + (f" ({before.table[id].name})" if id in before.table else "") for id in sorted(old.keys() - new)
    ]
    changed = {id: n for id, n in new.items() if old.get(id, n) != n}
    return lines + [f"changed: {id} ({after.table[id].name}), {old[id]} to {n} voxels" for id, n in changed.items()]


# ---- parts of the above


def _ids(atlas: Atlas) -> np.ndarray:
    """A copy of the label map that may be changed, ``(1, *spatial)``."""
    return np.array(convert_to_numpy(atlas.label_map), np.int32)


def _with(atlas: Atlas, labels: np.ndarray, table: Iterable[Label]) -> Atlas:
    """The atlas with other labels; its table has those with voxels."""
    named = {label.id: label for label in table}
    present = label_sizes(labels)
    if not present:
        raise ValueError("The atlas would have no label left.")
    return atlas.with_labels(labels, LabelTable(named.get(id) or Label(id, f"label-{id}") for id in present))


def _others(table: LabelTable, ids: Sequence[int]) -> list[Label]:
    return [label for label in table if label.id not in ids]


def _split(
    atlas: Atlas,
    label: Label,
    where: tuple[np.ndarray, ...],
    which: np.ndarray,
    names: Sequence[str],
    sides: Sequence[str | None],
) -> Atlas:
    """Give the voxels ``where`` of a label to new ones; ``which`` says to which."""
    first, table = new_id(atlas, len(names)), _others(atlas.table, [label.id])
    parent = label.parent or label.name
    new = [
        replace(Label(first + i, name), parent=parent, hemisphere=side)
        for i, (name, side) in enumerate(zip(names, sides, strict=True))
    ]
    for part in new:
        _check_new(part, LabelTable(table), [])
    labels = _ids(atlas)
    labels[where] = first + which
    return _with(atlas, labels, [*table, *new])


def _check_new(label: Label, table: LabelTable, replaced: Sequence[int]) -> None:
    """No other label may have the id or the name of a new one."""
    if label.id > MAX_FLOAT32_ID:
        raise ValueError(f"The id of a label must be at most {MAX_FLOAT32_ID}, got {label.id}.")
    for other in _others(table, replaced):
        if label.id == other.id or label.name == other.name:
            raise ValueError(
                f"The atlas has a label {other.id} ({other.name}) already: give another name or id than"
                f" {label.id} ({label.name}), or remove that one first."
            )


def _shared(values: Sequence[str | None]) -> str | None:
    """The value that all share; ``None`` where they differ."""
    return values[0] if len(set(values)) == 1 else None


def _world(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Positions in mm of voxels ``(..., 3)``."""
    return np.asarray(voxels @ affine[:-1, :-1].T + affine[:-1, -1])
