"""The bundle's training as a function."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai.config import PathLike
from monai.utils import optional_import, set_determinism

from monai_lcs.atlas import Atlas
from monai_lcs.pipeline.best_model import BestModel
from monai_lcs.pipeline.settings import Settings
from monai_lcs.pipeline.training_lock import unlock_folder
from monai_lcs.pipeline.weights import bundle_folder

__all__ = ["train"]


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
    values.pop("vote_weight")  # what the validation scores is the network alone
    values.pop("further_networks")  # a training has one
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
