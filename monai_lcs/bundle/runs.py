"""Inference and evaluation, case by case."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from monai.data import DataLoader
from monai.engines import Evaluator
from torch.utils.data import Subset
from tqdm import tqdm

from monai_lcs.atlas import Atlas
from monai_lcs.bundle.sentence import one_sentence
from monai_lcs.cohort import Cohort, CohortFolder, Outcome, digests, saved_outcome, write_report
from monai_lcs.inferers import follow, leading
from monai_lcs.labels import LabelTable, RequestedLabel
from monai_lcs.pipeline.weights import cause
from monai_lcs.results import dice as dice_tables
from monai_lcs.results.scores import label_scores, scores_summary, scores_table, write_scores_tsv

__all__ = [
    "Confidence",
    "made_with",
    "run_each",
    "run_each_together",
    "score_each",
]


class Confidence(dict[int, float]):
    """The Dice to expect of each label of a scan, 0 to 1, by its id. It holds what a sweep has told of the last scan.

    It is the sweep's ``on_confidence``. Whoever writes the volumes of the scan reads it. Scans follow one another.

    Args:
        masked: the requested labels that the propagated mask answers for; the network knows nothing of the mask.

    Example:
        >>> confidence = Confidence([RequestedLabel(4, "ventricle", (4,))])
        >>> confidence(0, {17: 0.9, 53: 0.8})
        >>> confidence(0, {17: 0.7, 4: 0.9})
        >>> confidence
        {17: 0.7}
    """

    def __init__(self, masked: Sequence[RequestedLabel] = ()) -> None:
        super().__init__()
        self.masked = {request.id for request in masked}

    def __call__(self, item: int, found: Mapping[int, float]) -> None:
        """Hold what is told of a scan, and forget the scan before.

        Args:
            item: of the batch, which holds one scan.
            found: the Dice to expect of each label that was found, by its id.
        """
        self.clear()
        self.update({id: dice for id, dice in found.items() if id not in self.masked})


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


@one_sentence
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


@one_sentence
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
