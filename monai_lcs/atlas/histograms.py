"""Histogram matching: an image gets the contrast between tissues that another one has.

SimpleITK's filter takes no mask. With the average brain, labels then aligned less well (docs/benchmarks.md).
"""

from __future__ import annotations

import numpy as np

__all__ = ["contrast_difference", "match_histogram"]

QUANTILES = 257
"""As fine as 256 gray values."""


def contrast_difference(image: np.ndarray, reference: np.ndarray, where: np.ndarray) -> float:
    """How much two images differ in contrast, brightness and scale apart: 0 for the same, at most 1.

    The mean difference of their quantiles, from the 0.5 to the 99.5 percentile, each scaled to [0, 1].

    Args:
        image: any shape.
        reference: the same shape.
        where: the voxels that count.

    Returns:
        The difference; 0 where one of the two has no contrast, or nothing counts.

    Example:
        >>> scan = np.linspace(0, 1, 101)
        >>> everywhere = np.ones(101, bool)
        >>> [round(contrast_difference(x, scan, everywhere), 2) for x in (700 * scan - 20, scan**0.5)]
        [0.0, 0.15]
    """
    if not where.any():
        return 0.0
    scaled = []
    for values in (image, reference):
        quantiles = np.quantile(values[where], np.linspace(0.005, 0.995, QUANTILES))
        if quantiles[0] == quantiles[-1]:
            return 0.0
        scaled.append((quantiles - quantiles[0]) / (quantiles[-1] - quantiles[0]))
    return float(np.abs(scaled[0] - scaled[1]).mean())


def match_histogram(
    image: np.ndarray, reference: np.ndarray, where: np.ndarray, backgrounds: tuple[float, float] = (0.0, 0.0)
) -> np.ndarray:
    """Map the values of an image to those of another one, quantile to quantile.

    The map is monotonous and piecewise linear. A T1 of another scanner, or an average of many, so gets the contrast of
    gray and white matter that the reference has.

    Args:
        image: any shape.
        reference: the same shape, on the same grid.
        where: the voxels whose histograms are matched, those of the object in both.
        backgrounds: values of image and reference beyond the object. The first goes to the second, whatever it is.

    Returns:
        The image, float32; as it was where there is nothing to match: no voxel in ``where``, or the object is constant
        in one of the two.

    Example:
        >>> scan = np.linspace(0, 1, 101)
        >>> matched = match_histogram(np.append(0, scan**3 + 2), np.append(0, scan), np.arange(102) > 0)
        >>> bool(abs(matched[1:] - scan).max() < 0.01), float(matched[0])
        (True, 0.0)
    """
    if not where.any():
        return image.astype(np.float32)
    found, wanted = (np.quantile(values[where], np.linspace(0, 1, QUANTILES)) for values in (image, reference))
    if found[0] == found[-1] or wanted[0] == wanted[-1]:
        return image.astype(np.float32)
    last = np.append(np.diff(found) > 0, True)  # of equal quantiles the last: values must rise
    found, wanted = found[last], wanted[last]
    if backgrounds[0] < found[0]:
        found, wanted = np.append(backgrounds[0], found), np.append(backgrounds[1], wanted)
    matched = np.interp(image, found, wanted)
    matched[image == backgrounds[0]] = backgrounds[1]
    return matched.astype(np.float32)
