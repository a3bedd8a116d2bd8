"""Makes average atlases of a study's training scans, which a network may then have as its atlas in training.

    python benchmarks/average_atlases.py OUT --data DATA/malc2012

Average brains are blurred, and their labels are those that most people have: a network that saw sharp scans alone as
its atlas has never met such a one. Four of the training scans are each the space of an average: five others at random
are aligned to it, the mean of their images and the vote of their labels is bent at random, so that it is no longer that
scan's anatomy. OUT gets images/ and labels/ of the averages and copies of the last two training scans.
"""

import argparse
import json
import random
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from tqdm import tqdm

from monai_lcs import Atlas
from monai_lcs.atlas.alignment import AtlasAligner
from monai_lcs.atlas.voters import LabelMapVoter, count_votes
from monai_lcs.transforms import RandDeformd

SPACES, AVERAGED, SHARP = 4, 5, 2
SPLIT = Path(__file__).resolve().parent / "splits/malc2012.json"
BENDS = {"rotate": 0.1, "scale": 0.08, "bend_mm": 8.0, "mode": ["bilinear", "nearest"]}


def average(space: Atlas, others: list[Atlas], seed: int) -> Atlas:
    """The mean image and the voted labels of some atlases in the space of another one, bent at random."""
    images, voters = [], []
    for other in others:
        alignment = AtlasAligner("deformable").align(space.image, other.image)
        image = np.asarray(alignment.image, np.float32)
        images.append(image / image.mean())
        voters.append(LabelMapVoter(alignment.propagate(other.label_map)))
    mean = torch.from_numpy(np.mean(images, axis=0))
    votes = count_votes(voters, mean.shape[1:]).ids[:1].int()
    affine = space.image.affine
    sample = {"image": MetaTensor(mean / mean.max() * 1000, affine=affine), "label": MetaTensor(votes, affine=affine)}
    bend = RandDeformd(["image", "label"], prob=1.0, **BENDS).set_random_state(seed)
    bent = bend(sample)
    return Atlas(bent["image"], bent["label"], space.table)


def average_atlases(data: Path, out: Path) -> Path:
    """The folder of the averages of malc2012, made where it is not there yet."""
    cases = [Path(case["image"]).name for case in json.loads(SPLIT.read_text(encoding="utf-8"))["training"]]
    for kind in ("images", "labels"):
        (out / kind).mkdir(parents=True, exist_ok=True)
        for case in cases[-SHARP:]:
            shutil.copy(data / kind / case, out / kind / case)

    def read(case: str) -> Atlas:
        return Atlas.read(data / "images" / case, data / "labels" / case, data / "labels.csv")

    draw = random.Random(0)
    for seed, case in enumerate(tqdm(cases[:SPACES], "Averages", unit="atlas")):
        others = draw.sample([other for other in cases if other != case], AVERAGED)
        if not (out / "labels" / f"average_{case}").is_file():
            made = average(read(case), [read(other) for other in others], seed)
            for kind, volume, dtype in (("images", made.image, np.float32), ("labels", made.label_map, np.int16)):
                voxels = volume[0].numpy().astype(dtype)
                nib.save(nib.Nifti1Image(voxels, volume.affine.numpy()), out / kind / f"average_{case}")
    return out


def main() -> None:
    """Make them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the averages")
    parser.add_argument("--data", type=Path, required=True, help="the folder malc2012")
    args = parser.parse_args()
    print(average_atlases(args.data, args.out))


if __name__ == "__main__":
    main()
