"""Measures how often alignment succeeds from random starts, its Dice and its CPU seconds, on a scan with labels.

    python benchmarks/alignment.py OUT --data DATA --atlases 1000 1001 --modes affine deformable --starts 100

A start turns the scan by up to 30 degrees around a random axis, shifts it by up to 50 mm in a random direction, and
cuts up to 30% off a random side. Only the header is turned, so no voxel changes. A start succeeds if its labels have
at least 0.95 of the Dice that the alignment of the untouched scan has on the same cut. An atlas is a case of malc2012,
or a pair of files IMAGE,LABELS. OUT/alignment.tsv gets one line for each alignment; what is there is not done again.
"""

import argparse
import itertools
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch
from monai.data import MetaTensor

from monai_lcs.atlas import ALIGNMENTS, AtlasAligner, registration
from monai_lcs.grids import from_sitk
from monai_lcs.metrics import label_dice

KINDS = ("images", "labels")
DEGREES, MM, CUT = 30.0, 50.0, 0.3
SUCCESS = 0.95  # of the Dice of the untouched scan's alignment


class Start(NamedTuple):
    """What is done to a scan: start 0 does nothing."""

    move: sitk.VersorRigid3DTransform
    axis: int
    at_end: bool
    cut: float


def random_start(number: int, center: np.ndarray) -> Start:
    """The start of this number, the same in every run."""
    rng = np.random.default_rng(number)
    size = 1.0 if number else 0.0
    axis, direction = (x / np.linalg.norm(x) for x in rng.normal(size=(2, 3)))
    move = sitk.VersorRigid3DTransform()
    move.SetCenter(center.tolist())
    move.SetRotation(axis.tolist(), float(np.deg2rad(rng.uniform(0, DEGREES * size))))
    move.SetTranslation((direction * rng.uniform(0, MM * size)).tolist())
    return Start(move, int(rng.integers(3)), bool(rng.integers(2)), float(rng.uniform(0, CUT * size)))


def started(image: sitk.Image, start: Start) -> sitk.Image:
    """Turn and shift the header, then cut."""
    moved = sitk.Image(image)
    matrix = np.reshape(start.move.GetMatrix(), (3, 3))
    moved.SetOrigin(start.move.TransformPoint(image.GetOrigin()))
    moved.SetDirection((matrix @ np.reshape(image.GetDirection(), (3, 3))).ravel().tolist())
    index, size = [0, 0, 0], list(image.GetSize())
    off = int(size[start.axis] * start.cut)
    size[start.axis] -= off
    index[start.axis] = 0 if start.at_end else off
    return sitk.RegionOfInterest(moved, size, index)


def as_tensor(image: sitk.Image) -> MetaTensor:
    voxels, affine = from_sitk(image)
    return MetaTensor(voxels, affine=torch.as_tensor(affine))


def read(files: list[str]) -> tuple[sitk.Image, sitk.Image]:
    """An image and its label map."""
    return sitk.ReadImage(files[0], sitk.sitkFloat32), sitk.ReadImage(files[1], sitk.sitkInt32)


def files_of(name: str, data: Path) -> list[str]:
    return name.split(",") if "," in name else [str(data / f"malc2012/{kind}/{name}.nii.gz") for kind in KINDS]


def mean_dice(transform: sitk.Transform, truth: sitk.Image, labels: sitk.Image) -> float:
    """Over the labels that the atlas and the cut scan have."""
    carried = sitk.Resample(labels, truth, transform, sitk.sitkNearestNeighbor, 0)
    ids = np.unique(sitk.GetArrayViewFromImage(labels)).tolist()
    return float(label_dice(from_sitk(carried)[0], from_sitk(truth)[0], [i for i in ids if i > 0]).nanmean())


def folded(transform: sitk.Transform, image: sitk.Image) -> float:
    """The share of the brain where a deformation turns space inside out; 0 for others."""
    if not isinstance(transform, sitk.CompositeTransform) or transform.GetNumberOfTransforms() < 2:
        return 0.0
    field = sitk.DisplacementFieldTransform(transform.GetNthTransform(1)).GetDisplacementField()
    jacobian = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field))
    brain = sitk.GetArrayFromImage(sitk.Resample(image, field)) > 0
    return float((jacobian[brain] <= 0).mean())


def align(mode: str, image: sitk.Image, atlas_image: sitk.Image) -> tuple[sitk.Transform, float]:
    """Transform and CPU seconds; the identity where the alignment says that it failed."""
    aligner = AtlasAligner(mode, check_orientation=False)
    begin = time.process_time()
    try:
        transform = aligner.align(as_tensor(image), as_tensor(atlas_image)).transform
    except ValueError:
        transform = sitk.Transform(3, sitk.sitkIdentity)
    return transform, time.process_time() - begin


def measure(args: argparse.Namespace) -> pd.DataFrame:
    path = args.out / "alignment.tsv"
    args.out.mkdir(parents=True, exist_ok=True)
    lines = pd.read_csv(path, sep="\t", dtype={"atlas": str}).to_dict("records") if path.is_file() else []
    done = {(line["atlas"], line["mode"], line["start"]) for line in lines}
    image, truth = read(files_of(args.case, args.data))
    center = registration.grid_center(image)
    for name, mode in itertools.product(args.atlases, args.modes):
        atlas_image, labels = read(files_of(name, args.data))
        untouched: sitk.Transform | None = None
        for number in range(args.starts + 1):
            if (name, mode, number) in done:
                continue
            if untouched is None:
                untouched, seconds = align(mode, image, atlas_image)
            start = random_start(number, center)
            cut, cut_truth = (started(x, start) for x in (image, truth))
            transform = untouched
            if number > 0:
                transform, seconds = align(mode, cut, atlas_image)
            back = sitk.CompositeTransform([untouched, start.move.GetInverse()])
            line = {"atlas": name, "mode": mode, "start": number, "dice": mean_dice(transform, cut_truth, labels)}
            line |= {"untouched": mean_dice(back, cut_truth, labels), "seconds": seconds}
            lines.append(line | {"folded": folded(transform, cut)})
            pd.DataFrame(lines).to_csv(path, sep="\t", index=False, float_format="%.5g")
            print(lines[-1], flush=True)
    return pd.DataFrame(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder with malc2012/")
    parser.add_argument("--case", default="1013", help="the scan, a case of malc2012 (default: %(default)s)")
    parser.add_argument("--atlases", nargs="+", default=["1000"], metavar="CASE or IMAGE,LABELS")
    parser.add_argument("--modes", nargs="+", default=["affine"], choices=ALIGNMENTS[1:])
    parser.add_argument("--starts", type=int, default=100, help="besides the untouched scan (default: %(default)s)")
    lines = measure(parser.parse_args())
    lines["found"] = lines.dice >= SUCCESS * lines.untouched
    groups = lines[lines.start > 0].groupby(["atlas", "mode"], sort=False)
    table = groups.agg(starts=("found", "size"), found=("found", "sum"), median=("seconds", "median"))
    first = lines[lines.start == 0].set_index(["atlas", "mode"])[["dice", "seconds", "folded"]]
    print(first.join(table).to_string(float_format="%.3f"))


if __name__ == "__main__":
    main()
