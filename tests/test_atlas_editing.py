"""Atlases made, merged, split, painted and pruned: in memory, in folders, and by the command."""

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import save_nifti, voxels
from monai.data import MetaTensor
from phantom import AFFINE, TABLE, make_volume
from scipy import ndimage

from monai_lcs import cli
from monai_lcs.atlas import Atlas
from monai_lcs.atlas.editing import (
    hemisphere_plane,
    in_step,
    merge_labels,
    new_id,
    paint_label,
    remove_labels,
    split_into_parts,
    split_into_sides,
)
from monai_lcs.labels import Label, LabelTable
from monai_lcs.results.atlas_folder import read_atlas_folder, write_atlas


def atlas_of(ids, table=None, affine=None):
    """An atlas of an array of ids ``(*spatial)``."""
    ids = torch.as_tensor(np.asarray(ids, np.int32))[None]
    affine = torch.as_tensor(np.eye(4) if affine is None else affine)
    table = table or LabelTable.from_ids(np.unique(ids))
    return Atlas(MetaTensor(torch.rand(ids.shape), affine=affine), MetaTensor(ids, affine=affine), table)


def ids_of(atlas):
    return atlas.label_map[0].numpy()


@pytest.fixture
def atlas():
    """Two caudates, one on each side, and a stem."""
    return atlas_of(make_volume()[1], TABLE, AFFINE)


def check_step(atlas):
    assert atlas.table.ids == tuple(np.unique(ids_of(atlas))[1:])


# ---- merge and remove


def test_merge_is_the_union_under_a_new_id(atlas):
    merged = merge_labels(atlas, [50, 11], "Caudate")
    before, after = ids_of(atlas), ids_of(merged)
    np.testing.assert_array_equal(after, np.where(np.isin(before, [11, 50]), 51, before))
    label = merged.table[51]
    assert (label.name, label.parent, label.hemisphere) == ("Caudate", "Striatum", None)
    assert label.color == TABLE[11].color
    check_step(merged)
    assert merge_labels(atlas, [11, 50], "Stem2", id=7).table.ids == (7, 16)
    assert merge_labels(atlas, [11, 50], "Left-Caudate", id=11).table[11].name == "Left-Caudate"  # one of its own
    np.testing.assert_array_equal(ids_of(atlas), before)


@pytest.mark.parametrize(
    ("ids", "more", "message"),
    [
        ([11], {}, r"two labels or more, got \[11\]"),
        ([11, 17], {}, "no voxel of label 17"),
        ([11, 50], {"name": "Stem"}, r"has a label 16 \(Stem\) already"),
        ([11, 50], {"id": 16}, r"has a label 16 \(Stem\) already: give another name or id than 16 \(both\)"),
        ([11, 50], {"id": 2**24}, "at most 16777215, got 16777216"),
    ],
)
def test_merge_errors(atlas, ids, more, message):
    with pytest.raises(ValueError, match=message):
        merge_labels(atlas, ids, **{"name": "both", **more})


def test_remove_makes_background(atlas):
    left = remove_labels(atlas, [50])
    np.testing.assert_array_equal(ids_of(left), np.where(ids_of(atlas) == 50, 0, ids_of(atlas)))
    check_step(left)
    with pytest.raises(ValueError, match="no voxel of label 50"):
        remove_labels(left, [50])
    with pytest.raises(ValueError, match="no label left"):
        remove_labels(atlas, [11, 16, 50])


def test_tables_keep_step():
    given = atlas_of(
        np.eye(4, dtype=int)[None] * 9 + np.eye(4, k=1, dtype=int) * 4, LabelTable([Label(4, "x"), Label(5, "y")])
    )
    assert in_step(given).table == LabelTable([Label(4, "x"), Label(9, "label-9")])
    assert new_id(given) == 10
    with pytest.raises(ValueError, match="no id left above 16777215"):
        new_id(atlas_of([[[2**24 - 1]]]))


# ---- split


@pytest.mark.parametrize("turn", [0.0, 0.35])
@pytest.mark.parametrize("flip", [False, True])
def test_sides_are_those_of_the_patient(atlas, turn, flip):
    """Also where the file runs to the left, or the head is turned by 20 degrees, with a plane that turns along."""
    ids, affine = ids_of(atlas), AFFINE
    if flip:
        ids, affine = ids[::-1], AFFINE @ nib.affines.from_matvec(np.diag([-1.0, 1, 1]), [len(ids) - 1, 0, 0])
    rotation = nib.affines.from_matvec(nib.eulerangles.euler2mat(turn), [3, 4, 5])
    given = atlas_of(ids.copy(), TABLE, rotation @ affine)
    merged = merge_labels(given, [11, 50], "Caudate")
    split = split_into_sides(merged, 51, hemisphere_plane(given))
    expected = np.select([ids == 11, ids == 50], [52, 53], ids)
    np.testing.assert_array_equal(ids_of(split), expected)
    assert [(x.name, x.parent, x.hemisphere) for x in split.table if x.id > 50] == [
        ("Left-Caudate", "Striatum", "L"),
        ("Right-Caudate", "Striatum", "R"),
    ]
    check_step(split)


def test_stem_is_halved_by_the_plane_between_the_caudates(atlas):
    plane = hemisphere_plane(atlas)
    centers = [np.argwhere(ids_of(atlas) == id).mean(0) @ AFFINE[:3, :3] + AFFINE[:3, 3] for id in (11, 50)]
    np.testing.assert_allclose(plane.point, np.mean(centers, axis=0), atol=1e-6)
    assert plane.normal[0] > 0.95
    split = split_into_sides(atlas, 16)
    x = np.argwhere(ids_of(split) == 51)[:, 0].mean(), np.argwhere(ids_of(split) == 52)[:, 0].mean()
    assert x[0] < x[1]
    assert split.table[51].parent == "Stem"


def test_without_pairs_the_plane_goes_through_the_center_of_the_head():
    ids = np.zeros((8, 3, 3), int)
    ids[2:5], ids[6] = 7, 8
    given = atlas_of(ids, LabelTable([Label(7, "seven"), Label(8, "Right-lesion", hemisphere="R")]))
    given.image[:] = 0
    given.image[0, 1:7] = 9  # its center is at 3.5
    assert ids_of(split_into_sides(given, 7))[:, 1, 1].tolist() == [0, 0, 9, 9, 10, 0, 8, 0]


def test_labels_of_one_side_alone_do_not_move_the_plane(atlas):
    ids = ids_of(atlas).copy()
    ids[2:6, 5:30, 5:20] = 60
    more = atlas_of(ids, LabelTable([*TABLE, Label(60, "Left-Lesion", hemisphere="L")]), AFFINE)
    for a, b in zip(hemisphere_plane(more), hemisphere_plane(atlas), strict=True):
        np.testing.assert_allclose(a, b)


def test_sides_errors(atlas):
    with pytest.raises(ValueError, match=r"Label 11 \(Left-Caudate\) is one of the left hemisphere already"):
        split_into_sides(atlas, 11)
    nameless = atlas_of(
        ids_of(atlas), LabelTable([Label(11, "a"), Label(50, "b", hemisphere="R"), Label(16, "c", None, "L")]), AFFINE
    )
    with pytest.raises(ValueError, match=r"Label 11 \(a\) lies on the left of the plane alone"):
        split_into_sides(nameless, 11, hemisphere_plane(atlas))


def test_parts_are_those_of_the_connected_components():
    ids = np.zeros((3, 4, 20), int)
    ids[:, :, 2:8] = ids[1, 1, 12:15] = ids[2, 2, 15] = ids[0, 0, 18] = 7  # 72, 4 (by a corner) and 1 voxels
    ids[0, 0, 0] = 3
    given = atlas_of(ids, LabelTable([Label(7, "Seven", hemisphere="L"), Label(3, "Three")]))
    split = split_into_parts(given, 7)
    components, _ = ndimage.label(ids == 7, np.ones((3, 3, 3)))
    sizes = [(components == i).sum() for i in (1, 2, 3)]
    assert sorted(sizes) == [1, 4, 72]
    assert [(ids_of(split) == id).sum() for id in (8, 9, 10)] == [72, 4, 1]
    assert [(x.name, x.parent, x.hemisphere) for x in split.table][1:] == [
        (f"Seven-{i}", "Seven", "L") for i in (1, 2, 3)
    ]
    two = ids_of(split_into_parts(given, 7, count=2))
    assert two[0, 0, 18] == 9  # it goes to the nearest
    assert [(two == id).sum() for id in (3, 8, 9)] == [1, 72, 5]


def test_parts_errors(atlas):
    with pytest.raises(ValueError, match=r"Label 16 \(Stem\) has one connected part"):
        split_into_parts(atlas, 16)
    dots = np.zeros((3, 3, 60), int)
    dots[0, 0, ::2] = 7
    with pytest.raises(ValueError, match="30 connected parts: say how many"):
        split_into_parts(atlas_of(dots), 7)
    for count in (1, 31):
        with pytest.raises(ValueError, match=f"30 connected parts: it cannot be split into {count}"):
            split_into_parts(atlas_of(dots), 7, count)


# ---- paint


def test_paint_takes_the_voxels_of_the_mask(atlas):
    mask = MetaTensor(torch.zeros(atlas.label_map.shape), affine=atlas.label_map.affine)
    mask[0, 10:20, 15:25, 15:20] = 1
    inside, before = mask[0].numpy() > 0, ids_of(atlas)
    assert (before[inside] > 0).any()
    assert (before[inside] == 0).any()
    lesion = Label(60, "Lesion", parent="New", hemisphere="L")
    painted = paint_label(atlas, mask, lesion)
    np.testing.assert_array_equal(ids_of(painted), np.where(inside, 60, before))
    assert painted.table[60] == lesion
    check_step(painted)
    behind = paint_label(atlas, mask, lesion, only_background=True)
    np.testing.assert_array_equal(ids_of(behind), np.where(inside & (before == 0), 60, before))

    moved = torch.roll(mask, 5, 3)
    again = paint_label(behind, MetaTensor(moved.as_tensor(), affine=mask.affine), lesion)  # the same label anew
    expected = np.where(ids_of(behind) == 60, 0, ids_of(behind))
    np.testing.assert_array_equal(ids_of(again), np.where(moved[0].numpy() > 0, 60, expected))
    everything = paint_label(atlas, MetaTensor(mask.as_tensor() + 1, affine=mask.affine), lesion)
    assert everything.table.ids == (60,)


def test_paint_errors(atlas):
    mask = MetaTensor(torch.ones(atlas.label_map.shape), affine=atlas.label_map.affine)
    for label in (Label(11, "Lesion"), Label(60, "Stem")):
        with pytest.raises(ValueError, match="already: give another name or id"):
            paint_label(atlas, mask, label)
    with pytest.raises(ValueError, match=r"m\.nii has no voxel: there is nothing to paint"):
        paint_label(atlas, mask * 0, Label(60, "x"), "m.nii")
    full = atlas_of(np.full((3, 3, 3), 4))
    with pytest.raises(ValueError, match="no voxel outside the labels"):
        paint_label(full, MetaTensor(torch.ones(1, 3, 3, 3), affine=torch.eye(4)), Label(60, "x"), only_background=True)
    with pytest.raises(ValueError, match=r"same grid, got affines up to 1\d+ mm apart"):
        paint_label(atlas, MetaTensor(torch.ones(atlas.label_map.shape), affine=torch.eye(4)), Label(60, "x"))


# ---- folders


def test_a_folder_holds_what_was_written(atlas, tmp_path):
    write_atlas(atlas, tmp_path / "new/atlas")
    assert sorted(path.name for path in (tmp_path / "new/atlas").iterdir()) == [
        "dseg.nii.gz",
        "dseg.tsv",
        "image.nii.gz",
    ]
    back = read_atlas_folder(tmp_path / "new/atlas")
    assert back.table == atlas.table
    torch.testing.assert_close(back.label_map.as_tensor(), atlas.label_map.as_tensor())
    torch.testing.assert_close(back.image.as_tensor(), atlas.image.as_tensor())
    np.testing.assert_allclose(back.image.affine, AFFINE)
    assert nib.load(tmp_path / "new/atlas/dseg.nii.gz").get_data_dtype() == np.uint8
    with pytest.raises(FileExistsError, match=r"dseg\.nii\.gz exists"):
        write_atlas(atlas, tmp_path / "new/atlas")
    image = (tmp_path / "new/atlas/image.nii.gz").stat()
    write_atlas(remove_labels(back, [16]), tmp_path / "new/atlas", overwrite=True)  # in its own place
    assert (tmp_path / "new/atlas/image.nii.gz").stat() == image
    assert read_atlas_folder(tmp_path / "new/atlas").table.ids == (11, 50)


def test_a_folder_with_another_image_is_refused(atlas, tmp_path):
    save_nifti(np.zeros((3, 3, 3), np.uint8), tmp_path / "other.nii", np.eye(4))
    with pytest.raises(ValueError, match=r"has other images, other\.nii: choose an empty folder"):
        write_atlas(atlas, tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["other.nii"]
    with pytest.raises(ValueError, match=r"must hold dseg\.nii\.gz, dseg\.tsv and one image, got: other\.nii"):
        read_atlas_folder(tmp_path)


# ---- the command


@pytest.fixture
def files(tmp_path):
    image, labels = make_volume()
    save_nifti(image, tmp_path / "scan.nii.gz", AFFINE)
    save_nifti(labels, tmp_path / "labels.nii.gz", AFFINE)
    TABLE.write(tmp_path / "labels.csv")
    mask = np.zeros(labels.shape, np.uint8)
    mask[10:20, 15:25, 15:20], mask[:3] = 1, 2
    save_nifti(mask, tmp_path / "mask.nii.gz", AFFINE)
    return tmp_path


def test_from_a_scan_to_a_painted_atlas(files, capsys):
    def run(step, *words, status=0):
        assert cli.main(["atlas", step, *map(str, words)]) == status
        shown = capsys.readouterr()
        return shown.err if status else shown.out

    out = files / "atlas"
    assert "3 labels: use it with --atlas" in run(
        "make", files / "scan.nii.gz", files / "labels.nii.gz", files / "labels.csv", "-o", out
    )
    assert sorted(path.name for path in out.iterdir()) == ["dseg.nii.gz", "dseg.tsv", "scan.nii.gz"]
    here = ["--atlas", out, "-o", out]
    assert "exists: write elsewhere" in run("remove", "Stem", *here, status=2)
    here.append("--overwrite")
    paint = ["paint", files / "mask.nii.gz", "--name", "Lesion", *here]
    assert "has the values (1, 2): say by --value" in run(*paint, status=2)
    assert "new: 51 (Lesion), 500 voxels" in run(*paint, "--value", 1)
    assert "has a label 51 (Lesion) already" in run(*paint, "--value", 2, status=2)
    assert "changed: 51 (Lesion), 500 to 4080 voxels" in run(*paint, "--value", 2, "--replace")
    assert "new: 52 (Caudate)" in run("merge", "*-Caudate", "--name", "Caudate", *here)
    assert "The plane goes through (0.00, " in run("split", "Caudate", "--by", "sides", "--plane", 0, *here)
    assert "'Lesions' names no label" in run("remove", "Lesions", *here, status=2)
    assert "gone: 16 (Stem)" in run("remove", 16, *here)
    table = LabelTable.read(out / "dseg.tsv")
    assert table.names == ("Lesion", "Left-Caudate", "Right-Caudate")
    ids = voxels(out / "dseg.nii.gz")
    assert tuple(np.unique(ids)) == (0, *table.ids)
    assert (ids[:3] == 51).all()


def test_make_refuses_other_grids_and_says_what_has_no_name(files, capsys):
    LabelTable([Label(11, "a"), Label(99, "b")]).write(files / "few.tsv")
    words = ["atlas", "make", str(files / "scan.nii.gz"), str(files / "labels.nii.gz"), str(files / "few.tsv")]
    assert cli.main([*words, "-o", str(files / "new")]) == 0
    assert "does not name 16, 50: called label-ID" in capsys.readouterr().err
    assert LabelTable.read(files / "new/dseg.tsv").names == ("a", "label-16", "label-50")
    save_nifti(voxels(files / "labels.nii.gz"), files / "labels.nii.gz", np.eye(4))
    assert cli.main([*words, "-o", str(files / "other")]) == 2
    assert "must have the same grid" in capsys.readouterr().err
    assert not (files / "other").exists()


def test_ids_beyond_the_table_stay_what_they_are(tmp_path):
    """An aparc+aseg map with the names of an aseg: the table alone would fit into a byte."""
    ids = np.zeros((6, 6, 6), np.int32)
    ids[1:3], ids[4:] = 17, 300
    write_atlas(atlas_of(ids, LabelTable.from_ids([17])), tmp_path / "copy")
    np.testing.assert_array_equal(voxels(tmp_path / "copy/dseg.nii.gz"), ids)


def test_other_labels_lie_on_the_grid_of_the_image(atlas):
    labels, other = atlas.label_map, AFFINE.copy()
    other[0] *= -1
    with pytest.raises(ValueError, match="the atlas image and the label map must have the same grid"):
        atlas.with_labels(MetaTensor(labels.as_tensor(), affine=torch.as_tensor(other)), TABLE)
    with pytest.raises(ValueError, match="must hold integers"):
        atlas.with_labels(labels.as_tensor() + 0.9, TABLE)
    np.testing.assert_array_equal(ids_of(atlas.with_labels(ids_of(atlas)[None].astype(">i2"), TABLE)), ids_of(atlas))


def test_hidden_files_are_no_images_of_an_atlas(atlas, tmp_path):
    """What macOS leaves on other file systems, and what a killed run leaves."""
    write_atlas(atlas, tmp_path / "atlas")
    for name in ("._image.nii.gz", ".0123456789abcdef_dseg.nii.gz"):
        (tmp_path / "atlas" / name).touch()
    assert read_atlas_folder(tmp_path / "atlas").ids == atlas.ids
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        read_atlas_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["split", "Left-Caudate", "--by", "sides", "--count", "3"], "--count does not go with --by sides"),
        (["split", "Left-Caudate", "--by", "parts", "--plane", "3"], "--plane does not go with --by parts"),
        (["paint", "mask.nii.gz", "--name", "Left-Caudat", "--replace"], "the atlas has no 'Left-Caudat'"),
        (["paint", "mask.nii.gz", "--name", "Left-Caudate", "--replace", "--id", "99"], "--id does not go with it"),
    ],
)
def test_words_that_do_not_go_together(atlas, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    write_atlas(atlas, tmp_path / "atlas")
    save_nifti((ids_of(atlas) == 16).astype(np.uint8), tmp_path / "mask.nii.gz", AFFINE)
    assert cli.main(["atlas", *words, "--atlas", "atlas", "-o", "new"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
