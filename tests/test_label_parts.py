"""The parts of the label app that need no MONAI Label: atlas versions, files, alignment and training."""

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import save_nifti, voxels
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.utils import set_determinism
from phantom import AFFINE, SETTINGS, SHAPE, TABLE, make_volume

from monai_lcs.atlas import AtlasAligner
from monai_lcs.label_app import atlas_store
from monai_lcs.label_app.__main__ import main
from monai_lcs.label_app.atlas_store import AtlasStore, atlas_folder
from monai_lcs.label_app.corrections import TrainOptions, train_on_corrections
from monai_lcs.label_app.files import check_extension, check_item_name, check_size, result_type, write_label_map
from monai_lcs.label_app.segmenter import StudySegmenter, Weights
from monai_lcs.label_app.segments import atlas_ids, check_new_name, painted_labels
from monai_lcs.labels import Label, LabelTable, RequestedLabel, parse_request
from monai_lcs.pipeline import Settings, load_weights, make_network
from monai_lcs.study.cases import split_by_name
from monai_lcs.study.images import read_image
from monai_lcs.transforms import AlignAtlas

BUNDLE = Path(__file__).parents[1] / "bundles/whole_brain_lcs_segmentation"


def save(array, path, affine=AFFINE):
    return save_nifti(array, path, affine)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    image, labels = make_volume()
    save(image, folder / "atlas.nii.gz")
    save(labels, folder / "atlas/dseg.nii.gz")
    TABLE.write(folder / "atlas/dseg.tsv")
    rng = np.random.default_rng(0)
    for number in range(4):
        image, labels = make_volume(rng)
        save(image, folder / f"sub-{number}.nii.gz")
        save(labels, folder / f"labels/sub-{number}.nii.gz")
    return folder


@pytest.fixture
def store(study, tmp_path):
    return AtlasStore.create(atlas_folder(tmp_path), study / "atlas.nii.gz", study / "atlas/dseg.nii.gz", TABLE)


def block(*corner, size=4, value=1):
    labels = np.zeros(SHAPE, np.uint8)
    labels[tuple(slice(first, first + size) for first in corner)] = value
    return labels


# ---- the atlas ------------------------------------------------------------------------------------------------------


def test_an_atlas_as_it_came(store, study):
    current = store.current
    assert (current.number, current.table) == (1, TABLE)
    assert store.image == study / "atlas.nii.gz"
    np.testing.assert_array_equal(voxels(current.labels), voxels(study / "atlas/dseg.nii.gz"))
    with pytest.raises(FileExistsError, match="an atlas in"):
        AtlasStore.create(store.folder, store.image, current.labels)
    with pytest.raises(ValueError, match=r"no label of the label table, only \[11, 16, 50\]"):
        AtlasStore.create(store.folder / "x", store.image, current.labels, LabelTable.from_ids([1]))
    some = AtlasStore.create(store.folder / "x", store.image, current.labels, TABLE.subset([11, 16]))
    assert set(np.unique(voxels(some.current.labels))) == {0, 11, 16}


def test_a_study_can_be_moved(study, tmp_path):
    shutil.copytree(study, tmp_path / "here")
    image, labels = (tmp_path / f"here/{name}" for name in ("atlas.nii.gz", "atlas/dseg.nii.gz"))
    AtlasStore.create(atlas_folder(tmp_path / "here"), image, labels, TABLE)
    (tmp_path / "here").rename(tmp_path / "there")
    assert AtlasStore(atlas_folder(tmp_path / "there")).image == tmp_path / "there/atlas.nii.gz"


def test_no_atlas(tmp_path):
    with pytest.raises(FileNotFoundError, match="give --conf atlas_image"):
        AtlasStore(tmp_path / "nothing")


def test_painting_new_labels(store, tmp_path):
    path = save(block(2, 2, 2) + block(20, 2, 2, value=7), tmp_path / "painted.nii.gz")
    info = [
        {"name": "Left-Cyst", "idx": 1, "color": [1, 0.5, 0]},
        {"name": "Vessel", "idx": 7},
        {"name": "Stem", "idx": 3},
    ]
    before = store.current
    after = store.paint(path, info)
    assert (after.number, after.about["change"], after.about["previous"]) == (2, "painted Left-Cyst, Vessel", 1)
    assert (after.table[51].color, after.table[51].hemisphere, after.table[52].name) == ((255, 128, 0), "L", "Vessel")
    expected = voxels(before.labels) + 51 * block(2, 2, 2) + 52 * block(20, 2, 2)
    np.testing.assert_array_equal(voxels(after.labels), expected)
    assert AtlasStore(store.folder).current.table == after.table  # another process
    assert store.paint(path, info).number == 2  # nothing changed
    assert store.version(1).table == TABLE


def test_painting_on_other_labels_and_changing_them(store, tmp_path):
    old = voxels(store.current.labels)
    corner = np.argwhere(old == 16).min(0)
    painted = np.where(old == 11, 1, 0) * (np.arange(SHAPE[1])[:, None] > 23) + 2 * block(*corner, size=3)
    after = store.paint(save(painted.astype(np.uint8), tmp_path / "p.nii.gz"), [
        {"name": "Left-Caudate", "idx": 1}, {"name": "New", "idx": 2}
    ])  # fmt: skip
    expected = np.where(old == 11, 0, old)
    expected[painted == 1], expected[painted == 2] = 11, 51
    np.testing.assert_array_equal(voxels(after.labels), expected)
    assert (expected == 16).sum() < (old == 16).sum()


def test_undoing(store, tmp_path):
    maps = [voxels(store.current.labels)]
    for number, name in enumerate(("one", "two", "three")):
        path = save(block(2, 2 + 6 * number, 2), tmp_path / "p.nii.gz")
        maps.append(voxels(store.paint(path, [{"name": name, "idx": 1}]).labels))
    for expected in (maps[2], maps[1], maps[0]):
        store.undo()
        np.testing.assert_array_equal(voxels(store.current.labels), expected)
    with pytest.raises(ValueError, match="nothing to undo"):
        store.undo()
    assert "three" in store.restore(4).table.names
    store.undo()
    np.testing.assert_array_equal(voxels(store.current.labels), maps[2])
    assert store.numbers() == list(range(1, 10))
    with pytest.raises(ValueError, match="no version 44"):
        store.restore(44)


def test_versions_from_the_command_line(store, tmp_path, capsys):
    store.paint(save(block(2, 2, 2), tmp_path / "p.nii.gz"), [{"name": "one", "idx": 1}])
    atlas_store.main([str(tmp_path), "--undo"])
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["3", "4", "3"]
    with pytest.raises(SystemExit, match="nothing to undo"):
        atlas_store.main([str(tmp_path), "--undo"])


@pytest.mark.parametrize("broken", ["nib.save", "LabelTable.write", "Path.rename"])
def test_an_interrupted_change_leaves_no_version(store, tmp_path, monkeypatch, broken):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    path = save(block(2, 2, 2), tmp_path / "p.nii.gz")
    owner = {"nib": nib, "LabelTable": LabelTable, "Path": Path}[broken.split(".")[0]]
    monkeypatch.setattr(owner, broken.split(".")[1], fail)
    with pytest.raises(OSError, match="disk full"):
        store.paint(path, [{"name": "one", "idx": 1}])
    assert [item.name for item in store.folder.iterdir()] == ["0001"]
    monkeypatch.undo()
    (store.folder / ".killed_before_renaming").mkdir()
    assert store.current.number == 1
    assert store.paint(path, [{"name": "one", "idx": 1}]).number == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "needs a name"),
        (None, "needs a name"),
        ("x" * 101, "at most 100"),
        ("two\nlines", "printable"),
        ("a, b", "must not hold"),
        ("../evil", "must not hold"),
        ("Left-*", "must not hold"),
        ("a + b", "must not hold"),
        ("12", "must not be called '12'"),
        ("All", "must not be called 'All'"),
        ("STEM", "has a label 'Stem'"),
        ("striatum", "has a label 'Striatum'"),
    ],
)
def test_names_that_cannot_be_used(name, message):
    with pytest.raises(ValueError, match=message):
        check_new_name(name, TABLE)


@pytest.mark.parametrize(
    ("painted", "info", "message"),
    [
        (block(2, 2, 2), [], "value 1 is not an id of the atlas"),
        (block(2, 2, 2), [{"name": "one", "idx": 2}], "value 1 is no name in `label_info`"),
        (
            block(2, 2, 2) + block(9, 9, 9, value=2),
            [{"name": "a", "idx": 1}, {"name": "A", "idx": 2}],
            "name of its own",
        ),
        (
            block(2, 2, 2) + block(9, 9, 9, value=2),
            [{"name": "Stem", "idx": 1}, {"name": "Stem", "idx": 2}],
            "of its own",
        ),
        (block(2, 2, 2), [{"name": "one", "idx": 1, "color": "red"}], "three numbers"),
        (block(2, 2, 2), [{"name": "one", "idx": 1, "color": [1, 2, 300]}], "from 0 to 255"),
        (block(2, 2, 2)[:30], [{"name": "one", "idx": 1}], "same grid"),
        (block(2, 2, 2) * 0.5, [{"name": "one", "idx": 1}], "integers"),
    ],
)
def test_paint_that_cannot_be_used(store, tmp_path, painted, info, message):
    with pytest.raises(ValueError, match=message):
        store.paint(save(painted.astype(np.float32), tmp_path / "p.nii.gz"), info)
    assert store.numbers() == [1]


def test_labels_of_the_same_name_are_told_apart_by_id():
    twins = LabelTable([Label(1, "insula", hemisphere="L"), Label(2, "insula", hemisphere="R")])
    by_id = painted_labels([1, 2], [], twins)
    names = [{"name": "insula (2)", "idx": 1}, {"name": "insula (1)", "idx": 2}]
    by_name = painted_labels([1, 2], names, twins)
    assert [[labels[value].hemisphere for value in (1, 2)] for labels in (by_id, by_name)] == [["L", "R"], ["R", "L"]]


def test_paint_by_ids(store, tmp_path):
    after = store.paint(save(block(2, 2, 2, value=16), tmp_path / "p.nii.gz"))
    np.testing.assert_array_equal(voxels(after.labels) == 16, block(2, 2, 2) > 0)


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_label_maps_are_written_on_their_grid(tmp_path, extension):
    affine = np.array([[0, 0, -1.5, 20], [-0.9, 0, 0, 30], [0, 1.2, 0, -10], [0, 0, 0, 1]])
    labels = MetaTensor(torch.arange(24, dtype=torch.int32).reshape(1, 2, 3, 4) * 20, affine=affine)
    path = tmp_path / f"map{extension}"
    write_label_map(labels, path, np.dtype(np.uint16))
    found = read_image(path)
    np.testing.assert_allclose(found.affine, affine, atol=1e-6)
    np.testing.assert_array_equal(found, labels)
    assert sitk.ReadImage(str(path)).GetPixelID() == sitk.sitkUInt16


def test_the_type_of_a_result_holds_its_ids():
    assert [result_type(asked, 460) for asked in (None, "uint8", "uint16", "uint32")] == ["uint16"] * 3 + ["uint32"]
    for asked in ("byte8", "float32", "int8", 5):
        with pytest.raises(ValueError, match="must be uint8, uint16 or uint32, got"):
            result_type(asked, 1)


def test_names_of_items_and_files():
    assert check_item_name("sub-01_T1w (2)".replace("(2)", "2")) == "sub-01_T1w 2"
    for name in ("", ".x", "a/b", "..", "a..b", "a\\b", "a\0", "x" * 201, "-rf"):
        with pytest.raises(ValueError, match="The image id must begin"):
            check_item_name(name)
    assert check_extension("A.NII.GZ") == ".nii.gz"
    with pytest.raises(ValueError, match=r"must end in .*, got 'a\.exe'"):
        check_extension("x/a.exe")


def test_size_by_the_header_alone(tmp_path):
    path = save(np.zeros((20, 20, 20), np.uint8), tmp_path / "scan.nii.gz")
    check_size(path, 8000)
    with pytest.raises(OverflowError, match="8000 voxels"):
        check_size(path, 7999)
    path.write_text("nothing")
    with pytest.raises(ValueError, match="no image"):
        check_size(path, 1e9)


def test_the_command_writes_the_app_and_says_how_to_start_it(tmp_path, capsys):
    words = [str(tmp_path / "my app"), "--studies", "scans", "--atlas_image", str(tmp_path / "a.nii.gz")]
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert "there is no such file" in capsys.readouterr().err
    (tmp_path / "a.nii.gz").touch()
    main(words)
    assert "import LabelConditionedApp" in (tmp_path / "my app/main.py").read_text(encoding="utf-8")
    command = shlex.split(capsys.readouterr().out)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--app") + 1] == str(tmp_path / "my app")
    assert command[-3:] == ["--conf", "atlas_image", str(tmp_path / "a.nii.gz")]
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="Cannot write to"):
        main([str(tmp_path / "file"), "--studies", "scans"])


# ---- segmentation ---------------------------------------------------------------------------------------------------


def test_the_bundle_takes_labels_and_atlas_as_options(study):
    """As MONAI Label's own app gives them to it."""
    parser = ConfigParser(json.loads((BUNDLE / "configs/inference.json").read_text(encoding="utf-8")))
    atlas = {"atlas_image": str(study / "atlas.nii.gz"), "atlas_labels": str(study / "atlas/dseg.nii.gz")}
    for prompt, ids in (("all", [11, 16, 50]), ("Left-*, Stem", [11, 16]), ([50], [50]), ("Striatum", [11, 50])):
        options = {**atlas, "label_table": str(study / "atlas/dseg.tsv"), "label_prompt": prompt}
        parser["displayable_configs"].update(options)
        parser.parse()
        assert parser.get_parsed_content("label_ids") == ids


@pytest.mark.filterwarnings("ignore:parsing config_file")
def test_the_bundle_trains_on_cases_given_as_monai_labels_own_app_gives_them(study, tmp_path):
    pairs = [{"image": str(study / f"sub-{n}.nii.gz"), "label": str(study / f"labels/sub-{n}.nii.gz")} for n in (0, 1)]
    atlas = {"atlas_image": str(study / "atlas.nii.gz"), "atlas_labels": str(study / "atlas/dseg.nii.gz")}
    monai.bundle.run(
        config_file=str(BUNDLE / "configs/train.json"), logging_file=False, bundle_root=str(BUNDLE),
        displayable_configs={**atlas, "label_table": str(study / "atlas/dseg.tsv")}, device="cpu",
        ckpt_dir=str(tmp_path), output_dir=str(tmp_path), **SETTINGS,
        **{"train#trainer#max_epochs": 1, "train#dataset#data": pairs[:1], "validate#dataset#data": pairs[1:]},
    )  # fmt: skip
    set_determinism(None)
    assert (tmp_path / "model.pt").is_file()
    assert replace(Settings.of_weights(tmp_path / "model.pt"), propagated=()) == Settings(**SETTINGS)


def test_an_aligned_atlas_is_kept_and_carries_labels_painted_later(study, store, tmp_path, monkeypatch):
    weights = Weights.find([], SETTINGS)
    scan = study / "sub-1.nii.gz"
    _, said = StudySegmenter(store, tmp_path / "cache").segment(scan, parse_request("all", TABLE), weights)
    assert said["aligned"] == "new"
    image, atlas, labels = (read_image(path) for path in (scan, store.image, store.current.labels))
    _, propagated = AlignAtlas("affine")(image, atlas, labels)

    monkeypatch.setattr(AtlasAligner, "align", None)  # from here on no registration
    study_segmenter = StudySegmenter(store, tmp_path / "cache")  # as after a restart
    segmenter = study_segmenter.segmenter(weights)
    aligned = segmenter.align(segmenter.prepare(scan))
    assert aligned.quality["aligned"] == "cached"
    np.testing.assert_array_equal(aligned.label_map, propagated)
    version = store.paint(save(block(14, 14, 14), tmp_path / "p.nii.gz"), [{"name": "new", "idx": 1}])
    found, said = study_segmenter.segment(scan, parse_request("new", version.table), weights)
    assert said["aligned"] == "cached"
    assert (found == 51).sum() > 20


def test_threads_read_and_write_alignments_at_once(tmp_path):
    """In a process of its own: SimpleITK's HDF5 would end it."""
    script = """
import sys
from concurrent.futures import ThreadPoolExecutor
import torch
from monai.data import MetaTensor
from monai_lcs.atlas import AlignmentCache, Atlas, AtlasAligner
from monai_lcs.labels import LabelTable

scans = [MetaTensor(torch.rand(1, 6, 6, 6)) for _ in range(16)]
atlas = Atlas(scans[0], MetaTensor((scans[0] > 0.5).int()), LabelTable.from_ids([1]))

def align(scan):
    return AlignmentCache(sys.argv[1]).align(AtlasAligner("none", min_overlap=0), scan, atlas)[1]

with ThreadPoolExecutor(4) as pool:
    print([sum(pool.map(align, scans)) for _ in range(2)])
"""
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.strip()) == (0, "[0, 16]"), ran.stderr


def test_the_atlas_has_its_own_labels(study, store, tmp_path):
    segmenter = StudySegmenter(store, tmp_path / "cache")
    requests = [RequestedLabel(11, "both", (11, 50))]
    labels = voxels(study / "atlas/dseg.nii.gz")
    shutil.copy(study / "atlas.nii.gz", tmp_path / "copy.nii.gz")
    for image in (study / "atlas.nii.gz", tmp_path / "copy.nii.gz"):
        found, said = segmenter.segment(image, requests, Weights.find([], SETTINGS))
        assert said["aligned"] == "atlas"
        np.testing.assert_array_equal(found[0] == 11, (labels == 11) | (labels == 50))


def test_weights(tmp_path):
    with pytest.raises(ValueError, match=r"no settings \['colour'\]"):
        Weights.find([], {"colour": 1})
    (tmp_path / "model.pt").write_text("no weights")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_weights(Weights.find([tmp_path / "model.pt"], {}).path, make_network(Settings()))
    (tmp_path / "model.json").write_text("[")
    with pytest.raises(ValueError, match="must hold the settings"):
        Weights.find([tmp_path / "model.pt"], {})


# ---- training -------------------------------------------------------------------------------------------------------


def test_a_scan_trains_on_the_labels_it_has():
    names = [{"name": "Stem", "idx": 1}, {"name": "unknown", "idx": 2}, {"name": "Left-Caudate", "idx": 3}]
    assert atlas_ids([1, 2], names, TABLE) == {1: 16}
    assert atlas_ids([16, 17], [], TABLE) == {16: 16}


def test_scans_stay_on_their_side():
    cases = [{"image": f"scan-{number}.nii.gz"} for number in range(40)]
    few, many = split_by_name(cases[:20])[1], split_by_name(cases)[1]
    assert [case for case in many if case in cases[:20]] == few
    assert 4 <= len(many) <= 14
    assert [len(part) for part in split_by_name(cases[:2])] == [1, 1]
    with pytest.raises(ValueError, match=r"two labeled scans or more, .* got 1"):
        split_by_name(cases[:1])


def test_training_keeps_the_best_network_of_all_runs(study, store, tmp_path):
    torch.manual_seed(0)
    segmenter = StudySegmenter(store, tmp_path / "cache")
    settings = {**SETTINGS, "prior_logit": 0.0}
    torch.save(make_network(Settings(**settings)).state_dict(), tmp_path / "random.pt")
    partial = [{"name": "Stem", "idx": 16}, {"name": "unknown", "idx": 11}]
    cases = [{"image": study / f"sub-{n}.nii.gz", "label": study / f"labels/sub-{n}.nii.gz"} for n in range(4)]
    cases = [
        {name: str(path) for name, path in case.items()} | {"label_info": partial * (n == 0)}
        for n, case in enumerate(cases)
    ]
    model = tmp_path / "model"
    arguments = {"max_epochs": 24, "labels_per_image": 3, "learning_rate": 0.02}
    stats = train_on_corrections(
        segmenter, Weights.find([tmp_path / "random.pt"], settings), cases, model, TrainOptions(**arguments)
    )
    assert stats == json.loads((model / "train_stats.json").read_text(encoding="utf-8"))
    assert stats["best_metric"] > stats["eval"]["before"]
    assert json.loads((model / "model.json").read_text(encoding="utf-8"))["channels"] == [4, 8]

    kept = (model / "model.pt").read_bytes()
    for pretrained in (True, False):  # both end worse
        bad = TrainOptions(max_epochs=1, labels_per_image=1, learning_rate=50.0, pretrained=pretrained)
        again = train_on_corrections(segmenter, Weights.find([model / "model.pt"], {}), cases, model, bad)
        assert again["best_metric"] == pytest.approx(stats["best_metric"], abs=1e-3)
        assert again["eval"]["val_mean_dice"] < again["best_metric"]
        assert (model / "model.pt").read_bytes() == kept


def test_training_that_cannot_be(study, store, tmp_path):
    segmenter = StudySegmenter(store, tmp_path / "cache")
    weights = Weights.find([], SETTINGS)
    case = {"image": str(study / "sub-0.nii.gz"), "label": str(study / "labels/sub-0.nii.gz")}
    unknown = {**case, "label_info": [{"name": "unknown", "idx": 11}]}
    with pytest.raises(ValueError, match="two labeled scans"):
        train_on_corrections(segmenter, weights, [case, unknown], tmp_path, TrainOptions())
    with pytest.raises(ValueError, match="`max_epochs` must be > 0, got 0"):
        TrainOptions(max_epochs=0)
