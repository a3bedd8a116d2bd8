"""Measures the peak memory of `monai-lcs segment` on a large scan: that of a fresh process, imports included.

    python benchmarks/memory.py SCAN [--shape 512 512 400] [--mm 0.5] [--words --no-picture ...]

SCAN is sampled at so many voxels of that size around its center, and written as int16 without compression.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from monai_lcs.grids import affine_of, resample
from monai_lcs.study.images import read_image

CHILD = """
import resource, sys, time
from monai_lcs.cli import main
status = main(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
print(f"status {status}, peak {peak:.2f} GB, {time.process_time():.0f} s of processor time")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan")
    parser.add_argument("--shape", type=int, nargs=3, default=[512, 512, 400])
    parser.add_argument("--mm", type=float, default=0.5)
    parser.add_argument("--words", nargs=argparse.REMAINDER, default=[])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "large.nii")
        write_large(args.scan, args.shape, args.mm, path)
        words = ["segment", str(path), "-o", f"{folder}/out", *args.words]
        print(subprocess.run([sys.executable, "-c", CHILD, *words], capture_output=True, text=True).stdout.strip())


def write_large(scan: str, shape: list[int], mm: float, path: Path) -> None:
    volume = read_image(scan)
    own = affine_of(volume)
    affine = own.copy()
    affine[:3, :3] *= mm / np.linalg.norm(own[:3, :3], axis=0)
    middle = own @ [*((np.array(volume.shape[1:]) - 1) / 2), 1]
    affine[:3, 3] = (middle - affine @ [*((np.array(shape) - 1) / 2), 0])[:3]
    voxels = resample(volume, shape, affine, outside=0)[0].numpy().astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, affine), path)


if __name__ == "__main__":
    main()
