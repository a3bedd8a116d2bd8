"""monai-lcs labels."""

from __future__ import annotations

import argparse


def add_arguments(command: argparse.ArgumentParser) -> None:
    """A file, and what it is written to."""
    command.add_argument("file", metavar="FILE", help="a label table or a label map")
    command.add_argument("--to", metavar="FILE", help="write them; the suffix says the format")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier file")


def run(options: argparse.Namespace) -> int:
    """Show the labels of a label table or a label map: id, name, coarse name, side. Or write them in another format."""
    from monai_lcs.labels import LabelTable, present_labels
    from monai_lcs.study.checks import read_label_map
    from monai_lcs.study.images import IMAGE_EXTENSIONS

    if options.file.lower().endswith(IMAGE_EXTENSIONS):
        table = LabelTable.from_ids(present_labels(read_label_map(options.file)))
    else:
        table = LabelTable.read(options.file)
    if options.to:
        table.write(options.to, overwrite=options.overwrite)
        print(f"{len(table)} labels: {options.to}")
        return 0
    for label in table:
        print(label.id, label.name, label.parent or "", label.hemisphere or "", sep="\t")
    return 0
