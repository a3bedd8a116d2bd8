"""Cases that are read, checked and aligned once, before a training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from monai.data import Dataset
from tqdm import tqdm

from monai_lcs.atlas import Atlas
from monai_lcs.labels import present_labels
from monai_lcs.pipeline.preprocessing import Preprocessing
from monai_lcs.pipeline.random_atlas import AtlasPool
from monai_lcs.pipeline.ranks import rank
from monai_lcs.pipeline.run_definition import content_of_case
from monai_lcs.study.cases import shorten_names
from monai_lcs.study.checks import list_failures

__all__ = ["PreparedDataset", "say_missing_labels"]

ALIGNMENTS_AT_A_TIME = 2


class PreparedDataset(Dataset):
    """Cases preprocessed once and kept in memory; what is random is done anew for each sample.

    All files are read and checked at once. The long work, :meth:`align`, begins later, so that of several datasets a
    bad file is known within seconds.

    Args:
        data: the cases, ``"image"`` and ``"label"`` files each.
        preprocessing: what is done once; an :class:`monai_lcs.pipeline.AtlasPool` where samples draw their atlas.
        transform: what is done for each sample.
        strict: whether a case that cannot be aligned is an error; otherwise it is named and left out.
        progress: show bars.

    Raises:
        ValueError: listing the cases whose files cannot be used.

    Example:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> from monai_lcs.atlas import Atlas
        >>> from monai_lcs.labels import LabelTable
        >>> from monai_lcs.pipeline import Preprocessing, Settings
        >>> image = MetaTensor(torch.rand(1, 20, 20, 20))
        >>> atlas = Atlas(image, MetaTensor((image > 0.5).int()), LabelTable.from_ids([1]))
        >>> preprocessing = Preprocessing(atlas, Settings(align="none"), target="network")
        >>> dataset = PreparedDataset([{"image": image, "label": atlas.label_map}], preprocessing, progress=False)
        >>> len(dataset), all(dataset[0][key].shape[0] == 1 for key in ("image", "label", "atlas_image", "atlas_label"))
        (1, True)
    """

    def __init__(
        self,
        data: Sequence[Mapping[Hashable, Any]],
        preprocessing: Preprocessing | AtlasPool,
        transform: Callable[[Any], Any] | None = None,
        strict: bool = False,
        progress: bool = True,
    ) -> None:
        loaded, failed = _attempt(preprocessing.load, data, "Reading cases", 1, progress)
        if failed:
            raise ValueError(list_failures(failed, len(data)))
        super().__init__(loaded, transform)
        self.preprocessing, self.strict, self.progress = preprocessing, strict, progress
        self.sources = tuple(data)
        self.aligned = False

    def align(self) -> None:
        """Align the atlas to all cases, once; asking for the length or for a sample does it as well.

        Raises:
            ValueError: listing the cases that the atlas cannot be aligned to, when ``strict`` or when none is left.
        """
        if self.aligned:
            return
        count, finish = len(self.data), self.preprocessing.finish
        self.data, failed = _attempt(finish, self.data, "Aligning", ALIGNMENTS_AT_A_TIME, self.progress)
        if failed and (self.strict or not self.data):
            raise ValueError(list_failures(failed, count))
        if failed:
            print(f"Left out: {list_failures(failed, count)}", file=sys.stderr)
        self.aligned = True

    def contents(self) -> list[list[str]]:
        """The cases by the content of their files, see :func:`monai_lcs.pipeline.run_definition.content_of_case`."""
        return [content_of_case(case) for case in self.sources]

    def __len__(self) -> int:
        self.align()
        return len(self.data)

    def _transform(self, index: int) -> Any:
        self.align()
        return super()._transform(index)


def _attempt(
    step: Callable[[Any], Any], items: Sequence[Any], what: str, workers: int, progress: bool
) -> tuple[list[Any], list[str]]:
    """The results of a step for all items, and the messages of those that failed."""

    def attempt(item: Any) -> Any:
        try:
            return step(item)
        except (ValueError, OSError) as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        bar = tqdm(pool.map(attempt, items), what, len(items), unit="case", disable=not progress)
        results = list(bar)
    failed = [str(result) for result in results if isinstance(result, Exception)]
    return [result for result in results if not isinstance(result, Exception)], failed


def say_missing_labels(atlas: Atlas, *datasets: PreparedDataset) -> None:
    """Say in one line which labels of the cases the atlas lacks: they are neither trained nor scored.

    Args:
        atlas: the given one.
        datasets: those of a training.
    """
    if rank() > 0:
        return
    held = {id for dataset in datasets for case in dataset.data for id in present_labels(case["label"])}
    missing = sorted(held.difference(atlas.ids))
    if missing:
        names = [f"{id} ({atlas.table[id].name})" if id in atlas.table else str(id) for id in missing]
        said = f"Note: the atlas lacks {len(missing)} of the {len(held)} labels of the cases, which are not trained:"
        print(f"{said} {shorten_names(names, most=8)}.", file=sys.stderr)
