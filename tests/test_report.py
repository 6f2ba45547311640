"""Reports from a ledger: every format says the same numbers; factors, looking and budgets; nothing needs a cluster."""

import csv
import io
import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest
from fake_trial import Square, Training, recipe
from rich.console import Console

from studies.engine.budget import Budget
from studies.engine.decide import FIRST, Rule
from studies.engine.findings import Findings
from studies.engine.formats import FIELDS, latex, table_csv, tex
from studies.engine.ledger import Ledger, Outbox
from studies.engine.options import with_margins
from studies.engine.page import numbers
from studies.engine.plan import Plan
from studies.engine.planning import make_plan
from studies.engine.report import as_json, caption, markdown, outcome, rich_effects, rich_table, rows, sentences
from studies.engine.rounds import affordable, first_seeds, next_seeds, pursue, remember, remembered, saved
from studies.engine.study import Arm, BadInput, Maximise, Minimise, Resources, Scale, Study, Watch
from trainables.config import ConfigError
from trainables.stages import Store

ARMS = {"plain": Arm(), "fancy": Arm({"system.kind": "fancy"}), "odd & co_": Arm({"system.kind": "odd"})}
REPORT = (Minimise("test/error", margin=0.1), Maximise("test/quality"), Watch("threads"))


def study(**changes: Any) -> Study:
    known: dict[str, Any] = dict(name="toy", question="Which <kind>?", expectation="None & all.", report=REPORT,
                                 arms=ARMS, scales={"laptop": Scale(recipe)})
    return Study(**known | changes)


def plan(folder, what: Study | None = None, **options: Any) -> Plan:
    what = what or study()
    known: dict[str, Any] = dict(scale="laptop", why="asked for", ledger=Ledger(folder / "toy"), seeds=4,
                                 store=Store(folder / "stages"), resources=Resources(), arms=what.arms)
    return make_plan(what, **known | options)


def write(folder, cell, error: float, status: str = "done", hours: float = 0.5) -> None:
    """A cell's record and its curve."""
    ledger = Ledger(folder / "toy")
    metrics = {"test/error": error, "test/quality": 3.0 - error, "threads": 1.0} if status == "done" else {}
    ledger.write_cell({
        "key": cell.key, "arm": cell.arm, "seed": cell.seed, "scale": "laptop", "status": status, "metrics": metrics,
        "reason": "" if status == "done" else "training diverged at step 3", "real": ["a real text"], "stages": [],
        "samples": [f"{cell.arm} <b>wrote</b> this"] if status == "done" else [], "seconds": 3600 * hours,
        "cpu_hours": hours, "gpu_hours": 0.0, "started": 1.7e9, "ended": 1.7e9 + 60, "commit": "abc", "host": "here"})
    outbox = Outbox(ledger.outbox(cell.key))
    outbox.start(name=cell.name)
    for step in range(1, 9):
        outbox.record(step, {"train/loss": 1 / step + 0.01 * cell.seed, "valid/loss": error / step, "train/lr": 0.1})
    outbox.end(status, 60.0)
    outbox.close()


WOBBLE = [0.02, -0.01, 0.03, -0.02, 0.01, 0.0, 0.02, -0.03]
ERROR = {"plain": 1.0, "fancy": 2.0, "odd & co_": 1.0}


def wobble(cell) -> float:
    """Noise that no two arms share."""
    return WOBBLE[(3 * cell.seed + sum(map(ord, cell.arm))) % 8]


def error(cell) -> float:
    """fancy is worse by 1, odd is the same: within a margin of 0.1."""
    return ERROR[cell.arm] + cell.seed / 10 + wobble(cell)


@pytest.fixture
def findings(tmp_path) -> Findings:
    for cell in plan(tmp_path).cells:
        write(tmp_path, cell, error(cell), "diverged" if (cell.arm, cell.seed) == ("odd & co_", 3) else "done")
    return Findings(plan(tmp_path), Ledger(tmp_path / "toy"))


# ---------------------------------------------------------------- what is said


def test_the_caption_says_the_margin_and_what_is_not_in_the_intervals(findings):
    said = caption(findings)
    assert "same: the difference lies within ±0.1, the margin" in said
    assert "table is trained once for all seeds" in said and "not in the intervals" in said
    assert "margin" not in caption(Findings(plan(findings.ledger.folder.parent, study(report=(
        Minimise("test/error"),))), findings.ledger))


def test_a_plan_says_what_the_answer_costs_where_the_spread_is_known(tmp_path):
    report = (Minimise("test/error", margin=0.01),)
    what = study(report=report, arms={name: ARMS[name] for name in ("plain", "odd & co_")})
    assert Findings(plan(tmp_path, what), Ledger(tmp_path / "toy")).answer_cost() == ""
    for cell in plan(tmp_path, what).cells:
        write(tmp_path, cell, error(cell))
    known = Findings(plan(tmp_path, what), Ledger(tmp_path / "toy"))
    more, hours = known.more(report[0])["odd & co_"], known.answer_hours("odd & co_")
    said = known.answer_cost()
    assert f"about {more} more seeds of odd & co_, {hours:.2g} CPU hours (in test/error, with 80 % power)" == said
    assert f"- the answer: {said}" in replace(known.plan, answer=said).lines()


def test_a_margin_that_is_typed_makes_equivalence_a_verdict(tmp_path):
    what = with_margins(study(report=(Minimise("test/error"), Watch("threads"))), ["test/error=0.1"])
    assert what.report == (Minimise("test/error", margin=0.1), Watch("threads"))
    for cell in plan(tmp_path, what).cells:
        write(tmp_path, cell, error(cell))
    found = Findings(plan(tmp_path, what), Ledger(tmp_path / "toy"))
    assert found.compared(what.report[0])["odd & co_"].verdict == "same"


def test_the_commit_is_that_of_the_cells(findings):
    assert outcome(findings, {}, "now")["commit"] == "abc"
    (cell, *_) = findings.plan.cells
    findings.records[cell.key]["commit"] = "def"
    said = outcome(findings, {}, "now")
    assert said["commit"] == "def, abc" and said["arms"][0]["cells"][0]["commit"] == "def"


def test_every_arm_has_its_sentence(findings):
    answer, fancy, odd = sentences(findings)
    assert "best mean test/error" in answer and "worse: fancy" in answer and "the same within the margin: odd" in answer
    assert re.match(r"fancy is worse than plain in test/error: \+\d\.\d+ ± 0\.\d+ \(4 paired seeds, Holm p ", fancy)
    assert odd.startswith("odd & co_ and plain are the same in test/error, within ±0.1")
    assert "1 more gave no pair" in odd


def test_an_open_arm_says_what_an_answer_costs(tmp_path):
    small = study(report=(Minimise("test/error"),))
    for cell in plan(tmp_path, small, seeds=3).cells:
        write(tmp_path, cell, 1.0 + (cell.arm == "fancy") * [0.5, -0.1, 0.4][cell.seed])
    found = Findings(plan(tmp_path, small, seeds=3, budget=Budget(price=10.0)), Ledger(tmp_path / "toy"))
    (fancy,) = [line for line in sentences(found) if line.startswith("fancy against")]
    more = found.more(REPORT[0])["fancy"]
    assert found.answer_hours("fancy") == pytest.approx(more * (0.5 + 0.5))       # its own seeds, and the base's
    assert f"about {more} more seeds, {more} CPU hours ({more * 10:.2f} in money), would decide it" in fancy


def test_before_anything_is_done_nothing_is_claimed(tmp_path):
    found = Findings(plan(tmp_path), Ledger(tmp_path / "toy"))
    assert sentences(found) == []
    assert "not run" in markdown(found) and latex(found) and table_csv(found)
    assert all(arm["n"] == 0 for arm in outcome(found, {}, "c")["arms"])


def test_the_outcome_has_the_comparison_of_every_metric(findings):
    result = json.loads(as_json(outcome(findings, {}, "abc")))
    assert set(result) == {"study", "commit", "scale", "data", "arms"}
    plain, fancy, odd = result["arms"]
    assert set(plain["metrics"]["test/error"]) == {"mean", "low", "high"}        # the base is compared with nobody
    against = fancy["metrics"]["test/error"]["against_base"]
    assert against["verdict"] == "worse" and against["pairs"] == 4 and against["margin"] == 0.1
    assert against["low"] < against["mean"] < against["high"] and against["p_adjusted"] >= against["p"]
    assert fancy["metrics"]["test/quality"]["against_base"]["verdict"] == "worse"
    assert odd["metrics"]["test/error"]["against_base"]["verdict"] == "same" and odd["n"] == 3
    assert odd["metrics"]["threads"]["against_base"]["verdict"] == "open"


def test_all_formats_say_the_same_numbers(findings):
    lines = list(csv.DictReader(io.StringIO(table_csv(findings))))
    assert len(lines) == 9 and tuple(lines[0]) == FIELDS
    for line in lines:
        arm, metric = line["arm"], next(m for m in REPORT if m.metric == line["metric"])
        mean = findings.mean(arm, metric.metric).mean
        assert mean is not None and float(line["mean"]) == mean
        if arm == "plain":
            assert line["verdict"] == line["difference"] == ""
        else:
            found = findings.compared(metric)[arm]
            assert line["verdict"] == found.verdict and float(line["difference"]) == found.difference.mean
    text, table = markdown(findings), latex(findings)
    for verdict in ("worse", "same"):
        assert f"| {verdict} |" in text
    shown = f"{findings.mean('fancy', 'test/error').mean:.2f}"
    assert shown in text and shown in table


def with_real(findings: Findings, **real: float) -> Findings:
    """The same, where cells that are done know what real texts score: error_fancy is that of the arm fancy."""
    for cell in findings.plan.cells:
        if findings.status(cell) == "done":
            findings.records[cell.key]["metrics"] |= {
                f"test/{name.partition('_')[0]}_real": value for name, value in real.items()
                if name.partition("_")[2] in ("", cell.arm)}
    return findings


def test_what_real_texts_score_stands_beneath_the_arms_in_all_formats(findings):
    assert "real texts |" not in markdown(findings) and "real texts" not in caption(findings) + latex(findings)
    assert all(line["real"] == "" for line in csv.DictReader(io.StringIO(table_csv(findings))))
    found = with_real(findings, error=0.5, quality_plain=2.0, quality_fancy=2.5)
    assert rows(found)[-1] == ["real texts", "–", "0.5", "2 .. 2.5", "–", "", "", "", ""]      # fancy has other data
    assert len(rows(found)) == 4 and "| real texts | – | 0.5 | 2 .. 2.5 | – |" in markdown(found)
    assert "real texts: other held-out texts" in caption(found)
    body = latex(found).split(r"\midrule")[2].split(r"\bottomrule")[0].strip()
    assert body == r"real texts & 0.5 & 2 .. 2.5 & -- &  \\"
    real = {(line["arm"], line["metric"]): line["real"] for line in csv.DictReader(io.StringIO(table_csv(found)))}
    assert real["fancy", "test/quality"] == "2.5" and real["odd & co_", "test/quality"] == ""
    plain, fancy, odd = json.loads(as_json(outcome(found, {}, "abc")))["arms"]
    assert plain["metrics"]["test/error"]["real"] == 0.5 and fancy["metrics"]["test/quality"]["real"] == 2.5
    assert "real" not in odd["metrics"]["test/quality"] and "real" not in plain["metrics"]["threads"]
    html = numbers(found).html
    assert ">real texts<" in html and ">2 .. 2.5<" in html
    shown = Console(width=200, file=io.StringIO())
    shown.print(rich_table(found))
    assert "2 .. 2.5" in shown.file.getvalue()                                         # type: ignore[attr-defined]


def test_a_note_says_in_what_an_arm_is_far_from_real_texts(tmp_path):
    known = study(report=(Minimise("test/judge_nll"), Watch("threads")))
    for cell in plan(tmp_path, known).cells:
        write(tmp_path, cell, 1.0)
    found = Findings(plan(tmp_path, known), Ledger(tmp_path / "toy"))
    for cell in found.plan.cells:            # plain is dull: the judge likes it, and it copies; the others are as real
        dull = cell.arm == "plain"
        found.records[cell.key]["metrics"] |= {
            "test/judge_nll": 2.0 + wobble(cell) if dull else 4.0, "test/judge_nll_real": 4.0,
            "test/copied": 0.9 if dull else 0.1, "test/copied_real": 0.1}
    notes = [row[-1] for row in rows(found)]
    assert notes == ["far from real texts: copied 0.9 against 0.1, judge_nll", "", "", ""]
    assert "far from real texts: copied 0.9 against 0.1, judge_nll" in numbers(found).html


def test_latex_is_well_formed(findings):
    table = latex(findings)
    body = table.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == 3 and all(line.count(" & ") == 4 and line.endswith(r" \\") for line in body)
    assert r"odd \& co\_ &" in table and r"$^{-}$" in table and r"$^{=}$" in table
    assert table.count("{tabular}") == 2 and table.count(r"\begin") == table.count(r"\end")
    assert not re.search(r"[±Δ↓↑–]", table) and not re.search(r"(?<!\\)[&%#_](?= ?[a-z])", table.split(r"\toprule")[0])
    assert tex(r"50 % of a_b \ {x} ~ ^") == r"50 \% of a\_b \textbackslash{} \{x\} \textasciitilde{} \textasciicircum{}"


def test_a_terminal_table_with_many_metrics_lies_on_its_side(findings):
    assert len(rich_table(findings).columns) == 2 + 3 + 4
    many = study(report=(*REPORT, *(Watch(f"m{i}") for i in range(6))))
    found = Findings(plan(findings.ledger.folder.parent, many), findings.ledger)
    for cell in found.plan.cells:
        found.records[cell.key]["metrics"] |= {f"m{i}": 1.0 for i in range(6)} if found.status(cell) == "done" else {}
    assert [column.header for column in rich_table(found).columns] == ["", "plain (base)", "fancy", "odd & co_"]


# ---------------------------------------------------------------- the study's new fields


@pytest.mark.parametrize("wrong", [
    lambda: Minimise("m", margin=0.0), lambda: Maximise("m", margin=-1.0), lambda: Watch("m", margin=math.inf),
    lambda: study(factors={"system.kind": {"a": "plain", "b": "fancy"}}),                # arms and factors
    lambda: study(arms={}, factors={"system.kind": {"a": "plain"}}),                     # one level is no factor
    lambda: study(arms={}, factors={"system.kind": {"a + b": "plain", "c": "fancy"}}),
])
def test_margins_and_factors_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError):
        wrong()


FACTORS = {"system.kind": {"plain": "plain", "fancy": "fancy"},
           "shape": {"linear": Arm(), "square": Arm(laptop={"system.shape": Square()})}}


def test_factors_make_arms():
    made = study(arms={}, factors=FACTORS)
    assert list(made.arms) == ["plain + linear", "plain + square", "fancy + linear", "fancy + square"]
    assert made.base == "plain + linear" and made.levels("fancy + square") == ("fancy", "square")
    trial = made.trial("laptop", "fancy + square")
    assert trial.system.kind == "fancy" and trial.system.shape == Square()
    with pytest.raises(ConfigError, match="factor 'second' changes it, and another factor changes system.kind"):
        study(arms={}, factors={"system.kind": FACTORS["system.kind"],
                                "second": {"x": Arm({"system.kind": "odd"}), "y": Arm({"system.kind": "plain"})}})


def test_a_factorial_study_reports_its_effects(tmp_path):
    made = study(arms={}, factors=FACTORS)
    for cell in plan(tmp_path, made).cells:
        kind, shape = made.levels(cell.arm)
        size = 1.0 + (kind == "fancy") * 0.5 + (shape == "square") * 2.0
        write(tmp_path, cell, size + wobble(cell))
    found = Findings(plan(tmp_path, made), Ledger(tmp_path / "toy"))
    by_name = {effect.name: effect.comparison for effect in found.effects(REPORT[0])}
    assert by_name["fancy"].verdict == by_name["square"].verdict == "worse"
    assert by_name["square"].difference.mean == pytest.approx(2.0, abs=0.05)
    assert by_name["fancy x square"].difference.mean == pytest.approx(0.0, abs=0.06)
    result = outcome(found, {}, "c")
    assert len(result["effects"]["test/error"]) == 3 and len(result["anova"]["test/error"]) == 3
    assert "| main effect | square |" in markdown(found) and rich_effects(found) is not None
    looked = Findings(plan(tmp_path, made, rule=Rule(12)), Ledger(tmp_path / "toy"))
    by_look = {effect.name: effect.comparison for effect in looked.effects(REPORT[0])}
    assert by_look["square"].verdict == "worse" and by_look["square"].same is None     # by anytime-valid intervals
    assert by_look["square"].difference.half > by_name["square"].difference.half       # type: ignore[operator]
    assert looked.anova(REPORT[0]) == [] and "| anytime p |" in markdown(looked) and "Holm" not in markdown(looked)
    part = Findings(plan(tmp_path, made, arms=["plain + linear", "fancy + linear"]), Ledger(tmp_path / "toy"))
    assert part.effects(REPORT[0]) == [] and rich_effects(part) is None               # half a design has no effects


# ---------------------------------------------------------------- rounds


class World:
    """Somewhere that plans can be run: a cell takes half an hour, and errs as `of` says."""

    def __init__(self, folder, of=error, what: Study | None = None, **asked: Any):
        self.folder, self.of, self.what, self.asked = folder, of, what or study(report=(Minimise("test/error"),)), asked
        self.ledger, self.ran, self.said = Ledger(folder / "toy"), [], []

    def again(self, seeds=None) -> Plan:
        rule = self.asked.get("rule")
        start = first_seeds(self.ledger, "laptop", list(self.what.arms), rule, False) if rule else 2
        return plan(self.folder, self.what, seeds=seeds or start, **self.asked)

    def go(self, todo: Plan) -> None:
        for cell in todo.missing:
            self.ran.append(cell.name)
            value = self.of(cell)
            write(self.folder, cell, value, "diverged" if math.isnan(value) else "done")

    def pursue(self, concurrent: int = 2) -> Findings:
        return Findings(pursue(self.again, self.go, self.ledger, concurrent, self.said.append), self.ledger)


def test_seeds_are_added_where_they_are_needed(tmp_path):
    world = World(tmp_path, rule=Rule(12))
    found = world.pursue()
    states = found.decided()
    assert states["fancy"].state == "decided" and states["fancy"].verdict == "worse"
    assert states["odd & co_"].state == "hopeless"                                    # no margin, no difference
    assert found.done("fancy") < found.done("odd & co_") == found.done("plain") <= 12
    assert len(world.ran) == len(set(world.ran))
    assert world.ran[:3] == ["plain seed 0", "fancy seed 0", "odd & co_ seed 0"]
    first, *_ = saved(found)
    fixed = 12 * 3 * 0.5
    assert f"{len(world.ran)} cells took {len(world.ran) / 2:.2g} CPU hours" in first
    assert f"take {fixed:.2g} CPU hours" in first
    assert f"{fixed - len(world.ran) / 2:.2g} CPU hours saved" in first
    again = World(tmp_path, rule=Rule(12))
    assert again.pursue().decided() == states and again.ran == []                     # the same command runs nothing
    rule, seeds = remembered(world.ledger, "laptop") or (None, {})
    assert rule == Rule(12) and seeds == {arm: found.done(arm) for arm in ARMS}
    assert remembered(world.ledger, "paper") is None


def test_seeds_that_looking_added_stay_known_until_they_are_fixed(tmp_path):
    """A run of some arms, or of the first seeds, or at another scale, does not make of a decision a fixed design."""
    world = World(tmp_path, rule=Rule(12))
    world.pursue()
    seeds = remembered(world.ledger, "laptop")[1]           # type: ignore[index]
    most = max(seeds.values())
    for fixed in (plan(tmp_path, seeds=3), plan(tmp_path, seeds=most, arms=["plain", "fancy"])):
        remember(world.ledger, fixed, {})
        assert remembered(world.ledger, "laptop") == (Rule(12), seeds)
    remember(world.ledger, plan(tmp_path, seeds=2, arms=["plain", "fancy"], rule=Rule(12)), {"plain": 2, "fancy": 2})
    assert remembered(world.ledger, "laptop") == (Rule(12), seeds | {"plain": 2, "fancy": 2})
    remember(world.ledger, plan(tmp_path, seeds=most), {})
    assert remembered(world.ledger, "laptop") is None


def test_a_margin_lets_arms_be_the_same(tmp_path):
    found = World(tmp_path, what=study(), rule=Rule(20)).pursue()
    assert {arm: each.verdict for arm, each in found.decided().items()} == {"fancy": "worse", "odd & co_": "same"}
    assert "anytime p" in sentences(found)[1] and "Decision" not in sentences(found)[0]
    assert outcome(found, {}, "c")["decision"]["arms"]["fancy"]["state"] == "decided"


def test_a_killed_round_goes_on(tmp_path):
    whole = World(tmp_path / "whole", rule=Rule(12))
    whole.pursue()

    class Killed(Exception):
        pass

    world = World(tmp_path / "cut", rule=Rule(12))
    plain = world.go

    def dies(todo: Plan) -> None:
        plain(todo.only(todo.missing[:2]))
        raise Killed

    world.go = dies
    for _ in range(3):
        with pytest.raises(Killed):
            world.pursue()
    world.go = plain
    world.pursue()
    assert sorted(world.ran) == sorted(whole.ran)


def test_an_arm_that_diverges_is_given_up(tmp_path):
    found = World(tmp_path, lambda cell: math.nan if cell.arm == "fancy" else error(cell), rule=Rule(12)).pursue()
    assert found.decided()["fancy"].state == "hopeless" and len(found.cells("fancy")) == FIRST


def test_a_busy_cluster_gets_several_seeds_at_once(tmp_path):
    world = World(tmp_path, rule=Rule(12))
    world.go(world.again())
    found = Findings(world.again(), world.ledger)
    seeds = dict.fromkeys(ARMS, FIRST)
    assert next_seeds(found, seeds, 1)["odd & co_"] == FIRST + 1
    assert next_seeds(found, seeds, 100)["odd & co_"] == 12                           # and never more than allowed
    assert next_seeds(found, seeds, 100)["plain"] == 12


def test_a_budget_is_kept(tmp_path):
    world = World(tmp_path, budget=Budget(hours=1.6))
    found = world.pursue()
    assert found.spent() == pytest.approx(1.5) and len(world.ran) == 3                # a fourth cell would not fit
    assert world.said[-1].startswith("1.5 CPU hours are spent of 1.6; not started: plain seed 1")
    assert outcome(found, {}, "c")["budget"]["not_run"] == [cell.name for cell in found.plan.missing]
    assert len(found.plan.missing) == 3
    with pytest.raises(BadInput, match="not one of 3 cells fits"):
        World(tmp_path, budget=Budget(hours=1.6)).pursue()                            # the same command spends no more
    more = World(tmp_path, budget=Budget(hours=2.0))
    more.pursue()
    assert len(more.ran) == 1


def test_unknown_costs_are_tried_a_few_at_a_time(tmp_path):
    world = World(tmp_path, budget=Budget(hours=100.0))
    found = Findings(world.again(), world.ledger)
    todo = list(found.plan.missing)
    assert affordable(found, todo, 2) == todo[:2]
    world.go(found.plan.only(todo[:2]))
    found = Findings(world.again(), world.ledger)
    assert affordable(found, list(found.plan.missing), 2) == list(found.plan.missing)    # known, and cheap


def test_a_price_is_said_with_the_plan(tmp_path):
    for cell in plan(tmp_path, seeds=1).cells:
        write(tmp_path, cell, 1.0)
    todo = plan(tmp_path, seeds=2, budget=Budget(price=4.0))
    assert "1.5 CPU hours (6.00 in money)" in todo.expectation()


def test_seeds_may_differ_between_arms(tmp_path):
    todo = plan(tmp_path, seeds={"plain": 3, "fancy": 1, "odd & co_": 2})
    assert [sum(cell.arm == arm for cell in todo.cells) for arm in ARMS] == [3, 1, 2]
    assert "3 arms x 1 to 3 seeds = 6 cells" in "\n".join(todo.lines())


def test_a_plan_of_some_cells_makes_their_stages_only(tmp_path):
    todo = plan(tmp_path, seeds=2)
    fancy = [cell for cell in todo.missing if cell.arm == "fancy"]
    some = todo.only(fancy)
    assert list(some.missing) == fancy and len(some.shared) < len(todo.shared)
    assert {type(shared.stage).__name__ for shared in some.shared} == {"Words", "Table"}


def test_the_cost_of_a_cell_is_that_of_its_like(tmp_path):
    """Earlier cells of an arm at other settings do not make today's estimate wrong."""
    long = study(scales={"laptop": Scale(lambda data=None: recipe(training=Training(steps=20)))})
    for cell in plan(tmp_path, long, seeds=1).cells:
        write(tmp_path, cell, 1.0, hours=9.0)
    todo = plan(tmp_path, seeds=2)
    from trainables.config import to_dict
    ledger = Ledger(tmp_path / "toy")
    write(tmp_path, todo.cells[0], 1.0, hours=0.25)
    ledger.write_cell((ledger.cell(todo.cells[0].key) or {}) | {"trial": to_dict(todo.cells[0].trial)})
    assert plan(tmp_path, seeds=2).cost(todo.cells[1]) == pytest.approx(0.25)
