"""Labels merged on a finer grid, or on a scan's: by hand, and by scipy's interpolation of all probabilities at once."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine, from_matvec
from scipy import ndimage
from scipy.spatial.transform import Rotation

from monai_lcs.boxes import whole_box
from monai_lcs.inferers import merger as merger_module
from monai_lcs.inferers.merger import BestLabelMerger, FineLabelMerger, ScanLabelMerger

IDS = [3, 17, 300]


def random_logits(shape, seed=0):
    return {label: 4 * torch.randn(shape, generator=torch.Generator().manual_seed(seed + label)) for label in IDS}


def merged(logits, factor, threshold=0.5, order=IDS):
    shape = next(iter(logits.values())).shape
    merger = FineLabelMerger(IDS, shape, factor, threshold)
    for label in order:
        merger.aggregate(label, logits[label], whole_box(shape))
    return merger.finalize()


def test_no_gap_between_two_labels_that_touch():
    """Halfway between two certain labels, neither has a probability of 0.5, but there is no background near."""
    left, right = torch.tensor([[8.0, 8.0, -20.0, -20.0]]), torch.tensor([[-20.0, -20.0, 8.0, 8.0]])
    merger = FineLabelMerger([3, 17], (1, 4), factor=2)
    for label, logits in ((17, right), (3, left)):
        merger.aggregate(label, logits, whole_box(logits.shape))
    assert merger.finalize().tolist() == [[3, 3, 3, 3, 17, 17, 17]]


def test_a_thin_label_keeps_its_width():
    """One voxel in the background: its outline is halfway to the next, though their logits are far from 0."""
    merger = FineLabelMerger([3], (1, 5), factor=4)
    merger.aggregate(3, torch.tensor([[-50.0, -50.0, 3.0, -50.0, -50.0]]), (slice(0, 1), slice(0, 5)))
    assert merger.finalize()[0].nonzero().flatten().tolist() == [7, 8, 9]


@pytest.mark.parametrize(("shape", "factor"), [((5, 6), 3), ((4, 3, 5), 2)])
@pytest.mark.parametrize("threshold", [0.5, 0.25])
def test_as_scipy_interpolates_all_probabilities(shape, factor, threshold):
    logits = random_logits(shape)
    probabilities = np.stack([1 / (1 + np.exp(-logits[label].numpy())) for label in IDS])
    background = 2 * threshold - probabilities.max(0)
    where = np.indices([(size - 1) * factor + 1 for size in shape]) / factor
    fine = [ndimage.map_coordinates(x, where, order=1) for x in (background, *probabilities)]
    expected = np.array([0, *IDS])[np.argmax(fine, axis=0)]
    found = merged(logits, factor, threshold)
    assert np.mean(found.numpy() == expected) > 0.999  # but for rounding, at ties
    assert torch.equal(found, merged(logits, factor, threshold, order=IDS[::-1]))


def test_the_voxels_of_the_coarse_grid_are_merged_as_there():
    logits = random_logits((6, 5, 4))
    coarse = BestLabelMerger(IDS, (6, 5, 4))
    for label, x in logits.items():
        coarse.aggregate(label, x, whole_box(x.shape))
    assert torch.equal(merged(logits, 2)[::2, ::2, ::2], coarse.finalize())


def test_where_no_label_is_decoded_is_background():
    merger = FineLabelMerger(IDS, (4, 4), 2, threshold=0.0)
    merger.aggregate(17, torch.full((2, 2), 9.0), (slice(0, 2), slice(0, 2)))
    found = merger.finalize()
    assert (found[:3, :3] == 17).all()
    assert int((found != 0).sum()) == 9


# ---- on the grid of a scan ------------------------------------------------------------------------------------------


def on_scan(logits, scan_shape, to_logits, threshold=0.5, order=IDS):
    shape = next(iter(logits.values())).shape
    merger = ScanLabelMerger(sorted(logits), shape, scan_shape, to_logits, threshold)
    for label in order:
        merger.aggregate(label, logits[label], whole_box(shape))
    return merger.finalize()


def oblique(spacing, center, shape):
    """From the voxels of a turned grid, whose middle lies at ``center``, to those of the logits."""
    matrix = Rotation.from_euler("xyz", [20, -20, 20], degrees=True).as_matrix() * spacing
    return from_matvec(matrix, np.array(center) - matrix @ ((np.array(shape) - 1) / 2))


def test_the_scan_on_the_grid_of_the_logits_is_merged_as_there():
    logits = random_logits((6, 5, 4))
    coarse = BestLabelMerger(IDS, (6, 5, 4))
    for label, x in logits.items():
        coarse.aggregate(label, x, whole_box(x.shape))
    assert torch.equal(on_scan(logits, (6, 5, 4), np.eye(4)), coarse.finalize())


def test_a_scan_twice_as_fine_is_merged_as_on_the_finer_grid():
    logits = random_logits((6, 5, 4))
    assert torch.equal(on_scan(logits, (11, 9, 7), np.diag([0.5, 0.5, 0.5, 1])), merged(logits, 2))


@pytest.mark.parametrize("threshold", [0.5, 0.25])
@pytest.mark.parametrize("slab_voxels", [50, 1 << 20])
def test_an_oblique_scan_as_scipy_interpolates_all_probabilities(threshold, slab_voxels, monkeypatch):
    monkeypatch.setattr(merger_module, "SLAB_VOXELS", slab_voxels)
    logits, shape = random_logits((9, 8, 7)), (12, 11, 5)
    to_logits = oblique([0.7, 0.7, 2.1], (4, 3.5, 3), shape)
    where = apply_affine(to_logits, np.indices(shape).reshape(3, -1).T).T.reshape(3, *shape)
    probabilities = np.stack([1 / (1 + np.exp(-logits[label].numpy())) for label in IDS])
    padded = np.pad(probabilities, [(0, 0), *[(20, 20)] * 3])
    scores = [ndimage.map_coordinates(x, where + 20, order=1) for x in (2 * threshold - padded.max(0), *padded)]
    expected = np.array([0, *IDS])[np.argmax(scores, axis=0)]
    found = on_scan(logits, shape, to_logits, threshold)
    assert np.mean(found.numpy() == expected) > 0.995  # but for rounding, at ties
    assert len(np.unique(expected)) == 4
    assert torch.equal(found, on_scan(logits, shape, to_logits, threshold, order=IDS[::-1]))


def test_boxes_find_what_whole_volumes_do():
    """A label decoded in a box has a probability of 0 elsewhere: the parts of a scan that the box reaches suffice."""
    box, shape = (slice(2, 6), slice(1, 5), slice(3, 6)), (10, 9, 4)
    whole = {label: torch.full((9, 8, 7), -torch.inf) for label in IDS}
    boxed = ScanLabelMerger(IDS, (9, 8, 7), shape, oblique([0.7, 0.7, 2.1], (4, 3.5, 3), shape))
    for label, logits in random_logits((4, 4, 3)).items():
        whole[label][box] = logits
        boxed.aggregate(label, logits, box)
    assert torch.equal(boxed.finalize(), on_scan(whole, shape, boxed.to_logits))
    assert (boxed.finalize() > 0).any()


def test_a_thin_sheet_survives_slices_twice_as_thick():
    """A sheet of one voxel across slices: it keeps its volume, though no voxel of the scan lies on its middle."""
    logits = torch.full((40, 40, 40), -30.0)
    logits[20] = 3.0  # the network's voxels are 1.5 mm
    shape = (30, 30, 15)
    merged_there = on_scan({3: logits}, shape, oblique(np.array([1, 1, 3]) / 1.5, (20, 20, 20), shape), order=[3])
    assert merged_there.any(dim=0).float().mean() > 0.95  # it has no hole
    where = apply_affine(oblique(np.array([1, 1, 3]) / 1.5, (20, 20, 20), shape), np.argwhere(merged_there.numpy()))
    assert np.abs(where[:, 0] - 20).max() <= 0.5  # and is as thick as it was, 1.5 mm


def test_all_48_orientations_of_a_scan():
    logits, shape = random_logits((9, 8, 7)), (12, 11, 5)
    to_logits = oblique([0.7, 0.7, 2.1], (4, 3.5, 3), shape)
    straight = nib.Nifti1Image(np.zeros(shape, np.int16), to_logits)
    expected = nib.Nifti1Image(on_scan(logits, shape, to_logits).numpy(), to_logits)
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            turn = np.array(list(zip(order, flips, strict=True)))
            turned = straight.as_reoriented(turn)
            found = on_scan(logits, turned.shape, turned.affine)
            np.testing.assert_array_equal(found, np.asarray(expected.as_reoriented(turn).dataobj))


def test_a_scan_that_the_logits_do_not_meet():
    found = on_scan(random_logits((4, 4, 4)), (3, 3, 3), from_matvec(np.eye(3), [50, 0, 0]))
    assert found.shape == (3, 3, 3)
    assert not found.any()
