"""monai-lcs train."""

from __future__ import annotations

import argparse
import ast
import inspect
from typing import Any

from monai_lcs.cli.words import add_atlas, read_atlas


def add_arguments(command: argparse.ArgumentParser) -> None:
    """A study, an atlas, and where the weights go."""
    command.add_argument("study", metavar="STUDY", help="folder with images/ and labels/")
    command.add_argument("-o", "--out", default="model", help="folder for the weights (default: %(default)s)")
    add_atlas(command)
    command.add_argument("--epochs", type=int, help="passes over the scans (default: 300)")
    command.add_argument("--resume", action="store_true", help="go on with an interrupted training")
    command.add_argument("--restart", action="store_true", help="begin anew where a training was interrupted")
    command.add_argument("--set", nargs="+", metavar="KEY=VALUE", help="any key of the bundle's train.json")


def run(options: argparse.Namespace) -> int:
    """Train a network on the labeled scans of a study."""
    from monai_lcs.pipeline import train as train_network

    names = ("epochs", "device", "labels", "resume", "restart")
    given = {name: getattr(options, name) for name in names if getattr(options, name)}
    given.update(_override(text) for text in options.set or [])
    own = sorted(given.keys() & inspect.signature(train_network).parameters.keys())
    if own:
        raise ValueError(f"--set takes keys of the bundle's train.json, not {', '.join(own)}.")
    weights = train_network(options.study, read_atlas(options), options.out, **given)
    if weights.is_file():
        print(f"The best network is {weights}; use it with: monai-lcs segment SCAN --weights {weights} --atlas ...")
    else:
        print("No network was better than what is there: none was written.")
    return 0


def _override(text: str) -> tuple[str, Any]:
    """``key=value``; the value is a number, a list, True, None ... as Python writes it, or else a text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set takes KEY=VALUE, got {text!r}.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
