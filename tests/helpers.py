"""Files that several test modules write and read."""

import nibabel as nib
import numpy as np


def save_nifti(array, path, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def voxels(path):
    return np.asarray(nib.load(path).dataobj)
