"""The label table and its formats, label groups, and the labels that a user requests."""

from monai_lcs.labels.table import Label, LabelTable, is_integer

__all__ = ["Label", "LabelTable", "is_integer"]
