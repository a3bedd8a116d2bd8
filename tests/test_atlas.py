"""The atlas: ids that label map and table do not share, images that are the atlas itself, labels lost on a grid."""

import copy
import warnings

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import save_nifti
from monai.data import MetaTensor, PersistentDataset
from monai.transforms import Compose, CopyItemsd, LoadImaged, ScaleIntensityd, Spacing, SpatialCrop

from monai_lcs import bundle, cli
from monai_lcs.atlas import Atlas
from monai_lcs.label_app.atlas_store import AtlasStore
from monai_lcs.labels import Label, LabelTable
from monai_lcs.pipeline import Preprocessing, Settings
from monai_lcs.results.dice import dice_table, write_dice_tsv
from monai_lcs.results.tsv import read_tsv, write_tsv
from monai_lcs.transforms import FuseAtlasesd, RandPickAtlas, RandPickAtlasd

AFFINE = np.diag([2.0, 2, 2, 1])


def smooth(seed, size=24):
    """A scan of smooth structures, another one for each seed."""
    noise = np.random.default_rng(seed).random((size // 4,) * 3).astype(np.float32)
    return np.kron(noise, np.ones((4, 4, 4), np.float32)) * 100


@pytest.fixture
def files(tmp_path):
    """An atlas with the ids 1 (64 voxels), 2 (8) and 3 (1)."""
    labels = np.zeros((24, 24, 24), np.uint8)
    labels[4:8, 4:8, 4:8], labels[12:14, 12:14, 12:14], labels[19, 19, 19] = 1, 2, 3
    image = save_nifti(smooth(0), tmp_path / "atlas/T1w.nii", AFFINE)
    return str(image), str(save_nifti(labels, tmp_path / "atlas/dseg.nii", AFFINE))


def write_table(folder, **names):
    (folder / "t.tsv").write_text("index\tname\n" + "".join(f"{id[1:]}\t{name}\n" for id, name in names.items()))
    return str(folder / "t.tsv")


# ---- ids that label map and table do not share


def test_what_label_map_and_table_do_not_share_is_said(tmp_path, files):
    table = write_table(tmp_path, _1="a", _7="g", _9="i")
    atlas = Atlas.read(*files, table)
    assert atlas.ids == (1,)
    assert atlas.unnamed == {2: 8, 3: 1}
    assert atlas.absent.ids == (7, 9)
    assert atlas.mismatch == (
        f"The atlas label map {files[1]} has ids without a name in {table}, which are left out: 2 (8 voxels), "
        "3 (1 voxels); it has no voxel of 2 labels of the table: 7 (g), 9 (i)."
    )
    many = LabelTable(Label(i, "x" * 500) for i in range(3, 1500))
    said = Atlas.read(*files, many).mismatch
    assert len(said.replace(files[1], "")) < 300
    assert "1 (64 voxels), 2 (8 voxels); it has no voxel of 1496 labels" in said
    assert Atlas.read(*files).mismatch == Atlas.read(*files, LabelTable.from_ids([1, 2, 3])).mismatch == ""


def test_each_door_says_it_once(tmp_path, files, capsys):
    table = write_table(tmp_path, _1="a", _2="b")
    said = f"The atlas label map {files[1]} has ids without a name in {table}, which are left out: 3 (1 voxels)."
    bundle.read_atlas(*files, table)
    assert capsys.readouterr().err == f"Note: {said}\n"
    with pytest.raises(SystemExit, match="no label of"):
        bundle.read_atlas(*files, write_table(tmp_path, _9="a"))
    write_table(tmp_path, _1="a", _2="b")
    arguments = ["segment", files[0], "--no-picture", "--weights", "none", "-o", str(tmp_path / "out")]
    assert cli.main([*arguments, "--atlas", *files, table]) == 0
    assert capsys.readouterr().err.count(f"Note: {said}\n") == 1
    store = AtlasStore.create(tmp_path / "store", *files, LabelTable.read(table))
    assert store.current.about["note"] == said
    assert "note" not in AtlasStore.create(tmp_path / "other", *files).current.about


def test_further_atlases_with_other_labels_are_said(tmp_path, files, capsys):
    labels = nib.load(files[1]).get_fdata().astype(np.uint8)
    for i, other in enumerate((labels, np.where(labels == 2, 9, labels).astype(np.uint8))):
        save_nifti(smooth(i + 1), tmp_path / f"study/images/sub-{i}.nii", AFFINE)
        save_nifti(other, tmp_path / f"study/labels/sub-{i}.nii", AFFINE)
    bundle.further_atlases(str(tmp_path / "study"), None, (None, None), None, Atlas.read(*files))
    said = "Note: labels that some further atlases have without a name: 9; lack: 2.\n"
    assert capsys.readouterr().err.endswith(said)


@pytest.mark.parametrize(("spacing", "lost"), [(2, ""), (8, "1 of 3 labels: 3 (label-3)")])
def test_labels_too_small_for_the_networks_grid_are_said(files, spacing, lost):
    settings = Settings(align="none", spacing=(spacing,) * 3, margin_mm=None)
    preprocessing = Preprocessing(Atlas.read(*files), settings)
    for expected in (1 if lost else 0, 0):  # the first scan says it
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            quality = preprocessing({"image": files[0]})["alignment"]
        assert quality["without_voxels"] == lost
        assert len(caught) == expected
        for warning in caught:
            said = f"With voxels of 8 x 8 x 8 mm the atlas aligned to {files[0]} has no voxel of {lost}"
            assert str(warning.message).startswith(said)


# ---- the image itself


def test_a_copy_of_the_atlas_image_is_known_by_its_content(files):
    atlas = Atlas.read(*files)
    plain = MetaTensor(atlas.image.as_tensor(), affine=atlas.image.affine)
    assert atlas.is_image(plain)
    assert atlas.is_image(Spacing((3.0, 2.5, 4.0))(plain))  # no file, another grid
    assert atlas.is_image(plain * 0.1 + 5)
    assert atlas.is_image(SpatialCrop(roi_start=(4, 0, 2), roi_end=(24, 21, 20))(plain))
    assert not atlas.is_image(MetaTensor(torch.from_numpy(smooth(1))[None], affine=plain.affine))
    assert not atlas.is_image(MetaTensor(plain.as_tensor(), affine=nib.affines.from_matvec(np.eye(3), [900, 0, 0])))
    assert not atlas.is_image(torch.zeros_like(plain))
    other = Spacing((3.0, 3.0, 3.0))(plain)
    other.meta["filename_or_obj"] = "/somewhere/else.nii"
    assert not atlas.is_image(other)  # a scan that knows its file is another one


def test_fusing_refuses_a_scan_that_may_be_an_atlas(files):
    fuse = FuseAtlasesd("image", [{"image": files[0], "label": files[1]}])
    atlas = Atlas.read(*files)
    data = {"image": Spacing((3.0, 3.0, 3.0))(MetaTensor(atlas.image.as_tensor(), affine=atlas.image.affine))}
    assert fuse(data).keys() == {"image"}  # the only further atlas is the scan: nothing to fuse
    with pytest.raises(ValueError, match=r"may be one of the `atlases` itself.* track_meta=True"):
        fuse({"image": data["image"].as_tensor()})


@pytest.fixture
def pool(tmp_path):
    paths = [str(save_nifti(smooth(i, 8), tmp_path / f"pool/{i}.nii", AFFINE)) for i in range(2)]
    return paths, [{"atlas_image": path} for path in paths]


def test_a_persistent_dataset_never_draws_the_subject_itself(tmp_path, pool):
    paths, atlases = pool
    load = [LoadImaged("image", ensure_channel_first=True), ScaleIntensityd("image")]
    pick = RandPickAtlasd(atlases)
    dataset = PersistentDataset([{"image": paths[0]}], Compose([*load, pick]), tmp_path / "cache")
    assert dataset[0]["atlas_image"] == paths[1]  # only what comes from the disk has no metadata
    with pytest.raises(RuntimeError) as error:
        dataset[0]
    assert "might be drawn as its own atlas: keep its path under another key" in str(error.value.__cause__)
    pick = RandPickAtlasd(atlases, exclude_key="file").set_random_state(0)
    kept = Compose([CopyItemsd("image", names="file"), *load, pick])
    dataset = PersistentDataset([{"image": path} for path in paths], kept, tmp_path / "cache2")
    assert [{dataset[i]["atlas_image"] for _ in range(20)} for i in (0, 1)] == [{paths[1]}, {paths[0]}]


def test_atlases_and_images_without_files_are_known_by_content():
    volumes = [torch.from_numpy(smooth(i, 8))[None] for i in range(3)]
    pick = RandPickAtlas([{"atlas_image": volume} for volume in volumes]).set_random_state(0)
    for i, volume in enumerate(volumes):
        drawn = set()
        for _ in range(40):
            pick(copy.deepcopy(volume) if i else volume.numpy())
            drawn.add(pick.index_)
        assert drawn == {0, 1, 2} - {i}
    with pytest.raises(ValueError, match="Every atlas of the pool is the image"):
        RandPickAtlas([{"atlas_image": volumes[0]}])(volumes[0])


# ---- tables that people open in a spreadsheet


def test_tables_of_results_run_nothing_in_a_spreadsheet(tmp_path):
    table = LabelTable([Label(1, "=cmd()"), Label(2, "-x"), Label(3, "None")])
    cases = ["007", "@sub", "n"]
    dice = dice_table(torch.tensor([[0.5, -1, torch.nan]] * 3), cases, table)
    write_dice_tsv(dice, tmp_path / "dice.tsv")
    again = read_tsv(tmp_path / "dice.tsv")
    pd.testing.assert_frame_equal(again, dice, check_dtype=False)
    cells = [
        cell
        for line in (tmp_path / "dice.tsv").read_text(encoding="utf-8").splitlines()[1:]
        for cell in line.split("\t")[:3]
    ]
    assert {"'=cmd()", "'-x", "'@sub", "None"} <= set(cells)
    assert not [cell for cell in cells if cell[0] in "=+-@"]
    volumes = pd.DataFrame({"id": [1], "name": ["+1"], "voxels": [3], "mm3": [-2.5]})
    write_tsv(volumes, tmp_path / "volumes.tsv")
    assert (tmp_path / "volumes.tsv").read_text(encoding="utf-8").splitlines()[1] == "1\t'+1\t3\t-2.5"
    pd.testing.assert_frame_equal(read_tsv(tmp_path / "volumes.tsv"), volumes, check_dtype=False)
