"""What the benchmarks of accuracy decide by themselves."""

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from monai_lcs.networks import LabelConditionedUNet
from monai_lcs.pipeline import load_weights

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import accuracy
import confidence

DICE = pd.DataFrame({"id": [1, 2, 3, 4, 5, 6], "dice": [0.1, 0.2, 0.3, 0.4, 0.5, np.nan]})


@pytest.mark.parametrize(("values", "rank"), [([1, 4, 9, 16, 25, 0], 1.0), ([5, 4, 3, 2, 1, 0], -1.0)])
def test_labels_are_ranked_by_the_measure(values, rank):
    found = confidence.ranked(DICE, pd.DataFrame({"id": DICE.id, "confidence": values})[::-1])
    assert found["rank correlation"] == pytest.approx(rank)
    assert (found["labels"], found["not ranked"]) == (5, 0)
    assert found["Dice, fifth of the lowest confidence"] == pytest.approx(0.1 if rank > 0 else 0.5)


def test_several_atlases_are_ranked_by_their_agreement():
    volumes = pd.DataFrame({"id": DICE.id, "agreement": [1, 2, 3, np.nan, 4, 5], "confidence": 0.5})
    found = confidence.ranked(DICE, volumes)
    assert (found["labels"], found["not ranked"]) == (4, 1)
    assert found["mean agreement"] == 2.5
    assert found["rank correlation"] == pytest.approx(1)


def test_labels_without_a_measure_are_an_error():
    with pytest.raises(ValueError, match="it takes several atlases, or a network"):
        confidence.ranked(DICE, pd.DataFrame({"id": DICE.id, "mm3": 1.0}))


def test_a_row_begins_with_the_weights_that_converged(tmp_path):
    networks = [LabelConditionedUNet(channels=(4, 8), conditioning="shared") for _ in range(2)]
    best = tmp_path / "converged/lcs-shared-seed0/best.pt"
    args = Namespace(out=tmp_path, converged=tmp_path / "converged")
    with pytest.raises(SystemExit, match="and name its OUT by --converged"):
        accuracy.first_weights("lcs-shared-seed0", args)
    best.parent.mkdir(parents=True)
    torch.save(torch.nn.ModuleDict({"network": networks[0]}).state_dict(), best)
    load_weights(accuracy.first_weights("lcs-shared-seed0", args), networks[1])
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.equal(one, other)
