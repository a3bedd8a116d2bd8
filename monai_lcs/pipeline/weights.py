"""Weights: the file of a trained network, checked before it is used, and the bundle that ships with the package."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from monai.config import PathLike

from monai_lcs.atlas import Atlas, fingerprint
from monai_lcs.networks import LabelConditionedUNet, MeanNetwork
from monai_lcs.pipeline.settings import NETWORK, Settings, make_network
from monai_lcs.pipeline.weights_file import facts_of_weights, read_state, write_weights

__all__ = [
    "BUNDLE_NAME",
    "atlas_card",
    "bundle_folder",
    "cause",
    "check_trained_for",
    "describe_weights",
    "fingerprint_of",
    "join_weights",
    "load_weights",
    "shipped_weights",
    "weights_card",
]

BUNDLE_NAME = "whole_brain_lcs_segmentation"
SHIPPED_WEIGHTS = {"permissive": "model.pt", "research": "model_research.pt", "generalist": "model_generalist.pt"}


SAME_INPUT = ("spacing", "margin_mm", "halo", "soft_masks", "fused")
"""What the networks of one file must have in common."""


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


def shipped_weights(name: str = "permissive") -> Path:
    """Weights that ship with the bundle.

    A training may have put its own in their place, as the bundle's is the folder where it writes by default: a warning
    says so then.

    Args:
        name: ``"permissive"``, for any use and any atlas of T1-weighted brains; ``"research"``, not for commercial
            use, for the atlas ``named_atlas("neuromorphometrics")``; or ``"generalist"``, not for commercial use, for
            labeled scans as atlases.

    Raises:
        ValueError: for another name.

    Example:
        >>> shipped_weights().is_file(), shipped_weights("research").name
        (True, 'model_research.pt')
    """
    if name not in SHIPPED_WEIGHTS:
        raise ValueError(f"The weights that ship are {', '.join(SHIPPED_WEIGHTS)}, got {name!r}.")
    path = bundle_folder() / "models" / SHIPPED_WEIGHTS[name]
    if path.is_file() and not _card(path):
        warnings.warn(
            f"{path} is not the {name} weights that shipped: it has no license card. If a training in the folder of the"
            " bundle replaced them, the old ones lie beside it under another name.",
            stacklevel=2,
        )
    return path


def describe_weights(checkpoint: PathLike | None) -> str:
    """One line that says which weights are used, and what is known of their license and training.

    Example:
        >>> describe_weights(shipped_weights()).startswith("Weights: model.pt; Apache-2.0")
        True
    """
    if not checkpoint:
        return "Weights: none, the labels of the aligned atlas are the answer."
    card = _card(checkpoint)
    return "; ".join([f"Weights: {Path(checkpoint).name}", *(card[key] for key in ("license", "data") if key in card)])


def weights_card(checkpoint: PathLike | None) -> dict[str, Any]:
    """What is known of weights: the file, its first bytes of SHA-256, license and training.

    Example:
        >>> weights_card(None), weights_card(shipped_weights())["license"]
        ({'file': None}, 'Apache-2.0')
    """
    if not checkpoint:
        return {"file": None}
    digest = hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()[:16]
    return {"file": str(checkpoint), "sha256": digest, **_card(checkpoint)}


def check_trained_for(checkpoint: PathLike | None, atlas: Atlas) -> None:
    """Warn where weights were trained for one atlas and are used with another.

    Args:
        checkpoint: file of the weights. What they were trained for stands in it or beside it.
        atlas: the one that is used.
    """
    trained_for = _card(checkpoint).get("atlas", {}) if checkpoint else {}
    if trained_for and trained_for["fingerprint"] != fingerprint_of(atlas):
        warnings.warn(
            f"The weights {Path(str(checkpoint)).name} were trained for the atlas {trained_for['name']} alone. With "
            "another atlas they may be no better than its aligned labels: use the permissive weights, or train.",
            stacklevel=2,
        )


def atlas_card(name: str, atlas: Atlas) -> dict[str, str]:
    """What is said with weights of the one atlas that they were trained for, under ``"card"``, ``"atlas"``."""
    return {"name": name, "fingerprint": fingerprint_of(atlas)}


def fingerprint_of(atlas: Atlas) -> str:
    """What tells an atlas from others: its image and its label map, whatever their files and the names of the labels.

    Example:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> from monai_lcs.labels import LabelTable
        >>> image = MetaTensor(torch.rand(1, 4, 4, 4))
        >>> one, other = (Atlas(image, MetaTensor(image > at), LabelTable.from_ids([1])) for at in (0.3, 0.6))
        >>> fingerprint_of(one) == fingerprint_of(other)
        False
    """
    return fingerprint(atlas.image)[:16] + fingerprint(atlas.label_map)[:16]


def _card(checkpoint: PathLike) -> dict[str, Any]:
    """``"license"``, ``"data"`` and ``"atlas"`` of weights, as far as they are said."""
    return dict(facts_of_weights(checkpoint).get("card", {}))


def load_weights(path: PathLike, network: torch.nn.Module) -> None:
    """Load weights into a network.

    Args:
        path: their file: the network's state, or a dictionary that has it under ``"model"``, see
            :func:`monai_lcs.pipeline.weights_file.write_weights`.
        network: what they are for. One network takes the first of several in a file, with a warning.

    Raises:
        ValueError: when there is no such file, it cannot be read as weights, or they are another network's; with the
            first weight that differs.

    Example:
        >>> load_weights("no/model.pt", torch.nn.Linear(2, 2))
        Traceback (most recent call last):
        ValueError: There are no weights in no/model.pt: train first, or name another file.
    """
    if not Path(path).is_file():
        raise ValueError(f"There are no weights in {path}: train first, or name another file.")
    state = read_state(path)
    bare: Any = getattr(network, "module", network)  # DistributedDataParallel
    state = state if isinstance(bare, MeanNetwork) else _first_of_several(state, path)
    found, expected = ({name: tuple(x.shape) for name, x in one.items()} for one in (state, bare.state_dict()))
    wrong = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    if any(name.startswith("label_head.") for name in found):
        raise ValueError(f"The weights in {path} are of the earlier shared decoder, which is no more: train again.")
    if wrong:
        raise ValueError(
            f"The weights in {path} are another network's, {wrong[0]} has the shape {found.get(wrong[0])} instead of"
            f" {expected.get(wrong[0])}: give the --channels, --conditioning and --norm it was trained with."
        )
    broken = [name for name, weight in state.items() if not torch.isfinite(weight).all()]
    if broken:
        raise ValueError(f"The weights in {path} are NaN or infinite, {broken[0]} first: their training failed.")
    bare.load_state_dict(state)


def _first_of_several(state: dict[str, torch.Tensor], path: PathLike) -> dict[str, torch.Tensor]:
    """The weights of the first network, where a file has several; others as they are."""
    if not state or not all(name.startswith("networks.") for name in state):
        return state
    count = len({name.split(".")[1] for name in state})
    warnings.warn(
        f"{path} has {count} networks whose answers are averaged: the first alone is taken.",
        stacklevel=3,
    )
    first = "networks.0."
    return {name.removeprefix(first): weight for name, weight in state.items() if name.startswith(first)}


def join_weights(paths: Sequence[PathLike], path: PathLike, **facts: Any) -> None:
    """Write the weights of several trainings into one file; its answer is the mean of their probabilities.

    They are kept in half precision. How the scan is prepared and the card are those of the first, unless ``facts`` say
    otherwise. The masks answer for no label unless ``facts`` name it (``propagated``).

    Args:
        paths: files of weights with their settings, two or more.
        path: the file to write, which must not be there, and beside it a copy of the settings, ``.json``.
        facts: settings, or ``card``, that replace those of the first.

    Raises:
        ValueError: when ``path`` is there already; when a file cannot be read; when a network must see another input
            than the first, which is another voxel size, margin, halo, soft masks, or the votes of several atlases; or
            when a weight is too large for half precision.

    Example:
        >>> from monai_lcs.pipeline import Settings, make_network
        >>> from monai_lcs.pipeline.weights_file import write_weights
        >>> folder = getfixture("tmp_path")
        >>> for kind in ("multiscale", "shared"):
        ...     settings = Settings(channels=(4, 8), conditioning=kind)
        ...     write_weights(folder / f"{kind}.pt", make_network(settings).state_dict(), settings.to_dict())
        >>> join_weights([folder / "multiscale.pt", folder / "shared.pt"], folder / "both.pt", propagated=["CSF"])
        >>> both = Settings.of_weights(folder / "both.pt")
        >>> load_weights(folder / "both.pt", make_network(both))
        >>> [each.conditioning for each in both.of_each_network()], both.propagated
        (['multiscale', 'shared'], ('CSF',))
    """
    there = [target for target in (Path(path), Path(path).with_suffix(".json")) if target.exists()]
    if there:
        raise ValueError(f"{there[0]} is there already: give another name, or remove it.")
    settings = [Settings.of_weights(each) for each in paths]
    first, *others = settings
    for each, file in zip(others, list(paths)[1:], strict=True):
        differ = [name for name in SAME_INPUT if getattr(each, name) != getattr(first, name)]
        if differ or each.further_networks or first.further_networks:
            reason = f"they differ in {', '.join(differ)}" if differ else "one of them has several networks already"
            raise ValueError(f"{file} and {paths[0]} cannot be joined: {reason}.")
    networks = [make_network(each) for each in settings]
    for file, network in zip(paths, networks, strict=True):
        load_weights(file, network)
    state = MeanNetwork(cast(list[LabelConditionedUNet], networks)).state_dict()
    shapes = [{name: value for name, value in each.to_dict().items() if name in NETWORK} for each in others]
    known = {**first.to_dict(), "further_networks": shapes, "propagated": [], **facts}
    Settings.from_dict({name: value for name, value in known.items() if name != "card"})
    half = {name: x.half() if x.is_floating_point() else x for name, x in state.items()}
    too_large = [name for name, x in half.items() if not torch.isfinite(x).all()]
    if too_large:
        raise ValueError(f"{too_large[0]} has weights that are too large for half precision: {path} is not written.")
    card = _card(paths[0])
    write_weights(path, half, {**({"card": card} if card else {}), **known})


def cause(error: BaseException) -> str:
    """The message of an error, or of what MONAI wraps in a RuntimeError where a transform or an expression fails.

    Example:
        >>> cause(ValueError("no   voxels"))
        'no voxels'
    """
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
