"""The functions that the bundle's configs call: thin doors to the pipeline.

A mistake that the user can mend ends the program with one sentence, not with a traceback of the config parser.
"""

from monai_lcs.bundle.labels import (
    further_atlases,
    label_groups,
    label_ids,
    read_atlas,
    requested_labels,
    result_table,
    truth_ids,
    union_ids,
)
from monai_lcs.bundle.processes import (
    check_bfloat16,
    default_device,
    default_workers,
    device_ids,
    is_cuda,
    scored_once,
    start_processes,
    stop_processes,
)
from monai_lcs.bundle.results import check_new, check_new_cases, check_writable
from monai_lcs.bundle.runs import Confidence, made_with, run_each, run_each_together, score_each
from monai_lcs.bundle.scans import align_all, cases, images, prepared, with_random_atlas
from monai_lcs.bundle.weights import (
    begin_training,
    best_model,
    check_fused,
    check_resumed,
    load_weights,
    run_training,
    say_propagated,
    settings_of,
)
from monai_lcs.bundle.words import check_flags, check_paths
from monai_lcs.pipeline import Settings, on_device
from monai_lcs.pipeline.checkpoints import keep_resumable
from monai_lcs.pipeline.guard import propagated_requests
from monai_lcs.pipeline.handlers import polynomial_decay, show_epochs, validate_last

__all__ = [
    "Confidence",
    "Settings",
    "align_all",
    "begin_training",
    "best_model",
    "cases",
    "check_bfloat16",
    "check_flags",
    "check_fused",
    "check_new",
    "check_new_cases",
    "check_paths",
    "check_resumed",
    "check_writable",
    "default_device",
    "default_workers",
    "device_ids",
    "further_atlases",
    "images",
    "is_cuda",
    "keep_resumable",
    "label_groups",
    "label_ids",
    "load_weights",
    "made_with",
    "on_device",
    "polynomial_decay",
    "prepared",
    "propagated_requests",
    "read_atlas",
    "requested_labels",
    "result_table",
    "run_each",
    "run_each_together",
    "run_training",
    "say_propagated",
    "score_each",
    "scored_once",
    "settings_of",
    "show_epochs",
    "start_processes",
    "stop_processes",
    "truth_ids",
    "union_ids",
    "validate_last",
    "with_random_atlas",
]
