import pickle
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, Invertd, LoadImage, LoadImaged, Orientationd, Spacingd

from monai_lcs.labels import Label, LabelTable
from monai_lcs.results import Segmentation
from monai_lcs.results.dice import compare_dice, dice_summary, dice_table, main, write_dice_tsv
from monai_lcs.results.picture import qc_picture
from monai_lcs.results.segmentation import label_words
from monai_lcs.results.volumes import volume_table
from monai_lcs.transforms import SaveSegmentation, SaveSegmentationd, SaveSegmentationDict

RED, GREEN = (255, 0, 0), (0, 255, 0)
TABLE = LabelTable([Label(4, "four", color=RED), Label(300, "three hundred", color=GREEN), Label(7, "seven")])
# 1.5 x 2 x 3 mm, axes posterior-left-superior, a little oblique
AFFINE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.02, 0.01, 0.03) @ [[0, -2.0, 0], [-1.5, 0, 0], [0, 0, 3.0]], [50, 40, -30]
)
SHAPE = (12, 14, 10)


def arrays():
    """An image, and a label map with 4 in the patient's left half and 300 in the right, in `SHAPE`."""
    image = np.random.RandomState(0).rand(*SHAPE).astype(np.float32)
    labels = np.zeros(SHAPE, np.int16)
    labels[3:9, 8:13, 2:8] = 4  # the second axis runs to the left
    labels[3:9, 2:5, 2:8] = 300
    return image, labels


def save(path, values, affine=AFFINE):
    nib.save((nib.MGHImage if path.suffix == ".mgz" else nib.Nifti1Image)(values, affine), path)
    return str(path)


@pytest.fixture
def case(tmp_path):
    """Label map and image tensors of a file on disk."""
    values, labels = arrays()
    image = LoadImage(ensure_channel_first=True)(save(tmp_path / "ann.t1.nii.gz", values))
    return MetaTensor(torch.from_numpy(labels[None]), affine=image.affine), image


# ---- tables


def test_volumes_counted_by_hand():
    _, labels = arrays()
    expected = pd.DataFrame(
        {
            "id": [4, 7, 300],
            "name": ["four", "seven", "three hundred"],
            "voxels": [180, 0, 108],
            "mm3": [1620.0, 0, 972],
        }
    )
    pd.testing.assert_frame_equal(volume_table(labels, AFFINE, TABLE), expected)
    pd.testing.assert_frame_equal(volume_table(torch.from_numpy(labels[None]).float(), 9, TABLE), expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 5, 4, 6], r"holds \[5, 6\], which LabelTable\(3 labels, ids 4 to 300\) does not have"),
        ([0.5, 0, 0, 0], r"integers >= 0, got 0.5"),
        ([-1, 0, 0, 0], r"integers >= 0, got -1"),
        ([np.nan, 0, 0, 0], r"integers >= 0, got nan"),
        ([np.inf, 0, 0, 0], r"integers >= 0, got inf"),
    ],
)
def test_volume_errors(values, message):
    with pytest.raises(ValueError, match=message):
        volume_table(np.array(values), 1, TABLE)


def test_dice_table_and_file(tmp_path):
    buffer = torch.tensor([[0.5, 1, torch.nan], [0.25, 0, 0.123456]])
    dice = dice_table(buffer, ["sub-01.v2", "bo"], TABLE)
    wide = dice.pivot(index="case", columns="id", values="dice").loc[["sub-01.v2", "bo"], list(TABLE.ids)]
    np.testing.assert_allclose(wide, buffer)
    assert dice["name"].tolist() == [*TABLE.names] * 2

    path = tmp_path / "dice.tsv"
    write_dice_tsv(dice, path)
    assert path.read_text(encoding="utf-8").splitlines()[3] == "sub-01.v2\t300\tthree hundred\tn/a"
    pd.testing.assert_frame_equal(pd.read_csv(path, sep="\t"), dice.round(4))
    with pytest.raises(FileExistsError, match=r"dice.tsv exists: .* overwrite=True"):
        write_dice_tsv(dice, path)
    write_dice_tsv(dice[:1], path, overwrite=True)
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2
    with pytest.raises(OSError, match=r"Cannot write .*/none/dice.tsv: "):
        write_dice_tsv(dice, tmp_path / "none/dice.tsv")
    with pytest.raises(ValueError, match=r"\(1 cases, 3 labels\), got \(2, 3\)"):
        dice_table(buffer, ["a"], TABLE)
    with pytest.raises(ValueError, match=r"`cases` must be unique names, got \['a', 'a'\]"):
        dice_table(buffer, ["a", "a"], TABLE)


def test_dice_summary_means_as_the_metric_does():
    lines = dice_summary(dice_table(torch.tensor([[0.5, 1, torch.nan], [0.25, 0, 0.5]]), ["ann", "bo"], TABLE))
    assert lines.splitlines() == ["ann  0.7500  2 labels", "bo   0.2500  3 labels", "mean 0.5000  2 cases"]


# ---- picture


def draw(path, image, labels, affine=AFFINE, **kwargs):
    qc_picture(image[None], labels[None], TABLE, path, affine, overwrite=True, **kwargs)
    return imread(path)[..., :3]


def pixels_of(picture, color):
    """Rows and columns of the pixels of a color."""
    return np.nonzero(np.all(np.abs(picture - color) < 0.1, axis=-1))


def axial_column(picture, color):
    """Mean column of a color in the plane at the right, the axial one."""
    columns = pixels_of(picture, color)[1]
    return columns[columns > 0.7 * picture.shape[1]].mean()


@pytest.mark.parametrize(("convention", "left_is_right"), [("radiological", True), ("neurological", False)])
def test_left_is_where_the_picture_says(tmp_path, convention, left_is_right):
    picture = draw(tmp_path / "qc.png", *arrays(), convention=convention)
    red, green = axial_column(picture, (1, 0, 0)), axial_column(picture, (0, 1, 0))
    assert (red > green) == left_is_right


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "SAR", "IRP"])
def test_same_picture_for_any_orientation_of_the_file(tmp_path, orientation):
    files = [nib.Nifti1Image(array, AFFINE) for array in arrays()]
    change = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(orientation))
    image, labels = (file.as_reoriented(change) for file in files)
    assert "".join(nib.aff2axcodes(image.affine)) == orientation
    np.testing.assert_array_equal(
        draw(tmp_path / "b.png", np.asarray(image.dataobj), np.asarray(labels.dataobj), image.affine),
        draw(tmp_path / "a.png", *arrays()),
    )


def test_planes_are_to_scale(tmp_path):
    """A cube of 24 mm is square in every plane, whatever the voxels."""
    labels = np.zeros((40, 30, 20), np.uint8)
    labels[10:34, 8:20, 6:14] = 4  # 24 x 12 x 8 voxels of 1 x 2 x 3 mm
    picture = draw(tmp_path / "qc.png", labels.astype(float), labels, np.diag([1, 2, 3, 1]))
    rows, columns = (np.unique(positions) for positions in pixels_of(picture, (1, 0, 0)))
    planes = np.split(columns, np.flatnonzero(np.diff(columns) > 50) + 1)
    assert len(planes) == 3
    assert np.ptp(rows) > 300
    for plane in planes:
        assert np.ptp(plane) == pytest.approx(np.ptp(rows), abs=4)


def test_everything_is_shown_up_to_the_edges(tmp_path):
    labels = np.zeros((21, 21, 21), np.uint8)
    labels[:2, 8:13, 8:13] = labels[-2:, 8:13, 8:13] = 4  # at either end of the first axis
    picture = draw(tmp_path / "qc.png", np.ones(labels.shape), labels, np.eye(4))
    columns = pixels_of(picture, (1, 0, 0))[1]
    # all three planes are as wide, and hardly less than a third of the picture
    assert np.ptp(columns[columns > 0.67 * picture.shape[1]]) > 0.31 * picture.shape[1]


def test_picture_of_nothing(tmp_path):
    image, labels = arrays()
    assert draw(tmp_path / "no_labels.png", image, 0 * labels).any()
    assert draw(tmp_path / "black.png", 0 * image, 0 * labels).any()
    assert draw(tmp_path / "nan.png", image * np.nan, labels, title="cost_$x$ of $").any()


def test_picture_leaves_matplotlib_alone(tmp_path):
    import matplotlib

    backend = matplotlib.rcParams._get_backend_or_none()
    draw(tmp_path / "qc.png", *arrays())
    assert matplotlib.rcParams._get_backend_or_none() == backend


def test_picture_errors(tmp_path):
    image, labels = arrays()
    path = tmp_path / "qc.png"
    with pytest.raises(ValueError, match=r"got \(12, 14, 10\) and \(1, 12, 14, 10\)"):
        qc_picture(image, labels[None], TABLE, path, AFFINE)
    with pytest.raises(ValueError, match="`affine` must be"):
        qc_picture(image[None], labels[None], TABLE, path)
    with pytest.raises(ValueError, match=r"holds \[300\], which"):
        qc_picture(image[None], labels[None], LabelTable.from_ids([4]), path, AFFINE)
    with pytest.raises(ValueError, match="did you mean 'neurological'"):
        qc_picture(image[None], labels[None], TABLE, path, AFFINE, convention="neurologic")
    path.touch()
    with pytest.raises(FileExistsError, match=r"/qc\.png exists"):
        qc_picture(image[None], labels[None], TABLE, path, AFFINE)


# ---- segmentation


def test_segmentation_is_named_after_its_file(case):
    label_map, image = case
    assert Segmentation(label_map, image, TABLE).case == "ann.t1"
    assert Segmentation(label_map, image, TABLE, case="subj1").case == "subj1"
    assert Segmentation(label_map, MetaTensor(image.as_tensor()), TABLE).case == "scan"
    with pytest.raises(FrozenInstanceError):
        Segmentation(label_map, image, TABLE).case = "bo"


def test_volumes_of_a_segmentation(case):
    label_map, image = case
    pd.testing.assert_frame_equal(
        Segmentation(label_map, image, TABLE).volumes, volume_table(arrays()[1], AFFINE, TABLE)
    )
    agreement = MetaTensor(torch.full(label_map.shape, 0.25))
    assert Segmentation(label_map, image, TABLE, agreement=agreement).volumes["agreement"][0] == 0.25


def test_a_scan_from_memory_is_saved(tmp_path):
    values, labels = arrays()
    image, label_map = (
        MetaTensor(torch.from_numpy(x[None]), affine=torch.from_numpy(AFFINE)) for x in (values, labels)
    )
    paths = Segmentation(label_map, image, TABLE).save(tmp_path, picture=False)
    assert [Path(path).name for path in paths.values()] == ["scan_dseg.tsv", "scan_volumes.tsv", "scan_dseg.nii.gz"]
    saved = nib.load(paths["dseg"])
    np.testing.assert_array_equal(np.asarray(saved.dataobj), labels)
    np.testing.assert_allclose(saved.affine, AFFINE, atol=1e-5)
    with pytest.raises(ValueError, match="The segmentation of the scan must have the shape"):
        Segmentation(label_map[..., :9], image, TABLE).save(tmp_path / "out")


def test_segmentation_and_transform_write_the_same_files(tmp_path, case):
    ours = Segmentation(*case, TABLE).save(tmp_path / "a")
    theirs = SaveSegmentation(tmp_path / "b", TABLE)(*case)
    assert list(ours) == list(theirs) == ["labels", "volumes", "qc", "dseg"]
    for kind, path in ours.items():
        assert Path(path).name == Path(theirs[kind]).name
        if kind in ("labels", "volumes"):
            assert Path(path).read_text(encoding="utf-8") == Path(theirs[kind]).read_text(encoding="utf-8")
    np.testing.assert_array_equal(imread(ours["qc"]), imread(theirs["qc"]))
    one, other = (nib.load(paths["dseg"]) for paths in (ours, theirs))
    assert one.header == other.header
    np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))


@pytest.mark.parametrize(("voxels", "same"), [(0.09, True), (0.11, False)])
def test_a_tenth_of_a_voxel_off_is_the_same_grid(tmp_path, case, voxels, same):
    label_map, image = case
    affine = image.affine.clone()
    affine[2, 3] += 1.5 * voxels  # the shortest edge of a voxel is 1.5 mm
    result = Segmentation(MetaTensor(label_map.as_tensor(), affine=affine), image, TABLE)
    if same:
        saved = nib.load(result.save(tmp_path, picture=False)["dseg"])
        np.testing.assert_array_equal(saved.affine, nib.load(tmp_path / "ann.t1.nii.gz").affine)
    else:
        with pytest.raises(ValueError, match=r"must have the affine of the image, got one up to 0\.165 mm off"):
            result.save(tmp_path, picture=False)


# ---- files


def test_files_of_a_case(tmp_path, case):
    paths = SaveSegmentation(tmp_path / "out/deep", TABLE)(*case)
    assert {kind: Path(path).name for kind, path in paths.items()} == {
        "labels": "ann.t1_dseg.tsv",
        "volumes": "ann.t1_volumes.tsv",
        "qc": "ann.t1_qc.png",
        "dseg": "ann.t1_dseg.nii.gz",
    }
    assert sorted(map(str, (tmp_path / "out/deep").iterdir())) == sorted(paths.values())

    source, saved = nib.load(tmp_path / "ann.t1.nii.gz"), nib.load(paths["dseg"])
    np.testing.assert_array_equal(np.asarray(saved.dataobj), arrays()[1])
    assert saved.get_data_dtype() == np.uint16
    assert np.isnan(saved.header["scl_slope"])
    np.testing.assert_array_equal(saved.affine, source.affine)
    assert LabelTable.read(paths["labels"]) == TABLE
    pd.testing.assert_frame_equal(pd.read_csv(paths["volumes"], sep="\t"), volume_table(arrays()[1], AFFINE, TABLE))
    assert imread(paths["qc"]).shape[1] > 1000


@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (4, 1), (0, 1), (2, 0), (0, 0)])
def test_qform_and_sform_are_those_of_the_source(tmp_path, sform, qform):
    values, labels = arrays()
    source = nib.Nifti1Image(values, np.diag([1.5, 2, 3, 1]))
    source.set_qform(np.diag([-1.5, 2, 3, 1]), qform)  # says something else than the sform
    source.set_sform(AFFINE, sform)
    nib.save(source, tmp_path / "ann.nii")
    source = nib.load(tmp_path / "ann.nii")
    image = LoadImage(ensure_channel_first=True)(tmp_path / "ann.nii")
    paths = SaveSegmentation(tmp_path, TABLE, picture=False)(MetaTensor(labels[None], affine=image.affine), image)
    saved = nib.load(paths["dseg"])
    np.testing.assert_allclose(saved.affine, source.affine, atol=1e-5)
    for get in ("get_qform", "get_sform"):
        expected, code = getattr(source, get)(coded=True)
        affine, saved_code = getattr(saved, get)(coded=True)
        assert saved_code == code
        assert expected is affine is None or np.allclose(affine, expected, atol=1e-5)


def test_source_that_is_no_nifti(tmp_path):
    values, labels = arrays()
    image = LoadImage(reader="NibabelReader", ensure_channel_first=True)(save(tmp_path / "T1.mgz", values))
    label_map = MetaTensor(labels[None], affine=image.affine)
    saved = nib.load(SaveSegmentation(tmp_path, TABLE, picture=False)(label_map, image)["dseg"])
    assert saved.get_filename().endswith("/T1_dseg.nii.gz")
    np.testing.assert_allclose(saved.affine, AFFINE, atol=1e-4)
    for form in (saved.get_qform(coded=True), saved.get_sform(coded=True)):
        assert form[1] == 1
        np.testing.assert_allclose(form[0], AFFINE, atol=1e-4)


@pytest.mark.parametrize("existing", ["dseg.nii.gz", "dseg.tsv", "volumes.tsv", "qc.png"])
def test_results_are_kept(tmp_path, case, existing):
    path = tmp_path / f"out/ann.t1_{existing}"
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(FileExistsError, match=rf"{path} exists: .* overwrite=True"):
        SaveSegmentation(path.parent, TABLE)(*case)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.read_text(encoding="utf-8") == "precious"
    SaveSegmentation(path.parent, TABLE, overwrite=True)(*case)
    assert path.read_bytes() != b"precious"
    assert len(list(path.parent.iterdir())) == 4


def test_disk_errors_name_the_file(tmp_path, case, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Cannot write to the output folder .*/file/out: "):
        SaveSegmentation(tmp_path / "file/out", TABLE)(*case)

    def full(image, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(OSError, match=r"Cannot write .*/out/ann.t1_dseg.nii.gz: No space left on device"):
        SaveSegmentation(tmp_path / "out", TABLE)(*case)
    assert not list((tmp_path / "out").glob("*dseg.nii.gz"))
    assert not list((tmp_path / "out").glob(".*"))  # nor a temporary file


def test_grid_and_values_are_checked(tmp_path, case):
    label_map, image = case
    save = SaveSegmentation(tmp_path / "out", TABLE)
    with pytest.raises(
        ValueError, match=r"of .*/ann.t1.nii.gz must have the shape .* got \(1, 12, 14, 9\) for \(1, 12,"
    ):
        save(label_map[..., :9], image)
    with pytest.raises(ValueError, match=r"ann.t1.nii.gz must have the affine of the image, got one up to \d+"):
        save(MetaTensor(label_map.as_tensor(), affine=torch.eye(4)), image)
    with pytest.raises(ValueError, match=r"segmentation of .*/ann.t1.nii.gz: The label map holds \[8\]"):
        save(torch.where(label_map == 4, 8, label_map), image)
    assert not (tmp_path / "out").exists()


def test_last_of_a_postprocessing(tmp_path):
    """Load, reorient and resample; "predict"; invert, save: the file has the grid of the source again."""
    values, _ = arrays()
    path = save(tmp_path / "bo.nii.gz", values)
    pre = Compose(
        [
            LoadImaged(["image", "source"], ensure_channel_first=True),
            Orientationd("image", "RAS", labels=None),
            Spacingd("image", (2.0, 2.0, 2.0)),
        ]
    )
    post = Compose(
        [
            Invertd("pred", pre, orig_keys="image", nearest_interp=True),
            SaveSegmentationd("pred", output_dir=tmp_path / "out", label_table=TABLE, picture=False),
        ]
    )
    (batch,) = DataLoader(Dataset([{"image": path, "source": path}], pre), batch_size=1)
    batch["pred"] = (batch["image"] > 0.5) * 4
    (item,) = decollate_batch(batch)
    before = set(item)
    out = post(item)
    assert set(item) == before
    saved = nib.load(out["saved"]["dseg"])
    np.testing.assert_allclose(saved.affine, AFFINE, atol=1e-5)
    assert saved.shape == SHAPE
    assert int(saved.header["sform_code"]) == int(nib.load(path).header["sform_code"])
    assert set(np.unique(saved.dataobj)) == {0, 4}


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install matplotlib, or draw none \(picture=False, --no-picture\)"):
        SaveSegmentation(tmp_path, TABLE)
    SaveSegmentation(tmp_path, TABLE, picture=False)


def test_dictionary_transform(tmp_path, case):
    TABLE.write(tmp_path / "table.tsv")
    transform = SaveSegmentationDict(
        "pred", "scan", output_dir=tmp_path / "out", label_table=tmp_path / "table.tsv", picture=False
    )
    transform = pickle.loads(pickle.dumps(transform))
    data = {"pred": case[0], "scan": case[1]}
    assert set(transform(data)) == {"pred", "scan", "saved"}
    assert set(data) == {"pred", "scan"}
    saved = transform({**data, "case": "subj1_mri_T1"})["saved"]
    assert saved["dseg"] == f"{tmp_path}/out/subj1_mri_T1_dseg.nii.gz"
    for name in ("../ann", "a/b", ""):
        with pytest.raises(ValueError, match=rf"`case` must be a file name .* got '{name}' for .*ann.t1.nii.gz"):
            transform({**data, "case": name})
    with pytest.raises(KeyError, match="pred"):
        transform({"scan": case[1]})
    with pytest.raises(ValueError, match="`keys` must be one key"):
        SaveSegmentationd(["a", "b"], output_dir=tmp_path, label_table=TABLE)


def test_methods_side_by_side(tmp_path, capsys):
    table = LabelTable.from_ids([4, 7])
    better = dice_table(torch.tensor([[1.0, 0.5], [0.5, torch.nan]]), ["ann", "bo"], table)
    worse = dice_table(torch.tensor([[0.5, 0.25], [0.25, torch.nan]]), ["ann", "bo"], table)
    for name, dice in (("better", better), ("worse", worse)):
        write_dice_tsv(dice, tmp_path / f"{name}.tsv")
    main([f"a={tmp_path}/better.tsv", f"b={tmp_path}/worse.tsv"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["mean", "0.625", "0.3125"] in rows
    with pytest.raises(ValueError, match="a and b must be scored on the same cases and labels"):
        compare_dice({"a": better, "b": worse.iloc[:2]})


def test_agreement_of_atlases_by_label():
    label_map = torch.tensor([[[[4, 4, 9, 0]]]])
    agreement = torch.tensor([[[[0.5, 1.0, 0.25, 0.9]]]])
    table = volume_table(label_map, 1.0, LabelTable.from_ids([4, 7, 9]), agreement)
    np.testing.assert_array_equal(table["agreement"], [0.75, np.nan, 0.25])
    assert "agreement" not in volume_table(label_map, 1.0, LabelTable.from_ids([4, 7, 9]))
    with pytest.raises(ValueError, match=r"must have the label map's shape \(1, 1, 1, 4\), got \(1, 1, 1, 1\)"):
        volume_table(label_map, 1.0, LabelTable.from_ids([4, 7, 9]), agreement[..., :1])


def test_agreement_is_saved(tmp_path):
    image = MetaTensor(torch.rand(1, 6, 6, 6), meta={"filename_or_obj": "ann.nii.gz"})
    save = SaveSegmentationd("pred", "image", output_dir=tmp_path, label_table=LabelTable.from_ids([4]), picture=False)
    pred, agreement = ((image > 0.5) * 4).int(), MetaTensor(torch.full((1, 6, 6, 6), 0.75))
    voted = pred.clone()
    save({"image": image, "pred": pred, "atlas_label": voted, "agreement": agreement})
    assert (tmp_path / "ann_volumes.tsv").read_text(encoding="utf-8").split("\n")[1].endswith("\t0.75")


def test_agreement_on_another_label_is_none(tmp_path):
    image = MetaTensor(torch.rand(1, 6, 6, 6), meta={"filename_or_obj": "ann.nii.gz"})
    table = LabelTable.from_ids([4, 7])
    save = SaveSegmentationd("pred", "image", output_dir=tmp_path, label_table=table, picture=False)
    pred = MetaTensor(torch.full((1, 6, 6, 6), 4, dtype=torch.int32))
    voted = pred.clone()
    voted[:, :3] = 7
    save({"image": image, "pred": pred, "atlas_label": voted, "agreement": torch.full((1, 6, 6, 6), 0.8)})
    assert (tmp_path / "ann_volumes.tsv").read_text(encoding="utf-8").split("\n")[1].endswith("\t0.4")


def test_words_of_labels_are_told_apart():
    """A name with its id may be another label's name, also where cases are not told apart."""
    for names in (["area", "area", "area 1"], ["Insula", "insula", "insula 1"], ["a1", "a11", "a1", "a11", "a1 1"]):
        words = label_words(LabelTable(Label(i, name) for i, name in enumerate(names, start=1)))
        assert len({word.lower() for word in words.values()}) == len(names), words


@pytest.mark.parametrize(("largest", "dtype"), [(200, np.uint8), (3000, np.int16), (70_000, np.int32)])
def test_label_maps_of_freesurfer_hold_all_ids(case, tmp_path, largest, dtype):
    labels = torch.where(case[0] == 300, largest, 0)
    labels = MetaTensor(labels.as_tensor(), affine=case[1].affine)
    result = Segmentation(labels, case[1], LabelTable.from_ids([largest]), {}, case="ann")
    result.save(tmp_path / "out", picture=False, ending=".mgz")
    written = nib.load(tmp_path / "out/ann_dseg.mgz")
    assert written.get_data_dtype() == np.dtype(dtype).newbyteorder(">")
    np.testing.assert_array_equal(np.asarray(written.dataobj), labels[0].numpy())


def test_files_that_stay_of_an_earlier_result_are_named(case, tmp_path):
    result = Segmentation(case[0], case[1], TABLE, {}, case="ann")
    result.save(tmp_path, masks=True)
    (tmp_path / "ann_dseg.seg.nrrd").touch()  # somebody's
    with pytest.warns(UserWarning, match="stay as they are: ann_qc.*, ann_label-four_mask"):
        result.save(tmp_path, overwrite=True, picture=False)
    assert (tmp_path / "ann_label-four_mask.nii.gz").is_file()


@pytest.mark.parametrize(
    ("words", "message"), [(["a.tsv"], "give each table a name, NAME=a.tsv"), (["a=nowhere.tsv"], "nowhere.tsv")]
)
def test_mistakes_in_a_comparison_are_one_sentence(words, message, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert message in capsys.readouterr().err
