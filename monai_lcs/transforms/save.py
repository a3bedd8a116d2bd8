"""Saves segmentations at the end of a chain of transforms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.config import KeysCollection, PathLike
from monai.data import MetaTensor
from monai.transforms import MapTransform, SaveImaged, Transform
from monai.utils import TransformBackends

from monai_lcs.labels import LabelTable
from monai_lcs.results.picture import require_matplotlib
from monai_lcs.results.segmentation import Segmentation

__all__ = ["SaveSegmentation", "SaveSegmentationD", "SaveSegmentationDict", "SaveSegmentationd"]


class SaveSegmentation(Transform):
    """Writes a label map, its volumes, its label table and a picture, see :meth:`Segmentation.save`.

    Args:
        output_dir: folder for the files; it is created if it does not exist.
        label_table: the labels, or a file that :meth:`LabelTable.read` reads.
        overwrite: whether to replace existing files.
        picture: whether to draw the picture, which needs matplotlib.

    Raises:
        ImportError: if ``picture`` and matplotlib is not installed.

    Example:
        >>> import tempfile, torch
        >>> image = MetaTensor(torch.rand(1, 8, 8, 8), meta={"filename_or_obj": "scans/ann.mgz"})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save = SaveSegmentation(folder, LabelTable.from_ids([4, 300]), picture=False)
        ...     sorted(Path(path).name for path in save((image > 0.5) * 300, image).values())
        ['ann_dseg.nii.gz', 'ann_dseg.tsv', 'ann_volumes.tsv']
    """

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]

    def __init__(
        self, output_dir: PathLike, label_table: LabelTable | PathLike, overwrite: bool = False, picture: bool = True
    ) -> None:
        self.output_dir = Path(output_dir)
        self.label_table = label_table if isinstance(label_table, LabelTable) else LabelTable.read(label_table)
        self.overwrite = overwrite
        self.picture = picture
        if picture:
            require_matplotlib()  # rather now than after the first segmentation

    def __call__(  # type: ignore[override]
        self,
        label_map: MetaTensor,
        image: MetaTensor,
        case: str | None = None,
        agreement: MetaTensor | None = None,
        confidence: Mapping[int, float] | None = None,
    ) -> dict[str, str]:
        """Writes the files of one case.

        The arguments are those of :class:`Segmentation`; the errors are those of :meth:`Segmentation.save`.

        Returns:
            The paths written, by ``"labels"``, ``"volumes"``, ``"qc"`` (with ``picture``) and ``"dseg"``.
        """
        segmentation = Segmentation(
            label_map, image, self.label_table, agreement=agreement, case=case, confidence=confidence
        )
        return segmentation.save(self.output_dir, self.overwrite, self.picture)


class SaveSegmentationd(SaveImaged):
    """Dictionary version of :class:`SaveSegmentation`, the last of the postprocessing of a single case.

    It is a :class:`monai.transforms.SaveImaged` because MONAI Label skips those: it writes results itself.

    The transform adds ``data["saved"]``, the paths written. The names of the files start with ``data["case"]``, which
    :func:`monai_lcs.study.cases.find_images` provides, otherwise with the name of the image file.

    If :class:`FuseAtlasesd` left ``data["agreement"]``, the volumes say how far the atlases agreed with each label. The
    agreement is 0 where the atlases' own vote, ``data["atlas_label"]`` on the same grid, is another label.

    Args:
        keys: key of the label map, a single one. It must lie on the grid of the file: apply ``Invertd`` (with
            ``nearest_interp=True``) before.
        image_key: key of the image as loaded from its file; no transform but ``EnsureChannelFirstd`` may change it.
        output_dir: see :class:`SaveSegmentation`.
        label_table: see :class:`SaveSegmentation`.
        overwrite: see :class:`SaveSegmentation`.
        picture: see :class:`SaveSegmentation`.
        confidence: the Dice to expect of each label of the case, by its id, as the sweep has told it by then, such as
            :class:`monai_lcs.bundle.Confidence`; empty or ``None`` where it is not known.
        allow_missing_keys: whether a sample without the key is passed on as it is.

    Raises:
        ValueError: if there is more than one key.

    Example:
        >>> import tempfile, torch
        >>> image = MetaTensor(torch.rand(1, 8, 8, 8), meta={"filename_or_obj": "scans/ann.mgz"})
        >>> table = LabelTable.from_ids([4])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save = SaveSegmentationd("pred", output_dir=folder, label_table=table, picture=False)
        ...     Path(save({"source": image, "pred": (image > 0.5) * 4})["saved"]["dseg"]).name
        'ann_dseg.nii.gz'
    """

    backend = SaveSegmentation.backend

    def __init__(
        self,
        keys: KeysCollection,
        image_key: str = "source",
        *,
        output_dir: PathLike,
        label_table: LabelTable | PathLike,
        overwrite: bool = False,
        picture: bool = True,
        confidence: Mapping[int, float] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"`keys` must be one key, since files are named after the image, got {self.keys}.")
        self.image_key, self.confidence = image_key, confidence
        self.save = SaveSegmentation(output_dir, label_table, overwrite, picture)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Writes the files and returns a copy of ``data`` with ``"saved"``."""
        d = dict(data)
        for key in self.key_iterator(d):
            agreement = d.get("agreement")
            if agreement is not None:
                agreement = agreement * (d["atlas_label"] == d[key])
            confidence = dict(self.confidence) if self.confidence else None
            d["saved"] = self.save(d[key], d[self.image_key], d.get("case"), agreement, confidence)
        return d


SaveSegmentationD = SaveSegmentationDict = SaveSegmentationd
