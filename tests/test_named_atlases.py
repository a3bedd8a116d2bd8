"""Atlases by name: what pip packages ship, read with their tables on the average brain's grid."""

import importlib.util

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import find_objects

from monai_lcs import named_atlas
from monai_lcs.atlas.named import NAMED_ATLASES, packaged
from monai_lcs.cli import main
from monai_lcs.labels import present_labels

SHIPPED = [name for name, atlas in NAMED_ATLASES.items() if importlib.util.find_spec(atlas.package)]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_label_has_its_name_and_lies_in_the_brain(name):
    """The count is the one that is listed; nearly all labeled voxels are where the average brain is."""
    atlas = named_atlas(name)
    assert len(atlas.ids) == NAMED_ATLASES[name].count
    assert 0 not in atlas.table.ids
    labeled = atlas.label_map.as_tensor() > 0
    assert float((atlas.image.as_tensor() > 0)[labeled].float().mean()) > 0.9


@pytest.mark.parametrize("name", SHIPPED)
def test_labels_stay_where_the_package_has_them(name):
    """Voxel by voxel, through both affines with nibabel: the id at a place is the one of the nearest voxel there."""
    atlas = named_atlas(name)
    source = nib.load(packaged(NAMED_ATLASES[name].package, NAMED_ATLASES[name].labels))
    ids = np.asanyarray(source.dataobj)
    rng = np.random.default_rng(0)
    voxels = rng.integers(20, np.array(atlas.label_map.shape[1:]) - 20, (4000, 3))
    world = nib.affines.apply_affine(atlas.label_map.affine.numpy(), voxels)
    there = nib.affines.apply_affine(np.linalg.inv(source.affine), world)
    between = np.abs(there - np.floor(there) - 0.5).min(axis=1) < 0.01  # halfway: either neighbor is right
    inside = ((there > 0) & (there < np.array(ids.shape) - 1)).all(axis=1) & ~between
    expected = ids[tuple(np.rint(there[inside]).astype(int).T)]
    found = atlas.label_map[0].numpy()[tuple(voxels[inside].T)]
    assert inside.sum() > 50
    assert (found == expected).all()


def test_left_is_left():
    """Names that say a side lie on that side of the average brain."""
    atlas = named_atlas("desikan-killiany")
    boxes = find_objects(atlas.label_map[0].numpy())
    for label in atlas.table:
        if label.hemisphere:
            columns = boxes[label.id - 1][0]
            x = float(atlas.label_map.affine[0, 3]) + (columns.start + columns.stop - 1) / 2
            assert (x < 0) == (label.hemisphere == "L"), label.name


def test_unknown_name():
    """The error names what there is."""
    with pytest.raises(ValueError, match="no atlas named 'brodmann', only: desikan-killiany, neuromorphometrics"):
        named_atlas("brodmann")


def test_the_command_lists_them(capsys):
    """With labels, package and terms."""
    assert main(["atlases"]) == 0
    printed = capsys.readouterr().out
    for name, atlas in NAMED_ATLASES.items():
        assert f"{name}: {atlas.count} labels" in printed
        assert atlas.terms in printed


def test_a_missing_package_is_named():
    """What to install is said."""
    with pytest.raises(ImportError, match="needs the package `no_such_package`: pip install"):
        packaged("no_such_package", "x.nii.gz")


def test_present_labels_have_names():
    """No voxel of the default atlas is left out."""
    atlas = named_atlas("desikan-killiany")
    assert set(present_labels(atlas.label_map)) == set(atlas.table.ids)
