"""The loss of label conditioned training: each label in its own box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.loss import _Loss

from monai_lcs.boxes import Box
from monai_lcs.labels.groups import label_mask, label_sizes
from monai_lcs.labels.label_map import as_plain_tensor

__all__ = ["LabelBoxLogits", "LabelBoxLoss"]


class LabelBoxLogits(NamedTuple):
    """The prediction of a label, or of a union of labels, in the box in which it was decoded.

    Attributes:
        item: the index of its image in the batch.
        ids: the ids of the union.
        box: the box; ``None`` where the atlas lacks the label.
        logits: ``(*size)`` of the box; likewise.

    Example:
        >>> LabelBoxLogits(item=0, ids=(17, 53), box=(slice(0, 1), slice(2, 4)), logits=torch.zeros(1, 2)).ids
        (17, 53)
    """

    item: int
    ids: tuple[int, ...]
    box: Box | None
    logits: Tensor | None


class LabelBoxLoss(_Loss):
    """Dice and binary cross-entropy of labels that were decoded in boxes, the mean over labels.

    The target is a label map. A label's mask is cut out of it in the label's box, so that neither masks nor logits are
    ever volumes, however many labels there are.

    - Dice: ``1 - (2 |P T| + smooth) / (|P|^2 + |T|^2 + smooth)`` for each label, P the probabilities and T the mask.
      Voxels of T outside the box count as missed. This is MONAI's ``DiceLoss(sigmoid=True, squared_pred=True,
      smooth_nr=1, smooth_dr=1)`` of the logits padded to the whole volume with those of probability 0.
    - Cross-entropy: the mean over the voxels of the box. What is outside has no logit, and does not count.

    A label that the atlas lacks has no box: its Dice is that of an empty prediction, its cross-entropy 0.

    Args:
        squared_pred: square P in the denominator; otherwise its sum is there.
        smooth: added to numerator and denominator of the Dice; > 0, so that it is defined where a label is nowhere.
        lambda_dice: weight of the Dice, >= 0.
        lambda_ce: weight of the cross-entropy, >= 0.

    Raises:
        ValueError: When an argument is out of range.

    Example:
        >>> target = torch.tensor([[[[0, 7, 7, 0]]]])  # (B, 1, *spatial)
        >>> logits = torch.tensor([[20.0, -20.0]])
        >>> pred = [LabelBoxLogits(0, (7,), (slice(0, 1), slice(1, 3)), logits)]
        >>> LabelBoxLoss(lambda_ce=0)(pred, target)  # 1 - (2 * 1 + 1) / (1 + 2 + 1)
        tensor(0.2500)
    """

    def __init__(
        self, squared_pred: bool = True, smooth: float = 1.0, lambda_dice: float = 1.0, lambda_ce: float = 1.0
    ) -> None:
        super().__init__()
        if not smooth > 0:
            raise ValueError(f"`smooth` must be > 0, got {smooth}.")
        for name, weight in (("lambda_dice", lambda_dice), ("lambda_ce", lambda_ce)):
            if not weight >= 0:
                raise ValueError(f"`{name}` must be >= 0, got {weight}.")
        self.squared_pred = squared_pred
        self.smooth = smooth
        self.lambda_dice = lambda_dice
        self.lambda_ce = lambda_ce

    def forward(self, input: Sequence[LabelBoxLogits], target: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            input: the predictions, as :class:`monai_lcs.inferers.LabelBoxInferer` returns them for groups of labels.
            target: the true label maps ``(B, 1, *spatial)``.

        Returns:
            A scalar, in float32 whatever the precision of the logits.

        Raises:
            ValueError: When the target is no batch of label maps, or there is no prediction.
        """
        if target.ndim < 3 or target.shape[1] != 1:
            raise ValueError(f"`target` must be label maps (B, 1, *spatial), got shape {tuple(target.shape)}.")
        if not input:
            raise ValueError("`input` must hold the logits of at least one label, got none.")
        label_maps = as_plain_tensor(target)[:, 0]
        sizes = [label_sizes(label_map) for label_map in label_maps]
        losses = [self._of_label(one, label_maps[one.item], sizes[one.item]) for one in input]
        return torch.stack(losses).mean()

    def _of_label(self, one: LabelBoxLogits, label_map: Tensor, sizes: Mapping[int, int]) -> Tensor:
        """The loss of one label; ``sizes`` are the voxels of each id in the whole map."""
        size = sum(sizes.get(i, 0) for i in one.ids)
        if one.logits is None or one.box is None:
            missed = 1 - self.smooth / (size + self.smooth)
            return torch.tensor(self.lambda_dice * missed, device=label_map.device)
        logits = one.logits.float()
        mask = label_mask(label_map[one.box], one.ids).float()
        p = logits.sigmoid()
        both = (p.square() if self.squared_pred else p).sum() + size
        dice = 1 - (2 * (p * mask).sum() + self.smooth) / (both + self.smooth)
        return self.lambda_dice * dice + self.lambda_ce * F.binary_cross_entropy_with_logits(logits, mask)
