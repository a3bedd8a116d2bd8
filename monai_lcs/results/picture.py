"""Draws pictures of segmentations for a quick look."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from monai.config import NdarrayOrTensor, PathLike
from monai.utils import convert_to_numpy, look_up_option

from monai_lcs.boxes import grow_box
from monai_lcs.files import check_absent, write_atomically
from monai_lcs.grids import upright
from monai_lcs.labels import LabelTable, present_labels
from monai_lcs.labels.label_map import as_label_array, check_known

__all__ = ["qc_picture", "require_matplotlib"]

_MOST_VALUES = 1 << 22
"""About as many voxels, evenly spaced, say which intensities are shown black and white."""


@dataclass(frozen=True)
class _View:
    """What is drawn: a part of the image and its label map, with axes closest to those of RAS.

    Attributes:
        grey: intensities ``(x, y, z)``.
        labels: ids of the same shape.
        affine: ``(4, 4)``, voxels of this part to mm.
        window: the intensities shown black and white.
        brain: the mask of the brain; all False where it is not known.
    """

    grey: np.ndarray
    labels: np.ndarray
    affine: np.ndarray
    window: tuple[float, float]
    brain: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        """Size of a voxel in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def size(self) -> np.ndarray:
        """Size in mm."""
        return np.array(self.labels.shape) * self.spacing

    @cached_property
    def center(self) -> np.ndarray:
        """Index of the voxel at the labels' center of mass, of the middle if there are no labels."""
        counts = _counts(self.labels.shape, lambda x: self.labels[x] > 0)
        means = [np.average(range(len(n)), weights=n if n.any() else None) for n in counts]
        return np.rint(means).astype(int)


class _Plane(NamedTuple):
    """A plane of the picture: its name, its normal axis, the axes drawn to the right and upward, and its two sides."""

    name: str
    normal: int
    right: int
    up: int
    sides: tuple[str, str]


def qc_picture(
    image: NdarrayOrTensor,
    label_map: NdarrayOrTensor,
    table: LabelTable,
    path: PathLike,
    affine: NdarrayOrTensor | None = None,
    convention: str = "radiological",
    title: str = "",
    overwrite: bool = False,
    unsure: Collection[int] = (),
    brain_mask: NdarrayOrTensor | None = None,
) -> None:
    """Draws a segmentation for a quick look: three planes of the image with the outlines of the labels.

    The planes go through the labels' center of mass, or through the middle of the image if there are no labels. They
    follow the axes of the grid that are closest to left-right, posterior-anterior and inferior-superior: an oblique
    image is not resampled. Distances are to scale for any voxel size.

    Args:
        image: ``(1, *spatial)``, three dimensions.
        label_map: integers ``(1, *spatial)`` on the same grid; 0 is background.
        table: has the color of each label.
        path: the file to write, ``.png`` or another format of matplotlib.
        affine: ``(4, 4)``, voxels to mm in RAS orientation. Default: that of ``image``, a MetaTensor.
        convention: ``"radiological"``, which shows the patient's left on the right of the picture, or
            ``"neurological"``. The picture states it.
        title: a line above the planes.
        overwrite: whether to replace an existing file.
        unsure: labels whose outlines are dashed, as a note says: look there first.
        brain_mask: ``(1, *spatial)``, not 0 in the brain: its outline is drawn white.

    Raises:
        ValueError: if the shapes are not as above, or the label map holds ids that are not in the table.
        FileExistsError: if the file exists and ``overwrite`` is False.
        ImportError: if matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> labels = np.zeros((1, 8, 8, 8), int)
        >>> labels[:, 2:5, 3:6, 2:7] = 4
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     qc_picture(labels * 100.0, labels, LabelTable.from_ids([4]), f"{folder}/qc.png", np.eye(4))
        ...     Path(folder, "qc.png").exists()
        True
    """
    path = Path(path)
    check_absent([path], overwrite)
    convention = look_up_option(convention, ("radiological", "neurological"))
    _check_shapes(image, label_map)
    view = _view(image, label_map, table, _affine_in_use(image, affine), brain_mask)
    figure = _draw(view, table, convention, title, unsure)
    write_atomically(path, figure.savefig)


def _check_shapes(image: NdarrayOrTensor, label_map: NdarrayOrTensor) -> None:
    """Both must be single 3D volumes of the same shape."""
    if image.ndim != 4 or image.shape[0] != 1 or image.shape != label_map.shape:
        raise ValueError(
            "`image` and `label_map` must be (1, *spatial) with three dimensions, "
            f"got {tuple(image.shape)} and {tuple(label_map.shape)}."
        )


def _affine_in_use(image: NdarrayOrTensor, affine: NdarrayOrTensor | None) -> np.ndarray:
    """Returns the given affine, or that of the image."""
    in_use = getattr(image, "affine", None) if affine is None else affine
    if in_use is None or tuple(in_use.shape) != (4, 4):
        raise ValueError("`affine` must be (4, 4) unless `image` is a MetaTensor.")
    return np.asarray(convert_to_numpy(in_use))


# ---- what is drawn


def _view(
    image: NdarrayOrTensor,
    label_map: NdarrayOrTensor,
    table: LabelTable,
    affine: np.ndarray,
    brain_mask: NdarrayOrTensor | None,
) -> _View:
    """Turns the volumes to RAS, and crops empty margins."""
    grey, _ = upright(convert_to_numpy(image)[0], affine)
    ids = as_label_array(label_map)[0]
    mask = np.zeros((1,) * 3, bool) if brain_mask is None else convert_to_numpy(brain_mask)[0] != 0
    brain, _ = upright(np.broadcast_to(mask, ids.shape), affine)
    labels, affine = upright(ids, affine)
    check_known(np.array(present_labels(label_map)), table)
    black, white = _grey_window(grey)
    counts = _counts(grey.shape, lambda x: (labels[x] > 0) | (grey[x] > black + 0.1 * (white - black)))
    if counts[0].any():
        ends = [np.flatnonzero(n)[[0, -1]].tolist() for n in counts]
        box = grow_box(tuple(slice(first, last + 1) for first, last in ends), (2, 2, 2), grey.shape)
        grey, labels, brain = (volume[box] for volume in (grey, labels, brain))
        affine[:3, 3] += affine[:3, :3] @ [axis.start for axis in box]
    return _View(grey, labels, affine, (black, white), brain)


def _counts(shape: Sequence[int], inside: Callable[[int], np.ndarray]) -> list[np.ndarray]:
    """Counts the voxels of a mask in each plane along each axis; ``inside`` gives the mask a plane at a time."""
    counts = [np.zeros(size, dtype=int) for size in shape]
    for x in range(shape[0]):
        plane = inside(x)
        counts[0][x] = plane.sum()
        counts[1] += plane.sum(axis=1)
        counts[2] += plane.sum(axis=0)
    return counts


def _grey_window(image: np.ndarray) -> tuple[float, float]:
    """Returns the intensities shown black and white: percentiles of all but the lowest value, which is background."""
    step = math.ceil((image.size / _MOST_VALUES) ** (1 / 3))
    image = image[::step, ::step, ::step]
    values = image[np.isfinite(image)]
    values = values[values > values.min()] if values.size else values
    low, high = np.percentile(values, (1, 99.5)) if values.size else (0.0, 1.0)
    # Some room above, so that light outlines stand out against the brightest tissue.
    return float(low), float(low + 1.2 * max(high - low, 1e-6))


# ---- the figure


def _draw(view: _View, table: LabelTable, convention: str, title: str, unsure: Collection[int]) -> Any:
    """Draws the planes side by side, with the title above and the convention below."""
    flip = convention == "radiological"
    sides = ("R", "L") if flip else ("L", "R")
    planes = (
        _Plane("sagittal x", 0, 1, 2, ("P", "A")),
        _Plane("coronal y", 1, 0, 2, sides),
        _Plane("axial z", 2, 0, 1, sides),
    )
    widths = [view.size[plane.right] for plane in planes]
    planes_height = 12 * max(view.size[plane.up] for plane in planes) / sum(widths)  # inches, as what follows
    head, foot = 0.65, 0.35
    height = head + planes_height + foot
    # Not pyplot, which has a backend and a current figure for the whole process.
    figure = _matplotlib("matplotlib.figure").Figure(figsize=(12.3, height), facecolor="black", dpi=150)
    _matplotlib("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1, 3, width_ratios=widths, wspace=0.02)
    grid.update(left=0.012, right=0.988, bottom=foot / height, top=1 - head / height)
    for column, plane in enumerate(planes):
        axes = figure.add_subplot(grid[column])
        _draw_plane(axes, view, plane, table, flip, unsure)
        _write_sides(axes, plane.sides)
        _write_position(figure, axes, plane, view, height)

    note = f"{convention} convention: the patient's left is on the {'right' if flip else 'left'} of the picture"
    if unsure:
        note += f"; dashed: {len(unsure)} label{'s' * (len(unsure) != 1)} of low confidence"
    note += "; dotted: the mask of the brain" if view.brain.any() else ""
    figure.text(0.5, 0.1 / height, note, color="0.75", fontsize=9, ha="center", va="bottom")
    figure.text(0.5, 1 - 0.08 / height, title, color="white", fontsize=12, ha="center", va="top", parse_math=False)
    return figure


def _draw_plane(axes: Any, view: _View, plane: _Plane, table: LabelTable, flip: bool, unsure: Collection[int]) -> None:
    """Draws the image and the outlines of its labels; ``flip`` shows the patient's left on the right."""
    # rows from the bottom up, columns
    volumes = (view.grey, view.labels, view.brain)
    grey, labels, brain = (volume.take(view.center[plane.normal], plane.normal).T for volume in volumes)
    if flip and plane.right == 0:
        grey, labels, brain = grey[:, ::-1], labels[:, ::-1], brain[:, ::-1]
    right_mm, up_mm = view.spacing[[plane.right, plane.up]]
    height, width = labels.shape
    extent = (0.0, width * right_mm, 0.0, height * up_mm)
    black, white = view.window
    axes.imshow(grey, "gray", vmin=black, vmax=white, origin="lower", extent=extent, interpolation="bilinear")
    # One voxel of background all around closes the outlines of labels that the edge of the image cuts.
    labels, brain = np.pad(labels, 1), np.pad(brain, 1)
    x, y = ((np.arange(n + 2) - 0.5) * mm for n, mm in ((width, right_mm), (height, up_mm)))
    if brain.any():
        axes.contour(x, y, brain, levels=[0.5], colors="white", linewidths=0.9, linestyles="dotted")
    for id in np.unique(labels[labels > 0]).tolist():
        color = tuple(part / 255 for part in table[id].color)
        style = {"linewidths": 0.9, "linestyles": "dashed" if id in unsure else "solid"}
        axes.contour(x, y, labels == id, levels=[0.5], colors=[color], **style)
    axes.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
    axes.set_axis_off()


def _write_sides(axes: Any, sides: tuple[str, str]) -> None:
    """Writes which side of the patient is on the left and on the right of a plane."""
    for x, text in zip((0.03, 0.97), sides, strict=True):
        where = {"transform": axes.transAxes, "ha": "center", "va": "top"}
        axes.text(x, 0.97, text, where, color="white", fontsize=13, fontweight="bold")


def _write_position(figure: Any, axes: Any, plane: _Plane, view: _View, height: float) -> None:
    """Writes the name and the position of a plane above it; ``height`` is that of the figure in inches."""
    position = view.affine @ [*view.center, 1]
    box = axes.get_position(original=True)
    heading = f"{plane.name} = {position[plane.normal]:.0f} mm"
    figure.text((box.x0 + box.x1) / 2, box.y1 + 0.05 / height, heading, color="0.75", fontsize=10, ha="center")


# ---- matplotlib


def require_matplotlib() -> None:
    """Makes sure that matplotlib, which only the pictures need, is installed.

    Raises:
        ImportError: naming the extra to install, if it is not.

    Example:
        >>> require_matplotlib()
    """
    _matplotlib("matplotlib")


def _matplotlib(module: str) -> Any:
    """Imports a module of matplotlib."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            "Pictures need matplotlib: pip install matplotlib, or draw none (picture=False, --no-picture)."
        ) from error
