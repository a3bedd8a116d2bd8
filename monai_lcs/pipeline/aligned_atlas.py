"""A scan and the atlas that is aligned to it, as the steps of the preprocessing hand them on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from monai.data import MetaTensor

from monai_lcs.atlas.voters import Voter
from monai_lcs.inferers.scan_votes import WEIGHT
from monai_lcs.pipeline.skull import NOT_LOOKED_FOR

__all__ = ["AlignedAtlas", "Scan"]


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan, as it was read and on the network's grid.

    Args:
        image: ``(1, *spatial)`` float32 on the network's grid: RAS, resampled; only the brain where a mask is known.
        source: ``(1, *spatial)`` as read, on its own grid, with the file's metadata.
        mask: ``(1, *spatial)`` of 0 and 1, the brain on the grid of the source; ``None`` where the scan has no other
            parts.
        skull: what became of the skull, in words.
    """

    image: MetaTensor
    source: MetaTensor
    mask: MetaTensor | None = None
    skull: str = NOT_LOOKED_FOR


@dataclass(frozen=True, eq=False)
class AlignedAtlas:
    """The atlas on a scan's grid, fused with the further atlases where there are some; all ``(1, *spatial)``.

    Args:
        image: the atlas image.
        label_map: the propagated labels.
        quality: the alignment's report: ``mode``, ``metric``, ``overlap``, ``seconds``, ``orientation``; and
            ``aligned``, ``"new"`` or ``"cached"``; and ``without_voxels``, a text that names the atlas's labels
            without a voxel here, since the voxels are too large or the scan does not show them; empty without any.
        agreement: the share of the atlases' votes that each voxel's label got, 0 to 1; ``None`` for one atlas.
        votes: with soft masks, what the network sees instead of the label map, see :mod:`monai_lcs.labels.votes`:
            ``(VOTE_CHANNELS, *spatial)``.
        voter: with soft masks, what one atlas votes for.
        native: where the propagated masks answer for labels, the propagated labels on the scan's own grid.
        in_part: where the network sees each of several atlases, the propagated labels at the scan's own voxels in a
            part of it.
        own_votes: counts what the atlas alone votes for there; it keeps the alignment.
        each: the aligned atlases, where the network sees all of them and not what they were fused to.
        scan_votes: the votes at the scan's voxels in that part: ``(VOTE_CHANNELS, *size)``.
        vote_weight: the part that these votes have in the answer; the network has the rest of 1.
    """

    image: MetaTensor
    label_map: MetaTensor
    quality: dict[str, Any] = field(default_factory=dict)
    agreement: MetaTensor | None = None
    votes: MetaTensor | None = None
    voter: Voter | None = None
    native: MetaTensor | None = None
    in_part: MetaTensor | None = None
    own_votes: Callable[[], MetaTensor] | None = None
    each: tuple[AlignedAtlas, ...] = ()
    scan_votes: MetaTensor | None = None
    vote_weight: float = WEIGHT
