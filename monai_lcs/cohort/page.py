"""The page of a cohort: one HTML file beside the results, which opens from disk, without a server or a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from urllib.parse import quote

import numpy as np
import pandas as pd

from monai_lcs.cohort.outliers import FENCE, FEWEST
from monai_lcs.cohort.records import Record
from monai_lcs.cohort.summary import Summary

__all__ = ["page"]

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #222; }
table { border-collapse: collapse; } td, th { padding: .15em .8em .15em 0; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; } h2 { margin-top: 2em; }
article { border-top: 1px solid #ccc; padding: .8em 0; content-visibility: auto; contain-intrinsic-size: auto 380px; }
article:target { background: #fff6d6; } article h3 { margin: 0; } article p { margin: .2em 0; }
article img { width: 100%; } .remark, .failed { color: #a01800; } .note { color: #666; }
svg { background: #f6f6f6; } svg .range { fill: #b8c7dc; } svg .line { stroke: #456; } svg .outlier { fill: #c62; }
"""

_WIDTH, _HEIGHT, _PAD = 420, 22, 8


def page(summary: Summary) -> str:
    """Returns the page: failures, distributions of volumes with outliers marked, cases with pictures, the worst first.

    Pictures are files beside it, which a browser reads as they come into view; outliers link to their cases.

    Example:
        >>> text = page(Summary([Record("ann", "ann.nii", "failed", 3, error="no <voxels>")]))
        >>> "0 of 1 cases are finished" in text, "no &lt;voxels&gt;" in text
        (True, True)
    """
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Cohort</title>',
        f"<style>{_STYLE}</style></head><body>",
        _counts(summary),
        _failures(summary.failed),
        _distributions(summary.volumes, summary.outliers),
        _cases(summary),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _counts(summary: Summary) -> str:
    """How many cases are finished, failed and open, and where the tables are."""
    lines = [f"{len(summary.done)} of {len(summary.records)} cases are finished"]
    if summary.failed:
        lines.append(f'<span class="failed">{len(summary.failed)} failed</span>')
    if summary.open:
        names = ", ".join(escape(one.case) for one in summary.open[:10]) + (" ..." if len(summary.open) > 10 else "")
        lines.append(f"{len(summary.open)} are open: {names}")
    said = sum(bool(lines_of) for lines_of in summary.remarks.values())
    look = f"<p>{said} finished cases have remarks.</p>" if said else ""
    sections = {"failures": summary.failed, "volumes": summary.done, "cases": summary.done}
    links = " ".join(f'<a href="#{name}">{name}</a>' for name, there in sections.items() if there)
    to = f'<p>On this page: {links}. All values: <a href="cohort.tsv">cohort.tsv</a>.</p>'
    return f"<h1>Cohort</h1>\n<p>{'; '.join(lines)}.</p>{look}\n{to}"


def _failures(failed: Sequence[Record]) -> str:
    """A table of the cases that failed, with their sentences."""
    if not failed:
        return ""
    rows = [
        f'<tr><td>{escape(one.case)}</td><td class="number">{one.attempts}</td>'
        f'<td class="failed">{escape(one.error)}</td></tr>'
        for one in failed
    ]
    head = '<tr><th>case</th><th class="number">attempts</th><th>what is wrong</th></tr>'
    return f'<h2 id="failures">Failures</h2>\n<table>{head}\n{_joined(rows)}\n</table>'


# ---- volumes


def _distributions(volumes: pd.DataFrame, outliers: pd.DataFrame) -> str:
    """A row for each label: the range of its volumes, the middle half, the median, and the outliers."""
    if volumes.empty:
        return ""
    rows = [_distribution(str(label), volumes[label], outliers[label]) for label in volumes.columns]
    note = (
        "From the smallest to the largest volume, 0 at the left edge; box: the middle half of the cases; bar: median. "
        f"Marked: volumes more than {FENCE} robust standard deviations from the median, of labels with at least "
        f"{FEWEST} volumes."
    )
    head = (
        '<tr><th>label</th><th class="number">median, mm<sup>3</sup></th><th></th><th class="number">outliers</th></tr>'
    )
    return f'<h2 id="volumes">Volumes</h2>\n<p class="note">{note}</p>\n<table>{head}\n{_joined(rows)}\n</table>'


def _distribution(label: str, volumes: pd.Series, outliers: pd.Series) -> str:
    """The row of a label."""
    values = volumes.dropna()
    low, first, median, third, high = np.percentile(values, (0, 25, 50, 75, 100)) if len(values) else [0.0] * 5
    scale = (_WIDTH - 2 * _PAD) / (high or 1)

    def x(mm3: float) -> str:
        return f"{_PAD + mm3 * scale:.1f}"

    middle = _HEIGHT / 2
    dots = [
        f'<a href="#{_anchor(case)}"><circle class="outlier" cx="{x(volumes[case])}" cy="{middle}" r="4">'
        f"<title>{escape(case)}: {volumes[case]:.0f} mm3</title></circle></a>"
        for case in map(str, outliers.index[outliers])
    ]
    drawing = (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="volumes of {escape(label)}">'
        f'<line class="line" x1="{x(low)}" x2="{x(high)}" y1="{middle}" y2="{middle}"/>'
        f'<rect class="range" x="{x(first)}" width="{(third - first) * scale:.1f}" y="4" height="{_HEIGHT - 8}"/>'
        f'<line class="line" x1="{x(median)}" x2="{x(median)}" y1="3" y2="{_HEIGHT - 3}"/>{"".join(dots)}</svg>'
    )
    count = len(dots) or ""
    numbers = f'<td class="number">{median:.0f}</td><td>{drawing}</td><td class="number">{count}</td>'
    return f"<tr><td>{escape(label)}</td>{numbers}</tr>"


# ---- cases


def _cases(summary: Summary) -> str:
    """The finished cases, the worst first."""
    if not summary.done:
        return ""
    note = "The most remarks first, then the lowest overlap of the foregrounds of scan and aligned atlas."
    articles = [_case(record, summary.remarks[record.case]) for record in summary.worst_first]
    return f'<h2 id="cases">Cases, the worst first</h2>\n<p class="note">{note}</p>\n{_joined(articles)}'


def _case(record: Record, remarks: Sequence[str]) -> str:
    """A case with its quality, its remarks and its picture."""
    overlap = record.quality.get("overlap")
    quality = f"overlap {overlap:.3f}, " if isinstance(overlap, float) else ""
    said = _joined(f'<p class="remark">{escape(remark)}</p>' for remark in remarks)
    picture = '<p class="note">No picture was drawn.</p>'
    if record.picture:
        picture = f'<img loading="lazy" src="{quote(record.picture)}" alt="the labels of {escape(record.case)}">'
    heading = f'<h3>{escape(record.case)}</h3><p class="note">{quality}{record.seconds:g} s, {escape(record.image)}</p>'
    return f'<article id="{_anchor(record.case)}">{heading}{said}{picture}</article>'


def _anchor(case: str) -> str:
    """What links lead to."""
    return f"case-{quote(case, safe='')}"


def _joined(lines: Iterable[str]) -> str:
    return "\n".join(lines)
