"""A random atlas for each sample, from a pool of several."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import PathLike
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform, Transform
from monai.utils import TransformBackends

from monai_lcs.atlas import fingerprint

__all__ = [
    "AddAtlasD",
    "AddAtlasDict",
    "AddAtlasd",
    "RandDrawAtlasD",
    "RandDrawAtlasDict",
    "RandDrawAtlasd",
    "RandPickAtlas",
    "RandPickAtlasD",
    "RandPickAtlasDict",
    "RandPickAtlasd",
]


class RandPickAtlas(RandomizableTransform):
    """Draw one atlas from a pool, but never the given image itself.

    Args:
        atlases: mappings with the same keys, such as ``{"atlas_image": path, "atlas_label": path}``.

    Attributes:
        index_: position in the pool of the atlas that was drawn last.

    Raises:
        ValueError: if the pool is empty or its atlases have different keys; when called, if the pool holds no atlas
            but the image itself, or if nothing tells whether an atlas is the image.

    Example:
        >>> pick = RandPickAtlas([{"atlas_image": "ann.nii.gz"}, {"atlas_image": "ben.nii.gz"}])
        >>> pick("ann.nii.gz")
        {'atlas_image': 'ben.nii.gz'}
        >>> pick.index_
        1
    """

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]

    def __init__(self, atlases: Sequence[Mapping[Hashable, Any]]) -> None:
        super().__init__()
        self.atlases = tuple(dict(atlas) for atlas in atlases)
        if not self.atlases:
            raise ValueError("`atlases` must hold at least one atlas, got none.")
        for atlas in self.atlases:
            if atlas.keys() != self.atlases[0].keys():
                raise ValueError(
                    f"All atlases must have the same keys, got {list(self.atlases[0])} and {list(atlas)}: {atlas}."
                )
        self._files = tuple(set().union(*map(files_of, atlas.values())) for atlas in self.atlases)
        self._contents = tuple(set(map(content_of, atlas.values())) - {None} for atlas in self.atlases)
        self.index_: int | None = None

    def randomize(self, data: Any = None) -> None:
        """Draw ``self.index_`` from the atlases that share no file and no content with the image ``data``.

        Example:
            >>> pick = RandPickAtlas([{"atlas_image": "ann.nii.gz"}, {"atlas_image": "ben.nii.gz"}])
            >>> pick.randomize("ben.nii.gz")
            >>> pick.index_
            0
        """
        files, content = files_of(data), content_of(data)
        if not files and data is not None and any(self._files):
            raise ValueError(
                f"Nothing tells which file the image is of (a {type(data).__name__} without one), so that it might "
                "be drawn as its own atlas: keep its path under another key (CopyItemsd before LoadImaged) and give "
                "that key as `exclude_key`."
            )
        pool = zip(self._files, self._contents, strict=True)
        others = [i for i, (own, contents) in enumerate(pool) if own.isdisjoint(files) and content not in contents]
        if not others:
            raise ValueError(
                f"Every atlas of the pool is the image {', '.join(sorted(files))} itself: add another atlas, "
                "or leave this image out of training."
            )
        self.index_ = int(self.R.choice(others))

    def __call__(self, image: Any = None) -> dict[Hashable, Any]:
        """Draw an atlas.

        Args:
            image: the image that needs an atlas: its path or paths, or a ``MetaTensor`` that knows its file. An atlas
                with the same file is not drawn; symbolic links are followed. Where image and atlases are all tensors
                without files, those of equal content are not drawn. None excludes no atlas.

        Returns:
            A copy of the drawn mapping.
        """
        self.randomize(image)
        assert self.index_ is not None
        return dict(self.atlases[self.index_])


def files_of(value: Any) -> set[str]:
    """Give the resolved paths of an image's files.

    Args:
        value: a path, a list of paths, or a ``MetaTensor`` that knows its file. Anything else has no files.

    Example:
        >>> files_of(["/data/../scan.nii.gz", None])
        {'/scan.nii.gz'}
    """
    if isinstance(value, MetaTensor):
        value = value.meta.get("filename_or_obj")
    if isinstance(value, str | os.PathLike):
        return {os.path.realpath(value)}
    if isinstance(value, list | tuple):
        return set().union(*map(files_of, value))
    return set()


def content_of(value: Any) -> str | None:
    """Give what tells a tensor or an array by its content, see :func:`monai_lcs.atlas.fingerprint`; else None.

    Example:
        >>> content_of(torch.ones(1, 2)) == content_of(np.ones((1, 2), np.float32)), content_of("scan.nii.gz")
        (True, None)
    """
    if not isinstance(value, torch.Tensor | np.ndarray):
        return None
    return fingerprint(value if isinstance(value, MetaTensor) else MetaTensor(torch.as_tensor(value)))


class RandPickAtlasd(RandomizableTransform, MapTransform):
    """Dictionary form of :py:class:`RandPickAtlas`: adds the drawn atlas and its ``"atlas_index"`` to the sample.

    Put it before the ``LoadImaged`` of the atlas. A ``CacheDataset`` does everything after a random transform anew for
    every sample. So load and preprocess the subject first: its ``MetaTensor`` still knows the file. A
    ``PersistentDataset`` keeps no metadata: keep the path under another key, with ``CopyItemsd`` before ``LoadImaged``,
    and give that key as ``exclude_key``.

    Args:
        atlases: mappings with the same keys, such as ``{"atlas_image": path, "atlas_label": path}``. They replace
            what the sample has under these keys.
        exclude_key: key of the sample's own image or of its path. It is never drawn as its atlas. Paths are compared;
            a tensor of unknown origin is an error.
        allow_missing_keys: accept samples without ``exclude_key`` instead of raising ``KeyError``.

    Raises:
        ValueError: if an atlas has the key ``exclude_key`` or ``"atlas_index"``, and as :py:class:`RandPickAtlas`.

    Example:
        >>> pick = RandPickAtlasd([{"atlas_image": "ann.nii.gz"}, {"atlas_image": "ben.nii.gz"}])
        >>> pick({"image": "ann.nii.gz"})
        {'image': 'ann.nii.gz', 'atlas_image': 'ben.nii.gz', 'atlas_index': 1}
    """

    backend = RandPickAtlas.backend

    def __init__(
        self,
        atlases: Sequence[Mapping[Hashable, Any]],
        exclude_key: Hashable = "image",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, exclude_key, allow_missing_keys)
        RandomizableTransform.__init__(self)
        self.picker = RandPickAtlas(atlases)
        self.exclude_key = exclude_key
        for key in (exclude_key, "atlas_index"):
            if key in self.picker.atlases[0]:
                raise ValueError(f"An atlas must not have the sample's key {key!r}, got {self.picker.atlases[0]}.")

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandPickAtlasd:
        """Set the random state of the draws."""
        super().set_random_state(seed, state)
        self.picker.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with an atlas added."""
        d = dict(data)
        image = next((d[key] for key in self.key_iterator(d)), None)
        return {**d, **self.picker(image), "atlas_index": self.picker.index_}


RandPickAtlasD = RandPickAtlasDict = RandPickAtlasd


class RandDrawAtlasd(RandomizableTransform):
    """Draw one of the atlases that a sample holds, all aligned to it before; see :class:`monai_lcs.pipeline.AtlasPool`.

    Args:
        key: where the sample holds them: a list of mappings with the same keys, volumes of any type. It is removed; the
            keys of the drawn one are added, as float32.

    Raises:
        KeyError: when called, if the sample has no such key.
        ValueError: when called, if the list is empty.

    Example:
        >>> atlases = [{"atlas_label": torch.tensor([[i]], dtype=torch.uint8)} for i in (7, 8)]
        >>> draw = RandDrawAtlasd().set_random_state(seed=0)
        >>> [draw({"image": "ann.nii.gz", "atlases": atlases})["atlas_label"].item() for _ in range(4)]
        [7.0, 8.0, 8.0, 7.0]
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, key: Hashable = "atlases") -> None:
        super().__init__()
        self.key = key
        self.index_: int | None = None

    def randomize(self, count: int) -> None:
        """Draw ``self.index_``, the position of one of ``count`` atlases."""
        if count < 1:
            raise ValueError(f"The sample's {self.key!r} must hold at least one atlas, got none.")
        self.index_ = int(self.R.randint(count))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with one atlas."""
        d = dict(data)
        atlases = d.pop(self.key)
        self.randomize(len(atlases))
        return {**d, **{key: volume.float() for key, volume in atlases[self.index_].items()}}


RandDrawAtlasD = RandDrawAtlasDict = RandDrawAtlasd


class AddAtlasd(Transform):
    """Add the files of one atlas to every sample, for the transforms that load and align it.

    Args:
        atlas_image: the atlas image file.
        atlas_label: the atlas label map file.

    Example:
        >>> AddAtlasd("atlas_T1w.nii.gz", "atlas_dseg.nii.gz")({"image": "sub-01.nii.gz"})
        {'image': 'sub-01.nii.gz', 'atlas_image': 'atlas_T1w.nii.gz', 'atlas_label': 'atlas_dseg.nii.gz'}
    """

    def __init__(self, atlas_image: PathLike, atlas_label: PathLike) -> None:
        self.atlas: dict[Hashable, Any] = {"atlas_image": str(atlas_image), "atlas_label": str(atlas_label)}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with the keys ``atlas_image`` and ``atlas_label``."""
        return {**data, **self.atlas}


AddAtlasD = AddAtlasDict = AddAtlasd
