"""Boxes: hand-made cases, and what every answer must fulfill."""

import numpy as np
import pytest
import torch

from monai_lcs.boxes import (
    batch_rounded_sizes,
    batch_sizes,
    crop_pyramid,
    grow_box,
    label_boxes,
    mask_box,
    pad,
    split_box,
)


def test_boxes_by_hand():
    mask = torch.zeros(6, 7)
    mask[2, 3] = mask[4, 5] = 1
    assert mask_box(mask) == (slice(2, 5), slice(3, 6))
    assert mask_box(torch.zeros(3, 3)) is None
    assert mask_box(torch.tensor([0, 1, 1, 0])) == (slice(1, 3),)
    assert grow_box(mask_box(mask), (1, 9), mask.shape) == (slice(1, 6), slice(0, 7))


def test_huge_ids():
    assert label_boxes(torch.tensor([[0, 60_000_000], [7, 0]])) == {
        7: (slice(1, 2), slice(0, 1)),
        60_000_000: (slice(0, 1), slice(1, 2)),
    }


@pytest.mark.parametrize("reach", [0, 1, 2, 3])
def test_crops_hold_what_the_level_above_takes(reach):
    rng = np.random.default_rng(reach)
    for _ in range(200):
        size = 16 * int(rng.integers(1, 7))
        length = int(rng.integers(1, size + 1))
        boxes = [(slice(int(a), int(a) + length),) for a in rng.integers(0, size - length + 1, 3)]
        outer, inner = crop_pyramid(boxes, (size,), 4, reach)
        assert inner[0] == boxes
        for level in range(5):
            here = size >> level
            assert len({axis.stop - axis.start for (axis,) in inner[level]}) == 1
            assert len({axis.stop - axis.start for (axis,) in outer[level]}) == 1
            for (give,), (take,) in zip(inner[level], outer[level], strict=True):
                assert 0 <= take.start <= max(give.start - min(reach, 2), 0)
                assert min(give.stop + min(reach, 2), here) <= take.stop <= here
            for (take,), (below,) in zip(outer[level], inner[level + 1] if level < 4 else [], strict=False):
                assert 2 * below.start <= max(take.start - max(reach - 2, 0), 0)
                assert 2 * below.stop >= min(take.stop + max(reach - 2, 0), here)


def test_batches_hold_each_box_once():
    rng = np.random.default_rng(0)
    sizes = [tuple(size) for size in rng.integers(1, 40, (200, 3)).tolist()]
    batches = batch_sizes(sizes, room=50_000)
    assert sorted(i for members, _ in batches for i in members) == list(range(200))
    for members, size in batches:
        assert size == tuple(np.max([sizes[i] for i in members], axis=0))
        assert len(members) == 1 or len(members) * np.prod(size) <= 50_000
    assert len(batches) < 100


def test_split_boxes_hold_the_mask():
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = torch.from_numpy(rng.random((60, 50, 7)) > 0.999)
        if not mask.any():
            continue
        boxes = split_box(mask, (2, 2, 2))
        covered = torch.zeros_like(mask)
        for box in boxes:
            assert mask_box(mask[box]) == tuple(slice(0, axis.stop - axis.start) for axis in box)  # tight
            covered[box] = True
        assert covered[mask].all()
    ribbon = torch.zeros(64, 64, dtype=torch.bool)
    ribbon[range(64), range(64)] = True  # a diagonal fills little of its box
    assert len(split_box(ribbon, (1, 1), around=0)) > 2
    assert len(split_box(torch.ones(64, 64), (1, 1))) == 1
    with pytest.raises(ValueError, match="`mask` must not be empty"):
        split_box(torch.zeros(3, 3), (1, 1))


def test_rounded_batches_depend_on_each_box_alone():
    rng = np.random.default_rng(0)
    sizes = [tuple(size) for size in rng.integers(1, 40, (100, 2)).tolist()]
    batches = batch_rounded_sizes(sizes, limits=(36, 40), room=5000, multiple=8)
    found = {i: size for members, size in batches for i in members}
    assert sorted(i for members, _ in batches for i in members) == list(range(100))
    for i, size in found.items():
        assert size == tuple(min(8 * int(np.ceil(n / 8)), limit) for n, limit in zip(sizes[i], (36, 40), strict=True))
        assert batch_rounded_sizes([sizes[i]], (36, 40), 5000, 8) == [([0], size)]
    assert all(len(members) == 1 or len(members) * np.prod(size) <= 5000 for members, size in batches)


def test_padding_is_the_inverse_of_cropping():
    part, box = torch.rand(2, 3, 4), (slice(1, 4), slice(0, 4))
    whole = pad(part, box, (6, 9), value=-20)
    assert torch.equal(whole[:, 1:4, :4], part)
    assert (whole == -20).sum() == 2 * (6 * 9 - 3 * 4)
