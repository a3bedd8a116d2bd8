"""Labels: the table of their names, what a label map holds, label groups, and the labels that a user requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_lcs.lazy import lazy_names

if TYPE_CHECKING:
    from monai_lcs.labels.coarse import group_coarse_labels
    from monai_lcs.labels.exact import EXACT_INTEGERS
    from monai_lcs.labels.groups import LabelGroup, as_groups, group_masks, label_mask, present_labels
    from monai_lcs.labels.label import Label, is_integer
    from monai_lcs.labels.label_map import check_label_map
    from monai_lcs.labels.limits import MAX_FLOAT32_ID, MAX_ID
    from monai_lcs.labels.queries import RequestedLabel, label_names, parse_request, requested_table
    from monai_lcs.labels.table import LabelTable

__all__ = [
    "EXACT_INTEGERS",
    "MAX_FLOAT32_ID",
    "MAX_ID",
    "Label",
    "LabelGroup",
    "LabelTable",
    "RequestedLabel",
    "as_groups",
    "check_label_map",
    "group_coarse_labels",
    "group_masks",
    "is_integer",
    "label_mask",
    "label_names",
    "parse_request",
    "present_labels",
    "requested_table",
]

# Most names need torch and MONAI, which take seconds to import; a label table needs neither
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "EXACT_INTEGERS": "exact",
        "Label": "label",
        "LabelGroup": "groups",
        "LabelTable": "table",
        "MAX_FLOAT32_ID": "limits",
        "MAX_ID": "limits",
        "RequestedLabel": "queries",
        "as_groups": "groups",
        "check_label_map": "label_map",
        "group_coarse_labels": "coarse",
        "group_masks": "groups",
        "is_integer": "label",
        "label_mask": "groups",
        "label_names": "queries",
        "parse_request": "queries",
        "present_labels": "groups",
        "requested_table": "queries",
    },
)
