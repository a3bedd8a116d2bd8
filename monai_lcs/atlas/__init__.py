"""The atlas: an image, its label map and its label table, and how it is aligned to a scan."""

from monai_lcs.atlas.alignment import ALIGNMENTS, Alignment, AtlasAligner
from monai_lcs.atlas.alignment_cache import AlignmentCache
from monai_lcs.atlas.atlas import Atlas, fingerprint
from monai_lcs.atlas.fusion import fuse_atlases

__all__ = ["ALIGNMENTS", "Alignment", "AlignmentCache", "Atlas", "AtlasAligner", "fingerprint", "fuse_atlases"]
