"""Labels merged on a finer grid: by hand, and by scipy's interpolation of all probabilities at once."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from monai_lcs.boxes import whole_box
from monai_lcs.inferers.merger import BestLabelMerger, FineLabelMerger

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
