"""A scan in, files out: the skull, the file types, the files on request, and mistakes of every kind."""

import itertools
import json
import re
import sys
import threading
import warnings
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from helpers import save_nifti, voxels
from monai.data import MetaTensor
from monai.transforms import Spacing
from scipy import ndimage

import monai_lcs as lcs
from monai_lcs import cli
from monai_lcs.atlas import ALIGNMENTS
from monai_lcs.atlas.named import T1, packaged
from monai_lcs.cli import options
from monai_lcs.labels import Label, LabelTable
from monai_lcs.pipeline import Preprocessing, make_network
from monai_lcs.pipeline.record import noted_warnings
from monai_lcs.pipeline.scan_to_files import Output, segment_to_files
from monai_lcs.pipeline.skull import has_skull
from monai_lcs.results.dicom_seg import read_slices, write_dicom_seg
from monai_lcs.study.bids import find_t1w
from monai_lcs.study.checks import check_t1, read_label_map, read_scan

MM = 4.0
SHAPE = (24, 26, 22)
AFFINE = np.array([[MM, 0, 0, -48], [0, MM, 0, -52], [0, 0, MM, -44], [0, 0, 0, 1]])
BLOBS = {11: ((-16, 10, 4), (10, 14, 10), 90), 50: ((16, 8, 6), (9, 12, 12), 70), 16: ((0, -14, -16), (11, 10, 13), 55)}
TABLE = LabelTable(
    [Label(11, "Left-Caudate", "striatum", "L"), Label(50, "Right-Caudate", "striatum", "R"), Label(16, "Brain-Stem")]
)


def phantom():
    """A brain with three blobs in it, the labels of the blobs, and the mask of the brain."""
    xyz = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1) @ AFFINE[:3, :3] + AFFINE[:3, 3]
    brain = ((xyz / (34, 38, 32)) ** 2).sum(-1) < 1
    image, labels = 40.0 * brain, np.zeros(SHAPE, np.int16)
    for label, (center, radii, grey) in BLOBS.items():
        inside = (((xyz - center) / radii) ** 2).sum(-1) < 1
        image[inside], labels[inside] = grey, label
    image += 0.01 * xyz[..., 2] * (image > 0)
    return image.astype(np.float32), labels, brain


def with_skull(image, brain):
    """The same with dark bone around it, and bright skin around that."""
    distance = ndimage.distance_transform_edt(~brain, sampling=np.linalg.norm(AFFINE[:3, :3], axis=0))
    head = image.copy()
    head[(distance > 4) & (distance < 10)] = 95
    return head


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    image, labels, brain = phantom()
    save_nifti(image, folder / "T1w.nii.gz", AFFINE)
    save_nifti(labels, folder / "dseg.nii.gz", AFFINE)
    save_nifti(brain.astype(np.uint8), folder / "mask.nii.gz", AFFINE)
    save_nifti(with_skull(image, brain), folder / "head.nii.gz", AFFINE)
    TABLE.write(folder / "dseg.tsv")
    torch.manual_seed(0)
    settings = lcs.Settings(align="none", spacing=(MM, MM, MM), channels=(4, 8), margin_mm=8.0)
    network = make_network(settings)
    torch.nn.init.normal_(network.head.weight, std=0.5)  # what it answers depends on what it sees
    torch.save(network.state_dict(), folder / "model.pt")
    settings.write(folder / "model.json")
    return folder


@pytest.fixture
def words(folder):
    atlas = [str(folder / name) for name in ("T1w.nii.gz", "dseg.nii.gz", "dseg.tsv")]
    return ["--atlas", *atlas, "--weights", str(folder / "model.pt"), "--no-picture"]


@pytest.fixture
def deepbet(folder, monkeypatch):
    """In the place of deepbet: the true mask of the brain, as it gives one."""

    class Extraction:
        def __init__(self, no_gpu):
            assert no_gpu

        def run(self, image):
            return image, nib.Nifti1Image(voxels(folder / "mask.nii.gz"), image.affine), 0.0

    monkeypatch.setitem(sys.modules, "deepbet", SimpleNamespace(BrainExtraction=Extraction))


# ---- is there a skull -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def brain():
    return Spacing(pixdim=(2, 2, 2))(read_scan(packaged(*T1)))


def head_of(brain):
    """A head around the average brain: 8 mm of bone, 6 mm of fat and skin."""
    values = brain.as_tensor().numpy()[0]
    distance = 2 * ndimage.distance_transform_edt(~ndimage.binary_fill_holes(values > 0))
    head = values + 0.1 * values.max() * (distance > 0) * (distance < 10)
    head[(distance > 10) & (distance < 16)] = values.max()
    return MetaTensor(torch.from_numpy(head)[None], affine=brain.affine)


def noisy(scan):
    noise = np.random.default_rng(0).normal(0, 0.07 * float(scan.max()), (2, *scan.shape))
    return MetaTensor(torch.from_numpy(np.hypot(scan.numpy() + noise[0], noise[1])).float(), affine=scan.affine)


CHANGES = {
    "as it is": lambda scan: scan,
    "noise": noisy,
    "thick slices": lambda scan: Spacing(pixdim=(2, 2, 5))(scan),
    "a slab": lambda scan: scan[:, :, :, 40:60],
    "a child": lambda scan: MetaTensor(
        scan.as_tensor(), affine=scan.affine @ torch.diag(torch.tensor([0.7, 0.7, 0.7, 1]).double())
    ),
    "uneven": lambda scan: scan * torch.linspace(0.5, 1.5, scan.shape[3])[:, None].T[None, None],
    "turned": lambda scan: MetaTensor(scan.as_tensor().permute(0, 3, 1, 2), affine=scan.affine[:, [2, 0, 1, 3]]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_skull_is_seen(brain, change):
    assert not has_skull(CHANGES[change](brain))
    assert has_skull(CHANGES[change](head_of(brain)))


def test_the_skull_of_a_real_average_head():
    chimera = pytest.importorskip("chimera")
    head = next((p for p in chimera.__path__), None)
    assert has_skull(read_scan(f"{head}/data/vol_atlases/tpl-MNI152NLin2009cAsym_res-01_T1w.nii.gz"))


def test_a_name_without_a_file_is_an_error_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "monai_lcs.cohort", None)  # nothing that takes seconds is imported
    out = tmp_path / "out"
    assert cli.main(["segment", str(tmp_path / "no.nii.gz"), "-o", str(out)]) == 2
    assert capsys.readouterr().err == f"Error: There is no {tmp_path / 'no.nii.gz'}.\n"
    assert cli.main(["segment", str(tmp_path / "no.nii.gz"), "nor.nii.gz", "-o", str(out)]) == 2
    assert "no.nii.gz, nor any of the others." in capsys.readouterr().err
    assert cli.main(["segment", "n" * 300, "-o", str(out)]) == 2
    assert capsys.readouterr().err == f"Error: There is no {'n' * 300}.\n"
    assert cli.main(["train", str(tmp_path / "study"), "-o", str(out), "--atlas", "desikan-killiany"]) == 2
    assert capsys.readouterr().err == f"Error: There is no folder {tmp_path / 'study'}.\n"
    assert not out.exists()


# ---- without the skull ----------------------------------------------------------------------------------------------


def label_map(folder, name):
    return voxels(folder / f"{name}_dseg.nii.gz")


@pytest.mark.usefixtures("deepbet")
def test_a_head_gives_what_its_brain_gives(folder, words, tmp_path, capsys):
    assert cli.main(["segment", str(folder / "T1w.nii.gz"), "-o", str(tmp_path), *words, "--strip", "no"]) == 0
    for name, more in {"auto": [], "yes": ["--strip", "yes"], "given": ["--mask", str(folder / "mask.nii.gz")]}.items():
        out = tmp_path / name
        assert cli.main(["segment", str(folder / "head.nii.gz"), "-o", str(out), *words, *more]) == 0
        np.testing.assert_array_equal(label_map(out, "head"), label_map(tmp_path, "T1w"))
        mask = voxels(out / "head_desc-brain_mask.nii.gz")
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, phantom()[2])
        volumes = pd.read_csv(out / "head_volumes.tsv", sep="\t")
        assert set(volumes.intracranial_mm3) == {MM**3 * phantom()[2].sum()}
    said = capsys.readouterr().err
    assert "head.nii.gz: skull seen, removed by deepbet." in said
    # with the skull it is another result: the mask matters
    assert cli.main(["segment", str(folder / "head.nii.gz"), "-o", str(tmp_path), *words, "--strip", "no"]) == 0
    assert (label_map(tmp_path, "head") != label_map(tmp_path, "T1w")).any()


def test_a_brain_stays_as_it_is(folder, words, tmp_path, capsys):
    assert cli.main(["segment", str(folder / "T1w.nii.gz"), "-o", str(tmp_path), *words]) == 0
    assert "T1w.nii.gz: no skull seen." in capsys.readouterr().err
    assert not (tmp_path / "T1w_desc-brain_mask.nii.gz").exists()
    assert "intracranial" not in (tmp_path / "T1w_volumes.tsv").read_text(encoding="utf-8")


def test_an_atlas_with_a_skull_keeps_that_of_the_scan(folder, words, tmp_path, capsys):
    words[1] = str(folder / "head.nii.gz")
    assert cli.main(["segment", str(folder / "head.nii.gz"), "-o", str(tmp_path), *words]) == 0
    assert "skull kept, as the atlas has one as well" in capsys.readouterr().err


def test_a_skull_that_nobody_looked_for_is_warned_of(folder):
    atlas = lcs.Atlas.read(folder / "T1w.nii.gz", folder / "dseg.nii.gz", folder / "dseg.tsv")
    settings = lcs.Settings(align="rigid", spacing=(MM, MM, MM))
    with pytest.warns(UserWarning, match=r"head\.nii\.gz: a skull seems to be there, and the atlas has none"):
        Preprocessing(atlas, settings)({"image": folder / "head.nii.gz"})  # the bundle's way
    with pytest.warns(UserWarning, match="a skull seems to be there"):
        lcs.Segmenter(atlas, settings=settings)(folder / "head.nii.gz")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*skull")
        lcs.Segmenter(atlas, settings=settings)(folder / "T1w.nii.gz")
        lcs.Segmenter(atlas, settings=settings, strip="no")(folder / "head.nii.gz")
        with_skull = lcs.Atlas.read(folder / "head.nii.gz", folder / "dseg.nii.gz", folder / "dseg.tsv")
        lcs.Segmenter(with_skull, settings=settings)(folder / "head.nii.gz")


@pytest.mark.parametrize("strip", ["auto", "yes"])
def test_without_deepbet_a_skull_is_an_error_that_says_what_to_install(
    folder, words, tmp_path, monkeypatch, capsys, strip
):
    monkeypatch.setitem(sys.modules, "deepbet", None)
    scans = [str(folder / "head.nii.gz"), str(folder / "T1w.nii.gz")]
    assert cli.main(["segment", *scans, "-o", str(tmp_path), *words, "--strip", strip]) == 1
    error = capsys.readouterr().err.splitlines()
    assert any("head.nii.gz: a skull" in line and "pip install 'monai-lcs[strip]'" in line for line in error)
    assert (tmp_path / "T1w_dseg.nii.gz").exists() == (strip == "auto")


def test_the_mask_is_drawn(tmp_path):
    from matplotlib.image import imread

    image, labels, brain = phantom()
    volumes = (
        MetaTensor(torch.from_numpy(x * 1)[None], affine=torch.from_numpy(AFFINE)) for x in (image, labels, brain)
    )
    scan, label_map, mask = volumes
    for name, drawn in {"with": mask, "without": None}.items():
        lcs.Segmentation(label_map, scan, TABLE, case=name, mask=drawn).save(tmp_path)
    with_mask, without = (imread(tmp_path / f"{name}_qc.png")[200:, :, :3] for name in ("with", "without"))
    white = (with_mask > 0.9).all(-1) & ~(without > 0.9).all(-1)
    assert white.sum() > 300


# ---- files ----------------------------------------------------------------------------------------------------------


def save_any(array, path, affine):
    if path.suffix == ".mgz":
        nib.save(nib.MGHImage(array, affine), path)
    elif path.suffix in (".nrrd", ".mha"):
        lps = np.diag([-1, -1, 1, 1]) @ affine
        volume = sitk.GetImageFromArray(array.T)
        volume.SetSpacing([MM] * 3)
        volume.SetDirection((lps[:3, :3] / MM).ravel().tolist())
        volume.SetOrigin(lps[:3, 3].tolist())
        sitk.WriteImage(volume, str(path))
    else:
        nib.save(nib.Nifti1Image(array, affine), path)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mgz", ".nrrd", ".mha"])
def test_results_have_the_file_type_of_the_scan(folder, words, tmp_path, ending):
    image = nib.load(folder / "T1w.nii.gz")
    oblique = AFFINE @ nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.05, -0.07), (1, 2, 3))
    scan, labels = tmp_path / f"ann{ending}", tmp_path / f"labels{ending}"
    save_any(np.asarray(image.dataobj), scan, oblique)
    save_any(voxels(folder / "dseg.nii.gz").astype(np.int32), labels, oblique)
    words = ["--atlas", str(scan), str(labels), str(folder / "dseg.tsv"), "--weights", "none", "--align", "none"]
    words = [*words, "--no-picture"]
    assert cli.main(["segment", str(scan), "-o", str(tmp_path / "out"), *words, "--masks"]) == 0
    own = ".nii.gz" if ending == ".nii" else ending
    found, source = read_label_map(tmp_path / f"out/ann_dseg{own}"), read_scan(scan)
    np.testing.assert_allclose(found.affine, source.affine, atol=1e-4)
    assert found.shape == source.shape
    assert set(found.unique().tolist()) == {0, 11, 16, 50}
    if ending == ".nrrd":
        assert sitk.ReadImage(str(tmp_path / "out/ann_dseg.nrrd")).GetPixelID() == sitk.sitkUInt8
    mask = read_label_map(tmp_path / f"out/ann_label-BrainStem_mask{ending}")
    np.testing.assert_array_equal(mask, found == 16)
    copy = read_label_map(tmp_path / "out/ann_dseg.nii.gz")
    np.testing.assert_array_equal(copy, found)
    np.testing.assert_allclose(copy.affine, found.affine, atol=1e-4)


@pytest.mark.parametrize("forms", [(1, 0), (0, 1), (4, 2)], ids=["sform", "qform", "both"])
def test_left_stays_left_in_all_48_orientations(folder, tmp_path, forms):
    atlas = lcs.Atlas.read(*(folder / name for name in ("T1w.nii.gz", "dseg.nii.gz", "dseg.tsv")))
    segmenter = lcs.Segmenter(atlas, settings=lcs.Settings(align="none", spacing=(MM, MM, MM)))
    straight, labels = nib.load(folder / "T1w.nii.gz"), voxels(folder / "dseg.nii.gz")
    orientations = [
        np.array([*zip(axes, flips, strict=True)])
        for axes in itertools.permutations(range(3))
        for flips in itertools.product((1, -1), repeat=3)
    ]
    assert len(orientations) == 48
    for orientation in orientations:
        turned = straight.as_reoriented(orientation)
        affine = turned.affine.copy()
        for set_form, code in zip((turned.set_sform, turned.set_qform), forms, strict=True):
            set_form(affine if code else None, code)
        nib.save(turned, tmp_path / "turned.nii.gz")
        paths = segmenter(tmp_path / "turned.nii.gz").save(tmp_path, overwrite=True, picture=False)
        found = nib.load(paths["dseg"])
        np.testing.assert_array_equal(np.asarray(found.dataobj), nib.apply_orientation(labels, orientation))
        left = nib.affines.apply_affine(found.affine, np.argwhere(np.asarray(found.dataobj) == 11))
        right = nib.affines.apply_affine(found.affine, np.argwhere(np.asarray(found.dataobj) == 50))
        assert left[:, 0].max() < 0 < right[:, 0].min() + MM


def test_probabilities_are_those_of_the_label_map(folder, words, tmp_path):
    run = ["segment", str(folder / "T1w.nii.gz"), "-o", str(tmp_path), *words, "--probabilities", "--masks"]
    assert cli.main([*run, "--labels", "lobe:striatum", "Brain-Stem"]) == 0
    names = {11: "LeftCaudate", 16: "BrainStem", 50: "RightCaudate"}
    probabilities = np.stack([voxels(tmp_path / f"T1w_label-{name}_probseg.nii.gz") for name in names.values()])
    assert probabilities.min() >= 0
    assert probabilities.max() <= 1
    best = np.where(probabilities.max(0) > 0.5, np.array(list(names))[probabilities.argmax(0)], 0)
    found = label_map(tmp_path, "T1w")
    assert (found > 0).sum() > 50
    assert (best == found).mean() > 0.99
    for id, name in names.items():
        np.testing.assert_array_equal(voxels(tmp_path / f"T1w_label-{name}_mask.nii.gz"), found == id)


def test_the_record_says_how_it_came_about(folder, words, tmp_path, recwarn):
    warnings.simplefilter("always")
    image, _, _ = phantom()
    save_nifti(np.where(image > 0, image * 10, -1000).astype(np.float32), tmp_path / "ct.nii.gz", AFFINE)
    run = ["segment", str(tmp_path / "ct.nii.gz"), "-o", str(tmp_path), *words, "--strip", "no", "--threads", "1"]
    assert cli.main(run) == 0
    record = json.loads((tmp_path / "ct_run.json").read_text(encoding="utf-8"))
    assert any("ct.nii.gz looks like CT (values from -1000 to" in text for text in record["warnings"])
    assert any("looks like CT" in str(each.message) for each in recwarn)  # shown as well
    assert record["versions"]["torch"] == torch.__version__
    assert record["weights"]["file"] == str(folder / "model.pt")
    assert record["atlas"]["label"] == str(folder / "dseg.nii.gz")
    assert record["settings"]["align"] == "none"
    assert record["settings"]["strip"] == "no"
    assert record["command"]["threads"] == record["threads"] == 1
    assert set(record["seconds"]) > {"read", "skull", "align", "predict", "total"}
    assert record["memory_mb"] > 100


def test_the_picture_says_which_atlas_and_weights(folder, words, tmp_path, monkeypatch):
    titles = []

    def draw(*volumes_and_path, title, **_):
        titles.append(title)
        volumes_and_path[3].touch()

    monkeypatch.setattr("monai_lcs.results.segmentation.qc_picture", draw)
    words.remove("--no-picture")
    run = ["segment", str(folder / "T1w.nii.gz"), *words, "-o"]
    assert cli.main([*run, str(tmp_path / "a")]) == 0
    assert cli.main([*run, str(tmp_path / "b"), "--weights", "none", "--align", "none"]) == 0
    assert titles == [f"T1w (atlas dseg.nii.gz, weights {name})" for name in ("model.pt", "none")]


def test_tables_for_other_programs(folder, words, tmp_path):
    run = ["segment", str(folder / "T1w.nii.gz"), "-o", str(tmp_path), *words, "--tables", "slicer", "itksnap"]
    assert cli.main(run) == 0
    for ending in (".ctbl", ".label"):
        assert LabelTable.read(tmp_path / f"T1w_dseg{ending}").names == TABLE.names


# ---- mistakes -------------------------------------------------------------------------------------------------------


def test_list_labels(words, capsys):
    assert cli.main(["segment", "--list-labels", *words]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "11\tLeft-Caudate\tstriatum\tL"
    assert cli.main(["segment", "--list-labels", *words, "--labels", "lobe:str*"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def bad_scans(folder):
    image, labels, _ = phantom()
    save_nifti(np.stack([image] * 4, -1), folder / "fmri.nii.gz", AFFINE)
    save_nifti(labels.astype(np.float32), folder / "labels.nii.gz", AFFINE)
    save_nifti(np.random.default_rng(0).random(SHAPE).astype(np.float32), folder / "noise.nii.gz", AFFINE)
    (folder / "file").write_text("")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "Give a scan"),
        (["T1w.nii.gz", "--labels", "Left-Caudat"], 2, "'Left-Caudat' names no label .*nearest: 'Left-Caudate'"),
        (["T1w.nii.gz", "--labels", "lobe:frontal"], 2, "'frontal' is no coarse name .*they are 'striatum'"),
        (["T1w.nii.gz", "--labels", "99"], 2, "no label 99"),
        (["T1w.nii.gz", "--threads", "0"], 2, "--threads must be 1 or more, got 0"),
        (["T1w.nii.gz", "-o", "file"], 2, "Cannot write to the output folder .*file"),
        (
            ["T1w.nii.gz", "head.nii.gz", "--mask", "mask.nii.gz"],
            2,
            "--mask mask.nii.gz is the mask of one scan, got 2",
        ),
        (["head.nii.gz", "--mask", "small.nii.gz"], 1, "head.nii.gz and small.nii.gz must have the same grid"),
        (["head.nii.gz", "--mask", "zero.nii.gz"], 1, "zero.nii.gz is 0 everywhere: give a mask"),
        (["fmri.nii.gz"], 1, "fmri.nii.gz must be 3D, got a 4D file"),
        (
            ["labels.nii.gz"],
            1,
            r"labels.nii.gz looks like a label map \(3 values, \d+ % of neighbors equal\)",
        ),
        (
            ["T1w.nii.gz", "--weights", "none", "--probabilities"],
            2,
            "--probabilities are those of a network: --weights none has none",
        ),
        (["T1w.nii.gz", "--mask", "nowhere.nii.gz"], 2, "--mask takes a file, and nowhere.nii.gz is none"),
    ],
)
def test_each_mistake_is_one_sentence(folder, words, tmp_path, monkeypatch, capsys, arguments, status, message):
    bad_scans(folder)
    save_nifti(np.zeros(SHAPE, np.uint8), folder / "zero.nii.gz", AFFINE)
    save_nifti(np.ones((4, 4, 4), np.uint8), folder / "small.nii.gz", AFFINE)
    monkeypatch.chdir(folder)
    out = [] if "-o" in arguments else ["-o", str(tmp_path)]
    assert cli.main(["segment", *words, *arguments, *out]) == status
    assert_said(capsys, message)


def assert_said(capsys, message):

    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "Traceback" not in error


def test_another_body_part_fails_with_its_figure(folder, words, tmp_path, monkeypatch, capsys):
    bad_scans(folder)
    monkeypatch.setattr("monai_lcs.atlas.registration.overlap", lambda *_: 0.12)
    words[words.index("--weights") + 1] = "none"
    assert (
        cli.main(
            ["segment", str(folder / "noise.nii.gz"), "-o", str(tmp_path), *words, "--align", "rigid", "--strip", "no"]
        )
        == 1
    )
    assert_said(
        capsys, r"noise.nii.gz failed: the overlap of the foregrounds is 0.12, below min_overlap=0.5; check that"
    )


def test_no_such_atlas(folder, tmp_path, capsys):
    assert cli.main(["segment", str(folder / "T1w.nii.gz"), "-o", str(tmp_path), "--atlas", "brodman"]) == 2
    assert_said(capsys, "no atlas named 'brodman', only: desikan-killiany")


def test_a_scan_of_whole_numbers_is_no_label_map(brain):
    check_t1(brain, "brain")
    check_t1((brain / brain.max() * 60).round(), "few greys")


def test_quiet_says_nothing(folder, words, tmp_path, capsys):
    assert cli.main(["segment", str(folder / "T1w.nii.gz"), "-o", str(tmp_path), *words, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


# ---- DICOM and BIDS -------------------------------------------------------------------------------------------------


def write_series(volume, folder, uid, description):
    """Write a SimpleITK volume as DICOM slices."""
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = np.reshape(volume.GetDirection(), (3, 3))
    orientation = "\\".join(map(str, [*direction[:, 0], *direction[:, 1]]))
    for z in range(volume.GetSize()[2]):
        plane = volume[:, :, z]
        position = "\\".join(map(str, volume.TransformIndexToPhysicalPoint((0, 0, z))))
        tags = {"0008|0060": "MR", "0020|000e": uid, "0020|000d": "1.2.3", "0008|103e": description}
        tags |= {"0020|0052": "1.2.9", "0010|0020": "ann", "0020|0011": "7"}
        tags |= {"0020|0032": position, "0020|0037": orientation, "0020|0013": str(z), "0008|0018": f"{uid}.{z + 1}"}
        for tag, value in tags.items():
            plane.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid}_{z:03}.dcm"))
        writer.Execute(plane)


@pytest.fixture
def dicom(folder, tmp_path):
    volume = sitk.Cast(sitk.ReadImage(str(folder / "T1w.nii.gz")) * 10, sitk.sitkInt16)
    write_series(volume, tmp_path / "study", "1.2.3.4", "T1 MPRAGE")
    return volume, tmp_path / "study"


def test_a_dicom_series_is_its_volume(folder, words, dicom, tmp_path, capsys):
    volume, series = dicom
    sitk.WriteImage(volume, str(tmp_path / "same.nii.gz"))
    for scan in (series, tmp_path / "same.nii.gz"):
        assert cli.main(["segment", str(scan), "-o", str(tmp_path / "out"), *words]) == 0
    np.testing.assert_array_equal(label_map(tmp_path / "out", "study"), label_map(tmp_path / "out", "same"))
    one, other = (nib.load(tmp_path / f"out/{name}_dseg.nii.gz").affine for name in ("study", "same"))
    np.testing.assert_allclose(one, other, atol=1e-4)

    write_series(volume, series, "1.2.3.5", "T2")
    assert cli.main(["segment", str(series), "-o", str(tmp_path / "two"), *words]) == 1
    assert_said(capsys, r"study holds 2 DICOM series: choose one by --series.*1.2.3.4 \(T1 MPRAGE, 22 files\)")
    assert cli.main(["segment", str(series), "-o", str(tmp_path / "two"), *words, "--series", "T1 MPRAGE"]) == 0
    np.testing.assert_array_equal(label_map(tmp_path / "two", "study"), label_map(tmp_path / "out", "study"))


def test_a_missing_slice_is_said(words, dicom, tmp_path, capsys):
    (dicom[1] / "1.2.3.4_010.dcm").unlink()
    assert cli.main(["segment", str(dicom[1]), "-o", str(tmp_path / "out"), *words]) == 1
    assert_said(capsys, r"study lacks slices: their distances are 4.00 to 8.00 mm")


def test_a_localizer_is_no_volume(words, dicom, tmp_path, capsys):
    volume, study = dicom
    write_series(sitk.PermuteAxes(volume, (1, 2, 0)), tmp_path / "other", "1.2.3.4", "T1 MPRAGE")
    (tmp_path / "other/1.2.3.4_010.dcm").rename(study / "other.dcm")
    assert cli.main(["segment", str(study), "-o", str(tmp_path / "out"), *words]) == 1
    assert_said(capsys, r"study holds slices of several directions, as a localizer has them")


def test_pixels_of_several_sizes_are_said(dicom):
    """ITK would give all slices the pixels of the first."""
    header = pytest.importorskip("pydicom").dcmread(dicom[1] / "1.2.3.4_010.dcm")
    header.PixelSpacing = [4, 4.1]
    header.save_as(dicom[1] / "1.2.3.4_010.dcm")
    with pytest.raises(ValueError, match="study holds slices with pixels of several sizes"):
        read_scan(dicom[1])


def test_a_tilted_gantry_is_said(words, dicom, tmp_path, capsys):
    """ITK would make a box of the slices, in which every slice but the first lies elsewhere than in the patient."""
    for z, file in enumerate(sorted(dicom[1].iterdir())):
        header = pytest.importorskip("pydicom").dcmread(file)
        header.ImagePositionPatient[1] += 0.5 * z
        header.save_as(file)
    assert cli.main(["segment", str(dicom[1]), "-o", str(tmp_path / "out"), *words]) == 1
    assert_said(capsys, r"study holds slices that are shifted sideways, as a tilted gantry does it")


@pytest.fixture
def oblique(folder, tmp_path):
    """A DICOM series whose axes lie along none of the patient's, with three voxel sizes; the words of its atlas."""
    volumes = [sitk.ReadImage(str(folder / f"{name}.nii.gz")) for name in ("T1w", "dseg")]
    turn = nib.eulerangles.euler2mat(0.3, -0.2, 0.4) @ np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]])
    for volume in volumes:
        volume.SetDirection(turn.ravel().tolist())
        volume.SetSpacing((3.5, 4.0, 4.5))
    scan = sitk.Cast(volumes[0] * 10, sitk.sitkInt16)
    write_series(scan, tmp_path / "oblique", "1.2.3.6", "T1")
    for file in (tmp_path / "oblique").iterdir():
        header = pytest.importorskip("pydicom").dcmread(file)
        header.SpecificCharacterSet, header.PatientName = "ISO_IR 100", "Müller^Ann"
        header.ImageOrientationPatient[0] += 1e-7 * header.InstanceNumber  # as some scanners round it
        header.save_as(file)
    sitk.WriteImage(scan, str(tmp_path / "T1w.nii.gz"))
    sitk.WriteImage(volumes[1], str(tmp_path / "dseg.nii.gz"))
    atlas = [str(tmp_path / "T1w.nii.gz"), str(tmp_path / "dseg.nii.gz"), str(folder / "dseg.tsv")]
    return tmp_path / "oblique", ["--atlas", *atlas, "--weights", "none", "--align", "none", "--no-picture"]


def voxels_of_seg(seg, like):
    """The ids of a DICOM SEG at the voxels of a NIfTI image, by the places in the patient that it gives its pixels."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    across, down = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3))
    mm_down, mm_across = shared.PixelMeasuresSequence[0].PixelSpacing
    ids = {one.SegmentNumber: int(re.search("[0-9]+", one.SegmentDescription)[0]) for one in seg.SegmentSequence}
    found = np.zeros(like.shape, int)
    for frame, groups in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        rows, columns = frame.nonzero()
        first = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        lps = first + np.outer(columns * mm_across, across) + np.outer(rows * mm_down, down)
        places = nib.affines.apply_affine(np.linalg.inv(like.affine), lps * (-1, -1, 1))
        np.testing.assert_allclose(places, places.round(), atol=1e-3)
        found[tuple(places.round().astype(int).T)] = ids[
            groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        ]
    return found


def test_a_dicom_seg_is_the_label_map_in_the_patient(oblique, tmp_path):
    pytest.importorskip("highdicom")
    from highdicom.color import CIELabColor
    from pydicom import dcmread

    series, words = oblique
    run = ["segment", str(series), "-o", str(tmp_path / "out"), *words, "--dicom-seg"]
    assert cli.main(run) == 0
    (tmp_path / "out/oblique_dseg.dcm").unlink()
    assert cli.main([*run, "--skip-existing"]) == 0  # a result without it is not finished
    seg, expected = dcmread(tmp_path / "out/oblique_dseg.dcm"), nib.load(tmp_path / "out/oblique_dseg.nii.gz")
    assert len(np.unique(expected.dataobj)) == 4
    np.testing.assert_array_equal(voxels_of_seg(seg, expected), expected.dataobj)

    assert seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 4.5
    # Each frame refers to the slice that it lies on
    sources = {file.SOPInstanceUID: file for file in map(dcmread, series.iterdir())}
    for groups in seg.PerFrameFunctionalGroupsSequence:
        source = sources[groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        place = groups.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(place, source.ImagePositionPatient, atol=1e-4)
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3.6"
    assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID, seg.PatientID) == ("1.2.3", "1.2.9", "ann")
    assert (seg.PatientName, seg.Modality, seg.SeriesNumber) == ("Müller^Ann", "SEG", 1007)

    segments = {segment.SegmentLabel: segment for segment in seg.SegmentSequence}
    assert list(segments) == list(TABLE.names)
    for label in TABLE:
        kind = segments[label.name].SegmentedPropertyTypeCodeSequence[0]
        sides = [side.CodeMeaning[0] for side in kind.get("SegmentedPropertyTypeModifierCodeSequence", [])]
        assert sides == ([label.hemisphere] if label.hemisphere else [])
        assert kind.CodeMeaning == {16: "Brain Stem"}.get(label.id, "Caudate Nucleus")
        color = CIELabColor.from_dicom_value(segments[label.name].RecommendedDisplayCIELabValue)
        np.testing.assert_allclose(color.to_rgb(), label.color, atol=2)
        algorithm = segments[label.name].SegmentationAlgorithmIdentificationSequence[0]
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("monai-lcs", lcs.__version__)
        assert "weights=none" in algorithm.AlgorithmParameters


def test_an_empty_or_another_label_map_is_no_dicom_seg(oblique, tmp_path):
    pytest.importorskip("highdicom")
    slices = read_slices(oblique[0])
    affine = read_scan(oblique[0]).affine
    empty = MetaTensor(torch.zeros(1, *SHAPE, dtype=torch.int32), affine=affine)
    assert write_dicom_seg(tmp_path / "empty.dcm", empty, TABLE, slices) == 0
    assert not (tmp_path / "empty.dcm").exists()
    with pytest.raises(ValueError, match=r"\(23, 26, 22\) voxels, is not on the grid of the DICOM series, \(24"):
        write_dicom_seg(tmp_path / "other.dcm", empty[:, 1:], TABLE, slices)
    # dcm2niix flips rows: the same brain in the same place, with as many voxels
    flip = torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, SHAPE[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=affine.dtype)
    with pytest.raises(ValueError, match="or has its axes in other directions: segment the series itself"):
        write_dicom_seg(
            tmp_path / "other.dcm", MetaTensor(empty.as_tensor().flip(2), affine=affine @ flip), TABLE, slices
        )
    (tmp_path / "there.dcm").touch()
    with pytest.raises(FileExistsError, match=r"there\.dcm exists"):
        write_dicom_seg(tmp_path / "there.dcm", empty, TABLE, slices)
    assert write_dicom_seg(tmp_path / "there.dcm", empty, TABLE, slices, overwrite=True) == 0
    assert not (tmp_path / "there.dcm").exists()


def test_names_longer_than_dicom_has_them_are_in_the_description(oblique, tmp_path):
    pytest.importorskip("highdicom")
    from pydicom import dcmread

    long = "cortex " * 12
    table = LabelTable([Label(300, long), Label(70000, "CSF"), Label(2, "Left-Cerebellum-Cortex", hemisphere="L")])
    label_map = MetaTensor(torch.zeros(1, *SHAPE, dtype=torch.int32), affine=read_scan(oblique[0]).affine)
    label_map[0, 1:4, 2:5, 3:5], label_map[0, 4:6, 2:5, 3], label_map[0, 7, 7, 7] = 300, 70000, 2
    assert write_dicom_seg(tmp_path / "long.dcm", label_map, table, read_slices(oblique[0])) == 3
    seg = dcmread(tmp_path / "long.dcm")
    found = [(segment.SegmentLabel, segment.SegmentDescription) for segment in seg.SegmentSequence]
    assert found[0] == ("Left-Cerebellum-Cortex", "Label 2 of the label map")
    assert found[1] == (long[:64].strip(), f"Label 300 of the label map: {long.strip()}")
    codes = [segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for segment in seg.SegmentSequence]
    assert codes == ["Cerebellar Cortex", "Brain", "Cerebrospinal Fluid"]
    volume = nib.Nifti1Image(label_map[0].numpy(), label_map.affine.numpy())
    np.testing.assert_array_equal(voxels_of_seg(seg, volume), label_map[0].numpy())


def test_what_can_have_no_dicom_seg(folder, words, oblique, tmp_path, monkeypatch, capsys):
    pytest.importorskip("highdicom")
    run = ["segment", "-o", str(tmp_path / "out"), *words, "--dicom-seg"]
    assert cli.main([*run[:1], str(folder / "T1w.nii.gz"), *run[1:]]) == 2
    assert_said(capsys, r"--dicom-seg takes folders of a DICOM series, got .*T1w.nii.gz")

    import pydicom

    file = sorted(oblique[0].iterdir())[3]
    header = pydicom.dcmread(file)
    header.NumberOfFrames = 2
    header.save_as(file)
    with pytest.raises(ValueError, match=r"1\.2\.3\.6_003\.dcm, which holds several slices"):
        read_slices(oblique[0])
    header.NumberOfFrames, header.FrameOfReferenceUID = None, "1.2.10"
    header.save_as(file)
    with pytest.raises(ValueError, match=r"both .*\.dcm and .*_003\.dcm, which differ in FrameOfReferenceUID"):
        read_slices(oblique[0])
    del header.FrameOfReferenceUID, header.NumberOfFrames
    header.save_as(file)
    assert cli.main([*run[:1], str(oblique[0]), *run[1:]]) == 1
    assert_said(capsys, r"No DICOM SEG can refer to .*1.2.3.6_003.dcm, which has no FrameOfReferenceUID")

    monkeypatch.setitem(sys.modules, "highdicom", None)
    assert cli.main([*run[:1], str(oblique[0]), *run[1:]]) == 2
    assert_said(capsys, r"A DICOM SEG needs highdicom: pip install 'monai-lcs\[dicomseg\]'")


def test_a_bids_app(folder, words, tmp_path, capsys):
    bids, out = tmp_path / "bids", tmp_path / "out"
    for name in ("sub-01/ses-a/anat/sub-01_ses-a_T1w", "sub-01/ses-b/anat/sub-01_ses-b_T1w", "sub-02/anat/sub-02_T1w"):
        save_nifti(voxels(folder / "T1w.nii.gz"), bids / f"{name}.nii.gz", AFFINE)
    run = ["bids", str(bids), str(out), "participant", *words]
    assert cli.main(run) == 2
    assert_said(capsys, "bids is no BIDS dataset: it has no dataset_description.json")
    own = '{"Name": "three", "BIDSVersion": "1.10.0"}'
    (bids / "dataset_description.json").write_text(own)
    assert cli.main([*run[:2], str(bids), *run[3:]]) == 2
    assert_said(capsys, "bids is another dataset: its dataset_description.json does not name monai-lcs")
    assert (bids / "dataset_description.json").read_text(encoding="utf-8") == own
    assert cli.main([*run, "--participant-label", "03"]) == 2
    assert_said(capsys, "bids has no participant sub-03; it has sub-01, sub-02")
    assert cli.main([*run, "--session_label", "b", "9"]) == 2
    assert_said(capsys, "bids has no session ses-9; it has ses-a, ses-b")
    with pytest.warns(UserWarning, match="no T1w scan of sub-02 in these sessions"):
        find_t1w(bids, ["01", "02"], ["b"])
    assert cli.main([*run, "--participant_label", "01", "--session-label", "b"]) == 0
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.nii.gz")) == [
        "sub-01/ses-b/anat/sub-01_ses-b_dseg.nii.gz"
    ]
    with (out / ".bidsignore").open("a") as file:
        file.write("*_mine.txt\n")
    assert cli.main([*run, "--participant-label", "sub-02"]) == 0
    assert (out / "sub-02/anat/sub-02_dseg.tsv").is_file()
    description = json.loads((out / "dataset_description.json").read_text(encoding="utf-8"))
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Version"] == lcs.__version__
    assert (out / "README.md").read_text(encoding="utf-8").startswith("# Label conditioned segmentation of three\n")
    ignored = (out / ".bidsignore").read_text(encoding="utf-8").split()
    assert ignored[-1] == "*_mine.txt"
    written = [path for path in out.rglob("sub-*") if path.is_file()]
    kept = [path.name for path in written if not any(path.match(pattern) for pattern in ignored)]
    assert {name.rpartition("_")[2] for name in kept} == {"dseg.nii.gz", "dseg.tsv"}
    assert cli.main(run) == 2
    assert_said(capsys, "sub-01_ses-b_dseg.nii.gz exists: choose another OUT, or add --overwrite")


@pytest.mark.parametrize("spacing", [MM, 6.0])
def test_headers_of_results_are_those_of_the_scan(tmp_path, spacing):
    """Voxel sizes and both forms of the file, in whatever voxels the network works; a scan in memory stays as it is."""
    image, labels, _ = phantom()
    scan = nib.Nifti1Image(image, AFFINE)
    scan.set_qform(AFFINE, code=1)
    scan.set_sform(AFFINE, code=1)
    nib.save(scan, tmp_path / "scan.nii.gz")
    atlas = lcs.Atlas(
        MetaTensor(image[None], affine=AFFINE), MetaTensor(labels[None].astype(int), affine=AFFINE), TABLE
    )
    settings = lcs.Settings(align="none", spacing=(spacing,) * 3, channels=(4, 8), margin_mm=8.0, prior_logit=5.0)
    segmenter = lcs.Segmenter(atlas, make_network(settings), settings)
    read = read_scan(tmp_path / "scan.nii.gz")
    before = {name: np.array(value) for name, value in read.meta.items() if isinstance(value, np.ndarray)}
    segmenter.segment(read, segmenter.request(), "scan").save(tmp_path / "out", masks=True)
    for name, value in before.items():
        np.testing.assert_array_equal(read.meta[name], value, err_msg=name)
    written = sorted((tmp_path / "out").glob("*.nii.gz"))
    assert len(written) == 1 + len(BLOBS)
    for file in written:
        header = nib.load(file).header
        assert header.get_zooms() == (MM, MM, MM)
        for form in (header.get_sform(coded=True), header.get_qform(coded=True)):
            np.testing.assert_array_equal(form[0], AFFINE)
            assert form[1] == 1


def test_a_series_without_places_is_said_to_be_guessed(dicom):
    pydicom = pytest.importorskip("pydicom")
    for file in dicom[1].iterdir():
        header = pydicom.dcmread(file)
        del header.ImagePositionPatient, header.ImageOrientationPatient
        header.save_as(file)
    with pytest.warns(
        UserWarning,
        match="do not say their position, .* their orientation, which is guessed; which side is left is guessed",
    ):
        read_scan(dicom[1])


def test_warnings_are_noted_of_each_scan_by_its_thread():
    """Python shows a warning once; and threads end in any order."""
    heard = {}
    first, second = threading.Event(), threading.Event()

    def work(name, wait, go):
        with noted_warnings() as noted:
            go.set()
            wait.wait(10)
            warnings.showwarning(name, UserWarning, "scan.py", 1)
            heard[name] = noted

    show = warnings.showwarning
    threads = [threading.Thread(target=work, args=("ann", second, first))]
    threads.append(threading.Thread(target=work, args=("bo", first, second)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == {"ann": ["ann"], "bo": ["bo"]}
    assert warnings.showwarning == show
    catching = warnings.catch_warnings()  # as of another thread, which leaves it later
    with noted_warnings():
        catching.__enter__()
    catching.__exit__()
    for _ in range(2):
        with noted_warnings() as noted:
            warnings.showwarning("again", UserWarning, "scan.py", 1)
        assert noted == ["again"]
    warnings.showwarning = show
    with warnings.catch_warnings():
        warnings.resetwarnings()
        with noted_warnings() as noted:
            for registry in [{}] * 2:  # where Python remembers what it has shown
                warnings.warn_explicit("same", UserWarning, "scan.py", 1, "monai_lcs.pipeline", registry)
        assert noted == ["same", "same"]


def test_files_are_asked_for_before_the_work(folder, tmp_path):
    (tmp_path / "ann_volumes.tsv").touch()
    case = {"image": str(folder / "T1w.nii.gz"), "case": "ann"}
    with pytest.raises(FileExistsError, match=r"ann_volumes.tsv exists"):
        segment_to_files(None, case, (), Output(tmp_path))


def test_the_alignments_of_the_words_are_those_of_the_pipeline():
    assert options.ALIGNMENTS == ALIGNMENTS


def test_shipped_weights_that_were_replaced_are_said(monkeypatch, tmp_path):
    (tmp_path / "models").mkdir()
    torch.save({}, tmp_path / "models/model.pt")
    monkeypatch.setattr("monai_lcs.pipeline.weights.bundle_folder", lambda: tmp_path)
    with pytest.warns(UserWarning, match="is not the permissive weights that shipped"):
        lcs.shipped_weights()
