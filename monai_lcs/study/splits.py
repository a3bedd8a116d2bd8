"""Splits the cases of a study into training, validation and testing, by sections and folds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

__all__ = ["N_FOLDS", "folds_by_position", "folds_of_items", "has_own_section", "section_to_read", "select_fold"]

Case: TypeAlias = dict[str, Any]
"""A case by its keys: ``"image"``, ``"label"``, ``"case"``, ``"label_groups"``."""

N_FOLDS = 5
"""Number of folds for cases that come without fold numbers of their own."""


def folds_by_position(n: int) -> list[int]:
    """Deals ``n`` cases out to :data:`N_FOLDS` folds, in turn.

    Example:
        >>> folds_by_position(7)
        [0, 1, 2, 3, 4, 0, 1]
    """
    return [i % N_FOLDS for i in range(n)]


def section_to_read(sections: Collection[str], section: str, fold: int | None) -> str:
    """Names the section of a datalist that holds the cases of ``"training"``, ``"validation"`` or ``"testing"``.

    Testing cases may be in a section ``"test"``. Validation cases are among those of ``"training"`` if there is no
    section for them, or if a fold is requested.

    Example:
        >>> section_to_read(["training", "test"], "testing", None), section_to_read(["training"], "validation", None)
        ('test', 'training')
    """
    if section == "testing" and section not in sections:
        return "test"
    if section == "validation" and (section not in sections or fold is not None):
        return "training"
    return section


def has_own_section(sections: Collection[str], found: str, fold: int | None) -> bool:
    """Tells whether all cases of the section ``found`` belong together, so that no fold is taken out of it.

    Example:
        >>> has_own_section(["training", "validation"], "training", None), has_own_section(["training"], "training", 0)
        (True, False)
    """
    return found != "training" or (fold is None and "validation" in sections)


def folds_of_items(items: Sequence[Mapping[str, Any]], source: str) -> list[Any]:
    """Returns the ``"fold"`` of each item, or :func:`folds_by_position` if no item has one.

    Args:
        items: items of a section of a datalist.
        source: what an error message calls the section.

    Raises:
        ValueError: if some items have a fold and some do not.

    Example:
        >>> folds_of_items([{"fold": 3}, {"fold": 1}], "a.json"), folds_of_items([{}, {}], "a.json")
        ([3, 1], [0, 1])
    """
    folds = [item.get("fold") for item in items]
    wrong = [number for number in folds if not (number is None or type(number) in (int, str))]
    if wrong:
        raise ValueError(f'The "fold" of each item of {source} must be a number, got {str(wrong[0])[:60]}.')
    if None not in folds:
        return folds
    if any(number is not None for number in folds):
        without = str(items[folds.index(None)])[:150]
        raise ValueError(f'Some items of {source} have a "fold" and some do not: {without}.')
    return folds_by_position(len(items))


def select_fold(cases: Sequence[Case], folds: Sequence[Any], section: str, fold: int | None, source: str) -> list[Case]:
    """Returns the validation cases, which are those of ``fold``, or the training cases, which are the others.

    Args:
        cases: all cases.
        folds: the fold of each case.
        section: ``"validation"`` or ``"training"``.
        fold: the validation fold; None means 0.
        source: what an error message calls the origin of the cases.

    Raises:
        ValueError: if no case has that fold, or all have it and none is left to train on.

    Example:
        >>> select_fold([{"case": "ann"}, {"case": "bo"}], [0, 1], "training", 0, "a.json")
        [{'case': 'bo'}]
    """
    fold = 0 if fold is None else fold
    if fold not in folds:
        raise ValueError(f"`fold` must be one of {sorted(set(folds), key=str)[:20]}, which {source} has, got {fold}.")
    if section == "training" and set(folds) == {fold}:
        raise ValueError(
            f"No case of {source} is left to train on: fold {fold} is for validation and has all of them, {len(cases)}."
        )
    return [case for case, number in zip(cases, folds, strict=True) if (number == fold) == (section == "validation")]
