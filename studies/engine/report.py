"""The report: from the ledger alone, so that --report needs no cluster, no tracking server and no store.

    Findings (findings.py) -> outcome      what programs read: the plain dict behind --json
                           -> sentences    the answer, and one verdict an arm, in words
                           -> rich_table   for a terminal
                           -> files        table.md, table.tex, table.csv (formats.py), report.html (page.py)
"""

import json
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from studies.engine.compare import Comparison, Interval
from studies.engine.findings import Findings
from studies.engine.real_texts import REAL, real_row, real_value, remark
from studies.engine.study import Metric

__all__ = ["Findings", "as_json", "caption", "header", "markdown", "outcome", "rich_effects", "rich_table", "rows",
           "samples", "sentences", "spell"]

ARROWS = {"Minimise": " ↓", "Maximise": " ↑", "Watch": ""}


# ---------------------------------------------------------------- for programs


def outcome(findings: Findings, runs: Mapping[str, str], commit: str) -> dict[str, Any]:
    """The outcome for programs; numbers that are not finite are null.   commit: what is said while no cell has ended;
    else the cells' own, each once.

    A metric has "real", what real texts score, where that is known, and in an arm that is compared "against_base";
    "effects", "decision" and "budget" are there where the study has factors, --decide and --hours or --price.
    """
    plan = findings.plan
    commits = dict.fromkeys(record["commit"] for record in findings.records.values() if "commit" in record)
    result: dict[str, Any] = {
        "study": plan.study.name, "commit": ", ".join(commits) or commit, "scale": plan.scale, "data": plan.data,
        "arms": [{
            "name": arm, "differs": plan.differs(arm),
            "n": findings.done(arm),
            "metrics": {metric.metric: _metric(findings, arm, metric) for metric in findings.shown},
            "cells": [{"seed": cell.seed, "trial": cell.key, "status": findings.status(cell),
                       "mlflow_run_id": runs.get(cell.key)}
                      | {name: findings.records[cell.key][name] for name in ("commit",)
                         if name in findings.records.get(cell.key, {})} for cell in findings.cells(arm)],
        } for arm in plan.arms],
    }
    if findings.factors:
        result["effects"] = {metric.metric: [
            {"factors": list(effect.factors), "levels": list(effect.levels)} | _comparison(effect.comparison)
            for effect in findings.effects(metric)] for metric in findings.shown}
        result["anova"] = {metric.metric: [
            {"factors": list(line.factors), "f": line.f, "df": list(line.df), "p": line.p}
            for line in findings.anova(metric)] for metric in findings.shown}
    if plan.rule is not None and findings.deciding is not None:
        result["decision"] = {"metric": findings.deciding.metric, "most": plan.rule.most, "arms": {
            arm: {"state": found.state, "verdict": found.verdict, "pairs": found.looks, "reason": found.reason}
            for arm, found in findings.decided().items()}}
    if plan.budget.hours is not None or plan.budget.price is not None:
        open_hours = {arm: findings.answer_hours(arm) for arm in findings.others}
        result["budget"] = {"unit": f"{plan.unit} hours", "hours": plan.budget.hours, "price": plan.budget.price,
                            "spent": findings.spent(), "answer": open_hours,
                            "not_run": [cell.name for cell in plan.cells if findings.status(cell) == "waiting"]}
    return result


def _numbers(value: Interval) -> dict[str, float | None]:
    return {"mean": value.mean, "low": value.low, "high": value.high}


def _metric(findings: Findings, arm: str, metric: Metric) -> dict[str, Any]:
    numbers: dict[str, Any] = _numbers(findings.mean(arm, metric.metric))
    if (real := real_value(findings, arm, metric.metric)) is not None:
        numbers["real"] = real
    if arm != findings.plan.base:
        numbers["against_base"] = _comparison(findings.compared(metric)[arm]) | {
            "margin": metric.margin, "more_seeds": findings.more(metric).get(arm)}
    return numbers


def _comparison(found: Comparison) -> dict[str, Any]:
    return _numbers(found.difference) | {
        "pairs": found.difference.n, "p": found.p, "p_adjusted": found.adjusted, "p_same": found.same,
        "effect": found.effect, "verdict": found.verdict}


def as_json(result: dict[str, Any]) -> str:
    """Strict JSON: a NaN that slipped through is an error here, not in the program that reads it."""
    return json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


# ---------------------------------------------------------------- in words


def sentences(findings: Findings) -> list[str]:
    """The answer, then one verdict an arm, by the deciding metric; nothing while nothing is done."""
    metric = findings.deciding
    if metric is None or findings.best() is None:
        return []
    said = [answer(findings, metric)]
    return said + [verdict(findings, arm, metric) for arm in findings.others if findings.done(arm)]


def answer(findings: Findings, metric: Metric) -> str:
    """The best arm, and how the others stand to the base."""
    best = findings.best()
    assert best is not None
    said = f"{best} has the best mean {metric.metric}, {spell(findings.mean(best, metric.metric))}."
    by_verdict: dict[str, list[str]] = {}
    for arm, found in findings.compared(metric).items():
        by_verdict.setdefault(found.verdict, []).append(arm)
    words = {"better": "better", "worse": "worse", "same": "the same within the margin", "open": "not decided"}
    parts = [f"{word}: {', '.join(by_verdict[name])}" for name, word in words.items() if name in by_verdict]
    return said + (f"  Against {findings.plan.base}: {'; '.join(parts)}." if parts else "")


def verdict(findings: Findings, arm: str, metric: Metric) -> str:
    """One arm against the base, in one metric; what an answer would still cost, where there is none."""
    found, base = findings.compared(metric)[arm], findings.plan.base
    size = spell(found.difference, sign=True)
    paid = [f"{found.difference.n} paired seeds" if found.difference.n != 1 else "1 paired seed"]
    if found.adjusted is not None:
        kind = "anytime p" if findings.plan.rule else "Holm p"
        paid.append(f"{kind} {small(found.adjusted)}")
    if found.effect is not None:
        paid.append(f"effect {found.effect:.2g}")
    if lost := findings.lost(arm, metric.metric):
        paid.append(f"{lost} more gave no pair")
    grounds = f"({', '.join(paid)})"
    if found.verdict in ("better", "worse"):
        return f"{arm} is {found.verdict} than {base} in {metric.metric}: {size} {grounds}."
    if found.verdict == "differs":
        return f"{arm} differs from {base} in {metric.metric}: {size} {grounds}."
    if found.verdict == "same":
        return f"{arm} and {base} are the same in {metric.metric}, within ±{metric.margin:g}: {size} {grounds}."
    if found.difference.mean is None:
        return f"{arm} against {base} in {metric.metric}: nothing to compare {grounds}."
    return f"{arm} against {base} in {metric.metric} is not decided: {size} {grounds}{_what_it_takes(findings, arm)}"


def _what_it_takes(findings: Findings, arm: str) -> str:
    """The rest of the sentence about an arm that is open."""
    stands = findings.decided().get(arm)
    if stands is not None and stands.state == "hopeless":
        return f"; given up: {stands.reason}."
    more = findings.more(findings.deciding).get(arm) if findings.deciding else None
    if more is None:
        return "."
    hours = findings.answer_hours(arm)
    cost = f", {findings.plan.budget.spell(hours, findings.plan.unit)}," if hours is not None else ""
    return (f"; about {more} more seed{'s' if more > 1 else ''}{cost} would decide it, "
            "were it what it looks like.")


def small(p: float) -> str:
    """A p-value to two digits."""
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}"


def caption(findings: Findings) -> str:
    """What the table's numbers are."""
    said = "mean ± half of the 95 % interval over seeds (Student's t); Δ: paired difference to the base, seed by seed"
    metric = findings.deciding
    if findings.plan.rule is not None:
        said += ("; Δ's interval and the verdicts hold however often one looks (anytime-valid, 95 % for all arms "
                 "together)")
    elif metric and findings.others:
        said += f"; verdict: paired t test in {metric.metric}, Holm's correction over the arms, 5 %"
    if metric and metric.margin and findings.others:
        said += f"; same: the difference lies within ±{metric.margin:g}, the margin, beyond chance"
    if once := findings.trained_once():
        said += (f"; {' and '.join(once)} {'is' if len(once) == 1 else 'are'} trained once for all seeds, and what "
                 "another such training would change is not in the intervals")
    if real_row(findings):
        said += f"; {REAL}: other held-out texts, scored as the samples are"
    return said


def spell(value: Interval, sign: bool = False) -> str:
    """0.412 ± 0.013, to the digits that the interval allows."""
    if value.mean is None:
        return "–" if value.n == 0 else "not finite"
    plus = "+" if sign else ""
    if value.half is None:
        return f"{value.mean:{plus}.4g}"
    if value.half == 0:
        return f"{value.mean:{plus}.4g} ± 0"
    digits = next((d for d in range(8) if round(value.half, d + 1) >= 10.0 ** (1 - d)), 7)
    return f"{value.mean:{plus}.{digits}f} ± {value.half:.{digits}f}"


# ---------------------------------------------------------------- tables


def header(findings: Findings) -> list[str]:
    """The table's columns: an arrow says which way is better."""
    metrics = [metric.metric + ARROWS[type(metric).__name__] for metric in findings.shown]
    return ["arm", "differs from base", *metrics, "verdict", "n", f"{findings.plan.unit} h", "note"]


def rows(findings: Findings) -> list[list[str]]:
    """One row an arm: mean ± half of the 95 % interval, and beneath it the paired difference to the base; and at last
    what real texts score, where metrics say it."""
    plan, table = findings.plan, []
    for arm in plan.arms:
        cells, judged = [], ""
        for metric in findings.shown:
            text = spell(findings.mean(arm, metric.metric))
            if arm != plan.base and (found := findings.compared(metric)[arm]).difference.mean is not None:
                text += f"\nΔ {spell(found.difference, sign=True)}"
                judged = found.verdict if metric == findings.deciding else judged
            cells.append(text)
        name = f"{arm} (base)" if arm == plan.base else arm
        table.append([name, plan.differs(arm), *cells, judged, str(findings.done(arm)), f"{findings.hours(arm):.2g}",
                      "; ".join(filter(None, (findings.note(arm), remark(findings, arm))))])
    real = real_row(findings)
    return [*table, [REAL, "–", *real, "", "", "", ""]] if real else table


def rich_table(findings: Findings) -> Table:
    """The table for a terminal, which is narrow: arms are columns where there are more metrics than arms."""
    columns, lines = header(findings), rows(findings)
    wide = len(findings.shown) > max(len(findings.plan.arms), 3)
    table = Table(title=findings.plan.study.question, title_justify="left", show_lines=True)
    if wide:
        keep = [number for number, name in enumerate(columns) if number and any(row[number] for row in lines)]
        columns, lines = ["", *(row[0] for row in lines)], [
            [columns[number], *(row[number] for row in lines)] for number in keep]
    for number, name in enumerate(columns):
        words = number == 0 or not wide and name in ("differs from base", "verdict", "note")
        table.add_column(name, justify="left" if words else "right", overflow="fold",
                         min_width=7 if name == "verdict" else None)
    for row in lines:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    return table


def effects_table(findings: Findings) -> tuple[list[str], list[list[str]]]:
    """Header and rows of main effects and interactions in the deciding metric; no rows without factors."""
    metric = findings.deciding
    if metric is None or not findings.factors:
        return [], []
    lines = [["main effect" if len(effect.factors) == 1 else "interaction", effect.name,
              spell(effect.comparison.difference, sign=True),
              "–" if effect.comparison.adjusted is None else small(effect.comparison.adjusted).removeprefix("= "),
              effect.comparison.verdict] for effect in findings.effects(metric)]
    kind = "anytime p" if findings.plan.rule else "Holm p"
    return ["effect", "level", f"in {metric.metric}", kind, "verdict"], lines


def rich_effects(findings: Findings) -> Table | None:
    """Main effects and interactions for a terminal; None without factors."""
    columns, lines = effects_table(findings)
    if not lines:
        return None
    table = Table(title="effects of the factors", title_justify="left")
    for name in columns:
        table.add_column(name)
    for row in lines:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    return table


def markdown(findings: Findings) -> str:
    """The whole report as markdown."""
    plan = findings.plan
    lines = [f"# {plan.study.name}", "", plan.study.question, ""]
    lines += [f"Expected: {plan.study.expectation}", ""] if plan.study.expectation else []
    lines += [f"Scale {plan.scale}, data {plan.data}.", ""]
    lines += [*_markdown_table(header(findings), rows(findings)), "", caption(findings), ""]
    lines += [f"- {sentence}" for sentence in sentences(findings)]
    columns, effects = effects_table(findings)
    lines += ["", *_markdown_table(columns, effects)] if effects else []
    best, texts, real = samples(findings)
    if best:
        lines += ["", f"## {best} writes", "", *(f"> {text}\n" for text in texts), "## Real texts", "",
                  *(f"> {text}\n" for text in real)]
    return "\n".join(lines)


def _markdown_table(columns: list[str], table: list[list[str]]) -> list[str]:
    lines = [" | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in row) for row in (columns, *table)]
    return [f"| {lines[0]} |", "|" + "---|" * len(columns), *(f"| {line} |" for line in lines[1:])]


def samples(findings: Findings, count: int = 4) -> tuple[str | None, list[str], list[str]]:
    """The best arm, a few of its texts, and a few real ones."""
    best = findings.best()
    return (best, findings.texts(best)[:count], findings.real()[:count]) if best else (None, [], [])
