"""The one check of a label map: integers >= 0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.config import NdarrayOrTensor

if TYPE_CHECKING:
    from monai_lcs.labels.table import LabelTable

__all__ = ["as_array", "as_label_array", "check_ids", "check_known"]


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
