"""Inferers: from a network that predicts one label to the label map of a whole volume."""

from monai_lcs.inferers.atlas_label import AtlasLabelInferer
from monai_lcs.inferers.helpers import HelpedInferer, follow, leading
from monai_lcs.inferers.label_box import LabelBoxInferer
from monai_lcs.inferers.label_sweep import LabelSweepInferer, name_scan_grid
from monai_lcs.inferers.ranks import Ranks, join_ranks, leave_ranks
from monai_lcs.inferers.scan_votes import ScanVotes

__all__ = [
    "AtlasLabelInferer",
    "HelpedInferer",
    "LabelBoxInferer",
    "LabelSweepInferer",
    "Ranks",
    "ScanVotes",
    "follow",
    "join_ranks",
    "leading",
    "leave_ranks",
    "name_scan_grid",
]
