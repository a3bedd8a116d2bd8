"""The atlas: an image, its label map and its label table, and how it is aligned to a scan."""

from monai_lcs.atlas.alignment import ALIGNMENTS, Alignment, AtlasAligner
from monai_lcs.atlas.alignment_cache import AlignmentCache
from monai_lcs.atlas.atlas import Atlas, fingerprint
from monai_lcs.atlas.fusion import fuse_atlases
from monai_lcs.atlas.named import NAMED_ATLASES, named_atlas

__all__ = [
    "ALIGNMENTS",
    "NAMED_ATLASES",
    "Alignment",
    "AlignmentCache",
    "Atlas",
    "AtlasAligner",
    "fingerprint",
    "fuse_atlases",
    "named_atlas",
]
