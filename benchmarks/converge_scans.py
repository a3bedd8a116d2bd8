"""The scans of benchmarks/converge.py: aligned once, deformed at random, and scored in their own voxels."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation, ScaleIntensityRangePercentiles
from torch import Tensor

from monai_lcs.boxes import Box, grow_box, label_boxes, pad, scale, shift, union_box
from monai_lcs.files import write_atomically
from monai_lcs.metrics import label_dice
from monai_lcs.transforms import AlignAtlas

SPLIT = Path(__file__).resolve().parent / "splits/malc2012.json"
ATLAS = "1000.nii.gz"
MM = 3  # voxel size of the networks' grid; the scans have 1 mm
GRID = (56, 72, 56)  # voxels of it, a multiple of 8 that holds every brain of the study and 10 mm more
SIZE = tuple(MM * n for n in GRID)

ROTATION = np.deg2rad(9)  # augmentation: up to these, uniformly
SCALING = 0.1
ELASTIC_MM = 5
ELASTIC_NODES = (8, 10, 8)
GAMMA = 0.3  # exponents from exp(-0.3) to exp(0.3)
NOISE = 0.03


@dataclass(frozen=True)
class Scan:
    """A scan and the atlas aligned to it. Labels are channels: 0 for the background, then as in :func:`read_labels`.

    Attributes:
        images: scan and atlas image, ``(2, *SIZE)`` at 1 mm, each voxel the mean of the 3 mm around it.
        labels: their label maps as float32, ``(2, *SIZE)``.
        truth: the scan's label map in its own voxels, RAS.
        corner: the voxel of ``truth`` where the box ``SIZE`` starts; may be negative.
    """

    name: str
    images: Tensor
    labels: Tensor
    truth: Tensor
    corner: tuple[int, ...]


def read_labels(data: Path) -> pd.DataFrame:
    """The labels that the atlas and all training scans have.

    Returns:
        Columns id, ascending, name, and ``mirrored``: the channel of the same structure on the other side.
    """
    names = pd.read_csv(data / "labels.csv").rename(columns={"Label Number": "id", "Label Name": "name"})
    files = [f"labels/{ATLAS}", *(case["label"] for case in json.loads(SPLIT.read_text(encoding="utf-8"))["training"])]
    common = set.intersection(*(set(np.unique(LoadImage(image_only=True)(data / f)).astype(int)) for f in files))
    table = names[names.id.isin(common - {0})].sort_values("id")[["id", "name"]].reset_index(drop=True)
    table["name"] = table.name.str.split().str.join(" ")
    channel = {name: i for i, name in enumerate(table.name, start=1)}
    sides = {"Left": "Right", "Right": "Left"}

    def mirror(name: str) -> int:
        side, _, structure = name.partition(" ")
        return channel[f"{sides[side]} {structure}"] if side in sides else channel[name]

    table["mirrored"] = table.name.map(mirror)
    return table


def load_scans(section: str, data: Path, ids: Sequence[int], cache: Path, align: str = "affine") -> list[Scan]:
    """The scans of a section of the split, with the label ``ids``, prepared once and kept in ``cache``."""
    cache.mkdir(parents=True, exist_ok=True)
    scans = []
    for case in json.loads(SPLIT.read_text(encoding="utf-8"))[section]:
        name = Path(case["image"]).name.partition(".")[0]
        path = cache / (f"{name}.pt" if align == "affine" else f"{name}-{align}.pt")
        if not path.is_file():
            scan = _prepare(data / case["image"], data / case["label"], data, ids, align)
            write_atomically(path, lambda temporary, scan=scan: torch.save(vars(scan), temporary))
        scans.append(Scan(**torch.load(path, weights_only=True)))
    return scans


def _prepare(image_file: Path, label_file: Path, data: Path, ids: Sequence[int], align: str) -> Scan:
    """Read a scan, align the atlas to it and cut both to the box around the aligned atlas labels."""
    image, label = read(image_file), read(label_file)
    atlas = AlignAtlas(mode=align)(image, read(data / "images" / ATLAS), read(data / "labels" / ATLAS))
    if not np.allclose(np.abs(image.affine[:3, :3]), np.eye(3), atol=1e-3):
        raise ValueError(f"The voxels of {image_file} must be 1 mm wide, got the affine {image.affine.tolist()}.")
    channel_of = torch.zeros(int(max(label.max(), atlas[1].max())) + 1, dtype=torch.uint8)
    channel_of[list(ids)] = torch.arange(1, len(ids) + 1, dtype=torch.uint8)
    images = [ScaleIntensityRangePercentiles(0.5, 99.5, 0.0, 1.0, clip=True)(x).as_tensor() for x in (image, atlas[0])]
    labels = [channel_of[x.as_tensor().long()] for x in (label, atlas[1])]
    found = union_box(list(label_boxes(labels[1][0]).values()))
    if any(axis.stop - axis.start > size for axis, size in zip(found, SIZE, strict=True)):
        raise ValueError(f"The atlas on {image_file} takes {found}, more than {SIZE}.")
    corner = tuple((axis.start + axis.stop - size) // 2 for axis, size in zip(found, SIZE, strict=True))
    smooth = F.avg_pool3d(torch.stack(images), MM, stride=1, padding=MM // 2)[:, 0]
    return Scan(
        name=image_file.name.partition(".")[0],
        images=_cut(smooth, corner),
        labels=_cut(torch.cat(labels), corner).float(),
        truth=labels[0][0],
        corner=corner,
    )


def read(file: Path) -> MetaTensor:
    return Orientation(axcodes="RAS", labels=None)(LoadImage(image_only=True, ensure_channel_first=True)(file))


def _cut(x: Tensor, corner: tuple[int, ...]) -> Tensor:
    """``(C, *spatial)`` in the box of ``SIZE`` at a corner, 0 beyond the image."""
    ends = [n - start - size for n, start, size in zip(x.shape[1:], corner, SIZE, strict=True)]
    pads = [side for start, end in zip(reversed(corner), reversed(ends), strict=True) for side in (-start, -end)]
    return F.pad(x, pads).clone()


def plain(scan: Scan) -> tuple[Tensor, Tensor]:
    """Images ``(2, *GRID)`` and label maps ``(2, *GRID)``, int64, of a scan at 3 mm as it is."""
    at = (slice(None), *[slice(MM // 2, None, MM)] * 3)
    return scan.images[at].contiguous(), scan.labels[at].long()


def deformed(scan: Scan, mirrored: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """As :func:`plain`, after a random deformation and a random flip of scan and atlas together, gamma and noise.

    Args:
        scan: what to deform.
        mirrored: for each channel the one of the other side, the background's first.
        rng: where the draws come from.
    """
    angles = rng.uniform(-ROTATION, ROTATION, 3)
    factors = 1 + rng.uniform(-SCALING, SCALING, 3)
    flip = rng.random() < 0.5
    amplitude = rng.uniform(0, ELASTIC_MM)
    nodes = torch.from_numpy(rng.uniform(-amplitude, amplitude, (1, 3, *ELASTIC_NODES)).astype(np.float32))
    gamma = np.exp(rng.uniform(-GAMMA, GAMMA))
    noise = torch.from_numpy(rng.standard_normal(GRID, dtype=np.float32)) * rng.uniform(0, NOISE)

    where = _millimeters() @ torch.from_numpy(_rotation(angles) * factors).float().T
    coarse = F.interpolate(nodes, [n // 2 for n in GRID], mode="trilinear", align_corners=True)
    coarse = F.avg_pool3d(coarse, 3, stride=1, padding=1, count_include_pad=False)
    where += F.interpolate(coarse, GRID, mode="trilinear", align_corners=False)[0].movedim(0, -1)
    where *= torch.tensor([2 / n for n in SIZE])
    if flip:
        where[..., 0] *= -1
    where = where.flip(-1)[None]  # grid_sample wants the last axis first
    images = F.grid_sample(scan.images[None], where, align_corners=False)[0]
    labels = F.grid_sample(scan.labels[None], where, mode="nearest", align_corners=False)[0].long()
    images[0] = images[0].clamp(min=0) ** gamma + noise
    return images, mirrored[labels] if flip else labels


def _millimeters() -> Tensor:
    """Where the voxels of the grid are from its center, ``(*GRID, 3)``."""
    axes = [(torch.arange(n) - (n - 1) / 2) * MM for n in GRID]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def _rotation(angles: np.ndarray) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [a for a in range(3) if a != axis]
        turn = np.eye(3)
        turn[[i, j], [i, j]] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def carried(answers: Iterable[tuple[int, Tensor, Box]], scan: Scan, threshold: float) -> Tensor:
    """The channel that is best at each of the scan's own voxels.

    Probabilities at 3 mm are interpolated linearly to 1 mm, one channel at a time, and compared there.

    Args:
        answers: channels, their probabilities in a box of the grid, and the box; 0 outside.
        scan: where to carry them.
        threshold: the background is where no probability exceeds it.
    """
    best = torch.full(SIZE, threshold)
    channels = torch.zeros(SIZE, dtype=torch.uint8)
    for channel, values, box in answers:
        around = grow_box(box, (1, 1, 1), GRID)  # interpolation goes to 0 there
        size = [axis.stop - axis.start for axis in around]
        values = pad(values, shift(box, around), size, 0)
        values = F.interpolate(values[None, None], scale_factor=MM, mode="trilinear", align_corners=False)[0, 0]
        fine = scale(around, MM)
        channels[fine].masked_fill_(values > best[fine], channel)
        torch.maximum(best[fine], values, out=best[fine])
    ends = [n - start - size for n, start, size in zip(scan.truth.shape, scan.corner, SIZE, strict=True)]
    return F.pad(channels, [side for pair in zip(scan.corner[::-1], ends[::-1], strict=True) for side in pair])


def score(answers: Iterable[tuple[int, Tensor, Box]], scan: Scan, threshold: float, count: int) -> Tensor:
    """The Dice of each of ``count`` labels in the scan's own voxels; see :func:`carried`."""
    return label_dice(carried(answers, scan, threshold), scan.truth, range(1, count + 1))
