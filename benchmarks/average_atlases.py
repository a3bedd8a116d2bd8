"""Makes average atlases of a study's training scans, which a network may then have as its atlas in training.

    python benchmarks/average_atlases.py OUT --data DATA/malc2012

Average brains are blurred, and their labels are those that most people have. A network trained with sharp atlases alone
has never seen one. Three training scans each give a space. Five other scans, drawn at random, are aligned to it. The
mean of their images and the vote of their labels are bent at random, by up to 8 mm. OUT gets images/ and labels/ of the
averages and of the last training scan as it is, and datalist.json.
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

SPACES, AVERAGED, SHARP = 3, 5, 1
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
    """The datalist of the averages of malc2012, and of the scans beside them; what is there is not made again."""
    cases = [Path(case["image"]).name for case in json.loads(SPLIT.read_text(encoding="utf-8"))["training"]]
    datalist = out / "datalist.json"
    if datalist.is_file():
        return datalist

    def read(case: str) -> Atlas:
        return Atlas.read(data / "images" / case, data / "labels" / case, data / "labels.csv")

    for kind in ("images", "labels"):
        (out / kind).mkdir(parents=True, exist_ok=True)
        for case in cases[-SHARP:]:
            shutil.copy(data / kind / case, out / kind / case)
    draw = random.Random(0)
    for seed, case in enumerate(tqdm(cases[:SPACES], "Averages", unit="atlas")):
        others = draw.sample([other for other in cases if other != case], AVERAGED)
        made = average(read(case), [read(other) for other in others], seed)
        for kind, volume, dtype in (("images", made.image, np.float32), ("labels", made.label_map, np.int16)):
            image = nib.Nifti1Image(volume[0].numpy().astype(dtype), volume.affine.numpy())
            nib.save(image, out / kind / f"average_{case}")
    names = sorted(path.name for path in (out / "images").iterdir())
    pool = [{"image": f"images/{name}", "label": f"labels/{name}"} for name in names]
    datalist.write_text(json.dumps({"training": pool, "validation": []}, indent=1))  # last: all of them are there
    return datalist


def main() -> None:
    """Make them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the atlases")
    parser.add_argument("--data", type=Path, required=True, help="the folder malc2012")
    args = parser.parse_args()
    print(average_atlases(args.data, args.out))


if __name__ == "__main__":
    main()
