"""Finds the T1-weighted scans of a BIDS dataset, and says where their derivatives go."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.config import PathLike

from monai_lcs import __version__
from monai_lcs.study.cases import shorten_names

__all__ = ["check_derivatives", "derivatives_folder", "derivatives_texts", "describe_derivatives", "find_t1w"]

BIDS_VERSION = "1.10.0"

NOT_BIDS = ("*_volumes.tsv", "*_qc.png", "*_run.json", "*_dseg.ctbl", "*_dseg.label", "*_dseg.txt")
"""Files of results whose names BIDS does not know."""

_README = """# {title}

`monai-lcs bids` {version} made this dataset: T1-weighted scans segmented by an atlas.

- `*_dseg.nii.gz`: the label map on the grid of the scan; `*_dseg.tsv`: its ids, names and colors.
- `*_desc-brain_mask.nii.gz`: the brain, where a skull was removed.
- `*_volumes.tsv`: voxels, mm3 and the Dice to expect of each label.
- `*_qc.png`: the scan with the outlines of its labels. Look at it first.
- `*_run.json`: weights, atlas and their licenses, settings, versions and warnings of each scan.

`.bidsignore` names the files that BIDS does not know. This is research software, not a medical device.
"""


def find_t1w(bids: PathLike, participants: Sequence[str] = (), sessions: Sequence[str] = ()) -> list[dict[str, str]]:
    """Find the T1-weighted scans of a BIDS dataset: ``sub-*/[ses-*/]anat/*_T1w.nii[.gz]``.

    Args:
        bids: the dataset.
        participants: labels of people, with or without ``sub-``; all by default.
        sessions: likewise.

    Returns:
        Dictionaries with ``"image"``, and ``"case"``, the entities of its name without the suffix.

    Raises:
        ValueError: when this is no dataset, a participant or a session is not in it, or there is no scan.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> (folder / "sub-01/anat").mkdir(parents=True)
        >>> (folder / "sub-01/anat/sub-01_T1w.nii.gz").touch()
        >>> (folder / "dataset_description.json").touch()
        >>> [case["case"] for case in find_t1w(folder, ["01"])]
        ['sub-01']
    """
    folder = Path(bids)
    if not (folder / "dataset_description.json").is_file():
        raise ValueError(f"{folder} is no BIDS dataset: it has no dataset_description.json.")
    people = {path.name for path in folder.glob("sub-*") if path.is_dir()}
    wanted = {_with("sub-", label) for label in participants}
    if missing := sorted(wanted - people):
        there = shorten_names(sorted(people), most=5)
        raise ValueError(f"{folder} has no participant {', '.join(missing)}; it has {there}.")
    found = [
        path
        for person in sorted(wanted or people)
        for pattern in ("anat/*_T1w.nii*", "ses-*/anat/*_T1w.nii*")
        for path in sorted((folder / person).glob(pattern))
        if path.name.endswith((".nii", ".nii.gz"))
    ]
    if sessions:
        kept = {_with("ses-", label) for label in sessions}
        known = {path.name for path in folder.glob("sub-*/ses-*") if path.is_dir()}
        if missing := sorted(kept - known):
            there = shorten_names(sorted(known), most=5)
            raise ValueError(f"{folder} has no session {', '.join(missing)}; it has {there}.")
        found = [path for path in found if path.parent.parent.name in kept]
    if without := sorted(wanted - {path.relative_to(folder).parts[0] for path in found}):
        where = " in these sessions" if sessions else ""
        warnings.warn(f"{folder} has no T1w scan of {', '.join(without)}{where}.", stacklevel=2)
    if not found:
        raise ValueError(f"{folder} has no scan sub-*/[ses-*/]anat/*_T1w.nii.gz of these participants and sessions.")
    return [{"image": str(path.absolute()), "case": re.sub(r"_T1w\.nii(\.gz)?$", "", path.name)} for path in found]


def _with(prefix: str, label: str) -> str:
    return label if label.startswith(prefix) else prefix + label


def derivatives_folder(out: PathLike, image: str) -> Path:
    """Where the results of a scan go: under the derivatives as the scan lies under the dataset.

    Example:
        >>> derivatives_folder("out", "data/sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz").as_posix()
        'out/sub-01/ses-2/anat'
    """
    parts = Path(image).parts
    first = max(i for i, part in enumerate(parts[:-1]) if part.startswith("sub-"))
    return Path(out, *parts[first:-1])


def describe_derivatives(bids: PathLike) -> dict[str, Any]:
    """The ``dataset_description.json`` of the derivatives.

    Raises:
        ValueError: when that of the dataset is no JSON.
    """
    source = Path(bids) / "dataset_description.json"
    try:
        name = json.loads(source.read_text(encoding="utf-8")).get("Name", "")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{source} must hold a JSON object: {error}.") from error
    return {
        "Name": f"Label conditioned segmentation of {name or Path(bids).name}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "monai-lcs", "Version": __version__}],
        "SourceDatasets": [{"URL": Path(bids).absolute().as_uri()}],
    }


def check_derivatives(out: PathLike) -> None:
    """Check that a folder is no dataset of others, such as the scans themselves, whose description would be replaced.

    Raises:
        ValueError: when it has a ``dataset_description.json`` that does not name monai-lcs.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> check_derivatives(folder)
        >>> _ = (folder / "dataset_description.json").write_text('{"Name": "Two brains"}')
        >>> check_derivatives(folder)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: ... is another dataset: ...
    """
    file = Path(out) / "dataset_description.json"
    if file.exists() and '"monai-lcs"' not in file.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(
            f"{out} is another dataset: its dataset_description.json does not name monai-lcs. Choose another OUT, such"
            " as BIDS/derivatives/monai-lcs."
        )


def derivatives_texts(bids: PathLike) -> dict[str, str]:
    """The files at the top of the derivatives, by their names: description, README and ``.bidsignore``.

    Raises:
        ValueError: as :func:`describe_derivatives`.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> _ = (folder / "dataset_description.json").write_text('{"Name": "Two brains"}')
        >>> texts = derivatives_texts(folder)
        >>> sorted(texts), texts["README.md"].splitlines()[0]
        (['.bidsignore', 'README.md', 'dataset_description.json'], '# Label conditioned segmentation of Two brains')
    """
    description = describe_derivatives(bids)
    return {
        "dataset_description.json": json.dumps(description, indent=2) + "\n",
        "README.md": _README.format(title=description["Name"], version=__version__),
        ".bidsignore": "\n".join([*NOT_BIDS, ""]),
    }
