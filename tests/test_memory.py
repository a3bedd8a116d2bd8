"""Large volumes are worked on in pieces: the same results as in one piece, in memory that does not grow."""

import gzip
import os
import resource
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, Spacing

from monai_lcs import grids
from monai_lcs.grids import affine_of, resample, upright
from monai_lcs.labels import LabelTable, groups
from monai_lcs.labels.groups import label_sizes
from monai_lcs.pipeline import Preprocessing, Settings, to_native
from monai_lcs.results import volumes
from monai_lcs.results.picture import _grey_window, _View
from monai_lcs.results.volumes import volume_table
from monai_lcs.study.images import read_image


def oblique(rng):
    """An affine of any direction, spacing and shear."""
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    shear = np.eye(3) + rng.normal(size=(3, 3)) * rng.choice([0, 0.1])
    return nib.affines.from_matvec(turn * rng.uniform(0.5, 3, 3) @ shear, rng.normal(size=3) * 20)


def random_volume(rng):
    voxels = torch.tensor(rng.normal(size=(1, *rng.integers(8, 25, 3)))).float()
    return MetaTensor(voxels, affine=torch.tensor(oblique(rng)))


@pytest.mark.parametrize("seed", range(12))
def test_a_scan_is_resampled_as_monai_does(seed, monkeypatch):
    """``Orientation`` and ``Spacing`` of MONAI, which take 67 bytes a voxel, give the same grid and voxels."""
    monkeypatch.setattr(grids, "SLAB_VOXELS", 500)
    rng = np.random.default_rng(seed)
    volume, spacing = random_volume(rng), tuple(rng.uniform(0.7, 3, 3))
    preprocessing = Preprocessing.__new__(Preprocessing)
    preprocessing.settings = Settings(spacing=spacing)
    found = preprocessing.on_network_grid(volume)
    expected = Spacing(pixdim=spacing)(Orientation(axcodes="RAS", labels=None)(volume.clone()))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-9)
    torch.testing.assert_close(found.as_tensor(), expected.as_tensor(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_labels_go_to_the_scan_by_their_nearest_voxel(seed, monkeypatch):
    """Against rounded indices in numpy, for oblique and sheared grids, whether in slabs or in one piece."""
    rng = np.random.default_rng(seed)
    labels, source = random_volume(rng) > 0, MetaTensor(torch.zeros(1, 30, 20, 25), affine=torch.tensor(oblique(rng)))
    source.affine[:3, 3] = labels.affine[:3, 3] + labels.affine[:3, :3] @ torch.tensor(rng.uniform(0, 8, 3))
    labels = MetaTensor(torch.tensor(rng.integers(1, 900, labels.shape), dtype=torch.int32), affine=labels.affine)
    whole = to_native(labels, source)
    monkeypatch.setattr(grids, "SLAB_VOXELS", 300)
    assert torch.equal(to_native(labels, source), whole)
    assert whole.dtype == torch.int32

    shifted = affine_of(labels)
    shifted[:3, 3] -= grids.TIE_MM
    points = np.indices(whole.shape[1:]).reshape(3, -1)
    indices = nib.affines.apply_affine(np.linalg.solve(shifted, affine_of(source)), points.T)
    nearest = np.floor(indices + 0.5).astype(int)
    inside = ((nearest >= 0) & (nearest < labels.shape[1:])).all(axis=1)
    expected = np.zeros(len(nearest), np.int32)
    expected[inside] = labels[0].numpy()[tuple(nearest[inside].T)]
    assert inside.any()
    np.testing.assert_array_equal(whole[0].numpy().ravel(), expected)


def test_the_same_grid_copies_and_nothing_shares_memory():
    volume = random_volume(np.random.default_rng(0))
    same = resample(volume, volume.shape[1:], affine_of(volume))
    assert torch.equal(same, volume.as_tensor())
    same += 1
    assert not torch.equal(same, volume.as_tensor())


def test_a_grid_that_the_volume_does_not_meet():
    volume = MetaTensor(torch.ones(1, 4, 4, 4))
    far = nib.affines.from_matvec(np.eye(3), [100, 0, 0])
    assert resample(volume, (5, 5, 5), far, outside=0).sum() == 0
    assert (resample(volume, (5, 5, 5), far) == 1).all()
    with pytest.raises(ValueError, match="cubic"):
        resample(volume, (5, 5, 5), far, mode="cubic")


@pytest.mark.parametrize("order", ["LPS", "RAS", "SAR", "PIR"])
def test_upright_is_a_view(order):
    straight = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([1.0, 2, 3, 1]))
    axes = nib.orientations.ornt_transform(nib.io_orientation(straight.affine), nib.orientations.axcodes2ornt(order))
    turned = straight.as_reoriented(axes)
    voxels = np.asarray(turned.dataobj)
    view, affine = upright(voxels, turned.affine)
    assert np.shares_memory(view, voxels)
    np.testing.assert_array_equal(view, np.asarray(straight.dataobj))
    np.testing.assert_allclose(affine, straight.affine, atol=1e-9)


def test_labels_are_counted_in_pieces(monkeypatch):
    monkeypatch.setattr(groups, "_PIECE", 7)
    monkeypatch.setattr(volumes, "_PIECE", 11)
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 4, 9, 5_000_000], (1, 5, 6, 7))
    ids, counts = np.unique(labels[labels > 0], return_counts=True)
    assert label_sizes(labels) == dict(zip(ids.tolist(), counts.tolist(), strict=True))
    agreement = rng.random(labels.shape)
    found = volume_table(labels, 1.0, LabelTable.from_ids([4, 7, 9, 5_000_000]), agreement)
    expected = [labels[labels == id].size and agreement[labels == id].mean() for id in (4, 9, 5_000_000)]
    np.testing.assert_allclose(found.agreement.dropna(), expected, atol=1e-4)
    assert found.agreement.isna().tolist() == [False, True, False, False]


def test_the_picture_of_a_large_scan(monkeypatch):
    """Its window of intensities comes from some of its voxels; its center is the mean of the labeled ones."""
    rng = np.random.default_rng(0)
    image = rng.normal(100, 20, (60, 50, 40)).astype(np.float32)
    expected = _grey_window(image)
    monkeypatch.setattr("monai_lcs.results.picture._MOST_VALUES", 5000)
    np.testing.assert_allclose(_grey_window(image), expected, rtol=0.05)
    labels = rng.random(image.shape) < 0.01
    labels[:, 20:] = False
    center = _View(image, labels.astype(np.int32), np.eye(4), (0.0, 1.0), labels).center
    np.testing.assert_array_equal(center, np.rint(np.argwhere(labels).mean(0)))
    np.testing.assert_array_equal(_View(image, 0 * labels, np.eye(4), (0.0, 1.0), labels).center, [30, 24, 20])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64, ">i2"])
@pytest.mark.parametrize("scaling", [None, (0.37, -1024.0)])
def test_voxels_are_scaled_as_nibabel_does(tmp_path, dtype, scaling):
    voxels = np.random.default_rng(0).integers(0, 200, (7, 6, 5)).astype(dtype)
    image = nib.Nifti1Image(voxels, np.diag([-1.0, 2, 3, 1]))
    if scaling:
        image.header.set_slope_inter(*scaling)
    for name in ("scan.nii", "scan.nii.gz", "scan.hdr"):
        nib.save(image if name != "scan.hdr" else nib.Nifti1Pair(voxels, image.affine, image.header), tmp_path / name)
        found = read_image(tmp_path / name)[0].numpy()
        np.testing.assert_array_equal(found, np.asarray(nib.load(tmp_path / name).dataobj, dtype=np.float32))


# ---- in bytes -------------------------------------------------------------------------------------------------------

PEAK = """
import resource, sys, warnings
import numpy as np, torch, SimpleITK, matplotlib.figure, matplotlib.backends.backend_agg
warnings.simplefilter("ignore")
from monai.data import MetaTensor
from monai_lcs.labels import LabelTable
from monai_lcs.pipeline import Preprocessing, Settings, Segmenter, to_native
from monai_lcs.results import Segmentation

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.set_num_threads(1)
affine = torch.diag(torch.tensor([8.0, 8, 8, 1]))
small = MetaTensor(torch.randint(0, 3, (1, 20, 20, 20), dtype=torch.int32), affine=affine)
to_native(small, small[..., ::2])
path, out = sys.argv[1:]
preprocessing = Preprocessing.__new__(Preprocessing)
preprocessing.settings = Settings(spacing=(8, 8, 8))
before = peak()
scan = preprocessing.prepare(path)
label_map = to_native(small, scan.source)
Segmentation(label_map, scan.source, LabelTable.from_ids([1, 2])).save(out)
print((peak() - before) / scan.source.numel())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is that of Linux")
@pytest.mark.parametrize("dtype", [np.int16, np.float64])
def test_bytes_of_a_voxel(tmp_path, dtype):
    """From the file to the saved label map: 12 bytes a voxel of int16, 14 of float64."""
    voxels = np.random.default_rng(0).integers(0, 1000, (320, 320, 320)).astype(dtype)
    nib.save(nib.Nifti1Image(voxels, np.diag([0.5, 0.5, 0.5, 1])), tmp_path / "scan.nii")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "scan.nii", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) <= {np.int16: 12, np.float64: 14}[dtype]


def test_a_claim_that_the_file_cannot_hold(tmp_path):
    """151 kB that claim 1000^3 voxels, in every format: refused before memory is taken."""
    noise = os.urandom(150_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, content in claims(noise).items():
        path = tmp_path / name
        path.write_bytes(content)
        if name == "pair.img":
            continue
        with pytest.raises(ValueError, match=r"its header claims 10{9}|its header claims 1000000\d{3}"):
            read_image(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB, where none needs 1 GB


def claims(noise):
    """Files whose headers claim 1000^3 voxels of one byte."""
    nifti, pair, mgh = nib.Nifti1Header(), nib.nifti1.Nifti1PairHeader(), nib.freesurfer.mghformat.MGHHeader()
    for header in (nifti, pair, mgh):
        header.set_data_shape((1000, 1000, 1000))
        header.set_data_dtype(np.uint8)
    nrrd = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 1000 1000 1000\nencoding: {}\n\n"
    meta = (
        "NDims = 3\nDimSize = 1000 1000 1000\nElementType = MET_UCHAR\nCompressedData = {}\nElementDataFile = LOCAL\n"
    )
    return {
        "scan.nii": nifti.binaryblock + bytes(4) + noise,
        "scan.nii.gz": gzip.compress(nifti.binaryblock + bytes(4) + noise),
        "scan.mgh": mgh.binaryblock[:284] + noise,
        "scan.mgz": gzip.compress(mgh.binaryblock[:284] + noise),
        "pair.img": noise,
        "pair.hdr": pair.binaryblock,
        **{f"{word}.nrrd": nrrd.format(word).encode() + noise for word in ("raw", "gzip", "ascii", "hex")},
        "scan.mha": meta.format("False").encode() + noise,
        "zip.mha": meta.format("True").encode() + gzip.compress(noise),
    }
