"""Pictures of results, for a quick look."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import NdarrayOrTensor, PathLike
from monai.transforms.utils import generate_spatial_bounding_box
from monai.utils import convert_to_numpy, look_up_option
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from monai_lcs.files import check_absent, write_atomically
from monai_lcs.labels import LabelTable
from monai_lcs.labels.label_map import as_label_array, check_known

__all__ = ["qc_picture", "require_matplotlib"]


def qc_picture(
    image: NdarrayOrTensor,
    label_map: NdarrayOrTensor,
    table: LabelTable,
    path: PathLike,
    affine: NdarrayOrTensor | None = None,
    convention: str = "radiological",
    title: str = "",
    overwrite: bool = False,
) -> None:
    """Draws a segmentation for a quick look: three planes of the image with the outlines of the labels.

    The planes go through the labels' center of mass (the middle of the image if there are no labels), along the axes
    of the grid that are closest to left-right, posterior-anterior and inferior-superior; an oblique image is not
    resampled. Distances are to scale whatever the voxel size.

    Args:
        image: `(1, *spatial)`, three dimensions.
        label_map: integers `(1, *spatial)` on the same grid; 0 is background.
        table: names the color of each label.
        path: the file to write, `.png` or another format of matplotlib.
        affine: `(4, 4)`, voxels to mm in RAS orientation. Default: that of `image`, a MetaTensor.
        convention: `"radiological"`, the patient's left on the right of the picture, or `"neurological"`. Stated on
            the picture.
        title: a line above the planes.
        overwrite: whether an existing file may be replaced.

    Raises:
        ValueError: if the shapes are not as above, or the label map holds ids that are not in the table.
        FileExistsError: if the file exists and is not to be overwritten.
        ImportError: if matplotlib is not installed.
    """
    path = Path(path)
    check_absent([path], overwrite)
    flip = look_up_option(convention, ("radiological", "neurological")) == "radiological"
    if image.ndim != 4 or image.shape[0] != 1 or image.shape != label_map.shape:
        raise ValueError(
            "`image` and `label_map` must be (1, *spatial) with three dimensions, "
            f"got {tuple(image.shape)} and {tuple(label_map.shape)}."
        )
    affine = convert_to_numpy(getattr(image, "affine", None) if affine is None else affine)
    if affine is None or affine.shape != (4, 4):
        raise ValueError("`affine` must be (4, 4) unless `image` is a MetaTensor.")
    grey, labels, affine = _to_ras(convert_to_numpy(image)[0], as_label_array(label_map)[0], affine)
    check_known(np.unique(labels), table)
    black, white = _grey_window(grey)
    shown = (labels > 0) | (grey > black + 0.1 * (white - black))
    if shown.any():  # not the empty margins
        start, end = generate_spatial_bounding_box(shown[None], margin=2, allow_smaller=True)
        grey, labels = (volume[tuple(map(slice, start, end))] for volume in (grey, labels))
        affine[:3, 3] += affine[:3, :3] @ start
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    size = np.array(labels.shape) * spacing
    center = np.argwhere(labels).mean(0) if labels.any() else (np.array(labels.shape) - 1) / 2
    index = np.rint(center).astype(int)
    position = affine @ [*index, 1]

    sides = ("R", "L") if flip else ("L", "R")
    # name, normal axis, axes drawn to the right and upward, what is at either end of the first
    planes = [("sagittal x", 0, 1, 2, ("P", "A")), ("coronal y", 1, 0, 2, sides), ("axial z", 2, 0, 1, sides)]
    widths = [size[right] for _, _, right, _, _ in planes]
    planes_height = 12 * max(size[up] for _, _, _, up, _ in planes) / sum(widths)  # inches, as what follows
    head, foot = 0.65, 0.35
    height = head + planes_height + foot
    # Not pyplot, which has a backend and a current figure for the whole process.
    figure = _matplotlib("matplotlib.figure").Figure(figsize=(12.3, height), facecolor="black", dpi=150)
    _matplotlib("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1, 3, width_ratios=widths, wspace=0.02)
    grid.update(left=0.012, right=0.988, bottom=foot / height, top=1 - head / height)
    for column, (name, normal, right, up, ends) in enumerate(planes):
        pixels = [volume.take(index[normal], normal).T for volume in (grey, labels)]
        if flip and right == 0:
            pixels = [array[:, ::-1] for array in pixels]
        axes = figure.add_subplot(grid[column])
        _draw_plane(axes, pixels[0], pixels[1], spacing[[right, up]], table, black, white)
        for x, text in zip((0.03, 0.97), ends, strict=True):
            where = {"transform": axes.transAxes, "ha": "center", "va": "top"}
            axes.text(x, 0.97, text, where, color="white", fontsize=13, fontweight="bold")
        box = axes.get_position(original=True)
        heading = f"{name} = {position[normal]:.0f} mm"
        figure.text((box.x0 + box.x1) / 2, box.y1 + 0.05 / height, heading, color="0.75", fontsize=10, ha="center")

    note = f"{convention} convention: the patient's left is on the {'right' if flip else 'left'} of the picture"
    figure.text(0.5, 0.1 / height, note, color="0.75", fontsize=9, ha="center", va="bottom")
    figure.text(0.5, 1 - 0.08 / height, title, color="white", fontsize=12, ha="center", va="top", parse_math=False)
    write_atomically(path, figure.savefig)


def _draw_plane(
    axes: Any, grey: np.ndarray, labels: np.ndarray, spacing: np.ndarray, table: LabelTable, black: float, white: float
) -> None:
    """Draws the pixels `(rows from the bottom up, columns)` of a plane; `spacing` is in mm to the right and upward."""
    height, width = labels.shape
    extent = (0.0, width * spacing[0], 0.0, height * spacing[1])
    axes.imshow(grey, "gray", vmin=black, vmax=white, origin="lower", extent=extent, interpolation="bilinear")
    # One voxel of background all around closes the outlines of labels that the edge of the image cuts.
    labels = np.pad(labels, 1)
    x, y = ((np.arange(n + 2) - 0.5) * mm for n, mm in zip((width, height), spacing, strict=True))
    for id in np.unique(labels[labels > 0]).tolist():
        color = tuple(part / 255 for part in table[id].color)
        axes.contour(x, y, labels == id, levels=[0.5], colors=[color], linewidths=0.9)
    axes.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
    axes.set_axis_off()


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
        raise ImportError('Pictures need matplotlib: pip install "monai-lcs[bundle]", or set picture=False.') from error


def _to_ras(image: np.ndarray, labels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flips and permutes the axes to those closest to left-right, posterior-anterior and inferior-superior."""
    orientation = io_orientation(affine)
    affine = affine @ inv_ornt_aff(orientation, image.shape)
    return apply_orientation(image, orientation), apply_orientation(labels, orientation), affine


def _grey_window(image: np.ndarray) -> tuple[float, float]:
    """Intensities shown black and white: percentiles of all but the lowest value, which is background."""
    values = image[np.isfinite(image)]
    values = values[values > values.min()] if values.size else values
    low, high = np.percentile(values, (1, 99.5)) if values.size else (0.0, 1.0)
    # Some room above, so that light outlines stand out against the brightest tissue.
    return float(low), float(low + 1.2 * max(high - low, 1e-6))
