"""Alignment is judged on a phantom defined in world space, sampled on any grid through any known transform."""

from __future__ import annotations

import contextlib
import pickle

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation, Spacing

from monai_lcs import grids
from monai_lcs.atlas import AtlasAligner, registration
from monai_lcs.transforms import AlignAtlas, AlignAtlasD, AlignAtlasd, AlignAtlasDict

# Center, radii (mm), intensity and label of ellipsoids, painted in this order; no symmetry. Ids beyond 255 on purpose.
ELLIPSOIDS = [
    ((0, 0, 0), (34, 42, 30), 60.0, 2),
    ((4, 6, 2), (26, 34, 22), 100.0, 41),
    ((14, 14, 6), (8, 10, 7), 20.0, 1001),
    ((-12, 10, 0), (6, 13, 6), 30.0, 300),
    ((6, -18, -6), (9, 6, 8), 150.0, 2035),
    ((-10, -14, 10), (7, 7, 5), 130.0, 17),
]
AXES = (("L", "R"), ("P", "A"), ("I", "S"))  # said openly: MONAI warns about its default
IDS = [label for *_, label in ELLIPSOIDS]


def grid(spacing_mm: tuple[float, ...] = (2, 2, 2), extent_mm: float = 108) -> tuple[tuple[int, ...], np.ndarray]:
    """Return shape and RAS affine of a grid around the world's origin."""
    shape = tuple(round(extent_mm / s) for s in spacing_mm)
    affine = np.diag([*spacing_mm, 1.0])
    affine[:-1, -1] = -np.array(spacing_mm) * (np.array(shape) - 1) / 2
    return shape, affine


def scan(shape: tuple[int, ...], affine: np.ndarray, to_phantom: np.ndarray | None = None, noise: float = 2.0):
    """Return image and label map of the phantom on a grid; ``to_phantom`` takes the grid's world to the phantom's."""
    dims = len(shape)
    points = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:-1, :-1].T + affine[:-1, -1]
    if to_phantom is not None:
        points = points @ to_phantom[:-1, :-1].T + to_phantom[:-1, -1]
    image, labels = np.zeros(shape), np.zeros(shape, dtype=np.int32)
    for center, radii, intensity, label in ELLIPSOIDS:
        inside = (((points - center[:dims]) / radii[:dims]) ** 2).sum(-1) <= 1
        image[inside], labels[inside] = intensity, label
    image += np.random.default_rng(0).normal(0, noise, shape) * (image > 0)
    return tuple(MetaTensor(torch.from_numpy(x)[None], affine=torch.from_numpy(affine)) for x in (image, labels))


def rigid(degrees: tuple[float, float, float], offset: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(4)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        i, j = ((1, 2), (2, 0), (0, 1))[axis]
        turn = np.eye(4)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    matrix[:3, 3] = offset
    return matrix


def affine_3d() -> np.ndarray:
    stretch = np.array([[1.12, 0.05, 0, 0], [0, 0.9, 0.04, 0], [0.03, 0, 1.05, 0], [0, 0, 0, 1]])
    return stretch @ rigid((8, -5, 10), (6, -4, 5))


def mean_dice(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = np.asarray(a), np.asarray(b)
    ids = np.setdiff1d(np.union1d(a, b), [0])
    return float(np.mean([2 * ((a == i) & (b == i)).sum() / ((a == i).sum() + (b == i).sum()) for i in ids]))


@pytest.fixture(scope="module")
def atlas() -> tuple[MetaTensor, MetaTensor]:
    return scan(*grid())


class TestRegistration:
    @pytest.mark.parametrize(
        ("mode", "to_phantom"),
        [
            ("rigid", rigid((12, -15, 20), (8, -6, 4))),
            ("affine", rigid((12, -15, 20), (8, -6, 4))),
            ("affine", affine_3d()),
            ("rigid", rigid((5, 0, -5), (300, -250, 280))),
        ],
        ids=["rigid", "affine-of-rigid", "affine", "300mm-away"],
    )
    def test_recovers_a_known_transform(self, atlas, mode, to_phantom):
        image, truth = scan(*grid((2.5, 2, 2)), np.eye(4))
        moved = [
            MetaTensor(x.as_tensor(), affine=torch.from_numpy(np.linalg.inv(to_phantom)) @ x.affine) for x in atlas
        ]
        before = AlignAtlas("rigid", min_overlap=0)  # same call, no registration, for the Dice before
        before.aligner._register = lambda *_: ("", sitk.Transform(3, sitk.sitkIdentity), 0.0, 1.0)  # type: ignore[method-assign]
        align = AlignAtlas(mode)
        _, labels = align(image, *moved)
        after = mean_dice(labels, truth)
        assert after > 0.85
        if abs(to_phantom[:3, 3]).max() < 100:
            assert after > mean_dice(before(image, *moved)[1], truth) + 0.2
        assert align.report_["overlap"] > 0.95
        assert align.report_["metric"] > 0.5

    def test_affine_beats_rigid_on_a_stretched_head(self, atlas):
        image, truth = scan(*grid(), affine_3d())
        dice = {mode: mean_dice(AlignAtlas(mode)(image, *atlas)[1], truth) for mode in ("rigid", "affine")}
        assert dice["affine"] > dice["rigid"] + 0.05

    def test_other_contrast_and_negative_intensities(self, atlas):
        image, truth = scan(*grid(), rigid((6, -8, 5), (5, 5, -5)))
        inverted = torch.where(image > 0, -0.02 * image + 1, 0.0)
        align = AlignAtlas()
        assert mean_dice(align(inverted, *atlas)[1], truth) > 0.85
        assert align.report_["overlap"] > 0.8

    @pytest.mark.parametrize("axcodes", ["LAS", "IRP"])
    def test_orientation_of_either_file_is_irrelevant(self, atlas, axcodes):
        image, truth = scan(*grid((2.5, 2, 3)), affine_3d())
        turn = Orientation(axcodes=axcodes, labels=AXES)
        expected = AlignAtlas()(image, *atlas)[1]
        assert mean_dice(expected, truth) > 0.85
        turned_atlas = AlignAtlas()(image, *(turn(x) for x in atlas))[1]
        turned_image = AlignAtlas()(turn(image), *atlas)[1]
        # Equal but for voxels whose two nearest atlas voxels are equally far.
        assert mean_dice(turned_atlas, expected) > 0.99
        assert mean_dice(turned_image, turn(expected)) > 0.99

    def test_anisotropic_spacing_and_label_map_on_its_own_grid(self, atlas):
        image, truth = scan(*grid((1.2, 1.2, 5)), affine_3d())
        finer_label = scan(*grid((1.5, 2, 1.5)))[1]
        image_out, labels = AlignAtlas()(image, atlas[0], finer_label)
        assert labels.shape == image_out.shape == image.shape
        assert mean_dice(labels, truth) > 0.85

    def test_2d(self):
        shape, affine = grid((1.0, 1.5))
        turn = np.eye(3)
        turn[:2, :2] = rigid((0, 0, 15), (0, 0, 0))[:2, :2]
        turn[:2, 2] = 7, -5
        image, truth = scan(shape, affine, turn)
        atlas = scan(*grid((1.0, 1.0)))
        image_out, labels = AlignAtlas("rigid")(image, *atlas)
        assert image_out.shape == image.shape
        assert mean_dice(labels, truth) > 0.85

    def test_same_result_bit_for_bit(self, atlas):
        image, _ = scan(*grid((3, 3, 3)), affine_3d())
        first, second = (AlignAtlas(seed=3)(image, *atlas) for _ in range(2))
        threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        try:
            third = AlignAtlas(seed=3)(image, *atlas)
        finally:
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
        for other in (second, third):
            assert torch.equal(first[0].as_tensor(), other[0].as_tensor())
            assert torch.equal(first[1].as_tensor(), other[1].as_tensor())
            assert first[0].meta["alignment"]["metric"] == other[0].meta["alignment"]["metric"]

    def test_first_channel_registers(self, atlas):
        image, _ = scan(*grid((3, 3, 3)), affine_3d())
        two = MetaTensor(torch.cat([image.as_tensor(), torch.rand(image.shape)]), affine=image.affine)
        for one, other in zip(AlignAtlas("rigid")(image, *atlas), AlignAtlas("rigid")(two, *atlas), strict=True):
            assert torch.equal(one.as_tensor(), other.as_tensor())


class TestOutput:
    def test_contract(self, atlas):
        image, _ = scan(*grid((2.5, 2, 3)), affine_3d())
        named = MetaTensor(atlas[0].as_tensor(), affine=atlas[0].affine, meta={"filename_or_obj": "atlas.nii.gz"})
        align = AlignAtlas()
        image_out, labels = align(image, named, atlas[1])
        assert image_out.dtype == torch.float32
        assert labels.dtype == torch.int32
        for out in (image_out, labels):
            assert out.shape == image.shape
            assert torch.equal(out.affine, image.affine)
            assert list(out.meta["spatial_shape"]) == list(image.shape[1:])
        assert sorted(labels.unique().tolist()) == sorted([0, *IDS])
        assert image_out.meta["filename_or_obj"] == "atlas.nii.gz"
        assert image_out.meta["alignment"] == align.report_
        assert list(align.report_) == ["mode", "metric", "overlap", "seconds", "orientation"]
        assert align.report_["mode"] == "affine"
        assert all(type(align.report_[key]) is float for key in ("metric", "overlap", "seconds"))
        assert "alignment" not in named.meta

    def test_report_of_another_thread_does_not_come_with_the_atlas(self, atlas):
        """Whatever the attribute holds by the time it would be read back."""

        class Shared(AlignAtlas):
            report_ = property(lambda _: {"mode": "of another image"}, lambda *_: None)

        assert Shared("none")(*atlas[:1], *atlas)[0].meta["alignment"]["mode"] == "none"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.float16])
    def test_label_values_and_dtype_stay(self, atlas, dtype):
        out = AlignAtlas("none")(atlas[0], atlas[0], atlas[1].to(dtype))[1]
        assert out.dtype == dtype
        assert torch.equal(out.as_tensor(), atlas[1].as_tensor().to(dtype))

    def test_background_beyond_the_atlas(self, atlas):
        image, _ = scan(*grid(extent_mm=160))
        image_out, labels = AlignAtlas("rigid")(image, atlas[0] - 7, atlas[1])
        assert image_out[0, 0, 0, 0] == -7
        assert labels[0, 0, 0, 0] == 0

    def test_linear_and_nearest_agree_with_numpy(self):
        """A shift by half a voxel of the label's grid: linear averages two neighbors, nearest copies one of them."""
        ramp = torch.arange(40.0).reshape(1, 40, 1).expand(1, 40, 40)
        affine = torch.tensor([[1, 0, 0.4], [0, 1, 0], [0, 0, 1.0]])
        fixed, moving = (grids.to_sitk(ramp, a) for a in (np.eye(3), affine.double().numpy()))
        identity = sitk.Transform(2, sitk.sitkIdentity)
        linear, _ = grids.from_sitk(registration.resample(moving, fixed, identity))
        np.testing.assert_allclose(linear[0, 1:, 5], np.arange(1, 40) - 0.4, atol=1e-5)


class TestNone:
    def test_returns_the_voxels_as_they_are(self, atlas):
        image = MetaTensor(atlas[0].as_tensor(), affine=atlas[0].affine + 1e-3 * torch.eye(4))
        align = AlignAtlas("none")
        image_out, labels = align(image, *atlas)
        assert torch.equal(image_out.as_tensor(), atlas[0].as_tensor().float())
        assert torch.equal(labels.as_tensor(), atlas[1].as_tensor())
        assert torch.equal(image_out.affine, image.affine)
        assert align.report_["overlap"] == 1.0

    @pytest.mark.parametrize("case", ["shape", "shift", "spacing", "flip", "label"])
    def test_other_grid_raises(self, atlas, case):
        image, label = atlas
        other = {
            "shape": image[:, 1:],
            "shift": MetaTensor(image.as_tensor(), affine=image.affine + torch.eye(4)[[3, 0, 1, 2]].T * 0.2),
            "spacing": MetaTensor(
                image.as_tensor(), affine=image.affine @ torch.diag(torch.tensor([1.01, 1, 1, 1]).double())
            ),
            "flip": Orientation(axcodes="LAS", labels=AXES)(image),
            "label": image,
        }[case]
        if case == "label":
            label = label[:, 1:]
        with pytest.raises(
            ValueError,
            match=r"on the image's grid: .*shape \(54, 54, 54\).* use mode='rigid', 'affine' or 'deformable'",
        ):
            AlignAtlas("none")(image, other, label)


class TestFailure:
    @pytest.fixture
    def wrong(self) -> tuple[MetaTensor, MetaTensor]:
        """A rod, which no rigid transform lays over a head."""
        image = torch.zeros(1, 54, 54, 54)
        image[:, 25:28, 25:28] = 1 + torch.arange(54.0) / 54
        tensors = [MetaTensor(x, affine=torch.diag(torch.tensor([2.0, 2, 2, 1]))) for x in (image, (image > 0).int())]
        tensors[0].meta["filename_or_obj"] = "rod.nii.gz"
        return tensors[0], tensors[1]

    def test_low_overlap_raises(self, atlas, wrong):
        image = MetaTensor(atlas[0].as_tensor(), affine=atlas[0].affine, meta={"filename_or_obj": "head.nii.gz"})
        message = r"Aligning rod.nii.gz to head.nii.gz failed: .* is 0\.\d\d, below min_overlap=0.5; check that"
        with pytest.raises(ValueError, match=message):
            AlignAtlas("rigid")(image, *wrong)

    @pytest.mark.parametrize("mode", ["none", "rigid"])
    def test_every_failure_names_the_files(self, atlas, mode):
        def file(x, name):
            return MetaTensor(x.as_tensor(), affine=x.affine, meta={"filename_or_obj": name})

        image, atlas_image = file(atlas[0], "head.nii.gz"), file(0 * atlas[0], "atlas.nii.gz")
        message = "Aligning atlas.nii.gz to head.nii.gz failed: the atlas image is constant"
        with pytest.raises(ValueError, match=message):
            AlignAtlas(mode)(image, atlas_image, atlas[1])
        with pytest.warns(UserWarning, match=message):
            AlignAtlas(mode, on_failure="warn")(image, atlas_image, atlas[1])

    def test_low_overlap_warns_and_falls_back(self, atlas, wrong):
        align = AlignAtlas("rigid", on_failure="warn")
        with pytest.warns(UserWarning, match="below min_overlap=0.5; the atlas stays at the best placement"):
            _, labels = align(atlas[0], *wrong)
        rod = wrong[1].as_tensor()  # unrotated: by the centers of grids or foregrounds
        assert int(labels.sum()) == pytest.approx(int(rod.sum()), rel=0.1)
        assert labels[0].any(0).any(0).all()
        assert align.report_["overlap"] < 0.5

    def test_min_overlap_0_accepts_any(self, atlas, wrong):
        assert AlignAtlas("rigid", min_overlap=0)(atlas[0], *wrong)[1].shape == atlas[0].shape

    @pytest.mark.parametrize("mode", ["none", "rigid", "affine"])
    def test_constant_images(self, atlas, mode):
        constant = MetaTensor(torch.ones(atlas[0].shape), affine=atlas[0].affine)
        with pytest.raises(ValueError, match="the image is constant"):
            AlignAtlas(mode)(constant, *atlas)
        with pytest.warns(UserWarning, match="the atlas image is constant"):
            _, labels = AlignAtlas(mode, on_failure="warn")(atlas[0], constant, atlas[1])
        assert torch.equal(labels.as_tensor(), atlas[1].as_tensor())

    def test_optimizer_error(self, atlas, monkeypatch):
        def stop(*_):
            raise RuntimeError("long story\nall samples map outside")

        monkeypatch.setattr(registration, "optimize", stop)
        with pytest.raises(ValueError, match="the optimizer stopped with 'all samples map outside'"):
            AlignAtlas()(atlas[0], *atlas)
        with pytest.warns(UserWarning, match="the optimizer stopped"):
            _, labels = AlignAtlas(on_failure="warn")(atlas[0], *atlas)
        assert torch.equal(labels.as_tensor(), atlas[1].as_tensor())

    def test_labels_elsewhere(self, atlas):
        far = MetaTensor(atlas[1].as_tensor(), affine=atlas[1].affine + 500 * torch.eye(4)[[3, 0, 1, 2]].T)
        with pytest.raises(ValueError, match="no label of the atlas is left on the image's grid"):
            AlignAtlas("rigid")(atlas[0], atlas[0], far)


class TestBadInput:
    def test_arguments(self):
        with pytest.raises(ValueError, match="did you mean 'affine'"):
            AlignAtlas("afine")
        with pytest.raises(ValueError, match="did you mean 'warn'"):
            AlignAtlas(on_failure="warm")
        with pytest.raises(ValueError, match=r"`min_overlap` must lie between 0 and 1, got 1\.5"):
            AlignAtlas(min_overlap=1.5)
        with pytest.raises(ValueError, match="`spacing_mm` must be positive, got 0"):
            AlignAtlas(spacing_mm=0)
        with pytest.raises(ValueError, match="`seed` must be 0 or more, got -1"):
            AlignAtlas(seed=-1)

    def test_shapes(self, atlas):
        image, label = atlas
        with pytest.raises(ValueError, match=r"all 2D or all 3D, got shape \(1, 54, 54\) for the atlas image"):
            AlignAtlas()(image, image[..., 0], label)
        with pytest.raises(ValueError, match="The atlas label map must have one channel, got 2"):
            AlignAtlas()(image, image, torch.cat([label, label]))
        with pytest.raises(ValueError, match=r"4 voxels or more along each axis, got shape \(54, 54, 1\)"):
            AlignAtlas()(image[..., :1], image, label)

    def test_values(self, atlas):
        image, label = atlas
        broken = image.clone()
        broken[0, 3, 3, 3] = torch.nan
        broken.meta["filename_or_obj"] = "broken.nii.gz"
        with pytest.raises(ValueError, match=r"broken.nii.gz has NaN or infinite voxels"):
            AlignAtlas()(broken, image, label)
        with pytest.raises(ValueError, match="label map has non-integer values"):
            AlignAtlas()(image, image, label + 0.5)
        with pytest.raises(ValueError, match="affine of the image cannot be inverted"):
            AlignAtlas()(MetaTensor(image.as_tensor(), affine=torch.diag(torch.tensor([1.0, 0, 1, 1]))), image, label)


class TestDictionary:
    @pytest.fixture
    def data(self, atlas) -> dict:
        return {
            "image": scan(*grid((3, 3, 4)), affine_3d())[0],
            "atlas_image": atlas[0],
            "atlas_label": atlas[1],
            "id": 7,
        }

    def test_equals_the_array_form_and_leaves_the_input(self, data):
        before = dict(data)
        out = AlignAtlasd(mode="rigid")(data)
        assert data == before
        assert "alignment" not in data
        image_out, labels = AlignAtlas("rigid")(data["image"], data["atlas_image"], data["atlas_label"])
        assert torch.equal(out["atlas_image"].as_tensor(), image_out.as_tensor())
        assert torch.equal(out["atlas_label"].as_tensor(), labels.as_tensor())
        assert out["image"] is data["image"]
        assert out["id"] == 7
        assert out["alignment"] == out["atlas_image"].meta["alignment"]

    def test_own_keys(self, data):
        out = AlignAtlasd("t1", "a", "b", mode="rigid")(
            {"t1": data["image"], "a": data["atlas_image"], "b": data["atlas_label"]}
        )
        assert sorted(out) == ["a", "alignment", "b", "t1"]

    def test_collates_also_from_workers(self, data):
        loader = DataLoader(Dataset([data, data], AlignAtlasd(mode="rigid")), batch_size=2, num_workers=1)
        batch = next(iter(loader))
        assert batch["atlas_label"].shape == (2, *data["image"].shape)
        assert batch["alignment"]["mode"] == ["rigid", "rigid"]
        assert batch["alignment"]["overlap"].shape == (2,)

    def test_pickles(self, data):
        align = pickle.loads(pickle.dumps(AlignAtlasd(mode="none", min_overlap=0.1)))
        data = {**data, "image": data["atlas_image"]}
        assert align(data)["alignment"]["overlap"] == 1.0

    def test_keys(self, data):
        del data["atlas_label"]
        with pytest.raises(KeyError, match=r"needs the keys \['atlas_label'\]"):
            AlignAtlasd()(data)
        assert AlignAtlasd(allow_missing_keys=True)(data) == data
        with pytest.raises(ValueError, match="must be the one key of the image, got"):
            AlignAtlasd(keys=("image", "image2"))

    def test_aliases(self):
        assert AlignAtlasD is AlignAtlasDict is AlignAtlasd


class TestSimpleITK:
    @pytest.mark.parametrize("dims", [2, 3])
    def test_round_trip(self, dims):
        rng = np.random.default_rng(dims)
        affine = np.eye(dims + 1)
        affine[:-1] = rng.normal(size=(dims, dims + 1)) * 3  # oblique, sheared, maybe mirrored
        x = torch.from_numpy(rng.integers(0, 2000, (1, 4, 5, 6)[: dims + 1]))
        back, affine_back = grids.from_sitk(grids.to_sitk(x, affine))
        assert torch.equal(back, x)
        assert back.dtype == x.dtype
        np.testing.assert_allclose(affine_back, affine, atol=1e-12)

    def test_geometry_is_that_of_simpleitks_own_reader(self, tmp_path):
        affine = rigid((10, 20, 30), (5, 6, 7)) @ np.diag([1.5, -2, 3, 1])
        path = tmp_path / "image.nii"
        x = torch.arange(24.0).reshape(1, 2, 3, 4)
        sitk.WriteImage(grids.to_sitk(x, affine), str(path))
        loaded = Compose([LoadImage(image_only=True), EnsureChannelFirst()])(path)
        assert torch.equal(loaded.as_tensor(), x)
        np.testing.assert_allclose(loaded.affine, affine, atol=1e-4)


@pytest.mark.data
def test_two_people(real_data):
    """Carry 138 labels from one brain to another at 2 mm."""
    folder = real_data / "malc2012"

    def load(kind: str, case: int, mode: str) -> MetaTensor:
        steps = [LoadImage(image_only=True), EnsureChannelFirst(), Spacing(2.0, mode=mode)]
        return Compose(steps)(folder / kind / f"{case}.nii.gz")

    (image, truth), atlas = (
        (load("images", case, "bilinear"), load("labels", case, "nearest").int()) for case in (1001, 1000)
    )
    align = AlignAtlas()
    dice = mean_dice(align(image, *atlas)[1], truth)
    with pytest.warns(UserWarning, match="best placement"):
        centered = mean_dice(AlignAtlas(min_overlap=1, on_failure="warn")(image, *atlas)[1], truth)
    assert dice > 0.38
    assert dice > centered + 0.04
    assert align.report_["overlap"] > 0.9


def test_small_voxels_are_as_far_apart_as_large_ones():
    """What is the same grid depends on the voxel: 0.09 mm are nothing at 1 mm, and almost two voxels at 0.05 mm."""
    image = torch.rand(1, 16, 16, 16)
    for mm, status in ((1.0, True), (0.05, False)):
        affine = np.diag([mm, mm, mm, 1.0])
        moved = affine.copy()
        moved[0, 3] = 0.09
        scan, atlas = (MetaTensor(image, affine=torch.as_tensor(one)) for one in (affine, moved))
        with contextlib.nullcontext() if status else pytest.raises(ValueError, match="must be on the image's grid"):
            AlignAtlas("none")(scan, atlas, MetaTensor((image > 0.5).int(), affine=torch.as_tensor(moved)))
    ramp = MetaTensor(torch.arange(256.0)[None, :, None, None], affine=torch.diag(torch.tensor([0.05, 1, 1, 1.0])))
    found = grids.resample(ramp, (256, 1, 1), np.diag([0.0508, 1, 1, 1]))
    assert found[0, 250].item() == pytest.approx(250 * 0.0508 / 0.05)


def test_what_one_warns_of_is_an_error_to_another():
    assert AtlasAligner(on_failure="warn").key != AtlasAligner().key
