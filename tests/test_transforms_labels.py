from __future__ import annotations

import copy
import pickle
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, MetaTensor, list_data_collate
from monai.transforms import Compose, EnsureTyped, Flipd, Lambdad, MapLabelValue, RandFlipd
from monai.utils import set_determinism

from monai_lcs.labels.groups import as_groups, label_mask, present_labels
from monai_lcs.transforms import atlas_pool as pool_module
from monai_lcs.transforms import labels as labels_module
from monai_lcs.transforms import random_labels as random_module
from monai_lcs.transforms.atlas_pool import RandPickAtlas, RandPickAtlasd
from monai_lcs.transforms.labels import MapLabels, MapLabelsd, SelectLabels, SelectLabelsd
from monai_lcs.transforms.random_labels import RandSelectLabels, RandSelectLabelsd

SHAPE = (1, 6, 5, 4)


def random_map(ids, seed=0, shape=SHAPE):
    """A label map that holds every id and background."""
    values = np.array([0, *ids])
    flat = np.concatenate([values, np.random.RandomState(seed).choice(values, np.prod(shape) - len(values))])
    return np.random.RandomState(seed).permutation(flat).reshape(shape)


def reference_mask(label_map, group):
    """One loop per voxel, nothing shared with the code under test."""
    return np.array([int(v) in set(np.atleast_1d(group).tolist()) for v in np.ravel(label_map)]).reshape(
        label_map.shape
    )


@pytest.fixture
def sample():
    return {
        "label": torch.tensor(random_map([1, 2, 3, 5])),
        "atlas_label": torch.tensor(random_map([1, 2, 3, 4, 5], 1)),
    }


# groups, masks and presence


def test_as_groups_understands_all_integers_and_leaves_the_list_alone():
    given = [3, [1, 2], np.int16(7), np.array([8, 9]), torch.tensor(4), torch.tensor([5, 6])]
    before = copy.deepcopy(given[:2])
    groups = as_groups(given)
    assert groups == ((3,), (1, 2), (7,), (8, 9), (4,), (5, 6))
    assert all(type(i) is int for group in groups for i in group)
    assert given[:2] == before
    assert as_groups(np.array([3, 1])) == ((3,), (1,))
    given[1].append(99)
    assert groups[1] == (1, 2)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], r"must hold at least one label, got none"),
        ([1, []], r"unique integer ids > 0, got \[\]"),
        ([0, 3], r"unique integer ids > 0, got 0"),
        ([[1, -2]], r"unique integer ids > 0, got \[1, -2\]"),
        ([[4, 4]], r"unique integer ids > 0, got \[4, 4\]"),
        ([1.0], r"unique integer ids > 0, got 1\.0"),
        ([True], r"unique integer ids > 0, got True"),
        (["17"], r"unique integer ids > 0, got '17'"),
        ([2**31], r"unique integer ids > 0, got 2147483648"),
        ("17", r"must be a list of label ids .* got '17'"),
        (17, r"must be a list of label ids .* got 17"),
        ({1: 2}, r"must be a list of label ids .* got \{1: 2\}"),
    ],
)
def test_as_groups_rejects(groups, message):
    with pytest.raises(ValueError, match=message):
        as_groups(groups)


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "float32", "float64"]
)
@pytest.mark.parametrize("group", [3, (3,), (1, 44), [300], 44])
def test_label_mask_equals_loop_over_voxels(dtype, group):
    label_map = random_map([1, 3, 44]).astype(dtype)  # 300 in 8 bits is 44: must not be found there
    for given in (label_map, torch.from_numpy(label_map)):
        mask = label_mask(given, group)
        assert mask.dtype == torch.bool
        assert np.array_equal(mask.numpy(), reference_mask(label_map, group))


def test_label_mask_of_a_turned_map_warns_of_nothing():
    """PyTorch complains of strides, once in a process unless told otherwise."""
    label_map = torch.arange(60).reshape(3, 4, 5).permute(2, 0, 1)
    torch.set_warn_always(True)
    try:
        assert torch.equal(label_mask(label_map, range(1, 40)), (label_map > 0) & (label_map < 40))
    finally:
        torch.set_warn_always(False)


def test_label_mask_of_bool_map():
    assert label_mask(torch.tensor([True, False]), (1, 2)).tolist() == [True, False]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64", "float32", "float16"])
def test_present_labels_equals_numpy_unique(dtype):
    label_map = random_map([7, 3, 100]).astype(dtype)
    assert present_labels(label_map) == (3, 7, 100)
    assert present_labels(MetaTensor(label_map.astype("float32"))) == (3, 7, 100)


def test_present_labels_with_huge_ids_of_the_allen_atlas():
    label_map = random_map([7, 614454277]).astype("uint32")
    assert present_labels(label_map) == (7, 614454277)
    assert MapLabels({614454277: 2})(label_map).max() == 7
    assert np.array_equal(MapLabels({614454277: 2})(label_map) == 2, label_map == 614454277)


@pytest.mark.parametrize("bad", [2.5, -1.0, np.nan, np.inf])
def test_values_that_are_no_labels_are_named_with_their_file(bad):
    label_map = MetaTensor(torch.tensor([[0.0, 1.0, bad]]), meta={"filename_or_obj": "scan_dseg.nii.gz"})
    advice = "set what is no label to 0" if bad == -1 else "resample .* nearest"
    message = rf"The label map scan_dseg.nii.gz must hold integers >= 0, got {bad}; {advice}"
    with pytest.raises(ValueError, match=message):
        present_labels(label_map)
    with pytest.raises(ValueError, match=message):
        RandSelectLabels(1)(label_map, torch.tensor([[1]]))
    with pytest.raises(ValueError, match=message):
        MapLabels({1: 2})(label_map)


def test_present_labels_of_nothing():
    assert present_labels(torch.zeros(SHAPE)) == ()
    assert present_labels(torch.zeros(0)) == ()


# SelectLabels


@pytest.mark.parametrize("container", [np.asarray, torch.from_numpy, MetaTensor])
def test_select_labels_equals_reference(container):
    label_map, groups = random_map([1, 2, 3, 9]), [9, (1, 3), 2, 77]
    masks = SelectLabels(groups)(container(label_map))
    assert masks.shape == (4, *SHAPE[1:])
    assert masks.dtype == torch.float32
    for mask, group in zip(masks, groups, strict=True):
        assert np.array_equal(np.asarray(mask), reference_mask(label_map[0], group))
    assert not masks[3].any()  # absent label: empty mask


def test_select_labels_keeps_metadata_and_dtype():
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    label_map = MetaTensor(random_map([1, 2]), affine=affine, meta={"filename_or_obj": "a.nii"})
    masks = SelectLabels([1, 2, (1, 2)], dtype=torch.uint8)(label_map)
    assert isinstance(masks, MetaTensor)
    assert masks.dtype == torch.uint8
    assert torch.equal(masks.affine, affine)
    assert masks.meta["filename_or_obj"] == "a.nii"
    assert torch.equal(masks[2], masks[0] | masks[1])


@pytest.mark.parametrize("shape", [(6, 5), (2, 6, 5), (6,)])
def test_label_map_needs_one_channel(shape):
    with pytest.raises(ValueError, match=r"must have the shape \(1, \*spatial\), got \(" + str(shape[0])):
        SelectLabels([1])(torch.ones(shape))


# RandSelectLabels: the draw


def draws(transform, n, target=(1, 2, 3, 5), atlas=(1, 2, 3, 4, 5), groups=None):
    out = []
    for _ in range(n):
        transform.randomize(target, atlas, groups)
        out.append(transform.groups_)
    return out


def test_same_groups_for_target_and_atlas(sample):
    transform = RandSelectLabels(3, union_prob=0.5).set_random_state(seed=0)
    for _ in range(20):
        target, atlas = transform(sample["label"], sample["atlas_label"])
        assert target.shape == atlas.shape == (3, *SHAPE[1:])
        for k, group in enumerate(transform.groups_):
            assert np.array_equal(target[k].numpy(), reference_mask(sample["label"][0], group))
            assert np.array_equal(atlas[k].numpy(), reference_mask(sample["atlas_label"][0], group))
            assert target[k].any()
            assert atlas[k].any()


def test_without_replacement_and_absent_label_excluded():
    for groups in draws(RandSelectLabels(4).set_random_state(seed=0), 50):
        assert sorted(groups) == [(1,), (2,), (3,), (5,)]  # 4 is in the atlas only


def test_label_that_the_atlas_lacks_is_never_drawn():
    transform = RandSelectLabels(2, groups=[1, 2, 9], absent_prob=0.5).set_random_state(seed=0)
    assert {group for groups in draws(transform, 50, target=(1, 2, 9), atlas=(1, 2)) for group in groups} == {
        (1,),
        (2,),
    }


@pytest.mark.parametrize("union_prob", [0.0, 0.5, 1.0])
def test_more_slots_than_candidates_repeats_evenly(union_prob):
    transform = RandSelectLabels(7, groups=[1, 2, 3], union_prob=union_prob).set_random_state(seed=0)
    for groups in draws(transform, 50):
        assert len(groups) == 7
        counts = Counter(i for group in groups for i in group)
        assert max(counts.values()) - min(counts.values()) <= 1  # none comes again before all came
        if union_prob == 0:
            assert set(groups[:3]) == set(groups[3:6]) == {(1,), (2,), (3,)}


def test_single_candidate_stays_single_in_a_union():
    assert draws(RandSelectLabels(3, groups=[2], union_prob=1.0), 1) == [((2,), (2,), (2,))]


def test_union_mask_is_or_of_masks(sample):
    transform = RandSelectLabels(2, union_prob=1.0, max_union=3, dtype=torch.bool).set_random_state(seed=0)
    for _ in range(10):
        target, _ = transform(sample["label"], sample["atlas_label"])
        for mask, group in zip(target, transform.groups_, strict=True):
            assert 2 <= len(group) <= 3
            singles = SelectLabels(group, dtype=torch.bool)(sample["label"])
            assert torch.equal(mask, singles.any(0))


def test_frequency_of_unions_and_their_sizes():
    transform = RandSelectLabels(1, union_prob=0.4, max_union=3).set_random_state(seed=0)
    sizes = Counter(len(groups[0]) for groups in draws(transform, 3000))
    expected = {1: 1800, 2: 600, 3: 600}
    assert sum((sizes[k] - e) ** 2 / e for k, e in expected.items()) < 9.2  # chi-square, 2 degrees of freedom, p = 0.01


@pytest.mark.parametrize("weights", [(4.0, 1.0, 1.0, 0.0), np.array([4, 1, 1, 0])])
def test_draws_follow_weights(weights):
    transform = RandSelectLabels(1, groups=[1, 2, (3, 5), 4], weights=weights).set_random_state(seed=1)
    counts = Counter(groups[0] for groups in draws(transform, 3000, target=(1, 2, 3, 4, 5)))
    expected = {(1,): 2000, (2,): 500, (3, 5): 500}
    assert counts.keys() == expected.keys()
    assert sum((counts[k] - e) ** 2 / e for k, e in expected.items()) < 9.2


def test_absent_groups_come_with_their_probability_and_empty_masks(sample):
    transform = RandSelectLabels(2, absent_prob=0.25, union_prob=0.5).set_random_state(seed=0)
    share = np.mean([groups[0] == (4,) for groups in draws(transform, 2000)])
    assert abs(share - 0.25) < 0.03
    assert not any(4 in group and len(group) > 1 for groups in draws(transform, 200) for group in groups)
    transform = RandSelectLabels(2, absent_prob=1.0)
    target, atlas = transform(sample["label"], sample["atlas_label"])
    assert transform.groups_ == ((4,), (4,))
    assert not target.any()
    assert atlas.any()


def test_target_without_any_candidate_is_empty_or_an_error():
    target, atlas = torch.zeros(SHAPE), torch.tensor(random_map([1, 2]))
    masks, _ = RandSelectLabels(2, absent_prob=0.01)(target, atlas)
    assert not masks.any()
    with pytest.raises(ValueError, match=r"target has labels \[\], the atlas has \[1, 2\], .* \[\(1,\), \(2,\)\]"):
        RandSelectLabels(2)(target, atlas)
    with pytest.raises(ValueError, match=r"target has labels \[9\], the atlas has \[1, 2\], .* are \[\]"):
        RandSelectLabels(2, groups=[9], absent_prob=1.0)(torch.full(SHAPE, 9), atlas)


def test_partial_labels_restrict_the_draw():
    transform = RandSelectLabels(2).set_random_state(seed=0)
    assert {g for gs in draws(transform, 50, groups=[1, (2, 3)]) for g in gs} == {(1,), (2, 3)}
    # the scan knows 1, 2 and the union of 3 and 5: groups made up of these can be drawn, 3 alone cannot
    transform = RandSelectLabels(2, groups=[1, (1, 2), 3, (5, 3), (2, 3), (1, 3, 5)]).set_random_state(seed=0)
    assert {g for gs in draws(transform, 100, groups=[1, 2, (3, 5)]) for g in gs} == {(1,), (1, 2), (3, 5), (1, 3, 5)}
    with pytest.raises(ValueError, match=r"No label group to draw: .* candidates in the atlas are \[\]"):
        draws(RandSelectLabels(1, groups=[1]), 1, groups=[2])


def test_caller_lists_are_not_changed():
    groups, weights, known = [3, 1, [2, 5]], [1.0, 2.0, 3.0], [1, 3]
    transform = RandSelectLabels(5, groups=groups, weights=weights, union_prob=0.5)
    draws(transform, 20)
    draws(transform, 20, groups=known)
    assert (groups, weights, known) == ([3, 1, [2, 5]], [1.0, 2.0, 3.0], [1, 3])
    groups.clear()
    assert draws(transform, 1)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_labels": 0}, "`num_labels` must be an integer >= 1, got 0"),
        ({"num_labels": 1.5}, "`num_labels` must be an integer >= 1, got 1.5"),
        ({"max_union": 1}, "`max_union` must be an integer >= 2, got 1"),
        ({"union_prob": 1.5}, "`union_prob` must be between 0 and 1, got 1.5"),
        ({"absent_prob": -0.1}, "`absent_prob` must be between 0 and 1, got -0.1"),
        ({"groups": [1, 1]}, r"must differ from each other, got \(1,\) twice"),
        ({"groups": [(1, 2), (2, 1)]}, r"must differ from each other, got \(2, 1\) twice"),
        ({"weights": [1]}, "give `groups` as well"),
        ({"groups": [1, 2], "weights": [1]}, "one number for each of the 2 groups, got 1"),
        ({"groups": [1], "weights": {1: 1000}}, r"one number for each of `groups`, got \{1: 1000\}"),
        ({"groups": [1, 2], "weights": [0, 0]}, r"not all 0, got \[0.0, 0.0\]"),
        ({"groups": [1, 2], "weights": [1, -1]}, r"finite, >= 0 .* got \[1.0, -1.0\]"),
        ({"groups": [1, 2], "weights": [1, float("nan")]}, r"finite, >= 0 .* got \[1.0, nan\]"),
    ],
)
def test_rand_select_labels_rejects(kwargs, message):
    with pytest.raises(ValueError, match=message):
        RandSelectLabels(**{"num_labels": 1, **kwargs})


# RandSelectLabelsd: in pipelines


def test_dictionary_form_equals_array_form(sample):
    before = {key: value.clone() for key, value in sample.items()}
    array = RandSelectLabels(3, union_prob=0.5).set_random_state(seed=5)
    out = RandSelectLabelsd(num_labels=3, union_prob=0.5).set_random_state(seed=5)(sample)
    target, atlas = array(sample["label"], sample["atlas_label"])
    assert torch.equal(out["label"], target)
    assert torch.equal(out["atlas_label"], atlas)
    assert out["selected_labels"].dtype == torch.int64
    assert [tuple(i for i in row if i) for row in out["selected_labels"].tolist()] == list(array.groups_)
    assert sample.keys() == before.keys()
    assert all(torch.equal(sample[key], before[key]) for key in before)


def test_selected_labels_collate_whatever_was_drawn(sample):
    transform = RandSelectLabelsd(num_labels=2, groups=[1, (2, 3), 5], union_prob=0.5, max_union=3)
    transform.set_random_state(seed=0)
    samples = [transform({**sample, "label_groups": known}) for known in ([1, 2, 3], [1, 2, 3, 5], [5]) * 4]
    batch = list_data_collate(samples)
    assert batch["label"].shape == (12, 2, *SHAPE[1:])
    assert batch["selected_labels"].shape == (12, 2, 6)
    assert "label_groups" not in batch  # ragged lists do not collate
    assert batch["selected_labels"][2::3].unique().tolist() == [0, 5]
    assert 5 not in batch["selected_labels"][0::3]


def test_masks_keep_the_affine_of_their_own_label_map(sample):
    affines = {"label": torch.eye(4, dtype=torch.float64) * 2, "atlas_label": torch.eye(4, dtype=torch.float64) * 3}
    out = RandSelectLabelsd(num_labels=2)({key: MetaTensor(sample[key], affine=affines[key]) for key in sample})
    for key, affine in affines.items():
        assert isinstance(out[key], MetaTensor)
        assert torch.equal(out[key].affine, affine)


def test_draws_differ_between_epochs_in_cache_dataset_and_repeat_by_seed(sample):
    loads = []

    def load(label_map):
        loads.append(1)
        return label_map

    def epochs(seed):
        transform = Compose([Lambdad("label", load), RandSelectLabelsd(num_labels=2, union_prob=0.3)])
        transform.set_random_state(seed=seed)
        dataset = CacheDataset([sample] * 3, transform, num_workers=None, progress=False)
        return [[dataset[i]["selected_labels"].tolist() for i in range(3)] for _ in range(4)]

    first = epochs(0)
    assert len(loads) == 3  # what stands before is cached
    assert len({str(epoch) for epoch in first}) == 4  # the draw is not
    assert epochs(0) == first
    assert epochs(1) != first


def test_set_determinism_repeats_the_draws_of_a_loader(sample):
    def run():
        set_determinism(seed=3)
        dataset = CacheDataset([sample] * 4, RandSelectLabelsd(num_labels=2), num_workers=None, progress=False)
        loader = DataLoader(dataset, batch_size=2, num_workers=0)
        return [batch["selected_labels"].tolist() for _ in range(3) for batch in loader]

    try:
        assert run() == run()
    finally:
        set_determinism(seed=None)


@pytest.mark.parametrize("before", [True, False])
def test_flip_of_subject_and_atlas_keeps_left_and_right(before):
    left, right = 11, 21
    label, atlas = torch.zeros(1, 8, 4), torch.zeros(1, 8, 4)
    label[:, 1:3, 1:3], label[:, 5:7, 1:3] = left, right
    atlas[:, 0:3, 1:3], atlas[:, 5:8, 1:3] = left, right
    keys = ("image", "label", "atlas_image", "atlas_label")
    sample = {"image": label / 30, "label": label, "atlas_image": atlas / 30, "atlas_label": atlas}
    flip = RandFlipd(keys, prob=1.0, spatial_axis=0)
    select = RandSelectLabelsd(num_labels=2).set_random_state(seed=0)
    out = Compose([flip, select] if before else [select, flip])(sample)
    assert torch.equal(out["image"], sample["image"].flip(1))
    ids = out["selected_labels"].flatten().tolist()
    assert sorted(ids) == [left, right]
    for k, i in enumerate(ids):
        assert torch.equal(out["label"][k], (label[0] == i).float().flip(0))
        assert torch.equal(out["atlas_label"][k], (atlas[0] == i).float().flip(0))
        # left has gone to the other half, in subject and atlas alike
        half = slice(4, 8) if i == left else slice(0, 4)
        for key in ("label", "atlas_label"):
            assert out[key][k].sum() == out[key][k, half].sum() > 0


def test_flip_can_be_inverted_on_the_masks(sample):
    flip = Flipd("label", spatial_axis=0)
    out = RandSelectLabelsd(num_labels=2).set_random_state(seed=0)(flip(EnsureTyped(("label", "atlas_label"))(sample)))
    back = flip.inverse(out)["label"]
    for mask, row in zip(back, out["selected_labels"].tolist(), strict=True):
        assert np.array_equal(mask.numpy(), reference_mask(sample["label"][0], row[0]))


def test_rand_select_labelsd_needs_two_keys_and_both_in_the_sample(sample):
    with pytest.raises(ValueError, match=r"target and of the atlas label map, got \('label',\)"):
        RandSelectLabelsd("label")
    with pytest.raises(KeyError, match="Key `atlas_label` of transform `RandSelectLabelsd` was missing"):
        RandSelectLabelsd()({"label": sample["label"]})
    left_alone = RandSelectLabelsd(allow_missing_keys=True)({"label": sample["label"]})
    assert left_alone.keys() == {"label"}
    assert left_alone["label"] is sample["label"]


# MapLabels


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int64", "float32"])
@pytest.mark.parametrize("container", [np.asarray, torch.from_numpy, MetaTensor])
def test_map_labels_equals_monai(dtype, container):
    label_map = random_map([1, 2, 3, 60]).astype(dtype)
    mapping = {1: 60, 2: 60, 60: 7, 99: 5}  # 1 -> 60 -> 7 must not chain
    given = container(label_map)
    out = MapLabels(mapping)(given)
    expected = MapLabelValue(list(mapping), list(mapping.values()), np.int64)(label_map)
    assert np.array_equal(np.asarray(out).astype(np.int64), expected)
    assert type(out) is type(given)
    assert out.dtype == given.dtype
    assert np.array_equal(np.asarray(given), label_map)


def test_map_labels_unmapped():
    label_map = torch.tensor([[0, 1, 2, 9]])
    assert MapLabels({1: 5, 2: 5})(label_map).tolist() == [[0, 5, 5, 9]]
    assert MapLabels({1: 5, 2: 5}, unmapped="background")(label_map).tolist() == [[0, 5, 5, 0]]
    assert MapLabels({"1": 5, "2": 5, "9": 0}, unmapped="error")(label_map).tolist() == [[0, 5, 5, 0]]
    given = MetaTensor(label_map, meta={"filename_or_obj": "a.nii"})
    with pytest.raises(ValueError, match=r"without an entry in `mapping` in a.nii: \[2, 9\]"):
        MapLabels({1: 5}, unmapped="error")(given)
    with pytest.raises(ValueError, match="background"):
        MapLabels({1: 5}, unmapped="backgroud")
    assert MapLabels({0: 4}, unmapped="background")(label_map).tolist() == [[4, 0, 0, 0]]


@pytest.mark.parametrize(
    ("dtype", "new", "wider"),
    [
        (torch.uint8, 255, torch.uint8),
        (torch.uint8, 256, torch.int16),
        (torch.int8, 128, torch.int16),
        (torch.uint8, 40000, torch.int32),
        (torch.float32, 2**24, torch.float32),
        (torch.float32, 2**24 + 1, torch.float64),
        (torch.float16, 2049, torch.float32),
        (torch.bool, 3, torch.int16),
    ],
)
def test_map_labels_widens_only_when_needed(dtype, new, wider):
    out = MapLabels({1: new})(torch.tensor([0, 1]).to(dtype))
    assert out.dtype == wider
    assert out.tolist() == [0, new]


def test_map_labels_of_flipped_view_and_many_channels():
    label_map = random_map([1, 2], shape=(3, 4, 5))
    assert np.array_equal(MapLabels({1: 2, 2: 1})(label_map[:, ::-1]), np.array([0, 2, 1])[label_map][:, ::-1])


def test_map_labels_keeps_the_affine():
    affine = torch.eye(4, dtype=torch.float64) * 2
    out = MapLabelsd("label", {1: 300})({"label": MetaTensor(random_map([1]).astype("uint8"), affine=affine)})["label"]
    assert torch.equal(out.affine, affine)
    assert out.max() == 300


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, "at least one label, got none"),
        ({-1: 2}, "integers >= 0, got -1"),
        ({1: 2.5}, "integers >= 0, got 2.5"),
        ({"Left": 2}, "integers >= 0, got 'Left'"),
    ],
)
def test_map_labels_rejects(mapping, message):
    with pytest.raises(ValueError, match=message):
        MapLabels(mapping)


# RandPickAtlas


ATLASES = [{"atlas_image": f"atlas{i}.nii", "atlas_label": f"atlas{i}_dseg.nii"} for i in range(4)]


def test_pick_atlas_merges_an_atlas_that_is_not_the_sample_itself(tmp_path):
    atlases = [{"atlas_image": tmp_path / f"{i}.nii", "atlas_label": tmp_path / f"{i}_dseg.nii"} for i in range(4)]
    atlases[2]["atlas_image"].write_text("")
    (tmp_path / "link.nii").symlink_to(tmp_path / "2.nii")
    pick = RandPickAtlasd(atlases).set_random_state(seed=0)
    for image in (tmp_path / "link.nii", str(tmp_path / "sub" / ".." / "2.nii"), [tmp_path / "2.nii", "t2.nii"]):
        sample = {"image": image, "label": "x.nii"}
        drawn = [pick(sample) for _ in range(60)]
        assert {d["atlas_index"] for d in drawn} == {0, 1, 3}
        assert all(d == {**sample, **atlases[d["atlas_index"]], "atlas_index": d["atlas_index"]} for d in drawn)
        assert sample.keys() == {"image", "label"}


def test_pick_atlas_for_tensors():
    pick = RandPickAtlas(ATLASES).set_random_state(seed=0)
    loaded = MetaTensor(torch.zeros(1), meta={"filename_or_obj": "atlas1.nii"})
    assert {pick(loaded)["atlas_image"] for _ in range(60)} == {f"atlas{i}.nii" for i in (0, 2, 3)}


def test_pick_atlas_is_uniform_and_leaves_the_pool_alone():
    atlases = copy.deepcopy(ATLASES)
    pick = RandPickAtlas(atlases).set_random_state(seed=0)
    counts = Counter()
    for _ in range(2000):
        drawn = pick()
        counts[pick.index_] += 1
        drawn.clear()
    assert sum((counts[i] - 500) ** 2 / 500 for i in range(4)) < 11.3  # 3 degrees of freedom, p = 0.01
    assert atlases == ATLASES
    assert pick() in ATLASES


def test_pick_atlas_differs_between_epochs_and_repeats_by_seed():
    def epochs(seed):
        transform = Compose([RandPickAtlasd(ATLASES)]).set_random_state(seed=seed)
        dataset = CacheDataset([{"image": "a.nii"}] * 5, transform, num_workers=None, progress=False)
        return [[dataset[i]["atlas_index"] for i in range(5)] for _ in range(4)]

    first = epochs(0)
    assert len({str(epoch) for epoch in first}) > 1
    assert epochs(0) == first
    assert epochs(1) != first


def test_pick_atlas_rejects():
    with pytest.raises(ValueError, match="at least one atlas, got none"):
        RandPickAtlas([])
    with pytest.raises(ValueError, match=r"same keys, got \['atlas_image', 'atlas_label'\] and \['atlas_image'\]"):
        RandPickAtlas([ATLASES[0], {"atlas_image": "b.nii"}])
    with pytest.raises(ValueError, match="must not have the sample's key 'image'"):
        RandPickAtlasd([{"image": "b.nii"}])
    with pytest.raises(ValueError, match=r"Every atlas of the pool is the image .*atlas0.nii itself: add another"):
        RandPickAtlasd(ATLASES[:1])({"image": "atlas0.nii"})
    with pytest.raises(KeyError, match="Key `image` of transform `RandPickAtlasd` was missing"):
        RandPickAtlasd(ATLASES)({"label": "a.nii"})
    assert RandPickAtlasd(ATLASES[:1], allow_missing_keys=True)({}) == {**ATLASES[0], "atlas_index": 0}


# MONAI's contract for dictionary transforms


def pipelines():
    return [
        SelectLabelsd("label", [1, (2, 3)]),
        RandSelectLabelsd(num_labels=2, groups=[1, (2, 3)], weights=[1.0, 2.0], union_prob=0.5),
        MapLabelsd(("label", "atlas_label"), {1: 2}),
        RandPickAtlasd([{"atlas_image": torch.tensor([i])} for i in range(4)], exclude_key="label"),
    ]


@pytest.mark.parametrize("transform", pipelines(), ids=lambda t: type(t).__name__)
def test_dictionary_transform_contract(transform, sample):
    before = copy.deepcopy(sample)
    if hasattr(transform, "set_random_state"):
        transform.set_random_state(seed=0)
    restored = pickle.loads(pickle.dumps(transform))
    out, again = transform(sample), restored(sample)
    assert out.keys() == again.keys()
    for key, value in out.items():
        assert torch.equal(value, again[key]) if isinstance(value, torch.Tensor) else value == again[key]
    assert sample.keys() == before.keys()
    assert all(torch.equal(sample[key], before[key]) for key in before)
    with pytest.raises(KeyError, match="Key `label` of transform"):
        transform({})


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("SelectLabels", labels_module),
        ("RandSelectLabels", random_module),
        ("MapLabels", labels_module),
        ("RandPickAtlas", pool_module),
        ("RandDrawAtlas", pool_module),
    ],
)
def test_aliases(name, module):
    for owner in (module, sys.modules["monai_lcs.transforms"]):
        assert getattr(owner, f"{name}D") is getattr(owner, f"{name}Dict") is getattr(owner, f"{name}d")
