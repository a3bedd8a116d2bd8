"""Labels: the table of their names, what a label map holds, label groups, and the labels that a user requests."""

from monai_lcs.labels.coarse import group_coarse_labels
from monai_lcs.labels.groups import LabelGroup, as_groups, group_masks, label_mask, present_labels
from monai_lcs.labels.label import Label, is_integer
from monai_lcs.labels.label_map import check_label_map
from monai_lcs.labels.limits import EXACT_INTEGERS, MAX_FLOAT32_ID, MAX_ID
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
