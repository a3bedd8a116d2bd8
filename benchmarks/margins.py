"""Measures how far true labels lie from the propagated ones, to choose the default of ``margin_mm``.

``LabelSweepInferer`` decodes a label only in the bounding box of its propagated label, grown on each side by
``margin_mm``. For several margins this prints how much of the true labels such boxes hold, and how much they cost:

    python benchmarks/margins.py DATA [--atlas 1000] [--cases 1001 1002] [--margins 5 10 15 20] [--out pairs.tsv]

DATA holds images/ID.nii.gz and labels/ID.nii.gz. Without ``--cases``, the cases are those of the sections training and
validation of benchmarks/splits/malc2012.json. Scans are resampled and aligned with the package's default settings,
at 2 mm. Each margin is a row:

- ``mean %``, ``1st percentile %``: share of a label's true voxels in its box, over all pairs of a case and a label,
- ``worst %``, ``worst pair``: the lowest share, and its case and label,
- ``complete %``: pairs with all true voxels in the box,
- ``decoded volumes``: sum of all boxes over the volume of the image, the mean of the cases.

``--out`` writes the share of each pair, so that other statistics need no second run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from monai.data import MetaTensor
from torch import Tensor
from tqdm import tqdm

from monai_lcs import Atlas, Settings
from monai_lcs.boxes import Box, crop, grow_box, label_boxes, volume_of
from monai_lcs.inferers.margin import margin_voxels
from monai_lcs.pipeline import Preprocessing
from monai_lcs.study.checks import read_label_map

SPLIT = Path(__file__).parent / "splits" / "malc2012.json"


def default_cases() -> list[str]:
    """Ids of the training and validation scans; those to test are not used to choose a default."""
    split = json.loads(SPLIT.read_text(encoding="utf-8"))
    return [Path(item["image"]).name.split(".")[0] for key in ("training", "validation") for item in split[key]]


def files(data: Path, case: str) -> tuple[Path, Path]:
    """Image and label map of a case."""
    return data / "images" / f"{case}.nii.gz", data / "labels" / f"{case}.nii.gz"


def propagate_and_read(preprocessing: Preprocessing, image: Path, labels: Path) -> tuple[MetaTensor, MetaTensor]:
    """The propagated and the true labels of a case, both ``(1, *spatial)`` on the network's grid, not cropped."""
    aligned = preprocessing.align(preprocessing.prepare(image))
    return aligned.label_map, preprocessing.on_network_grid(read_label_map(labels), "nearest")


def grow_boxes(boxes: Mapping[int, Box], margin_mm: float, image: Tensor) -> dict[int, Box]:
    """The boxes grown by a margin within an image ``(1, *spatial)``, rounded up to voxels as the inferer does."""
    margin = margin_voxels(margin_mm, image[None])
    return {label: grow_box(box, margin, image.shape[1:]) for label, box in boxes.items()}


def count_voxels(labels: Tensor) -> dict[int, int]:
    """Voxels of each label of a label map, the background left out."""
    ids, counts = torch.unique(labels, return_counts=True)
    return {int(i): int(n) for i, n in zip(ids, counts, strict=True) if i}


def shares(true: Tensor, boxes: Mapping[int, Box]) -> dict[int, float]:
    """The share of a label's true voxels inside its box, for each label that has both."""
    voxels = count_voxels(true)
    return {i: float((crop(true, boxes[i]) == i).sum()) / n for i, n in voxels.items() if i in boxes}


def box_volumes(boxes: Iterable[Box], image: Tensor) -> float:
    """Volume of all boxes together, in volumes of the image."""
    return sum(map(volume_of, boxes)) / image.numel()


def measure(
    propagated: MetaTensor, true: MetaTensor, case: str, margins: Sequence[float]
) -> tuple[list[dict], list[dict]]:
    """Rows of one case: for each margin and label its share, and for each margin the decoded volumes."""
    pairs, decoded = [], []
    found = label_boxes(propagated.as_tensor()[0])
    for margin in margins:
        boxes = grow_boxes(found, margin, propagated)
        inside = shares(true.as_tensor()[0].int(), boxes)
        pairs += [{"margin_mm": margin, "case": case, "label": i, "share": share} for i, share in inside.items()]
        decoded.append({"margin_mm": margin, "case": case, "volumes": box_volumes(boxes.values(), propagated)})
    return pairs, decoded


def summary(pairs: pd.DataFrame, decoded: pd.DataFrame) -> pd.DataFrame:
    """The table to print, one row per margin."""
    by_margin = pairs.groupby("margin_mm")["share"]
    worst = pairs.loc[by_margin.idxmin()].set_index("margin_mm")
    return pd.DataFrame(
        {
            "mean %": 100 * by_margin.mean(),
            "1st percentile %": 100 * by_margin.quantile(0.01),
            "worst %": 100 * worst["share"],
            "worst pair": worst["case"] + " label " + worst["label"].astype(str),
            "complete %": 100 * by_margin.agg(lambda share: (share == 1).mean()),
            "decoded volumes": decoded.groupby("margin_mm")["volumes"].mean(),
        }
    )


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure how much of the true labels the boxes of a margin hold.")
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with images/ID.nii.gz and labels/ID.nii.gz")
    parser.add_argument("--atlas", default="1000", help="id of the atlas")
    parser.add_argument("--align", default=Settings().align, help="how the atlas is aligned (default: %(default)s)")
    parser.add_argument("--cases", nargs="+", default=default_cases(), help="ids; training and validation by default")
    parser.add_argument("--margins", nargs="+", type=float, default=[5.0, 10.0, 15.0, 20.0], help="in mm")
    parser.add_argument("--out", type=Path, metavar="FILE.tsv", help="write the share of each case and label here")
    return parser.parse_args()


def main() -> None:
    """Align the atlas to each case, measure, print the table."""
    args = parse_arguments()
    preprocessing = Preprocessing(Atlas.read(*files(args.data, args.atlas)), Settings(align=args.align))
    pairs, decoded = [], []
    for case in tqdm(args.cases, desc="cases"):
        propagated, true = propagate_and_read(preprocessing, *files(args.data, case))
        more_pairs, more_decoded = measure(propagated, true, case, args.margins)
        pairs += more_pairs
        decoded += more_decoded
    table = pd.DataFrame(pairs)
    if args.out:
        table.to_csv(args.out, sep="\t", index=False, float_format="%.6g")
    print(f"{len(args.cases)} cases, {len(table) // len(args.margins)} pairs of a case and a label")
    print(summary(table, pd.DataFrame(decoded)).to_string(float_format="{:.2f}".format))


if __name__ == "__main__":
    main()
