"""Segment scans by an atlas, evaluate and train, show labels, edit atlases: the command monai-lcs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from monai_lcs import __version__
from monai_lcs.cli import atlas, atlases, bids, evaluate, labels, segment, train
from monai_lcs.cli.messages import messages

__all__ = ["main"]

COMMANDS = {
    "segment": segment,
    "bids": bids,
    "evaluate": evaluate,
    "train": train,
    "labels": labels,
    "atlases": atlases,
    "atlas": atlas,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: words of the command line; those of the process by default.

    Returns:
        The exit status: 0; 1 when a case failed, which is named; 2 when nothing was begun, as the words ask for what
        cannot be done.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words, argparse.Namespace(words=words))
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        with messages(options):
            return run(options)
    except BrokenPipeError:  # the reader of what is printed has seen enough
        sys.stderr.close()
        return 0
    except (ValueError, OSError, ImportError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="monai-lcs", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.run.__doc__, description=module.run.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
