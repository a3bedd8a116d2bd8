"""The functions that the bundle's configs call: thin doors to the pipeline.

A mistake that the user can mend ends the program with one sentence, not with a traceback of the config parser.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
import torch.distributed as dist
from monai.data import DataLoader
from monai.engines import Evaluator, Trainer
from monai.handlers import from_engine
from monai.utils import set_determinism
from torch.utils.data import Subset
from tqdm import tqdm

from monai_lcs import files, pipeline
from monai_lcs.atlas import Atlas
from monai_lcs.cohort import Cohort, CohortFolder, Outcome, digests, saved_outcome, write_report
from monai_lcs.inferers import follow, leading
from monai_lcs.inferers.ranks import join_ranks, leave_ranks
from monai_lcs.labels import LabelTable, RequestedLabel, group_coarse_labels, parse_request, requested_table
from monai_lcs.pipeline import Settings, checkpoints, on_device
from monai_lcs.pipeline.checkpoints import keep_resumable
from monai_lcs.pipeline.guard import describe_propagated, propagated_requests
from monai_lcs.pipeline.ranks import rank
from monai_lcs.pipeline.run_definition import RunDefinition
from monai_lcs.pipeline.trainer import polynomial_decay, say_missing_labels, show_epochs, validate_last
from monai_lcs.pipeline.training_lock import unlock_folder
from monai_lcs.pipeline.weights import cause
from monai_lcs.results import dice as dice_tables
from monai_lcs.results.scores import label_scores, scores_summary, scores_table, write_scores_tsv
from monai_lcs.results.segmentation import ENDINGS
from monai_lcs.study.cases import find_cases, find_images

__all__ = [
    "align_all",
    "begin_training",
    "best_model",
    "cases",
    "check_fused",
    "check_new",
    "check_new_cases",
    "check_resumed",
    "check_words",
    "check_writable",
    "default_device",
    "default_workers",
    "device_ids",
    "further_atlases",
    "images",
    "is_cuda",
    "keep_resumable",
    "label_groups",
    "label_ids",
    "load_weights",
    "made_with",
    "on_device",
    "polynomial_decay",
    "prepared",
    "propagated_requests",
    "read_atlas",
    "requested_labels",
    "result_table",
    "run_each",
    "run_each_together",
    "run_training",
    "say_propagated",
    "score_each",
    "scored_once",
    "settings_of",
    "show_epochs",
    "start_processes",
    "stop_processes",
    "truth_ids",
    "union_ids",
    "validate_last",
    "with_random_atlas",
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


# ---- words of the command line --------------------------------------------------------------------------------------


def check_words(arguments: Mapping[str, Any], words: Sequence[str] | None = None) -> None:
    """Make sure that the config parser left the paths of the command line as they were typed.

    It reads values as Python: ``2024_01_15`` is the number 20240115, and in ``scan#2.nii.gz`` a comment begins.

    Args:
        arguments: values by the name of their option, as the parser gave them.
        words: the command line; that of the process by default.

    Raises:
        ValueError: when a value is another than what was typed, with how to quote it.

    Example:
        >>> check_words({"dataset_dir": "scan"}, ["--dataset_dir", "scan#2.nii.gz"])
        Traceback (most recent call last):
        ValueError: The config parser reads --dataset_dir scan#2.nii.gz as 'scan': quote it twice, "'scan#2.nii.gz'".
    """
    typed = _options(sys.argv[1:] if words is None else words)
    for name, value in arguments.items():
        word = typed.get(name)
        if word is not None and word[:1] not in "'\"[($" and value is not None and str(value) != word:
            raise ValueError(f"The config parser reads --{name} {word} as {value!r}: quote it twice, \"'{word}'\".")
        if value is not None and not isinstance(value, str | list | tuple):
            raise ValueError(f"--{name} must be a path, got {value!r}, {type(value).__name__}: quote it twice.")


def _options(words: Sequence[str]) -> dict[str, str]:
    """``--name value`` and ``--name=value`` of a command line."""
    found = {}
    for i, word in enumerate(words):
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--"):
            found[name] = value if equals else "".join(words[i + 1 : i + 2])
    return found


# ---- atlas and labels -----------------------------------------------------------------------------------------------


@_one_sentence
def read_atlas(atlas_image: str, atlas_labels: str, label_table: str | None) -> Atlas:
    """Read the atlas, once for all; see :meth:`monai_lcs.atlas.Atlas.read`."""
    check_words({"atlas_image": atlas_image, "atlas_labels": atlas_labels, "label_table": label_table})
    for name, path in (("atlas_image", atlas_image), ("atlas_labels", atlas_labels)):
        if not path:
            raise ValueError(f"Give --{name}, the file.")
    atlas = Atlas.read(atlas_image, atlas_labels, label_table or None)
    if atlas.mismatch:
        print(f"Note: {atlas.mismatch}", file=sys.stderr)
    return atlas


@_one_sentence
def further_atlases(
    atlases_dir: str | None, atlases_datalist: str | None, dataset: Sequence[str | None], fold: int | None, atlas: Atlas
) -> list[Atlas]:
    """Read the training cases of a study, to vote beside the atlas; none where no study is named.

    Args:
        atlases_dir: see :func:`monai_lcs.study.cases.find_cases`.
        atlases_datalist: likewise; by default the one of the scans where these are of the same study.
        dataset: folder and datalist of the scans.
        fold: see :func:`monai_lcs.study.cases.find_cases`.
        atlas: the atlas, which does not vote twice; every other one must share labels with it.
    """
    if not atlases_dir and not atlases_datalist:
        return []
    if not atlases_datalist and atlases_dir == dataset[0]:
        atlases_datalist = dataset[1]
    exclude = list(atlas.files.values())
    found = find_cases(atlases_dir or None, atlases_datalist or None, "training", fold, exclude=exclude)
    read = pipeline.read_further_atlases(found, atlas)
    if said := pipeline.describe_other_labels(read, atlas):
        print(said, file=sys.stderr)
    return read


@_one_sentence
def requested_labels(atlas: Atlas, labels: Any) -> list[RequestedLabel]:
    """The labels asked for, see :func:`monai_lcs.labels.parse_request`; all of the atlas by default.

    Raises:
        SystemExit: when a label is unknown or has no voxel in the atlas.
    """
    requests = parse_request(labels, atlas.table)
    if labels is None or labels in ("", "all"):
        return parse_request(None, atlas.table, atlas.ids)
    atlas.check_present(sorted({id for request in requests for id in request.ids}))
    return requests


def label_ids(requests: Sequence[RequestedLabel]) -> list[int]:
    """The ids that a result has.

    Example:
        >>> label_ids([RequestedLabel(11, "caudate", (11, 50))])
        [11]
    """
    return [request.id for request in requests]


def union_ids(requests: Sequence[RequestedLabel], masked: Sequence[RequestedLabel] = ()) -> dict[int, tuple[int, ...]]:
    """For each id that a result has the atlas ids it stands for, as the inferer takes them.

    Args:
        requests: the labels.
        masked: those that the network is not asked for, unless they are all there is.

    Example:
        >>> union_ids([RequestedLabel(11, "caudate", (11, 50))])
        {11: (11, 50)}
    """
    asked = [request for request in requests if request not in masked]
    return {request.id: request.ids for request in asked or requests}


@_one_sentence
def truth_ids(requests: Sequence[RequestedLabel]) -> dict[int, int]:
    """For each atlas id the id that a result has there: unions are merged in the true label map as well.

    Raises:
        SystemExit: when a label is requested twice, by itself and in a union: the true label map cannot hold both.

    Example:
        >>> truth_ids([RequestedLabel(11, "caudate", (11, 50))])
        {11: 11, 50: 11}
    """
    found: dict[int, int] = {}
    for request in requests:
        for id in request.ids:
            if id in found:
                raise ValueError(f"Label {id} is requested twice: an evaluation needs labels that do not overlap.")
            found[id] = request.id
    return found


def result_table(atlas: Atlas, requests: Sequence[RequestedLabel]) -> LabelTable:
    """The label table of a result."""
    return requested_table(requests, atlas.table)


@_one_sentence
def label_groups(
    atlas: Atlas, requests: Sequence[RequestedLabel], coarse_labels: Mapping[str, Any] | str | None
) -> list[tuple[int, ...]]:
    """What a training draws from: each requested label, or coarse labels as unions of their fine ones."""
    if coarse_labels is None:
        return [request.ids for request in requests]
    return group_coarse_labels(atlas.table, label_ids(requests), coarse_labels)


# ---- cases ----------------------------------------------------------------------------------------------------------


@_one_sentence
def cases(
    dataset_dir: str | None, datalist: str | None, section: str, fold: int | None, atlas: Atlas
) -> list[dict[str, Any]]:
    """Find cases with labels, the atlas's own left out; see :func:`monai_lcs.study.cases.find_cases`."""
    _check_source(dataset_dir, datalist)
    exclude = [file for file in atlas.files.values() if file]
    found = find_cases(dataset_dir or None, datalist or None, section, fold, exclude=exclude or None)
    if section == "testing" and not datalist:
        said = f"Note: these are all {len(found)} cases of {dataset_dir}, also those a network was trained on;"
        print(said, "those left out of its training are --section validation.", file=sys.stderr)
    return found


@_one_sentence
def images(dataset_dir: str | None, datalist: str | None, section: str, fold: int | None) -> list[dict[str, Any]]:
    """Find images to segment.

    Args:
        dataset_dir: a file, files or a folder; where it has a folder ``images``, the files in there.
        datalist: a datalist to use instead.
        section: the section of the datalist.
        fold: the fold of its sections.
    """
    _check_source(dataset_dir, datalist)
    if datalist:
        return find_cases(dataset_dir or None, datalist, section, fold, with_labels=False)
    assert dataset_dir is not None
    inner = Path(str(dataset_dir)) / "images"
    return find_images(inner if isinstance(dataset_dir, str) and inner.is_dir() else dataset_dir)


def _check_source(dataset_dir: str | None, datalist: str | None) -> None:
    check_words({"dataset_dir": dataset_dir, "datalist": datalist})
    if not dataset_dir and not datalist:
        raise ValueError("Give --dataset_dir (a folder; for inference also a file or a list of files) or --datalist.")


@_one_sentence
def prepared(**arguments: Any) -> pipeline.PreparedDataset:
    """See :class:`monai_lcs.pipeline.PreparedDataset`."""
    return pipeline.PreparedDataset(**arguments)


@_one_sentence
def with_random_atlas(
    preprocessing: pipeline.Preprocessing,
    random_atlas: bool,
    cases: Sequence[Mapping[str, Any]],
    further: Sequence[Atlas],
    groups: Sequence[Collection[int]],
) -> pipeline.Preprocessing | pipeline.AtlasPool:
    """The preprocessing of training cases, whose atlas is the given one or, for each sample, a random one.

    Args:
        preprocessing: that of the validation cases, with the given atlas.
        random_atlas: whether to draw.
        cases: the training cases, each other's atlases unless there are further ones.
        further: further atlases, to draw from instead.
        groups: the labels to train.
    """
    if not random_atlas:
        return preprocessing
    table = preprocessing.atlas.table
    pool = further or [
        Atlas.read(case["image"], case["label"], table) for case in tqdm(cases, "Reading atlases", unit="atlas")
    ]
    return pipeline.AtlasPool(preprocessing, pool, groups)


@_one_sentence
def align_all(atlas: Atlas, *datasets: pipeline.PreparedDataset) -> None:
    """Align the atlas to the cases of all datasets, whose files are all read and checked by now.

    Before that, one line says which of their labels the atlas lacks.
    """
    say_missing_labels(atlas, *datasets)
    for dataset in datasets:
        dataset.align()


# ---- files that are there already -----------------------------------------------------------------------------------


@_one_sentence
def check_writable(*folders: str) -> None:
    """Make sure that results can be written, see :func:`monai_lcs.files.check_writable`."""
    for folder in folders:
        if not isinstance(folder, str):
            raise ValueError(f"A folder for results must be a path, got {folder!r}: quote it twice, \"'NAME'\".")
        files.check_writable(folder)


@_one_sentence
def check_new(output_dir: str, names: Iterable[str], overwrite: bool, instead: str = "") -> None:
    """Make sure, before the work is done, that its results will not replace others.

    Args:
        output_dir: where results go.
        names: their file names.
        overwrite: do not check.
        instead: what else the user may give.
    """
    there = [name for name in names if (Path(output_dir) / name).exists()]
    if there and not overwrite:
        exists = f"and {len(there) - 1} more exist" if len(there) > 1 else "exists"
        first = Path(output_dir) / there[0]
        raise ValueError(f"{first} {exists}: choose another --output_dir, or give {instead}--overwrite True.")


def check_new_cases(output_dir: str, cases: Sequence[Mapping[str, Any]], overwrite: bool) -> None:
    """:func:`check_new` for the results of all cases; one file of a case is enough, such as a killed run leaves."""
    endings = [ENDINGS["dseg"], *ENDINGS.values()]
    of_cases = ([f"{case['case']}_{ending}" for ending in endings] for case in cases)
    there = (next((name for name in names if (Path(output_dir) / name).exists()), None) for names in of_cases)
    check_new(output_dir, filter(None, there), overwrite, "--skip_existing True to go on with them, or ")


# ---- the network ----------------------------------------------------------------------------------------------------


@_one_sentence
def settings_of(checkpoint: str | None) -> Settings:
    """The settings that weights were trained with, see :meth:`monai_lcs.pipeline.Settings.of_weights`."""
    return Settings.of_weights(checkpoint)


@_one_sentence
def load_weights(checkpoint: str | None, network: Any, atlas: Atlas) -> None:
    """See :func:`monai_lcs.pipeline.load_weights`; says which weights, and whether they are for this atlas."""
    if checkpoint:
        pipeline.load_weights(checkpoint, network)
        pipeline.check_trained_for(checkpoint, atlas)
    print(pipeline.describe_weights(checkpoint), file=sys.stderr)


def say_propagated(masked: Sequence[RequestedLabel], requests: Sequence[RequestedLabel]) -> None:
    """Say in one line for which of the requested labels the aligned atlas answers."""
    if said := describe_propagated(masked, len(requests)):
        print(said, file=sys.stderr)


@_one_sentence
def best_model(**arguments: Any) -> pipeline.BestModel:
    """See :class:`monai_lcs.pipeline.BestModel`."""
    return pipeline.BestModel(**arguments)


@_one_sentence
def begin_training(ckpt_dir: str, epochs: int, resume: bool, restart: bool) -> str | None:
    """See :func:`monai_lcs.pipeline.checkpoints.begin_training`."""
    return checkpoints.begin_training(ckpt_dir, epochs, resume, restart)


@_one_sentence
def check_resumed(resume_from: str | None, definition: RunDefinition) -> None:
    """See :func:`monai_lcs.pipeline.checkpoints.check_resumed`."""
    checkpoints.check_resumed(resume_from, definition)


@_one_sentence
def run_training(trainer: Trainer, ckpt_dir: str) -> None:
    """Run a trainer, and then let others train in the folder."""
    try:
        trainer.run()
    finally:
        unlock_folder(ckpt_dir)


def check_fused(checkpoint: str | None, settings: Settings, atlases: Sequence[Any]) -> None:
    """Say so where the weights were trained with further atlases and there are none now, or the other way round.

    Args:
        checkpoint: file of the weights; nothing is said where there are none.
        settings: of the weights. Nothing is said of a network that looks at each atlas, however many there are.
        atlases: those that vote now.
    """
    if said := pipeline.describe_untrained_fusion(checkpoint, settings, atlases):
        print(said, file=sys.stderr)


# ---- devices and processes ------------------------------------------------------------------------------------------


def default_device() -> torch.device:
    """The GPU where there is one; of several processes each its own."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def is_cuda(device: torch.device | str) -> bool:
    """Whether a device is a GPU.

    Example:
        >>> is_cuda("cpu"), is_cuda("cuda:1")
        (False, True)
    """
    return torch.device(device).type == "cuda"


def default_workers(device: torch.device | str) -> int:
    """Processes that prepare samples: a GPU must not wait for them, on a CPU they would take its cores."""
    return 4 if is_cuda(device) else 0


def device_ids(device: torch.device | str) -> list[torch.device] | None:
    """What ``DistributedDataParallel`` wants: the process's own GPU, nothing on a CPU."""
    return [torch.device(device)] if is_cuda(device) else None


def start_processes(device: torch.device | str, seed: int | None) -> None:
    """Join the other processes that ``torchrun`` started; each draws other labels and augmentations."""
    joined = join_ranks(device)
    set_determinism(None if seed is None else seed + joined)


def scored_once(cases: int) -> Callable[[Any], Any]:
    """What the validation scores in each process, where those without a case of their own repeat one.

    The label map of such a process is emptied, so that its Dice is NaN and does not count.

    Args:
        cases: how many there are.

    Example:
        >>> output = [{"pred": torch.ones(1, 2), "label": torch.ones(1, 2)}]
        >>> scored_once(1)(output), scored_once(0)(output)
        (([tensor([[1., 1.]])], [tensor([[1., 1.]])]), ([tensor([[1., 1.]])], [tensor([[0., 0.]])]))
    """
    of_output = from_engine(["pred", "label"])

    def scored(output: Any) -> Any:
        predicted, true = of_output(output)
        return predicted, true if rank() < cases else [torch.zeros_like(label) for label in true]

    return scored


def stop_processes() -> None:
    """Leave the other processes."""
    leave_ranks()


# ---- runs -----------------------------------------------------------------------------------------------------------


@contextmanager
def _one_by_one(evaluator: Evaluator) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Run an evaluator case by case.

    Args:
        evaluator: its data loader's dataset must have ``data``, the cases.

    Yields:
        What runs it for one of the cases.
    """
    dataset: Any = evaluator.data_loader.dataset  # type: ignore[union-attr]
    position = {case["case"]: i for i, case in enumerate(dataset.data)}
    evaluator.interrupt_resume_enabled = False  # else ignite goes on with a run that failed, instead of the next case
    evaluator.state.epoch_length = 1

    def run(case: Mapping[str, Any]) -> None:
        evaluator.data_loader = DataLoader(Subset(dataset, [position[case["case"]]]), batch_size=1)
        evaluator.run()

    try:
        yield run
    finally:
        evaluator.data_loader = DataLoader(dataset, batch_size=1)


def _cases_of(evaluator: Evaluator) -> list[dict[str, Any]]:
    return list(evaluator.data_loader.dataset.data)  # type: ignore[union-attr]


def _each(evaluator: Evaluator, done: Callable[[Mapping[str, Any]], None]) -> tuple[int, dict[str, str]]:
    """Run an evaluator case by case; a bad case does not stop the others.

    Args:
        evaluator: its data loader's dataset must have ``data``, the cases.
        done: called after each case.

    Returns:
        How many cases there are, and the message of each that failed.
    """
    found = _cases_of(evaluator)
    failed = {}
    with _one_by_one(evaluator) as run:
        for case in tqdm(found, desc="Cases", unit="case"):
            try:
                run(case)
                done(case)
            except Exception as error:
                failed[str(case["image"])] = cause(error)
    return len(found), failed


def _end(count: int, failed: Mapping[str, str]) -> None:
    """List the cases that failed, and end with status 1 where there are some."""
    if failed:
        lines = [f"  {text}" if path in text else f"  {path}: {text}" for path, text in failed.items()]
        print(f"{len(failed)} of {count} cases failed:", *lines, sep="\n", file=sys.stderr)
        raise SystemExit(1)


@_one_sentence
def run_each(
    evaluator: Evaluator, output_dir: str, overwrite: bool = False, made_with: Mapping[str, str] | None = None
) -> None:
    """Segment case by case, as :class:`monai_lcs.cohort.Cohort` does; at the end the bad cases are listed.

    Args:
        evaluator: its data loader's dataset must have ``data``, the cases.
        output_dir: where its results go. Those that are there, finished and made with the same are not made again.
        overwrite: make them again.
        made_with: from :func:`made_with`.

    Raises:
        SystemExit: with status 1, when a case failed, or results there were made with something else.
    """
    found = _cases_of(evaluator)
    folder = CohortFolder(output_dir)
    if overwrite:
        folder.forget(found)
    folder.check_ours(found, made_with or {})
    with _one_by_one(evaluator) as run:

        def work(case: Mapping[str, Any]) -> Outcome:
            run(case)
            if not folder.label_map(case["case"]).is_file():
                raise ValueError(f"no label map was written to {folder.label_map(case['case'])}")
            return saved_outcome(folder.path, case["case"], evaluator.state.batch[0].get("alignment", {}))

        records = Cohort(folder, work, made_with or {}).run(found)
    failed = {record.image: record.error for record in records if record.state == "failed"}
    print(f"{len(found) - len(failed)} of {len(found)} cases are in {output_dir}")
    if len(found) > 1:
        print("All cases of this folder:", *write_report(folder).values(), sep="\n  ")
    _end(len(found), failed)


def run_each_together(evaluator: Evaluator, output_dir: str, overwrite: bool, made_with: Mapping[str, str]) -> None:
    """:func:`run_each` in the first of the processes that ``torchrun`` started; the others decode labels for it.

    Args:
        evaluator: with a :class:`monai_lcs.inferers.HelpedInferer`.
        output_dir: see :func:`run_each`.
        overwrite: likewise.
        made_with: likewise.
    """
    if dist.get_rank():
        follow(evaluator.network, evaluator.state.device)  # type: ignore[attr-defined]
        return
    with leading():
        run_each(evaluator, output_dir, overwrite, made_with)


def made_with(
    checkpoint: str | None, network: Any, atlases: Sequence[Atlas], requests: Sequence[RequestedLabel], *settings: Any
) -> dict[str, str]:
    """What results depend on besides the scans, see :func:`monai_lcs.cohort.digests`."""
    return digests(network if checkpoint else None, atlases, requests, settings)


@_one_sentence
def score_each(
    evaluator: Evaluator,
    table: LabelTable,
    output_dir: str,
    overwrite: bool = False,
    surface_tolerance_mm: float | None = None,
) -> None:
    """Score case by case, write ``dice.tsv``, the Dice of each label in each case, and print the means.

    Args:
        evaluator: with a :class:`monai_lcs.metrics.LabelMapDice` as key metric.
        table: names of the labels.
        output_dir: where to write.
        overwrite: replace a table that is there.
        surface_tolerance_mm: also write how far surfaces lie apart, the share of them within this distance, and
            volumes, see :func:`monai_lcs.results.scores.label_scores`.

    Raises:
        SystemExit: with status 1, when a case failed; the others are scored.
    """
    dice: dict[str, torch.Tensor] = {}
    scores: dict[str, pd.DataFrame] = {}

    def keep(case: Mapping[str, Any]) -> None:
        if surface_tolerance_mm is not None:
            result = evaluator.state.output[0]
            scores[case["case"]] = label_scores(result["pred"], result["label"], surface_tolerance_mm)
        dice[case["case"]] = evaluator.state.metric_details[evaluator.state.key_metric_name][0]

    count, failed = _each(evaluator, keep)
    path = Path(output_dir) / "dice.tsv"
    if scores:
        rows = scores_table(scores, table)
        write_scores_tsv(rows, path, overwrite=overwrite)
        print(scores_summary(rows), f"Scores of each label: {path}", sep="\n")
    elif dice:
        rows = dice_tables.dice_table(torch.stack(list(dice.values())), list(dice), table)
        dice_tables.write_dice_tsv(rows, path, overwrite=overwrite)
        print(dice_tables.dice_summary(rows), f"Dice of each label: {path}", sep="\n")
    _end(count, failed)
