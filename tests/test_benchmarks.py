"""What the benchmarks of accuracy decide by themselves."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

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
