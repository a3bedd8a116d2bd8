"""Scan in, segmentation out: the settings, the preprocessing, the segmenter and the training."""
