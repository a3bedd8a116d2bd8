"""Writes an atlas to a folder of its own, and reads it back."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.config import PathLike
from monai.utils import convert_to_numpy

from monai_lcs.atlas import Atlas
from monai_lcs.files import check_absent, check_writable, write_atomically
from monai_lcs.results.volume_files import image_on_grid, label_map_image
from monai_lcs.study.cases import case_name, image_files, shorten_names

__all__ = ["read_atlas_folder", "write_atlas"]

LABELS, TABLE = "dseg.nii.gz", "dseg.tsv"


def read_atlas_folder(folder: PathLike) -> Atlas:
    """Read an atlas from a folder with its image, its label map ``dseg.nii.gz`` and its label table ``dseg.tsv``.

    Args:
        folder: the image in it may have any name and format.

    Raises:
        ValueError: if it has none or several images, or see :meth:`monai_lcs.atlas.Atlas.read`.
        FileNotFoundError: if there is no label table.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    files = image_files(Path(folder))
    images = [path for path in files if path.name != LABELS]
    if len(images) != 1 or len(files) != 2:
        what = shorten_names([path.name for path in files], most=5)
        raise ValueError(f"The folder of an atlas, {folder}, must hold {LABELS}, {TABLE} and one image, got: {what}.")
    return Atlas.read(images[0], Path(folder) / LABELS, Path(folder) / TABLE)


def write_atlas(atlas: Atlas, folder: PathLike, overwrite: bool = False) -> None:
    """Write an atlas as :func:`read_atlas_folder` reads it: its image, ``dseg.nii.gz`` and ``dseg.tsv``.

    The image keeps its name. It is not written where it is in the folder already. The others are written under other
    names and then renamed, the label map last.

    Args:
        atlas: label map and table should have the same ids, see :func:`monai_lcs.atlas.editing.in_step`.
        folder: it is created if it does not exist.
        overwrite: whether to replace an atlas that is there.

    Raises:
        FileExistsError: if one of the files exists and ``overwrite`` is False; nothing is written then.
        ValueError: if the folder has another image, so that it would not be clear which is the atlas's.
        OSError: naming the file that cannot be written.
    """
    source, folder = atlas.files["image"], Path(folder)
    image = folder / f"{case_name(source) if source else 'image'}.nii.gz"
    if image.name == LABELS:
        image = folder / "image.nii.gz"
    here = bool(source) and os.path.realpath(Path(source).parent) == os.path.realpath(folder)
    if here:
        image = folder / Path(source).name
    check_absent([folder / LABELS, folder / TABLE, *([] if here else [image])], overwrite)
    _check_alone(folder, image)
    check_writable(folder)
    if not here:
        voxels = convert_to_numpy(atlas.image, dtype=np.float32)[0]
        write_atomically(image, lambda temporary: nib.save(image_on_grid(voxels, atlas.image), temporary))
    largest = np.min_scalar_type(int(atlas.label_map.max()))  # the table may lack ids
    labels = label_map_image(atlas.label_map, atlas.image, np.promote_types(atlas.table.dtype, largest))
    write_atomically(folder / TABLE, atlas.table.write)
    write_atomically(folder / LABELS, lambda temporary: nib.save(labels, temporary))


def _check_alone(folder: Path, image: Path) -> None:
    """The image must be the only one beside the label map."""
    others = [path.name for path in image_files(folder) if path.name not in (LABELS, image.name)]
    if others:
        raise ValueError(
            f"{folder} has other images, {shorten_names(others)}: choose an empty folder, or one that has this atlas."
        )
