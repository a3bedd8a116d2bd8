"""Results: what goes out, as label maps, tables and pictures."""

from monai_lcs.results.picture import qc_picture
from monai_lcs.results.segmentation import Segmentation
from monai_lcs.results.volumes import volume_table

__all__ = ["Segmentation", "qc_picture", "volume_table"]
