"""Measures seconds, memory and agreement of label conditioned inference and its rivals, by the number of labels.

    python benchmarks/inference.py OUT [--data MALC2012] [--counts 1 10 133 1000]

Each contender segments one volume of 160x208x160 voxels at 1 mm, in a fresh process, with random weights (time and
memory do not depend on them) or those of ``--weights``. The volume is a scan of ``--data`` with the affinely aligned
atlas, else a phantom of blobs. Labels are cut or merged until there are as many as asked for: the foreground stays the
same. OUT gets ``inference.tsv``, ``inference.md`` (what is printed) and ``inference.svg``.

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
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import ResizeWithPadOrCrop
from monai.utils import set_determinism
from tqdm import tqdm

from monai_lcs import Atlas, Settings
from monai_lcs.inferers import LabelSweepInferer
from monai_lcs.inferers.margin import label_parts, margin_voxels
from monai_lcs.pipeline import Preprocessing, load_weights, make_network, on_device
from monai_lcs.pipeline.preprocessing import NETWORK_KEYS

LABELS = 133  # of the 138 that every scan of malc2012 has, the largest
NAIVE_LABELS = 4  # measured, then scaled
AT_MOST = {"sweep, halo 1": LABELS, "sweep, exact halo": LABELS}  # with more labels they take many minutes
BY_LABEL = ("bottleneck", "multiscale")  # networks that decode label by label, as the naive sweep needs
PAPER = {"conditioning": "bottleneck", "norm": "batch", "prior_logit": 0.0}
SWEEPS = {  # what differs from the package's settings
    "sweep, shared decoder": {"conditioning": "shared", "prior_logit": 0.0, "halo": "exact"},
    "sweep, halo 0": {**PAPER, "halo": 0},
    "sweep, halo 1": {**PAPER, "halo": 1},
    "sweep, exact halo": {**PAPER, "halo": "exact"},
}
CONTENDERS = ("naive", "multi-channel", *SWEEPS)

Row = dict[str, Any]


def make_volume(data: Path | None, case: str, atlas: str, spacing: float) -> np.ndarray:
    """Image, atlas image and atlas label map with ``LABELS`` labels ``(3, *spatial)``, float32."""
    shape = [round(size / spacing) for size in (160, 208, 160)]
    if data is None:
        return phantom(shape)
    settings = Settings(align="affine", spacing=[spacing] * 3, margin_mm=None)
    preprocessing = Preprocessing(Atlas.read(*files(data, atlas)), settings)
    sample = preprocessing({"image": files(data, case)[0]})
    fit = ResizeWithPadOrCrop(shape)
    volume = np.concatenate([np.asarray(fit(sample[key]), dtype=np.float32) for key in NETWORK_KEYS])
    ids, counts = np.unique(volume[2][volume[2] > 0], return_counts=True)
    volume[2] = np.where(np.isin(volume[2], ids[np.argsort(counts)[-LABELS:]]), volume[2], 0)
    return volume


def files(data: Path, case: str) -> tuple[Path, Path]:
    """Image and label map of a case."""
    return data / f"images/{case}.nii.gz", data / f"labels/{case}.nii.gz"


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


def settings_of(contender: str, args: argparse.Namespace) -> Settings:
    """The settings of a contender: the paper's or, with ``--weights``, theirs; the shared decoder's are its own."""
    given: dict[str, Any] = SWEEPS.get(contender, PAPER)
    if args.weights and given["conditioning"] in BY_LABEL:
        return replace(Settings.of_weights(args.weights), margin_mm=args.margin_mm, halo=given.get("halo", 0))
    widths = [args.width * 2**level for level in range(5)]
    return Settings(**{"channels": widths, "margin_mm": args.margin_mm, **given})


def network(settings: Settings, args: argparse.Namespace, **options: Any) -> torch.nn.Module:
    """A contender's network, ready to segment."""
    set_determinism(0)
    net = make_network(settings, **options)
    if args.weights and settings.conditioning in BY_LABEL:
        load_weights(args.weights, net)
    return on_device(net, args.device).eval()


def naive(volume: torch.Tensor, args: argparse.Namespace) -> tuple[float, int, dict[str, np.ndarray]]:
    """Seconds for all labels, scaled, and the logits of those that were measured."""
    net = network(settings_of("naive", args), args)
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
    net = network(replace(settings_of("multi-channel", args), conditioning=None), args, out_channels=args.count)
    window = SlidingWindowInferer(args.roi, sw_batch_size=1, overlap=args.overlap)
    reset_peak(args.device)
    start = time.perf_counter()
    window(volume[None, :1], net).argmax(dim=1)
    return seconds_since(start, args.device), peak(args.device)


def sweep(volume: torch.Tensor, args: argparse.Namespace) -> tuple[float, int, np.ndarray]:
    """Seconds and bytes of the sweep over all labels, and the label map."""
    settings = settings_of(args.contender, args)
    net = network(settings, args)
    inferer = settings.label_sweep(roi_size=args.roi, overlap=args.overlap, progress=True)
    inputs = as_input(volume, args)
    reset_peak(args.device)
    start = time.perf_counter()
    label_map = inferer(inputs, net)
    return seconds_since(start, args.device), peak(args.device), label_map[0, 0].cpu().numpy()


def as_input(volume: torch.Tensor, args: argparse.Namespace) -> MetaTensor:
    """The volume as a batch of one, with its voxel size."""
    return MetaTensor(volume[None], affine=torch.diag(torch.tensor([*[args.spacing] * 3, 1.0])))


def agreement(volume: torch.Tensor, args: argparse.Namespace, expected: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Compare the sweep's answers for a few labels, inside their boxes, with those without boxes."""
    settings = settings_of(args.contender, args)
    net, inputs = network(settings, args), as_input(volume, args)
    chosen = [int(label) for label in expected]
    options: dict[str, Any] = {"labels": chosen, "roi_size": args.roi, "overlap": args.overlap}

    def probabilities(make: Callable[..., LabelSweepInferer]) -> dict[int, torch.Tensor]:
        found: dict[int, torch.Tensor] = {}
        make(on_label=lambda _, label, p: found.setdefault(label, p[0].cpu()), **options)(inputs, net)
        return found

    found = probabilities(settings.label_sweep)
    if settings.conditioning in BY_LABEL:
        scores = {int(label): torch.sigmoid(torch.from_numpy(x)) for label, x in expected.items()}
    else:  # another network than the naive sweep's: compare with itself without boxes
        scores = probabilities(LabelSweepInferer)
    differ = voxels = 0
    largest = 0.0
    for label in chosen:
        inside = in_boxes(volume[2].cpu(), label, margin_voxels(args.margin_mm, inputs))
        ours, theirs = found[label][inside], scores[label][inside]
        differ += int(((ours > 0.5) != (theirs > 0.5)).sum())
        largest = max(largest, float((ours - theirs).abs().max()))
        voxels += int(inside.sum())
    return {"differ": differ / voxels, "score": largest}


def in_boxes(label_map: torch.Tensor, label: int, margin: list[int]) -> torch.Tensor:
    """Mask of the boxes in which a label is decoded."""
    inside = torch.zeros_like(label_map, dtype=torch.bool)
    for part in label_parts(label_map.int(), {label: (label,)}, margin):
        inside[part.box] = True
    return inside


def present(volume: torch.Tensor) -> list[int]:
    """The ids in the atlas label map."""
    return [int(i) for i in torch.unique(volume[2]) if i > 0]


def seconds_since(start: float, device: str) -> float:
    """Seconds until all work on the device is done."""
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
    """The largest memory of this process in bytes, since it was cleared where the system can do that."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (
        int(
            next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM")).split()[
                1
            ]
        )
        * 1024
    )


def work(args: argparse.Namespace) -> None:
    """Measure one contender with one number of labels in this process; the result is the last line of output."""
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
    """Tell whether one float volume per label does not fit into three quarters of the memory."""
    pages = Path("/proc/meminfo").read_text(encoding="utf-8").split()[1] if Path("/proc/meminfo").exists() else 2**24
    return contender == "multi-channel" and count * voxels * 4 > 0.75 * 1024 * int(pages)


def run(args: argparse.Namespace, folder: Path) -> pd.DataFrame:
    """Measure every contender with every number of labels, in turn."""
    volume = make_volume(args.data, args.case, args.atlas, args.spacing)
    rows: list[Row] = []
    with tqdm(total=len(args.counts) * len(args.contenders), desc="contenders") as bar:
        for count in args.counts:
            np.save(folder / f"volume_{count}.npy", np.stack([*volume[:2], recut(volume[2], count)]))
            for contender in args.contenders:
                bar.set_postfix_str(f"{contender}, {count} labels")
                skipped = skip(contender, count, volume[0].size)
                rows.append(skipped or measure(contender, count, folder))
                if args.weights and contender == "sweep, exact halo" and not skipped:
                    compare_maps(rows, folder, count)
                pd.DataFrame(rows).to_csv(args.out / "inference.tsv", sep="\t", index=False)
                bar.update()
    return scale_naive(pd.DataFrame(rows))


def skip(contender: str, count: int, voxels: int) -> Row | None:
    """The row of a contender that is not measured, with the reason; ``None`` for one that is."""
    row: Row = {"contender": contender, "labels": count}
    if count > AT_MOST.get(contender, count):
        return {**row, "note": "not run: slow"}
    if too_large(contender, count, voxels):
        return {**row, "GiB": count * voxels * 4 / 2**30, "note": "not run: too large"}
    if contender == "naive" and count != LABELS:
        return {**row, "note": f"scaled from {LABELS} labels"}
    return None


def measure(contender: str, count: int, folder: Path) -> Row:
    """The row of a contender, measured in a process of its own."""
    options = ["--contender", contender, "--count", str(count), "--volume", str(folder / f"volume_{count}.npy")]
    command = [sys.executable, __file__, *sys.argv[1:], *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return {**row, "note": f"{NAIVE_LABELS} labels measured"} if contender == "naive" else row


def scale_naive(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the naive sweep for all numbers of labels: every label costs the same."""
    naive = table["contender"] == "naive"
    measured = table[naive & (table["labels"] == LABELS)]
    if len(measured):
        table.loc[naive, "seconds"] = measured["seconds"].item() / LABELS * table["labels"][naive]
        table.loc[naive, "GiB"] = measured["GiB"].item()
    return table


def compare_maps(rows: list[Row], folder: Path, count: int) -> None:
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
    """The command line."""
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
    parser.add_argument("--width", type=int, help="of the first level; 16 on a CPU, 32 on a GPU")
    parser.add_argument("--roi", type=int, nargs=3, default=[64, 80, 64], help="window in voxels")
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--margin_mm", type=float, default=10.0)
    parser.add_argument("--weights", help="of a network that decodes label by label, for the agreement")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--volume", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.width = args.width or (16 if args.device == "cpu" else 32)
    return args


def main() -> None:
    """Measure, then write the tables and the figure; or one measurement, in a process that was started for it."""
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
