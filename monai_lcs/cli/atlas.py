"""monai-lcs atlas."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from monai_lcs.cli.words import read_atlas


def add_arguments(command: argparse.ArgumentParser) -> None:
    """What to do to which atlas, and the folder for the result."""
    steps = command.add_subparsers(required=True, metavar="STEP")
    for name, (edit, arguments) in _STEPS.items():
        step = steps.add_parser(name, help=edit.__doc__, description=edit.__doc__)
        arguments(step)
        step.add_argument(
            "-o", "--out", required=True, metavar="FOLDER", help="folder for image, dseg.nii.gz, dseg.tsv"
        )
        step.add_argument("--overwrite", action="store_true", help="replace an earlier atlas, also the given one")
        step.set_defaults(edit=edit)


def run(options: argparse.Namespace) -> int:
    """Make an atlas of a scan and its label map, copy one, or merge, split, paint or remove labels of one."""
    from monai_lcs.atlas.editing import changes
    from monai_lcs.results.atlas_folder import write_atlas

    before, after = options.edit(options)
    write_atlas(after, options.out, options.overwrite)
    if before is not after:
        print(*changes(before, after), sep="\n")
    print(f"{len(after.table)} labels: use it with --atlas {options.out}")
    return 0


# ---- the steps: each gives the atlas as it was and as it is to be


def _make(options: argparse.Namespace) -> tuple[Any, Any]:
    """Make an atlas of a scan and its label map."""
    from monai_lcs.atlas import Atlas
    from monai_lcs.atlas.editing import in_step

    atlas = Atlas.read(options.scan, options.label_map, options.table)
    if atlas.unnamed:
        ids = ", ".join(map(str, atlas.unnamed))
        print(f"Note: {atlas.table.source} does not name {ids}: called label-ID.", file=sys.stderr)
    atlas = in_step(atlas)
    return atlas, atlas


def _copy(options: argparse.Namespace) -> tuple[Any, Any]:
    """Write an atlas that has a name, or is in several files, into a folder: to paint on its image."""
    atlas = read_atlas(options)
    return atlas, atlas


def _merge(options: argparse.Namespace) -> tuple[Any, Any]:
    """Join labels to a new one."""
    from monai_lcs.atlas.editing import merge_labels

    atlas = read_atlas(options)
    return atlas, merge_labels(atlas, _selected(atlas, options), options.name, options.id)


def _remove(options: argparse.Namespace) -> tuple[Any, Any]:
    """Make labels background."""
    from monai_lcs.atlas.editing import remove_labels

    atlas = read_atlas(options)
    return atlas, remove_labels(atlas, _selected(atlas, options))


def _split(options: argparse.Namespace) -> tuple[Any, Any]:
    """Divide labels into those of the left and the right hemisphere, or into their connected parts."""
    import numpy as np

    from monai_lcs.atlas.editing import Plane, hemisphere_plane, split_into_parts, split_into_sides

    other = {"sides": "count", "parts": "plane"}[options.by]
    if getattr(options, other) is not None:
        raise ValueError(f"--{other} does not go with --by {options.by}.")
    before = after = read_atlas(options)
    plane = hemisphere_plane(before)
    if options.plane is not None:
        plane = Plane(np.array([options.plane, 0.0, 0.0]), np.array([1.0, 0.0, 0.0]))
    if options.by == "sides":
        print(f"The plane goes through {_vector(plane.point)} mm and is normal to {_vector(plane.normal)}.")
    for id in _selected(before, options):
        if options.by == "sides":
            after = split_into_sides(after, id, plane)
        else:
            after = split_into_parts(after, id, options.count)
    return before, after


def _paint(options: argparse.Namespace) -> tuple[Any, Any]:
    """Give the voxels of a mask to a new label."""
    from monai_lcs.atlas.editing import new_id, paint_label
    from monai_lcs.labels import Label, present_labels
    from monai_lcs.study.checks import read_label_map

    atlas = read_atlas(options)
    mask = read_label_map(options.mask)
    values = present_labels(mask)
    if options.value is None and len(values) > 1:
        raise ValueError(f"{options.mask} has the values {values}: say by --value which of them is the label.")
    mask = mask if options.value is None else mask == options.value
    old = next((label for label in atlas.table if label.name == options.name), None)
    if options.replace:
        if old is None:
            raise ValueError(f"--replace paints a label anew, and the atlas has no {options.name!r}: check the name.")
        if given := [word for word in ("id", "parent", "hemisphere") if getattr(options, word) is not None]:
            raise ValueError(f"--replace keeps what the label is: --{given[0]} does not go with it.")
        label = old
    else:
        label = Label(
            new_id(atlas) if options.id is None else options.id,
            options.name,
            parent=options.parent,
            hemisphere=options.hemisphere,
        )
    return atlas, paint_label(atlas, mask, label, options.mask, options.only_background)


# ---- their words


def _make_words(step: argparse.ArgumentParser) -> None:
    step.add_argument("scan", metavar="SCAN", help="the image")
    step.add_argument("label_map", metavar="LABELS", help="its label map, on the same grid")
    step.add_argument(
        "table", metavar="TABLE", nargs="?", help="label table; default: labels are named after their ids"
    )


def _add_atlas(step: argparse.ArgumentParser) -> None:
    step.add_argument(
        "--atlas",
        nargs="+",
        required=True,
        metavar="ATLAS",
        help="its folder; or files: image, label map and perhaps label table; or a name that `monai-lcs atlases` lists",
    )


def _label_words(step: argparse.ArgumentParser) -> None:
    step.add_argument("labels", nargs="+", metavar="LABEL", help="ids, names, patterns or coarse names")
    _add_atlas(step)


def _merge_words(step: argparse.ArgumentParser) -> None:
    _label_words(step)
    _name_words(step)


def _name_words(step: argparse.ArgumentParser) -> None:
    step.add_argument("--name", required=True, help="what the new label is called")
    step.add_argument("--id", type=int, help="id of the new label; default: the first above all others")


def _split_words(step: argparse.ArgumentParser) -> None:
    _label_words(step)
    step.add_argument(
        "--by", choices=("sides", "parts"), required=True, help="left and right, or connected parts, the largest first"
    )
    step.add_argument(
        "--plane",
        type=float,
        metavar="MM",
        help="x of the plane between the sides; default: midway between the labels of the left and the right",
    )
    step.add_argument("--count", type=int, metavar="N", help="how many parts; smaller ones go to the nearest of these")


def _paint_words(step: argparse.ArgumentParser) -> None:
    step.add_argument("mask", metavar="MASK", type=_file, help="file on the grid of the atlas; not 0 is inside")
    _add_atlas(step)
    _name_words(step)
    step.add_argument("--parent", help="its coarse name")
    step.add_argument("--hemisphere", choices=("L", "R"))
    step.add_argument("--value", type=int, help="the value of the mask that is the label, where it has several")
    step.add_argument("--only-background", action="store_true", help="leave the voxels of other labels to them")
    step.add_argument("--replace", action="store_true", help="paint a label of this name anew")


def _selected(atlas: Any, options: argparse.Namespace) -> tuple[int, ...]:
    """The ids of the labels in the words."""
    ids: tuple[int, ...] = atlas.table.select(options.labels)
    return ids


def _file(text: str) -> str:
    return str(Path(text))


def _vector(values: Any) -> str:
    return "(" + ", ".join(f"{value:.2f}" for value in values) + ")"


_STEPS = {
    "make": (_make, _make_words),
    "copy": (_copy, _add_atlas),
    "merge": (_merge, _merge_words),
    "split": (_split, _split_words),
    "paint": (_paint, _paint_words),
    "remove": (_remove, _label_words),
}
