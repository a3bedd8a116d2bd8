"""The table and the curves of docs/convergence.md, from what benchmarks/converge.py wrote.

    python benchmarks/converge_table.py OUT

writes OUT/convergence.md, OUT/unseen.md (labels that were not trained), OUT/convergence.tsv (every curve) and
OUT/convergence.svg. Trainings that the stop rule has
not ended are in the curves, and in the table without a Dice of the test scans.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from coarse_labels import coarse_labels

BASELINE = "multi-channel"  # of a setting: "slices-multi-channel" of the slices
SLICES = "slices-"
SUPERVISED, PROPAGATED, DEFORMABLE = "lcs-shared-short", "atlas", "atlas-deformable"
UNSEEN = {"sides": "left and right merged", "lobes": "gyri merged into lobes", "left out": "a fifth left out"}
DRAWS = 10_000
INTERVAL = (2.5, 97.5)


def read_curves(out: Path) -> pd.DataFrame:
    """All curves, with the columns contender and seed before their own."""
    curves = []
    for path in sorted(out.glob("*-seed*/curve.tsv")):
        name, _, seed = path.parent.name.rpartition("-seed")
        curve = pd.read_csv(path, sep="\t", na_values="n/a")
        if "validation_before" in curve:  # of a training that went on from a copy
            curve["validation_dice"] = curve.validation_dice.fillna(curve.pop("validation_before"))
        curve.insert(0, "contender", name)
        curve.insert(1, "seed", int(seed))
        curves.append(curve)
    return pd.concat(curves, ignore_index=True)


def read_dice(out: Path) -> dict[str, np.ndarray]:
    """For each contender that is done the Dice ``(scans, labels)``, the mean over its seeds."""
    found: dict[str, list[np.ndarray]] = {}
    for path in sorted(out.glob("*/done.json")):
        dice = pd.read_csv(path.with_name("dice.tsv"), sep="\t", na_values="n/a")
        name = path.parent.name.rpartition("-seed")[0] or path.parent.name
        found.setdefault(name, []).append(dice.pivot(index="scan", columns="id", values="dice").to_numpy())
    return {name: np.mean(of_seeds, axis=0) for name, of_seeds in found.items()}


def interval(difference: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The 95% interval of the mean of ``(scans, labels)``, scans and labels drawn with replacement.

    A label that a scan lacks is NaN and left out.
    """
    scans, labels = difference.shape
    means = [
        np.nanmean(difference[np.ix_(rng.integers(scans, size=scans), rng.integers(labels, size=labels))])
        for _ in range(DRAWS)
    ]
    low, high = np.percentile(means, INTERVAL)
    return float(low), float(high)


def table(out: Path, curves: pd.DataFrame) -> pd.DataFrame:
    """A row for each contender; the difference is to the baseline, paired."""
    dice, rng = read_dice(out), np.random.default_rng(0)
    rows = []
    for name in sorted({*dice, *curves.contender}):
        own = curves[curves.contender == name]
        row = {"contender": name, **cost(own), "test": "unconverged", f"minus {BASELINE}": ""}
        if name in dice and all((out / f"{name}-seed{seed}/done.json").is_file() for seed in own.seed.unique()):
            row["test"] = f"{np.nanmean(dice[name]):.3f}"
            row[f"minus {BASELINE}"] = difference(dice, name, rng)
        rows.append(row)
    return pd.DataFrame(rows)


def cost(own: pd.DataFrame) -> dict[str, object]:
    """What the trainings of a contender took and reached, a number for each seed."""
    best = own.groupby("seed").validation_dice.max()
    last = own.groupby("seed")[["step", "label_samples", "core_seconds"]].max()
    return {
        "seeds": len(last) or "",
        "steps": " ".join(f"{step:.0f}" for step in last.step),
        "label samples": " ".join(f"{n:,.0f}" for n in last.label_samples),
        "core-hours": " ".join(f"{seconds / 3600:.1f}" for seconds in last.core_seconds),
        "best validation": " ".join(f"{value:.3f}" for value in best),
    }


def difference(dice: dict[str, np.ndarray], name: str, rng: np.random.Generator) -> str:
    """The mean difference to the baseline with its interval; empty for the baseline itself and without it."""
    baseline = SLICES + BASELINE if name.startswith(SLICES) else BASELINE
    if baseline not in dice or name == baseline:
        return ""
    paired = dice[name] - dice[baseline]
    low, high = interval(paired, rng)
    return f"{np.nanmean(paired):+.3f} ({low:+.3f} to {high:+.3f})"


def unseen_ids(kind: str, labels: pd.DataFrame) -> list[int]:
    """The labels that no group trains by itself."""
    alone = {group[0] for group in coarse_labels(kind, labels).values() if len(group) == 1}
    return [label for label in labels.id if label not in alone]


def unseen_table(out: Path) -> pd.DataFrame:
    """A row for each training on coarse labels: the Dice of the labels that it was not trained on.

    ``kept`` is the share of the gain of supervision over the propagated atlas labels, with its interval.
    """
    dice, rng = read_dice(out), np.random.default_rng(0)
    rows = []
    for kind, what in UNSEEN.items():
        name = f"unseen-{kind.replace(' ', '-')}"
        if not {name, SUPERVISED, PROPAGATED} <= dice.keys():
            continue
        path = next(out.glob(f"{name}-seed*/dice.tsv"))
        labels = pd.read_csv(path, sep="\t")[["id", "name"]].drop_duplicates().sort_values("id")
        at = labels.id.isin(unseen_ids(kind, labels)).to_numpy()
        of = {which: dice[which][:, at] for which in (PROPAGATED, DEFORMABLE, name, SUPERVISED) if which in dice}
        means = [
            f"{np.nanmean(of[which]):.3f}" if which in of else ""
            for which in (PROPAGATED, DEFORMABLE, name, SUPERVISED)
        ]
        row = dict(zip(["propagated", "deformable registration", "not trained", "supervised"], means, strict=True))
        rows.append({"training": what, "labels": int(at.sum()), **row, "kept": kept(of, name, rng)})
    return pd.DataFrame(rows)


def kept(of: dict[str, np.ndarray], name: str, rng: np.random.Generator) -> str:
    """(not trained - propagated) / (supervised - propagated), scans and labels drawn with replacement."""
    gains = np.stack([of[name] - of[PROPAGATED], of[SUPERVISED] - of[PROPAGATED]])
    scans, labels = gains.shape[1:]
    shares = []
    for _ in range(DRAWS):
        drawn = gains[:, rng.integers(scans, size=scans)][:, :, rng.integers(labels, size=labels)]
        shares.append(np.divide(*np.nanmean(drawn, axis=(1, 2))))
    low, high = np.percentile(shares, INTERVAL)
    return f"{np.divide(*np.nanmean(gains, axis=(1, 2))):.0%} ({low:.0%} to {high:.0%})"


def draw(curves: pd.DataFrame, path: Path) -> None:
    """Validation Dice against label samples and against core-hours; a dot is where the learning rate dropped."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    validated = curves.dropna(subset="validation_dice")
    validated = validated.groupby(["contender", "seed"]).filter(lambda own: len(own) > 1)  # one point is no curve
    colors = {name: f"C{i}" for i, name in enumerate(sorted(validated.contender.unique()))}
    for (name, seed), own in validated.groupby(["contender", "seed"]):
        dropped = own[own.learning_rate < own.learning_rate.iloc[0]].head(1)
        label = name if seed == validated[validated.contender == name].seed.min() else None
        for axis, x in zip(axes, (own.label_samples, own.core_seconds / 3600), strict=True):
            axis.plot(x, own.validation_dice, color=colors[name], linewidth=1, label=label)
            axis.plot(x[dropped.index], dropped.validation_dice, "o", color=colors[name], markersize=4)
    axes[0].set(xscale="log", xlabel="label samples", ylabel="Dice of the validation scan")
    axes[1].set(xlabel="core-hours")
    axes[0].legend(frameon=False)
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(path)


def main() -> None:
    """Write the table and the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the results")
    args = parser.parse_args()
    plt.switch_backend("Agg")
    curves = read_curves(args.out)
    curves.to_csv(args.out / "convergence.tsv", sep="\t", index=False, na_rep="n/a")
    text = table(args.out, curves).to_markdown(index=False, disable_numparse=True)
    (args.out / "convergence.md").write_text(text + "\n")
    draw(curves, args.out / "convergence.svg")
    print(text)
    unseen = unseen_table(args.out)
    if len(unseen):
        text = unseen.to_markdown(index=False, disable_numparse=True)
        (args.out / "unseen.md").write_text(text + "\n")
        print(text)


if __name__ == "__main__":
    main()
