"""The scores of each structure, left and right together, of a row of accuracy.py.

    python benchmarks/structures.py OUT "MNI atlas, research weights"

OUT is the folder of the results of accuracy.py. The table is printed in Markdown.
"""

import argparse
import sys
from pathlib import Path

import accuracy
import pandas as pd

from monai_lcs.results.scores import scores_by_label

SIDES = r"^(?:Left|Right)[_ ]|[_ ](?:left|right)(?=[_ ]|$)"
COLUMNS = {"dice": "Dice", "surface_dice": "surface Dice, 1 mm", "hd95_mm": "95% distance, mm"}
COLUMNS |= {"volume_percent": "volume off, %", "volume_correlation": "volume correlation", "missed": "not found"}


def by_structure(scores: pd.DataFrame) -> pd.DataFrame:
    """The means over scans and sides; the correlation of volumes is over scans and sides as well."""
    sides = scores[scores.present_in.isin(["both", "truth"])]
    structures = sides.assign(id=0, name=sides.name.str.replace(SIDES, "", regex=True).str.replace("_", " "))
    return scores_by_label(structures)[["name", *COLUMNS]].rename(columns={"name": "structure", **COLUMNS})


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the results of accuracy.py")
    parser.add_argument("row", choices=list(accuracy.ROWS), metavar="ROW", help="one that is done")
    args = parser.parse_args()
    path = accuracy.folder_of(args.row, args.out) / "eval/dice.tsv"
    scores = pd.read_csv(path, sep="\t", na_values="n/a", dtype={"case": str})
    if "surface_dice" not in scores:
        sys.exit(f"{path} has no distances: remove it and run the row again.")
    table = by_structure(scores)
    means = table.drop(columns=["structure", "not found"]).mean()
    table.loc[len(table)] = {"structure": f"mean of {len(table)}", **means, "not found": table["not found"].sum()}
    print(table.to_markdown(index=False, floatfmt=("", ".3f", ".3f", ".2f", ".1f", ".2f", ".0f")))


if __name__ == "__main__":
    main()
