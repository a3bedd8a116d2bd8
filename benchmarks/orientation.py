"""How often a wrong orientation in a header is found, and how often a right one is suspected, on real scans.

    python benchmarks/orientation.py OUT --data DATA --atlases mni=T1w.nii.gz 1000=DATA/malc2012/images/1000.nii.gz

Each scan is turned all 24 ways and mirrored all 24 ways by permuting and flipping its voxels under an unchanged affine.
It is also rotated, cropped and made worse, with the right header and with one wrong by 180 degrees. OUT/orientation.tsv
gets one line for each comparison; lines that are there are not done again. Then the tables are printed.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from robustness import gaussian, thick_slices

from monai_lcs.atlas import registration
from monai_lcs.atlas.orientation import TURNS, Orientation, better_orientation
from monai_lcs.grids import from_sitk

CALIBRATION = ("1000", "1001", "1006", "1012")  # the thresholds were chosen on these
MIRROR = np.diag([-1.0, 1, 1])
FRONT_BACK = 3  # the turn that exchanges left and right, front and back


def rotated(image: sitk.Image, *degrees: float) -> sitk.Image:
    transform = sitk.Euler3DTransform()
    transform.SetCenter(registration.grid_center(image).tolist())
    transform.SetRotation(*np.deg2rad(degrees).tolist())
    return sitk.Resample(image, image, transform, sitk.sitkLinear, 0.0)


def cropped(image: sitk.Image, axis: int, first: float, last: float) -> sitk.Image:
    """Keep a part of the brain's box along an axis of LPS."""
    image = sitk.DICOMOrient(image, "LPS")
    inside = np.flatnonzero((sitk.GetArrayViewFromImage(image).T > 0).any(tuple({0, 1, 2} - {axis})))
    low, size = inside[0], inside[-1] + 1 - inside[0]
    index, shape = [0, 0, 0], list(image.GetSize())
    index[axis], shape[axis] = int(low + first * size), int((last - first) * size)
    return sitk.RegionOfInterest(image, shape, index)


def white(image: sitk.Image) -> float:
    return float(np.percentile(sitk.GetArrayViewFromImage(image), 99.9))


def noisy(image: sitk.Image, level: float) -> sitk.Image:
    return gaussian(image * (255 / white(image)), level)


def inverted(image: sitk.Image) -> sitk.Image:
    """Fluid bright, white matter dark: another contrast than the atlas's."""
    return sitk.Mask(sitk.Abs(1.1 * white(image) - image), image > 0)


def shaded(image: sitk.Image) -> sitk.Image:
    """Four times as bright on top as at the bottom, and three times at the back as in front."""
    sizes = image.GetSize()
    y, z = np.linspace(0.5, 1.5, sizes[1]), np.linspace(0.4, 1.6, sizes[2])
    field = sitk.GetImageFromArray(np.broadcast_to((z[:, None] * y)[:, :, None], sizes[::-1]).astype(np.float32))
    field.CopyInformation(image)
    return image * field


WORSE: dict[str, Callable[[sitk.Image], sitk.Image]] = {
    "unchanged": lambda image: image,
    "nodding 30 degrees": lambda image: rotated(image, 30, 0, 0),
    "nodding -30 degrees": lambda image: rotated(image, -30, 0, 0),
    "tilted 30 degrees": lambda image: rotated(image, 0, 30, 0),
    "turned 30 degrees": lambda image: rotated(image, 0, 0, 30),
    "20 degrees about each axis": lambda image: rotated(image, 20, -20, 20),
    "upper 60% only": lambda image: cropped(image, 2, 0.4, 1),
    "lower 60% only": lambda image: cropped(image, 2, 0, 0.6),
    "front 60% only": lambda image: cropped(image, 1, 0, 0.6),
    "back 60% only": lambda image: cropped(image, 1, 0.4, 1),
    "left half only": lambda image: cropped(image, 0, 0.5, 1),
    "middle 30% of the height only": lambda image: cropped(image, 2, 0.35, 0.65),
    "noise of 10% of the range": lambda image: noisy(image, 0.1),
    "noise of 20% of the range": lambda image: noisy(image, 0.2),
    "axial slices of 6 mm": lambda image: thick_slices(image, 6),
    "contrast inverted": inverted,
    "strong shading": shaded,
}


def with_wrong_header(image: sitk.Image, matrix: np.ndarray) -> MetaTensor:
    """The scan in RAS whose header directions are, in truth, ``matrix`` times themselves; the affine stays."""
    volume, affine = from_sitk(sitk.DICOMOrient(sitk.Cast(image, sitk.sitkFloat32), "LPS"))
    turned = volume.flip(1, 2)[0]  # RAS
    order = np.abs(matrix).argmax(0)
    turned = turned.permute(*order.tolist())
    flips = [i for i, axis in enumerate(order) if matrix[axis, i] < 0]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return MetaTensor(turned.flip(flips)[None].contiguous(), affine=torch.as_tensor(np.diag([*spacing[order], 1.0])))


def nearest_turn(matrix: np.ndarray) -> int:
    """The turn that a matrix is, or is but for left and right."""
    proper = matrix if np.linalg.det(matrix) > 0 else MIRROR @ matrix
    return int(np.einsum("nij,ij->n", TURNS, proper).argmax())


def experiments(kinds: list[str]) -> Iterator[tuple[str, str, np.ndarray]]:
    """Kind, what is done to the scan, and the matrix that its header lacks."""
    made: dict[str, Iterator[tuple[str, np.ndarray]]] = {
        "right": ((name, TURNS[0]) for name in WORSE),
        "turned": (("unchanged", turn) for turn in TURNS[1:]),
        "turned and worse": ((name, TURNS[FRONT_BACK]) for name in WORSE),
        "mirrored": (("unchanged", MIRROR @ turn) for turn in TURNS),
    }
    for kind in kinds:
        yield from ((kind, name, matrix) for name, matrix in made[kind])


def compare(scan: MetaTensor, atlas: MetaTensor, truth: int) -> dict[str, object]:
    start = time.process_time()
    found = better_orientation(scan, atlas)
    seconds = time.process_time() - start
    scores = (np.nan, np.nan) if found is None else (found.score, found.header_score)
    turn = -1 if found is None else found.turn
    return {"truth": truth, "found": turn, "score": scores[0], "header_score": scores[1], "seconds": seconds}


def measure(args: argparse.Namespace) -> pd.DataFrame:
    path = args.out / "orientation.tsv"
    args.out.mkdir(parents=True, exist_ok=True)
    lines = pd.read_csv(path, sep="\t", dtype={"case": str}).to_dict("records") if path.is_file() else []
    keys = ("atlas", "case", "kind", "name", "matrix")
    done = {tuple(line[key] for key in keys) for line in lines}
    for atlas_name, case in itertools.product(args.atlases, args.cases):
        atlas_image = sitk.ReadImage(args.atlases[atlas_name], sitk.sitkFloat32)
        volume, affine = from_sitk(registration.shrink(atlas_image, 2.0))  # what comparing begins with: saves time
        atlas = MetaTensor(volume, affine=torch.as_tensor(affine))
        image = sitk.ReadImage(str(args.data / f"malc2012/images/{case}.nii.gz"), sitk.sitkFloat32)
        for kind, name, matrix in experiments(args.kinds):
            key = (atlas_name, case, kind, name, " ".join(f"{x:.0f}" for x in matrix.ravel() + 0.0))
            if key not in done:
                scan = with_wrong_header(WORSE[name](image), matrix)
                lines.append({**dict(zip(keys, key, strict=True)), **compare(scan, atlas, nearest_turn(matrix))})
        pd.DataFrame(lines).to_csv(path, sep="\t", index=False)
        print(atlas_name, case, flush=True)
    return pd.DataFrame(lines)


def shown(lines: pd.DataFrame) -> pd.DataFrame:
    """Rows of a table: how many, how many warned, and how many were told the right orientation."""
    table = lines.groupby(["atlas", "what"], sort=False).agg(
        scans=("found", "size"),
        warned=("found", lambda found: int((found > 0).sum())),
        right=("right", "sum"),
    )
    return table.unstack("atlas").swaplevel(axis=1).sort_index(axis=1, level=0, sort_remaining=False)


def report(lines: pd.DataFrame) -> None:
    for kind, part in lines.groupby("kind", sort=False):
        what = part.name
        if kind in ("turned", "mirrored"):
            what = [str(Orientation(turn, 0, 0)).partition(" (")[0] for turn in part.truth]
        print(f"\n{kind}\n{shown(part.assign(what=what, right=part.found.clip(lower=0) == part.truth)).to_string()}")
    print(f"\nseconds: median {lines.seconds.median():.1f}, longest {lines.seconds.max():.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder with malc2012/images")
    parser.add_argument("--atlases", nargs="+", required=True, metavar="NAME=IMAGE")
    parser.add_argument("--kinds", nargs="+", default=["turned", "right", "turned and worse", "mirrored"])
    parser.add_argument("--cases", nargs="+", help="default: all that the thresholds were not chosen on")
    args = parser.parse_args()
    args.atlases = dict(atlas.split("=", 1) for atlas in args.atlases)
    known = sorted(path.name.removesuffix(".nii.gz") for path in (args.data / "malc2012/images").glob("*.nii.gz"))
    args.cases = args.cases or [case for case in known if case not in CALIBRATION]
    report(measure(args))


if __name__ == "__main__":
    main()
