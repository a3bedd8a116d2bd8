import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.metrics import DiceMetric
from monai.networks import one_hot

from monai_lcs.metrics import LabelMapDice, label_dice

IDS = [3, 1, 9, 40]


def random_maps(shape=(2, 1, 6, 7, 8), seed=0):
    """Two label maps that agree about half of the time; 0 and 5 are no ids of `IDS`, 40 is in neither."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([0, 1, 3, 5, 9])
    target = values[torch.randint(5, shape, generator=generator)]
    noise = values[torch.randint(5, shape, generator=generator)]
    return torch.where(torch.rand(shape, generator=generator) < 0.5, target, noise), target


def numpy_dice(pred, target, ids):
    pred, target = np.asarray(pred), np.asarray(target)
    masks = [(pred == id, target == id) for id in ids]
    return [2 * (p & t).sum() / (p.sum() + t.sum()) if t.any() else np.nan for p, t in masks]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
@pytest.mark.parametrize("shape", [(1, 6, 7, 8), (6, 7), (1, 1)])
def test_label_dice_matches_one_pass_per_label(shape, dtype):
    pred, target = random_maps(shape)
    dice = label_dice(pred.to(dtype), target.to(dtype), IDS)
    assert dice.dtype == torch.float32
    np.testing.assert_allclose(dice, numpy_dice(pred, target, IDS), rtol=1e-6)


def test_absent_labels_and_foreign_values():
    target = torch.tensor([[1, 1, 2, 2, 0, -1]])
    pred = torch.tensor([[1, 1, 3, 9, 10_000, -7]])
    # found, missed, predicted though absent, absent from both
    torch.testing.assert_close(
        label_dice(pred, target, [1, 2, 3, 4]), torch.tensor([1, 0, torch.nan, torch.nan]), equal_nan=True
    )


def test_background_can_be_scored():
    torch.testing.assert_close(
        label_dice(torch.tensor([0, 0, 1, -1]), torch.tensor([0, 5, 1, 99]), [0, 1]), torch.tensor([2 / 3, 1.0])
    )


def test_perfect_and_symmetric():
    pred, target = random_maps()
    present = [1, 3, 9]
    assert label_dice(target, target, present).tolist() == [1, 1, 1]
    torch.testing.assert_close(label_dice(pred, target, present), label_dice(target, pred, present))


def test_result_is_a_plain_tensor():
    pred, target = random_maps((1, 4, 4))
    assert type(label_dice(MetaTensor(pred), MetaTensor(target), IDS)) is torch.Tensor


@pytest.mark.parametrize(
    ("pred", "target", "ids", "message"),
    [
        (torch.zeros(1, 4), torch.zeros(1, 5), [1], r"same shape, got \(1, 4\) and \(1, 5\)"),
        (torch.tensor([0.0, 0.25]), torch.zeros(2), [1], "integers, got 0.25"),
        (torch.zeros(2), torch.zeros(2), [], r"at least one, got \[\]"),
        (torch.zeros(2), torch.zeros(2), [1, 1], r"unique ids >= 0, at least one, got \[1, 1\]"),
        (torch.zeros(2), torch.zeros(2), [-1], r"got \[-1\]"),
    ],
)
def test_label_dice_errors(pred, target, ids, message):
    with pytest.raises(ValueError, match=message):
        label_dice(pred, target, ids)


@pytest.mark.parametrize("reduction", ["mean", "mean_batch"])
def test_metric_equals_monai_on_one_hot(reduction):
    ours, monai = LabelMapDice(IDS, reduction), DiceMetric(include_background=True, reduction=reduction)
    for seed in (0, 1):
        pred, target = random_maps(seed=seed)
        target[1][target[1] == 9] = 0  # a label that one case lacks
        torch.testing.assert_close(
            ours(pred, target),
            monai(one_hot(pred, 41)[:, IDS], one_hot(target, 41)[:, IDS]),
            equal_nan=True,
        )
    assert ours.get_buffer().shape == (4, len(IDS))
    expected = monai.aggregate()
    if reduction == "mean_batch":
        expected[IDS.index(40)] = torch.nan  # in no case: MONAI says 0, which reads as a failure
    torch.testing.assert_close(ours.aggregate(), expected, equal_nan=True)


def test_metric_takes_lists_of_different_sizes():
    metric = LabelMapDice([1])
    ones = [torch.ones(1, 4, 4), torch.ones(1, 2, 3)]
    assert metric([ones[0], 0 * ones[1]], ones).tolist() == [[1], [0]]
    assert metric.aggregate() == 0.5
    metric.reset()
    with pytest.raises(ValueError, match="call the metric on at least one case"):
        metric.aggregate()


def test_nothing_to_score_is_nan():
    metric = LabelMapDice([1])
    metric(torch.ones(2, 1, 4), torch.zeros(2, 1, 4))
    assert metric.aggregate().isnan()


def test_metric_errors():
    with pytest.raises(ValueError, match=r"\(B, 1, \*spatial\), got \(1, 2, 4\) and \(1, 2, 4\)"):
        LabelMapDice([1])(torch.ones(1, 2, 4), torch.ones(1, 2, 4))
    with pytest.raises(ValueError, match="needs `y`"):
        LabelMapDice([1])(torch.ones(1, 1, 4))
    with pytest.raises(ValueError, match=r"unique ids"):
        LabelMapDice([2, 2])


def test_in_an_evaluator_through_a_bundle_config():
    from monai.bundle import ConfigParser
    from monai.engines import SupervisedEvaluator

    pred, target = random_maps((3, 1, 6, 7, 8))
    parser = ConfigParser(
        {
            "imports": ["$import monai"],
            "metric": {
                "_target_": "monai.handlers.IgniteMetricHandler",
                "metric_fn": {"_target_": "monai_lcs.metrics.LabelMapDice", "labels": IDS},
                "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
            },
        }
    )
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": pred[:2], "label": target[:2]}, {"image": pred[2:], "label": target[2:]}],
        network=torch.nn.Identity(),  # the "image" is the prediction
        key_val_metric={"val_mean_dice": parser.get_parsed_content("metric")},
    )
    expected = np.array([numpy_dice(p, t, IDS) for p, t in zip(pred, target, strict=True)])
    for _ in range(2):  # the metric starts again with every run
        evaluator.run()
        np.testing.assert_allclose(evaluator.state.metric_details["val_mean_dice"], expected, rtol=1e-6)
        assert evaluator.state.metrics["val_mean_dice"] == pytest.approx(np.nanmean(expected))
