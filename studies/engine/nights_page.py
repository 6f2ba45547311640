"""The history of nights as one page that stands alone: every metric of every arm, night by night, and what was said.

    nights -> for each study: a curve per metric (mean over seeds; the band is their 95 % interval), marks where a night
              did not pass; and the nights in a table -> history.html
"""

import statistics
from collections.abc import Sequence
from html import escape

from studies.engine import figures
from studies.engine.compare import interval
from studies.engine.figures import Line, Mark, grid
from studies.engine.ledger import Record
from studies.engine.nights import History
from studies.engine.page import Section, document, swatch, table, typeset
from studies.engine.regression import SPEED
from studies.engine.watched import Nightly, Watched

SHOWN = 120                             # nights of a figure and a table
KINDS = {"pass": "better", "regressed": "worse", "failed": "worse", "inconclusive": "open"}      # the page's colours


def history_page(nightly: Nightly, history: History) -> str:
    """The whole page, for the studies that are watched now."""
    known = [(watched, history.nights(watched.name)[-SHOWN:]) for watched in nightly.studies]
    known = [(watched, nights) for watched, nights in known if nights]
    badges = "".join(f'<li>{_badge(nights[-1])}<span><b>{escape(watched.name)}</b>: {typeset(nights[-1]["why"])}'
                     f"</span></li>" for watched, nights in known)
    last = max((nights[-1] for _, nights in known), key=lambda night: night["at"], default=None)
    over = "no night yet" if last is None else (
        f"night of {last['night']} · commit {last['commit'][:12]} · {escape(last['host'])}")
    head = (f'<div class="over"><b>nightly</b> · {over}</div><h1>Does the code still do what it did?</h1>'
            f'<ul class="verdicts">{badges}</ul>')
    return document("Nightly history", head, [part for watched, nights in known for part in _study(watched, nights)])


def _study(watched: Watched, nights: Sequence[Record]) -> list[Section]:
    legend = '<div class="legend">' + "".join(
        f"<span>{swatch(number)}{escape(arm)}</span>" for number, arm in enumerate(watched.arms)) + "</div>"
    drawn = {}
    for metric, margin in watched.margins.items():
        arrow = " ↑" if watched.better(metric) > 0 else " ↓"
        drawn[f"{metric}{arrow}  margin {margin}"] = figures.curves(_lines(watched, nights, metric), "night",
                                                                    marks=_marks(nights))
    drawn[f"{SPEED} ↑"] = figures.curves(_lines(watched, nights, SPEED), "night", marks=_marks(nights))
    note = (f"Mean over the first {watched.seeds} seeds, which every night has, and its 95 % interval over them; "
            "in a comparison of nights they cancel.  A line across marks a night that did not pass.  "
            f"{watched.scale}, {', '.join(watched.arms)}"
            + (f", {', '.join(watched.assignments)}" if watched.assignments else "") + ".")
    rows = [[("arm", str(night["number"])), ("n", escape(night["night"])), ("", f"<code>{night['commit'][:12]}</code>"
             + (" with changes" if night["dirty"] else "")), ("", _badge(night)), ("", typeset(night["why"])),
             ("", "<br>".join(f"<code>{escape(suspect)}</code>" for suspect in night["suspects"][:8]))]
            for night in nights[::-1]]
    return [Section(watched.name, legend + grid(drawn), note),
            Section(f"{watched.name}: nights", table(["night", "date", "commit", "verdict", "why", "suspected"], rows))]


def _badge(night: Record) -> str:
    return f'<span class="badge {KINDS[night["verdict"]]}">{night["verdict"]}</span>'


def _marks(nights: Sequence[Record]) -> list[Mark]:
    return [Mark(night["number"], KINDS[night["verdict"]], f"night {night['number']}: {night['verdict']}")
            for night in nights if night["verdict"] != "pass"]


def _lines(watched: Watched, nights: Sequence[Record], metric: str) -> list[Line]:
    lines = []
    for number, arm in enumerate(watched.arms):
        points = []
        for night in nights:
            values = [cell["speed"] if metric == SPEED else cell["metrics"].get(metric)
                      for cell in night["cells"]
                      if cell["arm"] == arm and cell["status"] == "done" and cell["seed"] < watched.seeds]
            values = [value for value in values if value is not None]
            if values:
                found, mean = interval(values), statistics.fmean(values)
                low, high = (mean if end is None else end for end in (found.low, found.high))
                points.append((float(night["number"]), mean, low, high))
        lines.append(Line(arm, points, number))
    return lines
