"""What is kept of a segmentation: label map, label table, volumes and a picture for each case."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import KeysCollection, PathLike
from monai.data import MetaTensor
from monai.transforms import MapTransform, SaveImaged, Transform
from monai.utils import ImageMetaKey, TransformBackends

from monai_lcs.files import check_absent, check_writable, write_atomically
from monai_lcs.grids import grid_distance
from monai_lcs.labels import LabelTable
from monai_lcs.labels.label_map import as_array, as_label_array
from monai_lcs.results.dice import volume_table, write_tsv
from monai_lcs.results.picture import _matplotlib, qc_picture
from monai_lcs.study.cases import case_name

__all__ = ["SaveSegmentation", "SaveSegmentationD", "SaveSegmentationDict", "SaveSegmentationd"]

# What a NIfTI header says about the grid; MONAI keeps it in the metadata of an image.
_GRID_FIELDS = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


class SaveSegmentation(Transform):
    """Writes a label map in the grid of the image file it belongs to, with volumes, label table and a picture.

    The files, in `output_dir`, are named after the case, by default its image file (`CASE.nii.gz`, `CASE.mgz`, ...):

    - `CASE_dseg.tsv`: the label table;
    - `CASE_volumes.tsv`: id, name, voxels and mm3 of every label of the table, with several atlases also how far they
      agreed on it, see :func:`volume_table`;
    - `CASE_qc.png`: see :func:`qc_picture`;
    - `CASE_dseg.nii.gz`: the label map, in the smallest unsigned integer type that holds all ids of the table, with
      the affine, and the qform and sform if there are any, of the image file.

    Each is written under another name and renamed, the label map last: where it exists, the case is complete.

    Args:
        output_dir: folder for the files, created when needed.
        label_table: the labels, or a file that :meth:`LabelTable.read` reads.
        overwrite: whether to replace existing files.
        picture: whether to draw the picture; needs matplotlib.

    Raises:
        ImportError: if there are to be pictures and matplotlib is not installed.

    Example:
        >>> import tempfile, torch
        >>> from monai.data import MetaTensor
        >>> from monai_lcs.labels import LabelTable
        >>> image = MetaTensor(torch.rand(1, 8, 8, 8), meta={"filename_or_obj": "scans/ann.mgz"})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save = SaveSegmentation(folder, LabelTable.from_ids([4, 300]), picture=False)
        ...     sorted(Path(path).name for path in save((image > 0.5) * 300, image).values())
        ['ann_dseg.nii.gz', 'ann_dseg.tsv', 'ann_volumes.tsv']
    """

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]

    def __init__(
        self, output_dir: PathLike, label_table: LabelTable | PathLike, overwrite: bool = False, picture: bool = True
    ) -> None:
        self.output_dir = Path(output_dir)
        self.label_table = label_table if isinstance(label_table, LabelTable) else LabelTable.read(label_table)
        self.overwrite = overwrite
        self.picture = picture
        if picture:
            _matplotlib("matplotlib")  # rather now than after the first segmentation

    def __call__(  # type: ignore[override]
        self, label_map: MetaTensor, image: MetaTensor, case: str | None = None, agreement: MetaTensor | None = None
    ) -> dict[str, str]:
        """Writes the files of one case.

        Args:
            label_map: integers `(1, *spatial)`, 0 and ids of the table.
            image: `(1, *spatial)` as loaded from its file, with `filename_or_obj` in its metadata.
            case: what the files' names start with. Default: :func:`monai_lcs.study.cases.case_name` of the image file.
            agreement: of several atlases with the label map, `(1, *spatial)`, 0 to 1: its mean over each label goes
                into the volumes.

        Returns:
            The paths written, by `"labels"`, `"volumes"`, `"qc"` (with `picture`) and `"dseg"`.

        Raises:
            ValueError: if the grids differ, the label map holds anything but 0 and ids of the table, or `case` is no
                plain file name.
            FileExistsError: if one of the files exists and is not to be overwritten; nothing is written then.
            OSError: naming the file that cannot be written.
        """
        source = str(image.meta[ImageMetaKey.FILENAME_OR_OBJ])
        self._check_grid(label_map, image, source)
        case = case_name(source) if case is None else case
        if not case or Path(case).name != case:
            raise ValueError(f"`case` must be a file name without folders, got {case!r} for {source}.")
        endings = {"labels": "dseg.tsv", "volumes": "volumes.tsv", "qc": "qc.png", "dseg": "dseg.nii.gz"}
        if not self.picture:
            del endings["qc"]
        paths = {kind: self.output_dir / f"{case}_{ending}" for kind, ending in endings.items()}
        check_absent(list(paths.values()), self.overwrite)

        affine = as_array(image.affine)
        labels = as_label_array(label_map)
        try:
            volumes = volume_table(labels, affine, self.label_table, agreement)
        except ValueError as error:
            raise ValueError(f"Cannot save the segmentation of {source}: {error}") from error
        segmentation = nib.Nifti1Image(
            labels[0].astype(self.label_table.dtype), affine, grid_header(image, affine), dtype=self.label_table.dtype
        )
        check_writable(self.output_dir)
        write_atomically(paths["labels"], self.label_table.write)
        write_atomically(paths["volumes"], lambda temporary: write_tsv(volumes, temporary))
        if self.picture:
            qc_picture(image, labels, self.label_table, paths["qc"], affine, title=case, overwrite=True)
        write_atomically(paths["dseg"], lambda temporary: nib.save(segmentation, temporary))
        return {kind: str(path) for kind, path in paths.items()}

    @staticmethod
    def _check_grid(label_map: MetaTensor, image: MetaTensor, source: str) -> None:
        """Both on the grid of the file."""
        if label_map.shape != image.shape or image.ndim != 4 or image.shape[0] != 1:
            raise ValueError(
                f"The segmentation of {source} must have the shape (1, *spatial) of the image, three dimensions, "
                f"got {tuple(label_map.shape)} for {tuple(image.shape)}: invert the preprocessing first."
            )
        affine, expected = (as_array(tensor.affine) for tensor in (label_map, image))
        distance = grid_distance(affine, expected, image.shape[1:])
        if distance > 0.01 * np.linalg.norm(expected[:3, :3], axis=0).min():
            raise ValueError(
                f"The segmentation of {source} must have the affine of the image, got one up to {distance:.3g} mm off: "
                f"{affine.round(4).tolist()} for {expected.round(4).tolist()}: invert the preprocessing first."
            )


class SaveSegmentationd(SaveImaged):
    """Dictionary version of :class:`SaveSegmentation`, to be the last of the postprocessing of a single case.

    By class a :class:`monai.transforms.SaveImaged`, which MONAI Label leaves out: it writes results itself.

    Adds `data["saved"]`, the paths written. Where :class:`FuseAtlasesd` left `data["agreement"]`, the volumes say how
    far the atlases agreed with each label: 0 where their own vote, `data["atlas_label"]` on the same grid, is
    another. The paths start with `data["case"]` where a sample has that, as those of
    :func:`monai_lcs.study.cases.find_images` do, otherwise with the name of the image file.

    Args:
        keys: key of the label map, one; on the grid of the file, so after `Invertd` (with `nearest_interp=True`).
        image_key: key of the image as loaded from its file, untouched by any transform but `EnsureChannelFirstd`.
        output_dir: see :class:`SaveSegmentation`.
        label_table: see :class:`SaveSegmentation`.
        overwrite: see :class:`SaveSegmentation`.
        picture: see :class:`SaveSegmentation`.
        allow_missing_keys: whether a sample without the key is passed on as it is.
    """

    backend = SaveSegmentation.backend

    def __init__(
        self,
        keys: KeysCollection,
        image_key: str = "source",
        *,
        output_dir: PathLike,
        label_table: LabelTable | PathLike,
        overwrite: bool = False,
        picture: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"`keys` must be one key, since files are named after the image, got {self.keys}.")
        self.image_key = image_key
        self.save = SaveSegmentation(output_dir, label_table, overwrite, picture)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Writes the files and returns a copy of `data` with `"saved"`."""
        d = dict(data)
        for key in self.key_iterator(d):
            agreement = d.get("agreement")
            if agreement is not None:
                agreement = agreement * (d["atlas_label"] == d[key])
            d["saved"] = self.save(d[key], d[self.image_key], d.get("case"), agreement)
        return d


SaveSegmentationD = SaveSegmentationDict = SaveSegmentationd


def grid_header(image: MetaTensor, affine: np.ndarray) -> nib.Nifti1Header:
    """The header fields of the image's own file that place its grid; those of `affine` if it was no NIfTI file."""
    header = nib.Nifti1Header()
    if all(field in image.meta for field in _GRID_FIELDS):
        for field in _GRID_FIELDS:
            header[field] = np.asarray(image.meta[field])
    else:
        header.set_data_shape(image.shape[1:])
        header.set_qform(affine, code="scanner")
        header.set_sform(affine, code="scanner")
        header.set_xyzt_units("mm")
    return header
