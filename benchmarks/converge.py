"""Label conditioning against one channel per label, both trained until they converge: docs/convergence.md.

    python benchmarks/converge.py OUT --data DATA --contender multi-channel --seed 0

trains a contender and scores the test scans. Give the command again and it goes on where it was interrupted.
OUT/NAME-seedS holds curve.tsv, best.pt (the weights with the best validation Dice), checkpoint.pt and at the end
dice.tsv and done.json.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import converge_scans as scans
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from coarse_labels import coarse_labels
from torch import Tensor, nn

from monai_lcs.boxes import Box, grow_box, label_boxes, union_box
from monai_lcs.files import write_atomically
from monai_lcs.networks import LabelConditionedUNet
from monai_lcs.networks.crops import Mask
from monai_lcs.results.tsv import write_tsv

VALIDATE_EVERY = 500  # steps
REPORT_EVERY = 100
SAVE_EVERY = 250
RISE = 0.005  # less than this over the last third of the steps is convergence
DROP = 0.1  # of the learning rate, once
MAX_NORM = 5.0  # of the gradient
LABELS_A_STEP = 32  # of label conditioning; all where the decoder is shared, since they cost little more there
MARGIN = 4  # voxels of 3 mm around an atlas mask in which its label is decoded
PRIOR = 5.0  # logit of the atlas label where it is an input of one channel per label: about a half of 139
EMBEDDING = 8
CHUNK = 1024  # voxels whose channels fit the processor's cache

Answers = Iterator[tuple[int, Tensor, Box]]  # channel, its probabilities in a box of the grid, the box
WHOLE: Box = tuple(slice(0, n) for n in scans.GRID)
INSTANCE = ("instance", {"affine": True})


@dataclass(frozen=True)
class Contender:
    """What is trained.

    Attributes:
        conditioning: of the network; ``None`` for one channel per label.
        least_steps: before the learning rate may drop.
        atlas: whether one channel per label sees the atlas.
        coarse: what label conditioning is trained on, and its checkpoint chosen by, instead of all labels: see
            :func:`coarse_labels.coarse_labels`. The test asks for all labels.
        steps: how many there are, instead of the stop rule; the learning rate drops after four fifths of them.
    """

    conditioning: str | None
    channels: tuple[int, ...]
    learning_rate: float
    least_steps: int
    norm: Any = INSTANCE
    atlas: bool = False
    coarse: str | None = None
    steps: int = 0


CONTENDERS = {
    "multi-channel": Contender(None, (16, 32, 64, 128), 0.003, 10_000),
    "multi-channel-atlas": Contender(None, (16, 32, 64, 128), 0.003, 10_000, atlas=True),
    "multi-channel-batch": Contender(None, (16, 32, 64, 128), 0.003, 10_000, norm="batch"),
    "lcs-every-level": Contender("multiscale", (8, 16, 32, 64), 0.002, 2500),
    "lcs-every-level-16": Contender("multiscale", (16, 32, 64, 128), 0.002, 2500),
    "lcs-shared": Contender("shared", (16, 32, 64, 128), 0.002, 2500),
}
CONTENDERS["lcs-shared-short"] = replace(CONTENDERS["lcs-shared"], steps=500)
CONTENDERS |= {
    f"unseen-{kind.replace(' ', '-')}": replace(CONTENDERS["lcs-shared-short"], coarse=kind)
    for kind in ("sides", "lobes", "left out")
}
ATLAS_ALONE = {"atlas": "affine", "atlas-deformable": "deformable"}  # its labels as they were aligned, nothing trained


class MultiChannelLoss(torch.autograd.Function):
    """Dice + cross-entropy of a softmax over many channels, from the features that the channels are made of.

    The channels of a few thousand voxels at a time are made, used and made again in the backward, so that no volume of
    all channels is ever in memory. The Dice is the soft one with squared terms, smoothed by 1, the mean over all
    channels but the background's; the cross-entropy is the mean over voxels.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, prior: Tensor | None) -> Tensor:
        """The loss.

        Args:
            ctx: keeps what the backward needs.
            x: features ``(voxels, width)``.
            weight: of the 1x1x1 head, ``(channels, width)``.
            bias: likewise, ``(channels,)``.
            target: the true channel of each voxel.
            prior: the channel of each voxel whose logit is raised, if any.
        """
        count = len(weight)
        agreed, squares, entropy = x.new_zeros(count), x.new_zeros(count), x.new_zeros(())
        for part in _chunks(len(x)):
            p = _probabilities(x[part], weight, bias, prior, part)
            true = p.gather(1, target[part, None])[:, 0]
            agreed.scatter_add_(0, target[part], true)
            squares += p.square_().sum(0)
            entropy -= true.clamp_(min=1e-30).log_().sum()
        both = squares + torch.bincount(target, minlength=count) + 1
        dice = (2 * agreed + 1) / both
        by_agreed, by_squares = -2 / both / (count - 1), dice / both / (count - 1)
        by_agreed[0] = by_squares[0] = 0  # the background
        ctx.save_for_backward(x, weight, bias, target, prior, by_agreed, by_squares)
        return 1 - dice[1:].mean() + entropy / len(x)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients by features, weight and bias."""
        x, weight, bias, target, prior, by_agreed, by_squares = ctx.saved_tensors
        by_x, by_weight, by_bias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(bias)
        for part in _chunks(len(x)):
            p = _probabilities(x[part], weight, bias, prior, part)
            index = target[part, None]
            true = p.gather(1, index) * by_agreed[index]
            by_z = p * (2 * by_squares)
            along = torch.linalg.vecdot(by_z, p)[:, None] + true
            by_z += 1 / len(x) - along
            by_z *= p
            by_z.scatter_add_(1, index, true - 1 / len(x))
            by_x[part] = by_z @ weight
            by_weight += by_z.T @ x[part]
            by_bias += by_z.sum(0)
        return by_x * gradient, by_weight * gradient, by_bias * gradient, None, None


def _chunks(count: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]


def _probabilities(x: Tensor, weight: Tensor, bias: Tensor, prior: Tensor | None, part: slice) -> Tensor:
    logits = F.linear(x, weight, bias)
    if prior is not None:
        logits.scatter_add_(1, prior[part, None], logits.new_full((len(x), 1), PRIOR))
    return logits.softmax(1)


class MultiChannel(nn.Module):
    """One channel per label and one for the background.

    Args:
        contender: what to build.
        count: labels.
    """

    threshold = 0.0  # the background is a channel like the others

    def __init__(self, contender: Contender, count: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(count + 1, EMBEDDING) if contender.atlas else None
        self.network = LabelConditionedUNet(
            image_channels=2 + EMBEDDING if contender.atlas else 1,
            channels=contender.channels,
            conditioning=None,
            out_channels=count + 1,
            dropout=0.0,
            norm=contender.norm,
            up_activation=False,
        )
        self.labels_a_step = count

    def loss(self, images: Tensor, labels: Tensor, rng: np.random.Generator) -> Tensor:
        """Dice + cross-entropy of all channels."""
        x, prior = self._features(images, labels[1])
        return MultiChannelLoss.apply(x, *self._head(), labels[0].flatten(), prior)

    def answers(self, images: Tensor, atlas: Tensor) -> Answers:
        """The probabilities of every channel, the background's as well."""
        x, prior = self._features(images, atlas)
        volume = x.new_empty(self.network.head.out_channels, len(x))
        for part in _chunks(len(x)):
            volume[:, part] = _probabilities(x[part], *self._head(), prior, part).T
        for channel, values in enumerate(volume):
            yield channel, values.view(scans.GRID), WHOLE

    def _features(self, images: Tensor, atlas: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the head takes, ``(voxels, width)``, and the channel of each voxel whose logit is raised."""
        inputs = images[:1]
        if self.embedding is not None:
            inputs = torch.cat([images, self.embedding(atlas).movedim(-1, 0)])
        features = self.network.encode(_channels_last(inputs)).levels[0]
        return features[0].movedim(0, -1).flatten(0, -2), None if self.embedding is None else atlas.flatten()

    def _head(self) -> tuple[Tensor, Tensor]:
        return self.network.head.weight.flatten(1), self.network.head.bias


class LabelConditioned(nn.Module):
    """Label conditioned segmentation: a label is decoded in the box of its atlas mask.

    Args:
        contender: what to build.
        count: labels.
        groups: the labels that are trained, each a list of channels; all, each by itself, by default.
    """

    def __init__(self, contender: Contender, count: int, groups: Sequence[Sequence[int]] | None = None) -> None:
        super().__init__()
        self.network = LabelConditionedUNet(
            channels=contender.channels,
            conditioning=contender.conditioning,
            dropout=0.0,
            norm=contender.norm,
            prior_logit=2.0,
            up_activation=False,
        )
        self.fine = [[label] for label in range(1, count + 1)]
        self.groups = groups or self.fine
        self.competes = contender.conditioning == "shared"
        self.threshold = 0.0 if self.competes else 0.5
        self.labels_a_step = len(self.groups) if self.competes else min(LABELS_A_STEP, len(self.groups))

    def loss(self, images: Tensor, labels: Tensor, rng: np.random.Generator) -> Tensor:
        """Dice (squared terms, smoothed by 1) + binary cross-entropy in the box, the mean over labels at random."""
        chosen = [self.groups[i] for i in rng.choice(len(self.groups), self.labels_a_step, replace=False)]
        sizes = torch.bincount(labels[0].flatten(), minlength=len(self.fine) + 1)  # beyond the box as well
        losses = []
        for i, logits, box in self._decode(images, labels[1], chosen):
            logits = logits.float()
            target = torch.isin(labels[0][box], torch.tensor(chosen[i])).float()
            p = logits.sigmoid()
            dice = (2 * (p * target).sum() + 1) / (p.square().sum() + sizes[chosen[i]].sum() + 1)
            losses.append(1 - dice + F.binary_cross_entropy_with_logits(logits, target))
        return torch.stack(losses).mean()

    def answers(self, images: Tensor, atlas: Tensor, groups: Sequence[Sequence[int]] | None = None) -> Answers:
        """The probabilities of every label that the atlas has, in its box; of ``groups`` instead, counted from 1.

        Where labels share a decoder they compete, also with the background: what the union of all labels leaves.
        """
        groups = groups or self.fine
        everything = [sorted({label for group in groups for label in group})] if self.competes else []
        for i, logits, box in self._decode(images, atlas, [*groups, *everything]):
            if i < len(groups):
                yield i + 1, logits.sigmoid(), box
            else:
                background = logits.new_ones(scans.GRID)
                background[box] = (-logits).sigmoid()
                yield 0, background, WHOLE

    def _decode(self, images: Tensor, atlas: Tensor, groups: Sequence[Sequence[int]]) -> Answers:
        """Groups that the atlas has, by their index, their logits, and the box of these."""
        found = label_boxes(atlas)
        asked, masks = [], []
        for i, group in enumerate(groups):
            if there := [found[label] for label in group if label in found]:
                box = union_box(there)
                asked.append(i)
                masks.append(Mask(torch.isin(atlas[box], torch.tensor(group)), box))
        boxes = [grow_box(mask.box, [MARGIN] * 3, scans.GRID) for mask in masks]
        features = self.network.encode(_channels_last(images[:1]), _channels_last(images[1:]))
        for i, logits in self.network.decode_boxes(features, masks, boxes, halo=0):
            yield asked[i], logits, boxes[i]


class AtlasAlone(nn.Module):
    """The atlas labels as they were aligned."""

    threshold = 0.0

    def answers(self, images: Tensor, atlas: Tensor) -> Answers:
        """1 inside the label, 0 elsewhere, the background like the others."""
        for label in atlas.unique().tolist():
            yield label, (atlas == label).float(), WHOLE


def _channels_last(x: Tensor) -> Tensor:
    return x[None].contiguous(memory_format=torch.channels_last_3d)


@dataclass
class Progress:
    """Where a training is; with the weights and the optimizer all that it goes on from."""

    step: int = 0
    dropped_at: int = 0  # the step of the drop of the learning rate; 0 before
    core_seconds: float = 0.0  # of training, validation not counted
    losses: list[float] = field(default_factory=list)  # since the last row of the curve
    curve: list[dict[str, float]] = field(default_factory=list)

    def validations(self) -> list[tuple[int, float]]:
        """Steps and validation Dice."""
        return [
            (int(row["step"]), row["validation_dice"]) for row in self.curve if not np.isnan(row["validation_dice"])
        ]

    def best(self, until: float = math.inf) -> float:
        """The best validation Dice of the steps ``until`` then."""
        return max((dice for step, dice in self.validations() if step <= until), default=0.0)

    def best_ever(self, until: float = math.inf) -> float:
        """Likewise, with the validations of weights that are lost: the stop rule asks for all of them."""
        lost = [row.get("validation_before", math.nan) for row in self.curve if row["step"] <= until]
        return max([self.best(until), *(dice for dice in lost if not np.isnan(dice))])

    def converged(self, least_steps: int) -> bool:
        """Whether the best rose by less than ``RISE`` over the last third of the steps, and it is not too early."""
        least = self.dropped_at * 1.25 if self.dropped_at else least_steps
        return self.step >= least and self.best_ever() - self.best_ever(self.step * 2 / 3) < RISE


class Training:
    """One contender, one seed.

    Args:
        name: of the contender.
        seed: of weights and draws. The draws of a step depend on the seed and the step alone.
        data: folder of malc2012.
        out: folder of the results.
        learning_rate: instead of the contender's.
        bfloat16: whether the training is under ``torch.autocast`` in bfloat16; scores are in float32.

    Raises:
        SystemExit: When the checkpoint is of the other precision.
    """

    contenders: Mapping[str, Any] = CONTENDERS
    memory_format = torch.channels_last_3d
    validate_every = VALIDATE_EVERY
    max_norm = MAX_NORM

    def __init__(
        self,
        name: str,
        seed: int,
        data: Path,
        out: Path,
        learning_rate: float | None = None,
        bfloat16: bool = False,
    ) -> None:
        self.name, self.seed, self.data, self.cache = name, seed, data, out / "cache"
        self.bfloat16 = bfloat16
        self.folder = out / f"{name}-seed{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.contender = self.contenders[name]
        self.table = self.read_labels()
        self.mirrored = torch.tensor([0, *self.table.mirrored])
        torch.manual_seed(seed)
        self.model = self.make_model().to(memory_format=self.memory_format)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=learning_rate or self.contender.learning_rate)
        self.progress = Progress()
        if self.checkpoint.is_file():
            state = torch.load(self.checkpoint, weights_only=True)
            if state.get("bfloat16", False) != bfloat16:
                sys.exit(
                    f"{self.checkpoint} was trained {'without' if bfloat16 else 'with'} --bfloat16: go on as it was."
                )
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.progress = Progress(**state["progress"])

    def copy_to(self, file: Path) -> None:
        """Write weights of 8 bits and the progress: what another machine can go on from, a tenth of the checkpoint."""
        state = {"model": rounded(self.model.state_dict()), "progress": vars(self.progress)}
        write_atomically(file, lambda path: torch.save(state, path))

    def begin_from(self, file: Path) -> None:
        """Go on from a copy, with a new optimizer; its weights are the best until others are better.

        The validations so far stay in the curve, under ``validation_before``: their weights are lost.
        """
        state = torch.load(file, weights_only=True)
        self.model.load_state_dict(restored(state["model"]))
        self.progress = Progress(**state["progress"])
        for row in self.progress.curve:
            row.setdefault("validation_before", row["validation_dice"])
            row["validation_dice"] = math.nan
        for group in self.optimizer.param_groups:
            group["lr"] *= DROP if self.progress.dropped_at else 1
        self._validate(self.cases("validation")[0])
        self.save()

    def read_labels(self) -> pd.DataFrame:
        """The labels: id, name, and the channel of the same structure on the other side."""
        return scans.read_labels(self.data)

    def make_model(self) -> nn.Module:
        """The contender with random weights."""
        self.seen = seen_groups(self.contender.coarse, self.table)
        if self.contender.conditioning:
            return LabelConditioned(self.contender, len(self.table), self.seen)
        return MultiChannel(self.contender, len(self.table))

    @property
    def checkpoint(self) -> Path:
        """All that the training goes on from."""
        return self.folder / "checkpoint.pt"

    def run(self, last_step: float = math.inf) -> bool:
        """Train until the stop rule holds twice, or until the last step; return whether the rule held."""
        cases, progress = self.cases("training"), self.progress
        validation = self.cases("validation")[0]
        while progress.step < last_step:
            if self.is_done():
                return True
            start = time.process_time()
            progress.losses.append(self._step(cases))
            progress.core_seconds += time.process_time() - start
            if self._at_validation():
                self._validate(validation)
            elif progress.step % REPORT_EVERY == 0:
                self._report(math.nan)
            if self.may_drop():
                progress.dropped_at = progress.step
                for group in self.optimizer.param_groups:
                    group["lr"] *= DROP
            if progress.step % SAVE_EVERY == 0:
                self.save()
        self.save()
        return False

    def cases(self, section: str) -> Sequence[Any]:
        """The scans of a section of the split."""
        return scans.load_scans(section, self.data, self.table.id.tolist(), self.cache)

    def is_done(self) -> bool:
        """Whether the stop rule holds, after the learning rate dropped; or all steps are done."""
        progress = self.progress
        if self.contender.steps:
            return progress.step >= self.contender.steps
        at_end = progress.dropped_at and self._at_validation() and progress.converged(self.contender.least_steps)
        return bool(at_end)

    def _at_validation(self) -> bool:
        return self.progress.step > 0 and self.progress.step % self.validate_every == 0

    def _step(self, cases: Sequence[scans.Scan]) -> float:
        """One scan, one step of the optimizer; the loss."""
        self.progress.step += 1
        rng = np.random.default_rng([self.seed, self.progress.step])
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            loss = self.loss(cases, rng)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm, error_if_nonfinite=True)
        self.optimizer.step()
        return loss.item()

    def loss(self, cases: Sequence[Any], rng: np.random.Generator) -> Tensor:
        """Of a scan at random."""
        images, labels = scans.deformed(cases[rng.integers(len(cases))], self.mirrored, rng)
        return self.model.loss(images, labels, rng)

    def _validate(self, scan: scans.Scan) -> None:
        """Keep the weights if they are the best."""
        before = self.progress.best()
        dice = float(self.dice(scan).nanmean())
        self._report(dice)
        if dice > before:
            write_atomically(self.folder / "best.pt", lambda path: torch.save(self.model.state_dict(), path))

    def may_drop(self) -> bool:
        """Whether it is time to drop the learning rate."""
        if self.progress.dropped_at:
            return False
        if self.contender.steps:
            return self.progress.step >= 0.8 * self.contender.steps
        return self._at_validation() and self.progress.converged(self.contender.least_steps)

    def _report(self, dice: float) -> None:
        """One more row of the curve."""
        progress = self.progress
        row = {
            "step": progress.step,
            "label_samples": progress.step * self.model.labels_a_step,
            "core_seconds": round(progress.core_seconds, 1),
            "loss": float(np.mean(progress.losses)),
            "validation_dice": dice,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }
        progress.curve.append(row)
        progress.losses.clear()
        print(self.name, self.seed, *(f"{value:.6g}" for value in row.values()), flush=True)

    def dice(self, scan: Any, testing: bool = False) -> Tensor:
        """Of each label that is trained, in the scan's own voxels; of each label there is when testing."""
        return dice_of(self.model, scan, len(self.table), None if testing else self.seen)

    def save(self) -> None:
        """Write checkpoint and curve."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": vars(self.progress),
            "bfloat16": self.bfloat16,
        }
        write_atomically(self.checkpoint, lambda path: torch.save(state, path))
        curve = pd.DataFrame(self.progress.curve)
        write_atomically(self.folder / "curve.tsv", lambda path: write_tsv(curve, path, float_format="%.6g"))

    def finish(self) -> None:
        """Score the test scans with the best weights."""
        self.model.load_state_dict(torch.load(self.folder / "best.pt", weights_only=True))
        progress, validations = self.progress, self.progress.validations()
        record = {
            "steps": progress.step,
            "label_samples": progress.step * self.model.labels_a_step,
            "core_hours": round(progress.core_seconds / 3600, 3),
            "learning_rate_dropped_at": progress.dropped_at,
            "best_step": next(step for step, dice in validations if dice == progress.best()),
            "validation_dice": progress.best(),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "bfloat16": self.bfloat16,
        }
        cases = self.cases("testing")
        dice = {scan.name: self.dice(scan, testing=True) for scan in cases}
        write_result(self.folder, dice, self.table, record)


def rounded(weights: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """Kernels as 8-bit integers and a factor for each index of their first axis; what is small as it is."""
    found = {}
    for name, w in weights.items():
        found[name] = [w]
        if w.is_floating_point() and w.ndim > 1:
            factors = w.abs().reshape(len(w), -1).amax(1).clamp(min=1e-12) / 127
            found[name] = [(w.movedim(0, -1) / factors).round().to(torch.int8), factors]
    return found


def restored(state: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """Weights from what :func:`rounded` made of them."""
    return {name: each[0] if len(each) == 1 else (each[0] * each[1]).movedim(-1, 0) for name, each in state.items()}


def seen_groups(coarse: str | None, table: pd.DataFrame) -> list[list[int]] | None:
    """The channels of each group of labels that is trained; ``None`` for all labels, each by itself."""
    if coarse is None:
        return None
    channel_of = {label: channel for channel, label in enumerate(table.id, start=1)}
    return [[channel_of[label] for label in group] for group in coarse_labels(coarse, table).values()]


@torch.no_grad()
def dice_of(model: nn.Module, scan: scans.Scan, count: int, groups: Sequence[Sequence[int]] | None = None) -> Tensor:
    """The Dice of each of ``count`` labels in the scan's own voxels, or of each of the ``groups``."""
    model.eval()
    images, labels = scans.plain(scan)
    if groups is None:
        dice = scans.score(model.answers(images, labels[1]), scan, model.threshold, count)
    else:
        group_of = torch.zeros(count + 1, dtype=torch.uint8)
        for i, group in enumerate(groups, start=1):
            group_of[group] = i
        merged = replace(scan, truth=group_of[scan.truth.long()])
        dice = scans.score(model.answers(images, labels[1], groups), merged, model.threshold, len(groups))
    model.train()
    return dice


def write_result(folder: Path, dice: Mapping[str, Tensor], table: pd.DataFrame, record: Mapping[str, Any]) -> None:
    """Write dice.tsv, a row for each label in each scan, and done.json."""
    rows = [
        {"scan": scan, "id": label, "name": name, "dice": value}
        for scan, of_scan in dice.items()
        for label, name, value in zip(table.id, table.name, of_scan.tolist(), strict=True)
    ]
    write_atomically(folder / "dice.tsv", lambda path: write_tsv(pd.DataFrame(rows), path, float_format="%.5f"))
    means = {scan: round(float(of_scan.nanmean()), 5) for scan, of_scan in dice.items()}
    text = json.dumps({**record, "test_dice": means, "mean_test_dice": float(np.mean(list(means.values())))}, indent=2)
    write_atomically(folder / "done.json", lambda path: path.write_text(text + "\n"))
    print(text, flush=True)


def words(description: str | None, contenders: Iterable[str]) -> argparse.ArgumentParser:
    """The words of the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds malc2012/")
    parser.add_argument("--contender", required=True, choices=list(contenders))
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--learning_rate", type=float, help="instead of the contender's, of a new training")
    parser.add_argument("--steps", type=float, default=math.inf, help="stop here, converged or not, without a score")
    parser.add_argument("--copy", type=Path, help="write a small copy of an unfinished training here, and stop")
    parser.add_argument("--begin", type=Path, help="such a copy, to go on from where OUT has no checkpoint")
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="train with convolutions in bfloat16: faster where the processor has AMX, far slower where it has not",
    )
    parser.add_argument("--threads", type=int, default=1, help="of the processor; default: %(default)s")
    return parser


def work(kind: type[Training], args: argparse.Namespace) -> None:
    """Train what the words ask for, or what is left of it, and score it; or copy it."""
    if (args.out / f"{args.contender}-seed{args.seed}/done.json").is_file():
        sys.exit(f"{args.contender} with seed {args.seed} is done.")
    training = kind(args.contender, args.seed, args.data / "malc2012", args.out, args.learning_rate, args.bfloat16)
    if args.copy:
        if not training.progress.step:
            sys.exit(
                f"There is no checkpoint {training.checkpoint} to copy: train first, or check the folder and the name."
            )
        training.copy_to(args.copy)
        return
    if args.begin and training.checkpoint.is_file():
        print(f"Going on from {training.checkpoint}; {args.begin} is not used.", flush=True)
    elif args.begin:
        training.begin_from(args.begin)
    if training.run(args.steps):
        training.finish()


def main() -> None:
    """Train the contender asked for, or what is left of it, and score it."""
    args = words(__doc__, [*ATLAS_ALONE, *CONTENDERS]).parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # a convolution of such numbers takes 200 times as long
    data = args.data / "malc2012"
    if args.contender in ATLAS_ALONE:
        folder, table = args.out / args.contender, scans.read_labels(data)
        folder.mkdir(parents=True, exist_ok=True)
        align = ATLAS_ALONE[args.contender]
        cases = scans.load_scans("testing", data, table.id.tolist(), args.out / "cache", align)
        write_result(folder, {scan.name: dice_of(AtlasAlone(), scan, len(table)) for scan in cases}, table, {})
        return
    work(Training, args)


if __name__ == "__main__":
    main()
