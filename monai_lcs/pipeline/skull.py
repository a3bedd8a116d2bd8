"""The skull: is there one in a scan, and the mask of the brain without it."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from monai.utils import look_up_option, optional_import
from scipy import ndimage

from monai_lcs.grids import affine_of

__all__ = ["STRIPPING", "SkullStripper", "brain_of", "extract_brain", "has_skull", "warn_of_skull"]

STRIPPING = ("auto", "yes", "no")
"""Whether to remove the skull: where there seems to be one, always, never."""

INSTALL = "pip install 'monai-lcs[strip]'"

NOT_LOOKED_FOR = "not looked for"
LEFT_ALONE = "not looked for, as asked for"

LOOK_MM = 3.0  # the resolution at which a skull is looked for
SHELLS_MM = np.arange(3.0, 25.0, 3.0)  # depths below the surface between which bone lies
DARK = 0.4  # of the intensity deep inside: darker voxels may be bone, or fluid
DARK_SHELL = 0.3  # share of dark voxels in a shell; bone makes 0.37 to 0.8, sulci and ventricles up to 0.25
LARGEST_BRAIN_ML = 2300.0

logger = logging.getLogger(__name__)


def has_skull(scan: MetaTensor) -> bool:
    """Tell whether a scan of a head shows more than the brain.

    Bone is dark in MR and lies as a shell between the skin and the brain, where a brain alone is bright. So there is a
    skull if many voxels of one of the 3 mm thin shells below the surface are dark, or if all is larger than a brain is.
    The edge of the image is no surface: of a slab, the cut faces say nothing.

    Args:
        scan: ``(1, *spatial)``, of any contrast, orientation and voxel size; left as it is.

    Example:
        >>> x = torch.stack(torch.meshgrid(*[torch.arange(-50.0, 50)] * 3, indexing="ij")).norm(dim=0)[None]
        >>> brain = (x < 30) * 80.0
        >>> has_skull(MetaTensor(brain)), has_skull(MetaTensor(brain + ((x > 38) & (x < 45)) * 100))
        (False, True)
    """
    values, mm = _small(scan)
    inside = _foreground(values)
    if inside.sum() * np.prod(mm) / 1000 > LARGEST_BRAIN_ML:
        return True
    # Repeated at the edge: cut faces are not the surface
    depth = ndimage.distance_transform_edt(np.pad(inside, 1, mode="edge"), sampling=mm)[1:-1, 1:-1, 1:-1]
    deep = inside & (depth > 0.6 * depth.max())
    if not deep.any():
        return False
    dark = values < DARK * np.median(values[deep])
    depths = [
        start for start in SHELLS_MM if mm.max() <= start < 0.7 * depth.max()
    ]  # the outermost voxels are half air
    shells = [inside & (depth > start) & (depth <= start + LOOK_MM) for start in depths]
    return any(dark[shell].mean() > DARK_SHELL for shell in shells if shell.any())


def _small(scan: MetaTensor) -> tuple[np.ndarray, np.ndarray]:
    """Every few voxels of a scan, about 3 mm apart, scaled to [0, 1]; and their size in mm."""
    sizes = np.linalg.norm(affine_of(scan)[:3, :3], axis=0)
    steps = np.maximum(1, np.rint(LOOK_MM / sizes)).astype(int)
    values = scan.as_tensor()[0].cpu().numpy()[tuple(slice(None, None, step) for step in steps)]
    low, high = np.percentile(values, [0.5, 99])
    return np.clip((values - low) / max(float(high - low), 1e-6), 0, 1), sizes * steps


def _foreground(values: np.ndarray) -> np.ndarray:
    """What is not air, and all that it encloses."""
    smooth = ndimage.gaussian_filter(values.astype(np.float32), 0.7)  # no specks of noise, but skin stays
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.Execute(sitk.GetImageFromArray(smooth))
    mask = smooth > max(otsu.GetThreshold() / 2, 0.05)
    closed = ndimage.binary_closing(np.pad(mask, 4), iterations=3)
    filled = ndimage.binary_opening(ndimage.binary_fill_holes(closed))[4:-4, 4:-4, 4:-4]
    parts, number = ndimage.label(filled)
    return parts == 1 + np.argmax(ndimage.sum_labels(filled, parts, range(1, number + 1))) if number else filled


def extract_brain(scan: MetaTensor) -> MetaTensor:
    """Find the mask of the brain with deepbet, which the extra ``strip`` installs; its weights are in its wheel.

    Fisch et al., "deepbet: Fast brain extraction of T1-weighted MRI using Convolutional Neural Networks", Computers in
    Biology and Medicine 179, 2024. It takes about 4 s of two cores, 1.1 GB of memory, and was trained on adults.

    Args:
        scan: ``(1, *spatial)``, T1-weighted.

    Returns:
        ``(1, *spatial)`` of 0 and 1, uint8, on the scan's grid.

    Raises:
        ImportError: without deepbet.
        ValueError: where it finds no brain.
    """
    extraction, there = optional_import("deepbet", name="BrainExtraction")
    if not there:
        raise ImportError(f"Removing a skull needs deepbet: {INSTALL}.")
    image = nib.Nifti1Image(scan.as_tensor()[0].cpu().numpy(), affine_of(scan))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its network is a TorchScript
            _, mask, _ = extraction(no_gpu=True).run(image)
    except (AssertionError, ValueError) as error:  # of numpy and of its own, where nothing looks like a brain
        raise ValueError(
            f"deepbet found no brain in {_name(scan)}: give the brain's mask, or do not remove the skull."
        ) from error
    return MetaTensor(torch.from_numpy(np.asarray(mask.dataobj, np.uint8).copy())[None], affine=scan.affine.clone())


class SkullStripper:
    """Finds the mask of the brain of a scan that has a skull, as far as it is asked to.

    Args:
        mode: one of :data:`STRIPPING`.
        atlas_image: the image of the atlas. With ``"auto"``, nothing is removed where it has a skull itself.

    Raises:
        ValueError: for another mode.

    Example:
        >>> stripper = SkullStripper("no", MetaTensor(torch.rand(1, 8, 8, 8)))
        >>> stripper(MetaTensor(torch.rand(1, 8, 8, 8))).said
        'not looked for, as asked for'
    """

    def __init__(self, mode: str, atlas_image: MetaTensor) -> None:
        self.mode = look_up_option(mode, STRIPPING)
        self.atlas_has_skull = self.mode == "auto" and has_skull(atlas_image)

    def __call__(self, scan: MetaTensor) -> Stripped:
        """Decide, and find the mask where that is needed.

        Args:
            scan: ``(1, *spatial)`` as read.

        Raises:
            ImportError: where the skull is to be removed and deepbet is not installed; it names the scan.
        """
        if self.mode == "no":
            return Stripped(None, LEFT_ALONE)
        if self.mode == "auto":
            if self.atlas_has_skull:
                return Stripped(None, "skull kept, as the atlas has one as well")
            if not has_skull(scan):
                return Stripped(None, "no skull seen")
        if not optional_import("deepbet")[1]:
            why = "is to be removed" if self.mode == "yes" else "seems to be there, and the atlas has none"
            raise ImportError(
                f"{_name(scan)}: a skull {why}: {INSTALL}, or give the brain's mask (--mask), or keep it (--strip no)."
            )
        said = "skull seen, removed by deepbet" if self.mode == "auto" else "skull removed by deepbet, as asked for"
        return Stripped(extract_brain(scan), said)


@dataclass(frozen=True, eq=False)
class Stripped:
    """What became of the skull of a scan.

    Args:
        mask: ``(1, *spatial)`` of 0 and 1 on the scan's grid; ``None`` where the scan stays as it is.
        said: what was decided, in words.
    """

    mask: MetaTensor | None
    said: str


def warn_of_skull(scan: MetaTensor) -> None:
    """Warn where a scan seems to have a skull; for an atlas that has none, which is aligned to the brain alone.

    Args:
        scan: ``(1, *spatial)`` as read.
    """
    if scan.ndim == 4 and has_skull(scan):
        warnings.warn(
            f"{_name(scan)}: a skull seems to be there, and the atlas has none: the alignment may be wrong. Give the"
            " brain alone, or segment by monai-lcs segment or Segmenter(..., strip='auto'), which remove it.",
            stacklevel=2,
        )


def brain_of(scan: MetaTensor, mask: MetaTensor | None) -> MetaTensor:
    """The scan with its lowest value outside of a mask.

    Args:
        scan: ``(1, *spatial)``; left as it is.
        mask: of the same shape; ``None`` for the scan itself.

    Example:
        >>> brain_of(MetaTensor(torch.tensor([[5.0, 7.0, 9.0]])), MetaTensor(torch.tensor([[0, 1, 1]]))).tolist()
        [[5.0, 7.0, 9.0]]
        >>> brain_of(MetaTensor(torch.tensor([[0.0, 7.0, 9.0]])), MetaTensor(torch.tensor([[0, 0, 1]]))).tolist()
        [[0.0, 0.0, 9.0]]
    """
    if mask is None:
        return scan
    brain: Any = scan.clone()
    brain[mask.as_tensor() == 0] = scan.min()
    return brain


def _name(scan: MetaTensor) -> str:
    return str(scan.meta.get("filename_or_obj") or "the scan")
