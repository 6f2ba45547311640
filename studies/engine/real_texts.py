"""Real texts beside the arms: what they score in place of samples, and in what an arm's samples are far from them.

    a cell's metrics   {"test/judge_nll": 2.1, "test/judge_nll_real": 3.4, "test/illegal": .3, "test/illegal_real": 0}
      --> real_value   3.4                      one arm's, in one metric
      --> real_row     ["3.4", "0"]             all arms', the last row of every table
      --> remark       "far from real texts: illegal"        in the arm's note

Half of the metrics mean nothing alone: MAUVE and the Frechet distance depend on how many texts there are, and a judge's
nats per word below those of real texts are no praise, the texts are duller.
"""

from statistics import fmean

from studies.engine.findings import Findings
from trainables.evaluation.verdict import remarks

REAL = "real texts"
MOST = 2                                # metrics that a note has room for
SPLIT = "test/"                         # the one that tables report


def real_value(findings: Findings, arm: str, metric: str) -> float | None:
    """What real texts score in the metric, as the arm's cells that are done have it; None: it has no such value."""
    values = list(findings.values(arm, f"{metric}_real").values())
    return fmean(values) if values else None


def real_row(findings: Findings) -> list[str]:
    """What real texts score in each metric that is shown, from .. to where arms have other data; [] where unknown."""
    row = []
    for metric in findings.shown:
        known = [real_value(findings, arm, metric.metric) for arm in findings.plan.arms]
        values = [value for value in known if value is not None]
        ends = dict.fromkeys(f"{end(values):.4g}" for end in (min, max)) if values else ["–"]
        row.append(" .. ".join(ends))
    return row if set(row) - {"–"} else []


def remark(findings: Findings, arm: str) -> str:
    """The metrics that tell the arm's samples from real texts best, with their values where no column has them; ""
    where none does."""
    known = {name for cell in findings.cells(arm) for name in findings.records.get(cell.key, {}).get("metrics", ())}
    means = {name.removeprefix(SPLIT): mean for name in known if name.startswith(SPLIT)
             if (mean := findings.mean(arm, name).mean) is not None}
    shown = {metric.metric.removeprefix(SPLIT) for metric in findings.shown}
    far = [name if (name := said.partition(" ")[0]) in shown else said.replace(", real", " against")
           for said in remarks(means)[:MOST]]
    return f"far from real texts: {', '.join(far)}" if far else ""
