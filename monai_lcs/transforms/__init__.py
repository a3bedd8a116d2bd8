"""Transforms: which labels are asked for, and where the atlas lies on the image."""
