"""Files from a stranger: they run no code, write nothing outside the output folder, and take no more than their size.

Each row of a table is a try. A payload that runs leaves a mark; a file that claims more than it holds must be refused
before memory is taken. Bundles are another matter: to run one is to run its code, see docs/reliability.md.
"""

import gzip
import io
import json
import os
import pickle
import resource
import struct
import threading
import time
import zipfile
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from monai_lcs.atlas import AlignmentCache, Atlas, AtlasAligner
from monai_lcs.cli import main
from monai_lcs.labels import LabelTable
from monai_lcs.pipeline import Segmenter, Settings, bundle_folder, make_network
from monai_lcs.results import Segmentation
from monai_lcs.study.cases import find_cases, find_images
from monai_lcs.study.checks import read_scan
from monai_lcs.study.images import read_image

SHAPE = (12, 11, 10)
SMALL = {"channels": [4, 8], "spacing": [2.0] * 3}
MOST_SECONDS, MOST_BYTES = 10, 150e6


class Payload:
    """An object whose unpickling makes a file."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


@pytest.fixture
def mark(tmp_path_factory):
    """A file that must not come to be."""
    path = tmp_path_factory.mktemp("mark") / "it-ran"
    yield path
    assert not path.exists()


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """Readers that are imported when they are needed first take memory then."""
    path = tmp_path_factory.mktemp("warm") / "scan.pkl"
    path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        read_image(path)


@pytest.fixture(autouse=True)
def bounded(warm):
    """Every try ends soon and takes little memory."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.process_time() - start < MOST_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_BYTES


def atlas_of(affine=None):
    labels = torch.zeros(1, *SHAPE, dtype=torch.int32)
    labels[:, 3:9, 3:9, 3:9] = 17
    affine = torch.eye(4, dtype=torch.float64) if affine is None else affine
    return Atlas(
        MetaTensor(labels.float(), affine=affine), MetaTensor(labels, affine=affine), LabelTable.from_ids([17])
    )


def expression(mark):
    """What the config parser of MONAI would run."""
    return f"$open({str(mark)!r}, 'w')"


def one_sentence(error):
    text = str(error.value)
    return "\n" not in text and len(text) < 600


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def legacy(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


def plain_pickle(state, path):
    path.write_bytes(pickle.dumps(state))


def scripted(state, path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


def bomb(state, path):
    """An archive of torch whose weights are 300 MB of zeros, deflated to 300 kB."""
    whole = io.BytesIO()
    torch.save({"w": torch.zeros(4)}, whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if name.endswith("data/0"):
                with new.open(name, "w", force_zip64=True) as stream:
                    for _ in range(30):
                        stream.write(bytes(10_000_000))
            else:
                new.writestr(name, old.read(name))


def stretched(state, path):
    """A weight of 4e12 numbers that all are the one number in the file."""
    torch.save({"w": torch.zeros(1).expand(2_000_000, 2_000_000)}, path)


CHECKPOINTS = {
    "a pickle": (plain_pickle, lambda mark: {"model": Payload(mark)}),
    "a payload among the weights": (torch.save, lambda mark: {"w": Payload(mark)}),
    "a payload beside the weights": (torch.save, lambda mark: {"model": {}, "optimizer": Payload(mark)}),
    "a payload as a key": (torch.save, lambda mark: {Payload: Payload(mark)}),
    "the old format": (legacy, lambda mark: {"model": Payload(mark)}),
    "a whole network": (torch.save, lambda mark: torch.nn.Sequential(torch.nn.Linear(2, 2))),
    "TorchScript": (scripted, lambda mark: None),
    "an array of objects": (torch.save, lambda mark: {"w": np.array([Payload(mark)], dtype=object)}),
    "a bomb": (bomb, lambda mark: None),
    "a stretched weight": (stretched, lambda mark: None),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint(tmp_path, mark, name):
    write, state = CHECKPOINTS[name]
    write(state(mark), tmp_path / "model.pt")
    (tmp_path / "model.json").write_text(json.dumps(SMALL))
    with pytest.raises(ValueError, match=r"model\.pt") as error:
        Segmenter.load(tmp_path / "model.pt", atlas_of())
    assert one_sentence(error)


SETTINGS = {
    "an expression as the alignment": (lambda mark: {"align": expression(mark)}, "Unsupported option"),
    "an expression as a norm": (lambda mark: {"norm": expression(mark)}, "Unsupported option"),
    "an expression as the halo": (lambda mark: {"halo": expression(mark)}, "halo"),
    "a reference of the parser": (lambda mark: {"align": "@initialize"}, "Unsupported option"),
    "a target of the parser": (
        lambda mark: {"norm": {"_target_": "builtins.open", "file": str(mark), "mode": "w"}},
        "model.json",
    ),
    "a network of terabytes": (lambda mark: {"channels": [100_000, 100_000]}, "channels"),
    "a network of a thousand levels": (lambda mark: {"channels": [4] * 1000}, "channels"),
    "a norm of terabytes": (lambda mark: {"norm": ["group", {"num_groups": 1, "num_channels": 10**12}]}, "norm"),
    "a voxel size of nothing": (lambda mark: {"spacing": [1e-9] * 3}, "spacing"),
    "nesting": (lambda mark: None, "nested too deeply"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_weights(tmp_path, mark, name):
    """``model.json`` beside good weights, read by the command and the bundle, whose parser runs ``$`` expressions."""
    values, message = SETTINGS[name]
    torch.save(make_network(Settings.from_dict(SMALL)).state_dict(), tmp_path / "model.pt")
    content = values(mark)
    text = '{"card":' + "[" * 100_000 if content is None else json.dumps({**SMALL, **content})
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        Segmenter.load(tmp_path / "model.pt", atlas_of())
    assert one_sentence(error)

    parser = ConfigParser()
    parser.read_config(str(Path(bundle_folder()) / "configs/inference.json"))
    parser["checkpoint"] = str(tmp_path / "model.pt")
    with pytest.raises((SystemExit, RuntimeError)):
        parser.get_parsed_content("network_def")


# ---- images ---------------------------------------------------------------------------------------------------------


def header(**fields):
    """A NIfTI header of SHAPE in bytes, its fields changed."""
    made = nib.Nifti1Header()
    made.set_data_shape(SHAPE)
    made.set_data_dtype(np.uint8)
    made["vox_offset"] = 352
    for name, value in fields.items():
        made._structarr[name] = value
    return made.binaryblock + bytes(4)


def zeros(count, start=b""):
    """Zeros, compressed by a thousand."""
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb") as packed:
        packed.write(start)
        for _ in range(count // 10_000_000):
            packed.write(bytes(10_000_000))
    return stream.getvalue()


def objects(mark):
    stream = io.BytesIO()
    np.save(stream, np.array([Payload(mark)], dtype=object), allow_pickle=True)
    return stream.getvalue()


def archive_of_objects(mark):
    stream = io.BytesIO()
    np.savez(stream, np.array([Payload(mark)], dtype=object))
    return stream.getvalue()


NRRD = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 12 11 10\nspace: RAS\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n"
META = "NDims = 3\nDimSize = 12 11 10\nElementType = MET_UCHAR\n"
LOCAL = f"{META}CompressedData = True\nElementDataFile = LOCAL\n".encode()
FIELDS = b"\n".join(b"a%d: 1" % i for i in range(300_000))
EXTENSION = struct.pack("<4Bii", 1, 0, 0, 0, 2**30, 4)


def nrrd(encoding, file):
    return f"{NRRD}encoding: {encoding}\ndata file: {file}\n\n".encode()


def metaimage(file):
    return f"{META}ElementDataFile = {file}\n".encode()


IMAGES = {
    "numpy objects": ("scan.npy", objects),
    "an archive of numpy objects": ("scan.npz", archive_of_objects),
    "a pickle called NIfTI": ("scan.nii", lambda mark: pickle.dumps(Payload(mark))),
    "a pickle called .pkl": ("scan.pkl", lambda mark: pickle.dumps(Payload(mark))),
    "a checkpoint": ("scan.pt", lambda mark: pickle.dumps(Payload(mark))),
    "200 MB of zeros behind the voxels": ("scan.nii.gz", lambda mark: zeros(200_000_000, header())),
    "an offset of 1e30": ("scan.nii", lambda mark: header(vox_offset=1e30) + bytes(1320)),
    "an infinite offset": ("scan.nii", lambda mark: header(vox_offset=np.inf) + bytes(1320)),
    "an offset before the file": ("scan.nii", lambda mark: header(vox_offset=-1e6) + bytes(1320)),
    "extensions of gigabytes": ("scan.nii", lambda mark: header()[:-4] + EXTENSION + bytes(1320)),
    "a petabyte, compressed": ("scan.nii.gz", lambda mark: gzip.compress(header(dim=[3, *[30000] * 3, 1, 1, 1, 1]))),
    "a device as the data of NRRD": ("scan.nhdr", lambda mark: nrrd("raw", "/dev/zero")),
    "a device as gzip data of NRRD": ("scan.nhdr", lambda mark: nrrd("gzip", "/dev/zero")),
    "a device as text of NRRD": ("scan.nhdr", lambda mark: nrrd("ascii", "/dev/zero")),
    "a device as the data of MetaImage": ("scan.mhd", lambda mark: metaimage("/dev/zero")),
    "a folder as the data of MetaImage": ("scan.mhd", lambda mark: metaimage("..")),
    "a command as the data of MetaImage": ("scan.mhd", lambda mark: metaimage(f"|touch {mark}")),
    "zlib data that go on": ("scan.mha", lambda mark: LOCAL + zlib.compress(bytes(200_000_000))),
    "a header without an end": ("scan.nrrd", lambda mark: b"NRRD0004\n" + b"#" * 20_000_000),
    "a billion fields": ("scan.nrrd", lambda mark: b"NRRD0004\n" + FIELDS),
    "garbage beside Analyze": ("scan.hdr", lambda mark: b""),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_image(tmp_path, mark, name):
    """Named by a datalist, so that the stranger chooses the ending."""
    file, content = IMAGES[name]
    (tmp_path / file).write_bytes(content(mark))
    if name == "garbage beside Analyze":
        nib.save(nib.Spm2AnalyzeImage(np.ones(SHAPE, np.uint8), np.eye(4)), tmp_path / "scan.img")
        (tmp_path / "scan.mat").write_bytes(pickle.dumps(Payload(mark)))
    (tmp_path / "list.json").write_text(json.dumps({"testing": [{"image": file}]}))
    path = find_cases(datalist=tmp_path / "list.json", section="testing", with_labels=False)[0]["image"]
    with pytest.raises(ValueError, match=file) as error:
        read_scan(path)
    assert one_sentence(error)


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def loop(path):
    path.symlink_to(path)


@pytest.mark.parametrize("make", [pipe, device, loop])
@pytest.mark.parametrize(
    "file", ["scan.nii", "scan.nii.gz", "scan.mgz", "scan.nrrd", "scan.mha", "scan.hdr", "scan.png"]
)
def test_what_is_no_file(tmp_path, make, file):
    """It is not opened: a pipe would never end."""
    make(tmp_path / file)
    errors = []

    def read():
        try:
            read_image(tmp_path / file)
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(MOST_SECONDS)
    assert errors
    assert file in errors[0]


# ---- label tables and datalists -------------------------------------------------------------------------------------

TABLES = {
    "a terminal's commands": ("a.csv", "id,name\n4,\x1b[2J\x1b]0;owned\x07\n"),
    "a pickle": ("a.pkl", "cposix\nsystem\n(S'true'\ntR."),
    "an unknown format": ("a.py", "raise SystemExit"),
    "a name of megabytes": ("a.csv", f"id,name\n4,{'x' * 5_000_000}\n"),
    "an id of megabytes": ("a.csv", f"id,name\n{'4' * 5_000_000},x\n"),
    "a line of a million cells": ("a.csv", f"id,name\n4{',' * 1_000_000}\n"),
    "nesting": ("a.json", "[" * 1_000_000),
    "a quote without an end": ("a.csv", 'id,name\n4,"' + "x\n" * 1_000_000),
    "an entity of an entity": ("a.json", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'),
}


@pytest.mark.parametrize("name", TABLES)
def test_label_table(tmp_path, name):
    file, text = TABLES[name]
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=file) as error:
        LabelTable.read(tmp_path / file)
    assert one_sentence(error)
    assert str(error.value).isprintable()


def test_a_table_with_formulas_is_written_as_text(tmp_path, mark):
    """A spreadsheet that opens a result must not run what a stranger called a label."""
    names = [f"=cmd|'/c echo > {mark}'!A0", "+1+1", "-2", "@SUM(A1)"]
    (tmp_path / "a.json").write_text(json.dumps({str(id): name for id, name in enumerate(names, start=1)}))
    table = LabelTable.read(tmp_path / "a.json")
    voxels = torch.zeros(1, *SHAPE, dtype=torch.int32)
    voxels[0, :4, 0, 0] = torch.arange(1, 5)
    result = Segmentation(MetaTensor(voxels), MetaTensor(torch.rand(1, *SHAPE)), table, case="a")
    for path in result.save(tmp_path / "out", picture=False).values():
        if path.endswith(".tsv"):
            cells = [cell for line in Path(path).read_text(encoding="utf-8").splitlines() for cell in line.split("\t")]
            assert not [cell for cell in cells if cell[:1] in "=+@" and cell]


DATALISTS = {
    "expressions": lambda mark: {"image": expression(mark), "case": "a"},
    "a name that leaves the folder": lambda mark: {"image": "../../a/../..//x/../y.nii", "case": "../../evil"},
    "an absolute name": lambda mark: {"image": "/tmp/../tmp/a.nii", "case": "/tmp/evil"},
    "a terminal's commands": lambda mark: {"image": "\x1b[2J\x1b]0;owned\x07.nii"},
    "lines": lambda mark: {"image": "a\nb\r.nii"},
    "a command": lambda mark: {"image": f"a; touch {mark}; $(touch {mark}).nii"},
    "dots": lambda mark: {"image": "...nii"},
    "a long name": lambda mark: {"image": "x" * 100_000 + ".nii"},
    "a url": lambda mark: {"image": "http://127.0.0.1:9/scan.nii.gz"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DATALISTS)
def test_datalist(tmp_path, mark, name):
    """A case's name is a plain file name, so its results stay in the output folder; a bad file is one sentence."""
    (tmp_path / "list.json").write_text(json.dumps({"testing": [DATALISTS[name](mark)]}))
    cases = find_cases(datalist=tmp_path / "list.json", section="testing", with_labels=False)
    assert set(cases[0]) == {"image", "case"}
    case = cases[0]["case"]
    assert Path(case).name == case
    assert case.isprintable()
    assert (tmp_path / "out" / f"{case}_dseg.nii.gz").resolve().parent == tmp_path / "out"
    assert len(os.fsencode(case)) <= 200
    with pytest.raises((ValueError, OSError)):
        read_scan(cases[0]["image"])


# ---- what is written ------------------------------------------------------------------------------------------------


def test_links_in_the_output_folder_are_not_followed(tmp_path):
    """A link in the place of a result is replaced; what it leads to stays as it was."""
    (tmp_path / "out").mkdir()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    endings = ("dseg.nii.gz", "dseg.tsv", "volumes.tsv")
    for ending in endings:
        (tmp_path / f"out/a_{ending}").symlink_to(victim)
    atlas = atlas_of()
    result = Segmentation(atlas.label_map, atlas.image, atlas.table, case="a")
    result.save(tmp_path / "out", overwrite=True, picture=False)
    assert victim.read_text(encoding="utf-8") == "mine"
    assert not any((tmp_path / f"out/a_{ending}").is_symlink() for ending in endings)


@pytest.mark.parametrize("case", ["../evil", "/tmp/evil", "a/b", "."])
def test_a_case_that_leaves_the_output_folder(tmp_path, case):
    atlas = atlas_of()
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="`case` must be a file name without folders"):
        Segmentation(atlas.label_map, atlas.image, atlas.table, case=case).save(tmp_path / "out", picture=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_command_writes_in_its_folder_alone(tmp_path, capsys, monkeypatch):
    """Good scans beside hostile ones: the good ones are segmented, nothing appears but the output folder's files."""
    monkeypatch.chdir(tmp_path)
    scans = tmp_path / "scans"
    scans.mkdir()
    atlas = atlas_of()
    for name, volume in (("image", atlas.image), ("labels", atlas.label_map), ("scans/good", atlas.image)):
        voxels = volume[0].numpy().astype(np.uint8)
        if name != "labels":
            voxels = voxels + 0.1 * np.arange(len(voxels), dtype=np.float32)[:, None, None]  # unlike a label map
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / f"{name}.nii.gz")
    (scans / "$(touch evil).nii").write_bytes(b"no image" * 100)
    (scans / "..nii").write_bytes(b"")
    os.mkfifo(scans / "pipe.nii")
    before = sorted(tmp_path.rglob("*"))
    words = ["segment", str(scans), str(scans / "pipe.nii"), "--weights", "none", "--no-picture", "-o", "out"]
    assert main([*words, "--align", "none", "--atlas", "image.nii.gz", "labels.nii.gz"]) == 1
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"good_dseg.nii.gz", "good_dseg.tsv", "good_volumes.tsv"} <= written
    assert sorted(path for path in tmp_path.rglob("*") if (tmp_path / "out") not in (path, *path.parents)) == before


def test_a_hostile_cache(tmp_path, mark):
    """A cache that somebody else may write to: what is no alignment is computed anew."""
    atlas, aligner = atlas_of(), AtlasAligner("none")
    AlignmentCache(tmp_path).align(aligner, atlas.image, atlas)
    report, transform = (next(tmp_path.glob(f"*.{ending}")) for ending in ("json", "h5"))
    good = report.read_text(encoding="utf-8")
    for text in ('{"a": 1}', "[]", '"x"', "[" * 100_000, good.replace('"none"', json.dumps(expression(mark)))):
        report.write_text(text)
        assert AlignmentCache(tmp_path).align(aligner, atlas.image, atlas)[0].overlap == 1.0
    report.write_text(good)
    transform.write_bytes(pickle.dumps(Payload(mark)))
    assert not AlignmentCache(tmp_path).align(aligner, atlas.image, atlas)[1]


def test_images_of_a_folder_are_files(tmp_path):
    """Pipes and devices in a folder of scans are passed over."""
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "zero.nii").symlink_to("/dev/zero")
    (tmp_path / "scan.nii").write_bytes(b"x")
    assert [case["case"] for case in find_images(tmp_path)] == ["scan"]
