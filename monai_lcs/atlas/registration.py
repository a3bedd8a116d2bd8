"""Registration with SimpleITK: mutual information for rigid and affine transforms, demons for deformable ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import SimpleITK as sitk

from monai_lcs.atlas.histograms import QUANTILES, contrast_difference, match_histogram

__all__: list[str] = []

Rigid = sitk.Euler2DTransform | sitk.Euler3DTransform
Stage = TypeVar("Stage", bound=sitk.Transform)


def shrink(image: sitk.Image, spacing_mm: float, min_size: int = 32) -> sitk.Image:
    """Average blocks of voxels to reach about ``spacing_mm``, never from above ``min_size`` voxels an axis to below.

    3D axes are brought into one order first: how a file stores its voxels must not decide which of them are sampled.
    """
    if image.GetDimension() == 3:
        image = sitk.DICOMOrient(image, "LPS")
    return sitk.BinShrink(
        image,
        [
            max(1, min(round(spacing_mm / spacing), size // min_size))
            for spacing, size in zip(image.GetSpacing(), image.GetSize(), strict=True)
        ],
    )


def background(image: sitk.Image) -> float:
    """Return the value of at least half the border (0 for brains normalized inside a mask), else the minimum."""
    array = sitk.GetArrayViewFromImage(image)
    on_border = np.ones(array.shape, dtype=bool)
    on_border[(slice(1, -1),) * array.ndim] = False
    border = array[on_border]
    median = np.median(border)
    return float(median if (border == median).mean() >= 0.5 else array.min())


def foreground(image: sitk.Image) -> sitk.Image:
    """Return the mask of the voxels that differ from the background, by Otsu's threshold.

    The root keeps darker tissue in, and in a brain normalized to mean 0 the tissue near 0.
    """
    return sitk.OtsuThreshold(sitk.Sqrt(sitk.Abs(image - background(image))), 0, 1)


def grid_center(image: sitk.Image) -> np.ndarray:
    return np.array(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))


def foreground_center(image: sitk.Image) -> np.ndarray:
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(foreground(image))
    return np.array(shape.GetCentroid(1))


def translation(center: np.ndarray, offset: np.ndarray) -> Rigid:
    """Return the rigid transform, turning around ``center``, that moves by ``offset`` and does not rotate."""
    transform = sitk.Euler3DTransform() if len(center) == 3 else sitk.Euler2DTransform()
    transform.SetCenter(center.tolist())
    transform.SetTranslation(offset.tolist())
    return transform


def as_affine(rigid: Rigid) -> sitk.AffineTransform:
    affine = sitk.AffineTransform(rigid.GetDimension())
    affine.SetCenter(rigid.GetCenter())
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    return affine


def resample(moving: sitk.Image, fixed: sitk.Image, transform: sitk.Transform) -> sitk.Image:
    return sitk.Resample(moving, fixed, transform, sitk.sitkLinear, background(moving))


def mattes(fixed: sitk.Image, seed: int, samples: int = 60_000, bins: int = 32) -> sitk.ImageRegistrationMethod:
    """Set up mutual information on a fixed number of voxels, so that time does not grow with the image."""
    method = sitk.ImageRegistrationMethod()
    # Several threads add up the gradient in whichever order they finish: results would differ in the last bits.
    method.SetNumberOfWorkUnits(1)
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=bins)
    method.SetMetricSamplingStrategy(method.REGULAR)
    # SimpleITK reads seed 0 as "take the clock".
    method.SetMetricSamplingPercentage(min(1.0, samples / fixed.GetNumberOfPixels()), seed + 1)
    method.SetInterpolator(sitk.sitkLinear)
    # Central differences at the sampled voxels: half the time of gradient images, same result.
    method.MetricUseFixedImageGradientFilterOff()
    method.MetricUseMovingImageGradientFilterOff()
    return method


def mutual_information(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform, seed: int) -> float:
    """Measure over the whole image, background beyond the atlas: a tiny overlap must not score well by chance."""
    warped = resample(moving, fixed, transform)
    if np.ptp(sitk.GetArrayViewFromImage(warped)) == 0:
        return 0.0
    method = mattes(fixed, seed)
    method.SetInitialTransform(sitk.Transform(fixed.GetDimension(), sitk.sitkIdentity))
    return -method.MetricEvaluate(fixed, warped)


SAMPLES = 20_000  # voxels that each level looks at


def shrink_factors(fixed: sitk.Image, moving: sitk.Image) -> list[int]:
    """The levels of a registration, coarse to fine."""
    smallest = min(*fixed.GetSize(), *moving.GetSize())
    return [factor for factor in (8, 4, 2, 1) if factor == 1 or smallest // factor >= 4]


def optimize(fixed: sitk.Image, moving: sitk.Image, start: Stage, factors: Sequence[int], seed: int) -> Stage:
    """Maximize mutual information, level by level, over the parameters of ``start``; ``start`` is not changed."""
    method = mattes(fixed, seed)
    voxels = fixed.GetNumberOfPixels() / np.array(factors) ** fixed.GetDimension()
    method.SetMetricSamplingPercentagePerLevel(np.minimum(1.0, SAMPLES / voxels).tolist(), seed + 1)
    voxel_mm = max(fixed.GetSpacing())
    # The step shrinks slowly (0.8, not ITK's 0.5): twice the iterations, but rotations of 40 degrees are found.
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2 * voxel_mm,
        minStep=voxel_mm / 20,
        numberOfIterations=100,
        relaxationFactor=0.8,
        gradientMagnitudeTolerance=1e-6,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(list(factors))
    method.SetSmoothingSigmasPerLevel([factor // 2 for factor in factors])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    transform = type(start)(start)
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(fixed, moving)
    return transform


def overlap(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform) -> float:
    """Return the Dice score of the foregrounds, each thresholded on its own grid."""
    image = sitk.GetArrayFromImage(foreground(fixed)) > 0
    warped = sitk.Resample(foreground(moving), fixed, transform, sitk.sitkNearestNeighbor, 0.0)
    atlas = sitk.GetArrayFromImage(warped) > 0
    return float(2 * (image & atlas).sum() / max(image.sum() + atlas.sum(), 1))


def first_placement(fixed: sitk.Image, moving: sitk.Image, mode: str) -> Rigid:
    """Grids with their centers together; positions as the files give them with the mode ``"none"``."""
    center = grid_center(fixed)
    return translation(center, 0 * center if mode == "none" else grid_center(moving) - center)


def best_placement(fixed: sitk.Image, moving: sitk.Image, mode: str, seed: int) -> Rigid:
    """The best of three placements: as the files give them, by the centers of the grids, or of the foregrounds."""
    by_grids = first_placement(fixed, moving, mode)
    if mode == "none":
        return by_grids
    center = grid_center(fixed)
    as_they_are = translation(center, 0 * center)
    by_foregrounds = translation(center, foreground_center(moving) - foreground_center(fixed))
    candidates = (as_they_are, by_grids, by_foregrounds)
    return max(candidates, key=lambda placement: mutual_information(fixed, moving, placement, seed))


def register(
    fixed: sitk.Image, moving: sitk.Image, placement: Rigid, mode: str, seed: int, spacing_mm: float
) -> sitk.Transform:
    """Rigid, then affine, then deformable registration, as far as the mode goes; a stage must raise mutual information.

    Args:
        fixed: the scan, as fine as it is.
        moving: the atlas image.
        placement: where the rigid registration starts.
        mode: how far to go.
        seed: of the choice of voxels.
        spacing_mm: resolution of the rigid and affine stages, to which that of the demons is relative.

    Raises:
        RuntimeError: from SimpleITK, when the optimizer fails.
    """
    if mode == "none":
        return placement
    images = shrink(fixed, spacing_mm), shrink(moving, spacing_mm)

    def better(first: sitk.Transform, second: sitk.Transform) -> Any:
        return max(first, second, key=lambda transform: mutual_information(*images, transform, seed))

    levels = shrink_factors(*images)
    if mode == "rigid":
        return better(placement, optimize(*images, placement, levels, seed))
    # The last level is left to the affine stage. That one starts at the first again: phantoms are missed otherwise.
    rigid = better(placement, optimize(*images, placement, levels[:-1] or levels, seed))
    affine = better(rigid, optimize(*images, as_affine(rigid), levels, seed))
    if mode not in DEMONS:
        return affine
    resolution, demons_levels = DEMONS[mode]
    finest = shrink(fixed, resolution * spacing_mm), shrink(moving, resolution * spacing_mm)
    return better(affine, deform(*finest, affine, demons_levels))


DEMONS = {  # voxel size, times that of the affine stage; shrink factor and iterations of each level
    "deformable": (1.0, ((4, 100), (2, 60), (1, 30))),
    "deformable_fine": (0.5, ((4, 100), (2, 60), (1, 15))),
}
MIN_DEMONS_SIZE = 8  # voxels an axis, at the coarsest level
LOCAL_MM = 6.0  # intensities are normalized by their mean and standard deviation in a Gaussian window this wide
SMOOTH_VOXELS = 0.75  # of the displacement field after each iteration


def deform(
    fixed: sitk.Image, moving: sitk.Image, start: sitk.Transform, levels: Sequence[tuple[int, int]]
) -> sitk.Transform:
    """Add a smooth displacement of every voxel to ``start``: symmetric-forces demons, coarse to fine.

    Demons compare intensities. So an atlas image of another contrast first gets the histogram of the scan.
    """
    warped = resample(moving, fixed, start)
    images = [_locally_normalized(image, LOCAL_MM) for image in (fixed, _like(fixed, warped))]
    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetStandardDeviations(SMOOTH_VOXELS)
    # The mean change is summed up in whichever order the threads finish: it must not decide when to stop.
    demons.SetMaximumRMSError(0.0)
    field = None
    for factor, iterations in levels:
        if min(fixed.GetSize()) // factor < MIN_DEMONS_SIZE:
            continue
        small_fixed, small_moving = (_smoothed_and_shrunk(image, factor) for image in images)
        demons.SetNumberOfIterations(iterations)
        images_and_field = [small_fixed, small_moving]
        if field is not None:
            images_and_field.append(sitk.Resample(field, small_fixed))
        field = demons.Execute(*images_and_field)
    if field is None:
        return start
    displacement = sitk.DisplacementFieldTransform(sitk.Cast(sitk.Resample(field, fixed), sitk.sitkVectorFloat64))
    return sitk.CompositeTransform([start, displacement])  # the last one is applied first


SAME_CONTRAST = 0.1
"""Up to here histograms differ as people do: those of one study by 0.01 to 0.07, an average brain from them by 0.14."""


def _like(fixed: sitk.Image, warped: sitk.Image) -> sitk.Image:
    """An aligned image, with the histogram of ``fixed`` where neither is background if it has another contrast.

    Between people of one study, what histograms differ in is anatomy, such as the size of ventricles: it stays.
    """
    image, reference = (sitk.GetArrayViewFromImage(each) for each in (warped, fixed))
    backgrounds = background(warped), background(fixed)
    neither = (image != backgrounds[0]) & (reference != backgrounds[1])
    if contrast_difference(image, reference, neither) <= SAME_CONTRAST:
        return warped
    matched = sitk.GetImageFromArray(match_histogram(image, reference, neither, backgrounds))
    matched.CopyInformation(fixed)
    return matched


def _locally_normalized(image: sitk.Image, mm: float) -> sitk.Image:
    """Zero mean, unit standard deviation in a Gaussian window around every voxel; flat parts stay flat."""
    scale = float(np.std(sitk.GetArrayViewFromImage(image)))
    image = sitk.Cast(image / scale, sitk.sitkFloat32)
    mean = sitk.SmoothingRecursiveGaussian(image, mm)
    variance = sitk.SmoothingRecursiveGaussian(sitk.Square(image - mean), mm)
    return (image - mean) / (sitk.Sqrt(sitk.Maximum(variance, 0.0)) + 0.1)


def _smoothed_and_shrunk(image: sitk.Image, factor: int) -> sitk.Image:
    if factor == 1:
        return image
    sigmas = [factor / 2 * mm for mm in image.GetSpacing()]
    return sitk.Shrink(sitk.SmoothingRecursiveGaussian(image, sigmas), [factor] * image.GetDimension())


VOTE_LOCAL_MM = 16.0  # as LOCAL_MM, for the weights of votes
SIMILAR_MM = 2.0  # squared differences are averaged in a Gaussian window this wide
SIMILAR_FLOOR = 0.05  # squared difference that noise makes: below it no atlas gains


def similarity(fixed: sitk.Image, warped: sitk.Image) -> sitk.Image:
    """How much an aligned image looks like ``fixed`` at every voxel: from 400 for the same to 0, float32."""
    difference = _locally_normalized(fixed, VOTE_LOCAL_MM) - _locally_normalized(warped, VOTE_LOCAL_MM)
    squared = sitk.SmoothingRecursiveGaussian(sitk.Square(difference), SIMILAR_MM)
    return sitk.Cast(1 / sitk.Square(sitk.Maximum(squared, 0.0) + SIMILAR_FLOOR), sitk.sitkFloat32)


def constants() -> tuple[object, ...]:
    """What an alignment depends on besides its images and arguments: an alignment kept on disk is found by it."""
    return SAMPLES, tuple(DEMONS.items()), MIN_DEMONS_SIZE, LOCAL_MM, SMOOTH_VOXELS, QUANTILES, SAME_CONTRAST
