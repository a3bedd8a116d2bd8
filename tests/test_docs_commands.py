"""The commands and the Python of docs/evaluate.md and docs/labels.md, run as they stand, one after the other."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers import save_nifti
from phantom import AFFINE, TABLE, make_volume

from monai_lcs import cli
from monai_lcs.labels import LabelTable

DOCS = Path(__file__).resolve().parents[1] / "docs"


def blocks(name, language):
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / name).read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image, labels = make_volume()
    for name in ("scan.nii.gz", "atlas/T1w.nii.gz"):
        save_nifti(image, Path(name), AFFINE)
    for name in ("labels.nii.gz", "atlas/dseg.nii.gz", "labels/ann.nii.gz", "segmented/ann_dseg.nii.gz"):
        save_nifti(labels, Path(name), AFFINE)
    for name in ("labels.csv", "atlas/dseg.tsv"):
        TABLE.write(name)
    mask = np.zeros(labels.shape, np.uint8)
    mask[5:9, 15:25, 25:30] = 1
    save_nifti(mask, Path("mask.nii.gz"), AFFINE)
    return tmp_path


@pytest.mark.parametrize("document", ["evaluate.md", "labels.md"])
def test_commands_and_python(document, folder):
    lines = [line for block in blocks(document, "bash") for line in block.splitlines()]
    assert lines
    for line in lines:
        assert cli.main(shlex.split(line, comments=True)[1:]) == 0, line
    for block in blocks(document, "python"):
        exec(compile(block, document, "exec"), {})
    if document == "labels.md":
        names = {"Caudate-1", "Caudate-2", "Left-Stem", "Right-Stem"}
        assert set(LabelTable.read("parts/dseg.tsv").names) == names
        assert LabelTable.read("present.tsv") == TABLE
    else:
        assert Path("scores.png").is_file()
