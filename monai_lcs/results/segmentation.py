"""Holds the result of a segmentation, and writes it to files."""

from __future__ import annotations

import glob
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.config import PathLike
from monai.data import MetaTensor
from monai.utils import ImageMetaKey, convert_to_numpy

from monai_lcs.files import check_absent, check_writable, write_atomically
from monai_lcs.grids import grid_distance, same_grid
from monai_lcs.labels import LabelTable
from monai_lcs.labels.label_map import as_label_array, as_plain_tensor
from monai_lcs.results.picture import qc_picture, require_matplotlib
from monai_lcs.results.tsv import write_tsv
from monai_lcs.results.volume_files import write_volume
from monai_lcs.results.volumes import volume_table, voxel_mm3
from monai_lcs.study.cases import MAX_NAME_BYTES, case_names, shorten_names
from monai_lcs.study.images import notes_of

__all__ = ["ENDINGS", "Segmentation", "label_words"]

ENDINGS = {"labels": "dseg.tsv", "volumes": "volumes.tsv", "qc": "qc.png", "dseg": "dseg.nii.gz"}
"""The files of a result: the ends of their names, after the case and ``_``. The label map is written last."""

LOW_CONFIDENCE = 0.6
"""Labels with a lower confidence are dashed in the picture."""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The segmentation of one scan: label map, volumes and quality. An empty label map gets a warning.

    Attributes:
        label_map: integers ``(1, *spatial)`` on the scan's own grid: 0 and ids of the table.
        image: the scan ``(1, *spatial)`` as it was read, with ``filename_or_obj`` in its metadata if it came from a
            file.
        table: the requested labels.
        quality: measures of quality by name, such as ``{"overlap": 0.97}``; what the scan's header left open is added
            as ``"notes"``, see :func:`monai_lcs.study.images.notes_of`.
        agreement: ``(1, *spatial)``, 0 to 1: how far several atlases agreed with the label map at each voxel; None
            for a single atlas.
        confidence: the Dice to expect of each label by the network's probabilities, by id; None without a network.
        mask: the brain, ``(1, *spatial)`` of 0 and 1, where it was told from the rest of the scan.
        record: how the result came about, for ``run.json``: versions, settings, times ...; nothing is written where it
            is empty.
        case: the name of the scan, with which the names of the saved files start. Default: the name of the scan's
            file, see :func:`monai_lcs.study.cases.case_names`, or ``"scan"`` without one.

    Example:
        >>> import tempfile, torch
        >>> image = MetaTensor(torch.rand(1, 8, 8, 8), meta={"filename_or_obj": "scans/ann.mgz"})
        >>> result = Segmentation((image > 0.5) * 300, image, LabelTable.from_ids([4, 300]))
        >>> result, result.volumes["name"].tolist()
        (Segmentation('ann', 2 labels, (8, 8, 8) voxels), ['label-4', 'label-300'])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(Path(path).name for path in result.save(folder, picture=False).values())
        ['ann_dseg.nii.gz', 'ann_dseg.tsv', 'ann_volumes.tsv']
    """

    label_map: MetaTensor
    image: MetaTensor
    table: LabelTable
    quality: dict[str, Any] = field(default_factory=dict)
    agreement: MetaTensor | None = None
    case: str | None = None
    confidence: Mapping[int, float] | None = None
    mask: MetaTensor | None = None
    record: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.case is None:
            object.__setattr__(self, "case", case_names([self._file])[0] if self._file else "scan")
        if notes := notes_of(self.image):
            object.__setattr__(self, "quality", {**self.quality, "notes": notes})
        if not as_plain_tensor(self.label_map).any():
            said = (
                f"The label map of {self._source} is empty: none of the requested labels, {len(self.table)}, was found."
            )
            warnings.warn(said, stacklevel=4)

    def __repr__(self) -> str:
        voxels = tuple(self.label_map.shape[1:])
        return f"Segmentation({self.case!r}, {len(self.table)} labels, {voxels} voxels)"

    @cached_property
    def volumes(self) -> pd.DataFrame:
        """Voxels, mm3, agreement of several atlases and confidence of each label, see :func:`volume_table`.

        Where the mask of the brain is known, its volume is in each row, to divide by.
        """
        labels, affine = as_label_array(self.label_map), convert_to_numpy(self.image.affine)
        volumes = volume_table(labels, affine, self.table, self.agreement, self.confidence)
        if self.mask is None:
            return volumes
        mm3 = int((self.mask != 0).sum()) * voxel_mm3(affine)
        return volumes.assign(intracranial_mm3=float(f"{mm3:.7g}"))

    def save(
        self,
        output_dir: PathLike,
        overwrite: bool = False,
        picture: bool = True,
        masks: bool = False,
        tables: Sequence[str] = (),
        ending: str = ".nii.gz",
    ) -> dict[str, str]:
        """Writes the segmentation to files on the grid of the scan's file.

        The files, in ``output_dir``, are:

        - ``CASE_dseg.tsv``: the label table;
        - ``CASE_volumes.tsv``: :attr:`volumes`;
        - ``CASE_qc.png``: a picture, see :func:`monai_lcs.results.picture.qc_picture`;
        - ``CASE_desc-brain_mask.nii.gz``: :attr:`mask`, if there is one;
        - ``CASE_label-NAME_mask.nii.gz``, for each label, if asked for;
        - ``CASE_run.json``: :attr:`record`, if it holds something;
        - ``CASE_dseg.nii.gz``: the label map, in the smallest unsigned integer type that holds all ids of the table.
          Its affine is that of the scan's file. For a NIfTI scan it has the version, qform, sform, codes and units of
          the file, bit for bit; for other formats the affine in float32, as NIfTI 1 has it.

        Each file is written under another name and then renamed, the label map last: if it exists, all do.

        Args:
            output_dir: folder for the files; it is created if it does not exist.
            overwrite: whether to replace existing files. A warning names pictures, records and masks of an earlier
                result that this one does not have: they stay.
            picture: whether to draw the picture, which needs matplotlib.
            masks: whether to write a mask of each label.
            tables: endings of further files ``CASE_dseg`` with the label table: ``".ctbl"`` for 3D Slicer, ``".label"``
                for ITK-SNAP, and others of :meth:`monai_lcs.labels.LabelTable.read`.
            ending: of the masks and, where it is not NIfTI's, of a copy of the label map, see
                :func:`monai_lcs.results.volume_files.ending_like`.

        Returns:
            The paths written, by ``"labels"``, ``"volumes"``, ``"qc"`` (with ``picture``), ``"dseg"``, and else by what
            follows ``CASE_``.

        Raises:
            ValueError: if label map and scan have different grids, the label map holds other values than 0 and ids
                of the table, or ``case`` is no plain file name.
            FileExistsError: if one of the files exists and ``overwrite`` is False; nothing is written then.
            OSError: naming the file that cannot be written.
            ImportError: if ``picture`` and matplotlib is not installed.
        """
        if picture:
            require_matplotlib()  # before anything is written
        self._check_grid()
        writers = self._writers(picture, masks, tables, ending)
        paths = self._paths(Path(output_dir), writers)
        check_absent(list(paths.values()), overwrite)
        try:
            _ = self.volumes
        except ValueError as error:
            raise ValueError(f"Cannot save the segmentation of {self._source}: {error}") from error

        check_writable(Path(output_dir))
        self._warn_of_old(Path(output_dir), paths.values())
        for kind, write in writers.items():
            write_atomically(paths[kind], write)
        return {kind: str(path) for kind, path in paths.items()}

    def _warn_of_old(self, folder: Path, paths: Iterable[Path]) -> None:
        """Files of the case that stay, and would pass for this result's; somebody may have worked on them."""
        case, new = glob.escape(str(self.case)), set(paths)
        endings = (ENDINGS["qc"], "run.json", "desc-brain_mask.*", "label-*_mask.*")
        old = [path.name for ending in endings for path in sorted(folder.glob(f"{case}_{ending}")) if path not in new]
        if old:
            which = shorten_names(old, most=5)
            warnings.warn(f"{folder} has files of an earlier result that stay as they are: {which}.", stacklevel=3)

    def _writers(
        self, picture: bool, masks: bool, tables: Sequence[str], ending: str
    ) -> dict[str, Callable[[Path], Any]]:
        """What is written, in this order, and how."""
        writers: dict[str, Callable[[Path], Any]] = {
            "labels": self.table.write,
            "volumes": lambda path: write_tsv(self.volumes, path),
        }
        writers.update({f"dseg{table}": self.table.write for table in tables})
        if picture:
            writers["qc"] = self._draw
        if self.mask is not None:
            writers[f"desc-brain_mask{ending}"] = self._volume_writer(self.mask, np.dtype(np.uint8))
        if masks:
            labels = self.label_map.as_tensor()
            for id, name in label_words(self.table).items():
                writers[f"label-{name}_mask{ending}"] = self._volume_writer(labels == id, np.dtype(np.uint8))
        if self.record:
            text = json.dumps(self.record, indent=2)
            writers["run.json"] = lambda path: path.write_text(text + "\n")
        if not ending.startswith(".nii"):
            writers[f"dseg{ending}"] = self._volume_writer(self.label_map, self.table.dtype)
        # NIfTI whatever the scan is, and last: if it exists, all do
        writers["dseg"] = self._volume_writer(self.label_map, self.table.dtype)
        return writers

    def _volume_writer(self, volume: torch.Tensor, dtype: np.dtype[Any]) -> Callable[[Path], Any]:
        return lambda path: write_volume(path, volume, self.image, dtype)

    def _draw(self, path: Path) -> None:
        """Draws the picture, labels of low confidence dashed."""
        unsure = [id for id, dice in (self.confidence or {}).items() if dice < LOW_CONFIDENCE]
        more: dict[str, Any] = {"title": self._title, "overwrite": True, "unsure": unsure, "brain_mask": self.mask}
        qc_picture(self.image, self.label_map, self.table, path, **more)

    @property
    def _file(self) -> str:
        """The scan's file, empty for a scan from memory."""
        return str(self.image.meta.get(ImageMetaKey.FILENAME_OR_OBJ) or "")

    @property
    def _title(self) -> str:
        """The line above the picture, with the atlas and the weights where a record names them; guesses below it."""
        lines = [str(self.case)]
        if {"atlas", "weights"} <= set(self.record):
            atlas, weights = self.record["atlas"], self.record["weights"]["file"]
            atlas_name = atlas.get("name") or Path(atlas["label"]).name
            lines[0] += f" (atlas {atlas_name}, weights {Path(weights).name if weights else 'none'})"
        if notes := "; ".join(notes_of(self.image)):
            lines.append(shorten(notes, 150))
        return "\n".join(lines)

    @property
    def _source(self) -> str:
        """What an error message calls the scan."""
        return self._file or "the scan"

    def _paths(self, folder: Path, kinds: Iterable[str]) -> dict[str, Path]:
        """Names the files."""
        case = self.case or ""
        if not case or Path(case).name != case:
            raise ValueError(f"`case` must be a file name without folders, got {case!r} for {self._source}.")
        if len(os.fsencode(case)) > MAX_NAME_BYTES:
            length = len(os.fsencode(case))
            raise ValueError(f"`case` must have at most {MAX_NAME_BYTES} bytes, got {length} for {self._source}.")
        return {kind: folder / f"{case}_{ENDINGS.get(kind, kind)}" for kind in kinds}

    def _check_grid(self) -> None:
        """Label map and scan must lie on the same grid."""
        shape = tuple(self.image.shape)
        if tuple(self.label_map.shape) != shape or len(shape) != 4 or shape[0] != 1:
            raise ValueError(
                f"The segmentation of {self._source} must have the shape (1, *spatial) of the image, three dimensions, "
                f"got {tuple(self.label_map.shape)} for {shape}: invert the preprocessing first."
            )
        affine, expected = (convert_to_numpy(tensor.affine) for tensor in (self.label_map, self.image))
        if not same_grid(shape[1:], expected, shape[1:], affine):
            raise ValueError(
                f"The segmentation of {self._source} must have the affine of the image, got one up to "
                f"{grid_distance(affine, expected, shape[1:]):.3g} mm off: invert the preprocessing first."
            )


def label_words(table: LabelTable) -> dict[int, str]:
    """A name of letters and digits alone for each label, as BIDS has it in file names; no two are the same.

    Example:
        >>> from monai_lcs.labels import Label
        >>> table = LabelTable([Label(1, "ctx-lh-cuneus"), Label(2, "Insula (left)"), Label(3, "insula left")])
        >>> label_words(table)
        {1: 'ctxLhCuneus', 2: 'InsulaLeft2', 3: 'insulaLeft3'}
    """
    parts = {label.id: re.findall("[A-Za-z0-9]+", label.name) or ["label"] for label in table}
    words = {
        id: "".join([first, *(part[0].upper() + part[1:] for part in rest)]) for id, (first, *rest) in parts.items()
    }
    while len(taken := Counter(word.lower() for word in words.values())) < len(words):  # some file systems ignore case
        words = {id: word if taken[word.lower()] == 1 else f"{word}{id}" for id, word in words.items()}
    return words
