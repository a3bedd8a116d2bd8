"""Deformable alignment and the vote of several atlases, on a phantom in world space and on hand-made arrays."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter, map_coordinates
from test_transforms_align import affine_3d, grid, mean_dice, scan

from monai_lcs.transforms import AlignAtlas, AlignAtlasd, FuseAtlasesd, fuse_atlases

MODES = ("deformable", "deformable_fine")


def bent(amplitude_mm: float, phase: float = 0.0) -> np.ndarray:
    """A smooth displacement that no affine transform has, on the phantom's grid."""
    shape, _ = grid()
    points = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) * 2.0
    return amplitude_mm * np.sin(2 * np.pi * points[..., [1, 2, 0]] / 60 + phase)


def warped(image: MetaTensor, displacement: np.ndarray, order: int) -> MetaTensor:
    """Pull voxels from where the displacement (mm, 2 mm voxels) points."""
    index = np.stack(np.meshgrid(*map(np.arange, image.shape[1:]), indexing="ij")).astype(float)
    index += np.moveaxis(displacement, -1, 0) / 2.0
    moved = map_coordinates(np.asarray(image[0]), index, order=order, mode="nearest")
    return MetaTensor(torch.from_numpy(moved)[None], affine=image.affine.clone())


@pytest.fixture(scope="module")
def atlas() -> tuple[MetaTensor, MetaTensor]:
    return scan(*grid())


class TestDeformable:
    def test_follows_what_an_affine_transform_cannot(self, atlas):
        image, truth = (warped(x, bent(5.0), order) for x, order in zip(atlas, (1, 0), strict=True))
        dice = {mode: mean_dice(AlignAtlas(mode)(image, *atlas)[1], truth) for mode in ("affine", "deformable")}
        assert dice["deformable"] > max(0.8, dice["affine"] + 0.1)

    def test_bias_field_and_gain_do_not_matter(self, atlas):
        image, truth = (warped(x, bent(4.0), order) for x, order in zip(atlas, (1, 0), strict=True))
        ramp = torch.linspace(0.7, 1.3, image.shape[1])[None, :, None, None]
        plain, biased = (AlignAtlas("deformable")(x, *atlas)[1] for x in (image, 37 * image * ramp))
        assert mean_dice(biased, truth) > mean_dice(plain, truth) - 0.03

    def test_the_same_image_stays(self, atlas):
        _, labels = AlignAtlas("deformable")(atlas[0], *atlas)
        assert mean_dice(labels, atlas[1]) > 0.98

    @pytest.mark.parametrize("mode", MODES)
    def test_same_bits_on_any_number_of_cores(self, mode):
        atlas = scan(*grid((4, 4, 4)))
        image, _ = scan(*grid((2.5, 3, 3)), affine_3d())
        threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
        results = []
        try:
            for n in (1, 2):
                sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(n)
                results.append(AlignAtlas(mode, spacing_mm=6)(image, *atlas)[0])
        finally:
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
        assert torch.equal(*results)

    def test_the_fine_mode_follows_what_the_other_is_too_coarse_for(self):
        """Stripes of 4 mm, two voxels of the coarser mode, that wave by 1.2 mm to either side every 30 mm."""
        y, x = np.meshgrid(np.arange(128.0), np.arange(128.0))
        disc = (x - 64) ** 2 + (y - 64) ** 2 < 50**2

        def sampled(shift: np.ndarray) -> tuple[MetaTensor, MetaTensor]:
            labels = np.where(disc, 1 + (x + shift) // 4 % 2, 0)
            image = np.where(disc, 60 + 40 * np.sin(np.pi * (x + shift) / 4), 0)
            volumes = (torch.from_numpy(v)[None] for v in (image, labels.astype(np.int32)))
            return tuple(MetaTensor(v, affine=torch.eye(3, dtype=torch.float64)) for v in volumes)

        (image, truth), still = sampled(1.2 * np.sin(2 * np.pi * y / 30)), sampled(0 * x)
        dice = {mode: mean_dice(AlignAtlas(mode)(image, *still)[1], truth) for mode in MODES}
        assert dice["deformable_fine"] > dice["deformable"] + 0.05

    def test_is_given_up_where_it_makes_things_worse(self, atlas):
        """Demons take inverted contrast for a displacement; mutual information does not."""
        plain = atlas[0].as_tensor()
        inverted = MetaTensor(torch.where(plain > 0, 200 - plain, 0), affine=atlas[0].affine)
        scores = {}
        for mode in ("affine", "deformable"):
            align = AlignAtlas(mode)
            align(inverted, *atlas)
            scores[mode] = align.report_["metric"]
        assert scores["deformable"] >= scores["affine"]

    def test_2d_and_images_too_small_for_demons(self, atlas):
        flat = [x[:, :, :, 27] for x in atlas]
        affine = torch.eye(3, dtype=torch.float64) * 2
        flat = [MetaTensor(x.as_tensor().contiguous(), affine=affine) for x in flat]
        _, labels = AlignAtlas("deformable")(flat[0], *flat)
        assert mean_dice(labels, flat[1]) > 0.95
        tiny = [MetaTensor(x.as_tensor()[:, 20:26, 20:26, 20:26].contiguous(), affine=x.affine) for x in atlas]
        _, labels = AlignAtlas("deformable", min_overlap=0)(tiny[0], *tiny)
        assert labels.shape == tiny[1].shape


def reference(image, atlas_images, atlas_labels, spacing_mm):
    """The vote once more, with scipy, all labels everywhere at once."""

    def local(x):
        x = np.asarray(x[0], dtype=np.float64)
        x = x / x.std()
        mean = gaussian_filter(x, 16 / spacing_mm, mode="nearest", truncate=6)
        return (x - mean) / (
            np.sqrt(gaussian_filter((x - mean) ** 2, 16 / spacing_mm, mode="nearest", truncate=6)) + 0.1
        )

    d = [gaussian_filter((local(image) - local(x)) ** 2, 2 / spacing_mm, mode="nearest") for x in atlas_images]
    weights = [1 / (x + 0.05) ** 2 for x in d]
    ids = np.unique(np.stack([np.asarray(x[0]) for x in atlas_labels]))
    votes = np.stack(
        [sum(w * (np.asarray(x[0]) == i) for w, x in zip(weights, atlas_labels, strict=True)) for i in ids]
    )
    return ids[votes.argmax(0)], votes.max(0) / sum(weights)


class TestFusion:
    def atlases(self, atlas, n=3):
        moved = [[warped(x, bent(3.0, p), o) for x, o in zip(atlas, (1, 0), strict=True)] for p in range(n)]
        return [m[0] for m in moved], [m[1] for m in moved]

    def test_equals_an_independent_vote(self, atlas):
        images, labels = self.atlases(atlas)
        _, label_map, agreement = fuse_atlases(atlas[0], images, labels)
        expected, share = reference(atlas[0], images, labels, 2.0)
        assert (label_map[0].numpy() == expected).mean() > 0.999  # ITK's Gaussian is recursive
        np.testing.assert_allclose(agreement[0].numpy(), share, atol=0.02)
        assert label_map.dtype == labels[0].dtype

    def test_is_better_than_each_and_than_equal_votes(self, atlas):
        images, labels = self.atlases(atlas, 5)
        _, label_map, _ = fuse_atlases(atlas[0], images, labels)
        majority = torch.mode(torch.cat([x.as_tensor() for x in labels]).long(), dim=0).values[None]
        fused = mean_dice(label_map, atlas[1])
        assert fused > max(mean_dice(x, atlas[1]) for x in labels) + 0.02
        assert fused > mean_dice(majority, atlas[1]) + 0.005

    def test_the_order_of_atlases_does_not_matter(self, atlas):
        images, labels = self.atlases(atlas)
        _, one, _ = fuse_atlases(atlas[0], images, labels)
        _, other, _ = fuse_atlases(atlas[0], images[::-1], labels[::-1])
        assert (one != other).float().mean() < 1e-4

    def test_each_wins_where_it_looks_like_the_image(self):
        rng = np.random.default_rng(0)
        image = torch.from_numpy(rng.random((1, 64, 32)).astype(np.float32))
        other = torch.from_numpy(rng.random((1, 64, 32)).astype(np.float32))
        left = torch.cat([image[:, :32], other[:, 32:]], dim=1)
        right = torch.cat([other[:, :32], image[:, 32:]], dim=1)
        maps = [torch.full((1, 64, 32), i) for i in (7, 400)]
        _, label_map, agreement = fuse_atlases(image, [left, right], maps)
        assert (label_map[0, :26] == 7).all()
        assert (label_map[0, 38:] == 400).all()
        assert agreement.min() >= 0.5
        assert agreement.max() <= 1

    def test_one_atlas_is_itself(self, atlas):
        _, label_map, agreement = fuse_atlases(atlas[0], [atlas[0]], [atlas[1]])
        assert torch.equal(label_map, atlas[1].as_tensor())
        assert torch.equal(agreement, torch.ones_like(agreement))

    def test_wrong_shapes(self, atlas):
        with pytest.raises(ValueError, match="must have the image's shape"):
            fuse_atlases(atlas[0], [atlas[0][:, 1:]], [atlas[1][:, 1:]])
        with pytest.raises(ValueError, match="must have the image's shape"):
            fuse_atlases(atlas[0], [], [])


class TestFuseAtlasesd:
    @pytest.fixture
    def files(self, atlas, tmp_path):
        def write(name, volume):
            path = tmp_path / f"{name}.nii.gz"
            nib.save(nib.Nifti1Image(np.asarray(volume[0]), np.asarray(volume.affine)), path)
            return str(path)

        cases = []
        for i in range(2):
            moved = [warped(x, bent(4.0, 1 + i), o) for x, o in zip(atlas, (1, 0), strict=True)]
            cases.append({"image": write(f"image{i}", moved[0].float()), "label": write(f"label{i}", moved[1])})
        return cases

    def sample(self, atlas, path=None):
        meta = {"filename_or_obj": path or "new.nii.gz"}
        image = MetaTensor(atlas[0].as_tensor(), affine=atlas[0].affine, meta=meta)
        moved = [warped(x, bent(4.0), o) for x, o in zip(atlas, (1, 0), strict=True)]
        return AlignAtlasd("image", mode="deformable")(
            {"image": image, "atlas_image": moved[0], "atlas_label": moved[1]}
        )

    def test_fuses_all(self, atlas, files):
        one = self.sample(atlas)
        fused = FuseAtlasesd("image", files, mode="deformable")(one)
        assert mean_dice(fused["atlas_label"], atlas[1]) > mean_dice(one["atlas_label"], atlas[1])
        assert fused["agreement"].min() < 1
        assert fused["atlas_label"].shape == fused["agreement"].shape == atlas[1].shape
        assert torch.equal(fused["atlas_image"].affine, atlas[0].affine)

    def test_a_subject_is_no_atlas_of_itself(self, atlas, files):
        with_itself = self.sample(atlas, files[0]["image"])
        fused = FuseAtlasesd("image", files)(with_itself)
        others = FuseAtlasesd("image", files[1:])(with_itself)
        assert torch.equal(fused["atlas_label"], others["atlas_label"])
        assert not torch.equal(fused["atlas_label"], with_itself["atlas_label"])
        assert "agreement" not in FuseAtlasesd("image", files[:1])(with_itself)

    def test_one_that_cannot_be_aligned_does_not_vote(self, atlas, files, tmp_path):
        bad = {"image": str(tmp_path / "bad.nii.gz"), "label": files[0]["label"]}
        (tmp_path / "bad.nii.gz").write_bytes(b"")
        sample = self.sample(atlas)
        with pytest.warns(UserWarning, match=r"bad.nii.gz does not vote.*is empty"):
            fused = FuseAtlasesd("image", [bad, files[1]])(sample)
        assert torch.equal(fused["atlas_label"], FuseAtlasesd("image", files[1:])(sample)["atlas_label"])

    def test_without_further_atlases_nothing_changes(self, atlas):
        sample = self.sample(atlas)
        same = FuseAtlasesd("image")(sample)
        assert same.keys() == sample.keys()
        assert same["atlas_label"] is sample["atlas_label"]
        with pytest.raises(ValueError, match="one key"):
            FuseAtlasesd(["image", "other"])

    def test_where_none_can_be_aligned_nothing_changes(self, atlas, files, tmp_path):
        bad = {"image": str(tmp_path / "bad.nii.gz"), "label": files[0]["label"]}
        (tmp_path / "bad.nii.gz").write_bytes(b"")
        sample = self.sample(atlas)
        with pytest.warns(UserWarning, match=r"bad.nii.gz does not vote"):
            same = FuseAtlasesd("image", [bad])(sample)
        assert same.keys() == sample.keys()
        assert same["atlas_label"] is sample["atlas_label"]

    def test_bad_arguments(self, files):
        with pytest.raises(ValueError, match="not 'none'"):
            FuseAtlasesd("image", files, mode="none")
        with pytest.raises(ValueError, match=r"keys 'image' and 'label', got .*atlas_image"):
            FuseAtlasesd("image", [{"atlas_image": "a.nii.gz", "atlas_label": "b.nii.gz"}])


def test_fused_ids_fit():
    """The first atlas has bytes, another one an id that needs more."""
    image, small, large = (
        torch.rand(1, 8, 8, 8),
        torch.zeros(1, 8, 8, 8, dtype=torch.uint8),
        torch.full((1, 8, 8, 8), 300),
    )
    _, fused, _ = fuse_atlases(image, [image] * 3, [small, large.int(), large.int()])
    assert fused.unique().tolist() == [300]
    assert fuse_atlases(image, [image] * 2, [large.to(torch.uint16), small])[1].dtype == torch.int32
    assert fuse_atlases(image, [image] * 2, [large.to(torch.uint16)] * 2)[1].dtype == torch.uint16
