"""Inferers: from a network that answers for one label to the labels of a whole volume."""

from monai_lcs.inferers.label_sweep import AtlasLabelInferer, LabelBoxInferer, LabelSweepInferer

__all__ = ["AtlasLabelInferer", "LabelBoxInferer", "LabelSweepInferer"]
