"""Measures the MONAI Label app through the real server and client: seconds to an answer, Dice of painted labels.

    python benchmarks/label_app.py STUDY --atlas 1000 --table labels.csv --scans 1012 1014 --paint 32 47 \\
        --checkpoint model.pt

STUDY has images/ and labels/. The server starts with an atlas that lacks the labels to paint. These are then painted
on it through the client, and requested in the scans: once with the network, once by alignment alone.
"""

import argparse
import json
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import requests
import torch

from monai_lcs import LabelTable
from monai_lcs.metrics import label_dice

warnings.simplefilter("ignore")

Figures = dict[str, Any]


class Server:
    """A server with the app, from its own command line; entered, it is the client of it.

    Args:
        folder: for the app and the log.
        options: of ``python -m monai_lcs.label_app``.
        checkpoint: weights; without them labels are propagated by alignment, at the resolution of the scans.
    """

    def __init__(self, folder: Path, options: Sequence[str], checkpoint: Path | None = None) -> None:
        self.folder, self.options, self.checkpoint = folder, options, checkpoint

    def __enter__(self) -> Any:
        from monailabel.client import MONAILabelClient

        command = [sys.executable, "-m", "monai_lcs.label_app", str(self.folder / "app"), *self.options]
        command += ["--checkpoint", str(self.checkpoint)] if self.checkpoint else []
        line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        if not self.checkpoint:
            line += """ --conf settings '{"spacing": [1, 1, 1]}'"""
        log = (self.folder / "server.log").open("w")
        self.process = subprocess.Popen(shlex.split(line), stdout=log, stderr=subprocess.STDOUT)
        url = "http://127.0.0.1:8321"
        while True:
            try:
                requests.get(f"{url}/info/").raise_for_status()
                return MONAILabelClient(url, tmpdir=str(self.folder))
            except requests.ConnectionError:
                assert self.process.poll() is None, (self.folder / "server.log").read_text(encoding="utf-8")[-2000:]
                time.sleep(0.5)

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def seconds(client: Any, scan: str, prompt: Any) -> tuple[float, str]:
    """The seconds from request to answer, and whether the alignment was ``"new"`` or ``"cached"``."""
    start = time.perf_counter()
    _, answer = client.infer("lcs", scan, {"label_prompt": prompt})
    return time.perf_counter() - start, answer["aligned"]


def voxels(path: Path | str) -> np.ndarray:
    """The ids of a label map file."""
    return np.asarray(nib.load(path).dataobj).astype(np.int32)


def prepare(folder: Path, arguments: argparse.Namespace) -> tuple[list[str], dict[str, int]]:
    """Make a study without the labels to paint in its atlas.

    Returns:
        The options of the app's command, and for the name of each painted label its id in the true label maps.
    """
    study, data = folder / "study", arguments.study
    study.mkdir()
    for scan in arguments.scans:
        shutil.copyfile(data / f"images/{scan}.nii.gz", study / f"{scan}.nii.gz")
    table = LabelTable.read(arguments.table)
    atlas = nib.load(data / f"labels/{arguments.atlas}.nii.gz")
    labels = np.asarray(atlas.dataobj).astype(np.int32)
    present = set(np.unique(labels).tolist()) - {0}
    painted = np.zeros(labels.shape, np.uint8)
    for value, label in enumerate(arguments.paint, start=1):
        painted[labels == label] = value
    labels[painted > 0] = 0
    labels[~np.isin(labels, table.ids)] = 0
    nib.save(nib.Nifti1Image(labels, atlas.affine, dtype=np.int32), folder / "atlas_dseg.nii.gz")
    nib.save(nib.Nifti1Image(painted, atlas.affine), folder / "painted.nii.gz")
    kept = LabelTable([label for label in table if label.id in present and label.id not in arguments.paint])
    kept.write(folder / "atlas_dseg.tsv")
    options = ["--studies", str(study), "--port", "8321", "--label_table", str(folder / "atlas_dseg.tsv")]
    options += ["--atlas_image", str(data / f"images/{arguments.atlas}.nii.gz")]
    options += ["--atlas_labels", str(folder / "atlas_dseg.nii.gz")]
    return options, {f"painted {label}": label for label in arguments.paint}


def paint(client: Any, path: Path, names: Sequence[str]) -> None:
    """Paint labels on the atlas: the values 1, 2, ... of a label map get these names."""
    info = [{"name": name, "idx": value} for value, name in enumerate(names, start=1)]
    print(client.save_label("atlas", str(path), params={"label_info": info}), flush=True)


def time_all(client: Any, scans: Sequence[str], painted: Sequence[str]) -> Figures:
    """Seconds for 1, 3 and all labels: with a new alignment, once for each scan; with a cached one, the median."""
    new = {scan: seconds(client, scan, painted[:1]) for scan in scans}
    assert {aligned for _, aligned in new.values()} == {"new"}
    figures: Figures = {"1 label, new alignment": [round(value, 2) for value, _ in new.values()]}
    three = [painted[0], *list(client.info()["models"]["lcs"]["labels"])[:2]]
    for what, prompt in (("1 label", painted[:1]), ("3 labels", three), ("all labels", "all")):
        figures[f"{what}, cached"] = round(
            statistics.median(seconds(client, scans[-1], prompt)[0] for _ in range(5)), 2
        )
    return figures


def score(client: Any, names: Mapping[str, int], arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The Dice of each painted label in each scan, when all labels are requested."""
    ids = client.info()["models"]["lcs"]["labels"]
    dice: dict[str, dict[str, float]] = {str(label): {} for label in names.values()}
    for scan in arguments.scans:
        file, _ = client.infer("lcs", scan, {"label_prompt": "all"})
        found, truth = voxels(file), voxels(arguments.study / f"labels/{scan}.nii.gz")
        for name, label in names.items():
            masks = (torch.tensor(mask).int() for mask in (found == ids[name], truth == label))
            dice[str(label)][scan] = round(float(label_dice(*masks, [1])), 4)
    return dice


def measure(folder: Path, arguments: argparse.Namespace) -> Figures:
    """Paint, time and score with the network; score with alignment alone."""
    options, names = prepare(folder, arguments)
    figures: Figures = {"threads": torch.get_num_threads()}
    with Server(folder, options, arguments.checkpoint) as client:
        paint(client, folder / "painted.nii.gz", list(names))
        figures["seconds"] = time_all(client, arguments.scans, list(names))
        print(json.dumps(figures["seconds"], indent=1), flush=True)
        figures["dice"] = {"network": score(client, names, arguments)}
    with Server(folder, options) as client:
        figures["dice"]["alignment"] = score(client, names, arguments)
    figures["mean_dice"] = {
        how: round(statistics.mean(value for scans in dice.values() for value in scans.values()), 4)
        for how, dice in figures["dice"].items()
    }
    return figures


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--atlas", required=True, help="name of the scan that is the atlas")
    parser.add_argument("--table", required=True, help="label table")
    parser.add_argument("--scans", nargs="+", required=True, help="names of the scans to segment")
    parser.add_argument("--paint", nargs="+", type=int, required=True, help="ids of the labels to leave out and paint")
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        figures = measure(Path(name), arguments)
    print(json.dumps(figures, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
