"""The files of docs/examples, as users copy them: each is run on phantoms."""

import difflib
import importlib.util
import re
import runpy
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import phantom
import pytest
import torch
from helpers import save_nifti, voxels

import monai_lcs as lcs

EXAMPLES = Path(__file__).resolve().parents[1] / "docs/examples"


def load(name):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dice(path, labels):
    """Of each label of a phantom."""
    pred = voxels(path)
    return [
        2 * ((pred == i) & (labels == i)).sum() / ((pred == i).sum() + (labels == i).sum()) for i in phantom.CENTERS
    ]


# ---- a spleen pipeline ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A task of the Decathlon: three cases of three organs, labels 1, 2, 3."""
    folder, rng = tmp_path_factory.mktemp("Task09"), np.random.default_rng(0)
    for i in range(3):
        image, labels = phantom.make_volume(rng if i else None)
        ids = sum(k * (labels == label) for k, label in enumerate(phantom.CENTERS, 1)).astype(np.uint8)
        save_nifti(image, folder / f"imagesTr/case_{i}.nii.gz", phantom.AFFINE)
        save_nifti(ids, folder / f"labelsTr/case_{i}.nii.gz", phantom.AFFINE)
    return folder


def run_script(name, task, monkeypatch, capsys, epochs):
    """The Dice of each label that a script prints in its last line."""
    options = f"--labels 3 --validation 1 --epochs {epochs} --spacing 4 4 4 --roi 24 24 24 --device cpu"
    monkeypatch.setattr(sys, "argv", [name, str(task), *options.split()])
    torch.manual_seed(0)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("Dice:")
    return [float(number) for number in re.findall(r"[\d.]+|nan", last)]


def test_the_usual_pipeline(task, monkeypatch, capsys):
    assert len(run_script("spleen", task, monkeypatch, capsys, epochs=1)) == 3


def test_the_pipeline_turned_into_lcs(task, monkeypatch, capsys):
    assert min(run_script("spleen_lcs", task, monkeypatch, capsys, epochs=1)) > 0.6


def test_the_difference_is_a_few_lines():
    texts = [(EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines() for name in ("spleen", "spleen_lcs")]
    changed = [line for line in difflib.ndiff(*texts) if line[0] in "+-"]
    assert len(changed) < 30
    assert len(texts[0]) > 60


# ---- a network of one's own -----------------------------------------------------------------------------------------


class PriorNetwork(torch.nn.Module):
    """Answers with the mask that it is given, grown or shrunk by what it learned."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.tensor(0.0))

    def forward(self, x):
        assert x.shape[1] == 3
        return 4 * x[:, 2:] - 2 + self.bias


def test_any_network_of_one_tensor():
    example = load("own_network")
    labels = torch.zeros(1, 20, 20, 20)
    labels[:, 3:8, 3:8, 3:8], labels[:, 10:16, 4:9, 4:9], labels[:, 10:16, 9:14, 4:9] = 3, 7, 9
    scan, network = torch.rand(1, 20, 20, 20), PriorNetwork()
    example.train(network, [(scan, labels, scan, labels)], steps=2, labels_a_step=2)
    assert network.bias.item() != 0
    assert torch.equal(example.segment(network, scan, scan, labels), labels)
    union = example.segment(network, scan, scan, labels, labels=[(7, 9)])
    assert torch.equal(union > 0, labels > 3)


def test_the_file_itself_runs(capsys):
    torch.manual_seed(0)
    runpy.run_path(str(EXAMPLES / "own_network.py"), run_name="__main__")
    assert "tensor([" in capsys.readouterr().out


# ---- a subject of FreeSurfer ----------------------------------------------------------------------------------------

LUT = """\
#$Id: FreeSurferColorLUT.txt $
#No. Label Name:                            R   G   B   A

0   Unknown                                 0   0   0   0
11  Left-Caudate                            122 186 220 0
16  Brain-Stem                              119 159 176 0
50  Right-Caudate                           122 186 220 0
1002    ctx-lh-caudalanteriorcingulate      125 100 160 0
"""


@pytest.fixture
def subject(tmp_path):
    """A subject's folder as recon-all leaves it: conformed LIA volumes, ids of the color table."""
    image, labels = phantom.make_volume()
    lia = nib.orientations.axcodes2ornt("LIA")
    for name, array in (("brain", image.round().astype(np.uint8)), ("aparc+aseg", labels.astype(np.int32))):
        turned = nib.Nifti1Image(array, phantom.AFFINE).as_reoriented(
            nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), lia)
        )
        path = tmp_path / "bert/mri" / f"{name}.mgz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.MGHImage(np.asarray(turned.dataobj), turned.affine), path)
    (tmp_path / "FreeSurferColorLUT.txt").write_text(LUT)
    return tmp_path / "bert"


def test_a_subject_of_freesurfer_is_an_atlas(subject, tmp_path, capsys):
    example, table = load("freesurfer"), tmp_path / "FreeSurferColorLUT.txt"
    atlas = example.freesurfer_atlas(subject, table)
    assert [(i, atlas.table[i].name) for i in atlas.ids] == [
        (11, "Left-Caudate"),
        (16, "Brain-Stem"),
        (50, "Right-Caudate"),
    ]
    image, labels = phantom.make_volume(np.random.default_rng(1))
    scan = save_nifti(image, tmp_path / "scan.nii.gz", phantom.AFFINE)
    example.main([str(subject), str(table), str(scan), "-o", str(tmp_path / "out"), "--weights", "none"])
    assert min(dice(tmp_path / "out/scan_dseg.nii.gz", labels)) > 0.7
    assert "scan_volumes.tsv" in capsys.readouterr().out


# ---- a mouse --------------------------------------------------------------------------------------------------------

SMALLER = 10
MOUSE = np.diag([1 / SMALLER] * 3 + [1]) @ phantom.AFFINE


@pytest.fixture(scope="module")
def mice(tmp_path_factory):
    """The phantom with voxels of 0.4 mm, 16 mm long: an atlas, its table, a scan and a study of three."""
    folder, rng = tmp_path_factory.mktemp("mice"), np.random.default_rng(2)
    names = ("atlas", "scan", "study/images/a", "study/images/b", "study/images/c")
    for name in names:
        image, labels = phantom.make_volume(None if name == "atlas" else rng)
        save_nifti(image, folder / f"{name}.nii.gz", MOUSE)
        save_nifti(labels, folder / f"{name.replace('images', 'labels')}_.nii.gz", MOUSE)
    for case in "abc":
        (folder / f"study/labels/{case}_.nii.gz").rename(folder / f"study/labels/{case}.nii.gz")
    phantom.TABLE.write(folder / "labels.csv")
    return folder


def test_an_enlarged_scan_is_segmented_on_its_own_grid(mice, tmp_path):
    example, scan = load("mouse"), mice / "scan.nii.gz"
    files = (example.enlarged(mice / name, tmp_path) for name in ("scan.nii.gz", "scan_.nii.gz"))
    atlas = lcs.Atlas.read(*files, mice / "labels.csv")  # the scan is its own atlas
    segmenter = lcs.Segmenter(atlas, settings=lcs.Settings(align="none", spacing=(phantom.MM,) * 3))
    result = example.segment(segmenter, scan, tmp_path / "scans")
    result.save(tmp_path)
    assert np.array_equal(voxels(tmp_path / "scan_dseg.nii.gz"), voxels(mice / "scan_.nii.gz"))
    assert np.array_equal(nib.load(tmp_path / "scan_dseg.nii.gz").affine, nib.load(scan).affine)
    assert np.allclose(result.volumes["mm3"], result.volumes["voxels"] * (phantom.MM / SMALLER) ** 3)


@pytest.mark.slow
def test_a_mouse_brain(mice, tmp_path):
    arguments = [str(mice / name) for name in ("atlas.nii.gz", "atlas_.nii.gz", "labels.csv", "scan.nii.gz")]
    load("mouse").main([*arguments, "-o", str(tmp_path)])
    assert min(dice(tmp_path / "scan_dseg.nii.gz", voxels(mice / "scan_.nii.gz"))) > 0.7


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:parsing config_file")
def test_a_training_on_mice(mice, tmp_path):
    arguments = [str(mice / name) for name in ("atlas.nii.gz", "atlas_.nii.gz", "labels.csv", "scan.nii.gz")]
    load("mouse").main([*arguments, "-o", str(tmp_path), "--train", str(mice / "study"), "--epochs", "2"])
    assert (tmp_path / "enlarged/model/model.pt").is_file()
    assert (tmp_path / "scan_dseg.nii.gz").is_file()
