"""Searches of a toy on one storage, and what they find there."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_trial import Linear, Square, Trial

from search_spaces.domains import Choice, Integers, LogUniform, Space, With
from studies.engine.ledger import Ledger
from studies.engine.plan import Cell
from studies.engine.search import Search
from studies.engine.storage import Memory
from studies.engine.study import Minimise
from studies.engine.tuning import Tpe, Tune

ROOT = Path(__file__).resolve().parents[1]
SPACE = Space({
    "system.shape": Choice(With(Linear(), {"gain": LogUniform(0.1, 10.0)}), Square()),
    "training.steps": Integers(5, 20),
})


def error(trial: Any) -> float:
    """What the tests' searches minimise: least at gain 1, and 8 steps."""
    return abs(math.log(trial.system.shape.gain)) + abs(trial.training.steps - 8) / 10


def record(cell: Cell, status: str = "done", metrics: dict[str, float] | None = None) -> dict[str, Any]:
    return {"key": cell.key, "status": status, "reason": "" if status == "done" else "so it went", "seconds": 2.0,
            "cpu_hours": 0.5, "gpu_hours": 0.0, "metrics": metrics or {"valid/error": error(cell.trial)}}


class Desk:
    """Searches of one arm on one storage, and what they find there."""

    def __init__(self, folder: Path, url: str):
        self.folder, self.url = folder, url
        self.opened: list[Memory] = []

    def search(self, base: Any = Trial(), owner: str | None = None, arm: str = "plain", **changes: Any) -> Search:
        settings: dict[str, Any] = dict(space=SPACE, select=(Minimise("valid/error"),), trials=12,
                                        sampler=Tpe(startup=4))
        task = Tune(**settings | changes).around(base)
        self.opened.append(Memory(self.url))
        one = Search("toy", "laptop", arm, task, self.opened[-1], Ledger(self.folder), owner)
        one.open()
        return one


def go(one: Search, outcome: Callable[[Cell], dict] = record, most: int = 1000) -> list[Cell]:
    """Ask and tell until the budget is spent, one at a time."""
    cells = []
    while len(cells) < most and isinstance(cell := one.ask(), Cell):
        cells.append(cell)
        one.tell(cell.key, outcome(cell))
    return cells


def states(one: Search) -> list[str]:
    return [trial.state.name for trial in one.trials()]


@pytest.fixture
def file(tmp_path) -> Desk:
    return Desk(tmp_path, str(tmp_path / "o.journal"))
