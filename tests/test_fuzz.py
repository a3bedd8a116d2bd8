"""Files with one thing changed at random: an error in one sentence, or the right voxels; never a traceback.

    python -m pytest -m slow tests/test_fuzz.py

``LCS_FUZZ`` sets the number of examples of each kind (400 by default). The counts are in docs/reliability.md.
"""

import json
import os
import struct
import warnings
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from monai_lcs.labels import LabelTable
from monai_lcs.study.cases import find_cases
from monai_lcs.study.checks import read_scan

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("LCS_FUZZ", 400))
FUZZ = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
SHAPE = (5, 6, 7)
VOXELS = np.random.default_rng(0).integers(1, 1000, SHAPE).astype(np.int16)
AFFINE = np.array([[-1.0, 0, 0, 20], [0, 1.5, 0, -30], [0, 0, 2, 10], [0, 0, 0, 1]])
COUNTS: Counter = Counter()

# Fields of a NIfTI header that say where the voxels are in the file, and what they are
STRUCTURE = {"sizeof_hdr", "dim", "datatype", "bitpix", "vox_offset", "magic"}


@pytest.fixture(scope="module", autouse=True)
def report():
    yield
    print("\n" + "\n".join(f"{kind}: {count}" for kind, count in sorted(COUNTS.items())))


def attempt(kind, read):
    """What was read, or None, and the message of a refusal; any other error is a failure of the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found, message = read(), ""
        except ValueError as error:
            found, message = None, str(error)
    COUNTS[f"{kind}, {'read' if found is not None else 'refused'}"] += 1
    return found, message


def outcome(kind, path):
    """The volume of a file, or None where it was refused in one sentence."""
    volume, message = attempt(kind, lambda: read_scan(path))
    assert "\n" not in message
    assert len(message) <= 600
    return volume


def same_voxels(volume):
    return tuple(volume.shape) == (1, *SHAPE) and np.array_equal(volume[0].numpy(), VOXELS)


# ---- NIfTI ----------------------------------------------------------------------------------------------------------


def nifti(path, compressed):
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.set_qform(AFFINE, 1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


@FUZZ
@given(data=st.data())
def test_nifti_fields(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nii")
    path = nifti(folder / "scan.nii", False)
    raw = bytearray(path.read_bytes())
    fields = nib.Nifti1Header.template_dtype.fields
    name = data.draw(st.sampled_from(sorted(fields)))
    dtype, offset = fields[name][:2]
    at = data.draw(st.integers(0, dtype.itemsize - 1))
    raw[offset + at] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    volume = outcome("NIfTI header field", path)
    if volume is None:
        return
    if name in STRUCTURE:
        assert same_voxels(volume), name
    elif name not in ("scl_slope", "scl_inter", "glmax", "glmin", "intent_code"):
        assert same_voxels(volume), name
        expected = nib.load(path)
        unit = {1: 1000.0, 3: 0.001}.get(int(expected.header["xyzt_units"]) & 7, 1.0)
        affine = np.diag([unit, unit, unit, 1.0]) @ expected.affine
        np.testing.assert_allclose(np.asarray(volume.affine), affine, rtol=1e-5, atol=1e-4)


@FUZZ
@given(data=st.data())
def test_nifti_shape_and_type(data, tmp_path_factory):
    """Whole fields of the structure take other plausible values; a file with the data of another header."""
    path = nifti(tmp_path_factory.mktemp("nii") / "scan.nii", False)
    raw = bytearray(path.read_bytes())
    what = data.draw(st.sampled_from(["dim0", "dim", "datatype", "offset", "cut", "more"]))
    if what == "dim0":
        struct.pack_into("<h", raw, 40, data.draw(st.integers(-3, 9)))
    elif what == "dim":
        struct.pack_into("<h", raw, 40 + 2 * data.draw(st.integers(1, 7)), data.draw(st.integers(-2, 40)))
    elif what == "datatype":
        struct.pack_into(
            "<h", raw, 70, data.draw(st.sampled_from([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024]))
        )
    elif what == "offset":
        struct.pack_into("<f", raw, 108, data.draw(st.sampled_from([0.0, 1.0, 348.0, 350.0, 353.0, 368.0, 1e9, -16.0])))
    elif what == "cut":
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    else:
        raw += bytes(data.draw(st.integers(1, 2000)))
    path.write_bytes(raw)
    volume = outcome(f"NIfTI {what}", path)
    assert volume is None or same_voxels(volume), what


# ---- MGH, NRRD, MetaImage -------------------------------------------------------------------------------------------


def other_format(extension, path):
    if extension == "mgh":
        nib.save(nib.MGHImage(VOXELS, AFFINE.astype(np.float32)), path)
        return
    image = sitk.GetImageFromArray(VOXELS.T)
    image.SetSpacing([1.0, 1.5, 2.0])
    sitk.WriteImage(image, str(path))


@FUZZ
@given(data=st.data())
def test_bytes_of_other_headers(data, tmp_path_factory):
    extension = data.draw(st.sampled_from(["mgh", "nrrd", "mha"]))
    path = tmp_path_factory.mktemp("other") / f"scan.{extension}"
    other_format(extension, path)
    raw = bytearray(path.read_bytes())
    size = VOXELS.nbytes
    start = 284 if extension == "mgh" else len(raw) - size
    position = data.draw(st.integers(0, (90 if extension == "mgh" else start) - 1))
    raw[position] = data.draw(
        st.integers(0, 255) if extension == "mgh" else st.sampled_from(list(b"0123456789 -.:=abcDEF\n"))
    )
    path.write_bytes(raw)
    volume = outcome(f"{extension} header byte", path)
    assert volume is None or tuple(volume.shape) != (1, *SHAPE) or same_voxels(volume) or extension == "mgh"
    if volume is not None:
        assert volume.numel() == VOXELS.size


@FUZZ
@given(data=st.data())
def test_lengths_of_other_files(data, tmp_path_factory):
    extension = data.draw(st.sampled_from(["mgh", "nrrd", "mha"]))
    path = tmp_path_factory.mktemp("other") / f"scan.{extension}"
    other_format(extension, path)
    raw = path.read_bytes()
    cut = data.draw(st.integers(1, len(raw)))
    path.write_bytes(raw[:-cut] if data.draw(st.booleans()) else raw + bytes(cut))
    volume = outcome(f"{extension} cut or longer", path)
    assert volume is None or same_voxels(volume)


# ---- tables and datalists -------------------------------------------------------------------------------------------

TABLES = {
    ".tsv": "index\tname\tcolor\n17\tLeft-Hippocampus\t#dcd814\n53\tRight-Hippocampus\t#dcd814\n",
    ".csv": "id,name\n17,Left-Hippocampus\n53,Right-Hippocampus\n",
    ".txt": "17 Left-Hippocampus 220 216 20 0\n53 Right-Hippocampus 220 216 20 0\n",
    ".label": '17 220 216 20 1 1 1 "Left Hippocampus"\n53 220 216 20 1 1 1 "Right Hippocampus"\n',
    ".json": '{"0": "background", "17": "Left-Hippocampus", "53": "Right-Hippocampus"}',
}


@FUZZ
@given(data=st.data())
def test_tables(data, tmp_path_factory):
    extension = data.draw(st.sampled_from(sorted(TABLES)))
    raw = bytearray(TABLES[extension].encode())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(raw) - 1))
        raw[position : position + 1] = data.draw(st.binary(min_size=0, max_size=2))
    path = tmp_path_factory.mktemp("table") / f"table{extension}"
    path.write_bytes(raw)
    table, message = attempt("table", lambda: LabelTable.read(path))
    if table is None:
        assert path.name in message
    else:
        assert all(label.id > 0 and label.name for label in table)


@FUZZ
@given(data=st.data())
def test_datalists(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("datalist")
    value = st.recursive(
        st.none() | st.booleans() | st.integers(-2, 3) | st.text(max_size=5) | st.just("images/a.nii.gz"),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["image", "label", "fold", "x"]), inner, max_size=3)
        ),
        max_leaves=8,
    )
    item = st.fixed_dictionaries(
        {"image": st.sampled_from(["images/a.nii.gz", "b.nii"]), "label": st.just("labels/a.nii")}
    )
    names = st.sampled_from(["training", "validation", "test", "testing"])
    content = data.draw(st.dictionaries(names, st.lists(item, max_size=7)) | st.dictionaries(names, value) | value)
    (folder / "list.json").write_text(json.dumps(content))
    section = data.draw(st.sampled_from(["training", "testing"]))
    cases, message = attempt("datalist", lambda: find_cases(datalist=folder / "list.json", section=section))
    assert len(message) <= 600
    assert cases is None or all(Path(case["image"]).is_absolute() and case["case"] for case in cases)
