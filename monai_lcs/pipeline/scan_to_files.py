"""A scan in, files out: what every door does with each scan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import MetaTensor

from monai_lcs.files import check_absent, check_writable, write_atomically
from monai_lcs.labels import RequestedLabel
from monai_lcs.pipeline.preprocessing import as_volume
from monai_lcs.pipeline.record import make_record, noted_warnings
from monai_lcs.pipeline.segmenter import Segmenter
from monai_lcs.results import Segmentation
from monai_lcs.results.dicom_seg import read_slices, write_dicom_seg
from monai_lcs.results.segmentation import ENDINGS, label_words
from monai_lcs.results.volume_files import ending_like, write_volume
from monai_lcs.study.checks import check_t1
from monai_lcs.study.images import read_image

__all__ = ["Output", "segment_to_files"]


@dataclass(frozen=True)
class Output:
    """Which files are written of each scan, see :meth:`monai_lcs.results.Segmentation.save`.

    Args:
        folder: where they go.
        overwrite: whether to replace existing files.
        picture: whether to draw the picture.
        masks: whether to write a mask of each label.
        probabilities: whether to write the probability of each label.
        tables: endings of further files with the label table.
        dicom_seg: whether to write a DICOM SEG, of scans that are folders of a DICOM series.
        given: what the user asked for, for ``run.json``.

    Example:
        >>> Output("results", masks=True).picture
        True
    """

    folder: PathLike
    overwrite: bool = False
    picture: bool = True
    masks: bool = False
    probabilities: bool = False
    tables: Sequence[str] = ()
    dicom_seg: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)


def segment_to_files(
    segmenter: Segmenter, case: Mapping[str, Any], requests: Sequence[RequestedLabel], output: Output
) -> tuple[Segmentation, dict[str, str]]:
    """Segment a scan and write all files of it.

    Args:
        segmenter: the atlas and the network.
        case: ``"image"``, the file, or the folder of a DICOM series; ``"case"``, its name; perhaps ``"mask"``, the file
            of the brain's mask, and ``"series"``, which series of the folder.
        requests: the requested labels, from :meth:`Segmenter.request`.
        output: which files are written.

    Returns:
        The segmentation, with its record; and the paths written, as
        :meth:`monai_lcs.results.Segmentation.save` gives them.

    Raises:
        ValueError: when the scan cannot be used, or the atlas not be aligned to it.
        FileExistsError: when a file is there and may not be replaced.

    Example:
        >>> import nibabel as nib, torch
        >>> from monai_lcs.atlas import Atlas
        >>> from monai_lcs.labels import LabelTable
        >>> from monai_lcs.pipeline import Settings
        >>> folder, labels = getfixture("tmp_path"), torch.zeros(1, 12, 12, 12, dtype=torch.int32)
        >>> labels[:, 3:9, 3:9, 3:9] = 17
        >>> image = labels + torch.rand(1, 12, 12, 12)
        >>> nib.save(nib.Nifti1Image(image[0].numpy(), torch.eye(4).numpy()), folder / "ann.nii")
        >>> atlas = Atlas(MetaTensor(image), MetaTensor(labels), LabelTable.from_ids([17]))
        >>> segmenter = Segmenter(atlas, settings=Settings(align="none", spacing=(1, 1, 1)))
        >>> case, output = {"image": str(folder / "ann.nii"), "case": "ann"}, Output(folder, picture=False)
        >>> _ = segment_to_files(segmenter, case, segmenter.request(), output)
        >>> sorted(path.name for path in folder.glob("ann_*"))
        ['ann_dseg.nii.gz', 'ann_dseg.tsv', 'ann_run.json', 'ann_volumes.tsv']
    """
    ending = ending_like(case["image"])
    names = ["run.json", *(name for kind, name in ENDINGS.items() if kind != "qc" or output.picture)]
    check_absent([Path(output.folder) / f"{case['case']}_{name}" for name in names], output.overwrite)
    with noted_warnings() as noted:
        series = case.get("series")
        slices = read_slices(case["image"], series) if output.dicom_seg else []
        scan = as_volume(read_image(case["image"], series) if series else case["image"])
        check_t1(scan, case["image"])
        written = _probability_writer(segmenter, scan, case["case"], requests, output) if output.probabilities else None
        result = segmenter.segment(scan, requests, case["case"], case.get("mask"), written)
    record = make_record(segmenter, result, noted, dict(output.given))
    result = replace(result, record=record)
    more = _write_dicom_seg(result, slices, output) if output.dicom_seg else {}
    paths = result.save(output.folder, output.overwrite, output.picture, output.masks, output.tables, ending)
    return result, {**more, **paths}


def _write_dicom_seg(result: Segmentation, slices: Sequence[Any], output: Output) -> dict[str, str]:
    """Write the DICOM SEG, if any label was found; before the label map: if that exists, all do."""
    check_writable(Path(output.folder))
    path = Path(output.folder) / f"{result.case}_dseg.dcm"
    made_with = {name: str(output.given[name]) for name in ("weights", "atlas", "align") if name in output.given}
    segments = write_dicom_seg(path, result.label_map, result.table, slices, made_with, output.overwrite)
    return {"dseg.dcm": str(path)} if segments else {}


def _probability_writer(
    segmenter: Segmenter, scan: MetaTensor, case: str, requests: Sequence[RequestedLabel], output: Output
) -> Callable[[int, MetaTensor], None]:
    """Writes each probability as soon as it is known, in bytes of 1/255: all of them together would fill the memory."""
    words = label_words(segmenter.table(requests))
    ending = ending_like(str(scan.meta.get("filename_or_obj") or ""))
    check_writable(Path(output.folder))

    def write(label: int, probability: MetaTensor) -> None:
        path = Path(output.folder) / f"{case}_label-{words[label]}_probseg{ending}"
        check_absent([path], output.overwrite)
        rounded = probability.as_tensor().mul(255).round().div(255)  # compresses well
        write_atomically(path, lambda temporary: write_volume(temporary, rounded, scan, np.dtype(np.float32)))

    return write
