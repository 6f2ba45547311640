"""The table for other programs: LaTeX for a paper (booktabs), CSV for a data frame."""

import csv
import io
import re

from studies.engine.compare import Comparison
from studies.engine.findings import Findings, better
from studies.engine.real_texts import REAL, real_row, real_value
from studies.engine.report import caption, spell
from studies.engine.study import Metric

SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "±": r"$\pm$",
           "Δ": r"$\Delta$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "…": r"\dots{}", "×": r"$\times$"} | {
           mark: f"\\{mark}" for mark in "&%$#_{}"}
MARKS = {"better": r"$^{+}$", "worse": r"$^{-}$", "differs": r"$^{\ast}$", "same": r"$^{=}$", "open": ""}


def tex(text: str) -> str:
    """Plain text, spelt for LaTeX."""
    return re.sub("|".join(map(re.escape, SPECIAL)), lambda found: SPECIAL[found[0]], text)


def latex(findings: Findings) -> str:
    r"""A table environment; needs \usepackage{booktabs}.  Arms are rows, metrics columns, marks the verdicts."""
    plan, shown = findings.plan, findings.shown
    arrows = {1: " ↑", -1: " ↓", 0: ""}
    head = ["", *(tex(metric.metric + arrows[better(metric)]) for metric in shown), "$n$"]
    lines = [r"% \usepackage{booktabs}", r"\begin{table}", r"\centering",
             r"\begin{tabular}{l" + "r" * len(shown) + "r}", r"\toprule", " & ".join(head) + r" \\", r"\midrule"]
    for arm in plan.arms:
        cells = [_cell(findings, arm, metric) for metric in shown]
        lines.append(" & ".join([tex(arm), *cells, str(findings.done(arm))]) + r" \\")
    if real := real_row(findings):
        lines += [r"\midrule", " & ".join([REAL, *map(tex, real), ""]) + r" \\"]
    legend = (f"{tex(plan.study.question)} {tex(caption(findings)[0].upper() + caption(findings)[1:])}. "
              rf"$+$, $-$: better, worse than {tex(plan.base)}; $=$: the same within the margin.")
    lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{legend}}}", rf"\label{{tab:{plan.study.name}}}",
              r"\end{table}"]
    return "\n".join(lines) + "\n"


def _cell(findings: Findings, arm: str, metric: Metric) -> str:
    mean = tex(spell(findings.mean(arm, metric.metric)))
    return mean if arm == findings.plan.base else mean + MARKS[findings.compared(metric)[arm].verdict]


FIELDS = ("arm", "metric", "better", "n", "mean", "low", "high", "real", "pairs", "difference",
          "difference_low", "difference_high", "p", "p_adjusted", "p_same", "margin", "effect", "verdict",
          "more_seeds", "hours")


def table_csv(findings: Findings) -> str:
    """One line an arm and metric; empty where a number is not known, or not finite."""
    text = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    for arm in findings.plan.arms:
        for metric in findings.shown:
            mean = findings.mean(arm, metric.metric)
            line = {"arm": arm, "metric": metric.metric, "better": ("less", "", "more")[better(metric) + 1],
                    "n": mean.n, "mean": mean.mean, "low": mean.low, "high": mean.high,
                    "real": real_value(findings, arm, metric.metric), "margin": metric.margin,
                    "hours": findings.hours(arm)}
            if arm != findings.plan.base:
                line |= _against(findings.compared(metric)[arm])
                line["more_seeds"] = findings.more(metric).get(arm)
            writer.writerow(line)
    return text.getvalue()


def _against(found: Comparison) -> dict[str, object]:
    return {"pairs": found.difference.n, "difference": found.difference.mean, "difference_low": found.difference.low,
            "difference_high": found.difference.high, "p": found.p, "p_adjusted": found.adjusted, "p_same": found.same,
            "effect": found.effect, "verdict": found.verdict}
