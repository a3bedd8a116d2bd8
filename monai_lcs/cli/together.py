"""A command in several processes, as torchrun starts them: the first works, the others help with the labels."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any

__all__ = ["leading_others", "run_together"]

PATIENCE = timedelta(days=7)
"""How long others wait for the first process, which aligns, and waits for what other runs have claimed."""


def run_together(options: argparse.Namespace, run: Callable[[argparse.Namespace], int]) -> int:
    """Run a command that segments; of several processes only in the first.

    Args:
        options: the words; ``label_parallel`` becomes one of them.
        run: the command, which segments inside :func:`leading_others`.
    """
    import torch.distributed as dist

    options.label_parallel = dist.is_available() and dist.is_torchelastic_launched()
    if not options.label_parallel:
        return run(options)
    from monai_lcs.inferers import join_ranks, leave_ranks

    _check(options)
    if options.device == "cuda":
        options.device = f"cuda:{os.environ['LOCAL_RANK']}"
    rank = join_ranks(options.device, PATIENCE)
    status = _follow(options) if rank else run(options)
    leave_ranks()  # not after an error: NCCL would wait there for the others
    return status


def leading_others(options: argparse.Namespace) -> Any:
    """Around the work of the first process; nothing without others."""
    from monai_lcs.inferers import leading

    return leading() if options.label_parallel else ExitStack()


def _check(options: argparse.Namespace) -> None:
    """What several processes for each scan do not go with."""
    words = {
        "--probabilities": options.probabilities,
        f"--jobs {options.jobs}": options.jobs > 1,
        f"--dask {options.dask}": options.dask,
    }
    for word, given in words.items():
        if given:
            raise ValueError(f"torchrun's processes share the labels of each scan; leave out {word}, or torchrun.")


def _follow(options: argparse.Namespace) -> int:
    """Decode a part of the labels of each scan, in silence."""
    from monai_lcs.cli.options import load_segmenter
    from monai_lcs.inferers import follow

    with _silent():
        segmenter = load_segmenter(options)
        follow(segmenter.network, segmenter.device)
    return 0


@contextmanager
def _silent() -> Iterator[None]:
    """Say nothing: the first process says it."""
    level = logging.root.manager.disable
    logging.disable()
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    finally:
        logging.disable(level)
