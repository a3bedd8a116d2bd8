"""A header that turns a head is found; one that does not is left in peace. On a head made of asymmetric parts."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import save_nifti
from monai.data import MetaTensor

from monai_lcs.atlas import AlignmentCache, Atlas
from monai_lcs.atlas.orientation import TURNS, better_orientation, turn_scores
from monai_lcs.labels import Label, LabelTable
from monai_lcs.pipeline.preprocessing import Preprocessing
from monai_lcs.pipeline.settings import Settings
from monai_lcs.transforms import AlignAtlas, FuseAtlasesd

SHAPE, MM = (40, 46, 38), 4.0
AFFINE = np.array([[MM, 0, 0, -78], [0, MM, 0, -90], [0, 0, MM, -74], [0, 0, 0, 1]])
# Center, radii (mm) and intensity of ellipsoids, painted in this order: front, back, top and bottom differ.
PARTS = [
    ((0, 0, 0), (60, 74, 56), 40.0),
    ((2, 4, 6), (44, 56, 38), 90.0),
    ((18, 22, 8), (10, 20, 10), 20.0),
    ((-18, 24, 6), (9, 18, 11), 20.0),
    ((0, -40, -26), (34, 18, 16), 130.0),
    ((0, -6, -30), (12, 14, 20), 110.0),
    ((-22, 30, 30), (14, 12, 10), 65.0),
]
QUARTERS = [4, 9, 14, 23]  # rows of TURNS
EXCHANGED = "left-right and front-back exchanged"


def head(degrees=(0, 0, 0), scale=(1, 1, 1), noise=0.0, shape=SHAPE):
    """The head, rotated about each axis and scaled, in RAS."""
    points = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ AFFINE[:3, :3] + AFFINE[:3, 3]
    rotation = sitk.Euler3DTransform((0, 0, 0), *np.deg2rad(degrees))
    points = points @ np.reshape(rotation.GetMatrix(), (3, 3)) / scale
    image = np.zeros(shape, np.float32)
    for center, radii, intensity in PARTS:
        image[np.square((points - center) / radii).sum(-1) <= 1] = intensity
    noisy = image + np.random.default_rng(0).normal(0, noise, shape) * (image > 0)
    return MetaTensor(torch.from_numpy(noisy.astype(np.float32))[None], affine=torch.from_numpy(AFFINE))


def person(**kwargs):
    """Somebody else than the atlas."""
    return head((6, -4, 8), (0.95, 1.04, 0.98), noise=4, **kwargs)


def wrongly_labeled(image, turn):
    """The image with voxels permuted and flipped, so that the unchanged affine is wrong by a row of TURNS."""
    order = np.abs(TURNS[turn]).argmax(0)
    flips = [i + 1 for i, axis in enumerate(order) if TURNS[turn][axis, i] < 0]
    return MetaTensor(image.as_tensor()[0].permute(*order.tolist())[None].flip(flips), affine=image.affine)


@pytest.fixture(scope="module")
def atlas():
    return head()


def test_turns():
    assert len({turn.tobytes() for turn in TURNS}) == 24
    assert (TURNS[0] == np.eye(3)).all()
    assert (np.linalg.det(TURNS) > 0).all()
    assert [np.diag(turn).tolist() for turn in TURNS[1:4]] == [[1, -1, -1], [-1, 1, -1], [-1, -1, 1]]


@pytest.mark.parametrize(
    "turn",
    [*range(4), *QUARTERS, *(pytest.param(i, marks=pytest.mark.slow) for i in range(4, 24) if i not in QUARTERS)],
)
def test_turned(atlas, turn):
    found = better_orientation(wrongly_labeled(person(), turn), atlas)
    assert found.turn == turn
    assert found.score >= (1.5 if turn else 1) * found.header_score


def test_words():
    """A quarter turn to the left: what the header calls front is in truth the left."""
    quarter = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    (turn,) = [i for i, matrix in enumerate(TURNS) if (matrix == quarter).all()]
    scan = MetaTensor(person().as_tensor().transpose(1, 2).flip(2), affine=torch.from_numpy(AFFINE))
    found = better_orientation(scan, head())
    assert (found.turn, found.looks_like) == (turn, ("front", "left", "top"))
    assert str(found).startswith("right, front, top taken for front, left, top (fits ")


@pytest.mark.parametrize(
    ("what", "scan"),
    [
        ("nodding", lambda: head((30, 0, 0), noise=4)),
        ("turned", lambda: head((0, 0, -30), noise=4)),
        ("noise", lambda: head((6, -4, 8), noise=30)),
        ("upper half", lambda: person()[..., 18:]),
        ("front half", lambda: person()[:, :, 22:]),
        ("inverted", lambda: (150 - person()) * (person() > 5)),
        ("stored otherwise", lambda: person().flip(1)),
    ],
)
def test_right_header_is_left_in_peace(atlas, what, scan):
    image = scan()
    if what == "stored otherwise":
        image.affine = torch.from_numpy(AFFINE @ np.array([[-1, 0, 0, SHAPE[0] - 1], *np.eye(4)[1:]]))
    found = better_orientation(image, atlas)
    assert found is None or found.turn == 0


def test_mirrored_head_cannot_be_told(atlas):
    assert better_orientation(MetaTensor(person().as_tensor().flip(1), affine=atlas.affine), atlas).turn == 0


@pytest.mark.parametrize(
    "image",
    [
        torch.rand(1, 30, 30),  # 2D
        torch.rand(1, 30, 30, 3),  # too few slices
        torch.zeros(1, 20, 20, 20),
        torch.nn.functional.pad(torch.ones(1, 2, 2, 2), [9] * 6),  # hardly any foreground
        torch.rand(1, 24, 24, 24, generator=torch.Generator().manual_seed(0)),
    ],
    ids=["2D", "slices", "constant", "small", "noise"],
)
def test_nothing_can_be_told(atlas, image):
    assert better_orientation(image, atlas if image.ndim == 4 else image) is None


def test_same_on_any_number_of_threads(atlas):
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    scores = []
    try:
        for number in (1, 3):
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(number)
            scores.append(turn_scores(person(), atlas).tolist())
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    assert scores[0] == scores[1]


# ---- where it is told -----------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """A scan with left and right, front and back exchanged, the same as it should be, and an atlas."""
    table = LabelTable([Label(1, "Head")])
    image = head()
    atlas = Atlas(image, (image > 80).int(), table)
    wrong = wrongly_labeled(person(), 3)
    paths = [
        save_nifti(scan[0].numpy(), tmp_path / name, AFFINE)
        for name, scan in (("right.nii.gz", person()), ("wrong.nii.gz", wrong))
    ]
    return atlas, *paths


def test_pipeline_warns_and_reports(files, tmp_path):
    atlas, right, wrong = files
    settings = Settings(align="rigid", spacing=[MM] * 3)
    preprocessing = Preprocessing(atlas, settings, cache=AlignmentCache(tmp_path / "cache"))
    assert preprocessing.align(preprocessing.prepare(right)).quality["orientation"] == "as in the header"
    for aligned in ("new", "cached"):  # a kept alignment keeps the doubt
        preprocessing = Preprocessing(atlas, settings, cache=AlignmentCache(tmp_path / "cache"))
        with pytest.warns(UserWarning, match=rf"header of .*wrong\.nii\.gz looks wrong: .* {EXCHANGED}") as caught:
            quality = preprocessing.align(preprocessing.prepare(wrong)).quality
        assert quality["aligned"] == aligned
        assert quality["orientation"].startswith(EXCHANGED)
        assert len(caught) == 1
        assert len(str(caught[0].message).replace(str(tmp_path), "")) < 300


def test_further_atlases_are_not_asked(files):
    atlas, _, wrong = files
    further = Atlas(person(), (person() > 80).int(), atlas.table)
    preprocessing = Preprocessing(atlas, Settings(align="rigid", spacing=[MM] * 3), further_atlases=[further])
    with pytest.warns(UserWarning, match="looks wrong") as caught:
        preprocessing.align(preprocessing.prepare(wrong))
    assert len(caught) == 1
    assert not FuseAtlasesd("image", []).aligner.check_orientation


def test_off_without_alignment(files):
    atlas, _, wrong = files
    preprocessing = Preprocessing(atlas, Settings(align="none", spacing=[MM] * 3))
    assert preprocessing.align(preprocessing.prepare(wrong)).quality["orientation"] == "not checked"


def test_failed_alignment_says_it(atlas):
    with pytest.raises(ValueError, match=rf"below min_overlap=1\.0 \(it fits better with {EXCHANGED}"):
        AlignAtlas("rigid", min_overlap=1.0)(wrongly_labeled(person(), 3), atlas, (atlas > 80).int())


# ---- real scans -----------------------------------------------------------------------------------------------------


@pytest.mark.data
def test_real_scans(real_data):
    """Two people: as they are, and turned by 180 degrees about each axis."""
    images = []
    for case in ("1013", "1014"):
        image = sitk.DICOMOrient(sitk.ReadImage(str(real_data / f"malc2012/images/{case}.nii.gz")), "LPS")
        voxels = torch.from_numpy(sitk.GetArrayFromImage(image).T.astype(np.float32))[None]
        images.append(MetaTensor(voxels.flip(1, 2), affine=torch.eye(4)))
    found = [better_orientation(wrongly_labeled(images[0], turn), images[1]) for turn in range(4)]
    assert [orientation.turn for orientation in found] == [0, 1, 2, 3]
