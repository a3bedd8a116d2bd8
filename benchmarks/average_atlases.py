"""Makes average atlases of the training scans, and draws from them beside single scans when a generalist is trained.

    python benchmarks/average_atlases.py OUT --data DATA

A network that learned from single scans as atlases does worse with an average brain, which is blurred. Here each
training scan gets two averages of the other seven: six of them are registered to the seventh (deformable, 1 mm); the
mean of their images and the vote of their labels are the atlas. So nobody is in the average that is their atlas.
``validation`` is the average of all eight training scans on scan 1000, which no training sees. OUT gets an image and a
label map of each.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from monai_lcs import Atlas
from monai_lcs.atlas.alignment import AtlasAligner
from monai_lcs.boxes import grow_box, mask_box
from monai_lcs.grids import affine_of
from monai_lcs.pipeline import AtlasPool, Preprocessing
from monai_lcs.pipeline.preprocessing import scale_intensity

HERE = Path(__file__).resolve().parent
REFERENCE = "1000"  # of the average that validates
PER_SCAN = 2
SMOOTH_MM = 1.0  # the votes of six people are few
OFTEN = 3  # single atlases are drawn about as often as averages: there are 7 and 2
REACH = 6  # voxels that smoothing may move a label: 6 deviations


def read(data: Path, scan: str) -> Atlas:
    """A scan of the study and its labels as an atlas."""
    folder = data / "malc2012"
    return Atlas.read(folder / f"images/{scan}.nii.gz", folder / f"labels/{scan}.nii.gz", folder / "labels.csv")


def training_scans() -> list[str]:
    """Names of the study's training scans."""
    split = json.loads((HERE / "splits/malc2012.json").read_text(encoding="utf-8"))
    return [Path(case["image"]).name.partition(".")[0] for case in split["training"]]


def references(scans: Sequence[str]) -> dict[str, list[str]]:
    """For each scan the scans on which its averages are made: the next ones in the list."""
    count = len(scans)
    return {scan: [scans[(i + 1 + k) % count] for k in range(PER_SCAN)] for i, scan in enumerate(scans)}


def aligned(reference: Atlas, atlas: Atlas) -> tuple[np.ndarray, np.ndarray]:
    """The image, in [0, 1], and the label map of an atlas on another one's grid."""
    found = AtlasAligner("deformable").align(reference.image, atlas.image)
    return scale_intensity(found.image)[0].numpy(), found.propagate(atlas.label_map)[0].numpy().astype(np.int16)


def vote(label_maps: Sequence[np.ndarray]) -> np.ndarray:
    """The label that most label maps have near a voxel: votes are smoothed by a Gaussian."""
    best, answer = np.full(label_maps[0].shape, 0.0, np.float32), np.zeros(label_maps[0].shape, np.int16)
    stack = np.stack(label_maps)
    background = gaussian_filter((stack == 0).mean(0).astype(np.float32), SMOOTH_MM)
    for label in np.unique(stack)[1:]:
        box = grow_box(mask_box(torch.from_numpy((stack == label).any(0))), [REACH] * 3, answer.shape)
        share = gaussian_filter((stack[(slice(None), *box)] == label).mean(0).astype(np.float32), SMOOTH_MM)
        wins = (share > best[box]) & (share > background[box])
        best[box][wins], answer[box][wins] = share[wins], label
    return answer


def write_average(path: Path, reference: Atlas, members: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write the mean image and the voted labels of atlases on a reference's grid as path_T1w and path_dseg."""
    affine = affine_of(reference.image)
    mean = np.mean([image for image, _ in members], axis=0).astype(np.float32)
    nib.save(nib.Nifti1Image(vote([labels for _, labels in members]), affine), f"{path}_dseg.nii.gz")
    nib.save(nib.Nifti1Image(mean, affine), f"{path}_T1w.nii.gz")


def pool(preprocessing: Preprocessing, folder: str, data: str) -> "PoolForEach":
    """What the bundle's training draws from: for each training scan the other ones, and its own averages."""
    scans = training_scans()
    single = {scan: read(Path(data), scan) for scan in scans}
    table = Path(data) / "malc2012/labels.csv"
    averages = {
        scan: [
            Atlas.read(f"{folder}/{scan}_{k}_T1w.nii.gz", f"{folder}/{scan}_{k}_dseg.nii.gz", table)
            for k in range(PER_SCAN)
        ]
        for scan in scans
    }
    others = {scan: [single[other] for other in scans if other != scan] for scan in scans}
    return PoolForEach({scan: AtlasPool(preprocessing, [*others[scan], *averages[scan]]) for scan in scans})


class PoolForEach:
    """A pool of atlases for each case by name, the averages at its end."""

    def __init__(self, pools: Mapping[str, AtlasPool]) -> None:
        self.pools = dict(pools)

    def load(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """See :meth:`AtlasPool.load`."""
        return next(iter(self.pools.values())).load(data)

    def finish(self, loaded: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """See :meth:`AtlasPool.finish`; averages are in the list several times, since there are fewer of them."""
        name = Path(str(loaded["source"].meta["filename_or_obj"])).name.partition(".")[0]
        case = self.pools[name].finish(loaded)
        if len(case["atlases"]) != len(self.pools[name].atlases):
            raise ValueError(f"An atlas of {name} is missing.")
        case["atlases"] += case["atlases"][-PER_SCAN:] * (OFTEN - 1)
        return case


def main() -> None:
    """Write all averages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the averages")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds malc2012/")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    scans = training_scans()
    for_whom = defaultdict(list)
    for scan, chosen in references(scans).items():
        for k, reference in enumerate(chosen):
            for_whom[reference].append((scan, args.out / f"{scan}_{k}"))
    atlases = {scan: read(args.data, scan) for scan in [REFERENCE, *scans]}
    for name, reference in tqdm(atlases.items(), "Averages", unit="reference"):
        targets = for_whom[name] or [(REFERENCE, args.out / "validation")]
        if all(Path(f"{path}_T1w.nii.gz").is_file() for _, path in targets):
            continue
        members = {s: aligned(reference, atlases[s]) for s in tqdm(scans, name, leave=False) if s != name}
        for scan, path in targets:
            write_average(path, reference, [member for s, member in members.items() if s != scan])


if __name__ == "__main__":
    main()
