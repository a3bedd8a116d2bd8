"""Measures how well the confidence of each label, or the atlases' agreement on it, ranks the labels by their Dice.

    python benchmarks/confidence.py OUT "MNI atlas, research weights" --data DATA

OUT is the folder of a run of accuracy.py that holds the row. A row of several atlases is segmented if that was not done
since it was scored. A row of weights that ship is segmented each time. The means are those of the labels that have a
confidence or an agreement; the others are counted.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import accuracy
import pandas as pd
from scipy.stats import spearmanr

from monai_lcs import Atlas, Segmenter


def segmented(name: str, args: argparse.Namespace, cases: list[str]) -> Path:
    """The folder of a row's label maps and volumes of some test scans; those that are missing are made."""
    folder = accuracy.folder_of(name, args.out) / "segmented"
    scored = scores_of(name, args.out).stat().st_mtime  # what is older may be of other weights
    label_maps = {case: folder / f"{case}_dseg.nii.gz" for case in cases}  # the last file of a case
    missing = [case for case, path in label_maps.items() if not path.is_file() or path.stat().st_mtime < scored]
    if missing:
        folder.mkdir(exist_ok=True)
        split = folder / "datalist.json"
        split.write_text(json.dumps({"testing": [{"image": f"images/{case}.nii.gz"} for case in missing]}))
        accuracy.segment(name, args, folder, split)  # over what an interrupted run left
    return folder


def scores_of(name: str, out: Path) -> Path:
    """The file of a row's scores."""
    path = accuracy.folder_of(name, out) / "eval/dice.tsv"
    if not path.is_file():
        raise SystemExit(f'There is no {path}: run accuracy.py with --rows "{name}" first.')
    return path


def dice_of(name: str, out: Path) -> pd.DataFrame:
    """The Dice of each label in each test scan."""
    return pd.read_csv(scores_of(name, out), sep="\t", na_values="n/a", dtype={"case": str})


def ranked(dice: pd.DataFrame, volumes: pd.DataFrame) -> dict[str, float]:
    """Spearman's rank correlation over the labels of a scan that have both a Dice and a measure.

    Args:
        dice: columns ``id`` and ``dice``.
        volumes: columns ``id`` and ``agreement``, of several atlases, or ``confidence``, of one.

    Raises:
        ValueError: when neither is known.
    """
    measure = next((name for name in ("agreement", "confidence") if name in volumes), None)
    if measure is None:
        raise ValueError("Neither an agreement nor a confidence is known: it takes several atlases, or a network.")
    found = dice.merge(volumes, on="id").dropna(subset=["dice"])
    both = found.dropna(subset=[measure])
    return {
        "labels": len(both),
        "not ranked": len(found) - len(both),
        "rank correlation": spearmanr(both[measure], both.dice).statistic,
        "Dice": both.dice.mean(),
        f"mean {measure}": both[measure].mean(),
        f"Dice, fifth of the lowest {measure}": both.nsmallest(max(len(both) // 5, 1), measure).dice.mean(),
    }


def volumes_of(name: str, args: argparse.Namespace, cases: list[str]) -> Iterator[pd.DataFrame]:
    """The volumes of each test scan: of a row with several atlases as segmented, else by the weights of the row."""
    row = accuracy.ROWS[name]
    if row.fused:
        folder = segmented(name, args, cases)
        yield from (pd.read_csv(folder / f"{case}_volumes.tsv", sep="\t", na_values="n/a") for case in cases)
        return
    if row.weights is None or not row.mni:
        raise SystemExit(f"{name} has neither several atlases nor weights that ship.")
    atlas = Atlas.read(*accuracy.mni_atlas(args.out / "mni"))
    segmenter = Segmenter.load(row.weights, atlas, args.device, cache=args.out / "cache", progress=False)
    yield from (segmenter(args.data / row.study / f"images/{case}.nii.gz").volumes for case in cases)


def table(name: str, args: argparse.Namespace) -> pd.DataFrame:
    """A line for each test scan."""
    dice = dice_of(name, args.out)
    cases = sorted(dice.case.unique())
    volumes = zip(cases, volumes_of(name, args, cases), strict=True)
    return pd.DataFrame({"case": case, **ranked(dice[dice.case == case], each)} for case, each in volumes)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the results of accuracy.py")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds malc2012/")
    parser.add_argument("row", choices=list(accuracy.ROWS), metavar="ROW", help="a row that accuracy.py has finished")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    args = parser.parse_args()
    print(table(args.row, args).to_markdown(index=False, floatfmt=".3f"))


if __name__ == "__main__":
    main()
