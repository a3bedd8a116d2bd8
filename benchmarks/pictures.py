"""Draws pictures of the accuracy benchmark, and measures how well the atlases' agreement ranks labels by their Dice.

    python benchmarks/pictures.py OUT --data DATA

OUT is the folder of a run of accuracy.py that holds the rows below. Writes OUT/pictures/subject.png, unseen.png and
dice.svg, and prints the rank correlation.
"""

import argparse
import json
from pathlib import Path

import accuracy
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from scipy.stats import spearmanr

BASELINE, BEST, UNSEEN = "multi-channel U-Net", "best LCS", "a fifth left out"
ONE_ATLAS, NINE_ATLASES = "deformable registration", "deformable registration, 9 atlases"


def canonical(path: Path) -> np.ndarray:
    """The voxels of a file, right-anterior-superior."""
    return np.asanyarray(nib.as_closest_canonical(nib.load(path)).dataobj).squeeze()


def label_maps(name: str, args: argparse.Namespace, cases: list[str]) -> Path:
    """The folder of a row's label maps and volumes of some test scans; those that are missing are made."""
    folder = accuracy.folder_of(name, args.out) / "segmented"
    missing = [case for case in cases if not (folder / f"{case}_dseg.nii.gz").is_file()]
    if missing:
        folder.mkdir(exist_ok=True)
        split = folder / "datalist.json"
        split.write_text(json.dumps({"testing": [{"image": f"images/{case}.nii.gz"} for case in missing]}))
        accuracy.segment(name, args, folder, split)  # over what an interrupted run left
    return folder


def show(axis, image: np.ndarray, labels: np.ndarray, title: str, colors: ListedColormap) -> None:
    """Draw a slice with its labels in color."""
    axis.imshow(image.T, cmap="gray", origin="lower")
    axis.imshow(np.ma.masked_equal(labels, 0).T, cmap=colors, vmin=0, vmax=colors.N - 1, alpha=0.6, origin="lower")
    axis.set_title(title, fontsize="medium")
    axis.axis("off")


def subject(args: argparse.Namespace, data: Path, case: str) -> None:
    """Draw two planes of a test scan: true labels, baseline, multi-atlas fusion and LCS."""
    image, truth = canonical(data / f"images/{case}.nii.gz"), canonical(data / f"labels/{case}.nii.gz")
    maps = {"manual labels": truth}
    maps |= {
        name: canonical(label_maps(name, args, [case]) / f"{case}_dseg.nii.gz")
        for name in (BASELINE, NINE_ATLASES, BEST)
    }
    center = np.argwhere(truth).mean(axis=0).astype(int)
    colors = ListedColormap(np.random.default_rng(0).uniform(0.2, 1.0, (int(truth.max()) + 1, 3)))
    figure, axes = plt.subplots(2, len(maps), figsize=(3 * len(maps), 6.4), layout="constrained")
    for column, (title, labels) in zip(axes.T, maps.items(), strict=True):
        labels = np.where(np.isin(labels, np.unique(truth)), labels, 0)
        show(column[0], image[:, center[1]], labels[:, center[1]], title, colors)
        show(column[1], image[:, :, center[2]], labels[:, :, center[2]], "", colors)
    figure.savefig(args.out / "pictures/subject.png", dpi=80)


def unseen(args: argparse.Namespace, data: Path, case: str, label: int, name: str) -> None:
    """Draw a label that a network was never trained on: the true outline in white, results in color."""
    image, truth = canonical(data / f"images/{case}.nii.gz"), canonical(data / f"labels/{case}.nii.gz") == label
    center = np.argwhere(truth).mean(axis=0).astype(int)
    near = tuple(slice(max(c - 45, 0), c + 45) for c in center)
    middle = center[1] - near[1].start
    colors = ListedColormap([(0, 0, 0), (1.0, 0.55, 0.1)])
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), layout="constrained")
    for axis, row in zip(axes, (ONE_ATLAS, UNSEEN, BEST), strict=True):
        found = canonical(label_maps(row, args, [case]) / f"{case}_dseg.nii.gz") == label
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


def dice_of(name: str, out: Path) -> pd.DataFrame:
    """The Dice of each label in each test scan."""
    return pd.read_csv(accuracy.folder_of(name, out) / "eval/dice.tsv", sep="\t", na_values="n/a", dtype={"case": str})


def agreement(args: argparse.Namespace) -> pd.DataFrame:
    """Spearman's rank correlation over labels of the agreement in ``volumes.tsv`` and the true Dice, for each scan."""
    dice, lines = dice_of(BEST, args.out), []
    folder = label_maps(BEST, args, sorted(dice.case.unique()))
    for case, part in dice.groupby("case"):
        volumes = pd.read_csv(folder / f"{case}_volumes.tsv", sep="\t", na_values="n/a")
        both = part.merge(volumes, on="id").dropna(subset=["dice", "agreement"])
        rank = spearmanr(both.agreement, both.dice).statistic
        lowest = both.nsmallest(len(both) // 5, "agreement").dice.mean()
        lines.append({"case": case, "labels": len(both), "rank correlation": rank, "Dice": both.dice.mean()})
        lines[-1]["Dice, fifth of the lowest agreement"] = lowest
    return pd.DataFrame(lines)


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the results of accuracy.py")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds malc2012/")
    parser.add_argument("--case", default="1014", help="test scan to draw (default: %(default)s)")
    parser.add_argument("--label", type=int, default=47, help="one of those left out (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    args = parser.parse_args()
    data = args.data / "malc2012"
    plt.switch_backend("Agg")
    (args.out / "pictures").mkdir(exist_ok=True)
    names = accuracy.label_names(data).set_index("id").name
    subject(args, data, args.case)
    unseen(args, data, args.case, args.label, names[args.label])
    sorted_dice(args.out)
    print(agreement(args).to_markdown(index=False, floatfmt=".3f"))


if __name__ == "__main__":
    main()
