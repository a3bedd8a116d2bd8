"""Tabulates the Dice scores of many cases, and compares methods."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from monai.config import NdarrayOrTensor, PathLike
from monai.utils import convert_to_numpy

from monai_lcs.files import check_absent, write_atomically
from monai_lcs.labels import LabelTable
from monai_lcs.results.tsv import read_tsv, write_tsv

__all__ = ["compare_dice", "dice_summary", "dice_table", "write_dice_tsv"]


def dice_table(buffer: NdarrayOrTensor, cases: Sequence[str], table: LabelTable) -> pd.DataFrame:
    """Returns the Dice of each case and label as a long table.

    Args:
        buffer: Dice ``(cases, labels)`` as :meth:`LabelMapDice.get_buffer` returns it; NaN where it is not defined.
        cases: the name of each case, such as :func:`monai_lcs.study.cases.case_names` finds.
        table: the labels, in the order of the columns of ``buffer``.

    Returns:
        Columns ``case``, ``id``, ``name`` and ``dice``.

    Raises:
        ValueError: if ``buffer`` has another shape, or two cases have the same name.

    Example:
        >>> import torch
        >>> dice_table(torch.tensor([[0.5, 1.0]]), ["ann"], LabelTable.from_ids([4, 7]))
          case  id     name  dice
        0  ann   4  label-4   0.5
        1  ann   7  label-7   1.0
    """
    dice = convert_to_numpy(buffer, dtype=float)
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
    r"""Writes a :func:`dice_table` with four digits, and NaN as ``n/a``; see :func:`monai_lcs.results.tsv.read_tsv`.

    Raises:
        FileExistsError: if the file exists and ``overwrite`` is False.
        OSError: naming the file, if it cannot be written.

    Example:
        >>> import tempfile, torch
        >>> dice = dice_table(torch.tensor([[0.5]]), ["ann"], LabelTable.from_ids([4]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_dice_tsv(dice, f"{folder}/dice.tsv")
        ...     Path(folder, "dice.tsv").read_text().splitlines()
        ['case\tid\tname\tdice', 'ann\t4\tlabel-4\t0.5000']
    """
    check_absent([Path(path)], overwrite)
    write_atomically(Path(path), lambda temporary: write_tsv(dice, temporary, "%.4f"))


def dice_summary(dice: pd.DataFrame) -> str:
    """Summarizes a :func:`dice_table` in text: the mean over the labels of each case, and the mean over the cases.

    Example:
        >>> import torch
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
    """Compares methods: the mean Dice over the labels of each case, and the mean over the cases.

    Args:
        tables: the name of each method and its :func:`dice_table`.

    Returns:
        One column for each method, one row for each case, and a last row ``mean``.

    Raises:
        ValueError: if the methods were not scored on the same cases and labels.

    Example:
        >>> import torch
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
    """Prints the comparison of methods: ``python -m monai_lcs.results.dice NAME=dice.tsv NAME=dice.tsv``."""
    parser = argparse.ArgumentParser(prog="python -m monai_lcs.results.dice", description="Methods side by side.")
    parser.add_argument("tables", nargs="+", metavar="NAME=dice.tsv")
    words = parser.parse_args(args).tables
    if plain := [word for word in words if "=" not in word]:
        parser.error(f"give each table a name, NAME={plain[0]}")
    try:
        print(compare_dice({name: read_tsv(path) for name, path in (word.split("=", 1) for word in words)}).round(4))
    except (ValueError, OSError) as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
