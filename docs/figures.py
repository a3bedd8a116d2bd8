"""Draws docs/images/network.svg and sweep.svg for the page of concepts: python docs/figures.py (needs `.[atlases]`)."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import FancyBboxPatch, Rectangle

from monai_lcs.atlas import named_atlas

IMAGES = Path(__file__).parent / "images"
GREY, BLUE, ORANGE, GREEN = "#e6e6e6", "#b9d3ee", "#fbd0a4", "#c5e3c0"
SHOWN = {"Left-Putamen": "#e4572e", "Left-Thalamus": "#2e86ab", "ctx-lh-insula": "#f3a712"}
MARGIN_VOXELS = 6  # of 1 mm, as `margin_mm` of the bundle


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str = "", color: str = GREY) -> None:
    """A rounded box; its text in the middle."""
    style = "round,pad=0,rounding_size=0.06"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=color, edgecolor="#444", lw=1))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], style: str = "-") -> None:
    """An arrow from one point to another."""
    line = {"arrowstyle": "->", "color": "#444", "lw": 1.1, "linestyle": style}
    axes.annotate("", xy=end, xytext=start, arrowprops=line)


def network(axes: Axes) -> None:
    """The network: the scan is encoded once, the label enters at every level of the decoder."""
    levels, step = 4, 0.8
    axes.set(xlim=(-1.6, 10.7), ylim=(-0.2, 4.05))
    box(axes, -1.5, 3.0, 1.25, 0.55, "scan", GREY)
    arrow(axes, (-0.25, 3.27), (0.35, 3.27))
    for level in range(levels):
        y, width = 3.0 - level * step, 1.5
        left, right = 0.4 + 0.55 * level, 6.0 - 0.55 * level
        if level < levels - 1:
            box(axes, left, y, width, 0.55, f"encoder {level}", BLUE)
            box(axes, right, y, width, 0.55, f"decoder {level}", ORANGE)
            arrow(axes, (left + width, y + 0.27), (right, y + 0.27), "--")
            arrow(axes, (left + width / 2, y), (left + 0.55 + width / 2, y - step + 0.55))
            arrow(axes, (right - 0.55 + width / 2, y - step + 0.55), (right + width / 2, y))
            arrow(axes, (8.9, y + 0.27), (right + width, y + 0.27))
        else:
            box(axes, left, y, right + width - left, 0.55, "bottleneck", ORANGE)
            arrow(axes, (8.9, y + 0.27), (right + width, y + 0.27))
    box(axes, 8.9, 0.6, 1.75, 2.95, "atlas image\nand\natlas mask\nof one label,\npooled to\neach level", GREEN)
    arrow(axes, (6.75, 3.55), (6.75, 3.72))
    axes.text(6.75, 3.78, "one channel: this label", ha="center", va="bottom", fontsize=9)
    axes.text(2.2, 0.05, "once for each scan", ha="center", color="#34618f", fontsize=10)
    axes.text(6.4, 0.05, "once for each label, in its box", ha="center", color="#a8641b", fontsize=10)


def crop(ids: np.ndarray, chosen: int) -> tuple[slice, slice]:
    """The box of a label of a slice, grown by the margin."""
    spans = ((index.min() - MARGIN_VOXELS, index.max() + 1 + MARGIN_VOXELS) for index in np.nonzero(ids == chosen))
    first, second = (slice(max(0, start), stop) for start, stop in spans)
    return first, second


def paint(axes: Axes, grey: np.ndarray, masks: dict[str, np.ndarray], title: str = "") -> None:
    """A slice with masks in colors."""
    axes.imshow(grey.T, origin="lower", cmap="gray")
    for color, mask in masks.items():
        axes.imshow(np.where(mask[..., None], to_rgba(color, 0.75), 0.0).transpose(1, 0, 2), origin="lower")
    axes.set_title(title, fontsize=9)


def sweep(figure: plt.Figure) -> None:
    """The sweep: labels one by one, each in its box, merged into one label map."""
    atlas = named_atlas("desikan-killiany")
    ids = {name: atlas.table.select(name)[0] for name in SHOWN}
    volume, labels = (np.asarray(one[0]) for one in (atlas.image, atlas.label_map))
    height = int(np.argwhere(labels == ids["Left-Putamen"])[:, 2].mean())
    body = tuple(slice(span.min() - 2, span.max() + 3) for span in np.nonzero(volume[..., height]))
    grey, label_map = volume[..., height][body], labels[..., height][body]
    grid = figure.add_gridspec(len(SHOWN), 3, width_ratios=(1.25, 0.8, 1.25), hspace=0.35, wspace=0.12)
    scan = figure.add_subplot(grid[:, 0])
    paint(scan, grey, {}, "the scan is encoded once;\nthe aligned atlas says where labels can be")
    for row, (name, color) in enumerate(SHOWN.items()):
        part = crop(label_map, ids[name])
        corner, size = [part[i].start for i in (0, 1)], [part[i].stop - part[i].start for i in (0, 1)]
        scan.add_patch(Rectangle(corner, *size, fill=False, edgecolor=color, lw=1.8))
        title = name if row else f"each label is decoded in its box\n{name}"
        paint(figure.add_subplot(grid[row, 1]), grey[part], {color: (label_map == ids[name])[part]}, title)
    merged = {color: label_map == ids[name] for name, color in SHOWN.items()}
    title = "the best label of each voxel is kept;\na finished label is forgotten"
    paint(figure.add_subplot(grid[:, 2]), grey, merged, title)
    for axes in figure.axes:
        axes.set_axis_off()


def main() -> None:
    """Draw both."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    plt.switch_backend("Agg")
    plt.rcParams["svg.hashsalt"] = "monai_lcs"  # the same file every time
    figure, axes = plt.subplots(figsize=(9.5, 3.6))
    axes.set_axis_off()
    network(axes)
    save(figure, "network")
    figure = plt.figure(figsize=(9.5, 4.2))
    sweep(figure)
    save(figure, "sweep")


def save(figure: plt.Figure, name: str) -> None:
    """Write a figure without the date."""
    figure.savefig(IMAGES / f"{name}.svg", bbox_inches="tight", metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
