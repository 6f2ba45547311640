"""The report's pages about a search, from search.json alone: no storage, no search library, no cluster.

    sections(folder) -> chosen points and doubts · slices · parallel coordinates · importances · front · curves · trials

A folder without a search has none of them.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from studies.engine import figures
from studies.engine.figures import HEIGHT, RIGHT, TOP, WIDTH, Line, colour, grid
from studies.engine.page import Section, swatch, table

Search = Mapping[str, Any]              # one arm's entry of search.json
LISTED = 200                            # trials that the page lists; search.json has them all
AXES = 7                                # of parallel coordinates, beside the value: more are not read


def sections(folder: Path) -> list[Section]:
    """What the search of a study has to say."""
    path = folder / "search.json"
    if not path.exists():
        return []
    searches = json.loads(path.read_text(encoding="utf-8"))
    return [chosen(searches), fronts(searches), slices(searches), parallel(searches), importances(searches),
            curves(searches), trials(searches)]


def chosen(searches: Mapping[str, Search]) -> Section:
    rows, doubts = [], []
    for number, (arm, search) in enumerate(searches.items()):
        states = ", ".join(f"{count} {state}" for state, count in search["states"].items())
        for first, place in enumerate(search["chosen"] or [None]):
            name = f"{swatch(number)}{escape(arm)}" + ("" if first else f"<small>{escape(states)}</small>")
            trial = search["trials"][place] if place is not None else None
            values = "<br>".join(f"{escape(m)} {_number(v)}" for m, v in trial["values"].items()) if trial else "–"
            point = "<br>".join(f"{escape(n)} = {_value(v)}" for n, v in trial["point"].items()) if trial else \
                "no point was finished; the arm stays as it is"
            rows.append([("arm", name), ("n", str(place) if trial else "–"), ("n", values), ("", point)])
        doubts += [f"<li>{escape(arm)}: {escape(warning)}</li>" for warning in search["warnings"]]
    first = next(iter(searches.values()))
    note = f"By {first['sampler']}, stopped early by {first['prune'] or 'nothing'}, on validation texts and with a " \
           "seed that the comparison does not use.  Remembered in " + first["storage"] + "."
    return Section("Search", table(["arm", "point", "value", "settings"], rows) +
                   (f'<ul>{"".join(doubts)}</ul>' if doubts else ""), note)


def fronts(searches: Mapping[str, Search]) -> Section:
    """Objectives against each other."""
    drawn = {}
    for number, (arm, search) in enumerate(searches.items()):
        goals = list(search["goals"])
        for i, one in enumerate(goals):
            for other in goals[i + 1:]:
                done = [t for t in search["trials"] if t["values"]]
                points = [(t["values"][one], t["values"][other], number, _said(t)) for t in done]
                corners = sorted((search["trials"][n]["values"][one], search["trials"][n]["values"][other])
                                 for n in search["front"])
                title = f"{other} by {one}" + (f" · {arm}" if len(searches) > 1 else "")
                line = _staircase(corners, search["goals"][one], search["goals"][other]) if len(goals) == 2 else ()
                drawn[title] = figures.scatter(points, _arrow(one, search), _arrow(other, search), front=line)
    return Section("Front", grid(drawn) if any(drawn.values()) else "",
                   "What nobody beats in every goal; each dot is a finished point.")


def slices(searches: Mapping[str, Search]) -> Section:
    """The first goal by each parameter, over the whole of its range."""
    drawn: dict[str, str] = {}
    for parameter in _parameters(searches):
        points, rug, known = [], [], []
        for number, (_, search) in enumerate(searches.items()):
            found = search["parameters"].get(parameter)
            if found is None:
                continue
            known.append(found)
            for trial in (t for t in search["trials"] if parameter in t["point"]):
                at = _place(trial["point"][parameter], found)
                if trial["values"]:
                    points.append((at, trial["values"][next(iter(search["goals"]))], number, _said(trial)))
                else:
                    rug.append((at, number, f"{trial['state']}: {_said(trial)}"))
        options = [str(name) for name in known[0]["options"] or ()]
        ends = None if options else (min(found["low"] for found in known), max(found["high"] for found in known))
        drawn[parameter] = figures.scatter(
            points, "", next(iter(next(iter(searches.values()))["goals"])), ends=ends, options=options, rug=rug,
            x_log=not options and any(found["log"] for found in known))
    return Section("Slices", grid(drawn) if any(drawn.values()) else "",
                   "The first goal by each parameter over the range that was searched: a dot is a finished point, a "
                   "tick on the axis one that was stopped or failed.")


def parallel(searches: Mapping[str, Search]) -> Section:
    """All parameters at once, best points darkest."""
    drawn = {}
    for arm, search in searches.items():
        goal, way = next(iter(search["goals"].items()))
        done = [t for t in search["trials"] if t["values"]]
        names = [name for name in search["parameters"] if all(name in t["point"] for t in done)]
        ranked = list(next(iter(search["importances"].values()), {}))
        names = sorted(names, key=lambda name: ranked.index(name) if name in ranked else len(ranked))[:AXES]
        if len(done) >= 3 and names:
            drawn[arm] = _coordinates(done, names, search, goal, way)
    return Section("Parallel coordinates", grid(drawn) if drawn else "",
                   "Each line is a finished point, the best third drawn strong; parameters by importance.")


def _coordinates(done: Sequence[Mapping], names: list[str], search: Search, goal: str, way: str) -> str:
    axes = [*names, goal]
    left, right, bottom = 26.0, WIDTH - RIGHT - 14, HEIGHT - 30
    xs = [left + (right - left) * i / (len(axes) - 1) for i in range(len(axes))]
    values = [t["values"][goal] for t in done]
    low, high = min(values), max(values)

    def share(trial: Mapping, axis: str) -> float:
        if axis == goal:
            return (trial["values"][goal] - low) / (high - low or 1.0)
        return _share(trial["point"][axis], search["parameters"][axis])

    order = sorted(done, key=lambda t: t["values"][goal], reverse=way == "least")        # the best are drawn last
    parts = []
    for place, trial in enumerate(order):
        strong = place >= len(order) * 2 / 3
        line = " ".join(f"{x:.1f},{bottom - (bottom - TOP) * share(trial, axis):.1f}"
                        for x, axis in zip(xs, axes, strict=True))
        style = f"stroke:{colour(1 if strong else 0)};opacity:{0.9 if strong else 0.22}"
        parts.append(f'<polyline class="line" style="{style}" points="{line}"><title>{escape(_said(trial))}</title>'
                     "</polyline>")
    for number, (x, axis) in enumerate(zip(xs, axes, strict=True)):
        short = figures.shorten(axis.rpartition(".")[2] if axis != goal else axis, 13)
        y = bottom + (13 if number % 2 == 0 else 24)
        parts.append(f'<line class="base" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>'
                     f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{escape(short)}<title>{escape(axis)}</title>'
                     "</text>")
    return figures.svg(parts, HEIGHT, f"parallel coordinates of {goal}")


def importances(searches: Mapping[str, Search]) -> Section:
    rows = []
    for number, (arm, search) in enumerate(searches.items()):
        for goal, shares in search["importances"].items():
            for name, share in shares.items():
                bar = f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" ' \
                      f'style="width:9em;height:.7em" aria-hidden="true"><rect x="0" y="0" ' \
                      f'width="{100 * share:.1f}" height="10" style="fill:{colour(number)}"/></svg>'
                rows.append([("arm", f"{swatch(number)}{escape(arm)}"), ("", escape(goal)), ("", escape(name)),
                             ("n", f"{share:.2f}"), ("", bar)])
    return Section("Importances", table(["arm", "goal", "parameter", "share", " "], rows) if rows else "",
                   "What of the spread of good values each parameter explains (PED-ANOVA); a conditional parameter "
                   "is judged by the points that have it.")


def curves(searches: Mapping[str, Search]) -> Section:
    """What was compared to stop points early."""
    drawn = {}
    for arm, search in searches.items():
        for place, metric in enumerate(search["pruned on"]):
            sign = -1 if metric["way"] == "most" else 1
            told = [(trial, [(float(step), sign * values[place]) for step, values in sorted(
                trial["curve"].items(), key=lambda item: int(item[0])) if values[place] is not None])
                for trial in search["trials"]]
            low, high = _bulk([y for _, points in told for _, y in points if math.isfinite(y)])
            lines = [Line(f"point {trial['number']}, {trial['state']}",
                          [(x, *[min(max(y, low), high)] * 3) for x, y in points if math.isfinite(y)],     # type: ignore
                          1 if trial["state"] == "done" else 0)
                     for trial, points in sorted(told, key=lambda one: one[0]["state"] == "done") if points]
            title = metric["metric"] + (f" · {arm}" if len(searches) > 1 else "")
            drawn[title] = figures.curves(lines, "step", log=metric["metric"].endswith("loss"))
    return Section("Curves of the search", grid(drawn) if any(drawn.values()) else "",
                   "Strong colour: points that ran to their end.  The others were stopped, or failed.  What lies far "
                   "outside is drawn at the edge.")


def _bulk(values: Sequence[float]) -> tuple[float, float]:
    """Between which ends curves are drawn: those of all, but for what would squeeze nine tenths of them."""
    if not values:
        return 0.0, 0.0
    order = sorted(values)
    inner = order[len(order) // 20], order[-1 - len(order) // 20]
    room = 2 * (inner[1] - inner[0])
    return max(order[0], inner[0] - room), min(order[-1], inner[1] + room)


def trials(searches: Mapping[str, Search]) -> Section:
    rows = []
    for number, (arm, search) in enumerate(searches.items()):
        for trial in search["trials"][:LISTED]:
            values = "<br>".join(f"{escape(m)} {_number(v)}" for m, v in trial["values"].items())
            state = escape(trial["state"]) + (f"<small>{escape(trial['reason'])}</small>" if trial["reason"] else "")
            rows.append([("arm", f"{swatch(number)}{escape(arm)} {trial['number']}"), ("", state), ("n", values),
                         ("", escape(", ".join(f"{n} = {_value(v)}" for n, v in trial["point"].items())))])
    return Section("Points", "<details><summary>every point that was tried</summary>"
                   + table(["point", "state", "value", "settings"], rows) + "</details>" if rows else "")


# ---------------------------------------------------------------- small things


def _parameters(searches: Mapping[str, Search]) -> Iterable[str]:
    return dict.fromkeys(name for search in searches.values() for name in search["parameters"])


def _place(value: Any, parameter: Mapping[str, Any]) -> float:
    """Where a value stands on an axis: a number at itself, an option at its place in the list."""
    return float(parameter["options"].index(value)) if parameter["options"] else float(value)


def _share(value: Any, parameter: Mapping[str, Any]) -> float:
    """Where a value stands between the ends of its axis, 0 to 1."""
    if parameter["options"]:
        return parameter["options"].index(value) / max(1, len(parameter["options"]) - 1)
    low, high = parameter["low"], parameter["high"]
    if parameter["log"]:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _staircase(points: Sequence[tuple[float, float]], one: str, other: str) -> list[tuple[float, float]]:
    """The front as the border of what it beats: steps through its points, from left to right."""
    line: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if line:
            line.append((x, line[-1][1]) if one == "least" else (line[-1][0], y))
        line.append((x, y))
    return line


def _arrow(metric: str, search: Search) -> str:
    return f"{metric} {'↓' if search['goals'][metric] == 'least' else '↑'}"


def _said(trial: Mapping[str, Any]) -> str:
    """What a pointer reads of a point."""
    values = ", ".join(f"{name} {_number(value)}" for name, value in trial["values"].items())
    return f"point {trial['number']}: {values}; " + ", ".join(f"{n} = {_value(v)}" for n, v in trial["point"].items())


def _number(value: float) -> str:
    return f"{value:.4g}"


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))
