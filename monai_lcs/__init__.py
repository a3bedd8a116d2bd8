"""Label conditioned segmentation (LCS) for MONAI: one output channel, any number of labels.

import monai_lcs as lcs

atlas = lcs.Atlas.read("T1w.nii.gz", "dseg.nii.gz", "dseg.tsv")
segmenter = lcs.Segmenter.load("model.pt", atlas)
result = segmenter("scan.nii.gz", labels=["Right-*", "Left-Hippocampus + Left-Amygdala"])
result.save("results")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_lcs.lazy import lazy_names

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

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Atlas": "atlas",
        "Label": "labels",
        "LabelTable": "labels",
        "Segmentation": "results",
        "Segmenter": "pipeline",
        "Settings": "pipeline",
        "named_atlas": "atlas",
        "shipped_weights": "pipeline",
        "train": "pipeline",
    },
)
