import json
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, load_decathlon_datalist
from monai.transforms import LoadImage

from monai_lcs.atlas.atlas import Atlas
from monai_lcs.files import check_writable
from monai_lcs.grids import grid_distance, same_grid
from monai_lcs.labels import Label, LabelTable
from monai_lcs.labels.groups import label_mask, present_labels
from monai_lcs.study import checks
from monai_lcs.study.cases import case_name, case_names, find_cases, find_images
from monai_lcs.study.checks import (
    check_case,
    check_cases,
    check_label_map_volume,
    check_same_grid,
    check_scan,
    read_label_map,
    read_scan,
    require_valid,
)
from monai_lcs.study.images import read_image

AFFINE = np.array([[0, 2, 0, -10], [-1, 0, 0, 20], [0, 0, 3, 5], [0, 0, 0, 1.0]])


def save(path, values=None, affine=AFFINE, shape=(5, 6, 7), dtype=np.float32):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.arange(np.prod(shape)).reshape(shape) % 4 if values is None else np.asarray(values)
    image_type = nib.MGHImage if path.suffix == ".mgz" else nib.Nifti1Image
    nib.save(image_type(values.astype(dtype), affine), path)
    return str(path)


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(cases, key="image"):
    return [Path(case[key]).name for case in cases]


@pytest.fixture
def folders(tmp_path):
    """Seven pairs s0..s6, labels with another extension."""
    for i in range(7):
        touch(tmp_path / f"images/s{i}.nii.gz", tmp_path / f"labels/s{i}.mgz")
    return tmp_path


def write_datalist(folder, **sections):
    path = folder / "lists/datalist.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"name": "a data set", **sections}))
    return path


def items(*numbers, **extra):
    return [{"image": f"images/s{i}.nii.gz", "label": f"labels/s{i}.mgz", **extra} for i in numbers]


# ---- find_cases


def test_folders_split_by_position(folders):
    training, validation = find_cases(folders), find_cases(folders, section="validation")
    assert names(validation) == ["s0.nii.gz", "s5.nii.gz"]
    assert names(validation, "label") == ["s0.mgz", "s5.mgz"]
    assert names(training) == [f"s{i}.nii.gz" for i in (1, 2, 3, 4, 6)]
    assert all(
        Path(path).is_absolute() and Path(path).exists() for case in training for path in (case["image"], case["label"])
    )
    assert names(find_cases(folders, section="validation", fold=1)) == ["s1.nii.gz", "s6.nii.gz"]
    assert len(find_cases(folders, section="testing")) == 7


@pytest.mark.parametrize("fold", range(5))
def test_folds_partition_the_cases_whatever_is_excluded(folders, fold):
    touch(folders / "images/s7.nii", folders / "labels/s7.nii")
    atlas = folders / "images/../images/s2.nii.gz"
    for exclude, numbers in [
        (None, range(8)),
        (atlas, [0, 1, 3, 4, 5, 6, 7]),
        ([atlas, "none.nii"], [0, 1, *range(3, 8)]),
    ]:
        validation = find_cases(folders, section="validation", fold=fold, exclude=exclude)
        training = find_cases(folders, section="training", fold=fold, exclude=exclude)
        assert [case["case"] for case in validation] == [f"s{i}" for i in numbers if i % 5 == fold]
        assert [case["case"] for case in training] == [f"s{i}" for i in numbers if i % 5 != fold]


def test_exclude_follows_links_and_matches_labels(folders):
    link = folders / "atlas.mgz"
    link.symlink_to(folders / "labels/s3.mgz")
    assert "s3.nii.gz" not in names(find_cases(folders, section="testing", exclude=str(link)))


def test_fold_without_cases_left(folders):
    exclude = [folders / "images/s1.nii.gz", folders / "images/s6.nii.gz"]
    with pytest.raises(ValueError, match=r"No validation cases are left in .*: all 2 are left out by `exclude`"):
        find_cases(folders, section="validation", fold=1, exclude=exclude)


def test_a_study_of_one_case_has_none_to_train_on(tmp_path):
    touch(tmp_path / "images/a.nii", tmp_path / "labels/a.nii")
    assert len(find_cases(tmp_path, section="validation")) == 1
    with pytest.raises(ValueError, match="is left to train on: fold 0 is for validation and has all of them, 1"):
        find_cases(tmp_path, section="training")


def test_nnunet_suffix_and_relative_folder(tmp_path, monkeypatch):
    touch(tmp_path / "images/a_0000.nii.gz", tmp_path / "labels/a.nii.gz")
    monkeypatch.chdir(tmp_path)
    (case,) = find_cases(".", section="testing")
    files = {"image": f"{tmp_path}/images/a_0000.nii.gz", "label": f"{tmp_path}/labels/a.nii.gz"}
    assert case == {**files, "case": "a_0000"}


def test_unpaired_files_are_reported(folders):
    touch(folders / "images/extra.nii", folders / "labels/lone.nii", folders / "images/.hidden.nii")
    with pytest.warns(UserWarning, match=r"without a partner of the same name: extra.nii, lone.nii\.") as record:
        assert len(find_cases(folders, section="testing")) == 7
    assert record[0].filename == __file__
    assert len(find_cases(folders, section="testing", with_labels=False)) == 8


def test_no_matching_pairs(tmp_path):
    touch(*(tmp_path / f"images/scan{i}.nii" for i in range(5)), tmp_path / "labels/seg0.nii")
    message = (
        r"/images has a .* in .*/labels: found images scan0.nii, scan1.nii, scan2.nii and 2 more and labels seg0.nii"
    )
    with pytest.raises(ValueError, match=message):
        find_cases(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="found images none and labels none"):
        find_cases(tmp_path / "empty")
    with pytest.raises(ValueError, match="/empty/images holds no images"):
        find_cases(tmp_path / "empty", with_labels=False)


def test_two_images_of_one_name(folders):
    touch(folders / "images/s1.mha")
    with pytest.raises(ValueError, match=r'Two images are named "s1", rename one of them: .*s1.mha and .*s1.nii.gz'):
        find_cases(folders)


def test_datalist_equals_monais_loader(folders):
    path = write_datalist(folders, training=items(0, 1), validation=items(2))
    for section in ("training", "validation"):
        expected = load_decathlon_datalist(path, data_list_key=section, base_dir=folders)
        assert find_cases(folders, path, section) == [
            {**item, "case": Path(item["image"]).name.removesuffix(".nii.gz")} for item in expected
        ]
    assert find_cases(datalist=path)[0]["image"] == f"{path.parent}/images/s0.nii.gz"


def test_datalist_absolute_paths_and_other_keys(folders):
    item = {**items(0)[0], "image": str(folders / "x.nii"), "age": 7}
    path = write_datalist(folders, validation=[item, {**item, "label_groups": [4, [17, 53]]}])
    files = {"image": f"{folders}/x.nii", "label": f"{folders}/labels/s0.mgz"}
    # one image with two label maps is no mistake
    assert find_cases(folders, path, "validation") == [
        {**files, "case": "x"},
        {**files, "case": "x_2", "label_groups": [4, [17, 53]]},
    ]


def test_datalist_of_equal_file_names(tmp_path):
    """As FreeSurfer has them; the name of a case does not depend on the fold or on what is excluded."""
    training = [{"image": f"subj{i}/mri/T1.mgz", "label": f"subj{i}/mri/aseg.mgz"} for i in range(7)]
    path = write_datalist(tmp_path, training=training)
    kept = find_cases(tmp_path, path, exclude=[tmp_path / f"subj{i}/mri/T1.mgz" for i in (1, 2, 3, 4)])
    assert kept == [
        {"image": f"{tmp_path}/subj6/mri/T1.mgz", "label": f"{tmp_path}/subj6/mri/aseg.mgz", "case": "subj6_mri_T1"}
    ]
    cases = find_cases(tmp_path, path, "validation", with_labels=False)
    assert [case["case"] for case in cases] == ["subj0_mri_T1", "subj5_mri_T1"]


def test_datalist_folds(folders):
    path = write_datalist(folders, training=items(0, 1, fold=0) + items(2, fold=1), validation=items(3))
    # the section, unless a fold is asked for
    assert names(find_cases(folders, path, "validation")) == ["s3.nii.gz"]
    assert names(find_cases(folders, path)) == ["s0.nii.gz", "s1.nii.gz", "s2.nii.gz"]
    assert names(find_cases(folders, path, "validation", fold=1)) == ["s2.nii.gz"]
    assert names(find_cases(folders, path, fold=1)) == ["s0.nii.gz", "s1.nii.gz"]
    with pytest.raises(ValueError, match=r"`fold` must be one of \[0, 1\], which .*datalist.json has, got 3"):
        find_cases(folders, path, fold=3)
    # no section: fold 0
    path = write_datalist(folders, training=items(0, 1, fold=0) + items(2, fold=1))
    assert names(find_cases(folders, path, "validation")) == ["s0.nii.gz", "s1.nii.gz"]
    # no fold numbers: the position
    path = write_datalist(folders, training=items(*range(7)))
    assert names(find_cases(folders, path, "validation", fold=1)) == ["s1.nii.gz", "s6.nii.gz"]
    path = write_datalist(folders, training=items(0, 1, fold=0) + items(2))
    with pytest.raises(ValueError, match=r'Some items .* have a "fold" and some do not: .*s2'):
        find_cases(folders, path)


@pytest.mark.parametrize("section", ["test", "testing"])
def test_datalist_testing(folders, section):
    path = write_datalist(folders, **{section: ["images/s0.nii.gz", {"image": "images/s1.nii.gz"}]})
    cases = find_cases(folders, path, "testing", with_labels=False)
    assert cases == [{"image": f"{folders}/images/s{i}.nii.gz", "case": f"s{i}"} for i in (0, 1)]
    with pytest.raises(ValueError, match=rf'section "{section}" of .*datalist.json names no label file: .*s0.nii.gz'):
        find_cases(folders, path, "testing")


def test_datalist_errors(folders):
    path = write_datalist(folders, training=items(0), test=[])
    with pytest.raises(ValueError, match="did you mean 'training'"):
        find_cases(folders, path, "trainin")
    with pytest.raises(ValueError, match=r"No testing cases are left"):
        find_cases(folders, path, "testing")
    path = write_datalist(folders, training=items(0), labels={})
    with pytest.raises(ValueError, match=r"datalist.json has no section \"test\", only \['training'\]"):
        find_cases(folders, path, "testing")
    path.write_text("{")
    with pytest.raises(ValueError, match=r"Cannot read the datalist .*datalist.json: "):
        find_cases(folders, path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="JSON object of sections, got a list"):
        find_cases(folders, path)
    with pytest.raises(ValueError, match=r"Cannot read the datalist .*none.json: .*No such file"):
        find_cases(datalist=folders / "none.json")
    with pytest.raises(ValueError, match="Give `dataset_dir`"):
        find_cases()


def test_find_images(folders, monkeypatch):
    monkeypatch.chdir(folders / "images")
    assert find_images("s1.nii.gz") == [{"image": f"{folders}/images/s1.nii.gz", "case": "s1"}]
    missing = {"image": f"{folders}/images/missing.nii", "case": "missing"}
    assert find_images(["s1.nii.gz", Path("missing.nii")])[1] == missing
    assert names(find_images(folders / "images")) == [f"s{i}.nii.gz" for i in range(7)]
    touch(folders / "notes/readme.txt", folders / "other/s1.nii", folders / "other/s1_dseg.nii.gz")
    assert names(find_images(folders / "other")) == ["s1.nii"]
    assert names(find_images(folders / "other/s1_dseg.nii.gz")) == ["s1_dseg.nii.gz"]  # asked for by name
    with pytest.raises(ValueError, match=r"/notes holds no images: no file there ends in \.nii\.gz, "):
        find_images(folders / "notes")
    assert [case["case"] for case in find_images(["s1.nii.gz", folders / "other"])] == ["images_s1", "other_s1"]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a/x.nii", "a/y.nii"], ["x", "y"]),
        (["a/T1.nii.gz", "b/T1.nii.gz", "b/x.nii"], ["a_T1", "b_T1", "x"]),
        (["s1/mri/T1.mgz", "s2/mri/T1.mgz", "s2/old/T1.mgz"], ["s1_mri_T1", "s2_mri_T1", "old_T1"]),
        (["a/T1.nii", "a/T1.mgz", "a/T1.nii", "a/T1_2.nii"], ["T1", "T1_2", "T1_3", "T1_2_2"]),
        (["a/T1.nii", "b/T1.nii", "b/T1.mgz"], ["a_T1", "b_T1", "b_T1_2"]),
        (["x/a/T1.nii", "y/a_T1.nii", "z/T1.nii"], ["x_a_T1", "y_a_T1", "z_T1"]),
        (["/T1.nii", "/a/T1.nii", "/a/../b/T1.nii"], ["T1", "a_T1", "b_T1"]),
        ([], []),
    ],
)
def test_case_names(paths, expected):
    assert case_names(paths) == expected


@pytest.mark.parametrize("seed", range(20))
def test_case_names_are_unique_and_each_is_the_end_of_its_path(seed):
    rng = np.random.default_rng(seed)
    paths = ["/" + "/".join(rng.choice(["a", "b", "a_b"], rng.integers(1, 5))) + ".nii" for _ in range(30)]
    names = case_names(paths)
    assert len(set(names)) == 30
    for i, (path, name) in enumerate(zip(paths, names, strict=True)):
        if path not in paths[:i]:
            assert path.removesuffix(".nii").replace("/", "_").endswith(name) or name[-1].isdigit()


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/b.c.nii.gz", "b.c"), ("b.NII.GZ", "b"), ("b.seg.nrrd", "b.seg"), ("sub-01.v2", "sub-01.v2"), ("a/b", "b")],
)
def test_case_name(path, name):
    assert case_name(path) == name


# ---- check_case


def test_good_case(tmp_path):
    image, label = save(tmp_path / "image.nii.gz"), save(tmp_path / "label.nii", dtype=np.int16)
    case = {"image": image, "label": label, "atlas_image": image, "atlas_label": label, "fold": 3}
    check_case(case)
    check_case({"image": image})
    check_case({"image": save(tmp_path / "one_channel.nii", shape=(5, 6, 7, 1))})
    require_valid([case, {}], progress=False)


def test_mgz_is_read_as_nibabel_reads_it(tmp_path):
    image, label = save(tmp_path / "image.mgz"), save(tmp_path / "label.mgz", dtype=np.int32)
    check_case({"image": image, "label": label})
    loaded = LoadImage()(image)
    np.testing.assert_array_equal(loaded, nib.load(image).get_fdata())
    np.testing.assert_allclose(loaded.affine, AFFINE)


def test_importing_the_transforms_registers_the_reader():
    code = "import monai_lcs.transforms, monai.transforms.io.array as a; assert 'mghreader' in a.SUPPORTED_READERS"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.filterwarnings("ignore:builtin type [sS]wig:DeprecationWarning")  # at the first import of itk
@pytest.mark.parametrize("extension", ["mha", "nrrd"])
def test_itk_formats_share_the_grid_of_nifti(tmp_path, extension):
    import SimpleITK as sitk

    voxels = np.arange(5 * 6 * 7, dtype=np.float32).reshape(5, 6, 7)
    image = sitk.GetImageFromArray(voxels.T)
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))  # LPS
    image.SetOrigin((10, -20, 5))
    path = str(tmp_path / f"image.{extension}")
    sitk.WriteImage(image, path)
    check_case({"image": path, "label": save(tmp_path / "label.nii")})

    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"image.{extension} cannot be read as an image"):
        check_case({"image": path})


def test_missing_and_empty_file(tmp_path):
    with pytest.raises(ValueError, match=r"/none.nii does not exist"):
        check_case({"image": f"{tmp_path}/none.nii"})
    (tmp_path / "empty.nii.gz").touch()
    with pytest.raises(ValueError, match=r"/empty.nii.gz is empty \(0 bytes\)"):
        check_case({"atlas_label": f"{tmp_path}/empty.nii.gz"})


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.95])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.mgz"])
def test_truncated_file(tmp_path, name, kept):
    path = Path(save(tmp_path / name, np.random.RandomState(0).rand(20, 20, 20)))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=rf"/{name} cannot be read as an image, it may be truncated or damaged: \w+"):
        check_case({"image": str(path)})


@pytest.mark.parametrize(
    ("shape", "spatial_dims", "message"),
    [
        ((5, 6), 3, r"must be 3D, got a 2D file of shape \(5, 6\)"),
        ((5, 6, 1), 3, r"must be 3D, got a 2D file of shape \(5, 6, 1\)"),
        ((5, 6, 7, 2), 3, r"must be 3D, got a 4D file of 2 channels"),
        ((5, 6, 7), 2, r"must be 2D, got a 3D file of shape \(5, 6, 7\)"),
    ],
)
def test_dimensions(tmp_path, shape, spatial_dims, message):
    with pytest.raises(ValueError, match=rf"/scan.nii.gz {message}"):
        check_case({"image": save(tmp_path / "scan.nii.gz", shape=shape)}, spatial_dims)


def test_2d_case(tmp_path):
    case = {"image": save(tmp_path / "image.nii", shape=(5, 6)), "label": save(tmp_path / "label.nii", shape=(5, 6))}
    check_case(case, spatial_dims=2)


def test_values(tmp_path):
    values = np.ones((4, 4, 4))
    values[0, 0, :3] = np.nan, np.inf, -np.inf
    for key in ("image", "atlas_label"):
        with pytest.raises(ValueError, match=r"/scan.nii has 3 NaN or Inf voxels of 64"):
            check_case({key: save(tmp_path / "scan.nii", values)})
    for value in (2.5, -3):
        values = np.full((4, 4, 4), 7.0)
        values[1, 2, 3] = value
        path = save(tmp_path / "seg.nii", values)
        check_case({"image": path})
        with pytest.raises(ValueError, match=rf"label map .*/seg.nii must hold integers >= 0, got {value}"):
            check_case({"label": path})


def test_ids_that_float32_does_not_hold(tmp_path):
    for value, fits in [(2**24 - 1, True), (2**24, False), (2**24 + 1, False), (312782560, False)]:  # the last: Allen
        path = save(tmp_path / "seg.nii", np.full((4, 4, 4), value), dtype=np.int32)
        if fits:
            check_case({"label": path})
            continue
        with pytest.raises(
            ValueError, match=rf"/seg.nii must hold ids below 2\*\*24 .*got {np.float32(value):.0f}: ren"
        ):
            check_case({"atlas_label": path})


def test_grids(tmp_path):
    image = save(tmp_path / "image.nii")
    with pytest.raises(ValueError, match=r"image.nii and .*label.nii .* got shapes \(5, 6, 7\) and \(5, 6, 8\)"):
        check_case({"image": image, "label": save(tmp_path / "label.nii", shape=(5, 6, 8))})
    shifted = AFFINE.copy()
    shifted[0, 3] += 0.09  # the voxels are 1 x 2 x 3 mm
    case = {"atlas_image": image, "atlas_label": save(tmp_path / "label.nii", affine=shifted)}
    check_case(case)
    shifted[0, 3] += 0.02
    save(tmp_path / "label.nii", affine=shifted)
    with pytest.raises(ValueError, match=r"up to 0.11 mm apart: resample one to the other"):
        check_case(case)


def test_grid_distance_is_that_of_the_farthest_voxel():
    affine, other = (nib.eulerangles.euler2mat(0.1 * i, 0.2, i) for i in (1, 2))
    affine, other = (nib.affines.from_matvec(matrix, [1, 2, i]) for i, matrix in enumerate((affine, other)))
    voxels = np.stack(np.meshgrid(*map(range, (3, 4, 5)), indexing="ij"), -1)
    distances = np.linalg.norm(
        nib.affines.apply_affine(affine, voxels) - nib.affines.apply_affine(other, voxels), axis=-1
    )
    assert grid_distance(affine, other, (3, 4, 5)) == pytest.approx(distances.max())
    assert grid_distance(affine, affine, (3, 4, 5)) == 0


@pytest.mark.parametrize("read", [read_scan, read_label_map])
def test_a_file_is_read_once(tmp_path, monkeypatch, read):
    paths = []
    monkeypatch.setattr(checks, "read_image", lambda path: paths.append(path) or read_image(path))
    path = save(tmp_path / "scan.nii")
    volume = read(path)
    assert paths == [path]
    np.testing.assert_array_equal(volume[0], nib.load(path).get_fdata())
    np.testing.assert_array_equal(volume.affine, AFFINE)


def test_volumes_in_memory_are_checked_as_files_are(tmp_path):
    values = np.full((4, 4, 4), 2.5)
    path = save(tmp_path / "seg.nii", values)
    check_scan(torch.from_numpy(values)[None], "the array")
    with pytest.raises(ValueError, match=r"The label map the array must hold integers >= 0, got 2\.5") as error:
        check_label_map_volume(torch.from_numpy(values)[None], "the array")
    with pytest.raises(ValueError, match=re.escape(str(error.value).replace("the array", path))):
        read_label_map(path)
    with pytest.raises(ValueError, match=r"the array must be 3D, got a 4D file of 4 channels"):
        check_scan(torch.zeros(4, 5, 6, 7), "the array")
    with pytest.raises(ValueError, match=r"the array must be 2D, got a 3D file of shape \(5, 6, 7\)"):
        check_label_map_volume(torch.zeros(1, 5, 6, 7), "the array", spatial_dims=2)


@pytest.mark.parametrize("seed", range(10))
def test_same_grid_allows_a_tenth_of_a_voxel_at_every_voxel(seed):
    rng = np.random.default_rng(seed)
    affine = nib.affines.from_matvec(nib.eulerangles.euler2mat(*rng.uniform(-1, 1, 3)) * rng.uniform(1, 3, 3))
    other = affine + np.pad(rng.normal(0, 0.01, (3, 4)), ((0, 1), (0, 0)))
    shape = (4, 5, 6)
    voxels = np.indices(shape).reshape(3, -1).T
    offsets = nib.affines.apply_affine(affine, voxels) - nib.affines.apply_affine(other, voxels)
    for scale in (0.99, 1.01):  # of the tolerance, for the voxel that is farthest off
        shortest = nib.affines.voxel_sizes(affine).min()
        moved = affine + (other - affine) * scale * 0.1 * shortest / np.linalg.norm(offsets, axis=1).max()
        assert same_grid(shape, affine, shape, moved) == (scale < 1)
        image, label_map = (MetaTensor(torch.zeros(1, *shape), affine=x) for x in (affine, moved))
        if scale < 1:
            check_same_grid(image, label_map, "image", "label map")
        else:
            with pytest.raises(ValueError, match=r"image and label map must have the same grid, got affines up to 0\."):
                check_same_grid(image, label_map, "image", "label map")
    assert not same_grid(shape, affine, (4, 5, 7), affine)
    assert not same_grid(shape, affine, shape, affine * np.nan)


def test_many_cases(tmp_path, capsys):
    good = {"image": save(tmp_path / "good.nii")}
    bad = [{"image": f"{tmp_path}/missing{i}.nii"} for i in range(12)]
    found = check_cases([bad[0], good, *bad[1:]])
    assert "Checking files" in capsys.readouterr().err
    assert [case for case, _ in found] == bad
    assert found[0][1] == f"{tmp_path}/missing0.nii does not exist."
    with pytest.raises(ValueError, match=r"^12 of 13 cases cannot be used:\n") as error:
        require_valid([good, *bad], progress=False)
    lines = str(error.value).splitlines()
    assert len(lines) == 12
    assert lines[10].endswith("missing9.nii does not exist.")
    assert lines[11].strip() == "..."


# ---- folders for results, atlas labels


def test_check_writable(tmp_path):
    check_writable(tmp_path / "a/b")
    assert list((tmp_path / "a/b").iterdir()) == []
    check_writable(tmp_path / "a/b")
    touch(tmp_path / "file")
    for folder in (tmp_path / "file", tmp_path / "file/out"):  # these fail for root as well
        with pytest.raises(OSError, match=rf"Cannot write to the output folder {folder}: \w+"):
            check_writable(folder)


def test_labels_that_the_atlas_lacks(tmp_path):
    table = LabelTable([Label(1, "one"), Label(3, "three"), Label(8, "eight")])
    atlas = Atlas.read(save(tmp_path / "T1w.nii"), save(tmp_path / "atlas.nii"), table)  # 0 to 3
    atlas.check_present([1, 3])
    with pytest.raises(ValueError, match=r"/atlas.nii has no voxel of label 8 \(eight\), 9\."):
        atlas.check_present([1, 8, 9])


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=rf"There is no folder {tmp_path}/studdy"):
        find_cases(tmp_path / "studdy")


def test_results_beside_the_scans_are_no_scans(tmp_path):
    results = ["dseg", "desc-brain_mask", "label-InsulaLeft_mask", "label-InsulaLeft_probseg"]
    touch(*(tmp_path / f"{name}.nii.gz" for name in ("ann", "ann_mask", *(f"ann_{result}" for result in results))))
    assert names(find_images(tmp_path)) == ["ann.nii.gz", "ann_mask.nii.gz"]


def test_label_maps_as_nibabel_gives_them(tmp_path):
    """FreeSurfer's files have the other byte order, and some label maps types that PyTorch hardly knows."""
    ids = np.arange(40).reshape(4, 5, 2) * 10
    for dtype in (">i2", ">i4", ">f4", "<u2", "<u4"):
        assert present_labels(ids.astype(dtype)) == tuple(range(10, 400, 10))
        np.testing.assert_array_equal(label_mask(ids.astype(dtype), range(10, 300, 10)), (ids > 0) & (ids < 300))
