"""The label conditioned U-Net, and what an inferer needs of a network."""

from monai_lcs.networks.crops import check_halo
from monai_lcs.networks.mean import MeanNetwork
from monai_lcs.networks.protocol import LabelConditionedNetwork
from monai_lcs.networks.unet import Features, LabelConditionedUNet

__all__ = ["Features", "LabelConditionedNetwork", "LabelConditionedUNet", "MeanNetwork", "check_halo"]
