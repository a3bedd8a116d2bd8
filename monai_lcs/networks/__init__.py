"""The label conditioned U-Net."""

from monai_lcs.networks.unet import Features, LabelConditionedUNet, check_halo

__all__ = ["Features", "LabelConditionedUNet", "check_halo"]
