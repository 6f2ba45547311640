"""Incremental: a study that changed runs what is new, says what is stale and why, and reuses what is there."""

from pathlib import Path
from typing import Any

import fake_trial
import pytest
from fake_trial import recipe

from studies.engine.findings import Findings
from studies.engine.inline import Place, attempt
from studies.engine.ledger import Ledger, read_from
from studies.engine.plan import Plan
from studies.engine.planning import make_plan
from studies.engine.provenance import Code
from studies.engine.stale import superseded
from studies.engine.study import Arm, Minimise, Resources, Scale, Study
from trainables.config import override
from trainables.evaluation.evaluation import Evaluation
from trainables.stages import Store, key
from trainables.tencdm import tencdm_laptop

ARMS = {"plain": Arm(), "fancy": Arm({"system.kind": "fancy"})}


class Desk:
    """A study in a folder: what it plans, and a worker that does it; what was made is noted."""

    def __init__(self, out: Path, monkeypatch: pytest.MonkeyPatch):
        self.out, self.made = out, []
        for stage in (fake_trial.Table, fake_trial.Trained, fake_trial.Sampled, fake_trial.Scored):
            def noted(this: Any, folder: Path, context: Any, make=stage.make, name=stage.__name__) -> None:
                make(this, folder, context)
                self.made.append(name)
            monkeypatch.setattr(stage, "make", noted)

    def plan(self, seeds: int = 2, arms: dict = ARMS, assignments: tuple = ()) -> Plan:
        study = Study(name="toy", question="Which?", arms=arms, scales={"laptop": Scale(recipe)},
                      report=(Minimise("test/error"),))
        return make_plan(study, scale="laptop", why="", ledger=Ledger(self.out / "toy"), resources=Resources(),
                         store=Store(self.out / "stages"), seeds=seeds, arms=arms, assignments=assignments)

    def do(self, plan: Plan) -> list[str]:
        """Run what is missing; the kinds of stages that were made, in order, each once."""
        self.made = []
        place = Place(study="toy", scale="laptop", data="Words", folder=self.out / "toy", resources=Resources(),
                      store=str(self.out / "stages"), code=Code("unknown", ""))
        for cell in plan.missing:
            assert attempt(cell, place, lambda context, cell=cell: context.get(cell.scored()))["status"] == "done"
        return list(dict.fromkeys(self.made))


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Desk:
    desk = Desk(tmp_path, monkeypatch)
    first = desk.plan()
    assert "- to run: 4 new, 0 stale" in first.lines() and not first.reused
    assert desk.do(first) == ["Table", "Trained", "Sampled", "Scored"]
    assert not desk.plan().missing and not any("to run:" in line for line in desk.plan().lines())
    return desk


def test_a_new_seed_and_a_new_level_run_alone(desk):
    more = desk.plan(seeds=3, arms=ARMS | {"odd": Arm({"system.kind": "odd"})})
    assert [cell.name for cell in more.missing] == ["odd seed 0", "odd seed 1", "plain seed 2", "fancy seed 2",
                                                    "odd seed 2"]
    assert "- to run: 5 new, 0 stale" in more.lines()


def test_what_is_removed_is_hidden_and_what_comes_back_is_there(desk):
    alone = desk.plan(arms={"plain": Arm()})
    assert not alone.missing and {cell.arm for cell in alone.cells} == {"plain"}
    assert not desk.plan().missing


def test_a_changed_setting_makes_cells_stale_and_is_named(desk):
    changed = desk.plan(assignments=("training.steps=12", "samples_drawn=9"))
    assert "- to run: 0 new, 4 stale" in changed.lines()
    assert any("training.steps was 10, is 12; samples_drawn was 8, is 9" in line for line in changed.lines())
    assert desk.do(changed) == ["Trained", "Sampled", "Scored"]              # the tables are as they were
    assert not desk.plan().missing                                            # and nothing was lost


def test_a_changed_sampler_trains_nothing(desk):
    changed = desk.plan(assignments=("samples_drawn=9",))
    assert any(line.endswith("is trained: it is sampled and scored") for line in changed.lines())
    assert desk.do(changed) == ["Sampled", "Scored"]


def test_another_version_of_a_stage_is_named(desk, monkeypatch):
    monkeypatch.setattr(fake_trial.Trained, "version", 2)
    changed = desk.plan()
    assert "- stale: plain seed 0, fancy seed 0, plain seed 1, fancy seed 1: stage Trained has another version" in \
        changed.lines()
    assert desk.do(changed) == ["Trained", "Sampled", "Scored"]


def test_what_other_code_has_replaced_is_superseded_and_no_other_setting_is(desk, monkeypatch):
    ledger = Ledger(desk.out / "toy")
    first = {cell.key for cell in desk.plan().cells}
    assert superseded(desk.plan().cells, ledger.cells(), "laptop") == {}
    other = desk.plan(assignments=("training.steps=12",))
    desk.do(other)
    assert superseded(other.cells, ledger.cells(), "laptop") == {}           # the question was another one
    monkeypatch.setattr(fake_trial.Scored, "version", 2)
    newer = desk.plan()
    assert superseded(newer.cells, ledger.cells(), "laptop") == {}           # not before it is done
    desk.do(newer)
    found = superseded(newer.cells, ledger.cells(), "laptop")
    assert found.keys() == first and set(found.values()) == {cell.key for cell in newer.cells}
    for old, new in found.items():
        ledger.supersede(old, new)
        assert read_from(ledger.outbox(old), 0)[0][-1]["tags"] == {"superseded_by": new}
    assert superseded(newer.cells, ledger.cells(), "laptop") == {}           # said once


def test_a_metric_that_is_added_does_not_make_the_training_cheap(desk, monkeypatch):
    """Costs are those of the store's clock, which the training's stage has set to an hour."""
    ledger, store = Ledger(desk.out / "toy"), Store(desk.out / "stages")
    before = Findings(desk.plan(), ledger)
    for cell in before.plan.cells:
        (store.path(cell.trial.samples().checkpoint) / "cost.json").write_text('{"seconds": 3600.0}')
        record = ledger.cell(cell.key)
        assert record is not None and record["reused"] == {}                 # it has made everything itself
        ledger.write_cell(record | {"seconds": 3600.0, "cpu_hours": 1.0})
    monkeypatch.setattr(fake_trial.Scored, "version", 2)
    desk.do(desk.plan())
    plan = desk.plan()
    after = Findings(plan, ledger)
    for arm in ARMS:
        hours = after.cell_hours(arm)
        assert hours is not None and 1.0 <= hours < 1.5 and plan.history[arm] == pytest.approx(hours * 3600, rel=0.01)
    assert 4.0 <= after.spent() < 5.0
    record = ledger.cell(plan.cells[0].key)
    assert record is not None and record["seconds"] < 1800 and 3600.0 in record["reused"].values()
    assert not any(name.startswith(("Table", "Words")) for name in record["reused"])        # all seeds share these


def test_another_metric_scores_the_samples_that_are_there(desk, monkeypatch):
    """Here the code that scores changed; a metric that is added changes the same stage alone."""
    monkeypatch.setattr(fake_trial.Scored, "version", 2)
    changed = desk.plan()
    assert any("stage Scored has another version" in line for line in changed.lines())
    assert any(line.endswith("has its samples: it is only scored") for line in changed.lines())
    assert desk.do(changed) == ["Scored"]

    trial = tencdm_laptop()
    fewer = override(trial, {"evaluation": Evaluation(metrics=trial.evaluation.metrics[:1])})
    assert key(fewer.samples()) == key(trial.samples()) and key(fewer.metrics()) != key(trial.metrics())
