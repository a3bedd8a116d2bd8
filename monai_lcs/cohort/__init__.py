"""Many scans: what is finished is kept, what failed is tried again, several processes share the work."""

from monai_lcs.cohort.records import CohortFolder, Outcome, Record
from monai_lcs.cohort.report import write_report
from monai_lcs.cohort.run import Cohort, shard
from monai_lcs.cohort.segmentations import made_with, outcome

__all__ = ["Cohort", "CohortFolder", "Outcome", "Record", "made_with", "outcome", "shard", "write_report"]
