"""Alignments that were computed once: the last ones in memory, all of them on disk where a folder is given."""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import SimpleITK as sitk
from monai.config import PathLike
from monai.data import MetaTensor

from monai_lcs.atlas import registration
from monai_lcs.atlas.alignment import Alignment, AtlasAligner
from monai_lcs.atlas.atlas import Atlas, fingerprint
from monai_lcs.files import write_atomically
from monai_lcs.grids import affine_of, from_sitk, on_grid_of, to_sitk

__all__ = ["AlignmentCache"]

REPORT = {"mode", "metric", "overlap", "seconds", "orientation"}

_HDF5 = threading.Lock()
"""Held while a transform is read or written: two threads at a time in SimpleITK's HDF5 end the process."""


class AlignmentCache:
    """Aligns an atlas to a scan, unless the same was aligned before.

    Alignments are found by content: the voxels and affines of scan and atlas image, and the settings of the alignment.
    Several threads may share a cache; two that ask for the same alignment wait for one of them to compute it. A folder
    may be shared by processes, and emptied at any time.

    Args:
        folder: where alignments are kept, for a brain about 20 MB each, and 130 MB with the mode ``"deformable_fine"``;
            ``None`` for in memory only.
        in_memory: how many of the last ones are kept in memory, where they take as much.

    Example:
        >>> import torch
        >>> from monai_lcs.labels import LabelTable
        >>> image = MetaTensor(torch.rand(1, 8, 8, 8))
        >>> atlas = Atlas(image, MetaTensor((image > 0.5).int()), LabelTable.from_ids([1]))
        >>> cache, aligner = AlignmentCache(), AtlasAligner("none")
        >>> [known for _, known in (cache.align(aligner, image, atlas), cache.align(aligner, image, atlas))]
        [False, True]
    """

    def __init__(self, folder: PathLike | None = None, in_memory: int = 8) -> None:
        self.folder = None if folder is None else Path(folder)
        self.in_memory = in_memory
        self._recent: OrderedDict[str, Alignment] = OrderedDict()
        self._lock = threading.Lock()
        self._computing: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def __reduce__(self) -> tuple[type[AlignmentCache], tuple[Path | None, int]]:
        return type(self), (self.folder, self.in_memory)  # another process has no use for locks

    def align(self, aligner: AtlasAligner, scan: MetaTensor, atlas: Atlas) -> tuple[Alignment, bool]:
        """The alignment of an atlas to a scan.

        Args:
            aligner: how to align.
            scan: ``(1, *spatial)`` on the grid that the atlas is to have.
            atlas: the atlas.

        Returns:
            The alignment, and whether it was known already.

        Raises:
            ValueError: as :meth:`monai_lcs.atlas.alignment.AtlasAligner.align`.
        """
        key = hashlib.sha256(repr((fingerprint(scan), atlas.fingerprint, aligner.key)).encode()).hexdigest()
        with self._lock:
            computing = self._computing[key]
        with computing:
            known = self._recall(key) or self._load(key, scan, atlas)
            alignment = known or aligner.align(scan, atlas.image)
            if known is None:
                self._try_to_save(key, alignment)
            self._remember(key, alignment)  # before another thread that waits for it goes on
        return alignment, known is not None

    def _recall(self, key: str) -> Alignment | None:
        with self._lock:
            return self._recent.get(key)

    def _remember(self, key: str, alignment: Alignment) -> None:
        with self._lock:
            self._computing.pop(key, None)
            self._recent[key] = alignment
            self._recent.move_to_end(key)
            if len(self._recent) > self.in_memory:
                self._recent.popitem(last=False)

    def _load(self, key: str, scan: MetaTensor, atlas: Atlas) -> Alignment | None:
        """The alignment that is on disk; the atlas image is resampled again, which takes a fraction of a second."""
        found = self._read(key)
        if found is None:
            return None
        report, transform = found
        fixed, moving = (to_sitk(x[:1].float(), affine_of(x)) for x in (scan, atlas.image))
        if report["mode"] == "none":
            moving.CopyInformation(fixed)
        voxels, _ = from_sitk(registration.resample(moving, fixed, transform))
        return Alignment(on_grid_of(scan, voxels, atlas.image.meta), transform, **report)

    def _read(self, key: str) -> tuple[dict[str, Any], sitk.Transform] | None:
        """The report and the transform on disk; ``None`` where one of them is missing or damaged."""
        if self.folder is None or not (self.folder / f"{key}.json").is_file():
            return None
        try:
            report = json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
            if not isinstance(report, dict) or set(report) != REPORT:
                return None
            with _HDF5:
                return report, sitk.ReadTransform(str(self.folder / f"{key}.h5"))
        except (
            OSError,
            ValueError,
            RuntimeError,
            RecursionError,
        ):  # the folder may be emptied at any time, also in part
            return None

    def _try_to_save(self, key: str, alignment: Alignment) -> None:
        """A full disk costs the next run some time; it must not cost this one its scan."""
        try:
            self._save(key, alignment)
        except (OSError, RuntimeError) as error:
            warnings.warn(f"The alignment is not kept in the cache {self.folder}: {error}", stacklevel=3)

    def _save(self, key: str, alignment: Alignment) -> None:
        """Write the transform, then the report: where there is a report, the alignment is complete."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        transform = self.folder / f"{key}.h5"
        with _HDF5:
            write_atomically(transform, lambda temporary: sitk.WriteTransform(alignment.transform, str(temporary)))
        report = json.dumps(alignment.report)
        write_atomically(self.folder / f"{key}.json", lambda temporary: temporary.write_text(report))
