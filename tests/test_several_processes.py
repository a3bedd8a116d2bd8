"""Training in several processes, as torchrun starts them: the same as one process with all their cases in a batch."""

import os
import socket
import sys
import traceback

import pytest
import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from monai.utils import set_determinism
from tiny_training import OPTIONS, SETTINGS, epochs_saved, make_study
from torch.nn.parallel import DistributedDataParallel

import monai_lcs as lcs
from monai_lcs.networks import LabelConditionedUNet
from monai_lcs.pipeline import bundle_folder
from monai_lcs.pipeline.trainer import _recipe

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")

CONFIGS = bundle_folder() / "configs"


@pytest.fixture(autouse=True)
def undetermined():
    yield
    set_determinism(None)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Four cases to train on, one to validate."""
    return make_study(tmp_path_factory.mktemp("study"), cases=5)


def in_processes(count, work):
    """Do some work in forked processes that find each other as those of torchrun do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    children = [_fork(work, {**where, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * count


def _fork(work, environment):
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ.update(environment)
        work(int(environment["RANK"]))
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def train(folder, out, configs=("train",), **more):
    """Run the bundle's training; the loss of each step, the labels that were drawn, the weights and the Dice."""
    atlas = lcs.Atlas.read(folder / "images/atlas.nii.gz", folder / "labels/atlas.nii.gz")
    given = {"atlas": atlas, **_recipe(folder / "study", out, lcs.Settings.from_dict(SETTINGS)), **OPTIONS, **more}
    files = [str(CONFIGS / f"{config}.json") for config in configs]
    flow = ConfigWorkflow(files, logging_file=False, workflow_type="train", **given)
    flow.initialize()
    trainer, evaluator = (flow.parser.get_parsed_content(name) for name in ("train#trainer", "validate#evaluator"))
    losses, drawn, dice = [], [], []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: losses.append(trainer.state.output["loss"].item()))
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: drawn.append(trainer.state.batch["selected_labels"].tolist())
    )
    evaluator.add_event_handler(Events.COMPLETED, lambda: dice.append(evaluator.state.metrics["val_mean_dice"]))
    flow.run()
    network = getattr(trainer.network, "module", trainer.network)
    flow.finalize()
    scored = evaluator.state.metric_details["val_mean_dice"]
    return {"losses": losses, "drawn": drawn, "dice": dice, "scored": scored, "weights": network.state_dict()}


def train_in_processes(count, folder, out, **more):
    def work(rank):
        torch.save(train(folder, out, ("train", "multi_gpu_train"), **more), out / f"rank{rank}.pt")

    in_processes(count, work)
    return [torch.load(out / f"rank{rank}.pt") for rank in range(count)]


NOT_RANDOM = {
    "train#random_transforms": [
        {
            "_target_": "monai_lcs.transforms.RandSelectLabelsd",
            "keys": ["label", "atlas_label"],
            "num_labels": 2,
            "groups": "@label_groups",
            "masks": False,
        }
    ],
    # not Adam, which makes steps of rounding errors where a gradient is 0: biases before an instance norm
    "optimizer": {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 0.1},
    "dropout": 0.0,
    "epochs": 6,
    "val_interval": 2,
}


def test_two_processes_are_one_with_the_combined_batch(study, tmp_path):
    """The loss of each step, the Dice of each validation and the final weights."""
    one_by_one = {
        "_target_": "monai.data.DistributedSampler",
        "dataset": "@train#dataset",
        "num_replicas": 1,
        "rank": 0,
    }
    sampler = {"train#sampler": one_by_one, "train#dataloader#sampler": "@train#sampler"}
    alone = train(
        study, tmp_path / "alone", batch_size=2, **NOT_RANDOM, **sampler, **{"train#dataloader#shuffle": False}
    )
    (tmp_path / "two").mkdir()
    first, second = train_in_processes(2, study, tmp_path / "two", **NOT_RANDOM)
    assert len(alone["losses"]) == 6 * 2
    assert alone["losses"][-1] < 0.9 * alone["losses"][0]
    assert first["losses"] == second["losses"]  # the mean of both, in both
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert first["dice"] == second["dice"] == pytest.approx(alone["dice"], abs=0.01)
    for name, weight in alone["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(first["weights"][name], weight, rtol=1e-3, atol=1e-4)


def test_each_process_draws_its_own_and_only_the_first_writes(study, tmp_path):
    first, second = train_in_processes(2, study, tmp_path, epochs=4, labels_per_image=1)
    assert first["drawn"] != second["drawn"]
    assert epochs_saved(tmp_path) == [3, 4]
    assert len(list(tmp_path.glob("events*"))) == 2  # of training and of validation
    assert {path.suffix for path in tmp_path.glob("[!.e]*")} == {".pt", ".json", ".tsv"}

    (tmp_path / "resumed").mkdir()
    train_in_processes(2, study, tmp_path / "resumed", epochs=4, labels_per_image=1)
    (tmp_path / "resumed/resume_checkpoint_4.pt").unlink()
    resumed, _ = train_in_processes(2, study, tmp_path / "resumed", epochs=4, labels_per_image=1, resume=True)
    assert all(torch.equal(weight, first["weights"][name]) for name, weight in resumed["weights"].items())


def test_a_validation_case_counts_once(tmp_path):
    """Also with more processes than cases, where some have to repeat one."""
    folder = make_study(tmp_path, cases=9)
    more = {"epochs": 1, "learning_rate": 0.0}
    (tmp_path / "three").mkdir()
    alone = train(folder, tmp_path / "alone", **more)
    ranks = train_in_processes(3, folder, tmp_path / "three", **more)
    assert alone["scored"].shape == (2, 2)
    assert not torch.equal(*alone["scored"])  # to repeat one would change the mean
    assert all(rank["dice"] == pytest.approx(alone["dice"], abs=1e-6) for rank in ranks)
    assert all(rank["scored"].isnan().all(1).sum() == 1 for rank in ranks)


def test_a_process_whose_labels_lie_nowhere(tmp_path):
    """The network alone, without ``find_unused_parameters``: gradients are the mean with those of zero."""
    box = (slice(2, 6), slice(2, 6))
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def gradients(network, boxes):
        for _ in range(2):  # the second step is the one that fails where a weight had no gradient
            network.zero_grad()
            network(x, boxes=boxes)[..., 2:6, 2:6].sum().backward()
        return [weight.grad for weight in network.parameters()]

    def make():
        torch.manual_seed(0)
        return LabelConditionedUNet(2, channels=(2, 4))

    def work(rank):
        dist.init_process_group("gloo")
        found = gradients(DistributedDataParallel(make()), [[box if rank == 0 else None]])
        torch.save(found, tmp_path / f"{rank}.pt")
        dist.destroy_process_group()

    in_processes(2, work)
    expected = [gradient / 2 for gradient in gradients(make(), [[box]])]
    assert any(gradient.abs().max() > 0 for gradient in expected)
    for rank in range(2):
        for found, gradient in zip(torch.load(tmp_path / f"{rank}.pt"), expected, strict=True):
            torch.testing.assert_close(found, gradient)
