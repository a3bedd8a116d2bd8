"""What is kept of a segmentation: label map, volumes and a picture for each case, and tables of Dice."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from monai.config import KeysCollection, NdarrayOrTensor, PathLike
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.transforms.utils import generate_spatial_bounding_box
from monai.utils import ImageMetaKey, TransformBackends, look_up_option
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from monai_lcs.data import case_name, grid_distance
from monai_lcs.labels import LabelTable

__all__ = [
    "SaveSegmentation",
    "SaveSegmentationD",
    "SaveSegmentationDict",
    "SaveSegmentationd",
    "dice_summary",
    "dice_table",
    "qc_picture",
    "volume_table",
    "write_dice_tsv",
]

# What a NIfTI header says about the grid; MONAI keeps it in the metadata of an image.
_GRID_FIELDS = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


# ---- volumes and Dice


def volume_table(
    label_map: NdarrayOrTensor, affine_or_voxel_mm3: NdarrayOrTensor | float, table: LabelTable
) -> pd.DataFrame:
    """Voxels and volume of each label.

    Args:
        label_map: integers, any shape; 0 is background.
        affine_or_voxel_mm3: affine `(4, 4)` of the grid in mm, or the volume of a voxel in mm3.
        table: the labels; one that is absent from the label map has the volume 0.

    Returns:
        Columns `id`, `name`, `voxels` and `mm3`, one row for each label of the table.

    Raises:
        ValueError: if the label map holds other values than 0 and the ids of the table.

    Example:
        >>> import numpy as np
        >>> from monai_lcs.labels import LabelTable
        >>> volume_table(np.array([[0, 4, 4]]), np.diag([1, 1, 2.5, 1]), LabelTable.from_ids([4, 7]))
           id     name  voxels  mm3
        0   4  label-4       2  5.0
        1   7  label-7       0  0.0
    """
    ids, counts = np.unique(_as_label_array(label_map), return_counts=True)
    _check_known(ids, table)
    count_of = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    affine = _as_array(affine_or_voxel_mm3)
    voxel_mm3 = abs(np.linalg.det(affine[:3, :3])) if affine.ndim else float(affine)
    voxels = [count_of.get(id, 0) for id in table.ids]
    # 7 digits: the voxel sizes of a file are float32
    mm3 = [float(f"{n * voxel_mm3:.7g}") for n in voxels]
    return pd.DataFrame({"id": table.ids, "name": table.names, "voxels": voxels, "mm3": mm3})


def dice_table(buffer: NdarrayOrTensor, cases: Sequence[PathLike], table: LabelTable) -> pd.DataFrame:
    """Dice of each case and label as a long table.

    Args:
        buffer: Dice `(cases, labels)`, as :meth:`LabelMapDice.get_buffer` has it; NaN where it is not defined.
        cases: name or image file of each case.
        table: the labels, in the order of the columns of `buffer`.

    Returns:
        Columns `case`, `id`, `name` and `dice`.

    Raises:
        ValueError: if the shape of `buffer` is another.

    Example:
        >>> import torch
        >>> from monai_lcs.labels import LabelTable
        >>> dice_table(torch.tensor([[0.5, 1.0]]), ["scans/ann.nii.gz"], LabelTable.from_ids([4, 7]))
          case  id     name  dice
        0  ann   4  label-4   0.5
        1  ann   7  label-7   1.0
    """
    dice = _as_array(buffer).astype(float)
    if dice.shape != (len(cases), len(table)):
        raise ValueError(f"`buffer` must be ({len(cases)} cases, {len(table)} labels), got {dice.shape}.")
    return pd.DataFrame(
        {
            "case": np.repeat([case_name(case) for case in cases], len(table)),
            "id": np.tile(table.ids, len(cases)),
            "name": np.tile(table.names, len(cases)),
            "dice": dice.ravel(),
        }
    )


def write_dice_tsv(dice: pd.DataFrame, path: PathLike, overwrite: bool = False) -> None:
    """Writes a :func:`dice_table` with four digits, NaN as `n/a`.

    Raises:
        FileExistsError: if the file exists and is not to be overwritten.
        OSError: naming the file, if it cannot be written.
    """
    _check_absent([Path(path)], overwrite)
    _write(Path(path), lambda temporary: _write_tsv(dice, temporary, "%.4f"))


def dice_summary(dice: pd.DataFrame) -> str:
    """A few lines of text from a :func:`dice_table`: the mean over labels of each case, and over cases.

    Example:
        >>> import torch
        >>> from monai_lcs.labels import LabelTable
        >>> buffer = torch.tensor([[0.5, 1.0], [0.25, torch.nan]])
        >>> print(dice_summary(dice_table(buffer, ["ann", "bo"], LabelTable.from_ids([4, 7]))))
        ann  0.7500  2 labels
        bo   0.2500  1 labels
        mean 0.5000  2 cases
    """
    cases = dice.groupby("case", sort=False)["dice"].agg(["mean", "count"])
    width = max(len("mean"), *map(len, cases.index))
    lines = [f"{case:<{width}} {row['mean']:.4f}  {int(row['count'])} labels" for case, row in cases.iterrows()]
    return "\n".join([*lines, f"{'mean':<{width}} {cases['mean'].mean():.4f}  {len(cases)} cases"])


# ---- the picture


def qc_picture(
    image: NdarrayOrTensor,
    label_map: NdarrayOrTensor,
    table: LabelTable,
    path: PathLike,
    affine: NdarrayOrTensor | None = None,
    convention: str = "radiological",
    title: str = "",
    overwrite: bool = False,
) -> None:
    """Draws a segmentation for a quick look: three planes of the image with the outlines of the labels.

    The planes go through the labels' center of mass (the middle of the image if there are no labels), along the axes
    of the grid that are closest to left-right, posterior-anterior and inferior-superior; an oblique image is not
    resampled. Distances are to scale whatever the voxel size.

    Args:
        image: `(1, *spatial)`, three dimensions.
        label_map: integers `(1, *spatial)` on the same grid; 0 is background.
        table: names the color of each label.
        path: the file to write, `.png` or another format of matplotlib.
        affine: `(4, 4)`, voxels to mm in RAS orientation. Default: that of `image`, a MetaTensor.
        convention: `"radiological"`, the patient's left on the right of the picture, or `"neurological"`. Stated on
            the picture.
        title: a line above the planes.
        overwrite: whether an existing file may be replaced.

    Raises:
        ValueError: if the shapes are not as above, or the label map holds ids that are not in the table.
        FileExistsError: if the file exists and is not to be overwritten.
        ImportError: if matplotlib is not installed.
    """
    path = Path(path)
    _check_absent([path], overwrite)
    flip = look_up_option(convention, ("radiological", "neurological")) == "radiological"
    if image.ndim != 4 or image.shape[0] != 1 or image.shape != label_map.shape:
        raise ValueError(
            "`image` and `label_map` must be (1, *spatial) with three dimensions, "
            f"got {tuple(image.shape)} and {tuple(label_map.shape)}."
        )
    affine = _as_array(getattr(image, "affine", None) if affine is None else affine)
    if affine.shape != (4, 4):
        raise ValueError("`affine` must be (4, 4) unless `image` is a MetaTensor.")
    grey, labels, affine = _to_ras(_as_array(image)[0], _as_label_array(label_map)[0], affine)
    _check_known(np.unique(labels), table)
    black, white = _grey_window(grey)
    shown = (labels > 0) | (grey > black + 0.1 * (white - black))
    if shown.any():  # not the empty margins
        start, end = generate_spatial_bounding_box(shown[None], margin=2, allow_smaller=True)
        grey, labels = (volume[tuple(map(slice, start, end))] for volume in (grey, labels))
        affine[:3, 3] += affine[:3, :3] @ start
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    size = np.array(labels.shape) * spacing
    center = np.argwhere(labels).mean(0) if labels.any() else (np.array(labels.shape) - 1) / 2
    index = np.rint(center).astype(int)
    position = affine @ [*index, 1]

    sides = ("R", "L") if flip else ("L", "R")
    # name, normal axis, axes drawn to the right and upward, what is at either end of the first
    planes = [("sagittal x", 0, 1, 2, ("P", "A")), ("coronal y", 1, 0, 2, sides), ("axial z", 2, 0, 1, sides)]
    widths = [size[right] for _, _, right, _, _ in planes]
    planes_height = 12 * max(size[up] for _, _, _, up, _ in planes) / sum(widths)  # inches, as what follows
    head, foot = 0.65, 0.35
    height = head + planes_height + foot
    # Not pyplot, which has a backend and a current figure for the whole process.
    figure = _matplotlib("matplotlib.figure").Figure(figsize=(12.3, height), facecolor="black", dpi=150)
    _matplotlib("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1, 3, width_ratios=widths, wspace=0.02)
    grid.update(left=0.012, right=0.988, bottom=foot / height, top=1 - head / height)
    for column, (name, normal, right, up, ends) in enumerate(planes):
        pixels = [volume.take(index[normal], normal).T for volume in (grey, labels)]
        if flip and right == 0:
            pixels = [array[:, ::-1] for array in pixels]
        axes = figure.add_subplot(grid[column])
        _draw_plane(axes, pixels[0], pixels[1], spacing[[right, up]], table, black, white)
        for x, text in zip((0.03, 0.97), ends, strict=True):
            where = {"transform": axes.transAxes, "ha": "center", "va": "top"}
            axes.text(x, 0.97, text, where, color="white", fontsize=13, fontweight="bold")
        box = axes.get_position(original=True)
        heading = f"{name} = {position[normal]:.0f} mm"
        figure.text((box.x0 + box.x1) / 2, box.y1 + 0.05 / height, heading, color="0.75", fontsize=10, ha="center")

    note = f"{convention} convention: the patient's left is on the {'right' if flip else 'left'} of the picture"
    figure.text(0.5, 0.1 / height, note, color="0.75", fontsize=9, ha="center", va="bottom")
    figure.text(0.5, 1 - 0.08 / height, title, color="white", fontsize=12, ha="center", va="top", parse_math=False)
    _write(path, figure.savefig)


def _draw_plane(
    axes: Any, grey: np.ndarray, labels: np.ndarray, spacing: np.ndarray, table: LabelTable, black: float, white: float
) -> None:
    """Draws the pixels `(rows from the bottom up, columns)` of a plane; `spacing` is in mm to the right and upward."""
    height, width = labels.shape
    extent = (0.0, width * spacing[0], 0.0, height * spacing[1])
    axes.imshow(grey, "gray", vmin=black, vmax=white, origin="lower", extent=extent, interpolation="bilinear")
    # One voxel of background all around closes the outlines of labels that the edge of the image cuts.
    labels = np.pad(labels, 1)
    x, y = ((np.arange(n + 2) - 0.5) * mm for n, mm in zip((width, height), spacing, strict=True))
    for id in np.unique(labels[labels > 0]).tolist():
        color = tuple(part / 255 for part in table[id].color)
        axes.contour(x, y, labels == id, levels=[0.5], colors=[color], linewidths=0.9)
    axes.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
    axes.set_axis_off()


def _matplotlib(module: str) -> Any:
    """A module of matplotlib, which only the pictures need."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError('Pictures need matplotlib: pip install "monai-lcs[bundle]", or set picture=False.') from error


def _to_ras(image: np.ndarray, labels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flips and permutes the axes to those closest to left-right, posterior-anterior and inferior-superior."""
    orientation = io_orientation(affine)
    affine = affine @ inv_ornt_aff(orientation, image.shape)
    return apply_orientation(image, orientation), apply_orientation(labels, orientation), affine


def _grey_window(image: np.ndarray) -> tuple[float, float]:
    """Intensities shown black and white: percentiles of all but the lowest value, which is background."""
    values = image[np.isfinite(image)]
    values = values[values > values.min()] if values.size else values
    low, high = np.percentile(values, (1, 99.5)) if values.size else (0.0, 1.0)
    # Some room above, so that light outlines stand out against the brightest tissue.
    return float(low), float(low + 1.2 * max(high - low, 1e-6))


# ---- files


class SaveSegmentation(Transform):
    """Writes a label map in the grid of the image file it belongs to, with volumes, label table and a picture.

    The files, in `output_dir`, are named after the image file (`CASE.nii.gz`, `CASE.mgz`, ...):

    - `CASE_dseg.tsv`: the label table;
    - `CASE_volumes.tsv`: id, name, voxels and mm3 of every label of the table, see :func:`volume_table`;
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

    def __call__(self, label_map: MetaTensor, image: MetaTensor) -> dict[str, str]:  # type: ignore[override]
        """Writes the files of one case.

        Args:
            label_map: integers `(1, *spatial)`, 0 and ids of the table.
            image: `(1, *spatial)` as loaded from its file, with `filename_or_obj` in its metadata.

        Returns:
            The paths written, by `"labels"`, `"volumes"`, `"qc"` (with `picture`) and `"dseg"`.

        Raises:
            ValueError: if the grids differ, or the label map holds anything but 0 and ids of the table.
            FileExistsError: if one of the files exists and is not to be overwritten; nothing is written then.
            OSError: naming the file that cannot be written.
        """
        source = str(image.meta[ImageMetaKey.FILENAME_OR_OBJ])
        self._check_grid(label_map, image, source)
        case = case_name(source)
        endings = {"labels": "dseg.tsv", "volumes": "volumes.tsv", "qc": "qc.png", "dseg": "dseg.nii.gz"}
        if not self.picture:
            del endings["qc"]
        paths = {kind: self.output_dir / f"{case}_{ending}" for kind, ending in endings.items()}
        _check_absent(list(paths.values()), self.overwrite)

        affine = _as_array(image.affine)
        labels = _as_label_array(label_map)
        try:
            volumes = volume_table(labels, affine, self.label_table)
        except ValueError as error:
            raise ValueError(f"Cannot save the segmentation of {source}: {error}") from error
        segmentation = nib.Nifti1Image(
            labels[0].astype(self.label_table.dtype), affine, _grid_header(image, affine), dtype=self.label_table.dtype
        )
        _make_folder(self.output_dir)
        _write(paths["labels"], self.label_table.write)
        _write(paths["volumes"], lambda temporary: _write_tsv(volumes, temporary))
        if self.picture:
            qc_picture(image, labels, self.label_table, paths["qc"], affine, title=case, overwrite=True)
        _write(paths["dseg"], lambda temporary: nib.save(segmentation, temporary))
        return {kind: str(path) for kind, path in paths.items()}

    @staticmethod
    def _check_grid(label_map: MetaTensor, image: MetaTensor, source: str) -> None:
        """Both on the grid of the file."""
        if label_map.shape != image.shape or image.ndim != 4 or image.shape[0] != 1:
            raise ValueError(
                f"The segmentation of {source} must have the shape (1, *spatial) of the image, three dimensions, "
                f"got {tuple(label_map.shape)} for {tuple(image.shape)}: invert the preprocessing first."
            )
        affine, expected = (_as_array(tensor.affine) for tensor in (label_map, image))
        distance = grid_distance(affine, expected, image.shape[1:])
        if distance > 0.01 * np.linalg.norm(expected[:3, :3], axis=0).min():
            raise ValueError(
                f"The segmentation of {source} must have the affine of the image, got one up to {distance:.3g} mm off: "
                f"{affine.round(4).tolist()} for {expected.round(4).tolist()}: invert the preprocessing first."
            )


class SaveSegmentationd(MapTransform):
    """Dictionary version of :class:`SaveSegmentation`, to be the last of the postprocessing of a single case.

    Adds `data["saved"]`, the paths written.

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
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"`keys` must be one key, since files are named after the image, got {self.keys}.")
        self.image_key = image_key
        self.save = SaveSegmentation(output_dir, label_table, overwrite, picture)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Writes the files and returns a copy of `data` with `"saved"`."""
        d = dict(data)
        for key in self.key_iterator(d):
            d["saved"] = self.save(d[key], d[self.image_key])
        return d


SaveSegmentationD = SaveSegmentationDict = SaveSegmentationd


def _as_array(values: Any) -> np.ndarray:
    """A tensor, wherever it is, or an array as a numpy array without metadata."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _as_label_array(label_map: NdarrayOrTensor) -> np.ndarray:
    """A label map as a numpy array of integers >= 0."""
    values = _as_array(label_map)
    wrong = values[(values < 0) | (values != np.rint(values))]
    if wrong.size:
        raise ValueError(f"A label map must hold integers >= 0, got {wrong[0]:g}.")
    return values if np.issubdtype(values.dtype, np.integer) else values.astype(np.int64)


def _check_known(ids: np.ndarray, table: LabelTable) -> None:
    """Only 0 and ids of the table."""
    unknown = [id for id in ids.tolist() if id != 0 and id not in table]
    if unknown:
        rest = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise ValueError(f"The label map holds {unknown[:10]}{rest}, which {table} does not have.")


def _grid_header(image: MetaTensor, affine: np.ndarray) -> nib.Nifti1Header:
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


def _check_absent(paths: Sequence[Path], overwrite: bool) -> None:
    """No result is lost without being asked for."""
    for path in paths:
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists: choose another folder or set overwrite=True.")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"Cannot create the folder {folder}: {error.strerror or error}.") from error


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a new file next to `path` and renames it, so that nothing half-written looks like a result."""
    temporary = path.with_name(f".{uuid.uuid4().hex}_{path.name}")
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        raise OSError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        # not `unlink(missing_ok=True)`, which fails where the folder is a file
        if temporary.exists():
            temporary.unlink()


def _write_tsv(frame: pd.DataFrame, path: Path, float_format: str | None = None) -> None:
    frame.to_csv(path, sep="\t", index=False, na_rep="n/a", float_format=float_format)
