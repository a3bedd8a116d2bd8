"""The paper's own setting, in 2D: coronal slices, its network and its schedule; docs/convergence.md, setting A.

    python benchmarks/converge_slices.py OUT --data DATA --contender slices-lcs-paper --seed 0

trains a contender for up to 20,000 steps of 8 slices and scores the test scans. Give the command again and it goes on
where it was interrupted. The files are those of benchmarks/converge.py, and benchmarks/converge_table.py reads them.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import converge_scans as scans
import numpy as np
import pandas as pd
import torch
from converge import MultiChannelLoss, Training, words, work, write_result
from monai.losses import DiceLoss
from monai.transforms import ScaleIntensityRangePercentiles
from torch import Tensor, nn

from monai_lcs.boxes import label_boxes, union_box
from monai_lcs.files import write_atomically
from monai_lcs.metrics import label_dice
from monai_lcs.networks import LabelConditionedUNet
from monai_lcs.transforms import AlignAtlas

EVERY = 4  # mm from one slice to the next
SIZE = (160, 160)  # pixels of 1 mm around the middle of the atlas labels, left to right and down to up
LEAST_PIXELS = 140  # of a label, in some slice of the atlas and of every training scan
CHANNELS = (16, 32, 64, 128, 256)
NORM = ("batch", {"momentum": 0.01, "eps": 0.001})  # as Keras has it
BATCH = 8
STEPS = 20_000  # at most, and half as many at least
LEARNING_RATE = 5e-4
DROPOUT = 0.5
UNIONS = 0.5
THRESHOLD = 0.5
ALONE = "slices-atlas"


@dataclass(frozen=True)
class Slices:
    """The coronal slices of a scan that was aligned to the atlas.

    Attributes:
        images: scan and atlas image, ``(N, 2, *SIZE)``.
        labels: their label maps, ``(N, 2, *SIZE)``, int64; 0 for the background, then as in :func:`read_labels`.
    """

    name: str
    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Contender:
    """What is trained: the conditioning of the network, ``None`` for one channel per label."""

    conditioning: str | None
    learning_rate: float = LEARNING_RATE


CONTENDERS = {
    "slices-multi-channel": Contender(None),
    "slices-lcs-paper": Contender("bottleneck"),
    "slices-lcs-every-level": Contender("multiscale"),
    "slices-lcs-shared": Contender("shared"),
}


def load_slices(section: str, data: Path, cache: Path) -> list[Slices]:
    """The scans of a section of the split, all labels of the study, aligned once and kept in ``cache``."""
    cache.mkdir(parents=True, exist_ok=True)
    loaded = []
    for case in json.loads(scans.SPLIT.read_text(encoding="utf-8"))[section]:
        path = cache / f"{Path(case['image']).name.partition('.')[0]}-slices.pt"
        if not path.is_file():
            slices = _prepare(data / case["image"], data / case["label"], data)
            write_atomically(path, lambda temporary, slices=slices: torch.save(vars(slices), temporary))
        loaded.append(Slices(**torch.load(path, weights_only=True)))
    return loaded


def _prepare(image_file: Path, label_file: Path, data: Path) -> Slices:
    """Carry a scan to the atlas by the affine alignment of one to the other, and cut both into slices."""
    atlas, atlas_labels = (scans.read(data / folder / scans.ATLAS) for folder in ("images", "labels"))
    image, label = AlignAtlas(mode="affine")(atlas, scans.read(image_file), scans.read(label_file))
    found = union_box(list(label_boxes(atlas_labels[0]).values()))
    x, z = (_around(found[axis], size, atlas.shape[1 + axis]) for axis, size in zip((0, 2), SIZE, strict=True))

    def cut(*volumes: Tensor) -> Tensor:
        return torch.cat([v.as_tensor() for v in volumes])[:, x, found[1].start : found[1].stop : EVERY, z].movedim(
            2, 0
        )

    normalize = ScaleIntensityRangePercentiles(0.5, 99.5, 0.0, 1.0, clip=True)
    images = cut(normalize(image), normalize(atlas)).float().clone()
    return Slices(image_file.name.partition(".")[0], images, cut(label, atlas_labels).long())


def _around(found: slice, size: int, length: int) -> slice:
    """``size`` pixels with the labels in their middle, or as near to that as the image's border allows."""
    if found.stop - found.start > size or size > length:
        raise ValueError(f"{size} pixels must hold the atlas labels, {found}, and lie in the image of {length}.")
    start = min(max((found.start + found.stop - size) // 2, 0), length - size)
    return slice(start, start + size)


def read_labels(data: Path, cache: Path) -> pd.DataFrame:
    """The labels of which the atlas and all training scans show enough.

    Returns:
        The columns of :func:`converge_scans.read_labels`.
    """
    table = scans.read_labels(data)
    large = table.id.to_numpy()
    for slices in load_slices("training", data, cache):
        for of_one in slices.labels.unbind(1):
            pixels = torch.stack([torch.bincount(s.flatten(), minlength=int(table.id.max()) + 1) for s in of_one])
            large = large[(pixels.amax(0)[large] >= LEAST_PIXELS).numpy()]
    both = table[table.id.isin(large) & table.id.isin(table.id.to_numpy()[table.mirrored - 1][table.id.isin(large)])]
    channel = {int(label): i for i, label in enumerate(both.id, start=1)}
    mirror = table.id.to_numpy()[both.mirrored.to_numpy() - 1]
    return both.assign(mirrored=[channel[int(label)] for label in mirror]).reset_index(drop=True)


def unet(conditioning: str | None, count: int) -> LabelConditionedUNet:
    """The paper's network in 2D, with widths from 16; or the same with one channel per label and the background."""
    return LabelConditionedUNet(
        spatial_dims=2,
        channels=CHANNELS,
        conditioning=conditioning,
        out_channels=1 if conditioning else count + 1,
        dropout=DROPOUT,
        norm=NORM,
    )


class MultiChannel(nn.Module):
    """One channel per label: Dice + cross-entropy.

    Args:
        count: labels.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.network = unet(None, count)
        self.labels_a_step = count * BATCH

    def loss(self, images: Tensor, labels: Tensor, rng: np.random.Generator) -> Tensor:
        """Of a batch ``(B, 2, *SIZE)``, its pixels together."""
        features = self.network.encode(_channels_last(images[:, :1])).levels[0]
        pixels = features[..., : images.shape[2], : images.shape[3]].movedim(1, -1).flatten(0, -2)
        head = self.network.head
        return MultiChannelLoss.apply(pixels, head.weight.flatten(1), head.bias, labels[:, 0].flatten(), None)

    def segment(self, images: Tensor, atlas: Tensor) -> Tensor:
        """The channel of each pixel of one slice ``(2, *SIZE)``."""
        return self.network(_channels_last(images[None, :1]))[0].argmax(0)


class LabelConditioned(nn.Module):
    """One label, or the union of two, of each slice; soft Dice over the batch, as the reference has it.

    Args:
        conditioning: of the network.
        count: labels.
    """

    def __init__(self, conditioning: str, count: int) -> None:
        super().__init__()
        self.network = unet(conditioning, count)
        self.labels_a_step = BATCH
        self.criterion = DiceLoss(sigmoid=True, squared_pred=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)

    def loss(self, images: Tensor, labels: Tensor, rng: np.random.Generator) -> Tensor:
        """Of a batch ``(B, 2, *SIZE)``; labels are drawn from those of each atlas slice."""
        masks = []
        for of_slice in labels:
            there = of_slice[1].unique()
            there = there[there > 0].numpy()
            chosen = rng.choice(there, min(len(there), 1 + (rng.random() < UNIONS)), replace=False)
            masks.append(torch.isin(of_slice, torch.from_numpy(chosen)).float())
        masks = torch.stack(masks)
        logits = self.network(_channels_last(torch.cat([images, masks[:, 1:]], dim=1)))
        return self.criterion(logits.float(), masks[:, :1])

    def segment(self, images: Tensor, atlas: Tensor) -> Tensor:
        """The label of each pixel of one slice: the best of those in the atlas slice that exceeds a half.

        Where labels compete, that exceeds what the union of all leaves.
        """
        there = atlas.unique()
        there = there[there > 0]
        if len(there) == 0:
            return torch.zeros_like(atlas)
        features = self.network.encode(*(_channels_last(images[None, i : i + 1]) for i in (0, 1)))
        masks = (atlas == there[:, None, None]).float()
        if self.network.competes:  # the background is what the union of all labels leaves
            masks = torch.cat([masks, masks.sum(0, keepdim=True)])
        p = self.network.decode(features, masks[None])[0].sigmoid()
        best, index = p[: len(there)].max(0)
        return torch.where(best > (1 - p[-1] if self.network.competes else THRESHOLD), there[index], 0)


class AtlasAlone:
    """The aligned atlas labels."""

    def segment(self, images: Tensor, atlas: Tensor) -> Tensor:
        """The atlas slice."""
        return atlas


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class SliceTraining(Training):
    """One contender, one seed, with the reference's schedule: a constant learning rate, no clipping."""

    contenders = CONTENDERS
    memory_format = torch.channels_last
    validate_every = 2000
    max_norm = math.inf

    def read_labels(self) -> pd.DataFrame:
        """Those large enough."""
        return read_labels(self.data, self.cache)

    def make_model(self) -> nn.Module:
        """The contender with random weights."""
        count, conditioning = len(self.table), self.contender.conditioning
        return LabelConditioned(conditioning, count) if conditioning else MultiChannel(count)

    def cases(self, section: str) -> list[Slices]:
        """The slices of a section, with channels instead of ids."""
        return channels_of(load_slices(section, self.data, self.cache), self.table)

    def loss(self, cases: Sequence[Slices], rng: np.random.Generator) -> Tensor:
        """Of slices at random that show a label of the atlas, each with its atlas slice, half of them flipped."""
        images, labels = [], []
        while len(images) < BATCH:
            scan = cases[rng.integers(len(cases))]
            i = rng.integers(len(scan.images))
            if not scan.labels[i, 1].any():
                continue
            flip = rng.random() < 0.5
            images.append(scan.images[i].flip(1) if flip else scan.images[i])
            labels.append(self.mirrored[scan.labels[i].flip(1)] if flip else scan.labels[i])
        return self.model.loss(torch.stack(images), torch.stack(labels), rng)

    def is_done(self) -> bool:
        """When the stop rule holds, or after all steps."""
        converged = self._at_validation() and self.progress.converged(STEPS // 2)
        return converged or self.progress.step >= STEPS

    def may_drop(self) -> bool:
        """Never: the learning rate is constant."""
        return False

    def dice(self, scan: Slices, testing: bool = False) -> Tensor:
        """Of each label, over all slices of a scan."""
        return dice_of(self.model, scan, len(self.table))


def channels_of(cases: Sequence[Slices], table: pd.DataFrame) -> list[Slices]:
    """Labels of the table by their channels, all others background."""
    channel = torch.zeros(max(int(c.labels.max()) for c in cases) + 1, dtype=torch.int64)
    channel[table.id.tolist()] = torch.arange(1, len(table) + 1)
    return [Slices(c.name, c.images, channel[c.labels]) for c in cases]


@torch.no_grad()
def dice_of(model: Any, scan: Slices, count: int) -> Tensor:
    """The Dice of each label over all slices of a scan."""
    if isinstance(model, nn.Module):
        model.eval()
    pairs = zip(scan.images, scan.labels[:, 1], strict=True)
    segmented = torch.stack([model.segment(images, atlas) for images, atlas in pairs])
    if isinstance(model, nn.Module):
        model.train()
    return label_dice(segmented, scan.labels[:, 0], range(1, count + 1))


def main() -> None:
    """Train the contender asked for, or what is left of it, and score it."""
    args = words(__doc__, [ALONE, *CONTENDERS]).parse_args()
    torch.set_num_threads(args.threads)
    data, cache = args.data / "malc2012", args.out / "cache"
    if args.contender == ALONE:
        (args.out / ALONE).mkdir(parents=True, exist_ok=True)
        table = read_labels(data, cache)
        cases = channels_of(load_slices("testing", data, cache), table)
        dice = {scan.name: dice_of(AtlasAlone(), scan, len(table)) for scan in cases}
        write_result(args.out / ALONE, dice, table, {"labels": len(table)})
        return
    work(SliceTraining, args)


if __name__ == "__main__":
    main()
