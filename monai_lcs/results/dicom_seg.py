"""Writes a label map as a DICOM SEG, which lies on the slices of the DICOM series that was segmented."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.config import PathLike
from monai.data import MetaTensor

from monai_lcs import __version__
from monai_lcs.files import check_absent, write_atomically
from monai_lcs.grids import affine_of, same_grid
from monai_lcs.labels import Label, LabelTable
from monai_lcs.labels.label_map import as_label_array
from monai_lcs.study.dicom import series_files

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from pydicom import Dataset

__all__ = ["read_slices", "require_highdicom", "write_dicom_seg"]

_NEEDED = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
)
_ONE = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Rows", "Columns")
"""What must be the same in all slices."""

_SHARED = ("ImageOrientationPatient", "PixelSpacing")
_MAY_LACK = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)
_LONGEST = 64
"""Characters of a name or a description in DICOM."""

_SHORT_NAMES = {
    "accumbens": "nucleusaccumbens",
    "accumbensarea": "nucleusaccumbens",
    "caudate": "caudatenucleus",
    "cerebellumcortex": "cerebellarcortex",
    "cerebellumexterior": "cerebellarcortex",
    "cerebellumwhitematter": "cerebellarwhitematter",
    "csf": "cerebrospinalfluid",
    "entorhinal": "entorhinalcortex",
    "inflatvent": "inferiorhornoflateralventricle",
    "pallidum": "globuspallidus",
    "thalamusproper": "thalamus",
    "ventraldc": "ventraldiencephalon",
    "3rdventricle": "thirdventricle",
    "4thventricle": "fourthventricle",
}
"""How FreeSurfer and Neuromorphometrics call structures that DICOM calls otherwise."""


def require_highdicom() -> None:
    """Raise an ImportError that says what to install, where highdicom is missing."""
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise ImportError(f"A DICOM SEG needs highdicom: pip install 'monai-lcs[dicomseg]' ({error}).") from error


def read_slices(folder: PathLike, series: str | None = None) -> Sequence[Dataset]:
    """Read the headers of a DICOM series, in the order of the slices of its volume.

    Args:
        folder: holds the slices.
        series: which one, see :func:`monai_lcs.study.dicom.read_series`.

    Raises:
        ImportError: where highdicom is missing.
        ValueError: naming a file to which a DICOM SEG cannot refer.
    """
    require_highdicom()
    from pydicom import dcmread

    files = series_files(folder, series)
    slices = [dcmread(file, stop_before_pixels=True) for file in files]
    for file, header in zip(files, slices, strict=True):
        _check(file, header)
        if other := [name for name in _ONE if header.get(name) != slices[0].get(name)]:
            raise ValueError(f"No DICOM SEG can refer to both {files[0]} and {file}, which differ in {other[0]}.")
    for header in slices:
        for name in _MAY_LACK:
            header.setdefault(name, None)
        for name in _SHARED:  # a SEG has them once, and some scanners round them otherwise in each slice
            header[name] = slices[0][name]
        if not header.get("SliceThickness"):  # without one, dcmqi and so 3D Slicer cannot read the SEG
            header.SliceThickness = _distance(slices)
    return slices


def _check(file: str, header: Dataset) -> None:
    """A DICOM SEG needs slices that are files of their own, and lie somewhere in a patient."""
    if (header.get("NumberOfFrames") or 1) != 1:
        raise ValueError(f"No DICOM SEG can be written of {file}, which holds several slices.")
    if missing := [name for name in _NEEDED if not header.get(name)]:
        raise ValueError(f"No DICOM SEG can refer to {file}, which has no {missing[0]}.")


def _distance(slices: Sequence[Dataset]) -> float:
    """How far slices lie from one another, in mm."""
    first, last = (np.array(header.ImagePositionPatient, dtype=float) for header in (slices[0], slices[-1]))
    return round(float(np.linalg.norm(last - first)) / max(len(slices) - 1, 1), 6) or 1.0


def write_dicom_seg(
    path: PathLike,
    label_map: MetaTensor,
    table: LabelTable,
    slices: Sequence[Dataset],
    made_with: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> int:
    """Write the labels of a scan that was a DICOM series as one DICOM SEG of the type ``BINARY``.

    Each label that has voxels is a segment, in the order of ids. Its label is the name, its description says the id,
    and its color is the table's. Its type is the structure of that name where DICOM has a code for it (CID 7140 and
    7153), with the side, and else "Brain". Only slices on which a segment has voxels are written. The file lies in the
    patient, the study and the frame of reference of the series, in a series of its own.

    Args:
        path: the file.
        label_map: ids ``(1, columns, rows, slices)`` on the grid of the series.
        table: the labels.
        slices: from :func:`read_slices`.
        made_with: names and values that say how the labels were found, such as the atlas.
        overwrite: whether to replace an existing file.

    Returns:
        The number of segments; 0, and no file, where the label map is empty.

    Raises:
        ValueError: when the label map is not on the grid of the series, with its axes in the same order and direction.
        FileExistsError: when the file is there and may not be replaced.
    """
    voxels = as_label_array(label_map)[0]
    shape, affine = _grid(slices)
    if not same_grid(shape, affine, voxels.shape, affine_of(label_map)):
        raise ValueError(
            f"The label map, {voxels.shape} voxels, is not on the grid of the DICOM series, {shape} voxels, or has its"
            " axes in other directions: segment the series itself, not a file that it was converted to."
        )
    planes = voxels.T
    check_absent([Path(path)], overwrite)
    found = [int(id) for id in np.unique(planes) if id]
    if found:
        labels = [table[id] for id in found]
        numbers = np.searchsorted([0, *found], planes).astype(np.uint8 if len(found) < 256 else np.uint16)
        seg = _segmentation(numbers, labels, slices, made_with or {})
        write_atomically(Path(path), seg.save_as)
    else:
        Path(path).unlink(missing_ok=True)  # an old one must not pass for the new
    return len(found)


def _grid(slices: Sequence[Dataset]) -> tuple[tuple[int, ...], np.ndarray]:
    """The shape ``(columns, rows, slices)`` of the volume of a series, and its RAS affine."""
    first, last = (np.array(header.ImagePositionPatient, dtype=float) for header in (slices[0], slices[-1]))
    across, down = np.reshape(np.array(slices[0].ImageOrientationPatient, dtype=float), (2, 3))
    mm_down, mm_across = map(float, slices[0].PixelSpacing)
    up = (last - first) / (len(slices) - 1) if len(slices) > 1 else np.cross(across, down)
    lps = np.column_stack([across * mm_across, down * mm_down, up, first])
    shape = (slices[0].Columns, slices[0].Rows, len(slices))
    return shape, np.diag([-1, -1, 1, 1]) @ np.vstack([lps, [0, 0, 0, 1]])


def _segmentation(
    numbers: np.ndarray, labels: Sequence[Label], slices: Sequence[Dataset], made_with: Mapping[str, str]
) -> Dataset:
    """The SEG of a map of segment numbers, 1 for the first label."""
    import highdicom
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        "monai-lcs", codes.cid7162.ArtificialIntelligence, __version__, parameters=dict(made_with)
    )
    return highdicom.seg.Segmentation(
        slices,
        numbers,
        "BINARY",  # a LABELMAP is smaller, but most viewers cannot read it yet
        [_segment(number, label, algorithm) for number, label in enumerate(labels, start=1)],
        series_instance_uid=highdicom.UID(),
        series_number=1000 + int(slices[0].get("SeriesNumber") or 0),
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="monai-lcs",
        manufacturer_model_name="monai-lcs",
        software_versions=__version__,
        device_serial_number="0",
        content_label="SEGMENTATION",
        content_description=_line(f"{len(labels)} labels of {slices[0].get('SeriesDescription') or 'the series'}"),
        series_description=_line(f"monai-lcs: {len(labels)} labels"),
        specific_character_set="ISO_IR 192",
    )


def _segment(number: int, label: Label, algorithm: Any) -> SegmentDescription:
    """What a SEG says of a label."""
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    segment = SegmentDescription(
        number,
        _line(label.name),
        codes.cid7150.AnatomicalStructure,
        _structure(label.name) or codes.cid7153.Brain,
        "AUTOMATIC",
        algorithm,
        display_color=CIELabColor.from_rgb(*label.color),
    )
    segment.SegmentDescription = f"Label {label.id} of the label map"
    if len(label.name) > _LONGEST:
        segment.SegmentDescription += f": {label.name}"
    if label.hemisphere:
        side = codes.cid244.Left if label.hemisphere == "L" else codes.cid244.Right
        kind = segment.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [CodedConcept.from_code(side)]
    return segment


def _structure(name: str) -> Any:
    """DICOM's code of the structure with this name, whatever the side; ``None`` where it has none."""
    words = [word for word in re.findall("[a-z0-9]+", name.lower()) if word not in ("left", "right", "lh", "rh", "ctx")]
    meant = "".join(words)
    return _structures().get(_SHORT_NAMES.get(meant, meant))


@cache
def _structures() -> dict[str, Any]:
    """DICOM's codes of the structures of a brain, by their names in lower case without blanks."""
    from pydicom.sr.codedict import codes

    contexts = (codes.cid7153, codes.cid7140)
    return {name.lower(): getattr(context, name) for context in contexts for name in context.dir()}


def _line(text: str) -> str:
    r"""A text as DICOM can hold it: ``\`` would separate two of them."""
    return text.replace("\\", "/")[:_LONGEST]
