"""monai-lcs train."""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path
from typing import Any

from monai_lcs.cli.words import add_atlas, read_atlas

_ARGUMENTS = ("study", "atlas", "out", "settings", "cases", "handlers")  # of :func:`monai_lcs.pipeline.train`
_WORDS = {
    "epochs": "--epochs",
    "device": "--device",
    "labels": "--labels",
    "resume": "--resume",
    "restart": "--restart",
    "dataset_dir": "STUDY",
    "ckpt_dir": "--out",
    "output_dir": "--out",
    "atlas_image": "--atlas",
    "atlas_labels": "--atlas",
    "label_table": "--atlas",
}
"""Keys of ``train.json`` that the command has words for."""


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
    if options.epochs is not None and options.epochs < 1:
        raise ValueError(f"--epochs takes a number from 1 on, got {options.epochs}.")
    overrides = dict(_override(text) for text in options.set or [])
    for key in overrides:
        if key in _ARGUMENTS:
            raise ValueError(f"--set takes keys of the bundle's train.json, not {key}.")
        if key in _WORDS:
            raise ValueError(f"--set {key}=... would contradict the command's own words: give {_WORDS[key]} instead.")
    if not Path(options.study).is_dir():  # before the long imports, and before anything is written
        raise ValueError(f"There is no folder {options.study}.")
    from monai_lcs.pipeline import train as train_network

    given = {name: value for name in ("epochs", "device", "labels") if (value := getattr(options, name))}
    given |= {"resume": options.resume, "restart": options.restart, **overrides}
    weights = train_network(options.study, read_atlas(options), options.out, **given)
    if weights.is_file():
        print(f"The best network is {weights}; use it with: monai-lcs segment SCAN --weights {weights} --atlas ...")
    else:
        print("No network was better than what is there: none was written.")
    return 0


def _override(text: str) -> tuple[str, Any]:
    """``key=value``; the value is a number, a list, True, None ... as Python or JSON writes it, or else a text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set takes KEY=VALUE, got {text!r}.")
    for read in (ast.literal_eval, json.loads):
        try:
            return name, read(value)
        except (ValueError, SyntaxError):
            pass
    return name, value
