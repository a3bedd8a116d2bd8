"""The atlas masks of labels, cut out of the last channels of an inferer's input."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from monai_lcs.boxes import crop, union_box
from monai_lcs.labels.votes import VOTE_CHANNELS, group_votes, vote_boxes
from monai_lcs.networks.crops import Mask

__all__ = ["AtlasMasks", "count_label_channels"]


def count_label_channels(channels: int, image_channels: int, atlas_channels: int, votes: bool) -> int:
    """How many channels at the end of an input are label maps or votes.

    Args:
        channels: of the input.
        image_channels: of the image.
        atlas_channels: of the image of one atlas.
        votes: whether they are votes.

    Returns:
        :data:`monai_lcs.labels.votes.VOTE_CHANNELS` of votes; 1 of one atlas; K + 1 of K > 1 atlases, whose images and
        label maps are all in the input, and after them the label map of their vote.

    Example:
        >>> count_label_channels(3, image_channels=1, atlas_channels=1, votes=False)
        1
        >>> count_label_channels(20, image_channels=1, atlas_channels=1, votes=False)  # 1 + 9 + 9 + 1
        10
    """
    if votes or not atlas_channels:
        return VOTE_CHANNELS if votes else 1
    atlases, left = divmod(channels - image_channels - 1, atlas_channels + 1)
    return atlases + 1 if atlases > 1 and not left else 1


class AtlasMasks:
    """The masks of any label or union in a window.

    Args:
        channels: a label map ``(1, *spatial)``; votes, for soft masks, see :mod:`monai_lcs.labels.votes`; or the label
            maps of several atlases and that of their vote.
        votes: whether they are votes.

    Example:
        >>> import torch
        >>> AtlasMasks(torch.tensor([[[0, 17, 0, 53, 0]]])).of((17, 53)).values.int()
        tensor([[1, 0, 1]], dtype=torch.int32)
        >>> [mask.box for mask in AtlasMasks(torch.tensor([[0, 17, 0], [17, 17, 0], [0, 17, 0]])).of((17,))]
        [(slice(1, 2, None),), (slice(0, 2, None),)]
    """

    def __init__(self, channels: Tensor, votes: bool = False) -> None:
        self.several = len(channels) > 1 and not votes
        self.maps = [x[None] for x in channels[:-1]] if self.several else [channels]
        self.found = [vote_boxes(each) for each in self.maps]

    def of(self, ids: Sequence[int]) -> Mask | list[Mask]:
        """The mask of a label or a union, of several atlases one each; ids that a map does not hold are ignored."""
        masks = [self._of(ids, i) for i in range(len(self.maps))]
        return masks if self.several else masks[0]

    def _of(self, ids: Sequence[int], atlas: int) -> Mask:
        label_map, found = self.maps[atlas], self.found[atlas]
        boxes = [found[i] for i in ids if i in found]
        box = union_box(boxes) if boxes else (slice(0, 0),) * (label_map.ndim - 1)
        return Mask(group_votes(crop(label_map, box), ids), box)
