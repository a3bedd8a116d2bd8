"""The command ``monai-lcs segment`` in a process of its own, which can be told to die at a write."""

import os
import signal
from pathlib import Path

import torch

from monai_lcs.cli import main


def run(words, die_at=None):
    """Run the command; kill the process before or after it gives a file its name.

    Args:
        words: of the command line.
        die_at: half the number of the renaming: 2 before the second (counted from 0), 2.5 after it. ``None`` for never.
    """
    torch.set_num_threads(1)
    count, replace = 0, Path.replace

    def counted(path, target):
        nonlocal count
        if count == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(path, target)
        if count + 0.5 == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        return target

    Path.replace = counted
    raise SystemExit(main(words))
