"""What is seen of a study where there is no screen: events, and now and then what is at work."""

import io
import re
from pathlib import Path

import pytest
from fake_trial import recipe
from rich.console import Console

from studies.engine import live
from studies.engine.ledger import Ledger, Outbox
from studies.engine.live import View
from studies.engine.planning import make_plan
from studies.engine.study import Arm, Minimise, Resources, Scale, Study
from trainables.stages import Store

STUDY = Study(name="toy", question="Which?", seeds=2, report=(Minimise("test/error"),),
              scales={"laptop": Scale(recipe)}, arms={"plain": Arm(), "fancy": Arm({"system.kind": "fancy"})})


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds, which tests move on."""
    clock = [1000.0]
    monkeypatch.setattr(live.time, "time", lambda: clock[0])
    return clock


def test_a_job_without_a_screen_says_once_a_minute_what_runs(tmp_path: Path, now: list[float]):
    ledger, printed = Ledger(tmp_path / "toy"), io.StringIO()
    plan = make_plan(STUDY, scale="laptop", why="", ledger=ledger, store=Store(tmp_path / "stages"),
                     resources=Resources(), seeds=2, arms=STUDY.arms)
    assert not Console(file=printed).is_terminal and len(plan.missing) == 4
    cells, stages = plan.missing, list(plan.shared)
    with View(plan, ledger, Console(file=printed, width=40)) as view:
        view.tick()
        now[0] += 2 * live.EVERY
        view.tick()
        assert printed.getvalue() == "", "nothing runs, so there is nothing to say"
        for stage in stages:
            view.begins(stage)
            view.ends(stage, {"status": "done", "seconds": 3.0, "reason": None})
        for cell in cells:
            view.begins(cell)
        story = Outbox(ledger.outbox(cells[0].key))
        story.record(2, {"train/loss": 0.75, "train/rate": 0.1})
        story.record(5, {"train/loss": 0.5})
        seen = said(printed)
        now[0] += 30
        view.told = now[0]
        view.tick()
        now[0] += live.EVERY - 1
        view.tick()
        assert said(printed) == seen, "not yet"
        now[0] += 1
        view.tick()
        view.tick()
        first, second = said(printed)[len(seen):]
        assert re.fullmatch(rf"at work  {len(stages)}/{len(stages)} stages, 0/4 trials done, 4 running, "
                            r"\d+ (s|min \d\d s) gone, about \d+ (s|min \d\d s) to go", first), first
        assert second == (f"         {cells[0].name} step 5  train/loss 0.5; {cells[1].name}; {cells[2].name}; "
                          "and 1 more")
        story.record(7, {"train/loss": 0.25})
        now[0] += live.EVERY
        view.tick()
        assert "step 7  train/loss 0.25" in said(printed)[-1]
        for cell in cells:
            view.ends(cell, {"status": "done", "seconds": 90.0, "reason": None})
        count = len(said(printed))
        now[0] += 10 * live.EVERY
        view.tick()
        assert len(said(printed)) == count, "and nothing runs any more"
    story.close()


def said(printed: io.StringIO) -> list[str]:
    """The lines, without their time of day."""
    return [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in printed.getvalue().splitlines()]
