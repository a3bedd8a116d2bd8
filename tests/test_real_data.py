"""The bundle on real scans, by overrides alone: two steps of training and one segmentation of each data set."""

import json
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
from monai.utils import set_determinism

pytestmark = [pytest.mark.data, pytest.mark.filterwarnings("ignore:parsing config_file")]

BUNDLE = Path(__file__).parents[1] / "bundles/whole_brain_lcs_segmentation"
SMALL = {"channels": [4, 8, 16], "bundle_root": str(BUNDLE), "device": "cpu"}


@pytest.fixture(autouse=True)
def undetermined():
    """What a training fixes for the whole process."""
    yield
    set_determinism(None)


def train_and_segment(dataset, tmp_path, **overrides):
    """Two people to train on (an epoch of two steps), one to validate on and one to segment; another is the atlas."""
    atlas, *people = sorted(path.name for path in (dataset / "images").glob("*.nii.gz"))[:5]
    items = [{"image": f"images/{name}", "label": f"labels/{name}"} for name in people]
    datalist = tmp_path / "dataset.json"
    datalist.write_text(json.dumps({"training": items[:2], "validation": items[2:3], "testing": items[3:]}))
    common = {
        **SMALL,
        "dataset_dir": str(dataset),
        "datalist": str(datalist),
        "atlas_image": str(dataset / "images" / atlas),
        "atlas_labels": str(dataset / "labels" / atlas),
        "output_dir": str(tmp_path / "out"),
        **overrides,
    }
    configs = BUNDLE / "configs"
    monai.bundle.run(
        config_file=str(configs / "train.json"), logging_file=False, epochs=1, ckpt_dir=str(tmp_path), **common
    )
    monai.bundle.run(
        config_file=str(configs / "inference.json"),
        logging_file=False,
        checkpoint=str(tmp_path / "model.pt"),
        **common,
    )
    source = nib.load(dataset / "images" / people[3])
    pred = nib.load(tmp_path / "out" / people[3].replace(".nii.gz", "_dseg.nii.gz"))
    assert pred.shape == source.shape
    np.testing.assert_allclose(pred.affine, source.affine, atol=1e-4)
    known = np.unique(nib.load(dataset / "labels" / atlas).dataobj)
    found = np.unique(pred.dataobj)
    assert set(found) <= set(known)
    return found


@pytest.mark.filterwarnings("ignore:The atlas label map has no voxel")  # some labels are smaller than 4 mm
@pytest.mark.filterwarnings("ignore:With voxels of 4 x 4 x 4 mm")  # too coarse for the smallest labels, for speed
def test_malc2012(real_data, tmp_path):
    folder = real_data / "malc2012"
    found = train_and_segment(folder, tmp_path, spacing=[4, 4, 4], label_table=str(folder / "labels.csv"))
    assert len(found) > 50


def test_hippocampus(real_data, tmp_path):
    found = train_and_segment(real_data / "hippocampus", tmp_path, spacing=[1.5, 1.5, 1.5])
    assert set(found) == {0, 1, 2}
