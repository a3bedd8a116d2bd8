"""RandDeformd: one random deformation for all volumes of a sample."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import affine_transform

from monai_lcs.transforms import RandDeformd

MM = torch.tensor([2.0, 1.0, 3.0])
SHAPE = (24, 30, 20)


def coordinates() -> MetaTensor:
    """The position of each voxel in mm, ``(3, *SHAPE)``."""
    axes = [torch.arange(n) * mm for n, mm in zip(SHAPE, MM.tolist(), strict=True)]
    where = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return MetaTensor(where, affine=torch.diag(torch.cat([MM, torch.ones(1)])))


def inside(x: torch.Tensor, margin: int) -> torch.Tensor:
    """Away from the border, where values come from outside."""
    cut = slice(margin, -margin)
    return x[:, cut, cut, cut]


def test_nothing_to_do_changes_no_voxel() -> None:
    """A deformation by zero is the identity, up to rounding."""
    x = coordinates()
    done = RandDeformd("x", prob=1, rotate=0, scale=0, bend_mm=0)({"x": x})["x"]
    assert torch.allclose(inside(done, 1), inside(x, 1), atol=1e-3)
    assert RandDeformd("x", prob=0)({"x": x})["x"] is x


def test_displacements_are_bounded_in_mm_and_reach_half_the_bound() -> None:
    """Whatever the voxels' size, no point moves by more than ``bend_mm`` along an axis."""
    x = coordinates()
    largest = []
    for seed in range(8):
        deform = RandDeformd("x", prob=1, rotate=0, scale=0, bend_mm=4).set_random_state(seed)
        largest.append(float((inside(deform({"x": x})["x"] - x, 4)).abs().max()))
    assert max(largest) <= 4 + 1e-3
    assert max(largest) > 1


def test_rotation_and_scaling_are_those_of_scipy() -> None:
    """Voxels that are not cubes: the rotation is one in mm."""
    rng = np.random.default_rng(0)
    image = torch.nn.functional.avg_pool3d(torch.as_tensor(rng.random((1, 1, *SHAPE))), 5, 1, 2)[0].float()
    deform = RandDeformd("x", prob=1, rotate=0.3, scale=0.2, bend_mm=0).set_random_state(3)
    done = deform({"x": MetaTensor(image, affine=coordinates().affine)})["x"]
    voxels = np.diag(1 / MM.numpy()) @ deform.matrix @ np.diag(MM.numpy())
    center = (np.array(SHAPE) - 1) / 2
    expected = affine_transform(image[0].numpy(), voxels, center - voxels @ center, order=1)
    assert np.abs(deform.matrix - np.eye(3)).max() > 0.05
    assert np.allclose(inside(done, 5)[0], expected[5:-5, 5:-5, 5:-5], atol=1e-4)


def test_image_and_label_map_move_together() -> None:
    """A label map moves as its mask does as an image; ids, types and metadata stay."""
    label = torch.zeros(1, *SHAPE, dtype=torch.int32)
    label[:, 6:18, 8:22, 5:15] = 4099
    meta = coordinates()
    sample = {"image": MetaTensor(label / 4099, affine=meta.affine), "label": MetaTensor(label, affine=meta.affine)}
    deform = RandDeformd(["image", "label"], prob=1, mode=["bilinear", "nearest"]).set_random_state(1)
    done = deform(sample)
    assert done["label"].dtype == torch.int32
    assert done["label"].unique().tolist() == [0, 4099]
    assert torch.equal(done["label"].affine, meta.affine)
    differ = (done["image"] > 0.5) != (done["label"] > 0)
    assert differ.float().mean() < 0.02  # rounding of the border only
    assert ((done["label"] > 0) != (label > 0)).float().mean() > 0.02


def test_draws_are_reproducible() -> None:
    """The seed decides the deformation; another seed, another deformation."""
    deform = RandDeformd("x", prob=1)
    results = [deform.set_random_state(seed)({"x": coordinates()})["x"] for seed in (7, 7, 8)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_shapes_must_agree() -> None:
    """Volumes of two grids cannot be deformed alike."""
    with pytest.raises(ValueError, match="share one shape"):
        RandDeformd(["a", "b"], prob=1)({"a": torch.zeros(1, 4, 4, 4), "b": torch.zeros(1, 4, 4, 5)})
