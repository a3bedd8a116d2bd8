"""What needs MONAI Label: ``pip install 'monai_lcs[label]'``."""
