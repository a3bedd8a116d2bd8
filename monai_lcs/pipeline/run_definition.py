"""What defines a training, as facts that can be compared: a training goes on only as what it was."""

from __future__ import annotations

import enum
import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import PathLike
from monai.utils import optional_import

from monai_lcs.atlas import Atlas, fingerprint

__all__ = ["RunDefinition", "content_of_case"]

DEEPEST = 8
MOST_SHOWN = 4
PLAIN = (int, float, str, bytes, type(None), Path, enum.Enum, slice, np.dtype, np.generic, torch.dtype, torch.device)
"""Types whose text says what a value is, and no address in memory."""


class RunDefinition:
    """What defines a training: settings, labels, cases, random transforms, loss, optimizer ...

    Anything can be a part. Numbers, texts, lists and dictionaries are what they are; other objects are their class and
    their public attributes; tensors and atlases are told by their content; random generators are left out. It is part
    of the checkpoint; to load it is to compare it.

    Args:
        **parts: the parts by name, as they are before the training.

    Attributes:
        facts: what the parts are, texts by names such as ``"loss.lambda_ce"``; also the number of ``"processes"``.

    Example:
        >>> then, now = (RunDefinition(labels=[1, 2], rate=rate, loss=torch.nn.MSELoss()) for rate in (0.1, 0.2))
        >>> then.facts["rate"], then.facts["loss.reduction"]
        ('0.1', "'mean'")
        >>> now.load_state_dict(then.state_dict())
        Traceback (most recent call last):
        ValueError: The training cannot go on as another one: rate was 0.1, got 0.2. Give what it had, or begin anew...
    """

    def __init__(self, **parts: Any) -> None:
        distributed, _ = optional_import("ignite.distributed")
        self.facts = dict(_facts({**parts, "processes": distributed.get_world_size()}, "", 0))

    def state_dict(self) -> dict[str, str]:
        """The facts."""
        return dict(self.facts)

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Compare.

        Raises:
            ValueError: naming what differs.
        """
        names = [name for name in {**state, **self.facts} if state.get(name) != self.facts.get(name)]
        if not names:
            return
        shown = [f"{name} was {state.get(name)}, got {self.facts.get(name)}" for name in names[:MOST_SHOWN]]
        more = f"; and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
        raise ValueError(
            f"The training cannot go on as another one: {'; '.join(shown)}{more}. Give what it had, or begin anew with "
            "--restart or in another folder."
        )


def content_of_case(case: Mapping[Any, Any]) -> list[str]:
    """The image and the label map of a case by their content, so that a study may be moved.

    Example:
        >>> content_of_case({"image": "scan", "label": torch.zeros(1, 2)})
        ['scan', 'af5570f5a1810b7a']
    """
    return [_content(case[key]) for key in ("image", "label") if key in case]


def _content(source: PathLike | torch.Tensor) -> str:
    if isinstance(source, torch.Tensor):
        return _text(source)
    path = Path(source)
    if not path.is_file():
        return path.name
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"{path.name} {digest.hexdigest()[:16]}"


def _facts(value: Any, name: str, depth: int) -> Iterator[tuple[str, str]]:
    """Names and texts of what a value is made of."""
    if isinstance(value, np.random.RandomState | np.random.Generator | torch.Generator) or depth > DEEPEST:
        return
    members = _members(value)
    if members is None:
        yield name, _text(value)
        return
    if not isinstance(value, Mapping | Sequence):
        yield name, type(value).__qualname__
    for key, member in members.items():
        yield from _facts(member, f"{name}.{key}" if name else str(key), depth + 1)


def _members(value: Any) -> dict[Any, Any] | None:
    """What a value consists of; ``None`` for what is told as a whole."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list | tuple) and not all(isinstance(one, int | float | str) for one in value):
        return dict(enumerate(value))
    if isinstance(value, list | tuple | torch.Tensor | np.ndarray | Atlas | Path | enum.Enum | np.dtype):
        return None
    if inspect.isroutine(value) or inspect.isclass(value) or not hasattr(value, "__dict__"):
        return None
    children = dict(value.named_children()) if isinstance(value, torch.nn.Module) else {}
    return {key: member for key, member in vars(value).items() if not key.startswith("_")} | children


def _text(value: Any) -> str:
    if isinstance(value, Atlas):
        return fingerprint(value.image)[:16] + fingerprint(value.label_map)[:16]
    if isinstance(value, torch.Tensor | np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(torch.as_tensor(value).cpu().numpy()).tobytes()).hexdigest()[:16]
    if inspect.isroutine(value) or inspect.isclass(value):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, list | tuple):
        return repr(list(value))
    if isinstance(value, set | frozenset):
        return repr(sorted(value, key=repr))
    return repr(value) if isinstance(value, PLAIN) else type(value).__qualname__
