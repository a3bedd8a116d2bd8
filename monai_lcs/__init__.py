"""Label conditioned segmentation (LCS) for MONAI: one channel out, any number of labels."""

__version__ = "0.1.0"
