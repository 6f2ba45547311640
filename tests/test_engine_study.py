"""Studies, plans, ledger and statistics: everything that needs neither Ray nor MLflow."""

import dataclasses
import json
import math
from functools import partial
from typing import Any

import pytest
from fake_trial import Square, Table, Training, Trial, recipe
from scipy import stats

from studies.engine.compare import interval, paired
from studies.engine.ledger import Ledger, Outbox, read_from
from studies.engine.plan import cell_key
from studies.engine.planning import make_plan
from studies.engine.report import Findings, as_json, markdown, outcome, spell
from studies.engine.study import Arm, BadInput, Maximise, Minimise, Resources, Scale, Study, Watch
from trainables.config import ConfigError
from trainables.stages import Context, Store

ARMS = {"plain": Arm(), "fancy": Arm({"system.kind": "fancy"}),
        "square": Arm(laptop={"system.shape": Square()}, paper={"system.shape": Square(gain=5.0)})}
REPORT = (Minimise("test/error"), Maximise("test/quality"), Watch("threads"))


def study(**changes) -> Study:
    settings: dict[str, Any] = dict(
        name="toy", question="Which?", report=REPORT, arms=ARMS,
        scales={"laptop": Scale(recipe),
                "paper": Scale(partial(recipe, training=Training(steps=99)), Resources(gpus=1))})
    return Study(**settings | changes)


def plan(folder, what=None, **options):
    settings: dict[str, Any] = dict(
        scale="laptop", why="asked for", ledger=Ledger(folder / "toy"), store=Store(folder / "stages"),
        resources=Resources(), seeds=2, arms=ARMS)
    return make_plan(what or study(), **settings | options)


# ---------------------------------------------------------------- the study


def test_arms_are_built_at_every_scale():
    toy = study()
    assert toy.trial("laptop", "square").system.shape == Square()
    assert toy.trial("paper", "square", seed=7).system.shape == Square(gain=5.0)
    assert toy.trial("paper", "square", seed=7).seed == 7
    assert toy.trial("paper", "plain").training.steps == 99
    assert toy.base == "plain"


@pytest.mark.parametrize("arm, words", [
    (Arm({"system.kinds": "fancy"}), "arm 'bad': system.kinds: System has no field 'kinds' (did you mean 'kind'?)"),
    (Arm({"system.kind": "purple"}), "arm 'bad': system.kind"),
    (Arm({"system.shape.gain": -1.0}), "gain must be positive"),
    (Arm(), "arm 'bad': is the same trial as arm 'plain'"),
    (Arm(desktop={"system.kind": "odd"}), "arm 'bad': no scale 'desktop'"),
])
def test_a_wrong_arm_is_an_error_when_the_study_is_made(arm, words):
    with pytest.raises(ConfigError) as error:
        study(arms={"plain": Arm(), "bad": arm})
    assert words in str(error.value)


@pytest.mark.parametrize("text, words", [
    ("system.kind=odd", "system.kind is compared"), ("system=System", "system.kind is compared"),
    ("seed=3", "comes from --seeds"), ("data=Words", "comes from --data"),
    ("training.stepz=3", "did you mean 'steps'?"), ("training.steps=few", "must be int"),
])
def test_an_assignment_may_not_undo_an_arm(text, words):
    with pytest.raises(ConfigError, match=words.replace("?", r"\?")):
        study().trial("laptop", "fancy", assignments=[text])


def test_an_assignment_goes_on_top_of_an_arm():
    assert study().trial("laptop", "square", assignments=["system.shape.gain=3.5"]).system.shape == Square(gain=3.5)


# ---------------------------------------------------------------- the plan


def test_a_key_is_the_trial_its_seed_and_the_versions_of_its_stages(monkeypatch):
    trial = Trial()
    key = cell_key(trial)
    assert key == cell_key(Trial()) != cell_key(dataclasses.replace(trial, seed=1))
    monkeypatch.setattr(Table, "version", 2)          # a stage far upstream, which the trial does not mention
    assert cell_key(trial) != key


def test_stages_of_several_cells_are_made_first_in_order(tmp_path):
    todo = plan(tmp_path)
    names = [type(shared.stage).__name__ for shared in todo.shared]
    assert names == ["Words", "Table", "Table"]       # plain and square use the same table
    assert [len(shared.cells) for shared in todo.shared] == [6, 4, 2]
    assert todo.shared[1].needs == (todo.shared[0].key,) and todo.found == 0
    store = Store(tmp_path / "stages")
    Context(store).get(todo.shared[0].stage)
    again = plan(tmp_path)
    assert [shared.key for shared in again.shared] == [shared.key for shared in todo.shared[1:]]
    assert again.shared[0].needs == ()


def test_what_stands_under_a_finished_stage_is_not_made(tmp_path):
    store = Store(tmp_path / "stages")
    for kind in ("plain", "fancy"):
        Context(store).get(Table(data=Trial().data, kind=kind))
    (store.path(Trial().data)).rename(tmp_path / "gone")
    todo = plan(tmp_path)
    assert todo.shared == () and todo.found == 2


def record(folder, cell, status="done", **more):
    entry = {"key": cell.key, "arm": cell.arm, "seed": cell.seed, "scale": "laptop", "status": status, "reason": "",
             "metrics": {}, "samples": ["a [b] text"], "real": ["real"], "stages": [], "seconds": 36.0,
             "cpu_hours": 0.01, "gpu_hours": 0.0, "ended": 1.0}
    Ledger(folder / "toy").write_cell(entry | more)


def test_what_is_recorded_does_not_run_again_but_a_failure_does(tmp_path):
    cells = plan(tmp_path).cells
    record(tmp_path, cells[0])
    record(tmp_path, cells[1], "diverged")
    record(tmp_path, cells[2], "failed")
    todo = plan(tmp_path)
    assert set(todo.missing) == set(cells[2:])
    assert [cell.seed for cell in todo.missing] == [0, 0, 1, 1]          # whole pairs first
    hours, unknown = todo.hours()
    assert unknown == len(todo.shared) and hours == pytest.approx(0.04)  # the other arms cost what plain did
    more = plan(tmp_path, seeds=3)
    assert len(more.cells) == 9 and set(todo.missing) < set(more.missing)


# ---------------------------------------------------------------- the outbox


def test_a_resumed_cell_has_one_point_a_step(tmp_path):
    path = tmp_path / "outbox" / "k.jsonl"
    first = Outbox(path)
    first.start(name="k")
    for step in range(1, 6):
        first.record(step, {"loss": 1 / step})
    first.file.write('{"kind": "metrics", "t": 12, "st')        # killed in the middle of a line
    first.close()
    second = Outbox(path)
    assert second.attempt == 2
    second.start(name="k")
    for step in range(3, 8):                                    # from the checkpoint at step 2
        second.record(step, {"loss": 1 / step, "extra": 0.0})
    second.end("done", 1.0)
    second.close()
    lines, end = read_from(path, 0)
    assert end == path.stat().st_size
    assert [line["step"] for line in lines if "loss" in line.get("metrics", {})] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["step"] for line in lines if "extra" in line.get("metrics", {})] == [3, 4, 5, 6, 7]
    third = Outbox(path)
    third.close()
    assert third.attempt == 3 and third.spent == 1.0


def test_a_line_that_is_being_written_is_left_for_later(tmp_path):
    path = tmp_path / "k.jsonl"
    path.write_text('{"kind": "a"}\n{"kind": ')
    lines, offset = read_from(path, 0)
    assert lines == [{"kind": "a"}]
    path.write_text('{"kind": "a"}\n{"kind": "b"}\n')
    assert read_from(path, offset)[0] == [{"kind": "b"}]


# ---------------------------------------------------------------- statistics and the report


def test_intervals_are_students():
    values = [1.0, 2.0, 4.0, 8.0]
    low, high = stats.t.interval(0.95, 3, loc=3.75, scale=stats.sem(values))
    found = interval(values)
    assert (found.mean, found.low, found.high) == pytest.approx((3.75, low, high))
    assert interval([2.0]).mean == 2.0 and interval([2.0]).low is None
    assert interval([1.0, math.inf]).mean is None and interval([]).n == 0


def test_differences_are_taken_seed_by_seed():
    """What seeds have in common cancels: a large spread over seeds, and yet a sharp difference."""
    base, arm = {0: 1.0, 1: 50.0, 2: 99.0}, {0: 2.0, 1: 51.0, 2: 100.0, 3: 7.0}
    found = paired(arm, base)
    assert (found.mean, found.low, found.high, found.n) == (1.0, 1.0, 1.0, 3)
    assert (interval(list(arm.values())).half or 0) > 50


@pytest.mark.parametrize("values, text", [
    ([0.5, 0.5], "0.5 ± 0"), ([0.41234], "0.4123"), ([], "–"), ([math.nan, 1.0], "not finite"),
    ([0.41, 0.42, 0.43], "0.420 ± 0.025"), ([1000.0, 1400.0, 1200.0], "1200 ± 497")])
def test_numbers_show_the_digits_that_their_interval_allows(values, text):
    assert spell(interval(values)) == text


def findings(folder):
    todo = plan(folder)
    for cell in todo.cells:
        if cell.arm == "plain":
            record(folder, cell, metrics={"test/error": 1.0 + cell.seed, "test/quality": math.inf, "threads": 1.0})
        if cell.arm == "fancy" and cell.seed == 0:
            record(folder, cell, metrics={"test/error": 0.5, "test/quality": 3.0, "threads": 1.0})
        if cell.arm == "fancy" and cell.seed == 1:
            record(folder, cell, "diverged", reason="training diverged at step 3")
    return Findings(plan(folder), Ledger(folder / "toy"))


def test_the_outcome_for_programs(tmp_path):
    found = findings(tmp_path)
    key = found.plan.cells[0].key
    result = json.loads(as_json(outcome(found, {key: "run1"}, "abc")))
    assert set(result) == {"study", "commit", "scale", "data", "arms"}
    assert [arm["name"] for arm in result["arms"]] == list(ARMS)
    plain, fancy, square = result["arms"]
    assert set(plain) == {"name", "differs", "n", "metrics", "cells"}
    assert plain["differs"] == "–" and fancy["differs"] == "system.kind = fancy"
    assert plain["cells"][0] == {"seed": 0, "trial": key, "status": "done", "mlflow_run_id": "run1"}
    assert plain["metrics"]["test/error"]["mean"] == 1.5
    assert plain["metrics"]["test/quality"] == {"mean": None, "low": None, "high": None}      # infinite is no number
    assert [cell["status"] for cell in fancy["cells"]] == ["done", "diverged"] and fancy["n"] == 1
    assert [cell["status"] for cell in square["cells"]] == ["waiting", "waiting"]


def test_the_table_says_what_went_wrong(tmp_path):
    found = findings(tmp_path)
    text = markdown(found)
    assert "seed 1 diverged: training diverged at step 3" in text and "2 not run" in text
    assert found.best() == "fancy" and "Δ -0.5" in text and "a [b] text" in text
    assert [cell.name for cell in found.failed()] == ["fancy seed 1"]


def test_an_arm_pays_its_part_of_a_shared_stage(tmp_path):
    todo = plan(tmp_path)
    for cell in todo.cells:
        record(tmp_path, cell, stages=["Words-1"] if cell.arm != "square" else [])
    Ledger(tmp_path / "toy").write_stage({"key": "Words-1", "kind": "Words", "status": "done", "seconds": 1.0,
                                          "cpu_hours": 1.0, "gpu_hours": 0.0})
    found = Findings(plan(tmp_path), Ledger(tmp_path / "toy"))
    assert [found.hours(arm) for arm in ARMS] == pytest.approx([0.52, 0.52, 0.02])


def test_resources_that_make_no_sense_are_refused():
    for wrong in (lambda: Resources(cpus=0), lambda: Resources(workers=0), lambda: Resources(gpus=-1.0),
                  lambda: Resources(gpus=1.5)):
        with pytest.raises(ValueError):
            wrong()


def test_workers_are_placed_node_by_node():
    from studies.engine.cluster import Cluster

    mixed = Cluster("a:1", ((8, 2), (8, 1), (64, 0)))
    assert mixed.slots(Resources(gpus=1)) == 3 and mixed.slots(Resources(gpus=0.5)) == 6
    assert mixed.trials(Resources(gpus=1, workers=2)) == 1
    with pytest.raises(BadInput, match="can never hold"):
        mixed.trials(Resources(gpus=1, workers=4))
