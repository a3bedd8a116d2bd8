"""Training: prepared cases, the best network on disk, seeds, the bundle's training as a function."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import sys
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import PathLike
from monai.data import Dataset
from monai.data.utils import set_rnd
from monai.utils import convert_to_numpy, optional_import, set_determinism
from tqdm import tqdm

from monai_lcs.atlas import Atlas
from monai_lcs.files import write_atomically
from monai_lcs.inferers import AtlasLabelInferer
from monai_lcs.labels import RequestedLabel, present_labels
from monai_lcs.pipeline.guard import compare_with_propagated, lost_labels
from monai_lcs.pipeline.preprocessing import Preprocessing
from monai_lcs.pipeline.random_atlas import AtlasPool
from monai_lcs.pipeline.ranks import rank
from monai_lcs.pipeline.run_definition import content_of_case
from monai_lcs.pipeline.settings import Settings
from monai_lcs.pipeline.training_lock import unlock_folder
from monai_lcs.pipeline.weights import bundle_folder, load_weights
from monai_lcs.pipeline.weights_file import read_state, write_weights
from monai_lcs.results.tsv import write_tsv
from monai_lcs.study.cases import shorten_names
from monai_lcs.study.checks import list_failures

__all__ = [
    "BestModel",
    "ClipGradient",
    "PreparedDataset",
    "SeedEpochs",
    "polynomial_decay",
    "say_missing_labels",
    "show_epochs",
    "train",
    "validate_last",
]

Events, _ = optional_import("ignite.engine", name="Events")
IterationEvents, _ = optional_import("monai.engines", name="IterationEvents")

ALIGNMENTS_AT_A_TIME = 2


class PreparedDataset(Dataset):
    """Cases preprocessed once and kept in memory; what is random is done anew for each sample.

    All files are read and checked at once. The long work, :meth:`align`, begins later, so that of several datasets a
    bad file is known within seconds.

    Args:
        data: the cases, ``"image"`` and ``"label"`` files each.
        preprocessing: what is done once; an :class:`monai_lcs.pipeline.AtlasPool` where samples draw their atlas.
        transform: what is done for each sample.
        strict: whether a case that cannot be aligned is an error; otherwise it is named and left out.
        progress: show bars.

    Raises:
        ValueError: listing the cases whose files cannot be used.

    Example:
        >>> from monai.data import MetaTensor
        >>> from monai_lcs.labels import LabelTable
        >>> image = MetaTensor(torch.rand(1, 20, 20, 20))
        >>> atlas = Atlas(image, MetaTensor((image > 0.5).int()), LabelTable.from_ids([1]))
        >>> preprocessing = Preprocessing(atlas, Settings(align="none"), target="network")
        >>> dataset = PreparedDataset([{"image": image, "label": atlas.label_map}], preprocessing, progress=False)
        >>> len(dataset), all(dataset[0][key].shape[0] == 1 for key in ("image", "label", "atlas_image", "atlas_label"))
        (1, True)
    """

    def __init__(
        self,
        data: Sequence[Mapping[Hashable, Any]],
        preprocessing: Preprocessing | AtlasPool,
        transform: Callable[[Any], Any] | None = None,
        strict: bool = False,
        progress: bool = True,
    ) -> None:
        loaded, failed = _attempt(preprocessing.load, data, "Reading cases", 1, progress)
        if failed:
            raise ValueError(list_failures(failed, len(data)))
        super().__init__(loaded, transform)
        self.preprocessing, self.strict, self.progress = preprocessing, strict, progress
        self.sources = tuple(data)
        self.aligned = False

    def align(self) -> None:
        """Align the atlas to all cases, once; asking for the length or for a sample does it as well.

        Raises:
            ValueError: listing the cases that the atlas cannot be aligned to, when ``strict`` or when none is left.
        """
        if self.aligned:
            return
        count, finish = len(self.data), self.preprocessing.finish
        self.data, failed = _attempt(finish, self.data, "Aligning", ALIGNMENTS_AT_A_TIME, self.progress)
        if failed and (self.strict or not self.data):
            raise ValueError(list_failures(failed, count))
        if failed:
            print(f"Left out: {list_failures(failed, count)}", file=sys.stderr)
        self.aligned = True

    def contents(self) -> list[list[str]]:
        """The cases by the content of their files, see :func:`monai_lcs.pipeline.run_definition.content_of_case`."""
        return [content_of_case(case) for case in self.sources]

    def __len__(self) -> int:
        self.align()
        return len(self.data)

    def _transform(self, index: int) -> Any:
        self.align()
        return super()._transform(index)


def _attempt(
    step: Callable[[Any], Any], items: Sequence[Any], what: str, workers: int, progress: bool
) -> tuple[list[Any], list[str]]:
    """The results of a step for all items, and the messages of those that failed."""

    def attempt(item: Any) -> Any:
        try:
            return step(item)
        except (ValueError, OSError) as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        bar = tqdm(pool.map(attempt, items), what, len(items), unit="case", disable=not progress)
        results = list(bar)
    failed = [str(result) for result in results if isinstance(result, Exception)]
    return [result for result in results if not isinstance(result, Exception)], failed


def say_missing_labels(atlas: Atlas, *datasets: PreparedDataset) -> None:
    """Say in one line which labels of the cases the atlas lacks: they are neither trained nor scored.

    Args:
        atlas: the given one.
        datasets: those of a training.
    """
    if rank() > 0:
        return
    held = {id for dataset in datasets for case in dataset.data for id in present_labels(case["label"])}
    missing = sorted(held.difference(atlas.ids))
    if missing:
        names = [f"{id} ({atlas.table[id].name})" if id in atlas.table else str(id) for id in missing]
        said = f"Note: the atlas lacks {len(missing)} of the {len(held)} labels of the cases, which are not trained:"
        print(f"{said} {shorten_names(names, most=8)}.", file=sys.stderr)


class BestModel:
    """Writes the weights whenever the validation Dice beats all before, and the settings with them.

    A handler of the validation's evaluator. Weights that were there before are kept as ``model_TIME.pt``; with
    ``keep_better`` they are scored first, and only replaced by better ones. The best weights are part of the
    checkpoint, so that a resumed training mends its ``model.pt``.

    Args:
        folder: for ``model.pt`` and its readable copy of the settings, ``model.json``.
        network: the network in training.
        settings: what it is trained with.
        resume: go on with a training that was interrupted: the model there is its own.
        pretrained: weights to begin with.
        keep_better: score what answers now, ``present`` or without it the propagated atlas labels, before training.
        present: the weights that answer now.
        requests: the labels of the validation, in the order of its Dice. With these and the atlas, ``validation.tsv``
            says for each label whether the network beats its propagated mask, and ``propagated`` of the settings that
            are written names those where it does not.
        atlas: the atlas.

    Attributes:
        score: the best validation Dice so far.
        epoch: the epoch it is of; 0 for none.
        weights: the network's state then; ``None`` for none.
        lost: names of the labels on which it was worse than propagation.
        before: the validation Dice of what answered before, with ``keep_better``.

    Raises:
        ValueError: when weights do not fit.
    """

    def __init__(
        self,
        folder: PathLike,
        network: torch.nn.Module,
        settings: Settings,
        resume: bool = False,
        pretrained: PathLike | None = None,
        keep_better: bool = False,
        present: PathLike | None = None,
        requests: Sequence[RequestedLabel] = (),
        atlas: Atlas | None = None,
    ) -> None:
        self.folder, self.network, self.settings = Path(folder), network, settings
        self.resume, self.keep_better, self.present = resume, keep_better, present
        self.requests, self.atlas = requests, atlas
        self.propagated: Any = None  # the Dice of the propagated masks, (cases, labels)
        self.score = -1.0
        self.epoch = 0
        self.weights: dict[str, torch.Tensor] | None = None
        self.lost: list[str] = []
        self.before: float | None = None
        if pretrained and not resume:
            self._load(pretrained)

    @property
    def path(self) -> Path:
        """The file of the weights."""
        return self.folder / "model.pt"

    def attach(self, evaluator: Any) -> None:
        """Watch an evaluator."""
        evaluator.add_event_handler(Events.COMPLETED, self)

    def prepare(self, evaluator: Any) -> None:
        """Before the first epoch: score what answers now, or keep the earlier weights under another name."""
        by_propagation = self._validate(evaluator, AtlasLabelInferer())
        self.propagated = _dice_by_label(evaluator)
        if self.keep_better and not self.resume:
            self.score = self.before = self._score_present(evaluator) if self.present else by_propagation
        elif not self.resume and rank() == 0:
            self._keep_earlier()

    def __call__(self, evaluator: Any) -> None:
        """After a validation: write the weights if they are the best so far."""
        score = float(evaluator.state.metrics[evaluator.state.key_metric_name])
        if math.isnan(score):
            raise ValueError(
                "The validation cases have none of the labels that are trained: nothing tells the best network."
            )
        if not score > self.score:
            return
        bare: Any = getattr(self.network, "module", self.network)  # DistributedDataParallel
        self.weights = {name: x.detach().cpu().clone() for name, x in bare.state_dict().items()}
        self.score, self.epoch = score, evaluator.state.epoch
        self.lost = self._lost_labels(evaluator)
        self._write()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training must know."""
        return {name: getattr(self, name) for name in ("score", "epoch", "before", "weights", "lost")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, with the files as they were then."""
        for name, value in state.items():
            setattr(self, name, value)
        if self.weights is not None and not self._is_written():
            self._write()

    def _write(self) -> None:
        if rank() == 0 and self.weights is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_weights(self.path, self.weights, self._settings_to_write.to_dict())

    def _is_written(self) -> bool:
        """Whether the files hold the best weights and the settings."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # where the copy of the settings is another's
                kept = read_state(self.path)
                written = self.path.with_suffix(".json").is_file()
                same = written and Settings.of_weights(self.path) == self._settings_to_write
        except (ValueError, UserWarning):
            return False
        best = self.weights or {}
        return same and kept.keys() == best.keys() and all(torch.equal(kept[name], best[name]) for name in best)

    @property
    def _settings_to_write(self) -> Settings:
        return replace(self.settings, propagated=tuple(self.lost))

    def _lost_labels(self, evaluator: Any) -> list[str]:
        """The labels that the network has lost; ``validation.tsv`` compares all."""
        if self.propagated is None or self.atlas is None or not self.requests:
            return []
        comparison = compare_with_propagated(self.requests, self.propagated, _dice_by_label(evaluator))
        if rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.folder / "validation.tsv"
            write_atomically(file, lambda temporary: write_tsv(comparison, temporary, "%.4f"))
        return list(lost_labels(comparison, self.requests, self.atlas.table))

    def _score_present(self, evaluator: Any) -> float:
        """The validation Dice of the weights that answer now; the network has its own again afterwards."""
        own = {name: x.clone() for name, x in self.network.state_dict().items()}
        self._load(self.present)
        score = self._validate(evaluator, evaluator.inferer)
        self.network.load_state_dict(own)
        return score

    def _validate(self, evaluator: Any, inferer: Any) -> float:
        """The validation Dice by another inferer; nothing is written."""
        usual, best = evaluator.inferer, self.score
        evaluator.inferer, self.score = inferer, float("inf")
        evaluator.run()
        evaluator.inferer, self.score = usual, best
        return float(evaluator.state.metrics[evaluator.state.key_metric_name])

    def _load(self, weights: Any) -> None:
        """Load weights, unless their settings say that they compute something else: the shapes would not tell."""
        then = Settings.of_weights(weights, self.settings)
        for name in ("up_activation", "soft_masks"):
            trained, now = getattr(then, name), getattr(self.settings, name)
            if trained != now:
                raise ValueError(f"{weights} was trained with `{name}` {trained}, got {now}: give {trained}.")
        load_weights(weights, self.network)

    def _keep_earlier(self) -> None:
        if not self.path.is_file():
            return
        time = datetime.fromtimestamp(self.path.stat().st_mtime).strftime("%Y%m%d-%H%M%S")
        for path in (self.path, self.path.with_suffix(".json")):
            if path.is_file():
                write_atomically(path.with_stem(f"model_{time}"), partial(shutil.copy2, path))


class SeedEpochs:
    """Seeds all random generators anew for each epoch, by the seed, the epoch and the process.

    So no epoch depends on the draws before it: a training that is resumed draws what it would have drawn without the
    interruption, and each of several processes draws other labels. A handler of MONAI's trainers, whose data loader
    must start its workers anew for each epoch (``persistent_workers=False``).

    Args:
        seed: >= 0; ``None`` for other draws each time.
    """

    def __init__(self, seed: int | None) -> None:
        self.seed = seed

    def attach(self, trainer: Any) -> None:
        """Watch a trainer."""
        if self.seed is not None:
            trainer.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, trainer: Any) -> None:
        """Before an epoch: seed Python, NumPy, torch and the random transforms."""
        sequence = np.random.SeedSequence([self.seed or 0, trainer.state.epoch, rank()])
        seed = int(sequence.generate_state(1)[0])
        set_determinism(seed)
        set_rnd(trainer.data_loader.dataset, seed)


def _dice_by_label(evaluator: Any) -> Any:
    """The Dice ``(cases, labels)`` of the last validation."""
    return convert_to_numpy(evaluator.state.metric_details[evaluator.state.key_metric_name])


class ClipGradient:
    """Shortens the gradient of all weights to a largest norm before each step of the optimizer.

    A handler of MONAI's trainers.

    Args:
        max_norm: the largest Euclidean norm, > 0; infinity or ``None`` for no limit.

    Raises:
        ValueError: when the norm is not > 0.
    """

    def __init__(self, max_norm: float | None) -> None:
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"`max_norm` must be > 0 or None, got {max_norm}.")
        self.max_norm = float("inf") if max_norm is None else max_norm

    def attach(self, trainer: Any) -> None:
        """Watch a trainer."""
        if self.max_norm < float("inf"):
            trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, trainer: Any) -> None:
        """After a backward: shorten the gradient."""
        if trainer.amp and trainer.scaler is not None:  # mixed precision has scaled it
            trainer.scaler.unscale_(trainer.optimizer)
        torch.nn.utils.clip_grad_norm_(trainer.network.parameters(), self.max_norm)


def show_epochs(trainer: Any, evaluator: Any, log_dir: str) -> None:
    """Show a progress bar over the epochs, with the loss and the last validation; log the validation in TensorBoard.

    Args:
        trainer: the trainer.
        evaluator: the evaluator of the validation.
        log_dir: of TensorBoard.
    """
    if rank() > 0:
        return
    tensorboard, _ = optional_import("monai.handlers", name="TensorBoardStatsHandler")
    handlers, _ = optional_import("ignite.handlers")
    tensorboard(log_dir=log_dir, iteration_log=False, global_epoch_transform=lambda _: trainer.state.epoch).attach(
        evaluator
    )
    bar = handlers.ProgressBar(desc="Epoch", persist=True)

    def shown(output: Any) -> dict[str, float]:
        return {"loss": output["loss"].item(), **evaluator.state.metrics}

    bar.attach(trainer, event_name=Events.EPOCH_COMPLETED, closing_event_name=Events.COMPLETED, output_transform=shown)


def validate_last(trainer: Any, evaluator: Any, interval: int) -> None:
    """Validate at the end of a training whose last epoch is not one to validate.

    Args:
        trainer: before its run, and before :func:`monai_lcs.pipeline.checkpoints.keep_resumable`, so that the last
            checkpoint knows the result.
        evaluator: the evaluator of the validation.
        interval: epochs between two validations.
    """

    def validate() -> None:
        if trainer.state.epoch % interval:
            evaluator.run(trainer.state.epoch)

    trainer.add_event_handler(Events.COMPLETED, validate)


def polynomial_decay(epochs: int, power: float = 0.9) -> Callable[[int], float]:
    """The factor of the learning rate in each epoch: from 1 to 0, to be given to ``LambdaLR``.

    Example:
        >>> decay = polynomial_decay(10)
        >>> decay(0), decay(10), round(decay(5), 3)
        (1.0, 0.0, 0.536)
    """
    return lambda epoch: (1 - min(epoch / epochs, 1)) ** power


def train(
    study: PathLike | None,
    atlas: Atlas,
    out: PathLike = "model",
    *,
    settings: Settings | None = None,
    cases: tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]] | None = None,
    handlers: Iterable[Callable[[Any, Any, BestModel], Any]] = (),
    **overrides: Any,
) -> Path:
    """Train a network on the labeled scans of a study, as the bundle does.

    The recipe is the bundle's ``configs/train.json``: losses, random transforms, optimizer and schedule are written
    there and nowhere else.

    Args:
        study: folder with ``images/`` and ``labels/``; see :func:`monai_lcs.study.cases.find_cases` for datalists.
        atlas: the atlas; a scan of the study that is the atlas is left out.
        out: folder for ``model.pt`` (the best network on the validation cases), ``model.json`` (its settings), the
            checkpoints to resume from, and the log for TensorBoard.
        settings: the network's shape and how its input is made.
        cases: training and validation cases, instead of those of the study.
        handlers: called with trainer, evaluator and :class:`BestModel` before the training.
        **overrides: any other key of ``train.json``: ``epochs``, ``learning_rate``, ``labels``, ``device``, ``resume``
            ...; a key in another one is ``train#random_transforms#1#bend_mm``.

    Returns:
        The file of the weights; with ``keep_better`` it may not be there, since nothing better was found.

    Raises:
        ValueError: when files cannot be used, or a key is none of ``train.json``.
        OSError: when nothing can be written to ``out``.
        ImportError: when a package for training is missing.
    """
    _require_packages()
    given = {"atlas": atlas, **_recipe(study, out, settings or Settings()), **overrides}
    if cases is not None:
        given["train_cases"], given["val_cases"] = (list(part) for part in cases)
    with _plain_errors(), _unlocked_afterwards(out):
        _run_bundle(bundle_folder() / "configs" / "train.json", given, handlers)
    return Path(out) / "model.pt"


def _recipe(study: PathLike | None, out: PathLike, settings: Settings) -> dict[str, Any]:
    """What of the bundle's ``train.json`` differs from run to run."""
    values = settings.to_dict()
    values.pop("fused")  # whether further atlases vote is said by giving some
    values.pop("propagated")  # which labels are lost is found by the validation
    folders = {"ckpt_dir": str(out), "output_dir": str(out), "dataset_dir": None if study is None else str(study)}
    return {"bundle_root": str(bundle_folder()), **folders, **values}


def _run_bundle(config: Path, given: Mapping[str, Any], handlers: Iterable[Callable[..., Any]]) -> None:
    """Run a config with other values for some of its keys."""
    content = json.loads(config.read_text(encoding="utf-8"))
    unknown = sorted(name for name in given if not _has(content, name))
    if unknown:
        raise ValueError(f"There are no training options {unknown}: see the keys of {config}.")
    workflow_class, _ = optional_import("monai.bundle", name="ConfigWorkflow")
    workflow = workflow_class(str(config), logging_file=False, workflow_type="train", **given)
    workflow.initialize()
    parts = [workflow.parser.get_parsed_content(n) for n in ("train#trainer", "validate#evaluator", "best_model")]
    for handler in handlers:
        handler(*parts)
    workflow.run()


def _has(content: Any, name: str) -> bool:
    """Whether a config has a key, which may lie in others: ``train#random_transforms#1#bend_mm``.

    Example:
        >>> [_has({"train": [{"prob": 0.5}]}, name) for name in ("train", "train#0#prob", "train#1", "train#0#p#q")]
        [True, True, False, False]
    """
    for part in name.split("#"):
        inside = {str(i): item for i, item in enumerate(content)} if isinstance(content, list) else content
        if not isinstance(inside, dict) or part not in inside:
            return False
        content = inside[part]
    return True


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Give a caller the errors that the parser wraps, and back what a training fixes for the whole process."""
    try:
        yield
    except SystemExit as stop:  # how the bundle's functions say what a user can mend
        raise ValueError(str(stop).removeprefix("Error: ")) from stop
    except RuntimeError as error:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        if isinstance(root, ValueError | OSError):
            raise ValueError(str(root)) from error
        raise
    finally:
        set_determinism(None)


@contextmanager
def _unlocked_afterwards(folder: PathLike) -> Iterator[None]:
    try:
        yield
    finally:
        unlock_folder(folder)


def _require_packages() -> None:
    missing = [name for name in ("ignite", "tensorboard") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"Training needs the packages {', '.join(missing)}: pip install 'monai-lcs[bundle]'.")
