"""Inferers: from a network that predicts one label to the label map of a whole volume."""

from monai_lcs.inferers.atlas_label import AtlasLabelInferer
from monai_lcs.inferers.label_box import LabelBoxInferer
from monai_lcs.inferers.label_sweep import LabelSweepInferer

__all__ = ["AtlasLabelInferer", "LabelBoxInferer", "LabelSweepInferer"]
