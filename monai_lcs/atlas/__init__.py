"""The atlas: an image, its label map and its label table, and how it is aligned to a scan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_lcs.lazy import lazy_names

if TYPE_CHECKING:
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

# Most names need torch, MONAI and SimpleITK, which take seconds to import; the list of named atlases needs none
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ALIGNMENTS": "alignment",
        "Alignment": "alignment",
        "AlignmentCache": "alignment_cache",
        "Atlas": "atlas",
        "AtlasAligner": "alignment",
        "NAMED_ATLASES": "named",
        "fingerprint": "atlas",
        "fuse_atlases": "fusion",
        "named_atlas": "named",
    },
)
