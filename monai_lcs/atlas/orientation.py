"""Compares the 24 turned versions of a scan with the atlas: a header that says the wrong way up is found and told."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
import SimpleITK as sitk
import torch
from monai.data import MetaTensor

from monai_lcs.atlas import registration
from monai_lcs.grids import affine_of, to_sitk

__all__ = ["TURNS", "Orientation", "better_orientation", "turn_scores"]

CLEARLY_BETTER = 1.5  # times the score of the header's orientation
LOWEST_SCORE = 0.15  # nats: below it nothing looks like the atlas, whichever way it is turned

SHRUNK_MM = 2.0  # foregrounds are found at this resolution
VOXELS_A_RADIUS = 12  # the comparison's own resolution: 5 mm for an adult's brain
PADDING = 1.0  # radii of background around the atlas, so that no voxel of the scan falls beside it
BINS = 24  # of the histograms, for each image
SAMPLES = 6000  # voxels that the registration looks at
ITERATIONS = 60
FEWEST_VOXELS = 500  # in both foregrounds: fewer do not fill a histogram

AS_IN_HEADER = "as in the header"
CANNOT_BE_TOLD = "cannot be told"
AXES = ("left-right", "front-back", "top-bottom")
DIRECTIONS = (("left", "right"), ("back", "front"), ("bottom", "top"))


def _turns() -> np.ndarray:
    """The 24 turns by right angles, ``(24, 3, 3)``; the first one turns nothing, then come the turns by 180 degrees."""
    signed = []
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        matrix = np.zeros((3, 3))
        matrix[range(3), order] = signs
        if np.linalg.det(matrix) > 0:
            signed.append(matrix)
    return np.array(sorted(signed, key=lambda turn: (-np.abs(np.diag(turn)).sum(), -np.trace(turn))))


TURNS = _turns()
"""The 24 turns: each takes directions of the scan, as its header names them, to those of the atlas (RAS)."""


@dataclass(frozen=True)
class Orientation:
    """The orientation in which a scan fits the atlas: the one in its header, unless another fits clearly better.

    Args:
        turn: row of :data:`TURNS`; 0 for the header's orientation.
        score: how well it fits: mutual information in nats, higher is better.
        header_score: how well the header's orientation fits.

    Example:
        >>> str(Orientation(3, 0.53, 0.08))
        'left-right and front-back exchanged (fits 0.53, as in the header 0.08)'
        >>> Orientation(3, 0.53, 0.08).looks_like
        ('left', 'back', 'top')
        >>> str(Orientation(0, 0.53, 0.53))
        'as in the header'
    """

    turn: int
    score: float
    header_score: float

    @property
    def looks_like(self) -> tuple[str, ...]:
        """What the directions that the header calls right, front and top look like."""
        axes = [int(np.abs(column).argmax()) for column in TURNS[self.turn].T]
        return tuple(DIRECTIONS[axis][int(TURNS[self.turn][axis, i] > 0)] for i, axis in enumerate(axes))

    def __str__(self) -> str:
        """The axes in words."""
        if self.turn == 0:
            return AS_IN_HEADER
        signs = np.diag(TURNS[self.turn])
        if signs.all():
            words = " and ".join(name for name, sign in zip(AXES, signs, strict=True) if sign < 0) + " exchanged"
        else:
            words = f"right, front, top taken for {', '.join(self.looks_like)}"
        return f"{words} (fits {self.score:.2f}, as in the header {self.header_score:.2f})"


def better_orientation(scan: torch.Tensor, atlas_image: torch.Tensor) -> Orientation | None:
    """Look for an orientation of the scan that fits the atlas clearly better than the one in its header.

    A body that the header turns is found, as by exchanging left and right as well as front and back. Left and right
    alone are not: a mirrored body looks almost the same. So where a header exchanges front and back alone, the answer
    is that left and right are exchanged as well. It takes about 2 seconds on one core, whatever the image's
    size.

    Args:
        scan: ``(C, *spatial)`` with its affine; its first channel is compared.
        atlas_image: ``(1, *spatial)`` with its affine.

    Returns:
        The better orientation, or with turn 0 the header's; ``None`` where nothing can be told: for 2D images, and
        where there is too little foreground, or nothing that looks like the atlas.

    Example:
        >>> noise = torch.rand(1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
        >>> better_orientation(noise, noise.flip(1, 2).roll(5, 3)) is None  # nothing to be told in noise
        True
    """
    scores = turn_scores(scan, atlas_image)
    best = int(scores.argmax())
    if scores[best] < LOWEST_SCORE:
        return None
    turn = best if scores[best] >= CLEARLY_BETTER * scores[0] else 0
    return Orientation(turn, float(scores[turn]), float(scores[0]))


def turn_scores(scan: torch.Tensor, atlas_image: torch.Tensor) -> np.ndarray:
    """How well the scan fits the atlas after each of :data:`TURNS`.

    Each turned version is registered by a coarse rigid transform with a scale. It counts for the turn nearest to where
    the registration led it. The score is the mutual information where both foregrounds are: over the whole image, it
    is mostly the outline that is compared.

    Returns:
        ``(24,)``, nats; all 0 for 2D images, and where scan or atlas has too little foreground.
    """
    scores = np.zeros(len(TURNS))
    if scan.ndim != 4 or min(*scan.shape[1:], *atlas_image.shape[1:]) < 4:
        return scores
    fixed, moving = _body(scan), _body(atlas_image)
    if fixed is None or moving is None:
        return scores
    moving = moving.padded()
    for turn in TURNS:
        turned = moving.turned(turn)
        transform = _registered(fixed.image, turned.image)
        found = turn @ _to_ras(np.reshape(transform.GetMatrix(), (3, 3)))
        nearest = int(np.einsum("nij,ij->n", TURNS, found).argmax())
        scores[nearest] = max(scores[nearest], _score(fixed, turned, transform))
    return scores


@dataclass(frozen=True, eq=False)
class _Body:
    """An image at the resolution of the comparison, its center in the origin, its radius the unit of length.

    The radius is the root mean square distance of the foreground from its center.
    """

    image: sitk.Image
    mask: sitk.Image  # foreground, 0 to 1

    def turned(self, turn: np.ndarray) -> _Body:
        """Turned from the atlas's directions to those of the scan: the header is changed, no voxel."""
        to_scan = _to_ras(turn).T
        return _Body(*(_moved(image, to_scan) for image in (self.image, self.mask)))

    def padded(self) -> _Body:
        voxels = [round(PADDING * VOXELS_A_RADIUS)] * 3
        image = sitk.ConstantPad(self.image, voxels, voxels, registration.background(self.image))
        return _Body(image, sitk.ConstantPad(self.mask, voxels, voxels, 0.0))


def _body(volume: torch.Tensor) -> _Body | None:
    """The volume at coarse resolution; ``None`` where its foreground is too small."""
    x = volume if isinstance(volume, MetaTensor) else MetaTensor(volume)
    image = sitk.Cast(registration.shrink(to_sitk(x[:1].float(), affine_of(x)), SHRUNK_MM), sitk.sitkFloat32)
    if np.ptp(sitk.GetArrayViewFromImage(image)) == 0:
        return None
    mask = registration.foreground(image)
    indices = np.argwhere(sitk.GetArrayViewFromImage(mask))[:, ::-1]
    if len(indices) < FEWEST_VOXELS:
        return None
    matrix = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    points = indices @ matrix.T + image.GetOrigin()
    center = points.mean(0)
    radius = float(np.sqrt(np.square(points - center).sum(1).mean()))
    coarse = (_coarse(x, radius / VOXELS_A_RADIUS) for x in (image, sitk.Cast(mask, sitk.sitkFloat32)))
    return _Body(*(_moved(x, np.eye(3), center, 1 / radius) for x in coarse))


def _coarse(image: sitk.Image, spacing_mm: float) -> sitk.Image:
    """Smoothed and sampled on a grid of cubes with the image's center and directions."""
    extent = np.array(image.GetSize()) * image.GetSpacing()
    size = np.maximum(4, np.ceil(extent / spacing_mm)).astype(int)
    directions = np.reshape(image.GetDirection(), (3, 3))
    origin = registration.grid_center(image) - directions @ ((size - 1) / 2 * spacing_mm)
    smooth = sitk.SmoothingRecursiveGaussian(image, spacing_mm / 2)
    return sitk.Resample(
        smooth,
        size.tolist(),
        sitk.Transform(3, sitk.sitkIdentity),
        sitk.sitkLinear,
        origin.tolist(),
        [spacing_mm] * 3,
        image.GetDirection(),
        registration.background(image),
        sitk.sitkFloat32,
    )


def _moved(image: sitk.Image, matrix: np.ndarray, center: np.ndarray | None = None, scale: float = 1.0) -> sitk.Image:
    """The same voxels where ``scale * matrix @ (point - center)`` puts them."""
    moved = sitk.Image(image)
    offset = np.array(image.GetOrigin()) - (0 if center is None else center)
    moved.SetOrigin((scale * matrix @ offset).tolist())
    moved.SetSpacing([scale * spacing for spacing in image.GetSpacing()])
    moved.SetDirection((matrix @ np.reshape(image.GetDirection(), (3, 3))).ravel().tolist())
    return moved


def _to_ras(matrix: np.ndarray) -> np.ndarray:
    """From SimpleITK's directions (LPS) to RAS, or back."""
    flip = np.diag([-1.0, -1.0, 1.0])
    return flip @ matrix @ flip


def _registered(fixed: sitk.Image, moving: sitk.Image) -> sitk.Similarity3DTransform:
    """Rotation, translation and scale from where both are; where they started if the optimizer fails."""
    method = registration.mattes(fixed, 0, SAMPLES, BINS)
    voxel = fixed.GetSpacing()[0]
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.6 * voxel,
        minStep=voxel / 25,
        numberOfIterations=ITERATIONS,
        relaxationFactor=0.7,
        gradientMagnitudeTolerance=1e-6,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    transform = sitk.Similarity3DTransform()
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError:
        return sitk.Similarity3DTransform()
    return transform


def _score(fixed: _Body, moving: _Body, transform: sitk.Transform) -> float:
    """Mutual information in nats where both foregrounds are, less what chance makes of so few voxels."""
    warped = registration.resample(moving.image, fixed.image, transform)
    mask = sitk.Resample(moving.mask, fixed.image, transform, sitk.sitkLinear, 0.0)
    both = (sitk.GetArrayViewFromImage(fixed.mask) > 0.5) & (sitk.GetArrayViewFromImage(mask) > 0.5)
    if both.sum() < FEWEST_VOXELS:
        return 0.0
    scan, atlas = (sitk.GetArrayFromImage(image)[both] for image in (fixed.image, warped))
    joint = np.histogram2d(scan, atlas, bins=BINS)[0] / both.sum()
    rows, columns = joint.sum(1, keepdims=True), joint.sum(0, keepdims=True)
    seen = joint > 0
    information = float((joint[seen] * np.log(joint[seen] / (rows * columns)[seen])).sum())
    by_chance = ((rows > 0).sum() - 1) * ((columns > 0).sum() - 1) / (2 * both.sum())
    return max(information - float(by_chance), 0.0)


def constants() -> tuple[object, ...]:
    """What the comparison depends on besides the images: a result kept on disk is found by it."""
    return CLEARLY_BETTER, LOWEST_SCORE, SHRUNK_MM, VOXELS_A_RADIUS, PADDING, BINS, SAMPLES, ITERATIONS, FEWEST_VOXELS
