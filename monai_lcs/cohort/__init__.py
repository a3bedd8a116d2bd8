"""Many scans: what is finished is kept, what failed is tried again, several processes share the work."""

from monai_lcs.cohort.records import CohortFolder, Outcome, Record
from monai_lcs.cohort.report import write_report
from monai_lcs.cohort.run import Cohort, shard
from monai_lcs.cohort.segmentations import digests, made_with, outcome, saved_outcome

__all__ = [
    "Cohort",
    "CohortFolder",
    "Outcome",
    "Record",
    "digests",
    "made_with",
    "outcome",
    "saved_outcome",
    "shard",
    "write_report",
]
