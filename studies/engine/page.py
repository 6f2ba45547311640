"""The report as one page that stands alone: no script, no font, no picture from anywhere; it opens from a mail.

    Findings -> sections: verdicts, table, differences, effects, decision, curves, texts, provenance -> page ->
    report.html

A caller may add sections of its own (a search adds its trials): `page(findings, [*sections(findings, ...), mine])`.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from studies.engine import figures
from studies.engine.compare import Comparison
from studies.engine.figures import Line, Span, band, grid
from studies.engine.findings import Findings
from studies.engine.real_texts import REAL, real_row, remark
from studies.engine.report import ARROWS, caption, effects_table, sentences, spell
from studies.engine.study import Metric
from studies.engine.style import CSS
from trainables.config import flat

LinkTo = Callable[[str], str | None]    # an MLflow run's id -> where a browser finds it
SIDE = ("lr", "grad_norm", "examples_per_second", "tokens_per_second")     # curves of machinery, not of learning


@dataclass(frozen=True)
class Section:
    """A part of the page.  `html` is trusted: whoever writes it escapes what is in it.  An empty one is left out."""

    title: str
    html: str
    note: str = ""


def unlinked(run: str) -> str | None:
    """Where nobody serves the runs."""
    return None


def sections(findings: Findings, runs: Mapping[str, str] | None = None, link: LinkTo = unlinked) -> list[Section]:
    """What the ledger has to say.  `runs`: a cell's key -> its MLflow run."""
    return [verdicts(findings), numbers(findings), differences(findings), effects(findings), decision(findings),
            *learning(findings), texts(findings), provenance(findings, runs or {}, link)]


def page(findings: Findings, parts: Iterable[Section]) -> str:
    """The whole page."""
    plan, said = findings.plan, sentences(findings)
    over = (f"<b>{escape(plan.study.name)}</b> · {escape(plan.scale)} · data {escape(plan.data)} · "
            f"{len(plan.arms)} arms · {_cells(findings)}")
    return leaf(f"{plan.study.question} · {plan.study.name}", over, plan.study.question, parts,
                f"Expected: {plan.study.expectation}" if plan.study.expectation else "",
                typeset(said[0]) if said else "Nothing has finished yet.")


def leaf(title: str, over: str, heading: str, parts: Iterable[Section], expected: str, answer: str) -> str:
    """A page of sections under a heading.  `over`, above it, and `answer`, beneath it, are HTML; the rest is text."""
    head = (f'<div class="over">{over}</div><h1>{escape(heading)}</h1>'
            + (f'<p class="expected">{escape(expected)}</p>' if expected else "") + f'<p class="answer">{answer}</p>')
    return document(title, head, parts)


def document(title: str, head: str, parts: Iterable[Section]) -> str:
    """A page of sections beneath a head, which is trusted html."""
    shown = [part for part in parts if part.html]
    names = {part.title: re.sub(r"[^a-z0-9]+", "-", part.title.lower()) for part in shown}
    body = "".join(f'<section id="{names[part.title]}"><h2>{escape(part.title)}</h2>'
                   + (f'<p class="note">{escape(part.note)}</p>' if part.note else "") + part.html + "</section>\n"
                   for part in shown)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body><main>\n<header>{head}"
        + "<nav>" + "".join(f'<a href="#{names[part.title]}">{escape(part.title)}</a>' for part in shown)
        + "</nav></header>\n" + body + "<footer>Palimpsest</footer></main></body></html>\n")


def _cells(findings: Findings) -> str:
    done = sum(findings.done(arm) for arm in findings.plan.arms)
    return f"{done} of {len(findings.plan.cells)} cells done"


def typeset(text: str) -> str:
    """Escaped text whose negative numbers have a minus, not a hyphen."""
    return re.sub(r"(?<![\w.])-(?=[\d.])", "−", escape(text))


def swatch(number: int) -> str:
    return f'<i class="swatch" style="background:{figures.colour(number)}"></i>'


def badge(verdict: str) -> str:
    return f'<span class="badge {verdict}">{verdict}</span>'


def table(columns: Sequence[str], rows: Iterable[Iterable[tuple[str, str]]]) -> str:
    """A table of (class, html) cells; on a phone each row is a card whose lines carry the column's name."""
    rows = [list(row) for row in rows]
    kinds = [kind for kind, _ in rows[0]] if rows else [""] * len(columns)
    head = "".join(f'<th scope="col" class="{"n" if kind.startswith("n") else ""}">{escape(name)}</th>'
                   for kind, name in zip(kinds, columns, strict=True))
    lines = "".join("<tr>" + "".join(
        f'<td class="{kind}" data-label="{escape(name)}">{f"<span>{text}</span>" if text else ""}</td>'
        for name, (kind, text) in zip(columns, row, strict=True)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


# ---------------------------------------------------------------- what was found


def verdicts(findings: Findings) -> Section:
    metric = findings.deciding
    if metric is None:
        return Section("Verdicts", "")
    arms = [arm for arm in findings.others if findings.done(arm)]
    compared = findings.compared(metric)
    items = [f"<li>{badge(compared[arm].verdict)}<span>{typeset(sentence)}</span></li>"
             for arm, sentence in zip(arms, sentences(findings)[1:], strict=False)]
    note = f"By {metric.metric}, against {findings.plan.base}." + (
        f"  A difference within ±{metric.margin:g} does not matter." if metric.margin else "")
    return Section("Verdicts", f'<ul class="verdicts">{"".join(items)}</ul>' if items else "", note)


def numbers(findings: Findings) -> Section:
    plan = findings.plan
    columns = ["arm", "verdict", *(metric.metric + ARROWS[type(metric).__name__] for metric in findings.shown), "n",
               f"{plan.unit} h"]
    rows = []
    for number, arm in enumerate(plan.arms):
        differs = "base" if arm == plan.base else plan.differs(arm)
        name = f"{swatch(number)}{escape(arm)}<small>{escape(differs)}</small>"
        against = findings.compared(findings.deciding).get(arm) if findings.deciding else None
        judged = badge(against.verdict) if against else ""
        if note := findings.note(arm):
            name += f'<small class="worse">{escape(note)}</small>'
        if far := remark(findings, arm):
            name += f"<small>{escape(far)}</small>"
        rows.append([("arm", name), ("", judged), *(_value(findings, arm, metric) for metric in findings.shown),
                     ("n", str(findings.done(arm))), ("n", f"{findings.hours(arm):.2g}")])
    if real := real_row(findings):
        rows.append([("arm real", REAL), ("real", ""), *(("n real", typeset(value)) for value in real), ("real", ""),
                     ("real", "")])
    said = caption(findings)
    return Section("Numbers", table(columns, rows), said[0].upper() + said[1:] + ".")


def _value(findings: Findings, arm: str, metric: Metric) -> tuple[str, str]:
    text = typeset(spell(findings.mean(arm, metric.metric)))
    best = metric == findings.deciding and arm == findings.best()
    if arm != findings.plan.base and (found := findings.compared(metric)[arm]).difference.mean is not None:
        text += f'<small class="{found.verdict}">Δ {typeset(spell(found.difference, sign=True))}</small>'
    return "n best" if best else "n", text


def differences(findings: Findings) -> Section:
    """A forest plot for each metric."""
    drawn = {}
    for metric in findings.shown:
        spans = [_span(arm, found) for arm, found in findings.compared(metric).items()
                 if found.difference.mean is not None]
        title = metric.metric + ARROWS[type(metric).__name__]
        drawn[title] = figures.forest(spans, metric.margin, f"difference to {findings.plan.base}")
    note = ("Paired differences to the base with intervals that hold at every look, for all arms together, with 95 %.  "
            "Shaded: the margin." if findings.plan.rule else
            "Paired differences to the base with their 95 % intervals; colours are verdicts after the correction over "
            "the arms, so an interval may leave zero out and the arm be open.  Shaded: the margin.")
    return Section("Differences", grid(drawn) if any(drawn.values()) else "", note)


def _span(name: str, found: Comparison) -> Span:
    assert found.difference.mean is not None
    return Span(name, found.difference.mean, found.difference.low, found.difference.high, found.verdict,
                f"{spell(found.difference, sign=True)}, {found.verdict}")


def effects(findings: Findings) -> Section:
    """Main effects and interactions of a factorial study."""
    columns, rows = effects_table(findings)
    metric = findings.deciding
    if not rows or metric is None:
        return Section("Effects of the factors", "")
    html = table(columns, [[("arm", escape(row[0])), ("", escape(row[1])), ("n", typeset(row[2])),
                            ("n", escape(row[3])), ("n", badge(row[4]))] for row in rows])
    spans = [_span(found.name, found.comparison) for found in findings.effects(metric)
             if found.comparison.difference.mean is not None]
    html += grid({f"{metric.metric}{ARROWS[type(metric).__name__]}": figures.forest(spans, metric.margin, "effect")})
    lines = findings.anova(metric)
    if lines:
        html += "<details><summary>Analysis of variance, seeds as subjects</summary>" + table(
            ["factor", "F", "degrees of freedom", "p"],
            [[("arm", escape(" x ".join(line.factors))), ("n", f"{line.f:.3g}"),
              ("n", f"{line.df[0]:g}, {line.df[1]:g}"), ("n", f"{line.p:.2g}")] for line in lines]) + "</details>"
    return Section("Effects of the factors", html, (
        "Main effect: the level against the factor's first level, averaged over the other factors.  Interaction: what "
        "two levels do together beyond the sum of what each does alone.  "
        + ("The intervals hold at every look, for all of them together, with 95 %." if findings.plan.rule else
           "Holm's correction over all of them.")))


def decision(findings: Findings) -> Section:
    """Where each arm stands under --decide."""
    found = findings.decided()
    if not found or findings.plan.rule is None:
        return Section("Decision", "")
    rows = [[("arm", escape(arm)), ("n", badge(stand.verdict)), ("n", stand.state), ("n", str(stand.looks)),
             ("" if stand.reason else "none", escape(stand.reason))] for arm, stand in found.items()]
    return Section("Decision", table(["arm", "verdict", "state", "pairs", "why"], rows), (
        f"Seeds were added, up to {findings.plan.rule.most}, until an arm was decided or hopeless.  The intervals hold "
        "at every look, for all arms together, with 95 %."))


def learning(findings: Findings) -> list[Section]:
    """Learning curves, seeds as a band; those of machinery are folded away."""
    found = findings.curves()
    arms = list(findings.plan.arms)
    named = [metric.metric for metric in findings.plan.study.report]
    order = sorted(found, key=lambda name: (
        name not in named, not name.startswith("valid/"), name != "train/loss", name))
    drawn = {}
    for name in order:
        lines = [Line(arm, band(found[name][arm].values()), arms.index(arm)) for arm in arms if arm in found[name]]
        if max((len(line.points) for line in lines), default=0) > 2:
            drawn[name] = figures.curves(lines, "step", log=name.endswith(("loss", "nll")))
    if not drawn:
        return []
    legend = '<div class="legend">' + "".join(
        f"<span>{swatch(number)}{escape(arm)}</span>"
        for number, arm in enumerate(arms)) + "</div>"
    aside = {name: figure for name, figure in drawn.items() if name.rpartition("/")[2] in SIDE}
    main = {name: figure for name, figure in drawn.items() if name not in aside}
    html = legend + grid(main) + (
        f"<details><summary>{', '.join(aside)}</summary>{grid(aside)}</details>" if aside else "")
    return [Section("Learning curves", html, (
        "Mean over seeds; the band spans all of them.  Losses of arms in different spaces are not comparable."))]


def texts(findings: Findings, count: int = 5) -> Section:
    """What each arm writes, side by side, beside real texts."""
    def article(title: str, some: Sequence[str], kind: str = "") -> str:
        return (f'<article class="{kind}"><h3>{title}</h3>'
                + "".join(f"<p>{escape(text) or '<i>(empty)</i>'}</p>" for text in some[:count]) + "</article>")

    cards = [article(f"{swatch(number)}{escape(arm)}", some)
             for number, arm in enumerate(findings.plan.arms) if (some := findings.texts(arm))]
    if not cards:
        return Section("Texts", "")
    real = article("real texts", findings.real(), "real") if findings.real() else ""
    return Section("Texts", f'<div class="texts">{"".join(cards)}{real}</div>',
                   "The first texts of each arm's first seed, not chosen; and the first of the test split.")


# ---------------------------------------------------------------- where it comes from


def provenance(findings: Findings, runs: Mapping[str, str], link: LinkTo) -> Section:
    """The commits, hosts and times behind the cells, each cell with its key and its run, and the base's config."""
    plan, records = findings.plan, list(findings.records.values())
    budget = plan.budget
    lines = {
        "code": ", ".join(sorted({record.get("commit", "unknown")[:12] + " with changes" * bool(record.get("dirty"))
                                  for record in records})),
        "ran on": ", ".join(sorted({record["host"] for record in records if "host" in record})),
        "from, to": _when(records),
        "a trial holds": plan.holds,
        "spent": budget.spell(findings.spent(), plan.unit)
                 + (f" of {budget.hours:g}" if budget.hours is not None else ""),
        "to run it again": plan.again or f"python {plan.study.program} --scale {plan.scale}",
    }
    html = "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>"
                            for name, text in lines.items() if text) + "</dl>"
    cells = [[("arm", escape(cell.name)), ("n", escape(findings.status(cell))),
              ("n", f"<code>{cell.key}</code>"),
              ("n", f"{findings.records[cell.key]['seconds']:.0f}" if cell.key in findings.records else ""),
              ("n", _run(runs.get(cell.key), link))] for cell in plan.cells]
    html += "<details><summary>All cells</summary>" + table(["cell", "status", "key", "seconds", "MLflow run"], cells)
    html += "</details>"
    config = [[("arm", f"<code>{escape(path)}</code>"), ("n", f"<code>{escape(str(value))}</code>")]
              for path, value in flat(plan.arms[plan.base]).items()]
    html += f"<details><summary>The config of {escape(plan.base)}</summary>{table(['path', 'value'], config)}</details>"
    return Section("Provenance", html)


def _run(run: str | None, link: LinkTo) -> str:
    if run is None:
        return ""
    url = link(run)
    text = f"<code>{escape(run[:12])}</code>"
    return f'<a href="{escape(url)}" rel="noreferrer">{text}</a>' if url else text


def _when(records: Sequence[Mapping]) -> str:
    times = [record[end] for record in records for end in ("started", "ended") if end in record]
    if not times:
        return ""
    first, last = (time.strftime("%Y-%m-%d %H:%M", time.gmtime(at)) for at in (min(times), max(times)))
    return f"{first} – {last} UTC"
