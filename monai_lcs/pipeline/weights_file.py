"""Files of torch, complete or not there, read only with the right checksums; the file of weights and their settings."""

from __future__ import annotations

import functools
import io
import json
import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.config import PathLike

from monai_lcs.files import write_atomically

__all__ = ["facts_of_weights", "read_state", "read_torch", "write_torch", "write_weights"]


def write_torch(path: PathLike, content: Any) -> None:
    """Write what ``torch.save`` writes, atomically.

    The file is made in memory first: a full disk is then an ``OSError`` that names the file.

    Raises:
        OSError: naming the file that cannot be written; one that was there before is untouched.

    Example:
        >>> file = getfixture("tmp_path") / "numbers.pt"
        >>> write_torch(file, {"a": torch.ones(2)})
        >>> read_torch(file)
        {'a': tensor([1., 1.])}
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(Path(path), lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def read_torch(path: PathLike, what: str = "a checkpoint") -> Any:
    """Read a file of ``torch.save`` on the CPU, after a look at the checksum of each of its parts.

    The file is a zip archive with a CRC-32 of each part. ``torch.load`` itself does not compare them.

    Args:
        path: the file.
        what: what it should be, for the message.

    Raises:
        ValueError: when it cannot be read: missing, cut, changed, or not what ``torch.load(weights_only=True)`` takes.

    Example:
        >>> file = getfixture("tmp_path") / "numbers.pt"
        >>> write_torch(file, torch.zeros(64))
        >>> _ = file.write_bytes(file.read_bytes().replace(bytes(8), b"8 others"))
        >>> read_torch(file)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: ...numbers.pt cannot be read as a checkpoint: ...
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as parts:
                if sum(part.file_size for part in parts.infolist()) > os.path.getsize(path):
                    raise ValueError("its parts are compressed, as torch writes none: they may take any memory")
                damaged = parts.testzip()
            if damaged:
                raise ValueError(f"{damaged} in it does not have its checksum, the file is damaged")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path} cannot be read as {what}: {reason}") from error


def write_weights(path: PathLike, state: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write weights with what is known of them in one file, and a copy of the latter that people can read.

    Args:
        path: the file of the weights, ``model.pt``; the copy is ``model.json``.
        state: the network's ``state_dict``.
        facts: its settings, and under ``"card"`` license, data and atlas, as JSON holds them.

    Example:
        >>> file = getfixture("tmp_path") / "model.pt"
        >>> write_weights(file, {"w": torch.ones(1)}, {"align": "affine"})
        >>> read_state(file), facts_of_weights(file), json.loads(file.with_suffix(".json").read_text())
        ({'w': tensor([1.])}, {'align': 'affine'}, {'align': 'affine'})
    """
    write_torch(path, {"model": dict(state), "settings": dict(facts)})
    text = json.dumps(facts, indent=4)
    write_atomically(Path(path).with_suffix(".json"), lambda temporary: temporary.write_text(text))


def read_state(path: PathLike) -> dict[str, torch.Tensor]:
    """The tensors of a file of weights by their names.

    Raises:
        ValueError: when the file holds something else, or cannot be read.
    """
    content = read_torch(path, "weights")
    state = content.get("model", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(isinstance(weight, torch.Tensor) for weight in state.values()):
        raise ValueError(f"{path} cannot be read as weights: it holds something else")
    return dict(state)


def facts_of_weights(path: PathLike) -> dict[str, Any]:
    """The settings of weights and their card, from inside the file; where there are none, from the JSON file beside it.

    Where both say something and it is not the same, a warning names what differs, and the file itself is believed: a
    training that was killed leaves the old copy beside new weights.

    Args:
        path: the file of the weights; it need not be there.

    Raises:
        ValueError: when a file cannot be read.
    """
    path = Path(path)
    copy = path.with_suffix(".json")
    beside = _read_json(copy) if copy.is_file() else {}
    inside = _facts_inside(path)
    if inside and beside:
        differ = [name for name in {**inside, **beside} if inside.get(name) != beside.get(name)]
        if differ:
            said = "; ".join(f"{name} {beside.get(name)}, the file {inside.get(name)}" for name in differ[:3])
            warnings.warn(
                f"{copy} is no copy of what {path.name} says of itself: it has {said}. The file is believed: delete "
                "the copy, and give other settings as options.",
                stacklevel=3,
            )
    return inside or beside


def _facts_inside(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    stat = path.stat()
    return json.loads(_facts_text(str(path), (stat.st_ino, stat.st_mtime_ns, stat.st_size)))


@functools.lru_cache(maxsize=16)
def _facts_text(path: str, version: tuple[int, ...]) -> str:
    """What a file of weights says of itself, read once for each version of the file."""
    content = read_torch(path, "weights")
    settings = content.get("settings", {}) if isinstance(content, Mapping) and "model" in content else {}
    try:
        return json.dumps(dict(settings))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} must hold settings as JSON has them: {error}.") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except RecursionError:
        raise ValueError(f"{path} cannot be read: its lists or objects are nested too deeply.") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} must hold the settings of a training as a JSON object: {error}.") from error
