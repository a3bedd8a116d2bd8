"""Compares ways to carry labels from the network's grid to that of the scan: Dice by size of label, labels lost, cost.

    python benchmarks/thin_labels.py SCAN TRUTH [SCAN TRUTH ...] [--cache FOLDER] [--grids thick own fine]

Each scan is acquired anew on each grid: ``thick`` has slices of 3 mm, turned by 20 degrees about each axis, whose
intensities are means over their thickness; ``fine`` has voxels of 0.7 mm; ``own`` is the scan itself. There the truth
of a voxel is the label that has most of it. The network answers for all labels, no propagated mask does. Its
probabilities are kept, and then each way makes a label map of them, in a process of its own. The first rows of a grid
carry the truth itself: the probability of a label is its share of the network's voxel. What these rows lose, the way
loses.

A label is as large as in the scan's own truth. ``volume off`` is the mean over labels of how far the volume lies from
that, in percent. ``seconds`` are those of one processor, from probabilities to the label map, and ``MB`` is by how much
the memory grew at most, for one scan.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation
from torch import Tensor

from monai_lcs import Segmenter, named_atlas
from monai_lcs.boxes import Box, crop, grow_box, label_boxes, mask_box, size_of, slabs_of, whole_box
from monai_lcs.grids import affine_of, resample
from monai_lcs.inferers.merger import BestLabelMerger, FineLabelMerger, ScanLabelMerger
from monai_lcs.labels.groups import label_sizes
from monai_lcs.metrics import label_dice
from monai_lcs.pipeline import shipped_weights
from monai_lcs.study.checks import read_label_map, read_scan

SIZES = [0, 300, 1000, 3000, 10_000, np.inf]  # mm3
PROFILE = 6  # points over the thickness of a slice
TRUTH_POINTS_MM = 0.34


@dataclass(frozen=True)
class Grid:
    """A grid of voxels."""

    shape: tuple[int, ...]
    affine: np.ndarray

    def part(self, box: Box) -> Grid:
        moved = self.affine.copy()
        moved[:3, 3] = (self.affine @ [*(axis.start for axis in box), 1])[:3]
        return Grid(size_of(box), moved)

    def finer(self, points: tuple[int, ...]) -> Grid:
        """So many points along each axis where there was a voxel, spread evenly over it."""
        to_voxel = np.diag([*(1 / np.array(points)), 1.0])
        to_voxel[:3, 3] = (1 / np.array(points) - 1) / 2
        return Grid(tuple(int(n * p) for n, p in zip(self.shape, points, strict=True)), self.affine @ to_voxel)

    def meets(self, other: Grid) -> Box:
        """The box of this grid in which points of another may be interpolated."""
        corners = np.array([[*corner, 1] for corner in product(*((-1, n) for n in other.shape))]).T
        indices = (np.linalg.solve(self.affine, other.affine) @ corners)[:3]
        low, high = np.floor(indices.min(axis=1)).astype(int), np.ceil(indices.max(axis=1)).astype(int) + 1
        return tuple(slice(max(a, 0), max(min(b, n), max(a, 0))) for a, b, n in zip(low, high, self.shape, strict=True))

    def points(self, mm: float) -> tuple[int, ...]:
        """How many points along each axis of a voxel, an odd number, lie about so far apart."""
        size = np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(2 * round((float(ratio) - 1) / 2) + 1 if ratio > 1 else 1 for ratio in size / mm)


@dataclass(frozen=True)
class Answer:
    """Probabilities on the network's grid, each label's in a box, ids ascending."""

    grid: Grid
    parts: list[tuple[int, Tensor, Box]]

    @property
    def labels(self) -> list[int]:
        return [label for label, _, _ in self.parts]


# ---- the ways -------------------------------------------------------------------------------------------------------


def nearest(answer: Answer, target: Grid) -> Tensor:
    """The best label on the network's grid, then nearest neighbor."""
    return sampled(merged(answer, 1), target)


def finer_nearest(answer: Answer, target: Grid) -> Tensor:
    """The best label on a grid twice as fine, then nearest neighbor."""
    return sampled(merged(answer, 2), target)


def thrice_nearest(answer: Answer, target: Grid) -> Tensor:
    """The best label on a grid three times as fine, then nearest neighbor."""
    return sampled(merged(answer, 3), target)


def finer_most(answer: Answer, target: Grid) -> Tensor:
    """The best label on a grid twice as fine, then the label that has most of the voxel."""
    return most_of_each(merged(answer, 2), target)


def finer_linear(answer: Answer, target: Grid) -> Tensor:
    """The best label on a grid twice as fine, then the label with the most weight in linear interpolation."""
    return most_weight(merged(answer, 2), target)


def linear(answer: Answer, target: Grid) -> Tensor:
    """Each label's probability interpolated at the middle of the voxel, then the best label."""
    to_network = np.linalg.solve(answer.grid.affine, target.affine)
    return merged_by(ScanLabelMerger(answer.labels, answer.grid.shape, target.shape, to_network), answer)


def linear_mean(answer: Answer, target: Grid) -> Tensor:
    """The mean of each label's interpolated probability over the voxel, then the best label."""
    half = np.linalg.norm(answer.grid.affine[:3, :3], axis=0).min() / 2
    return best_of_means(answer, target, target.points(half))


WAYS: dict[str, Callable[[Answer, Grid], Tensor]] = {
    "nearest": nearest,
    "finer merge, nearest": finer_nearest,
    "merge three times as fine, nearest": thrice_nearest,
    "finer merge, most of the voxel": finer_most,
    "finer merge, linear": finer_linear,
    "linear per label": linear,
    "linear per label, mean over the voxel": linear_mean,
}


def merged(answer: Answer, factor: int) -> MetaTensor:
    """The label map on a grid ``factor`` times as fine as the network's."""
    shape = answer.grid.shape
    merger = BestLabelMerger(answer.labels, shape) if factor == 1 else FineLabelMerger(answer.labels, shape, factor)
    affine = answer.grid.affine @ np.diag([*[1 / factor] * 3, 1])
    return MetaTensor(merged_by(merger, answer)[None], affine=torch.as_tensor(affine))


def merged_by(merger: BestLabelMerger | FineLabelMerger, answer: Answer) -> Tensor:
    for label, probability, box in answer.parts:
        merger.aggregate(label, torch.logit(probability), box)
    return merger.finalize()


def sampled(label_map: MetaTensor, target: Grid) -> Tensor:
    return resample(label_map, target.shape, target.affine, "nearest", outside=0)[0]


def most_of_each(label_map: MetaTensor, target: Grid, mm: float | None = None) -> Tensor:
    """The label with the most points of each voxel, about ``mm`` apart, by default as far as voxels of the map."""
    own = float(np.linalg.norm(affine_of(label_map)[:3, :3], axis=0).min())
    points = target.points(mm or own)
    result = torch.empty(target.shape, dtype=torch.int32)
    for slab in slabs_of(whole_box(target.shape), (1 << 22) / np.prod(points)):
        result[slab] = most_frequent(blocks(sampled(label_map, target.part(slab).finer(points)), points))
    return result


def most_weight(label_map: MetaTensor, target: Grid) -> Tensor:
    """The label to which linear interpolation of the masks of all labels gives the most."""
    ids = torch.nn.functional.pad(label_map.as_tensor()[0], [1] * 6)
    to_map = torch.as_tensor(np.linalg.solve(affine_of(label_map), target.affine))
    result = torch.zeros(target.shape, dtype=torch.int32)
    for slab in slabs_of(whole_box(target.shape), 1 << 18):
        points = torch.stack(torch.meshgrid(*(torch.arange(s.start, s.stop) for s in slab), indexing="ij")).flatten(1)
        at = to_map[:3, :3] @ points.double() + to_map[:3, 3:] + 1
        low = at.floor()
        part, corners, weights = (at - low).float(), [], []
        for corner in product((0, 1), repeat=3):
            index = (low.long() + torch.tensor(corner)[:, None]).clamp(min=0)
            corners.append(ids[tuple(i.clamp(max=n - 1) for i, n in zip(index, ids.shape, strict=True))])
            weights.append(torch.stack([part[i] if c else 1 - part[i] for i, c in enumerate(corner)]).prod(dim=0))
        near, weight = torch.stack(corners), torch.stack(weights)
        found = near[0].clone()
        mixed = (near != found).any(dim=0)
        near, weight = near[:, mixed], weight[:, mixed]
        near, order = near.sort(dim=0)
        weight = weight.gather(0, order)
        total = torch.stack([(weight * (near == one)).sum(dim=0) for one in near])
        found[mixed] = near.gather(0, total.argmax(dim=0, keepdim=True))[0]
        result[slab] = found.reshape(result[slab].shape)
    return result


def blocks(values: Tensor, points: tuple[int, ...]) -> Tensor:
    """Points ``(x * p, y * q, z * r)`` as ``(p * q * r, x, y, z)``."""
    pairs = [n for size, p in zip(values.shape, points, strict=True) for n in (size // p, p)]
    return values.reshape(pairs).permute(1, 3, 5, 0, 2, 4).flatten(0, 2)


def most_frequent(samples: Tensor) -> Tensor:
    """The most frequent of the samples ``(n, *spatial)``; of several the smallest."""
    most = samples[0].clone()
    mixed = (samples != most).any(dim=0)
    ordered = samples[:, mixed].sort(dim=0).values
    found, count, run = ordered[0].clone(), torch.ones_like(ordered[0]), torch.ones_like(ordered[0])
    for before, now in pairwise(ordered):
        run = torch.where(now == before, run + 1, 1)
        found = torch.where(run > count, now, found)
        count = torch.maximum(count, run)
    most[mixed] = found
    return most


def best_of_means(answer: Answer, target: Grid, points: tuple[int, ...]) -> Tensor:
    """The label whose interpolated probability is largest in the mean over the points of each voxel."""
    best, ids = torch.zeros(target.shape), torch.zeros(target.shape, dtype=torch.int32)
    other = torch.ones(answer.grid.shape)  # what the best label leaves to the background
    for label, probability, box in answer.parts:
        other[box] = torch.minimum(other[box], 1 - probability)
        part = answer.grid.part(box)
        where = target.meets(part)
        if 0 not in size_of(where):
            values = means(probability, part, target.part(where), points, 0)
            better = values > best[where]
            ids[where].masked_fill_(better, label)
            best[where] = torch.maximum(best[where], values)
    background = means(other, answer.grid, target, points, 1)
    return ids.masked_fill_(best <= background, 0)


def means(values: Tensor, grid: Grid, target: Grid, points: tuple[int, ...], outside: float) -> Tensor:
    volume, fine = MetaTensor(values[None], affine=torch.as_tensor(grid.affine)), target.finer(points)
    found = resample(volume, fine.shape, fine.affine, outside=outside)
    return torch.nn.functional.avg_pool3d(found[None], points)[0, 0]


# ---- what they are given --------------------------------------------------------------------------------------------


def grid_of(name: str, scan: MetaTensor) -> Grid:
    """The grid of an acquisition; a turned one holds the scan's brain."""
    own = Grid(tuple(scan.shape[1:]), affine_of(scan))
    if name == "own":
        return own
    mm, degrees = {"thick": ([1, 1, 3], 20), "fine": ([0.7] * 3, 0)}[name]
    turned = np.eye(4)
    direction = own.affine[:3, :3] / np.linalg.norm(own.affine[:3, :3], axis=0)
    turned[:3, :3] = Rotation.from_euler("xyz", [degrees, -degrees, degrees], degrees=True).as_matrix() @ direction * mm
    inside = mask_box(scan.as_tensor()[0] > 0)
    assert inside is not None
    corners = np.array([[*corner, 1] for corner in product(*((axis.start, axis.stop - 1) for axis in inside))]).T
    indices = (np.linalg.solve(turned, own.affine) @ corners)[:3]
    low, high = indices.min(axis=1) - 2, indices.max(axis=1) + 2
    turned[:3, 3] = turned[:3, :3] @ low
    return Grid(tuple(int(n) for n in np.ceil(high - low) + 1), turned)


def acquired(scan: MetaTensor, grid: Grid) -> MetaTensor:
    """The scan on another grid: the mean over the thickness of its slices."""
    size = np.linalg.norm(grid.affine[:3, :3], axis=0)
    points = tuple(PROFILE if mm > 1.5 * size.min() else 1 for mm in size)
    values = means(scan.as_tensor()[0], Grid(tuple(scan.shape[1:]), affine_of(scan)), grid, points, 0)
    return MetaTensor(values[None], affine=torch.as_tensor(grid.affine))


def answered(segmenter: Segmenter, image: MetaTensor) -> tuple[Answer, Grid]:
    """The network's probabilities of all labels, on the grid that it sees."""
    scan = segmenter.prepare(image)
    parts: list[tuple[int, Tensor, Box]] = []
    grids = []

    def keep(label: int, probability: MetaTensor) -> None:
        values = probability.as_tensor()[0]
        box = mask_box(values > 0)
        if box is not None:
            parts.append((label, crop(values, box).clone(), box))
        grids.append(Grid(tuple(values.shape), affine_of(probability)))

    segmenter.predict(scan, segmenter.align(scan), segmenter.request(), on_probability=keep)
    return Answer(grids[0], sorted(parts, key=lambda part: part[0])), grids[0]


def shares_of(truth: MetaTensor, grid: Grid, labels: list[int]) -> Answer:
    """The share that each true label has of the voxels of a grid."""
    parts = []
    size = np.linalg.norm(grid.affine[:3, :3], axis=0)
    points = tuple(2 * round(float(mm) / TRUTH_POINTS_MM / 2) + 1 for mm in size)
    voxels = truth.as_tensor()[0]
    own = Grid(tuple(voxels.shape), affine_of(truth))
    for label, box in sorted(label_boxes(voxels).items()):
        if label in labels:
            box = grow_box(box, (1, 1, 1), voxels.shape)
            where = grid.meets(own.part(box))
            mask = MetaTensor((crop(voxels, box) == label)[None].float(), affine=torch.as_tensor(own.part(box).affine))
            fine = grid.part(where).finer(points)
            found = resample(mask, fine.shape, fine.affine, "nearest", outside=0)
            parts.append((label, torch.nn.functional.avg_pool3d(found[None], points)[0, 0], where))
    return Answer(grid, parts)


# ---- what they are worth --------------------------------------------------------------------------------------------


def memory(key: str) -> float:
    """Megabytes of this process: ``VmRSS`` now, ``VmHWM`` at most."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) / 1e3


def work(way: str, path: str) -> tuple[Tensor, float, float]:
    """The label map, the seconds of the processor and the megabytes of a way."""
    torch.set_num_threads(1)
    answer, target = torch.load(path, weights_only=False)
    before, start = memory("VmRSS"), time.process_time()
    found = WAYS[way](answer, target)
    return found, time.process_time() - start, max(memory("VmHWM") - before, 0)


def measured(answer: Answer, target: Grid) -> Iterator[tuple[str, Tensor, float, float]]:
    """What each way makes of an answer."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save((answer, target), f"{folder}/answer.pt")
        for way in WAYS:
            with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
                yield way, *fresh.submit(work, way, f"{folder}/answer.pt").result()


def scored(found: Tensor, truth: Tensor, target: Grid, mm3: dict[int, float]) -> pd.DataFrame:
    """A row for each label: its volume in the scan's own truth, Dice, whether it is lost, how far its volume is off."""
    ids = sorted(mm3)
    voxel = abs(float(np.linalg.det(target.affine[:3, :3])))
    sizes = label_sizes(found)
    table = pd.DataFrame({"id": ids, "mm3": [mm3[i] for i in ids]})
    table["dice"] = label_dice(found[None], truth[None], ids).numpy()
    table["lost"] = [i not in sizes for i in ids]
    table["off"] = [100 * abs(sizes.get(i, 0) * voxel - mm3[i]) / mm3[i] for i in ids]
    return table


def measure(args: argparse.Namespace) -> pd.DataFrame:
    atlas = named_atlas("neuromorphometrics")
    loaded = Segmenter.load(shipped_weights("research"), atlas)
    settings = replace(loaded.settings, propagated=())
    segmenter = Segmenter(atlas, loaded.network, settings, upsample=1, cache=args.cache)
    rows = []
    for name, (scan_path, truth_path) in product(args.grids, args.pairs):
        scan, own_truth = read_scan(scan_path), read_label_map(truth_path)
        own_truth = MetaTensor(own_truth.as_tensor().int(), affine=own_truth.affine)
        voxel = abs(float(np.linalg.det(affine_of(own_truth)[:3, :3])))
        mm3 = {i: n * voxel for i, n in label_sizes(own_truth).items() if i in atlas.ids}
        target = grid_of(name, scan)
        image = scan if name == "own" else acquired(scan, target)
        truth = own_truth.as_tensor()[0] if name == "own" else most_of_each(own_truth, target, TRUTH_POINTS_MM)
        answer, seen = answered(segmenter, image)
        for of, given in (("truth", shares_of(own_truth, seen, answer.labels)), ("network", answer)):
            for way, found, seconds, mb in measured(given, target):
                table = scored(found, truth, target, mm3)
                rows.append(table.assign(grid=name, of=of, way=way, scan=scan_path, seconds=seconds, MB=mb))
                print(name, Path(scan_path).name, of, way, f"{table.dice.mean():.4f}", flush=True)
    return pd.concat(rows, ignore_index=True)


def report(rows: pd.DataFrame) -> str:
    """The table, one row for each grid, what is carried, and way."""
    keys = ["grid", "of", "way"]
    names = [f"{a:g}-{b:g} mm3" if np.isfinite(b) else f"> {a:g} mm3" for a, b in pairwise(SIZES)]
    sizes = pd.cut(rows.mm3, SIZES, labels=names)
    by_size = rows.pivot_table("dice", keys, sizes, sort=False, observed=False)
    grouped = rows.groupby(keys, sort=False)
    table = pd.concat([grouped.dice.mean().rename("Dice"), by_size], axis=1)
    table["lost"] = grouped.lost.sum()
    table["volume off"] = grouped.off.mean()
    table[["seconds", "MB"]] = grouped[["seconds", "MB"]].mean()
    digits = [*[".3f"] * (1 + len(names)), ".0f", ".1f", ".1f", ".0f"]
    counts = dict(sizes[rows.way == rows.way.iloc[0]][rows.of == "truth"].value_counts(sort=False))
    told = ", ".join(f"{name}: {count // rows.grid.nunique()}" for name, count in counts.items())
    return f"Labels of all scans by size: {told}\n\n" + table.reset_index().to_markdown(
        index=False, floatfmt=("", "", "", *digits)
    )


def main() -> None:
    parser: Any = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="SCAN TRUTH", help="scans and their label maps, in turn")
    parser.add_argument("--grids", nargs="+", default=["thick", "own", "fine"], choices=["thick", "own", "fine"])
    parser.add_argument("--cache", type=Path, help="folder of alignments")
    parser.add_argument("--out", type=Path, metavar="FILE.tsv", help="write the score of each label here")
    args = parser.parse_args()
    if len(args.files) % 2:
        parser.error("Give a label map after each scan.")
    args.pairs = list(zip(args.files[::2], args.files[1::2], strict=True))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = measure(args)
    if args.out:
        rows.to_csv(args.out, sep="\t", index=False, float_format="%.5g")
    print(report(rows))


if __name__ == "__main__":
    main()
