"""Histogram matching, and what it is for: registration that other scanners and averages do not mislead."""

import numpy as np
import pytest
import SimpleITK as sitk

from monai_lcs.atlas import registration
from monai_lcs.atlas.histograms import contrast_difference, match_histogram


@pytest.mark.parametrize("contrast", [lambda x: x**3, np.sqrt, lambda x: 900 * x - 40, lambda x: np.exp(4 * x)])
def test_any_rising_change_of_contrast_is_undone(contrast):
    rng = np.random.default_rng(0)
    scan = rng.random((20, 20, 20))
    everywhere = np.ones(scan.shape, bool)
    np.testing.assert_allclose(match_histogram(contrast(scan), scan, everywhere), scan, atol=0.02)


def test_order_stays_and_the_histogram_is_the_others():
    rng = np.random.default_rng(1)
    image, reference = rng.normal(size=4000), rng.gamma(2.0, size=4000)
    matched = match_histogram(image, reference, np.ones(4000, bool))
    assert (np.diff(matched[np.argsort(image)]) >= 0).all()
    np.testing.assert_allclose(np.sort(matched)[100:-100], np.sort(reference)[100:-100], atol=0.1)
    np.testing.assert_allclose(
        np.quantile(matched, [0.1, 0.5, 0.9]), np.quantile(reference, [0.1, 0.5, 0.9]), atol=0.02
    )


def test_background_goes_to_background_and_nothing_to_match_changes_nothing():
    image, reference = np.array([-5.0, 1, 2, 3, -5]), np.array([0.0, 10, 20, 30, 0])
    matched = match_histogram(image, reference, image > 0, (-5.0, 0.0))
    np.testing.assert_allclose(matched, [0, 10, 20, 30, 0], atol=1e-4)
    np.testing.assert_array_equal(match_histogram(image, reference, image > 9), image)
    for between in (2.5, 9.0):  # a background amid the values of the object, or brighter
        image = np.array([between, 1, 2, 3, between])
        np.testing.assert_allclose(
            match_histogram(image, reference, image != between, (between, 0.0)), reference, atol=1e-4
        )
    constant = np.array([-5.0, 7, 7, 7, -5])
    np.testing.assert_array_equal(match_histogram(image, constant, reference > 0), image)
    np.testing.assert_array_equal(match_histogram(constant, reference, reference > 0), constant)


def blobs(field=None):
    """Bright and dark blobs in a head, 2 mm; a smooth displacement in voxels moves them."""
    xyz = np.stack(np.meshgrid(*[np.arange(40.0)] * 3, indexing="ij"), -1)
    xyz = xyz if field is None else xyz + field
    image = 40.0 * (np.square(xyz - 20).sum(-1) < 17**2)
    rng = np.random.default_rng(5)
    for center in rng.uniform(10, 30, (25, 3)):
        image += rng.uniform(20, 60) * np.exp(-np.square(xyz - center).sum(-1) / 12) * (image > 0)
    volume = sitk.GetImageFromArray(image.astype(np.float32))
    volume.SetSpacing([2.0] * 3)
    return volume


def test_demons_find_the_same_with_another_contrast():
    """The contrast of an average brain must not cost alignment."""
    wave = 2.0 * np.sin(np.arange(40.0) / 40 * 2 * np.pi)
    field = np.stack(np.meshgrid(wave, wave, wave, indexing="ij"), -1)
    fixed, moving = blobs(field), blobs()
    other = sitk.Cast(sitk.Pow(moving / 100.0, 3.0) * 700.0, sitk.sitkFloat32)
    start, levels = sitk.Transform(3, sitk.sitkIdentity), registration.DEMONS["deformable"][1]

    def left_over(image):
        found = registration.deform(fixed, image, start, levels)
        warped = sitk.GetArrayFromImage(registration.resample(moving, fixed, found))
        return np.abs(warped - sitk.GetArrayFromImage(fixed)).mean()

    same, changed = left_over(moving), left_over(other)
    before = np.abs(sitk.GetArrayFromImage(moving) - sitk.GetArrayFromImage(fixed)).mean()
    assert same < 0.5 * before
    assert changed < 1.3 * same  # unmatched 5 times


@pytest.mark.parametrize("background", [0.0, 300.0, 75.0])
def test_any_background_of_the_atlas_goes_to_that_of_the_scan(background):
    """A scan normalized to mean 0 has its background amid the tissues; a negative has it beyond them."""
    fixed = blobs()
    array = sitk.GetArrayFromImage(fixed)
    other = sitk.GetImageFromArray(np.where(array == 0, background, 40 + np.exp(array / 25)).astype(np.float32))
    other.CopyInformation(fixed)
    matched = sitk.GetArrayFromImage(registration._like(fixed, other))
    assert (matched[array == 0] == 0).all()
    assert np.abs(matched - array)[array > 0].mean() < 1  # of 40 to 160


def test_objects_without_contrast_make_no_field_of_nan():
    array = sitk.GetArrayFromImage(blobs())
    binary = sitk.GetImageFromArray(np.where(array == 0, 200.0, 10.0).astype(np.float32))
    start, levels = sitk.Transform(3, sitk.sitkIdentity), registration.DEMONS["deformable"][1]
    found = registration.deform(binary, binary, start, levels)
    assert np.isfinite(found.TransformPoint((39.0, 39.0, 39.0))).all()


def test_the_contrast_of_the_same_scanner_stays():
    """People differ in how much of a tissue they have; to match that away would lose what tells them apart."""
    rng = np.random.default_rng(0)
    tissues, everywhere = np.array([0.2, 0.6, 0.9]), np.ones(9000, bool)

    def brain(shares):
        return rng.choice(tissues, 9000, p=shares) + 0.03 * rng.standard_normal(9000)

    one, other = brain([0.1, 0.5, 0.4]), brain([0.15, 0.45, 0.4])
    assert contrast_difference(one, other, everywhere) < registration.SAME_CONTRAST
    assert contrast_difference(500 * one - 90, other, everywhere) < registration.SAME_CONTRAST
    average = np.interp(brain([0.1, 0.5, 0.4]), tissues, [0.2, 0.8, 0.9])  # bright gray matter
    assert contrast_difference(average, other, everywhere) > registration.SAME_CONTRAST
    fixed, moving = blobs(), blobs()
    assert registration._like(fixed, moving) is moving
    assert contrast_difference(one, np.full(9000, 4.0), everywhere) == 0
