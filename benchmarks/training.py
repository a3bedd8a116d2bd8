"""Measures labels a second, steps a second and peak memory of training, by the number of labels of the study.

    python benchmarks/training.py OUT [--data MALC2012] [--counts 10 133 1000]

Each contender trains on one volume of 160x208x160 mm at 2 mm, in a process of its own, one after the other, on one
thread. Seconds are those of the processor. The volume is a scan of ``--data`` with the affinely aligned atlas, else a
phantom of blobs. Labels are cut or merged until there are as many as asked for: the foreground stays the same. OUT gets
``training.tsv`` and ``training.md``, what is printed.

- before: 16 labels a step as one-hot masks, logits padded to volumes, Dice, and PyTorch's own backward of convolutions,
  crops and norms, with the network of the bundle
- lcs ...: 32 labels a step in their boxes, as the bundle trains, with each conditioning; ``bfloat16`` with the bundle's
  option of that name, for CPUs with AMX instructions alone
- multi-channel: one channel per label, width 16, Dice + cross-entropy together with the 1x1x1 head, a few thousand
  voxels at a time
- multi-channel, volumes: the same with MONAI's DiceCELoss, whose channels are volumes
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from converge import MultiChannelLoss
from inference import as_input, make_volume, peak, recut, reset_peak
from monai.losses import DiceCELoss, DiceLoss
from monai.utils import set_determinism
from torch import Tensor

from monai_lcs import Settings
from monai_lcs.inferers import LabelBoxInferer
from monai_lcs.losses import LabelBoxLoss
from monai_lcs.networks import blocks, crops, unet
from monai_lcs.pipeline import make_network, on_device
from monai_lcs.transforms import RandSelectLabels

SPACING = 2.0
MARGIN_MM = 6.0
LCS = {
    "lcs, every level": "multiscale",
    "lcs, bottleneck": "bottleneck",
    "lcs, shared decoder": "shared",
}
BFLOAT16 = ", bfloat16"
BEFORE, MULTI_CHANNEL, VOLUMES = "before", "multi-channel", "multi-channel, volumes"
CONTENDERS = (BEFORE, *LCS, MULTI_CHANNEL, VOLUMES)
LCS |= {name + BFLOAT16: conditioning for name, conditioning in LCS.items()}
LABELS_BEFORE = 16
WIDE = (16, 32, 64, 128)  # 139 channels made of 8 would have rank 8

Step = Callable[[], Tensor]  # returns the loss


def pytorchs_own_backward() -> None:
    """Undo, in this process, what the package does for the backward."""

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, constant: Tensor | None = None) -> Tensor:
        x = x if constant is None else torch.cat([x, constant], dim=1)
        return torch.mkldnn_convolution(x, weight, bias, [1] * 3, [1] * 3, [1] * 3, 1)

    blocks.convolve = convolve
    blocks.normalize_and_activate = lambda layers, x: layers(x)
    crops.crop_source = unet.crop_source = lambda x: x


def before(volume: Tensor, target: Tensor, network: torch.nn.Module) -> Step:
    """Masks and logits are volumes, one for each label of a step."""
    pytorchs_own_backward()
    select = RandSelectLabels(LABELS_BEFORE).set_random_state(0)
    inferer, loss = LabelBoxInferer(margin_mm=MARGIN_MM, halo=0), DiceLoss(sigmoid=True, squared_pred=True)

    def step() -> Tensor:
        masks, atlas_masks = select(target, volume[2:])
        inputs = torch.cat([volume[:2], atlas_masks])
        return loss(inferer(as_input(inputs, argparse.Namespace(spacing=SPACING)), network), masks[None])

    return step


def in_boxes(volume: Tensor, target: Tensor, network: torch.nn.Module, labels: int, bfloat16: bool) -> Step:
    """Masks and logits are those of the boxes."""
    select = RandSelectLabels(labels).set_random_state(0)
    inferer, loss = LabelBoxInferer(margin_mm=MARGIN_MM, halo=0, bfloat16=bfloat16), LabelBoxLoss()
    inputs = as_input(volume, argparse.Namespace(spacing=SPACING))

    def step() -> Tensor:
        select.draw(target, volume[2:])
        return loss(inferer(inputs, network, groups=torch.tensor([select.groups_])), target[None])

    return step


def multi_channel(volume: Tensor, target: Tensor, network: torch.nn.Module) -> Step:
    """The channels of a few thousand voxels at a time."""
    image = volume[None, :1].contiguous(memory_format=torch.channels_last_3d)
    channels = target.flatten().long()

    def step() -> Tensor:
        features = network.encode(image).levels[0][0].movedim(0, -1).flatten(0, -2)
        return MultiChannelLoss.apply(features, network.head.weight.flatten(1), network.head.bias, channels, None)

    return step


def in_volumes(volume: Tensor, target: Tensor, network: torch.nn.Module) -> Step:
    """Every channel a volume."""
    loss = DiceCELoss(softmax=True, to_onehot_y=True, squared_pred=True, include_background=False)
    return lambda: loss(network(volume[None, :1]), target[None])


def work(args: argparse.Namespace) -> dict[str, Any]:
    """Measure one contender with one number of labels in this process."""
    torch.set_num_threads(1)
    set_determinism(0)
    volume = torch.from_numpy(np.load(args.volume))
    target = volume[2:].roll(1, dims=1)  # as far from the atlas as after registration
    conditioning = "multiscale" if args.contender == BEFORE else LCS.get(args.contender)
    channels = args.channels if conditioning else WIDE
    options: dict[str, Any] = {"channels": channels} if channels else {}
    settings = Settings(conditioning=conditioning, margin_mm=MARGIN_MM, halo=0, **options)
    network = on_device(
        make_network(settings, **({"out_channels": args.count + 1} if conditioning is None else {})), "cpu"
    )
    steps = {BEFORE: before, MULTI_CHANNEL: multi_channel, VOLUMES: in_volumes}
    if args.contender in LCS:
        step = in_boxes(volume, target, network, args.labels_a_step, args.contender.endswith(BFLOAT16))
    else:
        step = steps[args.contender](volume, target, network)
    labels = {BEFORE: LABELS_BEFORE, MULTI_CHANNEL: args.count, VOLUMES: args.count}.get(
        args.contender, args.labels_a_step
    )
    seconds, used = measure(step, network, args.steps)
    rates = {"labels a second": labels / seconds, "steps a second": 1 / seconds, "GiB": used / 2**30}
    return {"contender": args.contender, "labels": args.count, "labels a step": labels, **rates}


def measure(step: Step, network: torch.nn.Module, steps: int) -> tuple[float, int]:
    """Seconds of the processor for a step, and the peak memory above what was in use before the first."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.002)
    reset_peak("cpu")
    for i in range(steps + 1):
        if i == 1:  # the first step makes the kernels
            start = time.process_time()
        optimizer.zero_grad()
        step().backward()
        optimizer.step()
    return (time.process_time() - start) / steps, peak("cpu")


def run(args: argparse.Namespace, folder: Path) -> pd.DataFrame:
    """Measure every contender with every number of labels, in turn."""
    volume = make_volume(args.data, args.case, args.atlas, SPACING)
    rows = []
    for count in args.counts:
        path = folder / f"volume_{count}.npy"
        ids, numbers = np.unique(recut(volume[2], count), return_inverse=True)  # ids become numbers of channels
        assert len(ids) == count + 1
        np.save(path, np.stack([*volume[:2], numbers.reshape(volume[2].shape).astype(np.float32)]))
        for contender in args.contenders:
            if contender == VOLUMES and count > 133:
                rows.append(
                    {"contender": contender, "labels": count, "labels a step": count, "note": "not run: too large"}
                )
                continue
            options = ["--contender", contender, "--count", str(count), "--volume", str(path)]
            command = [sys.executable, __file__, *sys.argv[1:], *options]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], file=sys.stderr, flush=True)
            pd.DataFrame(rows).to_csv(args.out / "training.tsv", sep="\t", index=False)
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """The table, and the ratios that it is made for."""
    fewest = table[table.labels == table.labels.min()].set_index("contender")["GiB"]
    speed = table[table.contender == BEFORE].set_index("labels")["labels a second"]
    table = table.assign(
        **{
            "times before": table["labels a second"] / table["labels"].map(speed),
            "memory / fewest labels": table["GiB"] / table["contender"].map(fewest),
        }
    )
    cells = table.map(lambda value: f"{value:.2f}" if isinstance(value, float) else str(value)).replace("nan", "")
    lines = [table.columns, ["---"] * len(table.columns), *cells.to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure all contenders, or the one that a process is for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--data", type=Path, help="folder of malc2012; a phantom by default")
    parser.add_argument("--case", default="1001", help="the scan; default: %(default)s")
    parser.add_argument("--atlas", default="1000", help="default: %(default)s")
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 133, 1000], help="numbers of labels")
    parser.add_argument("--contenders", nargs="+", choices=[*CONTENDERS, *LCS], default=CONTENDERS, metavar="NAME")
    parser.add_argument("--labels_a_step", type=int, default=32, help="of lcs; default: %(default)s")
    parser.add_argument("--channels", type=int, nargs="+", help="widths of lcs; those of the bundle by default")
    parser.add_argument("--steps", type=int, default=4, help="steps to measure; default: %(default)s")
    for name in ("--contender", "--volume"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        print(json.dumps(work(args)))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        text = markdown(run(args, Path(folder)))
    (args.out / "training.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
