"""The Python API, the bundle, the command and the label app give the same answer, and read each file once."""

import itertools
import json
import os
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import save_nifti, voxels
from monai.bundle import ConfigParser
from monai.transforms import LoadImaged
from phantom import AFFINE, SETTINGS, TABLE, make_volume

import monai_lcs as lcs
from monai_lcs import cli
from monai_lcs.label_app.atlas_store import AtlasStore
from monai_lcs.label_app.segmenter import StudySegmenter, Weights
from monai_lcs.pipeline import Preprocessing, make_network
from monai_lcs.study.images import read_image

# MONAI warns at every run that configs are code.
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")

BUNDLE = Path(__file__).parents[1] / "bundles/whole_brain_lcs_segmentation"
CONFIGS = [path for path in sorted((BUNDLE / "configs").glob("*.json")) if path.name != "metadata.json"]
PROPAGATED = {"checkpoint": "", "inferer": {"_target_": "monai_lcs.inferers.AtlasLabelInferer"}}
SCANS = ["sub-0", "sub-1", "sub-2"]
VOTERS = ["sub-3", "sub-4"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three scans, the first turned and of other voxels than the network's; two further atlases; the atlas; weights."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    for names, where in ((SCANS, folder), (VOTERS, folder / "further")):
        for name in names:
            for kind, array in zip(("images", "labels"), make_volume(rng), strict=True):
                affine = AFFINE
                if name == "sub-0":
                    array, affine = _turned(array)
                save_nifti(array, where / kind / f"{name}.nii.gz", affine)
    image, labels = make_volume()
    save_nifti(image, folder / "atlas/T1w.nii.gz", AFFINE)
    save_nifti(labels, folder / "atlas/dseg.nii.gz", AFFINE)
    TABLE.write(folder / "atlas/dseg.tsv")
    torch.manual_seed(0)
    settings = lcs.Settings(**SETTINGS, vote_weight=0.4)
    torch.save(make_network(settings).state_dict(), folder / "model.pt")
    settings.write(folder / "model.json")
    return folder


def _turned(array):
    """The same head in the orientation PSL, every other slice from left to right left out."""
    every_other = nib.Nifti1Image(array[::2], AFFINE @ np.diag([2, 1, 1, 1]))
    orientation = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(every_other.affine), nib.orientations.axcodes2ornt("PSL")
    )
    turned = every_other.as_reoriented(orientation)
    return np.asarray(turned.dataobj), turned.affine


def atlas_files(study):
    return [str(study / "atlas" / name) for name in ("T1w.nii.gz", "dseg.nii.gz", "dseg.tsv")]


def scan_files(study, names=SCANS):
    return [study / f"images/{name}.nii.gz" for name in names]


def run_bundle(study, out, *configs, **more):
    atlas = dict(zip(("atlas_image", "atlas_labels", "label_table"), atlas_files(study), strict=True))
    given = {"bundle_root": str(BUNDLE), "dataset_dir": str(study), "output_dir": str(out), "device": "cpu", **atlas}
    files = [str(BUNDLE / f"configs/{name}.json") for name in configs]
    monai.bundle.run(config_file=files, logging_file=False, **{**given, "cache_dir": str(study / "cache"), **more})


# ---- the same answer ------------------------------------------------------------------------------------------------


def by_api(study, scans, out, checkpoint, labels):
    segmenter = lcs.Segmenter.load(checkpoint, lcs.Atlas.read(*atlas_files(study)), cache=study / "cache")
    return [segmenter(path, labels).label_map[0].numpy() for path in scan_files(study, scans)]


def by_bundle(study, scans, out, checkpoint, labels):
    more = {"checkpoint": str(checkpoint)} if checkpoint else PROPAGATED
    files = [str(path) for path in scan_files(study, scans)]
    run_bundle(study, out, "inference", dataset_dir=files, labels=labels, **more)
    return [voxels(out / f"{name}_dseg.nii.gz") for name in scans]


def by_command(study, scans, out, checkpoint, labels):
    words = [
        "segment",
        *map(str, scan_files(study, scans)),
        "-o",
        str(out),
        "--atlas",
        *atlas_files(study),
        "--no-picture",
    ]
    words += ["--weights", str(checkpoint or "none"), "--cache", str(study / "cache")]
    assert cli.main(words + (["--labels", *labels] if labels else [])) == 0
    return [voxels(out / f"{name}_dseg.nii.gz") for name in scans]


def by_label_app(study, scans, out, checkpoint, labels):
    image, dseg, _ = atlas_files(study)
    segmenter = StudySegmenter(AtlasStore.create(out / "atlas", image, dseg, TABLE), study / "cache")
    requests, weights = segmenter.request(labels), Weights.find([checkpoint], {})
    return [segmenter.segment(path, requests, weights)[0][0].numpy() for path in scan_files(study, scans)]


@pytest.mark.parametrize(
    ("trained", "scans", "labels", "ids"),
    [
        (True, SCANS, None, {0, 11, 16, 50}),
        (True, SCANS, ["Stem", "Left-Caudate + Right-Caudate"], {0, 11, 16}),
        (False, SCANS[:1], None, {0, 11, 16, 50}),
    ],
    ids=["network", "network-union", "alignment-alone"],
)
def test_every_surface_gives_the_same_label_map(study, tmp_path, trained, scans, labels, ids):
    checkpoint = study / "model.pt" if trained else None
    doors = (by_api, by_bundle, by_command, by_label_app)
    answers = {door.__name__: door(study, scans, tmp_path / door.__name__, checkpoint, labels) for door in doors}
    expected = answers.pop("by_api")
    for name, label_maps in answers.items():
        for scan, found, same in zip(scans, label_maps, expected, strict=True):
            np.testing.assert_array_equal(found, same, err_msg=f"{scan} {name}")
    for scan in scans:
        tables = [tmp_path / door / f"{scan}_volumes.tsv" for door in ("by_bundle", "by_command")]
        of_bundle, of_command = (path.read_text(encoding="utf-8") for path in tables)
        assert of_bundle == of_command
        assert ("confidence" in of_bundle) == trained
    assert [label_map.shape for label_map in expected] == [nib.load(path).shape for path in scan_files(study, scans)]
    assert [set(np.unique(label_map)) for label_map in expected] == [ids] * len(scans)


def test_the_mask_of_a_lost_label_answers_at_every_surface(study, tmp_path, capsys):
    scans, checkpoint = SCANS[:1], tmp_path / "model.pt"
    shutil.copy2(study / "model.pt", checkpoint)
    lost = TABLE[11].name
    replace(lcs.Settings(**SETTINGS), propagated=[lost]).write(tmp_path / "model.json")
    answers = [door(study, scans, tmp_path / door.__name__, checkpoint, None)[0] for door in (by_api, by_bundle)]
    answers += [
        door(study, scans, tmp_path / door.__name__, checkpoint, None)[0] for door in (by_command, by_label_app)
    ]
    for answer in answers:
        np.testing.assert_array_equal(answer, answers[0])
    assert (
        capsys.readouterr().err.count(f"for 1 of 3 labels the aligned atlas answers, better in validation: {lost}") == 2
    )
    atlas = lcs.Atlas.read(*atlas_files(study))
    scan = lcs.Segmenter(atlas, None, lcs.Settings(**SETTINGS), cache=study / "cache").prepare(scan_files(study)[0])
    aligned = Preprocessing(atlas, lcs.Settings.of_weights(checkpoint), cache=study / "cache").align(scan)
    np.testing.assert_array_equal(answers[0] == 11, aligned.native[0].numpy() == 11)
    assert set(np.unique(answers[0])) == {0, 11, 16, 50}


def test_the_mask_alone_answers_where_no_other_label_is_requested(study, tmp_path):
    """Neither voxels of the network nor its confidence are added to the mask."""
    scans, checkpoint, lost = SCANS[:1], tmp_path / "model.pt", TABLE[11].name
    shutil.copy2(study / "model.pt", checkpoint)
    replace(lcs.Settings(**SETTINGS), propagated=[lost]).write(tmp_path / "model.json")
    doors = (by_api, by_bundle, by_command, by_label_app)
    expected, *others = (door(study, scans, tmp_path / door.__name__, checkpoint, [lost])[0] for door in doors)
    for found in others:
        np.testing.assert_array_equal(found, expected)
    assert set(np.unique(expected)) == {0, 11}
    tables = [tmp_path / door / f"{scans[0]}_volumes.tsv" for door in ("by_bundle", "by_command")]
    of_bundle, of_command = (path.read_text(encoding="utf-8") for path in tables)
    assert of_bundle == of_command
    assert "confidence" not in of_bundle


def test_several_atlases_vote_at_every_surface(study, tmp_path, monkeypatch):
    """For a network that looks at each atlas, at the scan's voxels as well; in the scan of another orientation, too."""
    settings, checkpoint = replace(lcs.Settings(**SETTINGS), conditioning="shared"), tmp_path / "model.pt"
    torch.manual_seed(0)
    torch.save(make_network(settings).state_dict(), checkpoint)
    settings.write(tmp_path / "model.json")
    further = [dict(zip(("image", "label"), map(str, files), strict=True)) for files in further_files(study)]
    (tmp_path / "further.json").write_text(json.dumps({"training": further, "validation": further}))
    files = [str(path) for path in scan_files(study)]
    more = {"dataset_dir": files, "checkpoint": str(checkpoint), "atlases_datalist": str(tmp_path / "further.json")}
    run_bundle(study, tmp_path / "out", "inference", **more)

    words = ["segment", *files, "-o", str(tmp_path / "command"), "--atlas", *atlas_files(study), "--no-picture"]
    words += ["--more-atlases", str(study / "further"), "--cache", str(study / "cache"), "--weights", str(checkpoint)]
    assert cli.main(words) == 0
    record = json.loads((tmp_path / "command/sub-0_run.json").read_text(encoding="utf-8"))
    assert [Path(each["image"]).name for each in record["further_atlases"]] == [f"{name}.nii.gz" for name in VOTERS]

    atlas = lcs.Atlas.read(*atlas_files(study))
    atlases = {"further_atlases": [lcs.Atlas.read(*files, atlas.table) for files in further_files(study)]}
    segmenter = lcs.Segmenter.load(checkpoint, atlas, cache=study / "cache", **atlases)
    for name, path in zip(SCANS, scan_files(study), strict=True):
        found = segmenter(path).label_map[0].numpy()
        assert set(np.unique(found)) == {0, 11, 16, 50}
        for folder in ("out", "command"):
            np.testing.assert_array_equal(voxels(tmp_path / f"{folder}/{name}_dseg.nii.gz"), found)
    monkeypatch.setattr("monai_lcs.inferers.ScanVotes.averaged", lambda votes, probability, ids, box: probability)
    assert (segmenter(scan_files(study)[-1]).label_map[0].numpy() != found).any()


# ---- settings are written once --------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["inference", "train"])
def test_the_settings_of_the_bundle_are_the_defaults_of_settings(config):
    """Of a training; without weights they are those to propagate labels with."""
    parser = ConfigParser(json.loads((BUNDLE / f"configs/{config}.json").read_text(encoding="utf-8")))
    parser.update({"checkpoint": None, "atlas": None})
    defaults = lcs.Settings() if config == "train" else replace(lcs.Settings(), spacing=(1.0, 1.0, 1.0))
    assert parser.get_parsed_content("settings") == defaults


def test_labels_are_propagated_at_the_voxels_of_the_scan(study, tmp_path):
    """Without weights no grid of 2 mm lies between: the label map is that of the alignment on the scan's own grid."""
    scan = scan_files(study)[1]
    atlas = lcs.Atlas.read(*atlas_files(study))
    segmenter = lcs.Segmenter.load(None, atlas, align="affine", cache=study / "cache")
    found = segmenter(scan).label_map[0].numpy()
    settings = replace(segmenter.settings, propagated=[label.name for label in TABLE])
    preprocessing = Preprocessing(atlas, settings, cache=study / "cache")
    directly = preprocessing.align(preprocessing.prepare(scan)).native[0].numpy()
    coarse = lcs.Segmenter(atlas, None, replace(settings, spacing=(4.0, 4.0, 4.0)), cache=study / "cache")
    moved = (coarse(scan).label_map[0].numpy() != directly).sum()
    assert moved > 20
    assert (found != directly).sum() < moved / 10


def items(config):
    """All keys of a config with their values, at any depth."""
    values = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in values:
        yield key, value
        yield from items(value)


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem != "paper"], ids=lambda path: path.stem)
def test_no_config_holds_a_value_of_a_setting(path):
    """But ``paper.json``, whose purpose is to give other values."""
    settings = lcs.Settings().to_dict()
    for key, value in items(json.loads(path.read_text(encoding="utf-8"))):
        if str(key).rpartition("#")[2] in settings:
            assert isinstance(value, str), f"{key} has the value {value}"
            assert value[0] in "@$", f"{key} has the value {value}"
        assert value not in (settings["channels"], settings["spacing"], settings["norm"])


# ---- each file is read once -----------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch):
    """How often each file was read as an image, wherever the package has imported ``read_image``."""
    counts = Counter()

    def counted(path):
        counts[os.path.realpath(path)] += 1
        return read_image(path)

    for module in [module for name, module in sys.modules.items() if name.startswith("monai_lcs")]:
        if getattr(module, "read_image", None) is read_image:
            monkeypatch.setattr(module, "read_image", counted)
    monkeypatch.setattr(LoadImaged, "__call__", None)  # nothing is read around it
    return counts


def once(*files):
    return {os.path.realpath(file): 1 for file in files}


def further_files(study):
    return [[study / f"further/{kind}/{name}.nii.gz" for kind in ("images", "labels")] for name in VOTERS]


def test_the_segmenter_reads_each_file_once(study, reads):
    atlas = lcs.Atlas.read(*atlas_files(study))
    further = [lcs.Atlas.read(*files, atlas.table) for files in further_files(study)]
    segmenter = lcs.Segmenter.load(study / "model.pt", atlas, further_atlases=further, cache=study / "cache")
    for path in scan_files(study):
        segmenter(path)
    assert reads == once(*atlas_files(study)[:2], *scan_files(study), *itertools.chain(*further_files(study)))


@pytest.mark.parametrize("configs", [("inference",), ("inference", "evaluate")], ids=lambda configs: configs[-1])
def test_the_bundle_reads_each_file_once(study, tmp_path, reads, configs):
    further = [dict(zip(("image", "label"), map(str, files), strict=True)) for files in further_files(study)]
    (tmp_path / "further.json").write_text(json.dumps({"training": further, "validation": further}))
    more = {"checkpoint": str(study / "model.pt"), "atlases_datalist": str(tmp_path / "further.json")}
    run_bundle(study, tmp_path, *configs, **more)
    truths = [study / f"labels/{name}.nii.gz" for name in SCANS] if "evaluate" in configs else []
    assert reads == once(*atlas_files(study)[:2], *scan_files(study), *truths, *itertools.chain(*further_files(study)))


def test_the_command_reads_each_file_once(study, tmp_path, reads):
    by_command(study, SCANS, tmp_path, study / "model.pt", None)
    assert reads == once(*atlas_files(study)[:2], *scan_files(study))


def test_the_label_app_reads_each_file_once(study, tmp_path, reads):
    image, dseg, _ = atlas_files(study)
    store = AtlasStore.create(tmp_path / "atlas", image, dseg, TABLE)
    reads.clear()  # what makes the first version of a new study
    segmenter = StudySegmenter(store, study / "cache")
    for path in scan_files(study):
        segmenter.segment(path, segmenter.request("all"), Weights.find([study / "model.pt"], {}))
    assert reads == once(image, store.current.labels, *scan_files(study))
