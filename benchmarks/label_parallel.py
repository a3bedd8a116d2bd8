"""Measures a sweep whose labels are shared among processes against that of one process, each on one thread.

    python benchmarks/label_parallel.py SCAN [--atlas desikan-killiany] [--weights model.pt] [--counts 1 2]

One process prepares the scan and aligns the atlas. Then 1, 2, ... processes segment it in turn, ``--repeats`` times,
and the shortest is printed: seconds by the clock, and of the processor in the busiest process, which other work on the
machine does not lengthen. The results must be equal in every voxel.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from monai_lcs import Atlas, Segmenter, named_atlas
from monai_lcs.inferers import join_ranks, name_scan_grid
from monai_lcs.pipeline import shipped_weights
from monai_lcs.pipeline.preprocessing import NETWORK_KEYS


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan")
    parser.add_argument("--atlas", nargs="+", default=["desikan-killiany"], help="a name; or image, labels, table")
    parser.add_argument("--weights", type=Path, default=shipped_weights())
    parser.add_argument("--cache", help="folder of alignments")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def work(rank: int, most: int, args: argparse.Namespace, folder: str) -> None:
    """One process: it takes part where there are more processes than its rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=most)
    join_ranks()
    settings, network, inputs, labels = torch.load(f"{folder}/work.pt", weights_only=False)
    groups = {count: dist.new_group(range(count)) for count in args.counts}
    expected, times = None, {count: [] for count in args.counts}
    for _ in range(args.repeats + 1):  # the first one warms up
        for count in args.counts:
            dist.barrier()
            if rank < count:
                result, seconds = measure(settings, network, inputs, labels, count, groups[count])
                times[count].append(seconds)
                expected = result if expected is None else expected
                assert torch.equal(result, expected)
    dist.barrier()
    if rank == 0:
        report(len(labels), times)
    dist.destroy_process_group()


def measure(settings, network, inputs, labels, count, group):
    """The result, and its seconds: by the clock, and of the processor in the busiest process."""
    sweep = settings.label_sweep(labels, upsample=None, label_parallel=group if count > 1 else False)
    wall, cpu = time.perf_counter(), time.process_time()
    result = sweep(inputs, network).as_tensor()
    seconds = torch.tensor([time.perf_counter() - wall, time.process_time() - cpu])
    dist.all_reduce(seconds, dist.ReduceOp.MAX, group=group)
    return result, seconds.tolist()


def report(labels: int, times: dict[int, list[list[float]]]) -> None:
    best = {count: [min(column) for column in zip(*rows[1:], strict=True)] for count, rows in times.items()}
    first = best[min(best)]
    print(f"{labels} labels")
    print(
        "| processes | seconds | of one | processor seconds of the busiest | of one |\n| --: | --: | --: | --: | --: |"
    )
    for count, (wall, cpu) in best.items():
        print(f"| {count} | {wall:.2f} | {wall / first[0]:.2f} | {cpu:.2f} | {cpu / first[1]:.2f} |")


def main() -> None:
    args = parse()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    atlas = named_atlas(*args.atlas) if len(args.atlas) == 1 else Atlas.read(*args.atlas)
    segmenter = Segmenter.load(args.weights, atlas, cache=args.cache)
    scan = segmenter.prepare(args.scan)
    aligned = segmenter.align(scan)
    volumes = segmenter.preprocessing.network_input(scan, aligned)
    stacked = torch.cat([volumes[key].as_tensor() for key in NETWORK_KEYS])[None]
    inputs = type(scan.image)(stacked, affine=volumes["atlas_label"].affine)
    inputs = name_scan_grid(inputs, scan.source, aligned.scan_votes, aligned.vote_weight)
    labels = {one.id: one.ids for one in segmenter.request()}
    with tempfile.TemporaryDirectory() as folder:
        torch.save((segmenter.settings, segmenter.network, inputs, labels), f"{folder}/work.pt")
        del segmenter
        mp.spawn(work, (max(args.counts), args, folder), nprocs=max(args.counts))


if __name__ == "__main__":
    main()
