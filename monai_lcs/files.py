"""Files that are never half-written and never lost, and the arrays that go into them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from monai.config import NdarrayOrTensor

if TYPE_CHECKING:
    from monai_lcs.labels import LabelTable

__all__ = [
    "as_array",
    "as_label_array",
    "check_absent",
    "check_ids",
    "check_known",
    "write_atomically",
    "write_tsv",
]


def check_absent(paths: Sequence[Path], overwrite: bool) -> None:
    """No result is lost without being asked for."""
    for path in paths:
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists: write elsewhere or set overwrite=True.")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
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


def write_tsv(frame: pd.DataFrame, path: Path, float_format: str | None = None) -> None:
    """Writes a table with tabs, NaN as `n/a`."""
    frame.to_csv(path, sep="\t", index=False, na_rep="n/a", float_format=float_format)


def as_array(values: Any) -> np.ndarray:
    """A tensor, wherever it is, or an array as a numpy array without metadata."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def check_ids(values: np.ndarray, what: str = "A label map") -> None:
    """Only integers >= 0, in any type; NaN and Inf are none."""
    wrong = values[(values < 0) | (values != np.rint(values)) | np.isinf(values)]
    if wrong.size:
        raise ValueError(f"{what} must hold integers >= 0, got {wrong[0]:g}.")


def as_label_array(label_map: NdarrayOrTensor) -> np.ndarray:
    """A label map as a numpy array of integers >= 0."""
    values = as_array(label_map)
    check_ids(values)
    return values if np.issubdtype(values.dtype, np.integer) else values.astype(np.int64)


def check_known(ids: np.ndarray, table: LabelTable) -> None:
    """Only 0 and ids of the table."""
    unknown = [id for id in ids.tolist() if id != 0 and id not in table]
    if unknown:
        rest = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise ValueError(f"The label map holds {unknown[:10]}{rest}, which {table} does not have.")
