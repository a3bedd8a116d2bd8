"""One thread for the small tensors of the tests, where two are slower; and the real scans of tests marked `data`."""

import ctypes
import os
import sys
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data():
    """Folder with malc2012/ and hippocampus/; their licenses do not allow to keep them here."""
    if "MONAI_LCS_DATA" not in os.environ:
        pytest.skip("real scans do not come with the repository: MONAI_LCS_DATA names their folder")
    folder = Path(os.environ["MONAI_LCS_DATA"]).absolute()
    for study in ("malc2012", "hippocampus"):
        assert (folder / study / "images").is_dir(), f"MONAI_LCS_DATA: there is no folder {folder / study / 'images'}"
    return folder


def pytest_unconfigure():
    """Keep the types of SWIG to the end of the process, which crashes there where ITK and SimpleITK share them."""
    if shared := sys.modules.get("swig_runtime_data5"):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(shared))
