"""Figures of the MONAI Label app, through the real server and client: seconds to an answer, Dice of painted labels.

    python benchmarks/label_app.py STUDY --atlas 1000 --table labels.csv --scans 1012 1014 --checkpoint model.pt

STUDY has images/ and labels/. The atlas gets in without the labels to paint, which are then painted on it.
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
from pathlib import Path

import nibabel as nib
import numpy as np
import requests
import torch

from monai_lcs.labels import LabelTable
from monai_lcs.metrics import label_dice

warnings.simplefilter("ignore")


class Server:
    def __init__(self, folder, options, checkpoint=None):
        self.folder, self.options, self.checkpoint = folder, options, checkpoint

    def __enter__(self):
        from monailabel.client import MONAILabelClient

        command = [sys.executable, "-m", "monai_lcs.label_app", str(self.folder / "app"), *self.options]
        command += ["--checkpoint", str(self.checkpoint)] if self.checkpoint else []
        line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        if not self.checkpoint:  # labels carried over at the resolution of the scans, not of a network
            line += """ --conf settings '{"spacing": [1, 1, 1]}'"""
        log = (self.folder / "server.log").open("w")
        self.process = subprocess.Popen(shlex.split(line), stdout=log, stderr=subprocess.STDOUT)
        url = "http://127.0.0.1:8321"
        while True:
            try:
                requests.get(f"{url}/info/").raise_for_status()
                return MONAILabelClient(url, tmpdir=str(self.folder))
            except requests.ConnectionError:
                assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
                time.sleep(0.5)

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def seconds(client, scan, prompt):
    start = time.perf_counter()
    _, answer = client.infer("lcs", scan, {"label_prompt": prompt})
    return time.perf_counter() - start, answer["aligned"]


def voxels(path):
    return np.asarray(nib.load(path).dataobj).astype(np.int32)


def prepare(folder, arguments):
    """A study without the labels to paint in its atlas; returns the options of the command and the painted map."""
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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("--atlas", required=True)
    parser.add_argument("--table", required=True)
    parser.add_argument("--scans", nargs="+", required=True)
    parser.add_argument("--paint", nargs="+", type=int, required=True, help="ids of the labels to leave out and paint")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options, names = prepare(folder, arguments)
        figures = {"threads": torch.get_num_threads(), "seconds": {}, "dice": {}}
        for how, checkpoint in (("network", arguments.checkpoint), ("alignment", None)):
            with Server(folder, options, checkpoint) as client:
                if how == "network":
                    info = [{"name": name, "idx": value} for value, name in enumerate(names, start=1)]
                    answer = client.save_label("atlas", str(folder / "painted.nii.gz"), params={"label_info": info})
                    print(answer, flush=True)
                    figures["seconds"] = time_all(client, arguments.scans, list(names))
                    print(json.dumps(figures["seconds"], indent=1), flush=True)
                for scan in arguments.scans:
                    file, _ = client.infer("lcs", scan, {"label_prompt": "all"})
                    ids = {name: client.info()["models"]["lcs"]["labels"][name] for name in names}
                    found, truth = voxels(file), voxels(arguments.study / f"labels/{scan}.nii.gz")
                    for name, label in names.items():
                        same = label_dice(
                            torch.tensor(found == ids[name]).int(), torch.tensor(truth == label).int(), [1]
                        )
                        figures["dice"].setdefault(how, {}).setdefault(str(label), {})[scan] = round(float(same), 4)
        means = {
            how: round(statistics.mean(x for d in dice.values() for x in d.values()), 4)
            for how, dice in figures["dice"].items()
        }
        figures["mean_dice"] = means
        print(json.dumps(figures, indent=1))
        if arguments.out:
            arguments.out.write_text(json.dumps(figures, indent=1))


def time_all(client, scans, painted):
    """Seconds for 1, 3 and all labels: with a new alignment, once for each scan; with a cached one, the median."""
    new = {scan: seconds(client, scan, painted[:1]) for scan in scans}
    assert {aligned for _, aligned in new.values()} == {"new"}
    figures = {"1 label, new alignment": [round(value, 2) for value, _ in new.values()]}
    three = [painted[0], *list(client.info()["models"]["lcs"]["labels"])[:2]]
    for what, prompt in (("1 label", painted[:1]), ("3 labels", three), ("all labels", "all")):
        figures[f"{what}, cached"] = round(
            statistics.median(seconds(client, scans[-1], prompt)[0] for _ in range(5)), 2
        )
    return figures


if __name__ == "__main__":
    main()
