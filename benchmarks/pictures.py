"""Draws pictures of the accuracy benchmark.

    python benchmarks/pictures.py OUT --data DATA
    python benchmarks/pictures.py OUT --data DATA --rows "MNI atlas, research weights"

OUT is the folder of a run of accuracy.py that holds the rows. With rows it writes OUT/pictures/rows.png, a test scan
with its manual labels and those of each row. Without, it writes subject.png, the same of the rows of the first table of
the docs, and their unseen.png and dice.svg.
"""

import argparse
from pathlib import Path

import accuracy
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pandas as pd
from confidence import dice_of, segmented
from matplotlib.colors import ListedColormap

BASELINE, BEST, UNSEEN = "multi-channel U-Net", "best LCS", "a fifth left out"
TITLES = {
    "MNI atlas, deformable registration": "registration",
    "MNI atlas, research weights": "research weights",
    "shared decoder, atlas 1000, 9 atlases": "network and nine atlases",
}
ONE_ATLAS, NINE_ATLASES = "deformable registration", "deformable registration, 9 atlases"


def canonical(path: Path) -> np.ndarray:
    """The voxels of a file, right-anterior-superior."""
    return np.asanyarray(nib.as_closest_canonical(nib.load(path)).dataobj).squeeze()


def show(axis, image: np.ndarray, labels: np.ndarray, title: str, colors: ListedColormap) -> None:
    """Draw a slice with its labels in color."""
    axis.imshow(image.T, cmap="gray", origin="lower")
    axis.imshow(np.ma.masked_equal(labels, 0).T, cmap=colors, vmin=0, vmax=colors.N - 1, alpha=0.6, origin="lower")
    axis.set_title(title, fontsize="medium")
    axis.axis("off")


def subject(args: argparse.Namespace, data: Path, case: str, rows: list[str], file: str) -> None:
    """Draw two planes of a test scan: true labels, and those of each row with their mean Dice."""
    image, truth = canonical(data / f"images/{case}.nii.gz"), canonical(data / f"labels/{case}.nii.gz")
    maps = {"manual labels": truth}
    for name in rows:
        dice = dice_of(name, args.out)
        title = f"{TITLES.get(name, name)}: {dice[dice.case == case].dice.mean():.2f}"
        maps[title] = canonical(segmented(name, args, [case]) / f"{case}_dseg.nii.gz")
    center = np.argwhere(truth).mean(axis=0).astype(int)
    colors = ListedColormap(np.random.default_rng(0).uniform(0.2, 1.0, (int(truth.max()) + 1, 3)))
    figure, axes = plt.subplots(2, len(maps), figsize=(3 * len(maps), 6.4), layout="constrained")
    for column, (title, labels) in zip(axes.T, maps.items(), strict=True):
        labels = np.where(np.isin(labels, np.unique(truth)), labels, 0)
        show(column[0], image[:, center[1]], labels[:, center[1]], title, colors)
        show(column[1], image[:, :, center[2]], labels[:, :, center[2]], "", colors)
    figure.savefig(args.out / "pictures" / file, dpi=80)


def unseen(args: argparse.Namespace, data: Path, case: str, label: int, name: str) -> None:
    """Draw a label that a network was never trained on: the true outline in white, results in color."""
    image, truth = canonical(data / f"images/{case}.nii.gz"), canonical(data / f"labels/{case}.nii.gz") == label
    center = np.argwhere(truth).mean(axis=0).astype(int)
    near = tuple(slice(max(c - 45, 0), c + 45) for c in center)
    middle = center[1] - near[1].start
    colors = ListedColormap([(0, 0, 0), (1.0, 0.55, 0.1)])
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), layout="constrained")
    for axis, row in zip(axes, (ONE_ATLAS, UNSEEN, BEST), strict=True):
        found = canonical(segmented(row, args, [case]) / f"{case}_dseg.nii.gz") == label
        dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
        row = {UNSEEN: "LCS, label never trained", BEST: "LCS, label trained"}.get(row, row)
        show(axis, image[near][:, middle], found[near][:, middle].astype(int), f"{row}: {dice:.2f}", colors)
        axis.contour(truth[near][:, middle].T, [0.5], colors="white", linewidths=1)
    figure.suptitle(f"{name}, scan {case}")
    figure.savefig(args.out / "pictures/unseen.png", dpi=80)


def sorted_dice(out: Path) -> None:
    """Draw the mean Dice of each label over the test scans, in the order of the best row."""
    rows = (BEST, NINE_ATLASES, ONE_ATLAS, "affine alignment", BASELINE)
    table = pd.DataFrame({name: dice_of(name, out).groupby("id").dice.mean() for name in rows}).dropna()
    table = table.sort_values(BEST, ascending=False).reset_index(drop=True)
    axis = table.plot(figsize=(9, 4), style=["-", *["."] * (len(rows) - 1)], ylim=(0, 1), grid=True)
    axis.set(xlabel="labels, sorted", ylabel="mean Dice over the test scans")
    axis.figure.savefig(out / "pictures/dice.svg", bbox_inches="tight")


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the results of accuracy.py")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds malc2012/")
    parser.add_argument("--case", default="1014", help="test scan to draw (default: %(default)s)")
    parser.add_argument("--label", type=int, default=47, help="one of those left out (default: %(default)s)")
    parser.add_argument("--rows", nargs="+", choices=list(accuracy.ROWS), metavar="ROW", help="rows to draw")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    args = parser.parse_args()
    data = args.data / "malc2012"
    plt.switch_backend("Agg")
    (args.out / "pictures").mkdir(exist_ok=True)
    if args.rows:
        subject(args, data, args.case, args.rows, "rows.png")
    else:
        subject(args, data, args.case, [BASELINE, NINE_ATLASES, BEST], "subject.png")
        names = accuracy.label_names(data).set_index("id").name
        unseen(args, data, args.case, args.label, names[args.label])
        sorted_dice(args.out)


if __name__ == "__main__":
    main()
