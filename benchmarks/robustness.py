"""Measures the Dice of rows of the accuracy benchmark on degraded scans: noise, salt and pepper, thick slices.

    python benchmarks/robustness.py OUT --data DATA --rows "best LCS" "multi-channel U-Net"

OUT is the folder of a run of accuracy.py that holds these rows. OUT/robustness gets the degraded scans, the results,
the table robustness.tsv and the figure robustness.svg. Results that are there are not computed again.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import accuracy
import matplotlib
import numpy as np
import pandas as pd
import SimpleITK as sitk


def gaussian(image: sitk.Image, level: float) -> sitk.Image:
    """Add Gaussian noise with a standard deviation of ``level`` times the range of the image."""
    return sitk.AdditiveGaussianNoise(image, level * 255, 0.0, seed=1)


def salt_and_pepper(image: sitk.Image, level: float) -> sitk.Image:
    """Set a share of ``level`` of the voxels to black or white."""
    return sitk.SaltAndPepperNoise(image, level, seed=1)


def thick_slices(image: sitk.Image, level: float) -> sitk.Image:
    """Average slices to a thickness of ``level`` mm, then interpolate linearly to the grid of the image."""
    return sitk.Resample(sitk.BinShrink(image, [1, 1, round(level / image.GetSpacing()[2])]), image)


DEGRADE: dict[str, tuple[Callable[[sitk.Image, float], sitk.Image], list[float]]] = {
    "Gaussian noise, share of the range": (gaussian, [0.0, 0.05, 0.1, 0.2]),
    "salt and pepper, share of the voxels": (salt_and_pepper, [0.0, 0.02, 0.05, 0.1]),
    "thick slices, mm": (thick_slices, [1, 2, 4, 6]),
}


def degraded(data: Path, cases: list[str], kind: str, level: float, folder: Path) -> Path:
    """Write degraded scans in 8 bits, and a datalist of them with their unchanged labels."""
    items = []
    for case in cases:
        path = folder / f"{case}.nii.gz"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            image = sitk.ReadImage(str(data / f"images/{case}.nii.gz"), sitk.sitkFloat32)
            white = float(np.percentile(sitk.GetArrayViewFromImage(image), 99.9))
            image = sitk.Cast(sitk.IntensityWindowing(image, 0.0, white, 0.0, 255.0), sitk.sitkUInt8)
            sitk.WriteImage(DEGRADE[kind][0](image, level), str(path))
        items.append({"image": str(path.resolve()), "label": str(data.resolve() / f"labels/{case}.nii.gz")})
    datalist = folder / "datalist.json"
    datalist.write_text(json.dumps({"testing": items}))
    return datalist


def mean_dice(result: Path, cases: list[str]) -> float:
    """The mean Dice over labels, then over the cases."""
    dice = pd.read_csv(result / "dice.tsv", sep="\t", na_values="n/a", dtype={"case": str})
    return float(dice[dice.case.isin(cases)].groupby("case").dice.mean().mean())


def measure(args: argparse.Namespace) -> pd.DataFrame:
    """Score each row at each kind and level; the first level changes nothing but the type to 8 bits."""
    lines = []
    for name in args.rows:
        for kind, (_, levels) in DEGRADE.items():
            for level in levels:
                folder = args.out / "robustness" / f"{DEGRADE[kind][0].__name__}_{level}"
                result = accuracy.folder_of(name, folder)
                if not (result / "dice.tsv").is_file():
                    split = degraded(args.data / "malc2012", args.cases, kind, level, folder)
                    accuracy.evaluate(name, args, result, split)
                lines.append({"row": name, "kind": kind, "level": level, "Dice": mean_dice(result, args.cases)})
                print(lines[-1], flush=True)
    return pd.DataFrame(lines)


def plot(table: pd.DataFrame, path: Path) -> None:
    """Draw a panel for each kind, with a line for each row."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(DEGRADE), figsize=(10, 3.2), sharey=True, layout="constrained")
    for axis, (kind, part) in zip(axes, table.groupby("kind", sort=False), strict=True):
        for name, line in part.groupby("row", sort=False):
            axis.plot(line.level, line.Dice, marker="o", label=name)
        axis.set(xlabel=kind, ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean Dice")
    axes[0].legend(fontsize="small")
    figure.savefig(path)


def main() -> None:
    """Measure, then write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the results of accuracy.py")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds malc2012/")
    parser.add_argument("--rows", nargs="+", required=True, metavar="ROW", help="of malc2012")
    parser.add_argument("--cases", nargs="+", default=["1012", "1014"], help="test scans (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    args = parser.parse_args()
    table = measure(args)
    folder = args.out / "robustness"
    table.to_csv(folder / "robustness.tsv", sep="\t", index=False, float_format="%.4f")
    plot(table, folder / "robustness.svg")
    wide = table.pivot(index=["kind", "level"], columns="row", values="Dice").reset_index()
    print(wide.to_markdown(index=False, floatfmt=("", "", *[".3f"] * len(args.rows))))


if __name__ == "__main__":
    main()
