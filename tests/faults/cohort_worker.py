"""A run of a cohort with stub work, in a process of its own, for the tests that kill it."""

import os
import resource
import signal
import time

import nibabel as nib
import numpy as np

from monai_lcs.cohort import Cohort, CohortFolder, Outcome
from monai_lcs.cohort.processes import stoppable
from monai_lcs.files import write_atomically
from monai_lcs.study.cases import find_images


def run(out, scans, log, seconds=0.0, kill=None, file_size=None):
    """Run, and write to a file what became of the cases, or the error.

    Args:
        out: folder for results.
        scans: folder of scans.
        log: the file.
        seconds: how long a case takes, half of it before the first of its files is written.
        kill: the case at which the process ends itself.
        file_size: how many bytes a file may have.
    """
    if file_size:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))

    def work(case):
        time.sleep(seconds / 2)
        if case["case"] == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        with (out / "begun.log").open("a") as begun:
            begun.write(f"{case['case']}\n")
        files = [out / f"{case['case']}_{ending}" for ending in ("dseg.tsv", "volumes.tsv", "dseg.nii.gz")]
        for file in files[:-1]:
            write_atomically(file, lambda temporary: temporary.write_text(case["case"]))
            time.sleep(seconds / 4)
        noise = np.random.default_rng(len(case["case"])).integers(0, 9, (40, 40, 40), np.uint8)
        write_atomically(files[-1], lambda temporary: nib.save(nib.Nifti1Image(noise, np.eye(4)), temporary))
        return Outcome(files, {"overlap": 0.9}, {"insula": 1.0})

    try:
        with stoppable():
            records = Cohort(CohortFolder(out), work, {"weights": "a"}).run(find_images(scans), progress=False)
    except (OSError, ValueError) as error:
        log.write_text(str(error))
        raise SystemExit(1) from error
    log.write_text(" ".join(f"{record.case}={record.state}" for record in records))
