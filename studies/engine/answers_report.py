"""Answers for people and programs: one sentence a claim, a table, markdown, JSON, and a page in the house's style.

    answers --> sentence   "supported: Contextual encodings ... (-0.28 ± 0.09 in test/illegal, BERT - embeddings, ...)"
            --> table      for the terminal and markdown
            --> as_dict    claims.json: everything, with the keys of the cells behind each answer
            --> page       claims.html
"""

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

from rich.table import Table

from studies.engine import figures
from studies.engine.answers import Answer
from studies.engine.compare import Interval
from studies.engine.figures import Span, grid
from studies.engine.page import Section, leaf, table, typeset
from studies.engine.report import small, spell

SHADES = {"supported": "better", "refuted": "worse", "undecided": "open"}         # the page's colours
WORDS = {"less": "less", "more": "more", "same": "the same", "not more": "not more", "not less": "not less"}
QUESTION = "What of the papers holds here?"
MEANING = (
    "supported: the paired difference goes the way the claim says, beyond chance (paired t test, Holm's correction "
    "over all claims, 5 %); of a claim that two are the same, or one no worse, it lies within the margin (equivalence "
    "or non-inferiority test, Holm, 5 %).  refuted: it goes the other way, or is smaller than the margin, beyond "
    "chance.  undecided: these seeds say neither.  All this is said of this scale, these data and this code, and of no "
    "paper's own experiment.")
COLUMNS = ("claim", "paper", "asked", "difference", "n", "Holm p", "answer")


# ---------------------------------------------------------------- in words


def headline(answers: Sequence[Answer]) -> str:
    """How many are what."""
    counted = Counter(answer.verdict for answer in answers)
    scales = sorted({answer.claim.scale for answer in answers})
    return (f"{', '.join(f'{counted[name]} {name}' for name in SHADES)}, of {len(answers)} claims, at "
            f"{' and '.join(scales)} scale")


def sentence(answer: Answer) -> str:
    """The answer and its grounds."""
    claim, grounds = answer.claim, [f"{answer.difference.n} paired seeds"]
    if answer.adjusted is not None:
        grounds.append(f"Holm p {small(answer.adjusted)}")
    if answer.same is not None:
        grounds.append(f"within ±{claim.margin:g}: p {small(answer.same)}" if "not" not in claim.direction else
                       f"worse by less than {claim.margin:g}: p {small(answer.same)}")
    if answer.effect is not None:
        grounds.append(f"effect {answer.effect:.2g}")
    said = (f"{claim.says}: {answer.verdict}.  {claim.arm} - {claim.base} in {claim.asked}: "
            f"{spell(answer.difference, sign=True)} ({', '.join(grounds)}); claimed: {WORDS[claim.direction]}")
    if answer.more is not None:
        cost = f", {answer.hours:.2g} {answer.unit} hours," if answer.hours is not None else ""
        said += f"; about {answer.more} more seed{'s' if answer.more > 1 else ''}{cost} would decide it"
    return said + (f" [{answer.note}]" if answer.note else "") + "."


def _row(answer: Answer) -> list[str]:
    claim = answer.claim
    margin = f", margin {claim.margin:g}" if claim.margin else ""
    return [claim.says, claim.paper + (f": {claim.quoted}" if claim.quoted else ""),
            f"{claim.arm} - {claim.base} is {WORDS[claim.direction]} in {claim.asked}{margin}",
            spell(answer.difference, sign=True), str(answer.difference.n),
            "–" if answer.adjusted is None else small(answer.adjusted).removeprefix("= "), answer.verdict]


def rich_table(answers: Sequence[Answer]) -> Table:
    """For a terminal."""
    shown = Table(title=QUESTION, title_justify="left", show_lines=True)
    for number, name in enumerate(COLUMNS):
        shown.add_column(name, justify="right" if number in (3, 4, 5) else "left", overflow="fold",
                         no_wrap=number in (3, 6))
    for answer in answers:
        shown.add_row(*(cell.replace("[", "\\[") for cell in _row(answer)))
    return shown


def markdown(answers: Sequence[Answer], cost: Sequence[str]) -> str:
    """The whole report as markdown."""
    lines = [f"# {QUESTION}", "", f"{headline(answers)}.", "", "| " + " | ".join(COLUMNS) + " | cells |",
             "|" + "---|" * (len(COLUMNS) + 1)]
    for answer in answers:
        cells = ", ".join(f"{seed}: `{arm}` - `{base}`" for seed, arm, base in answer.pairs)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in (*_row(answer), cells or "–")) + " |")
    lines += ["", *(f"- {sentence(answer)}" for answer in answers), "", MEANING, "", *(f"- {line}" for line in cost)]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- for programs


def as_dict(answers: Sequence[Answer], commit: str) -> dict[str, Any]:
    """What claims.json says; numbers that are not known are null."""
    return {"commit": commit, "claims": [{
        "name": answer.claim.name, "says": answer.claim.says, "paper": answer.claim.paper,
        "quoted": answer.claim.quoted, "study": answer.claim.study, "scale": answer.claim.scale,
        "arm": answer.claim.arm, "base": answer.claim.base, "metric": answer.claim.metric,
        "at": answer.claim.at or None, "direction": answer.claim.direction, "margin": answer.claim.margin or None,
        "verdict": answer.verdict, "difference": _numbers(answer.difference), "pairs": answer.difference.n,
        "arm_mean": _numbers(answer.arm), "base_mean": _numbers(answer.base), "p": answer.p,
        "p_adjusted": answer.adjusted, "p_margin": answer.same, "effect": answer.effect, "more_seeds": answer.more,
        "cells": [{"seed": seed, "arm": arm, "base": base} for seed, arm, base in answer.pairs],
        "note": answer.note} for answer in answers]}


def _numbers(value: Interval) -> dict[str, float | None]:
    return {"mean": value.mean, "low": value.low, "high": value.high}


# ---------------------------------------------------------------- the page


def page(answers: Sequence[Answer], cost: Sequence[str], commit: str, again: str) -> str:
    """claims.html: what was found, the differences drawn, the cells behind them."""
    over = f"<b>claims</b> · {len(answers)} claims · {len({answer.claim.study for answer in answers})} studies"
    return leaf("What of the papers holds here? · claims", over, QUESTION,
                [verdicts(answers), differences(answers), grounds(answers), provenance(answers, cost, commit, again)],
                "Expected: what the papers say.", typeset(headline(answers) + "."))


def badge(verdict: str) -> str:
    return f'<span class="badge {SHADES[verdict]}">{verdict}</span>'


def verdicts(answers: Sequence[Answer]) -> Section:
    items = []
    for answer in answers:
        quoted = f": {answer.claim.quoted}" if answer.claim.quoted else ""
        paper = f'<p class="note">{escape(answer.claim.paper)}{typeset(quoted)}</p>'
        items.append(f"<li>{badge(answer.verdict)}<span>{typeset(sentence(answer))}{paper}</span></li>")
    return Section("Answers", f'<ul class="verdicts">{"".join(items)}</ul>' if items else "", MEANING)


def differences(answers: Sequence[Answer]) -> Section:
    """A forest plot for each metric and margin."""
    groups: dict[tuple[str, float], list[Span]] = {}
    for answer in answers:
        found, claim = answer.difference, answer.claim
        if found.mean is not None:
            groups.setdefault((claim.asked, claim.margin), []).append(Span(
                claim.name, found.mean, found.low, found.high, SHADES[answer.verdict],
                f"{claim.arm} - {claim.base}: {spell(found, sign=True)}, claimed {WORDS[claim.direction]}, "
                f"{answer.verdict}"))
    drawn = {asked + (f", margin ±{margin:g}" if margin else ""): figures.forest(spans, margin or None, "arm - base")
             for (asked, margin), spans in groups.items()}
    return Section("Differences", grid(drawn) if drawn else "", (
        "Paired differences, seed by seed, with their 95 % intervals; colours are answers after the correction over "
        "all claims, so an interval may leave zero out and the claim be undecided.  Shaded: the margin."))


def grounds(answers: Sequence[Answer]) -> Section:
    rows = [[("arm", f"{escape(answer.claim.name)}<small>{escape(answer.claim.asked)}</small>"),
             ("", badge(answer.verdict)),
             ("", f"{escape(answer.claim.arm)}<small>{typeset(spell(answer.arm))}</small>"),
             ("", f"{escape(answer.claim.base)}<small>{typeset(spell(answer.base))}</small>"),
             ("n", typeset(spell(answer.difference, sign=True))), ("n", WORDS[answer.claim.direction]),
             ("n", str(answer.difference.n)), ("n", _p(answer.adjusted)), ("n", _p(answer.same))] for answer in answers]
    columns = ["claim", "answer", "arm", "base", "arm - base", "claimed", "n", "Holm p", "margin p"]
    return Section("Numbers", table(columns, rows) if rows else "",
                   "Mean ± half of the 95 % interval over seeds (Student's t).")


def _p(value: float | None) -> str:
    return "–" if value is None else escape(small(value).removeprefix("= "))


def provenance(answers: Sequence[Answer], cost: Sequence[str], commit: str, again: str) -> Section:
    """The cells behind each answer, by their keys."""
    html = "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in {
        "code": commit[:12], "cost": "; ".join(cost), "to run it again": again}.items()) + "</dl>"
    rows = [[("arm", escape(answer.claim.name)), ("n", str(seed)),
             ("n", f"<code>{arm}</code><small>{escape(answer.claim.study)}: {escape(answer.claim.arm)}</small>"),
             ("n", f"<code>{base}</code><small>{escape(answer.claim.base)}</small>")]
            for answer in answers for seed, arm, base in answer.pairs]
    cells = table(["claim", "seed", "cell of the arm", "cell of the base"], rows) if rows else ""
    return Section("Provenance", html + f"<details><summary>The cells behind them</summary>{cells}</details>")
