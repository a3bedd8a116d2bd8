"""Odd files, a row each: what is odd, how the file is made, and the value or the error that is right.

A fault that is found on somebody's file becomes one more row, with a made file. ``make`` writes a file into a
folder and returns its path; ``error`` and ``note`` are pieces of the message and of the warning.
"""

import gzip
import json
import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from nibabel.volumeutils import shape_zoom_affine

from monai_lcs.label_app.files import check_size
from monai_lcs.labels import LabelTable
from monai_lcs.pipeline import Preprocessing
from monai_lcs.pipeline.evaluation import pair_label_maps
from monai_lcs.results import Segmentation
from monai_lcs.results.volume_files import label_map_image
from monai_lcs.study.cases import MAX_NAME_BYTES, case_names, find_cases, find_images
from monai_lcs.study.checks import check_case, check_resampled_size, check_scan, read_scan
from monai_lcs.study.images import GridWarning, notes_of, read_image, read_shape

SHAPE = (24, 22, 20)
AFFINE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.3) @ np.diag([-1.0, 1.5, 2.0]), [10, -20, 30])
GENERATOR = np.random.RandomState(0)
VOXELS = (1000 + 500 * np.sin(np.indices(SHAPE).sum(0) / 4) + GENERATOR.randint(0, 60, SHAPE)).astype(np.int16)
RAW = VOXELS.tobytes("F")
FLOATS = VOXELS.astype(np.float32)
DEFLATED = zlib.compress(RAW)
MOVED = nib.affines.from_matvec(np.eye(3), [0, 40, 0]) @ AFFINE
ROUNDED = nib.affines.from_matvec(np.eye(3) * 1.0001, [0, 0.05, 0]) @ AFFINE
MIRRORED = np.diag([-1.0, 1, 1, 1]) @ AFFINE
SHEARED_AXES = "(1,0,0) (.2,1,0) (0,0,1)"
SHEARED = nib.affines.from_matvec(AFFINE[:3, :3] @ [[1, 0.2, 0], [0, 1, 0.1], [0, 0, 1.05]], [10, -20, 30])


# ---- files by their headers


def nifti(name="scan.nii", voxels=VOXELS, affine=AFFINE, image_type=nib.Nifti1Image, forms=None, unit="mm", **fields):
    """A NIfTI file; ``fields`` of the header are changed in the file itself, whatever nibabel thinks of them."""

    def make(folder):
        image = image_type(voxels, affine)
        image.header.set_xyzt_units(unit)
        for set_form, (matrix, code) in zip((image.set_sform, image.set_qform), forms or (), strict=False):
            set_form(matrix, code)
        nib.save(image, folder / name)
        if fields:
            change_fields(folder / name, image.header_class, fields)
        return folder / name

    return make


def change_fields(path, header_class, fields):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as stream:
        content = bytearray(stream.read())
    size = header_class.sizeof_hdr
    header = header_class(bytes(content[:size]), check=False)
    for field, value in fields.items():
        header._structarr[field] = value
    content[:size] = header.binaryblock
    with opened(path, "wb") as stream:
        stream.write(content)


def dims(*sizes):
    return [3, *sizes, 1, 1, 1, 1]


def mgh(name="scan.mgz", voxels=FLOATS, affine=AFFINE, change=None, end=b""):
    """An MGH file; ``change`` gets its bytes."""

    def make(folder):
        nib.save(nib.MGHImage(voxels, affine), folder / name)
        opened = gzip.open if name.endswith("z") else open
        with opened(folder / name, "rb") as stream:
            content = bytearray(stream.read())
        if change:
            change(content)
        with opened(folder / name, "wb") as stream:
            stream.write(bytes(content) + end)
        return folder / name

    return make


def put(position, form, *values):
    """A change of some bytes."""

    def change(content):
        struct.pack_into(form, content, position, *values)

    return change


def analyze(image_type=nib.AnalyzeImage, end=b"", **fields):
    def make(folder):
        nib.save(image_type(VOXELS, np.diag([-1.0, 1.5, 2.0, 1.0])), folder / "scan.img")
        if fields:
            change_fields(folder / "scan.hdr", image_type.header_class, fields)
        with open(folder / "scan.img", "ab") as stream:
            stream.write(end)
        return folder / "scan.hdr"

    return make


def text_file(name, lines, data=b"", **others):
    """An NRRD or MetaImage file of the lines of its header and its data; ``others`` are files beside it."""

    def make(folder):
        (folder / name).write_bytes("".join(f"{line}\n" for line in lines if line is not None).encode() + data)
        for other, content in others.items():
            (folder / other.replace("_", ".")).write_bytes(content)
        return folder / name

    return make


def fields_of(defaults, changes):
    """Fields with changes; None leaves one out."""
    return {name: value for name, value in {**defaults, **changes}.items() if value is not None}


def metaimage(name="scan.mha", data=RAW, after=(), beside=None, **changes):
    defaults = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": False,
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "0 0 0",
        "ElementSpacing": "1 1.5 2",
        "DimSize": " ".join(map(str, SHAPE)),
        "ElementType": "MET_SHORT",
        "ElementDataFile": "LOCAL",
    }
    lines = [f"{key} = {value}" for key, value in fields_of(defaults, changes).items() if key != "ElementDataFile"]
    last = changes.get("ElementDataFile", "LOCAL")
    return text_file(name, [*lines, *after, last and f"ElementDataFile = {last}"], data, **(beside or {}))


def nrrd(name="scan.nrrd", data=RAW, after=(), beside=None, magic="NRRD0004", **changes):
    defaults = {
        "type": "short",
        "dimension": 3,
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, SHAPE)),
        "space directions": "(1,0,0) (0,1.5,0) (0,0,2)",
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "raw",
        "space origin": "(0,0,0)",
    }
    changes = {key.replace("_", " "): value for key, value in changes.items()}
    lines = [f"{key}: {value}" for key, value in fields_of(defaults, changes).items()]
    return text_file(name, [magic, *lines, *after, ""], data, **(beside or {}))


def link(target="not-there.nii"):
    def make(folder):
        (folder / "scan.nii").symlink_to(folder / target)
        return folder / "scan.nii"

    return make


def content(text, name="scan.nii"):
    def make(folder):
        (folder / name).write_bytes(text)
        return folder / name

    return make


@dataclass
class Row:
    """``error``: a piece of the message; ``note``: a piece of the warning, none by default; ``affine``."""

    what: str
    make: Any
    error: str | None = None
    note: str | None = None
    affine: Any = None

    def __str__(self):
        return self.what


LPS = np.diag([-1.0, -1.5, 2.0, 1.0])
BASE = shape_zoom_affine(SHAPE, (1, 1.5, 2))
MICROMETERS = np.diag([1000.0, 1500, 2000, 1])
METERS = np.diag([0.001, 0.0015, 0.002, 1])
MILLIMETERS = np.diag([1.0, 1.5, 2, 1])
MORE = "its header claims"

ROWS = [
    # NIfTI: the affine
    Row("a sheared sform beside plain voxel sizes", nifti(forms=[(SHEARED, 4)], pixdim=[1, 1, 1.4, 2.1, 1, 1, 1, 1]),
        affine=SHEARED, note="its voxels are 1 x 1.513 x"),
    Row("rounded voxel sizes", nifti(pixdim=[1, 1.001, 1.499, 2.001, 1, 1, 1, 1]), affine=AFFINE),
    Row("an sform of a co-registration, no qform", nifti(forms=[(MOVED, 2), (AFFINE, 0)]), affine=MOVED),
    Row("sform and qform apart", nifti(forms=[(MOVED, 4), (AFFINE, 1)]), affine=MOVED,
        note=r"its sform \(mni\) and qform \(scanner\) lie up to 40 mm apart: the sform is used"),
    Row("sform and qform mirrored", nifti(forms=[(MIRRORED, 1), (AFFINE, 1)]), affine=MIRRORED,
        note="its sform and qform mirror each other"),
    Row("sform and qform rounded", nifti(forms=[(ROUNDED, 1), (AFFINE, 1)]), affine=ROUNDED),
    Row("neither sform nor qform", nifti(affine=None, pixdim=[1, 1, 1.5, 2, 1, 1, 1, 1]), affine=BASE,
        note="nothing about orientation .* which side is left is guessed"),
    Row("an invalid quaternion beside an sform", nifti(forms=[(AFFINE, 1), (AFFINE, 1)], quatern_b=3),
        affine=AFFINE, note="quaternion of its qform is invalid"),
    Row("NIfTI 2", nifti(image_type=nib.Nifti2Image), affine=AFFINE),
    Row("a big-endian file", nifti(image_type=lambda x, a: nib.Nifti1Image(x, a, nib.Nifti1Header(endianness=">"))),
        affine=AFFINE),
    Row("axes of length 1 behind the third", nifti(voxels=VOXELS[..., None, None]), affine=AFFINE),
    Row("NaN in the sform", nifti(srow_x=np.nan), "scan.nii must have voxels of 0.01 to 30 mm, got nan x"),
    Row("an sform of zeros", nifti(srow_x=0, srow_y=0, srow_z=0), "must have voxels of 0.01 to 30 mm, got 0 x 0 x 0"),
    Row("two parallel axes", nifti(srow_x=[1, 1, 0, 0], srow_y=0, srow_z=[0, 0, 1, 0]),
        "scan.nii has an affine without an inverse", note="by the sform"),
    Row("an unknown sform_code", nifti(forms=[(MOVED, 1), (AFFINE, 1)], sform_code=99), affine=AFFINE,
        note="sform_code of its header is 99, which is not valid: read as 0"),
    Row("a negative voxel size", nifti(pixdim=[1, -1, 1.5, 2, 1, 1, 1, 1]), affine=AFFINE,
        note=r"pixdim of its header is \[-1.0, 1.5, 2.0\], which is not valid: read as \[1.0, 1.5, 2.0\]"),
    Row("a qfac of 0", nifti(pixdim=[0, 1, 1.5, 2, 1, 1, 1, 1]), affine=AFFINE),
    # NIfTI: units and sizes
    Row("micrometers", nifti(affine=MICROMETERS, unit="micron"), affine=MILLIMETERS),
    Row("meters", nifti(affine=METERS, unit="meter"), affine=MILLIMETERS),
    Row("meters that are millimeters", nifti(unit="meter"), "of 0.01 to 30 mm, got 1000 x 1500 x 2000 mm"),
    Row("micrometers that are millimeters", nifti(unit="micron"), "of 0.01 to 30 mm, got 0.001 x 0.0015"),
    Row("unknown unit", nifti(xyzt_units=0), affine=AFFINE),
    Row("a field of view of 100 m", nifti(affine=np.diag([29.0, 29, 29, 1]), voxels=np.ones((2, 2, 500), np.uint8)),
        "must have a field of view up to 3000 mm, got 58 x 58 x 14500 mm"),
    # NIfTI: data and header
    Row("float32 called int16", nifti(voxels=FLOATS, datatype=4, bitpix=16), MORE),
    Row("int16 called float32", nifti(datatype=16, bitpix=32), "damaged: its header claims"),
    Row("bits that are not those of the type", nifti(datatype=512, bitpix=32), "has 32 bits a voxel by `bitpix`"),
    Row("a shortened first axis", nifti(dim=dims(23, 22, 20)), MORE),
    Row("a shortened last axis, compressed", nifti("scan.nii.gz", dim=dims(24, 22, 19)), MORE),
    Row("a lengthened axis, compressed", nifti("scan.nii.gz", dim=dims(24, 22, 21)), "may be truncated"),
    Row("a shape of exabytes", nifti(dim=dims(30000, 30000, 30000)), "may be truncated or damaged"),
    Row("a shape of exabytes, compressed", nifti("scan.nii.gz", dim=dims(30000, 30000, 30000)), "may be truncated"),
    Row("an axis without voxels", nifti(dim=dims(24, 0, 20)), "must have at least one voxel along each axis"),
    Row("a negative axis", nifti(dim=dims(24, -22, 20)), "must have at least one voxel along each axis"),
    Row("ten axes", nifti(dim=[10, *SHAPE, 1, 1, 1, 1]), "cannot be read as an image|bits a voxel"),
    Row("an offset too small", nifti(vox_offset=0), "cannot be read as an image|its header claims"),
    Row("an offset too large", nifti(vox_offset=368), "damaged: its header claims"),
    Row("swapped bytes", nifti(voxels=VOXELS.byteswap()), "has its bytes in another order than its header claims"),
    Row("swapped bytes of numbers", nifti(voxels=FLOATS.byteswap()), "bytes in another order"),
    Row("more behind the data", lambda f: append(nifti()(f), b"\0" * 16), MORE),
    Row("a compressed file called .nii", lambda f: nifti("scan.nii.gz")(f).rename(f / "scan.nii"), affine=AFFINE),
    Row("a plain file called .nii.gz", lambda f: nifti()(f).rename(f / "scan.nii.gz"), affine=AFFINE),
    Row("text called .nii", content(b"no image" * 100), "does not begin with the header of a NIfTI file"),
    # NIfTI: one real number a voxel
    Row("complex numbers", nifti(voxels=VOXELS.astype(np.complex64)), "is a complex image: give its magnitude"),
    Row("colors", nifti(voxels=np.zeros(SHAPE, [(c, "u1") for c in "RGB"])), "a color image, with 3 numbers"),
    Row("two volumes", nifti(voxels=np.stack([VOXELS] * 2, -1)), "must be 3D, got a 4D file of 2 channels"),
    Row("vectors", nifti(voxels=np.stack([VOXELS] * 3, -1)[..., None, :]), "must be 3D, got a 5D file of 3 channels"),
    Row("a value that float32 lacks", nifti(voxels=VOXELS * 1e300), r"holds the value \S+, more than float32 holds"),
    Row("a value too large to compute with", nifti(voxels=VOXELS * 1e33), r"from .* to 1.\d+e\+36, too large"),
    Row("NaN", nifti(voxels=np.where(VOXELS > 1400, np.nan, VOXELS)), "NaN or Inf voxels of 10560"),
    # MGH
    Row("MGH", mgh(), affine=AFFINE),
    Row("MGH with tags of FreeSurfer", mgh(end=struct.pack(">iq5s", 3, 5, b"recon")), affine=AFFINE),
    Row("MGH with more voxels behind", mgh(end=VOXELS.tobytes()), MORE),
    Row("MGH of float32 called int16", mgh("scan.mgh", change=put(20, ">i", 4)), MORE),
    Row("MGH of a shortened axis", mgh(change=put(4, ">i", 20)), MORE),
    Row("MGH of a lengthened axis", mgh(change=put(4, ">i", 30)), "may be truncated or damaged"),
    Row("MGH of a negative axis", mgh(change=put(4, ">i", -24)), "must have at least one voxel|cannot be read"),
    Row("MGH without orientation", mgh(change=put(28, ">h", 0)), note="goodRASFlag is 0"),
    Row("MGH with directions of length 2", mgh(change=put(42, ">3f", 2, 0, 0)), "cosines of length 1, got 2, 1, 1"),
    # Analyze
    Row("Analyze, as nibabel reads it", analyze(), note="Analyze files say nothing about orientation",
        affine=lambda path: nib.load(path).affine),
    Row("Analyze of SPM", lambda f: (analyze(nib.Spm2AnalyzeImage)(f), (f / "scan.mat").unlink())[0],
        note="Analyze files say nothing about orientation", affine=lambda path: nib.load(path).affine),
    Row("Analyze of SPM with its .mat file", analyze(nib.Spm2AnalyzeImage), affine=MILLIMETERS * [-1, 1, 1, 1]),
    Row("Analyze of another type", analyze(datatype=16, bitpix=32), "may be truncated or damaged"),
    Row("Analyze with more behind", analyze(end=b"\0" * 512), MORE),
    Row("NIfTI pair", analyze(nib.Nifti1Pair), affine=MILLIMETERS * [-1, 1, 1, 1]),
    Row("NIfTI pair of a shortened axis", analyze(nib.Nifti1Pair, dim=dims(24, 22, 19)), MORE),
    Row("Analyze without its data", lambda f: (analyze()(f), (f / "scan.img").unlink())[0], "scan.hdr cannot be read"),
    # MetaImage
    Row("MetaImage", metaimage(), affine=LPS),
    Row("MetaImage with its data beside", metaimage("scan.mhd", b"", ElementDataFile="scan.raw",
        beside={"scan_raw": RAW}), affine=LPS),
    Row("MetaImage, compressed", metaimage(data=DEFLATED, CompressedData=True,
        CompressedDataSize=len(DEFLATED)), affine=LPS),
    Row("MetaImage, compressed, without its size", metaimage(data=DEFLATED, CompressedData=True), affine=LPS),
    Row("MetaImage, compressed, cut", metaimage(data=DEFLATED[:-9], CompressedData=True), "truncated or damaged"),
    Row("MetaImage, compressed, of another size", metaimage(data=DEFLATED, CompressedData=True, CompressedDataSize=99),
        rf"must have {len(DEFLATED)}, the bytes of its data, as 'CompressedDataSize' .* got 99"),
    Row("MetaImage without its data", metaimage("scan.mhd", b"", ElementDataFile="a.raw"), "'a.raw', which is not"),
    *(Row(f"MetaImage of {n} dimensions", metaimage(NDims=n), "must have 2 to 5 as 'NDims'") for n in (-1, 0, 1, 99)),
    Row("MetaImage of x dimensions", metaimage(NDims="x"), "must have an integer as 'NDims'"),
    Row("MetaImage without a shape", metaimage(DimSize=None), "must have 3 integers > 0 as 'DimSize'"),
    Row("MetaImage of a negative shape", metaimage(DimSize="24 -22 20"), "must have 3 integers > 0 as 'DimSize'"),
    Row("MetaImage of a shortened axis", metaimage(DimSize="24 22 19"), MORE),
    Row("MetaImage of a lengthened axis", metaimage(DimSize="24 22 21"), "may be truncated or damaged"),
    Row("MetaImage of exabytes", metaimage(DimSize="2000000 2000000 2000000"), "may be truncated or damaged"),
    Row("MetaImage of another type", metaimage(ElementType="MET_UCHAR"), MORE),
    Row("MetaImage of no type", metaimage(ElementType="MET_CAT"), "a number type .* as 'ElementType'"),
    Row("MetaImage, compressed, shortened", metaimage(data=DEFLATED, CompressedData=True,
        CompressedDataSize=len(DEFLATED), DimSize="24 22 19"), MORE),
    Row("MetaImage beside, shortened", metaimage("scan.mhd", b"", ElementDataFile="scan.raw", DimSize="24 22 19",
        beside={"scan_raw": RAW}), MORE),
    Row("MetaImage with swapped bytes", metaimage(BinaryDataByteOrderMSB=True), "bytes in another order"),
    Row("MetaImage of colors", metaimage(ElementNumberOfChannels=3), "must have one number a voxel, got 3"),
    Row("MetaImage without orientation", metaimage(TransformMatrix=None), affine=LPS, note="no TransformMatrix"),
    Row("MetaImage with long directions", metaimage(TransformMatrix="2 0 0 0 1 0 0 0 1"), "cosines of length 1"),
    Row("MetaImage with NaN", metaimage(Offset="nan 0 0"), "must have 3 finite numbers as 'Offset'"),
    Row("MetaImage with a spacing of 0", metaimage(ElementSpacing="1 0 2"), "3 numbers > 0 as 'ElementSpacing'"),
    Row("MetaImage in micrometers", metaimage(DistanceUnits="um", ElementSpacing="1000 1500 2000"), affine=LPS),
    Row("MetaImage in feet", metaimage(DistanceUnits="ft"), affine=LPS, note="unit of length 'ft' is unknown"),
    Row("MetaImage with a field twice", metaimage(after=["NDims = 3"]), "has 'NDims' twice in its header"),
    Row("MetaImage with a line of noise", metaimage(after=["noise"]), "must have 'name = value' in each line"),
    Row("MetaImage in slices", metaimage(ElementDataFile="a%d.raw 1 20 1"), "voxels in several files"),
    Row("MetaImage without data", content(b"NDims = 3\n", "scan.mha"), "LOCAL or a file name as 'ElementDataFile'"),
    # NRRD
    Row("NRRD", nrrd(), affine=LPS),
    Row("NRRD, compressed", nrrd(data=gzip.compress(RAW), encoding="gzip"), affine=LPS),
    Row("NRRD with its data beside", nrrd("scan.nhdr", b"", data_file="scan.raw",
        beside={"scan_raw": RAW}), affine=LPS),
    Row("NRRD in text", nrrd(data=" ".join(map(str, VOXELS.ravel("F"))).encode(), encoding="ascii", endian=None),
        affine=LPS),
    Row("NRRD without its data", nrrd("scan.nhdr", b"", data_file="a.raw"), "'a.raw', which is not there"),
    *(Row(f"NRRD of {n} dimensions", nrrd(dimension=n), "must have 2 to 5 as 'dimension'") for n in (-1, 0, 1, 99)),
    Row("NRRD of a negative shape", nrrd(sizes="24 -22 20"), "must have 3 integers > 0 as 'sizes'"),
    Row("NRRD of a shortened axis", nrrd(sizes="24 22 19"), MORE),
    Row("NRRD of a lengthened axis", nrrd(sizes="24 22 21"), "may be truncated or damaged"),
    Row("NRRD of another type", nrrd(type="uchar"), MORE),
    Row("NRRD of no type", nrrd(type="block"), "must have a number type such as short or float as 'type'"),
    Row("NRRD, compressed, shortened", nrrd(data=gzip.compress(RAW), encoding="gzip", sizes="24 22 19"),
        MORE),
    Row("NRRD beside, shortened", nrrd("scan.nhdr", b"", data_file="scan.raw", sizes="24 22 19",
        beside={"scan_raw": RAW}), MORE),
    Row("NRRD with swapped bytes", nrrd(endian="big"), "has its bytes in another order than its header claims"),
    Row("NRRD of colors", nrrd(kinds="RGB-color domain domain"), r"one number a voxel, got 24 \('rgb-color'\)"),
    Row("NRRD without orientation", nrrd(space=None, space_directions=None, space_origin=None, spacings="1 1.5 2"),
        note="no space directions", affine=LPS),
    Row("NRRD in micrometers", nrrd(space_units='"um" "um" "um"', space_directions="(1000,0,0) (0,1500,0) (0,0,2000)"),
        affine=LPS),
    Row("NRRD with NaN", nrrd(space_directions="(nan,0,0) (0,1,0) (0,0,1)"), "3 finite numbers as 'space directions'"),
    Row("NRRD in slices", nrrd(data_file="a%d.raw 1 20 1"), "voxels in several files"),
    Row("NRRD of an unknown encoding", nrrd(encoding="zip"), "must have raw, gzip, ascii or hex as 'encoding'"),
    Row("NRRD with a field twice", nrrd(after=["type: short"]), "has 'type' twice in its header"),
    Row("NRRD of another version", nrrd(magic="NRRDx"), "must begin with NRRD0001 to NRRD0005, got 'NRRDx'"),
    # files that are not there
    Row("a link whose content was not fetched", link(), "is a link to content that is not there: fetch it"),
    Row("a pointer of git-lfs", content(b"version https://git-lfs.github.com/spec/v1\n"), "content that is not there"),
    Row("a git-annex pointer", content(b"/annex/objects/SHA256E-s3--1.nii\n"), "content that is not there: fetch it"),
    Row("a folder called .nii", lambda f: ((f / "scan.nii").mkdir(), f / "scan.nii")[1], "scan.nii is a folder"),
]  # fmt: skip


def append(path, data):
    with open(path, "ab") as stream:
        stream.write(data)
    return path


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_image(tmp_path, row):
    path = row.make(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if row.error:
            with pytest.raises(ValueError, match=row.error) as error:
                check_case({"image": path})
            assert str(path.with_suffix("")).removesuffix(".nii") in str(error.value)
            assert len(str(error.value).replace(str(tmp_path), "")) < 300
            assert "\n" not in str(error.value)
            assert not re.search(r"\.[ch](xx|pp)?\b|0x", str(error.value))
        else:
            scan = read_scan(path)
    notes = [str(warning.message) for warning in caught if warning.category is GridWarning]
    assert len(caught) == len(notes) == (row.note is not None)
    if row.note:
        assert re.search(rf"^{re.escape(str(path))}: .*{row.note}", notes[0])
        assert len(notes[0].replace(str(tmp_path), "")) < 300
    if row.error:
        return
    assert scan.dtype == torch.float32
    np.testing.assert_array_equal(scan[0], VOXELS)
    assert [*notes_of(scan)] == notes_of(scan.clone() * 2)
    if row.affine is not None:
        expected = row.affine(path) if callable(row.affine) else row.affine
        np.testing.assert_allclose(scan.affine, expected, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        nifti(),
        nifti("scan.nii.gz"),
        mgh(),
        analyze(),
        metaimage(),
        metaimage(data=DEFLATED, CompressedData=True),
        nrrd(),
    ],
)
def test_the_shape_comes_without_the_voxels(tmp_path, make):
    assert read_shape(make(tmp_path))[:3] == SHAPE


@pytest.mark.parametrize("make", [metaimage(NDims=-1), nrrd(dimension=-1), content(b"no image" * 100), link()])
def test_an_upload_that_is_no_image(tmp_path, make):
    """The server of the label app looks at a file that anybody may have made, before it keeps it."""
    with pytest.raises(ValueError, match=r"scan\.\w+ (must have 2 to 5|is no image that can be read|is a link)"):
        check_size(make(tmp_path), 1e9)
    with pytest.raises(OverflowError, match=r"at most 1000 are allowed"):
        check_size(metaimage(ElementNumberOfChannels=3)(tmp_path), 1000)


def test_two_label_maps_of_one_name(tmp_path):
    for folder, names in (("out", ["a_dseg.nii", "a_dseg.mha"]), ("truth", ["a.nii"])):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    with pytest.raises(ValueError, match=r'Two label maps are named "a", .*a_dseg.mha and .*a_dseg.nii'):
        pair_label_maps(tmp_path / "out", tmp_path / "truth")


# ---- the same values as others read


def sitk_image(dtype, dims=3):
    image = sitk.GetImageFromArray(VOXELS[..., 0].T.astype(dtype) if dims == 2 else VOXELS.T.astype(dtype))
    rotation = nib.eulerangles.euler2mat(0.3, -0.2, 0.1)
    image.SetDirection(rotation.ravel() if dims == 3 else (0, -1, 1, 0))
    image.SetSpacing((1.1, 1.2, 1.3)[:dims])
    image.SetOrigin((-7.123456789, 8, 9)[:dims])
    return image


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", ["scan.mha", "scan.mhd", "scan.nrrd", "scan.nhdr"])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_files_that_itk_writes(tmp_path, name, dtype, compress):
    image = sitk_image(dtype)
    sitk.WriteImage(image, tmp_path / name, compress)
    scan = read_image(tmp_path / name)
    np.testing.assert_array_equal(scan[0], VOXELS.astype(dtype))
    read = sitk.ReadImage(tmp_path / name)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(read.GetDirection(), (3, 3)) * read.GetSpacing()
    affine[:3, 3] = read.GetOrigin()
    np.testing.assert_allclose(scan.affine, np.diag([-1, -1, 1, 1]) @ affine, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["slice.mha", "slice.nrrd"])
def test_slices_that_itk_writes(tmp_path, name):
    sitk.WriteImage(sitk_image("i2", dims=2), tmp_path / name)
    scan = read_image(tmp_path / name)
    np.testing.assert_array_equal(scan[0], VOXELS[..., 0])
    np.testing.assert_allclose(scan.affine, [[0, 1.2, 7.123456789], [-1.1, 0, -8], [0, 0, 1]], atol=1e-12)


@pytest.mark.parametrize(
    ("space", "signs"),
    [("right-anterior-superior", (1, 1, 1)), ("LAS", (-1, 1, 1)), ("left-posterior-superior", (-1, -1, 1))],
)
def test_worlds_of_nrrd(tmp_path, space, signs):
    path = nrrd(space=space, space_origin="(3,4,5)")(tmp_path)
    expected = np.diag([*signs, 1.0]) @ nib.affines.from_matvec(np.diag([1, 1.5, 2]), [3, 4, 5])
    np.testing.assert_array_equal(read_image(path).affine, expected)


# ---- the result lies where the scan does


def save_result(path, folder):
    scan = read_scan(path)
    labels = MetaTensor((scan > 1200).as_tensor().int() * 7, affine=scan.affine)
    result = Segmentation(labels, scan, LabelTable.from_ids([7]))
    return result, nib.load(result.save(folder, picture=False)["dseg"])


FIELDS = ("pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x")


@pytest.mark.filterwarnings("ignore::monai_lcs.study.images.GridWarning")
@pytest.mark.parametrize("row", [r for r in ROWS if not r.error and "NIfTI" not in r.what and "of 1" not in r.what
                                 and r.make.__qualname__.startswith("nifti")], ids=str)  # fmt: skip
def test_result_has_the_affine_of_a_nifti_file_bit_for_bit(tmp_path, row):
    path = row.make(tmp_path)
    result, saved = save_result(path, tmp_path / "out")
    source = nib.load(path)
    np.testing.assert_array_equal(saved.affine, source.affine)
    for field in FIELDS:
        np.testing.assert_array_equal(saved.header[field], source.header[field], err_msg=field)
    np.testing.assert_array_equal(read_image(saved.get_filename()).affine, result.image.affine)
    assert result.volumes["mm3"][0] == pytest.approx(result.volumes["voxels"][0] * abs(np.linalg.det(row.affine)))


def test_result_of_nifti_2_keeps_all_digits(tmp_path):
    affine = AFFINE + np.pad(np.full((3, 3), 1e-12), ((0, 1), (0, 1)))
    path = nifti(affine=affine, image_type=nib.Nifti2Image)(tmp_path)
    assert (nib.load(path).affine == affine).all()
    saved = save_result(path, tmp_path / "out")[1]
    assert isinstance(saved, nib.Nifti2Image)
    np.testing.assert_array_equal(saved.affine, affine)


@pytest.mark.filterwarnings("ignore::monai_lcs.study.images.GridWarning")
@pytest.mark.parametrize("make", [mgh(), analyze(), metaimage(), nrrd(), nrrd(space_directions=SHEARED_AXES)])
def test_result_of_another_format_has_the_affine_in_float32(tmp_path, make):
    result, saved = save_result(make(tmp_path), tmp_path / "out")
    np.testing.assert_array_equal(saved.affine, result.image.affine.numpy().astype(np.float32))
    assert saved.header.get_xyzt_units()[0] == "mm"
    qform = saved.get_qform(coded=True)[0]  # cannot hold shears
    assert qform is None or np.allclose(qform, saved.affine, atol=1e-4)


def test_a_scan_that_was_moved_does_not_keep_the_fields_of_its_file(tmp_path):
    scan = read_scan(nifti(unit="micron", affine=MICROMETERS)(tmp_path))
    moved = scan.clone()
    moved.affine = torch.from_numpy(MOVED)
    saved = label_map_image((moved > 1200).int(), moved, np.dtype(np.uint8))
    np.testing.assert_allclose(saved.header.get_best_affine(), MOVED, atol=1e-5)
    assert saved.header.get_xyzt_units()[0] == "mm"


def test_what_was_guessed_is_in_the_quality_and_above_the_picture(tmp_path, monkeypatch):
    titles = []

    def draw(*volumes_and_path, title, **_):
        titles.append(title)
        volumes_and_path[3].touch()

    monkeypatch.setattr("monai_lcs.results.segmentation.qc_picture", draw)
    with pytest.warns(GridWarning, match=r"which side is left is guessed\.$"):
        scan = read_scan(nifti(affine=None)(tmp_path))
    labels = MetaTensor((scan > 1200).as_tensor().int(), affine=scan.affine)
    result = Segmentation(labels, scan, LabelTable.from_ids([1]), quality={"overlap": 0.9})
    (note,) = result.quality["notes"]
    assert result.quality["overlap"] == 0.9
    result.save(tmp_path / "out")
    assert titles == [f"scan\n{note}"]
    assert "notes" not in Segmentation(labels, labels, LabelTable.from_ids([1])).quality


@pytest.mark.filterwarnings("ignore::monai_lcs.study.images.GridWarning")
def test_scans_with_and_without_notes_make_a_batch(tmp_path):
    from monai.data import DataLoader, Dataset, decollate_batch

    (tmp_path / "a").mkdir()
    makes = [nifti("a.nii"), nifti("b.nii", affine=None), nifti("c.nii", forms=[(MIRRORED, 1), (AFFINE, 1)])]
    scans = [read_scan(make(tmp_path)) for make in makes]
    for two in ([0, 1], [1, 2]):
        (batch,) = DataLoader(Dataset([scans[i] for i in two]), batch_size=2)
        notes = [notes_of(one) for one in decollate_batch(batch)]
        assert notes == ([[], []] if 0 in two else [notes_of(scans[i]) for i in two])


# ---- sizes


def test_volumes_in_memory_have_sizes_of_a_body():
    def volume(*sizes, shape=(4, 5, 6)):
        return MetaTensor(torch.rand(1, *shape), affine=np.diag([*sizes, 1.0]))

    check_scan(volume(0.011, 1, 29.9), "the scan")
    for sizes, message in [
        ((0.001, 1, 1), "must have voxels of 0.01 to 30 mm, got 0.001 x 1 x 1 mm"),
        ((1, 1, 31), "must have voxels of 0.01 to 30 mm, got 1 x 1 x 31 mm"),
        ((1, 0, 1), "must have voxels of 0.01 to 30 mm, got 1 x 0 x 1 mm"),
    ]:
        with pytest.raises(ValueError, match=f"the scan {message}"):
            check_scan(volume(*sizes), "the scan")
    with pytest.raises(ValueError, match="the scan must have a field of view up to 3000 mm, got 10000 x 40 x 48 mm"):
        check_scan(volume(10, 8, 8, shape=(1000, 5, 6)), "the scan")
    with pytest.raises(ValueError, match=r"the scan has values from -1e\+20 to .*, too large to compute with"):
        check_scan(volume(1, 1, 1) - 1e20, "the scan")
    with pytest.raises(ValueError, match=r"the scan has values from .* to .*, too small to compute with"):
        check_scan(volume(1, 1, 1) * 1e-30, "the scan")
    with pytest.raises(ValueError, match="the scan has no voxels"):
        check_scan(torch.zeros(1, 4, 0, 5), "the scan")


def test_resampling_is_bounded(monkeypatch):
    """30 mm voxels at 1 mm would take 27000 times the memory."""
    scan = MetaTensor(torch.rand(1, 90, 80, 70), affine=torch.diag(torch.tensor([-30.0, 30, 30, 1])))
    with pytest.raises(ValueError, match="the scan would have 2700 x 2400 x 2100 voxels at 1 x 1 x 1 mm, too many"):
        check_resampled_size(scan, (1, 1, 1), "the scan")
    check_resampled_size(scan, (4, 4, 4), "the scan")
    flat = MetaTensor(torch.rand(1, 90, 8, 70), affine=scan.affine @ torch.eye(4, dtype=torch.float64)[[1, 0, 2, 3]])
    with pytest.raises(ValueError, match="2700 x 240 x 2100 voxels at 1 x 1 x 1 mm"):
        check_resampled_size(flat, (1, 1, 1), "the scan")
    preprocessing = Preprocessing.__new__(Preprocessing)
    preprocessing.settings = type("Settings", (), {"spacing": (1, 1, 1)})
    monkeypatch.setattr("monai_lcs.pipeline.preprocessing.Spacing", None)  # not reached
    with pytest.raises(ValueError, match="too many for memory"):
        preprocessing.on_network_grid(scan)


# ---- names and datalists


def folder_of(tmp_path, count=6, there=2):
    """A study of links, of which only some lead anywhere."""
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for i in range(count):
            target = tmp_path / f"annex-{kind}-{i}"
            if i < there:
                target.touch()
            (tmp_path / kind / f"s{i}.nii.gz").symlink_to(target)
    return tmp_path


@pytest.mark.parametrize("there", [0, 2])
def test_links_without_content_are_cases_and_fail_by_name(tmp_path, there):
    study = folder_of(tmp_path, there=there)
    cases = find_cases(study, section="testing")
    assert [case["case"] for case in cases] == [f"s{i}" for i in range(6)]
    assert len(find_images(study / "images")) == 6
    with pytest.raises(ValueError, match=r"images/s5.nii.gz is a link to content that is not there: fetch it"):
        check_case(cases[5])


def test_a_folder_of_label_maps_alone(tmp_path):
    (tmp_path / "a_dseg.nii.gz").touch()
    with pytest.raises(ValueError, match=r"holds no images but label maps \(a_dseg.nii.gz\): give their files by name"):
        find_images(tmp_path)


DATALISTS = [
    ('{"training": [', "Cannot read the datalist"),
    ("[" * 100_000 + "]" * 100_000, "its lists or objects are nested too deeply"),
    ('{"training": ' + '{"a": ' * 100_000 + "1" + "}" * 100_001, "its lists or objects are nested too deeply"),
    ('{"training": [], "validation": {"image": "a.nii"}}', '"validation" of .* must be a list of cases, got a dict'),
    ('{"training": [], "validation": "a.json"}', 'Section "validation" of .* must be a list of cases, got a str'),
    ('{"training": [], "training": []}', "it has 'training' twice in one object"),
    ('{"training": [{"image": "a\\u0000.nii", "label": "b.nii"}]}', '"image" of an item of .* is no path'),
    ('{"training": [{"image": "", "label": "b.nii"}]}', '"image" of an item of .* is no path'),
    ('{"training": [{"image": 3, "label": "b.nii"}]}', "names no image file"),
    ('{"training": [{"image": "a.nii", "labels": "%s"}]}' % ("x" * 900), "names no label file"),
    ('{"training": [{"image": "a.nii", "label": "b.nii", "fold": [1]}]}', r'The "fold" of each item .* got \[1\]'),
    ('{"training": [{"image": "a.nii", "label": "b.nii", "fold": true}]}', 'The "fold" of each item .* got True'),
    ('{"training": [{"image": ".nii.gz", "label": "b.nii"}]}', ".nii.gz has no name before its ending: rename it"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), DATALISTS, ids=[message[:40] for _, message in DATALISTS])
def test_datalists(tmp_path, text, message):
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        find_cases(datalist=path)
    assert str(path) in str(error.value) or str(tmp_path) in str(error.value)
    assert len(str(error.value).replace(str(tmp_path), "")) < 300


def test_datalist_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"test": ["a.nii"]}), encoding="utf-8-sig")
    assert [case["case"] for case in find_cases(datalist=path, section="testing", with_labels=False)] == ["a"]


def test_names_that_no_file_can_have():
    long = "x" * 240
    with pytest.warns(UserWarning, match=r"The results of 'x+\.\.\. are named x{180}_\w{8}\."):
        name, other = case_names([f"{long}1.nii", "b.nii"])
    assert other == "b"
    assert len(name) < MAX_NAME_BYTES
    with pytest.warns(UserWarning, match=r"The results of '.*(?:'|\.\.\.) are named"):
        (umlauts,) = case_names(["\u00e4" * 120 + ".nii"])
    assert len(umlauts.encode()) < MAX_NAME_BYTES
    with pytest.warns(UserWarning, match=r"The results of 'sc\\udcffan' are named sc_an\."):
        assert case_names([b"sc\xffan.nii".decode(errors="surrogateescape"), "sc_an.nii"]) == ["sc_an", "sc_an_2"]
    for path in (".nii.gz", "a/.NII"):
        with pytest.raises(ValueError, match=f"{path} has no name before its ending: rename it"):
            find_images(path)


@pytest.mark.parametrize("name", [b"sc\xffan.nii", b"x" * 240 + b".nii", "\u00e4".encode() * 120 + b".nii"])
def test_scans_of_odd_names_have_results(tmp_path, name):
    import os

    path = tmp_path / os.fsdecode(name)
    nifti()(tmp_path).rename(path)
    with pytest.warns(UserWarning, match="The results of .* are named"):
        saved = save_result(path, tmp_path / "out")[1]
    assert saved.shape == SHAPE
    names = [file.name for file in (tmp_path / "out").iterdir()]
    assert len(names) == 3
    assert all(text.isprintable() for text in names)


def test_a_name_at_the_limit_has_all_results(tmp_path):
    scan = read_scan(nifti()(tmp_path))
    labels = MetaTensor((scan > 1200).as_tensor().int(), affine=scan.affine)
    result = Segmentation(labels, scan, LabelTable.from_ids([1]), case="x" * MAX_NAME_BYTES)
    assert len(result.save(tmp_path / "out")) == 4
    long = Segmentation(labels, scan, LabelTable.from_ids([1]), case="x" * (MAX_NAME_BYTES + 1))
    with pytest.raises(ValueError, match=r"`case` must have at most \d+ bytes, got \d+ for .*scan.nii"):
        long.save(tmp_path / "out")


# ---- label tables


def freesurfer(*rows):
    return "# No. Label Name: R G B A\n0 Unknown 0 0 0 0\n" + "".join(f"{row}\n" for row in rows)


def dataset(**labels):
    return json.dumps({"channel_names": {"0": "MRI"}, "labels": labels, "file_ending": ".nii.gz"})


TABLES = [
    # what, file name, text, the names by their ids or a piece of the error
    ("a table from 0", "a.csv", "index,name\n0,Frontal Pole\n1,Insula\n", "line 2: Id 0 .* add 1 to every id"),
    ("background at 0", "a.csv", "index,name\n0,Background\n1,Insula\n", {1: "Insula"}),
    ("FastSurfer", "a.tsv", "ID\tLabelName\tRed\tGreen\tBlue\tAlpha\n2\tLeft-WM\t1\t2\t3\t0\n", {2: "Left-WM"}),
    ("3D Slicer", "a.csv", "LabelValue,Name,Color_R,Color_G,Color_B,Color_A\n2,WM,1,2,3,255\n", {2: "WM"}),
    ("CAT12", "a.csv", "ROIid;ROIabbr;ROIname\n2;lWM;Left WM\n", {2: "Left WM"}),
    ("a mark and a comment", "a.tsv", "\ufeff# of 2020, by us\nindex\tname\n2\tWM\n# the end\n", {2: "WM"}),
    ("a mark in lines", "a.txt", "\ufeff" + freesurfer("2 WM 1 2 3 0"), {2: "WM"}),
    ("FreeSurfer 8", "a.txt", freesurfer("819 Left-HypoThal-noMB  0  80  0 0 2"), {819: "Left-HypoThal-noMB"}),
    ("a name that ends in a number", "a.txt", freesurfer("9 Area 4 1 2 3 0"), "where the name ends .* write `_`"),
    ("eight columns", "a.txt", freesurfer("9 x 1 2 3 0 2 7"), "line 3: expected `id name R G B A`"),
    ("Decathlon", "dataset.json", dataset(**{"0": "background", "1": "liver"}), {1: "liver"}),
    ("nnU-Net", "dataset.json", dataset(background=0, liver=1, ignore=2), {1: "liver"}),
    ("nnU-Net's regions", "dataset.json", dataset(background=0, whole=[1, 2], core=2), "region of the ids .*union"),
    ("nested JSON", "a.json", '{"a":' * 100_000, "nested too deeply"),
    ("names for a spreadsheet", "a.csv", "id,name\n1,'=x\n2,'tis\n", {1: "=x", 2: "'tis"}),
    ("a long name at 0", "a.csv", f"id,name\n0,{'x' * 5000}\n", "Id 0 is called 'x"),
    ("a long line", "a.txt", "9 " * 50_000, "line 1: expected"),
    ("a long id", "a.csv", f"id,name\n{'9' * 5000},x\n", "Label ids must be integers, got '9"),
    ("long headings", "a.csv", f"{'x' * 5000},name\n1,a\n", "no id column found"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "expected"), [row[1:] for row in TABLES], ids=[row[0] for row in TABLES])
def test_label_table(tmp_path, name, text, expected):
    path = content(text.encode(), name)(tmp_path)
    if isinstance(expected, dict):
        assert {label.id: label.name for label in LabelTable.read(path)} == expected
        return
    with pytest.raises(ValueError, match=expected) as error:
        LabelTable.read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value).replace(str(tmp_path), "")) < 300
