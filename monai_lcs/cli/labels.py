"""monai-lcs labels."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monai_lcs.labels import LabelTable


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Files, and what to do with them."""
    command.add_argument("file", metavar="FILE", help="a label table or a label map")
    command.add_argument(
        "other", nargs="?", metavar="OTHER", help="a table or a map to compare with; the table of the map FILE names it"
    )
    command.add_argument(
        "--to",
        metavar="FILE",
        help="write them as a label table; the suffix says the format: .tsv (BIDS), .csv, .txt, .ctab or .lut"
        " (FreeSurfer), .ctbl (3D Slicer), .label (ITK-SNAP), .json (MONAI)",
    )
    command.add_argument("--check", action="store_true", help="say what is likely wrong; exit with 1 if anything is")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier file")


def run(options: argparse.Namespace) -> int:
    """Show, check, compare or convert labels of tables and label maps: ids, names, coarse names, sides, volumes."""
    labels = _read(options.file)
    other = _read(options.other) if options.other else None
    if labels.sizes is not None and other and other.sizes is None:
        labels.name_by(other)
    if options.to:
        labels.table.write(options.to, overwrite=options.overwrite)
        print(f"{len(labels.table)} labels: {options.to}")
    if options.check:
        return _check(labels, other)
    if other:
        _compare(labels, other)
    elif not options.to:
        _show(labels)
    return 0


@dataclass
class _Labels:
    """The labels of a file; of a label map also voxels, ``None`` for a table, mm3 and how far right the centers are."""

    file: str
    table: LabelTable
    sizes: dict[int, int] | None = None
    mm3: float = 0.0
    right_mm: dict[int, float] = field(default_factory=dict)

    def name_by(self, table: _Labels) -> None:
        """Take the names of a table for the labels of the map."""
        from monai_lcs.labels import LabelTable

        known = {label.id: label for label in table.table}
        self.table = LabelTable(known.get(label.id, label) for label in self.table)


def _read(file: str) -> _Labels:
    from monai_lcs.files import IMAGE_EXTENSIONS
    from monai_lcs.labels import LabelTable

    if not file.lower().endswith(IMAGE_EXTENSIONS):
        return _Labels(file, LabelTable.read(file))  # without torch and MONAI, which take seconds to import
    from monai_lcs.labels.groups import label_sizes
    from monai_lcs.results.volumes import centers_mm, voxel_mm3
    from monai_lcs.study.checks import read_label_map

    label_map = read_label_map(file)
    sizes = label_sizes(label_map)
    right = {id: center[0] for id, center in centers_mm(label_map).items()}
    return _Labels(file, LabelTable.from_ids(sizes), sizes, voxel_mm3(label_map.affine), right)


def _show(labels: _Labels) -> None:
    """A line for each label."""
    for label in labels.table:
        cells = [label.id, label.name, label.parent or "", label.hemisphere or ""]
        if labels.sizes is not None:
            cells += [labels.sizes[label.id], f"{labels.sizes[label.id] * labels.mm3:.7g}"]
        print(*cells, sep="\t")


def _compare(labels: _Labels, other: _Labels) -> None:
    from monai_lcs.labels.compare import compare_labels

    print(*compare_labels(labels.table, other.table, (labels.file, other.file)), sep="\n")


def _check(labels: _Labels, other: _Labels | None) -> int:
    from monai_lcs.labels.compare import map_problems, table_problems

    problems = []
    both = [labels, *([other] if other else [])]
    tables = [one for one in both if one.sizes is None]
    for one in both:
        if one.sizes is None:
            found = table_problems(one.table)
        else:
            found = map_problems(one.sizes, tables[0].table if tables else None, one.right_mm)
        problems += [f"{one.file}: {text}" for text in found]
    print(*problems or ["Nothing is wrong."], sep="\n")
    return 1 if problems else 0
