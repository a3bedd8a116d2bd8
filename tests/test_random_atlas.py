"""A random atlas for each sample: pairs are aligned once, none is a case with itself, and what is drawn is right."""

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import save_nifti
from phantom import AFFINE, TABLE, make_volume
from phantom import SETTINGS as AFFINELY

import monai_lcs as lcs
from monai_lcs.atlas import AlignmentCache, AtlasAligner
from monai_lcs.pipeline import AtlasPool, PreparedDataset, Preprocessing
from monai_lcs.transforms import RandDrawAtlasd

NAMES = ("ann", "ben", "cyd")
SETTINGS = {**AFFINELY, "align": "rigid"}  # the quickest


def case_files(folder, name):
    return {key: str(folder / f"{key}s/{name}.nii.gz") for key in ("image", "label")}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three people to train on, one to validate on, and an atlas."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    for name in (*NAMES, "val", "atlas"):
        image, labels = make_volume(None if name == "atlas" else rng)
        for key, array in (("image", image), ("label", labels)):
            save_nifti(array, folder / f"{key}s/{name}.nii.gz", AFFINE)
    return folder


class CountingAligner:
    """Counts the pairs that are registered, by name."""

    def __init__(self, monkeypatch):
        self.counts, self.align = Counter(), AtlasAligner.align
        monkeypatch.setattr(AtlasAligner, "align", lambda *arguments: self(*arguments))

    def __call__(self, aligner, image, atlas_image):
        self.counts[name_of(image), name_of(atlas_image)] += 1
        return self.align(aligner, image, atlas_image)


@pytest.fixture(scope="module")
def trained(study):
    """The alignments that two equal trainings need, the settings of the first, and the folder of its alignments."""
    cases = [case_files(study, name) for name in NAMES]
    given = {"cases": (cases, [case_files(study, "val")]), "settings": lcs.Settings(**SETTINGS)}
    more = {"epochs": 3, "val_interval": 1, "labels_per_image": 2, "device": "cpu", "cache_dir": str(study / "cache")}
    found = []
    for out in ("first", "second"):
        with pytest.MonkeyPatch.context() as monkeypatch, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "parsing config_file")
            counting = CountingAligner(monkeypatch)
            weights = lcs.train(None, atlas_of(study, "atlas"), study / out, random_atlas=True, **given, **more)
            found.append(counting.counts)
    return *found, lcs.Settings.of_weights(weights), study / "cache"


@pytest.fixture(scope="module")
def cache(trained):
    """The alignments of the training, for the other tests."""
    return trained[-1]


@pytest.fixture
def cases(study):
    return [case_files(study, name) for name in NAMES]


def atlas_of(folder, name):
    return lcs.Atlas.read(*case_files(folder, name).values(), TABLE)


def pool_of(study, cache, names=NAMES, groups=None, **settings):
    preprocessing = Preprocessing(
        atlas_of(study, "atlas"), lcs.Settings(**{**SETTINGS, **settings}), cache=cache, target="network"
    )
    return AtlasPool(preprocessing, [atlas_of(study, name) for name in names], groups)


def name_of(volume):
    return Path(volume.meta["filename_or_obj"]).name.removesuffix(".nii.gz")


def test_a_training_aligns_each_pair_once(trained):
    first, second, settings, _ = trained
    pairs = {(scan, other) for scan in NAMES for other in NAMES if scan != other}
    assert first == dict.fromkeys({*pairs, ("val", "atlas")}, 1)  # the given atlas is that of the validation
    assert not second
    assert not settings.fused


@pytest.fixture(scope="module")
def whole(study, cache):
    """Cases with the whole grid, to compare with direct alignments."""
    pool = pool_of(study, cache, margin_mm=None)
    cases = [case_files(study, name) for name in NAMES]
    return PreparedDataset(cases, pool, RandDrawAtlasd().set_random_state(seed=0), progress=False)


def test_no_case_is_its_own_atlas_and_all_others_are_drawn(whole):
    for i, name in enumerate(NAMES):
        drawn = Counter(name_of(whole[i]["atlas_image"]) for _ in range(60))
        assert drawn.keys() == set(NAMES) - {name}
        assert min(drawn.values()) > 15  # four standard deviations from 30


def test_what_is_drawn_is_a_direct_alignment(study, whole):
    for i in (0, 2):
        sample = whole[i]
        atlas = atlas_of(study, name_of(sample["atlas_image"]))
        direct = Preprocessing(atlas, lcs.Settings(**{**SETTINGS, "margin_mm": None}), target="network")
        expected = direct(case_files(study, NAMES[i]))
        assert len(expected["atlas_label"].unique()) == 1 + len(TABLE)
        for key in ("image", "label", "atlas_label"):
            assert sample[key].dtype == expected[key].dtype
            assert torch.equal(sample[key], expected[key])
            assert torch.equal(sample[key].affine, expected[key].affine)
        torch.testing.assert_close(sample["atlas_image"], expected["atlas_image"], atol=2**-11, rtol=0)  # float16


def test_the_crop_holds_the_labels_of_all_atlases_and_the_margin(study, cases, cache, whole):
    pool = pool_of(study, cache)
    cropped = pool.finish(pool.load(cases[0]))
    everywhere = whole.data[0]
    label_maps = torch.stack([atlas["atlas_label"].as_tensor() for atlas in everywhere["atlases"]])
    where = torch.nonzero(label_maps.any(0)[0])
    shape = torch.tensor(everywhere["image"].shape[1:])
    start = (where.min(0).values - 3).clamp(min=0)  # 12 mm are 3 voxels
    stop = torch.minimum(where.max(0).values + 4, shape)
    assert (stop - start < shape).any()
    box = (slice(None), *(slice(a, b) for a, b in zip(start.tolist(), stop.tolist(), strict=True)))
    assert torch.equal(cropped["image"].as_tensor(), everywhere["image"].as_tensor()[box])
    assert torch.equal(cropped["label"].as_tensor(), everywhere["label"].as_tensor()[box])
    corner = everywhere["image"].affine @ torch.tensor([*start.tolist(), 1.0], dtype=torch.float64)
    torch.testing.assert_close(cropped["image"].affine[:, 3], corner)
    for atlas, uncropped in zip(cropped["atlases"], everywhere["atlases"], strict=True):
        for key, dtype in (("atlas_image", torch.float16), ("atlas_label", torch.uint8)):
            assert atlas[key].dtype == dtype
            assert torch.equal(atlas[key].as_tensor(), uncropped[key].as_tensor()[box])
            voxels = atlas[key].untyped_storage().nbytes() // dtype.itemsize
            assert voxels == atlas[key].numel()  # nothing else is kept alive


def test_ids_above_255_are_kept(study, cases, cache):
    pool = pool_of(study, cache, ("ben", "cyd"))
    ben, cyd = pool.atlases
    large = lcs.LabelTable.from_ids([1011, 1016, 1050])
    renamed = ben.with_labels(torch.where(ben.label_map > 0, ben.label_map + 1000, 0), large)
    pool = AtlasPool(pool.preprocessing, [renamed, cyd], groups=[(11, 1011), (16,), (50,)])
    drawn, _ = pool.finish(pool.load(cases[0]))["atlases"]
    assert drawn["atlas_label"].dtype == torch.int16
    assert drawn["atlas_label"].unique().tolist() == [0, 1011, 1016, 1050]


def test_a_copy_under_another_name_is_not_drawn(study, cases, cache, tmp_path):
    pool = pool_of(study, cache)
    for key in ("image", "label"):
        target = tmp_path / f"{key}s/copy.nii.gz"
        target.parent.mkdir()
        target.write_bytes(Path(cases[0][key]).read_bytes())
    pool = AtlasPool(pool.preprocessing, [*pool.atlases, atlas_of(tmp_path, "copy")])
    assert [name_of(atlas["atlas_image"]) for atlas in pool.finish(pool.load(cases[0]))["atlases"]] == ["ben", "cyd"]


def test_a_pair_that_fails_is_lost_alone_and_by_name(study, cases, cache, monkeypatch, capsys):
    """Cyd fits no case, so that ann and ben have one atlas left. Without ben, ann has none."""
    align = AlignmentCache.align

    def failing(self, aligner, scan, atlas):
        if name_of(atlas.image) == "cyd":
            raise ValueError(f"Aligning {atlas.files['image']} to {scan.meta['filename_or_obj']} failed")
        return align(self, aligner, scan, atlas)

    monkeypatch.setattr(AlignmentCache, "align", failing)
    dataset = PreparedDataset(cases, pool_of(study, cache), progress=False)
    with pytest.warns(UserWarning, match="is left out") as warned:
        dataset.align()
    left = [[name_of(atlas["atlas_image"]) for atlas in case["atlases"]] for case in dataset.data]
    assert left == [["ben"], ["ann"], ["ann", "ben"]]
    assert sorted(str(w.message).partition(": ")[2] for w in warned) == [
        f"Aligning {cases[2]['image']} to {cases[i]['image']} failed" for i in (0, 1)
    ]

    dataset = PreparedDataset(cases[:2], pool_of(study, cache, ("ann", "cyd")), progress=False)
    with pytest.warns(UserWarning, match="is left out"):
        assert len(dataset) == 1
    assert f"No atlas is left for {cases[0]['image']}: it needs another one" in capsys.readouterr().err


def test_atlases_without_a_common_label_are_left_out(study, cases, cache):
    pool = pool_of(study, cache)
    _, ben, cyd = pool.atlases
    stem = cyd.with_labels(torch.where(cyd.label_map == 16, 16, 0), TABLE)
    pool = AtlasPool(pool.preprocessing, [ben, stem], groups=[(11, 50)])
    with pytest.warns(UserWarning, match=r"The atlas .*cyd.nii.gz is left out for .*ann.nii.gz: they share no label"):
        (only,) = pool.finish(pool.load(cases[0]))["atlases"]
    assert name_of(only["atlas_image"]) == "ben"


def test_bad_pools(study, cache):
    preprocessing = pool_of(study, cache).preprocessing
    with pytest.raises(ValueError, match="A random atlas needs atlases to draw from, got none"):
        AtlasPool(preprocessing, [])
    with pytest.raises(ValueError, match="A random atlas must be aligned: give `align`"):
        pool_of(study, cache, align="none")
    with pytest.raises(ValueError, match="'atlases' must hold at least one atlas, got none"):
        RandDrawAtlasd()({"atlases": []})
