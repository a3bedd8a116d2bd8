"""Training that is interrupted, or disturbed, at the worst moments; tests/faults does it a thousand times."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import Dataset
from monai.transforms import Compose, RandGaussianNoised, RandSpatialCropd
from tiny_training import OPTIONS, epochs_saved, make_study, outcome, same, train

import monai_lcs as lcs
from monai_lcs.pipeline import BestModel, RunDefinition, SeedEpochs, load_weights, make_network
from monai_lcs.pipeline.checkpoints import KeepNewest, begin_training, last_saved
from monai_lcs.pipeline.training_lock import lock_folder, unlock_folder
from monai_lcs.pipeline.weights_file import read_state, read_torch, write_torch, write_weights

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def uninterrupted(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    train(study, out)
    return out


def stop_in_epoch(epoch):
    """A handler that ends a training in the middle of an epoch."""

    def stop(trainer):
        if trainer.state.epoch == epoch:
            raise ValueError("stopped here")

    return lambda trainer, *_: trainer.add_event_handler(Events.ITERATION_COMPLETED(every=2), stop)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_resumed_is_uninterrupted(study, uninterrupted, tmp_path, workers):
    """Bit for bit, with all random transforms and dropout; also where processes prepare the samples."""
    whole = uninterrupted
    if workers:
        whole = tmp_path / "whole"
        train(study, whole, num_workers=workers)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="stopped here"):
        train(study, out, [stop_in_epoch(3)], num_workers=workers)
    assert epochs_saved(out) == [1, 2]
    train(study, out, resume=True, num_workers=workers)
    assert epochs_saved(out) == [3, 4]
    assert same(outcome(out), outcome(whole))
    other = outcome(whole)
    other[f".best.{next(iter(read_state(whole / 'model.pt')))}"] += 1e-6
    assert not same(outcome(out), other)  # the comparison can fail


def test_resumes_from_the_newest_that_can_be_read(study, uninterrupted, tmp_path, capsys):
    """And mends its best model."""
    with pytest.raises(ValueError, match="stopped here"):
        train(study, tmp_path, [stop_in_epoch(3)])
    newest = tmp_path / "resume_checkpoint_2.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    (tmp_path / "model.pt").write_bytes(b"damaged")
    train(study, tmp_path, resume=True)
    said = capsys.readouterr().err
    assert f"{newest} cannot be read as a checkpoint" in said
    assert f"The training goes on from {tmp_path / 'resume_checkpoint_1.pt'}" in said
    assert (tmp_path / "damaged_checkpoint_2.pt").is_file()
    assert same(outcome(tmp_path), outcome(uninterrupted))


def test_weights_damaged_after_the_training_are_mended_by_one_more_epoch(study, uninterrupted, tmp_path):
    out = shutil.copytree(uninterrupted, tmp_path / "out")
    (out / "model.pt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"already has 4 epochs.*model\.pt cannot be read.*One more epoch"):
        train(study, out, resume=True)
    train(study, out, resume=True, epochs=5)
    best = read_torch(out / "resume_checkpoint_5.pt")["best"]["weights"]
    assert same(read_state(out / "model.pt"), best)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"learning_rate": 0.02}, r"learning_rate was 0\.01, got 0\.02"),
        ({"dropout": 0.0}, r"dropout was 0\.2, got 0\.0"),
        ({"labels": [3]}, r"labels\.1 was \[8\], got None"),
        ({"settings": {"margin_mm": 4.0}}, r"settings\.margin_mm was 8\.0, got 4\.0"),
        ({"seed": 1}, r"seed was 0, got 1"),
        ({"loss": {"_target_": "monai_lcs.losses.LabelBoxLoss", "smooth": 2.0}}, r"loss\.smooth was 1\.0, got 2\.0"),
        ({"union_prob": 0.5}, r"random_transforms\.transforms\.\d\.selector\.union_prob was 0\.3, got 0\.5"),
    ],
)
def test_another_training_is_not_resumed(study, uninterrupted, more, message):
    before = outcome(uninterrupted)
    with pytest.raises(ValueError, match=message):
        train(study, uninterrupted, resume=True, **{"epochs": 6, **more})
    assert same(outcome(uninterrupted), before)


def test_another_study_is_not_resumed(study, uninterrupted, tmp_path):
    """The content counts, not the folder."""
    make_study(tmp_path / "moved")
    make_study(tmp_path / "fewer", cases=3)
    with pytest.raises(ValueError, match=r"train_cases\.2 was \['sub-3\.nii\.gz .*got None"):
        train(tmp_path / "fewer", uninterrupted, resume=True, epochs=6)
    with pytest.raises(ValueError, match="already has 4 epochs"):
        train(tmp_path / "moved", uninterrupted, resume=True)


def test_a_new_training_replaces_no_unfinished_one(study, tmp_path, capsys):
    with pytest.raises(ValueError, match="stopped here"):
        train(study, tmp_path, [stop_in_epoch(2)])
    with pytest.raises(ValueError, match="stopped after epoch 1: give --resume to go on"):
        train(study, tmp_path)
    train(study, tmp_path, restart=True, epochs=2)
    assert epochs_saved(tmp_path) == [1, 2]
    train(study, tmp_path, epochs=1)  # that one was finished
    assert "checkpoints of the earlier training in" in capsys.readouterr().err
    assert epochs_saved(tmp_path) == [1]


def test_a_checkpoint_of_an_earlier_version_is_resumed_with_a_word(study, tmp_path, capsys):
    train(study, tmp_path, epochs=1)
    file = tmp_path / "resume_checkpoint_1.pt"
    saved = read_torch(file)
    del saved["run"], saved["best"]["weights"]
    torch.save(saved, file)
    train(study, tmp_path, epochs=2, resume=True)
    assert f"Note: {file} does not say what it trained" in capsys.readouterr().err
    assert epochs_saved(tmp_path) == [1, 2]


# ---- files


def test_two_checkpoints_are_kept_by_their_epoch(tmp_path):
    """Whatever the clock says."""
    save = KeepNewest(tmp_path)
    for epoch in (9, 10, 11):
        save({"epoch": epoch}, f"resume_checkpoint_{epoch}.pt")
        os.utime(tmp_path / f"resume_checkpoint_{epoch}.pt", (0, 10_000 - epoch))
    assert epochs_saved(tmp_path) == [10, 11]
    assert last_saved(tmp_path, 12) == str(tmp_path / "resume_checkpoint_11.pt")


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    save = KeepNewest(tmp_path)
    for epoch in (1, 2):
        save({"epoch": epoch}, f"resume_checkpoint_{epoch}.pt")
    write = Path.write_bytes

    def full(path, data):
        write(path, bytes(data)[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"Cannot write .*resume_checkpoint_3\.pt: No space left"):
            save({"epoch": 3}, "resume_checkpoint_3.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resume_checkpoint_1.pt", "resume_checkpoint_2.pt"]
    assert read_torch(tmp_path / "resume_checkpoint_2.pt") == {"epoch": 2}


def test_any_flipped_bit_is_found_or_harmless(tmp_path):
    """Of 200 in a file of weights, against torch.load alone, which takes changed weights for good ones."""
    file, rng = tmp_path / "w.pt", np.random.default_rng(0)
    good = {"weight": torch.rand(300), "bias": torch.rand(7)}
    write_torch(file, good)
    content, unnoticed_by_torch = file.read_bytes(), 0
    for _ in range(200):
        changed = bytearray(content)
        changed[rng.integers(len(content))] ^= 1 << rng.integers(8)
        file.write_bytes(changed)
        try:
            assert same(read_torch(file), good)
        except ValueError:
            with contextlib.suppress(Exception):
                unnoticed_by_torch += not same(torch.load(file, weights_only=True), good)
    assert unnoticed_by_torch > 10


def test_temporary_files_of_a_killed_process_are_removed(tmp_path):
    for name in (f".{'a' * 16}_resume_checkpoint_1.pt", f".{'0' * 16}_model.pt", f".{'0' * 16}_model.json"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".notes_model.pt").write_bytes(b"mine")
    assert begin_training(tmp_path, 1, resume=False) is None
    unlock_folder(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".notes_model.pt", ".training.lock"]


def test_settings_are_those_inside_the_weights(tmp_path):
    """A training killed between its two files leaves the old copy, which is said and not believed."""
    settings, old = lcs.Settings(channels=(4, 8), spacing=(3.0, 3.0, 3.0)), lcs.Settings(channels=(4, 8))
    network = make_network(settings)
    write_weights(tmp_path / "model.pt", network.state_dict(), settings.to_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lcs.Settings.of_weights(tmp_path / "model.pt") == settings
    old.write(tmp_path / "model.json")
    with pytest.warns(UserWarning, match=r"model\.json is no copy .* spacing \[2\.0.* the file \[3\.0.*is believed"):
        assert lcs.Settings.of_weights(tmp_path / "model.pt") == settings
    (tmp_path / "model.json").unlink()
    assert lcs.Settings.of_weights(tmp_path / "model.pt") == settings
    load_weights(tmp_path / "model.pt", network)

    torch.save(network.state_dict(), tmp_path / "bare.pt")  # as weights were before
    old.write(tmp_path / "bare.json")
    assert lcs.Settings.of_weights(tmp_path / "bare.pt") == old
    (tmp_path / "bare.json").write_text(json.dumps(settings.to_dict()))
    assert lcs.Settings.of_weights(tmp_path / "bare.pt") == settings


def test_the_best_model_is_mended_only_where_it_must(tmp_path):
    network, settings = torch.nn.Linear(2, 2), lcs.Settings()
    best = BestModel(tmp_path, network, settings)
    state = SimpleNamespace(metrics={"dice": 0.5}, key_metric_name="dice", epoch=3)
    best(SimpleNamespace(state=state))
    kept, stat = best.state_dict(), (tmp_path / "model.pt").stat()
    BestModel(tmp_path, network, settings, resume=True).load_state_dict(kept)
    assert (tmp_path / "model.pt").stat().st_ino == stat.st_ino
    lcs.Settings(spacing=(1, 1, 1)).write(tmp_path / "model.json")
    for damage in (None, b"", b"0" * 5000):
        if damage is not None:
            (tmp_path / "model.pt").write_bytes(damage)
        resumed = BestModel(tmp_path, network, settings, resume=True)
        resumed.load_state_dict(kept)
        assert (resumed.score, resumed.epoch) == (0.5, 3)
        assert same(read_state(tmp_path / "model.pt"), network.state_dict())
        assert lcs.Settings.of_weights(tmp_path / "model.pt") == settings


# ---- one training at a time

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write("process 7 on node3, since today\\n")
file.flush()
print("held", flush=True)
time.sleep(600)
"""


def test_a_folder_is_locked_while_its_process_lives(tmp_path):
    words = [sys.executable, "-c", HOLD, str(tmp_path / ".training.lock")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"Process 7 on node3, since today trains in {tmp_path}: wait"):
            lock_folder(tmp_path)
        other.kill()
    lock_folder(tmp_path)
    lock_folder(tmp_path)  # the next training of the same thread
    refused = []

    def try_it():
        try:
            lock_folder(tmp_path)
        except ValueError as error:
            refused.append(str(error))

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    assert refused
    unlock_folder(tmp_path)
    thread = threading.Thread(target=lambda: (lock_folder(tmp_path), unlock_folder(tmp_path)))
    thread.start()
    thread.join()
    assert len(refused) == 1


def test_a_second_training_is_refused_and_changes_nothing(study, tmp_path):
    words = [sys.executable, "-c", HOLD, str(tmp_path / ".training.lock")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match="trains in"):
            train(study, tmp_path)
        other.kill()
    assert [path.name for path in tmp_path.iterdir()] == [".training.lock"]


# ---- seeds and definitions


def test_the_draws_of_an_epoch_do_not_depend_on_those_before(monkeypatch):
    transform = Compose([RandGaussianNoised("x", prob=0.5), RandSpatialCropd("x", 3, random_size=False)])
    dataset = Dataset([{"x": torch.zeros(1, 9, 9)}], transform)
    seeds = SeedEpochs(5)

    def draw(epoch):
        seeds(SimpleNamespace(state=SimpleNamespace(epoch=epoch), data_loader=SimpleNamespace(dataset=dataset)))
        return torch.cat(
            [torch.rand(3), torch.from_numpy(np.random.rand(3)), *(dataset[0]["x"].flatten() for _ in "ab")]
        )

    first, second = draw(1), draw(2)
    assert not torch.equal(first, second)
    assert torch.equal(second, draw(2))
    monkeypatch.setattr("monai_lcs.pipeline.handlers.rank", lambda: 1)
    assert not torch.equal(second, draw(2))


def test_equal_parts_are_equal_definitions():
    def define(**more):
        parts = {
            "loss": torch.nn.ModuleDict({"a": torch.nn.MSELoss(reduction=more.get("reduction", "mean"))}),
            "transform": Compose([RandGaussianNoised("x", prob=more.get("prob", 0.5))]),
            "weights": torch.arange(3.0) + more.get("add", 0),
            "function": more.get("function", torch.zeros),
            "labels": {3, 1},
            **OPTIONS,
        }
        return RunDefinition(**parts)

    define().load_state_dict(define().state_dict())
    for change in ({"reduction": "sum"}, {"prob": 0.4}, {"add": 1e-3}, {"function": torch.ones}):
        with pytest.raises(ValueError, match="cannot go on as another one"):
            define(**change).load_state_dict(define().state_dict())
    assert not any(" at 0x" in text for text in define().facts.values())
