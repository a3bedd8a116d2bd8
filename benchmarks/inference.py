"""Seconds, memory and agreement of label conditioned inference beside its rivals, by the number of labels.

    python benchmarks/inference.py OUT [--data MALC2012] [--counts 1 10 133 1000]

One volume of 160x208x160 voxels at 1 mm is segmented by each contender in turn, each in a fresh process, with random
weights (time and memory do not depend on them) or those of ``--weights``. The volume is a scan of ``--data`` with the
affinely aligned atlas, else a phantom of blobs. Numbers of labels are made by cutting or merging labels: the
foreground stays the same. OUT gets ``inference.tsv``, ``inference.md`` (what is printed) and ``inference.svg``.

- naive: the whole network once per label through MONAI's SlidingWindowInferer, measured on 4 of 133 labels and scaled
- multi-channel: the same backbone with one channel per label, SlidingWindowInferer and argmax
- sweep: LabelSweepInferer with the paper's network, halo exact or small, and with the shared decoder

The column ``differ`` is the share of voxels inside the boxes of the measured labels where a label's mask differs from
the one without boxes, ``score`` the largest difference of its probability, ``map differs`` the share of the labeled
voxels whose label differs from the exact halo's.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    Compose,
    LoadImaged,
    Orientationd,
    ResizeWithPadOrCropd,
    ScaleIntensityRangePercentilesd,
    Spacingd,
)
from monai.utils import set_determinism
from tqdm import tqdm

from monai_lcs.boxes import grow_box, label_boxes, split_box, unshift
from monai_lcs.inferers import LabelSweepInferer
from monai_lcs.networks import LabelConditionedUNet
from monai_lcs.transforms import AddAtlasd, AlignAtlasd

LABELS = 133  # of the 138 that every scan of malc2012 has, the largest
NAIVE_LABELS = 4  # measured, then scaled
AT_MOST = {"sweep, halo 1": LABELS, "sweep, exact halo": LABELS}  # with more labels they take many minutes
INSTANCE = ("instance", {"affine": True})
SWEEPS = {  # conditioning, norm, halo
    "sweep, shared decoder": ("shared", INSTANCE, "exact"),
    "sweep, halo 0": ("bottleneck", "batch", 0),
    "sweep, halo 1": ("bottleneck", "batch", 1),
    "sweep, exact halo": ("bottleneck", "batch", "exact"),
}
CONTENDERS = ("naive", "multi-channel", *SWEEPS)


def make_volume(data: Path | None, case: str, atlas: str, spacing: float) -> np.ndarray:
    """Image, atlas image and atlas label map with ``LABELS`` labels ``(3, *spatial)``, float32."""
    shape = [round(size / spacing) for size in (160, 208, 160)]
    if data is None:
        return phantom(shape)
    keys = ["image", "atlas_image", "atlas_label"]
    transform = Compose(
        [
            AddAtlasd(str(data / f"images/{atlas}.nii.gz"), str(data / f"labels/{atlas}.nii.gz")),
            LoadImaged(keys, ensure_channel_first=True),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=[spacing] * 3),
            AlignAtlasd("image", mode="affine"),
            ScaleIntensityRangePercentilesd(keys[:2], 0.5, 99.5, 0.0, 1.0, clip=True),
            ResizeWithPadOrCropd(keys, shape),
        ]
    )
    sample = transform({"image": str(data / f"images/{case}.nii.gz")})
    volume = np.concatenate([np.asarray(sample[key], dtype=np.float32) for key in keys])
    ids, counts = np.unique(volume[2][volume[2] > 0], return_counts=True)
    volume[2] = np.where(np.isin(volume[2], ids[np.argsort(counts)[-LABELS:]]), volume[2], 0)
    return volume


def phantom(shape: list[int]) -> np.ndarray:
    """Blobs that tile an ellipsoid: the voxels nearest to each of ``LABELS`` random points."""
    rng = np.random.default_rng(0)
    voxels = np.indices(shape).reshape(3, -1).T
    inside = (((voxels + 0.5) / shape - 0.5) ** 2).sum(axis=1) < 0.45**2
    points = voxels[inside][rng.choice(inside.sum(), LABELS, replace=False)]
    from scipy.spatial import cKDTree

    labels = np.zeros(len(voxels), dtype=np.float32)
    labels[inside] = 1 + cKDTree(points).query(voxels[inside])[1]
    return np.stack([*rng.random((2, *shape), dtype=np.float32), labels.reshape(shape)])


def recut(label_map: np.ndarray, count: int) -> np.ndarray:
    """The same foreground in ``count`` labels: the largest is cut in two at the median of its longest axis, and again.

    Fewer than there are start from one label.
    """
    ids = [int(i) for i in np.unique(label_map) if i > 0]
    if count == len(ids):
        return label_map
    pieces = [np.argwhere(label_map == i) for i in ids] if count > len(ids) else [np.argwhere(label_map > 0)]
    while len(pieces) < count:
        largest = pieces.pop(max(range(len(pieces)), key=lambda i: len(pieces[i])))
        axis = int(np.ptp(largest, axis=0).argmax())
        low = largest[:, axis] < np.median(largest[:, axis])
        pieces += [largest[low], largest[~low]]
    cut = np.zeros_like(label_map)
    for i, piece in enumerate(pieces, start=1):
        cut[tuple(piece.T)] = i
    return cut


def network(conditioning: str | None, norm, args: argparse.Namespace, out_channels: int = 1) -> LabelConditionedUNet:
    """The contender's network, ready to segment."""
    set_determinism(0)
    channels = [args.width * 2**i for i in range(5)]
    trained = args.weights is not None and conditioning == "bottleneck"
    prior_logit = json.loads(Path(args.weights).with_suffix(".json").read_text())["prior_logit"] if trained else 0.0
    net = LabelConditionedUNet(3, 1, 1, channels, conditioning, out_channels, norm=norm, prior_logit=prior_logit)
    if trained:
        state = torch.load(args.weights, map_location="cpu", weights_only=True)
        net.load_state_dict(state.get("model", state))
    memory_format = torch.channels_last_3d if args.device == "cpu" else torch.preserve_format
    return net.to(args.device, memory_format=memory_format).eval()


def naive(volume: torch.Tensor, args: argparse.Namespace) -> tuple[float, int, dict[str, np.ndarray]]:
    """Seconds for all labels, scaled, and the logits of those that were measured."""
    net = network("bottleneck", "batch", args)
    window = SlidingWindowInferer(args.roi, sw_batch_size=1, overlap=args.overlap)
    ids = present(volume)
    chosen = ids[:: max(len(ids) // NAIVE_LABELS, 1)][:NAIVE_LABELS]
    logits = {}
    reset_peak(args.device)
    start = time.perf_counter()
    for label in tqdm(chosen, desc="naive", leave=False):
        inputs = torch.cat([volume[:2], (volume[2:] == label).to(volume)])[None]
        logits[str(label)] = window(inputs, net)[0, 0].cpu().numpy()
    return seconds_since(start, args.device) / len(chosen) * len(ids), peak(args.device), logits


def multi_channel(volume: torch.Tensor, args: argparse.Namespace) -> tuple[float, int]:
    """Seconds and bytes for one channel per label."""
    net = network(None, "batch", args, out_channels=args.count)
    window = SlidingWindowInferer(args.roi, sw_batch_size=1, overlap=args.overlap)
    reset_peak(args.device)
    start = time.perf_counter()
    window(volume[None, :1], net).argmax(dim=1)
    return seconds_since(start, args.device), peak(args.device)


def sweep(volume: torch.Tensor, args: argparse.Namespace) -> tuple[float, int, np.ndarray]:
    """Seconds and bytes of the sweep over all labels, and the label map."""
    conditioning, norm, halo = SWEEPS[args.contender]
    net = network(conditioning, norm, args)
    inferer = LabelSweepInferer(None, args.roi, args.overlap, margin_mm=args.margin_mm, halo=halo, progress=True)
    inputs = MetaTensor(volume[None], affine=torch.diag(torch.tensor([*[args.spacing] * 3, 1.0])))
    reset_peak(args.device)
    start = time.perf_counter()
    label_map = inferer(inputs, net)
    return seconds_since(start, args.device), peak(args.device), label_map[0, 0].cpu().numpy()


def agreement(volume: torch.Tensor, args: argparse.Namespace, expected: dict[str, np.ndarray]) -> dict[str, float]:
    """How the sweep's answers for a few labels differ, inside their boxes, from those without boxes."""
    conditioning, norm, halo = SWEEPS[args.contender]
    net = network(conditioning, norm, args)
    margin = [math.ceil(args.margin_mm / args.spacing)] * 3
    inputs = MetaTensor(volume[None], affine=torch.diag(torch.tensor([*[args.spacing] * 3, 1.0])))
    chosen = [int(label) for label in expected]

    def probabilities(**kwargs) -> dict[int, torch.Tensor]:
        found: dict[int, torch.Tensor] = {}
        keep = lambda _, label, p: found.setdefault(label, p[0].cpu())  # noqa: E731
        LabelSweepInferer(chosen, args.roi, args.overlap, on_label=keep, **kwargs)(inputs, net)
        return found

    found = probabilities(margin_mm=args.margin_mm, halo=halo)
    if conditioning == "bottleneck":
        scores = {int(label): torch.sigmoid(torch.from_numpy(x)) for label, x in expected.items()}
    else:  # another network than the naive sweep's: compare with itself without boxes
        scores = probabilities()
    differ = voxels = 0
    largest = 0.0
    for label in chosen:
        mask = volume[2].cpu() == label
        box = label_boxes(mask.int())[1]
        inside = torch.zeros_like(mask)
        for part in split_box(mask[box], margin):
            inside[grow_box(unshift(part, box), margin, mask.shape)] = True
        ours, theirs = found[label][inside], scores[label][inside]
        differ += int(((ours > 0.5) != (theirs > 0.5)).sum())
        largest = max(largest, float((ours - theirs).abs().max()))
        voxels += int(inside.sum())
    return {"differ": differ / voxels, "score": largest}


def present(volume: torch.Tensor) -> list[int]:
    return [int(i) for i in torch.unique(volume[2]) if i > 0]


def seconds_since(start: float, device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def reset_peak(device: str) -> None:
    """Forget the peak so far, and take what is in use now as zero."""
    global _base
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        _base = torch.cuda.memory_allocated()
        return
    Path("/proc/self/clear_refs").write_text("5")
    _base = _high_water()


def peak(device: str) -> int:
    """Bytes above those in use when it was reset."""
    if device != "cpu":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - _base
    return _high_water() - _base


def _high_water() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def work(args: argparse.Namespace) -> None:
    """One contender, one number of labels, in this process; the result is the last line of output."""
    torch.set_grad_enabled(False)
    volume = torch.from_numpy(np.load(args.volume)).to(args.device)
    saved = Path(args.volume).with_name(f"naive_{args.count}.npz")
    result: dict[str, float] = {}
    if args.contender == "naive":
        seconds, used, logits = naive(volume, args)
        np.savez(saved, **logits)
    elif args.contender == "multi-channel":
        seconds, used = multi_channel(volume, args)
    else:
        seconds, used, label_map = sweep(volume, args)
        if saved.exists():
            result = agreement(volume, args, dict(np.load(saved)))
        np.save(Path(args.volume).with_name(f"{args.contender}_{args.count}.npy"), label_map)
    print(
        json.dumps(
            {"contender": args.contender, "labels": args.count, "seconds": seconds, "GiB": used / 2**30, **result}
        )
    )


def too_large(contender: str, count: int, voxels: int) -> bool:
    """Whether one float volume per label does not fit into three quarters of the memory."""
    pages = Path("/proc/meminfo").read_text().split()[1] if Path("/proc/meminfo").exists() else 2**24
    return contender == "multi-channel" and count * voxels * 4 > 0.75 * 1024 * int(pages)


def run(args: argparse.Namespace, folder: Path) -> pd.DataFrame:
    """Every contender with every number of labels, in turn."""
    volume = make_volume(args.data, args.case, args.atlas, args.spacing)
    rows = []
    with tqdm(total=len(args.counts) * len(args.contenders), desc="contenders") as bar:
        for count in args.counts:
            np.save(folder / f"volume_{count}.npy", np.stack([*volume[:2], recut(volume[2], count)]))
            for contender in args.contenders:
                bar.set_postfix_str(f"{contender}, {count} labels")
                if count > AT_MOST.get(contender, count):
                    rows.append({"contender": contender, "labels": count, "note": "not run: slow"})
                elif too_large(contender, count, volume[0].size):
                    needed = count * volume[0].size * 4 / 2**30
                    rows.append({"contender": contender, "labels": count, "GiB": needed, "note": "not run: too large"})
                elif contender == "naive" and count != LABELS:
                    rows.append({"contender": contender, "labels": count, "note": f"scaled from {LABELS} labels"})
                else:
                    options = ["--contender", contender, "--count", count, "--volume", folder / f"volume_{count}.npy"]
                    command = [sys.executable, __file__, *sys.argv[1:], *map(str, options)]
                    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                    rows.append(json.loads(done.stdout.splitlines()[-1]))
                    if contender == "naive":
                        rows[-1]["note"] = f"{NAIVE_LABELS} labels measured"
                if args.weights and contender == "sweep, exact halo" and "seconds" in rows[-1]:
                    compare_maps(rows, folder, count)
                pd.DataFrame(rows).to_csv(args.out / "inference.tsv", sep="\t", index=False)
                bar.update()
    table = pd.DataFrame(rows)
    naive = table["contender"] == "naive"
    measured = table[naive & (table["labels"] == LABELS)]
    if len(measured):  # every label costs the same
        table.loc[naive, "seconds"] = measured["seconds"].item() / LABELS * table["labels"][naive]
        table.loc[naive, "GiB"] = measured["GiB"].item()
    return table


def compare_maps(rows: list[dict], folder: Path, count: int) -> None:
    """Add to the rows of a smaller halo the share of the labeled voxels whose label differs from the exact halo's."""
    exact = np.load(folder / f"sweep, exact halo_{count}.npy")
    for row in rows:
        if row["labels"] == count and row["contender"] in ("sweep, halo 0", "sweep, halo 1"):
            found = np.load(folder / f"{row['contender']}_{count}.npy")
            row["map differs"] = float((found != exact).sum() / ((found > 0) | (exact > 0)).sum().clip(1))


def ratios(table: pd.DataFrame) -> pd.DataFrame:
    """What the sweep gains, as ratios within this run."""
    cells = table.set_index(["contender", "labels"])

    def ratio(column: str, a: tuple[str, int], b: tuple[str, int]) -> float:
        return cells[column].get(a, math.nan) / cells[column].get(b, math.nan)

    rows = []
    for contender in SWEEPS:
        rows.append(
            {
                "sweep": contender.removeprefix("sweep, "),
                "naive / sweep, time": ratio("seconds", ("naive", 133), (contender, 133)),
                "sweep / multi-channel, time": ratio("seconds", (contender, 133), ("multi-channel", 133)),
                "multi-channel / sweep, memory": ratio("GiB", ("multi-channel", 133), (contender, 133)),
                "1000 / 133 labels, time": ratio("seconds", (contender, 1000), (contender, 133)),
                "1000 / 1 labels, memory": ratio("GiB", (contender, 1000), (contender, 1)),
            }
        )
    return pd.DataFrame(rows)


def plot(table: pd.DataFrame, path: Path) -> None:
    """Time and memory against the number of labels."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for contender, rows in table.groupby("contender", sort=False):
        axes[0].plot(rows["labels"], rows["seconds"], marker="o", label=contender)
        axes[1].plot(rows["labels"], rows["GiB"], marker="o", label=contender)
    for axis, name in zip(axes, ("seconds", "peak memory above the model, GiB"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="labels", ylabel=name)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path)


def markdown(table: pd.DataFrame, decimals: dict[str, str]) -> str:
    """The table in Markdown."""
    head = [str(column) for column in table.columns]
    body = [
        ["" if pd.isna(value) else format(value, decimals.get(name, "")) for name, value in row.items()]
        for row in table.to_dict("records")
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="where the results go")
    parser.add_argument("--data", type=Path, help="folder of malc2012; a phantom without it")
    parser.add_argument("--case", default="1001")
    parser.add_argument("--atlas", default="1000")
    parser.add_argument(
        "--spacing", type=float, default=1.0, help="voxel size in mm; the volume has 160/spacing voxels ..."
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 10, 133, 1000], help="numbers of labels")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--width", type=int, help="of the first level; 16 on a CPU, 32 on a GPU by default")
    parser.add_argument("--roi", type=int, nargs=3, default=[64, 80, 64], help="window in voxels")
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--margin_mm", type=float, default=10.0)
    parser.add_argument("--weights", help="of the paper's network, for the agreement")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--volume", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.width = args.width or (16 if args.device == "cpu" else 32)
    return args


def main() -> None:
    args = parse()
    if args.contender:
        work(args)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        table = run(args, Path(folder))
    table.to_csv(args.out / "inference.tsv", sep="\t", index=False)
    plot(table, args.out / "inference.svg")
    device = torch.cuda.get_device_name() if args.device != "cpu" else f"{torch.get_num_threads()} CPU threads"
    columns = ["contender", "labels", "seconds", "GiB", "differ", "score", "map differs", "note"]
    table = table[[column for column in columns if column in table]]
    formats = {"seconds": ".1f", "GiB": ".2f", "differ": ".4%", "map differs": ".2%", "score": ".1e"}
    text = "\n\n".join(
        [
            f"`python benchmarks/inference.py {' '.join(sys.argv[1:])}`: {device}, PyTorch {torch.__version__},"
            f" {platform.machine()}, widths from {args.width}",
            markdown(table, formats),
            markdown(ratios(table), dict.fromkeys(ratios(table).columns[1:], ".2f")),
        ]
    )
    (args.out / "inference.md").write_text(text + "\n")
    print(text)


_base = 0

if __name__ == "__main__":
    main()
