"""What the bundle's configs call: cases, labels and atlas checked before long work starts, and runs that go on.

A user's mistake ends the program with one sentence, not with a traceback of the config parser.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
from monai.data import DataLoader
from monai.engines import Evaluator
from monai.utils import optional_import
from torch.utils.data import Subset
from tqdm import tqdm

from monai_lcs import files
from monai_lcs.files import write_atomically
from monai_lcs.labels import LabelTable
from monai_lcs.labels.groups import present_labels
from monai_lcs.results import dice as tables
from monai_lcs.study import cases as study_cases
from monai_lcs.study.checks import check_case, check_labels, require_valid
from monai_lcs.study.images import read_image

__all__ = [
    "ask_labels",
    "cases",
    "check_new",
    "check_weights",
    "check_writable",
    "further_atlases",
    "images",
    "keep_resumable",
    "keep_settings",
    "label_groups",
    "last_saved",
    "read_table",
    "run_each",
    "show_epochs",
    "split_prompt",
    "trained_settings",
    "validate_last",
    "write_dice",
]

T = TypeVar("T", bound=Callable[..., Any])


def _one_sentence(function: T) -> T:
    """Turn what a user can mend into one sentence on stderr and exit status 1."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (ValueError, OSError) as error:
            raise SystemExit(f"Error: {error}") from error

    return wrapped  # type: ignore[return-value]


@_one_sentence
def read_table(label_table: str | None, atlas_labels: str) -> LabelTable:
    """The label table; without one, the labels of the atlas with made-up names."""
    _check_given(atlas_labels=atlas_labels)
    check_case({"label": atlas_labels})
    present = _present(atlas_labels)
    if not label_table:
        return LabelTable.from_ids(present)
    table = LabelTable.read(label_table)
    both = [label for label in table.ids if label in set(present)]
    if not both:
        raise ValueError(
            f"The atlas label map {atlas_labels} has no label of {label_table}:"
            f" the table has {list(table.ids[:8])} ..., the atlas {list(present[:8])} ... ."
        )
    return table


def split_prompt(prompt: Any) -> Any:
    """Labels as MONAI Label's clients ask for them: of a string with commas its parts, anything else as it is.

    Example:
        >>> split_prompt("Left-*, 17"), split_prompt([17, 53])
        (['Left-*', '17'], [17, 53])
    """
    return [part.strip() for part in prompt.split(",")] if isinstance(prompt, str) and "," in prompt else prompt


@_one_sentence
def ask_labels(table: LabelTable, labels: Any, atlas_labels: str) -> list[int]:
    """The ids asked for; all that both the table and the atlas have by default.

    Args:
        table: the label table.
        labels: see :meth:`monai_lcs.labels.LabelTable.select`; ``None`` for all.
        atlas_labels: the atlas label map file.
    """
    if labels is None or labels == "all":
        present = set(_present(atlas_labels))
        return [label for label in table.ids if label in present]
    ids = table.select(labels)
    check_labels(atlas_labels, ids, table)
    return list(ids)


@_one_sentence
def label_groups(
    table: LabelTable, labels: Sequence[int], coarse_labels: Mapping[str, Any] | str | None
) -> list[tuple[int, ...]]:
    """What training asks for: each label by itself, or each coarse label as the union of its fine ones.

    Args:
        table: the label table.
        labels: the ids in use.
        coarse_labels: ``"parent"`` for the table's parents; or a mapping from a coarse name to its fine labels,
            see :meth:`monai_lcs.labels.LabelTable.select`; labels it leaves out are not trained.
    """
    if coarse_labels is None:
        return [(label,) for label in labels]
    if coarse_labels == "parent":
        unions = list(table.children().values())
    elif isinstance(coarse_labels, Mapping):
        unions = [table.select(query) for query in coarse_labels.values()]
    else:
        raise ValueError(f"`coarse_labels` must be a mapping, 'parent' or null, got {coarse_labels!r}.")
    groups = [tuple(label for label in union if label in set(labels)) for union in unions]
    groups = [group for group in groups if group]
    if not groups:
        raise ValueError(f"No label of `coarse_labels` {coarse_labels!r} is among the labels in use {list(labels)}.")
    return groups


@_one_sentence
def cases(
    dataset_dir: str | None,
    datalist: str | None,
    section: str,
    fold: int | None,
    atlas_image: str,
    atlas_labels: str,
) -> list[dict[str, str]]:
    """Cases with labels, the atlas's own left out, all checked.

    Args:
        dataset_dir: see :func:`monai_lcs.study.cases.find_cases`, as for the next three.
        datalist: likewise.
        section: likewise.
        fold: likewise.
        atlas_image: the atlas image file, checked as well.
        atlas_labels: the atlas label map file, likewise.
    """
    _check_given(atlas_image=atlas_image, atlas_labels=atlas_labels)
    _check_source(dataset_dir, datalist)
    found = study_cases.find_cases(
        dataset_dir or None, datalist or None, section, fold, exclude=[atlas_image, atlas_labels]
    )
    require_valid([{"atlas_image": atlas_image, "atlas_label": atlas_labels}, *found])
    if section == "testing" and not datalist:
        said = f"Note: these are all {len(found)} cases of {dataset_dir}, also those a network was trained on;"
        print(said, "those left out of its training are --section validation.", file=sys.stderr)
    return found


@_one_sentence
def further_atlases(
    atlases_dir: str | None, atlases_datalist: str | None, fold: int | None, atlas_image: str, atlas_labels: str
) -> list[dict[str, str]]:
    """The training cases of a study, to vote beside the atlas; none where no study is named.

    Args:
        atlases_dir: see :func:`monai_lcs.study.cases.find_cases`, as for the next two.
        atlases_datalist: likewise.
        fold: likewise.
        atlas_image: the atlas image file, not taken twice.
        atlas_labels: the atlas label map file, likewise; every other atlas must share labels with it.
    """
    if not atlases_dir and not atlases_datalist:
        return []
    exclude = [atlas_image, atlas_labels]
    found = study_cases.find_cases(atlases_dir or None, atlases_datalist or None, "training", fold, exclude=exclude)
    require_valid(found)
    known = set(_present(atlas_labels))
    for atlas in found:
        if known.isdisjoint(_present(str(atlas["label"]))):
            raise ValueError(f"The labels of {atlas['label']} are none of those of the atlas, {atlas_labels}.")
    return found


def check_fused(checkpoint: str | None, fused: bool, atlases: Sequence[Any]) -> None:
    """Say so where the weights were trained with further atlases and there are none now, or the other way round.

    Args:
        checkpoint: file of the weights; nothing is said where there are none.
        fused: whether further atlases voted in training.
        atlases: those that vote now.
    """
    if checkpoint and fused != bool(atlases):
        trained, now = ("with", "without") if fused else ("without", "with")
        said = f"Note: {checkpoint} was trained {trained} further atlases and is used {now}; it may be less accurate."
        print(said, file=sys.stderr)


@_one_sentence
def images(
    dataset_dir: str | None,
    datalist: str | None,
    section: str,
    fold: int | None,
    atlas_image: str,
    atlas_labels: str,
) -> list[dict[str, str]]:
    """Images to segment: a file, a list of files, a folder of files, or a datalist's section.

    Args:
        dataset_dir: a file, files or a folder; where it has a folder ``images``, the files in there.
        datalist: a datalist to use instead.
        section: the section of the datalist.
        fold: the fold of its sections.
        atlas_image: the atlas image file, checked now; images are checked one by one as they are run.
        atlas_labels: the atlas label map file, likewise.
    """
    _check_given(atlas_image=atlas_image, atlas_labels=atlas_labels)
    _check_source(dataset_dir, datalist)
    check_case({"atlas_image": atlas_image, "atlas_label": atlas_labels})
    if datalist:
        return study_cases.find_cases(dataset_dir or None, datalist, section, fold, with_labels=False)
    assert dataset_dir is not None
    inner = Path(str(dataset_dir)) / "images"
    return study_cases.find_images(inner if isinstance(dataset_dir, str) and inner.is_dir() else dataset_dir)


@_one_sentence
def check_writable(folder: str) -> None:
    """Make sure that results can be written, see :func:`monai_lcs.files.check_writable`."""
    files.check_writable(folder)


@_one_sentence
def check_new(output_dir: str, names: Iterable[str], overwrite: bool) -> None:
    """Make sure, before the work is done, that its results will not replace others.

    Args:
        output_dir: where results go.
        names: their file names.
        overwrite: do not check.
    """
    there = [name for name in names if (Path(output_dir) / name).exists()]
    if there and not overwrite:
        exists = f"and {len(there) - 1} more exist" if len(there) > 1 else "exists"
        first = Path(output_dir) / there[0]
        raise ValueError(f"{first} {exists}: choose another --output_dir, or give --overwrite True.")


@_one_sentence
def check_weights(path: str | None, network: torch.nn.Module) -> None:
    """Make sure that the weights to start from are there and fit.

    Args:
        path: their file; ``None`` or an empty string to start from none.
        network: what they are for.
    """
    if not path:
        return
    if not Path(path).is_file():
        raise ValueError(f"There are no weights in {path}: train first, or give --checkpoint.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = {name: tuple(weight.shape) for name, weight in state.get("model", state).items()}
    except Exception as error:
        raise ValueError(f"{path} cannot be read as weights: {_cause(error)}") from error
    expected = {name: tuple(weight.shape) for name, weight in network.state_dict().items()}
    wrong = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    if wrong:
        raise ValueError(
            f"The weights in {path} are another network's, {wrong[0]} has the shape {found.get(wrong[0])} instead of"
            f" {expected.get(wrong[0])}: give the --channels, --conditioning and --norm it was trained with."
        )


@_one_sentence
def keep_settings(evaluator: Any, ckpt_dir: str, settings: Mapping[str, Any], resume: bool) -> None:
    """Write beside the weights, in ``model.json``, what a network must be used with as it was trained with it.

    Weights of an earlier training are kept under another name, with the time they are of.

    Args:
        evaluator: whose first run saves the weights; the settings are written after it.
        ckpt_dir: where the weights go.
        settings: alignment, spacing, margin and the network's shape.
        resume: whether the weights there are this training's.

    Raises:
        SystemExit: when a training is resumed with other settings.
    """
    events, _ = optional_import("ignite.engine", name="Events")
    weights, kept = Path(ckpt_dir) / "model.pt", Path(ckpt_dir) / "model.json"
    text = json.dumps(settings, indent=4)
    if resume and kept.is_file() and json.loads(kept.read_text()) != json.loads(text):
        raise ValueError(f"This training had the settings of {kept}: {kept.read_text()}, got {text}.")
    if not resume and weights.is_file():
        time = datetime.fromtimestamp(weights.stat().st_mtime).strftime("%Y%m%d-%H%M%S")
        for path in (weights, kept):
            if path.is_file():
                shutil.copy2(path, path.with_stem(f"model_{time}"))
    evaluator.add_event_handler(
        events.COMPLETED, lambda: write_atomically(kept, lambda temporary: temporary.write_text(text))
    )


@_one_sentence
def trained_settings(checkpoint: str | None, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a network was trained with, see :func:`keep_settings`; ``defaults`` where none were kept.

    Args:
        checkpoint: file of the weights; the settings are in the file of this name that ends in ``.json``.
        defaults: the settings' names, and their values for weights that come without.
    """
    path = Path(checkpoint).with_suffix(".json") if checkpoint else None
    if path is None or not path.is_file():
        return dict(defaults)
    try:
        kept = json.loads(path.read_text())
        return {name: kept.get(name, value) for name, value in defaults.items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} must hold the settings of a training as a JSON object: {error}.") from error


@_one_sentence
def last_saved(ckpt_dir: str, epochs: int) -> str:
    """The file from which a training goes on, the newest that :func:`keep_resumable` saved.

    Args:
        ckpt_dir: where it saved.
        epochs: how many there are to be in the end.

    Raises:
        SystemExit: when there is nothing to resume, or nothing left to do.
    """
    found = sorted(Path(ckpt_dir).glob("resume_*.pt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ValueError(f"There is no training to resume in {ckpt_dir}.")
    done = int(found[-1].stem.rpartition("_")[2])
    if done >= epochs:
        raise ValueError(f"The training in {ckpt_dir} already has {done} epochs: give more than that as --epochs.")
    return str(found[-1])


def keep_resumable(
    trainer: Any, state: Mapping[str, Any], ckpt_dir: str, interval: int, resume_from: str | None = None
) -> None:
    """Save all that a training needs to go on, every few epochs, and go on from there if asked to.

    Args:
        trainer: the trainer; its epoch and iteration are saved with the state.
        state: what to save besides: network, optimizer, scheduler, the best score so far.
        ckpt_dir: where to save ``resume_checkpoint_N.pt`` after epoch N; only the newest is kept.
        interval: epochs between two saves.
        resume_from: the file to load when training starts, see :func:`last_saved`.
    """
    handlers, _ = optional_import("ignite.handlers")
    events, _ = optional_import("ignite.engine", name="Events")
    loader, _ = optional_import("monai.handlers", name="CheckpointLoader")
    everything = {**state, "trainer": trainer}
    saver = handlers.Checkpoint(
        everything,
        handlers.DiskSaver(ckpt_dir, require_empty=False, atomic=False),
        filename_prefix="resume",
        global_step_transform=lambda engine, _: engine.state.epoch,
        include_self=True,
    )
    if resume_from is not None:
        loader(resume_from, {**everything, "checkpointer": saver}, map_location="cpu").attach(trainer)
    trainer.add_event_handler(events.EPOCH_COMPLETED(every=interval) | events.COMPLETED, saver)


def show_epochs(trainer: Any, evaluator: Any, log_dir: str) -> None:
    """A progress bar over a training's epochs, with the loss and the last validation; that one in TensorBoard too.

    Args:
        trainer: the trainer.
        evaluator: the evaluator of the validation.
        log_dir: of TensorBoard.
    """
    tensorboard, _ = optional_import("monai.handlers", name="TensorBoardStatsHandler")
    handlers, _ = optional_import("ignite.handlers")
    events, _ = optional_import("ignite.engine", name="Events")
    distributed, _ = optional_import("ignite.distributed")
    if distributed.get_rank() > 0:
        return
    tensorboard(log_dir=log_dir, iteration_log=False, global_epoch_transform=lambda _: trainer.state.epoch).attach(
        evaluator
    )
    bar = handlers.ProgressBar(desc="Epoch", persist=True)

    def shown(output: Any) -> dict[str, float]:
        return {"loss": output[0]["loss"], **evaluator.state.metrics}

    bar.attach(trainer, event_name=events.EPOCH_COMPLETED, closing_event_name=events.COMPLETED, output_transform=shown)


def validate_last(trainer: Any, evaluator: Any, interval: int) -> None:
    """Validate after a training, where its last epoch was not one to validate.

    Args:
        trainer: after its run.
        evaluator: the evaluator of the validation.
        interval: epochs between two validations.
    """
    if trainer.state.epoch % interval:
        evaluator.run(trainer.state.epoch)


def run_each(evaluator: Evaluator, output_dir: str) -> None:
    """Run an evaluator case by case: a bad case does not stop the others; at the end the bad ones are listed.

    Args:
        evaluator: its data loader's dataset must have ``data``, the cases.
        output_dir: where its results go, for the last line that is printed.

    Raises:
        SystemExit: with status 1, when a case failed.
    """
    dataset: Any = evaluator.data_loader.dataset  # type: ignore[union-attr]
    failed = {}
    evaluator.state.epoch_length = 1
    for i, case in enumerate(tqdm(dataset.data, desc="Cases", unit="case")):
        try:
            check_case(case)
            evaluator.data_loader = DataLoader(Subset(dataset, [i]), batch_size=1)
            evaluator.run()
        except Exception as error:
            failed[str(case["image"])] = _cause(error)
    print(f"{len(dataset.data) - len(failed)} of {len(dataset.data)} cases are in {output_dir}")
    if failed:
        lines = [f"  {text}" if path in text else f"  {path}: {text}" for path, text in failed.items()]
        print(f"{len(failed)} of {len(dataset.data)} cases failed:", *lines, sep="\n", file=sys.stderr)
        raise SystemExit(1)


def _cause(error: BaseException) -> str:
    """The message of an error, or of what MONAI wraps in a RuntimeError where a transform or an expression fails."""
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


@_one_sentence
def write_dice(evaluator: Evaluator, table: LabelTable, output_dir: str, overwrite: bool = False) -> None:
    """Write ``dice.tsv``, the Dice of each label in each case, and print the means.

    Args:
        evaluator: after its run, with a :class:`monai_lcs.metrics.LabelMapDice` as key metric.
        table: names of the labels.
        output_dir: where to write.
        overwrite: replace a table that is there.
    """
    buffer = evaluator.state.metric_details[evaluator.state.key_metric_name]
    dataset: Any = evaluator.data_loader.dataset  # type: ignore[union-attr]
    dice = tables.dice_table(buffer, [case["case"] for case in dataset.data], table)
    path = Path(output_dir) / "dice.tsv"
    tables.write_dice_tsv(dice, path, overwrite=overwrite)
    print(tables.dice_summary(dice), f"Dice of each label: {path}", sep="\n")


def _check_given(**files: str) -> None:
    """Every file is named."""
    for name, path in files.items():
        if not path:
            raise ValueError(f"Give --{name}, the file.")


def _check_source(dataset_dir: str | None, datalist: str | None) -> None:
    """The images are named."""
    if not dataset_dir and not datalist:
        raise ValueError("Give --dataset_dir (a folder; for inference also a file or a list of files) or --datalist.")


def _present(path: str) -> tuple[int, ...]:
    return present_labels(read_image(path))
