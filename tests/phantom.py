"""A head with three blobs, for the tests that register: small, and different for each person."""

import numpy as np

from monai_lcs.labels import Label, LabelTable

SHAPE, MM = (36, 40, 34), 4.0
AFFINE = np.array([[MM, 0, 0, -72], [0, MM, 0, -80], [0, 0, MM, -68], [0, 0, 0, 1]])
TABLE = LabelTable(
    [Label(11, "Left-Caudate", "Striatum", "L"), Label(50, "Right-Caudate", "Striatum", "R"), Label(16, "Stem")]
)
CENTERS = {11: (-16, 14, 12), 50: (16, 10, 15), 16: (0, -16, -22)}
SETTINGS = {"align": "affine", "spacing": [MM] * 3, "channels": [4, 8], "margin_mm": 12.0, "prior_logit": 1.0}
"""Settings of a small and quick network for it."""


def make_volume(rng=None):
    """Image and label map; of another position and size for each person, the atlas without ``rng``."""
    xyz = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1) @ AFFINE[:3, :3] + AFFINE[:3, 3]
    if rng:
        xyz = (xyz - rng.uniform(-5, 5, 3)) / rng.uniform(0.93, 1.07, 3)
    head = (np.square((xyz - (0, -8, 0)) / (58, 66, 54))).sum(-1) < 1
    image, labels = (20 + 0.01 * xyz[..., 2]) * head, np.zeros(SHAPE, np.uint8)
    for grey, (label, center) in enumerate(CENTERS.items(), start=2):
        inside = np.square(xyz - center).sum(-1) < 13**2
        image[inside], labels[inside] = 25.0 * grey, label
    noise = rng.standard_normal(SHAPE) if rng else 0
    return (image + noise).astype(np.float32), labels
