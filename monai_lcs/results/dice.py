"""Tables of results: volumes of one case, Dice of many, and methods side by side."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from monai.config import NdarrayOrTensor, PathLike
from scipy import ndimage

from monai_lcs.files import check_absent, write_atomically
from monai_lcs.labels import LabelTable
from monai_lcs.labels.label_map import as_array, as_label_array, check_known

__all__ = ["compare_dice", "dice_summary", "dice_table", "volume_table", "write_dice_tsv"]


def write_tsv(frame: pd.DataFrame, path: Path, float_format: str | None = None) -> None:
    """Writes a table with tabs, NaN as `n/a`."""
    frame.to_csv(path, sep="\t", index=False, na_rep="n/a", float_format=float_format)


def volume_table(
    label_map: NdarrayOrTensor,
    affine_or_voxel_mm3: NdarrayOrTensor | float,
    table: LabelTable,
    agreement: NdarrayOrTensor | None = None,
) -> pd.DataFrame:
    """Voxels and volume of each label, and how far several atlases agreed on it.

    Args:
        label_map: integers, any shape; 0 is background.
        affine_or_voxel_mm3: affine `(4, 4)` of the grid in mm, or the volume of a voxel in mm3.
        table: the labels; one that is absent from the label map has the volume 0.
        agreement: 0 to 1 at each voxel of the label map: the share of the atlases' votes that its label got, see
            :func:`monai_lcs.transforms.fuse_atlases`.

    Returns:
        Columns `id`, `name`, `voxels` and `mm3`, one row for each label of the table; with `agreement` also that, the
        mean over a label's voxels, NaN where it has none. A low one tells which labels to look at first.

    Raises:
        ValueError: if the label map holds other values than 0 and the ids of the table, or the shapes differ.

    Example:
        >>> import numpy as np
        >>> from monai_lcs.labels import LabelTable
        >>> volume_table(np.array([[0, 4, 4]]), np.diag([1, 1, 2.5, 1]), LabelTable.from_ids([4, 7]))
           id     name  voxels  mm3
        0   4  label-4       2  5.0
        1   7  label-7       0  0.0
    """
    ids, counts = np.unique(as_label_array(label_map), return_counts=True)
    check_known(ids, table)
    count_of = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    affine = as_array(affine_or_voxel_mm3)
    voxel_mm3 = abs(np.linalg.det(affine[:3, :3])) if affine.ndim else float(affine)
    voxels = [count_of.get(id, 0) for id in table.ids]
    # 7 digits: the voxel sizes of a file are float32
    mm3 = [float(f"{n * voxel_mm3:.7g}") for n in voxels]
    volumes = pd.DataFrame({"id": table.ids, "name": table.names, "voxels": voxels, "mm3": mm3})
    if agreement is not None:
        if tuple(agreement.shape) != tuple(label_map.shape):
            raise ValueError(
                f"`agreement` must have the label map's shape {tuple(label_map.shape)}, got {tuple(agreement.shape)}."
            )
        means = ndimage.mean(as_array(agreement), as_label_array(label_map), ids).round(4)
        mean_of = dict(zip(ids.tolist(), means, strict=True))
        volumes["agreement"] = [mean_of.get(id, np.nan) for id in table.ids]
    return volumes


def dice_table(buffer: NdarrayOrTensor, cases: Sequence[str], table: LabelTable) -> pd.DataFrame:
    """Dice of each case and label as a long table.

    Args:
        buffer: Dice `(cases, labels)`, as :meth:`LabelMapDice.get_buffer` has it; NaN where it is not defined.
        cases: the name of each case, such as :func:`monai_lcs.study.cases.case_names` finds.
        table: the labels, in the order of the columns of `buffer`.

    Returns:
        Columns `case`, `id`, `name` and `dice`.

    Raises:
        ValueError: if the shape of `buffer` is another, or two cases have the same name.

    Example:
        >>> import torch
        >>> from monai_lcs.labels import LabelTable
        >>> dice_table(torch.tensor([[0.5, 1.0]]), ["ann"], LabelTable.from_ids([4, 7]))
          case  id     name  dice
        0  ann   4  label-4   0.5
        1  ann   7  label-7   1.0
    """
    dice = as_array(buffer).astype(float)
    if dice.shape != (len(cases), len(table)):
        raise ValueError(f"`buffer` must be ({len(cases)} cases, {len(table)} labels), got {dice.shape}.")
    if len(set(cases)) < len(cases):
        raise ValueError(f"`cases` must be unique names, got {list(cases)}.")
    return pd.DataFrame(
        {
            "case": np.repeat(list(cases), len(table)),
            "id": np.tile(table.ids, len(cases)),
            "name": np.tile(table.names, len(cases)),
            "dice": dice.ravel(),
        }
    )


def write_dice_tsv(dice: pd.DataFrame, path: PathLike, overwrite: bool = False) -> None:
    """Writes a :func:`dice_table` with four digits, NaN as `n/a`.

    Raises:
        FileExistsError: if the file exists and is not to be overwritten.
        OSError: naming the file, if it cannot be written.
    """
    check_absent([Path(path)], overwrite)
    write_atomically(Path(path), lambda temporary: write_tsv(dice, temporary, "%.4f"))


def dice_summary(dice: pd.DataFrame) -> str:
    """A few lines of text from a :func:`dice_table`: the mean over labels of each case, and over cases.

    Example:
        >>> import torch
        >>> from monai_lcs.labels import LabelTable
        >>> buffer = torch.tensor([[0.5, 1.0], [0.25, torch.nan]])
        >>> print(dice_summary(dice_table(buffer, ["ann", "bo"], LabelTable.from_ids([4, 7]))))
        ann  0.7500  2 labels
        bo   0.2500  1 labels
        mean 0.5000  2 cases
    """
    cases = dice.groupby("case", sort=False)["dice"].agg(["mean", "count"])
    width = max(len("mean"), *map(len, cases.index))
    lines = [f"{case:<{width}} {row['mean']:.4f}  {int(row['count'])} labels" for case, row in cases.iterrows()]
    return "\n".join([*lines, f"{'mean':<{width}} {cases['mean'].mean():.4f}  {len(cases)} cases"])


def compare_dice(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Methods side by side: mean Dice over the labels of each case, and over cases.

    Args:
        tables: a :func:`dice_table` for each method's name.

    Raises:
        ValueError: if the methods were not scored on the same cases and labels.

    Example:
        >>> import torch
        >>> from monai_lcs.labels import LabelTable
        >>> score = lambda dice: dice_table(torch.tensor(dice), ["ann", "bo"], LabelTable.from_ids([4, 7]))
        >>> means = compare_dice({"this": score([[0.5, 1.0], [0.5, 0.5]]), "that": score([[0.5, 0.5], [0.25, 0.25]])})
        >>> means.loc["mean"].to_dict()
        {'this': 0.625, 'that': 0.375}
    """
    keys = {name: table.set_index(["case", "id"])["dice"].sort_index().dropna() for name, table in tables.items()}
    first, *others = keys
    for other in others:
        if not keys[first].index.equals(keys[other].index):
            raise ValueError(f"{first} and {other} must be scored on the same cases and labels.")
    means = pd.DataFrame({name: dice.groupby("case").mean() for name, dice in keys.items()})
    means.loc["mean"] = means.mean()
    return means


def main(args: Sequence[str] | None = None) -> None:
    """Print methods side by side: ``python -m monai_lcs.results.dice NAME=dice.tsv NAME=dice.tsv``."""
    parser = argparse.ArgumentParser(prog="python -m monai_lcs.results.dice", description="Methods side by side.")
    parser.add_argument("tables", nargs="+", metavar="NAME=dice.tsv")
    named = dict(text.split("=", 1) for text in parser.parse_args(args).tables)
    print(compare_dice({name: pd.read_csv(path, sep="\t", na_values="n/a") for name, path in named.items()}).round(4))


if __name__ == "__main__":
    main()
