"""Weights: the file of a trained network, checked before it is used, and the bundle that ships with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from monai.config import PathLike

__all__ = ["BUNDLE_NAME", "bundle_folder", "cause", "load_weights", "shipped_weights"]

BUNDLE_NAME = "whole_brain_lcs_segmentation"


def bundle_folder() -> Path:
    """The bundle: beside the package in a clone of the repository, inside it where it was installed from a wheel.

    Raises:
        FileNotFoundError: when it is in neither place.

    Example:
        >>> (bundle_folder() / "configs" / "inference.json").is_file()
        True
    """
    package = Path(__file__).resolve().parents[1]
    places = [package / "bundles" / BUNDLE_NAME, package.parent / "bundles" / BUNDLE_NAME]
    for place in places:
        if (place / "configs").is_dir():
            return place
    raise FileNotFoundError(f"The bundle {BUNDLE_NAME} is missing: looked in {places[0]} and {places[1]}.")


def shipped_weights() -> Path:
    """The weights that ship with the bundle.

    Example:
        >>> shipped_weights().is_file()
        True
    """
    return bundle_folder() / "models" / "model.pt"


def load_weights(path: PathLike, network: torch.nn.Module) -> None:
    """Load weights into a network.

    Args:
        path: their file: the network's state, or a dictionary that has it under ``"model"``.
        network: what they are for.

    Raises:
        ValueError: when there is no such file, it cannot be read as weights, or they are another network's; with the
            first weight that differs.

    Example:
        >>> load_weights("no/model.pt", torch.nn.Linear(2, 2))
        Traceback (most recent call last):
        ValueError: There are no weights in no/model.pt: train first, or give --checkpoint.
    """
    if not Path(path).is_file():
        raise ValueError(f"There are no weights in {path}: train first, or give --checkpoint.")
    state = _read_state(path)
    bare: Any = getattr(network, "module", network)  # DistributedDataParallel
    found, expected = ({name: tuple(x.shape) for name, x in one.items()} for one in (state, bare.state_dict()))
    wrong = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    if wrong:
        raise ValueError(
            f"The weights in {path} are another network's, {wrong[0]} has the shape {found.get(wrong[0])} instead of"
            f" {expected.get(wrong[0])}: give the --channels, --conditioning and --norm it was trained with."
        )
    broken = [name for name, weight in state.items() if not torch.isfinite(weight).all()]
    if broken:
        raise ValueError(f"The weights in {path} are NaN or infinite, {broken[0]} first: their training failed.")
    bare.load_state_dict(state)


def _read_state(path: PathLike) -> dict[str, torch.Tensor]:
    """The tensors of a file of weights by their names."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("model", state)
        assert all(isinstance(weight, torch.Tensor) for weight in state.values()), "it holds something else"
    except Exception as error:
        reason = cause(error)[:200]
        raise ValueError(f"{path} cannot be read as weights: {reason}") from error
    return state


def cause(error: BaseException) -> str:
    """The message of an error, or of what MONAI wraps in a RuntimeError where a transform or an expression fails.

    Example:
        >>> cause(ValueError("no   voxels"))
        'no voxels'
    """
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
