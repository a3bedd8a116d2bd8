"""Label conditioned segmentation (LCS) for MONAI: one output channel, any number of labels.

import monai_lcs as lcs

atlas = lcs.Atlas.read("T1w.nii.gz", "dseg.nii.gz", "dseg.tsv")
segmenter = lcs.Segmenter.load("model.pt", atlas)
result = segmenter("scan.nii.gz", labels=["Right-*", "Left-Hippocampus + Left-Amygdala"])
result.save("results")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monai_lcs.atlas import Atlas, named_atlas
    from monai_lcs.labels import Label, LabelTable
    from monai_lcs.pipeline import Segmenter, Settings, shipped_weights, train
    from monai_lcs.results import Segmentation

__version__ = "0.1.0"

__all__ = [
    "Atlas",
    "Label",
    "LabelTable",
    "Segmentation",
    "Segmenter",
    "Settings",
    "named_atlas",
    "shipped_weights",
    "train",
]

_HOMES = {
    "Atlas": "atlas",
    "Label": "labels",
    "LabelTable": "labels",
    "Segmentation": "results",
    "Segmenter": "pipeline",
    "Settings": "pipeline",
    "named_atlas": "atlas",
    "shipped_weights": "pipeline",
    "train": "pipeline",
}


def __getattr__(name: str) -> Any:
    """Import a name of the API when it is first used: networks and inferers alone need no SimpleITK."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"monai_lcs.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'monai_lcs' has no attribute {name!r}")


def __dir__() -> list[str]:
    """What is offered where a name is completed, also before its first use."""
    return sorted({*globals(), *__all__})
