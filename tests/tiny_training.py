"""A training that takes seconds, for the tests that interrupt it: a study of four blobs, and what is left of a run."""

import numpy as np
import torch
from helpers import save_nifti

import monai_lcs as lcs
from monai_lcs.pipeline.weights_file import read_state, read_torch

MM = 4.0
AFFINE = np.diag([MM, MM, MM, 1.0])
SETTINGS = {"align": "none", "spacing": [MM] * 3, "channels": [2, 4], "margin_mm": 8.0, "prior_logit": 0.0}
OPTIONS = {
    "epochs": 4,
    "val_interval": 1,
    "labels_per_image": 2,
    "learning_rate": 0.01,
    "union_prob": 0.3,
    "dropout": 0.2,
    "min_overlap": 0.0,
    "device": "cpu",
}


def make_study(folder, cases=4, size=12):
    """Noise with two labeled cubes, in other places for each case."""
    rng = np.random.default_rng(0)
    for name in ["atlas", *(f"sub-{i}" for i in range(cases))]:
        labels = np.zeros((size,) * 3, np.uint8)
        for label, first in ((3, 1), (8, 6)):
            corner = first + (0 if name == "atlas" else rng.integers(0, 2, 3))
            labels[tuple(slice(start, start + 4) for start in np.broadcast_to(corner, 3))] = label
        image = (10 + 10.0 * labels + rng.normal(0, 1, labels.shape)).astype(np.float32)
        place = folder if name == "atlas" else folder / "study"
        save_nifti(image, place / f"images/{name}.nii.gz", AFFINE)
        save_nifti(labels, place / f"labels/{name}.nii.gz", AFFINE)
    return folder


def train(folder, out, handlers=(), **more):
    """Train on the study in a folder."""
    atlas = lcs.Atlas.read(folder / "images/atlas.nii.gz", folder / "labels/atlas.nii.gz")
    settings = lcs.Settings.from_dict({**SETTINGS, **more.pop("settings", {})})
    return lcs.train(folder / "study", atlas, out, settings=settings, handlers=handlers, **{**OPTIONS, **more})


def epochs_saved(out):
    return sorted(int(path.stem.rpartition("_")[2]) for path in out.glob("resume_checkpoint_*.pt"))


def outcome(out):
    """All tensors that a training leaves: the best weights and the last checkpoint, by name."""
    newest = read_torch(out / f"resume_checkpoint_{epochs_saved(out)[-1]}.pt")
    return dict(_tensors({"best": read_state(out / "model.pt"), "last": newest}))


def _tensors(value, name=""):
    if isinstance(value, dict):
        for key, member in value.items():
            yield from _tensors(member, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        yield from _tensors(dict(enumerate(value)), name)
    else:
        yield name, value


def same(one, other):
    """Whether two outcomes are the same bit for bit."""
    return one.keys() == other.keys() and all(
        torch.equal(x, other[name]) if isinstance(x, torch.Tensor) else x == other[name] for name, x in one.items()
    )
