"""Searches: what is asked of Optuna and told to it, by whom, what is shown of it, and when it ends."""

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_trial import Linear, Square, Table, Trial
from test_search_on_ray import TUNE, command, study
from toy_search import SPACE, Desk, error, go, record, states

from search_spaces.domains import Choice, Integers, LogUniform, Space, Uniform, With
from studies.engine import search_page, search_report
from studies.engine.bound import Bound
from studies.engine.budget import Budget
from studies.engine.cluster import Cluster
from studies.engine.found import chosen, complete, doubts, importances, spread, table
from studies.engine.ledger import Ledger
from studies.engine.plan import Cell, cell_key
from studies.engine.provenance import Code
from studies.engine.pruning import Halving, Median, dominates
from studies.engine.samplers import Sobol
from studies.engine.search import DONE, IN_A_ROW, WAIT, Search
from studies.engine.storage import Memory, storage_url
from studies.engine.study import BadInput, Maximise, Minimise, Resources
from studies.engine.tuning import GaussianProcess, Nsga2, QuasiRandom, Tpe
from trainables.config import override

pytest_plugins = ["toy_search"]                    # its fixture
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")]


# ---------------------------------------------------------------- one driver


def test_the_arm_as_it_is_comes_first(file):
    base = override(Trial(), {"system.shape": Linear(gain=3.0), "training.steps": 7})
    one = file.search(base)
    first = go(one, most=1)[0]
    assert first.trial == override(base, {"seed": 1_000})
    assert one.trials()[0].params == {"system.shape": "Linear", "system.shape[Linear].gain": 3.0, "training.steps": 7}


def test_interrupted_and_continued_is_as_if_nothing_had_happened(tmp_path):
    """Each draw is seeded by its number, so a restart neither repeats points nor changes those to come."""
    whole = Desk(tmp_path / "a", str(tmp_path / "a.journal")).search(trials=14)
    go(whole)
    parts = Desk(tmp_path / "b", str(tmp_path / "b.journal"))
    for _ in range(14):
        go(parts.search(trials=14), most=1)
    assert [t.params for t in parts.search(trials=14).trials()] == [t.params for t in whole.trials()]
    other = Desk(tmp_path / "c", str(tmp_path / "c.journal")).search(trials=14, seed=7)
    go(other)
    assert [t.params for t in other.trials()][1:] != [t.params for t in whole.trials()][1:]


@pytest.mark.parametrize("sampler", [QuasiRandom(), Tpe(startup=4), GaussianProcess(startup=4), Nsga2(population=4)],
                         ids=repr)
def test_every_sampler_draws_valid_points_of_a_conditional_space(file, sampler):
    one = file.search(sampler=sampler, trials=14)
    cells = go(one)
    assert len(one.trials()) == 14 and len({cell.key for cell in cells}) > 10
    shapes = {type(cell.trial.system.shape).__name__ for cell in cells}
    assert shapes == {"Linear", "Square"}


@pytest.mark.parametrize("sampler", [Tpe(startup=4), GaussianProcess(startup=4), Nsga2(population=4)], ids=repr)
def test_several_goals_have_a_front(file, sampler):
    def outcome(cell: Cell) -> dict:
        gain = cell.trial.system.shape.gain
        return record(cell, metrics={"valid/error": abs(math.log(gain)), "valid/quality": -abs(math.log(gain / 5))})

    goals = (Minimise("valid/error"), Maximise("valid/quality"))
    one = file.search(select=goals, sampler=sampler, trials=16, prune=Halving(*goals, first=2))
    go(one, outcome)
    best = chosen(one)
    assert 1 < len(best) <= 4
    done = [tuple(value * sign for value, sign in zip(t.values, (1, -1), strict=True)) for t in complete(one)]
    for trial in best:
        mine = trial.values[0], -trial.values[1]
        assert not any(dominates(other, mine) for other in done)
    assert best[0].values[0] == min(t.values[0] for t in complete(one))
    assert best[1].values[1] == max(t.values[1] for t in complete(one))
    assert set(importances(one)) <= {"valid/error", "valid/quality"}


def test_cost_is_a_goal_that_the_ledger_knows(file):
    one = file.search(select=(Minimise("valid/error"), Minimise("cost/cpu_hours")), trials=2)
    go(one)
    assert [trial.values[1] for trial in complete(one)] == [0.5, 0.5]


def test_a_point_costs_the_same_whatever_was_made_before_it(file):
    """The first pays for what all share, one waits for it, one finds its own made; --hours counts what was spent."""
    def outcome(cell: Cell) -> dict:
        spent = (20.0, 9.0, 0.5, 4.0)[cell.point or 0]
        said = record(cell) | {"seconds": spent, "cpu_hours": spent, "gpu_hours": 0.0}
        return said | ({"own_seconds": 4.0} if cell.point != 3 else {})         # the last is of before it was recorded

    goals = (Minimise("valid/error"), Minimise("cost/seconds"), Minimise("cost/cpu_hours"))
    one = file.search(select=goals, trials=4, sampler=QuasiRandom())
    cells = go(one, outcome)
    assert [trial.values[1:] for trial in complete(one)] == [[4.0, 4.0]] * 4
    costs = one.costs("cpu_hours")
    assert [costs[cell.key] for cell in cells] == [("done", spent) for spent in (20.0, 9.0, 0.5, 4.0)]
    known = file.search(select=goals, trials=8)._known(cells[0])    # of the storage, whose ledgers may differ
    assert known is not None and known["own_seconds"] == 4.0 and known["seconds"] == 20.0


def test_a_result_without_the_metric_is_no_result(file):
    one = file.search(trials=2)
    go(one, lambda cell: record(cell, metrics={"valid/other": 1.0}))
    assert states(one) == ["FAIL", "FAIL"] and chosen(one) == []
    assert table(one)[0]["reason"] == "no valid/error (there are: " \
        "cost/cpu_hours, cost/gpu_hours, cost/seconds, valid/other)"
    assert one.ask() == DONE                                        # and it is not tried again and again


def test_what_the_ledger_knows_is_told_and_not_run(file):
    first = file.search(trials=6, sampler=QuasiRandom())
    cells = go(first)
    for cell in cells:
        first.ledger.write_cell(record(cell))
    other = Desk(file.folder, str(file.folder / "other.journal")).search(trials=6, sampler=QuasiRandom())
    assert go(other) == [] and other.ask() == DONE
    assert [t.value for t in complete(other)] == [t.value for t in complete(first)]


def test_a_point_that_comes_twice_runs_once(file):
    one = file.search(space=Space({"system.shape": Choice(Linear(), Square())}), trials=10)
    cells = go(one)
    assert len(cells) == 2 and states(one) == ["COMPLETE"] * 10
    both = file.search(space=Space({"system.kind": Choice("plain", "fancy")}), trials=10, sampler=QuasiRandom())
    running: dict[str, Cell] = {}
    while isinstance(cell := both.ask(), Cell):                     # all at once: a point waits for its twin
        running[cell.key] = cell
    assert cell == WAIT and len(running) == 2
    for key, cell in running.items():
        both.tell(key, record(cell, metrics={"valid/error": 1.0 if cell.trial.system.kind == "plain" else 2.0}))
    assert both.ask() == DONE and states(both) == ["COMPLETE"] * 10


# ---------------------------------------------------------------- several drivers


def test_a_torn_journal_is_mended(file):
    go(file.search(trials=3))
    with open(file.url, "ab") as journal:
        journal.write(b'{"op_code": 5, "worker_i')
    again = file.search(trials=5)
    assert len(go(again)) == 2 and states(again) == ["COMPLETE"] * 5


# ---------------------------------------------------------------- what makes values comparable


def test_another_trial_has_another_search_and_another_sampler_has_not(file):
    name = file.search().name
    assert file.search(override(Trial(), {"samples_drawn": 9})).name != name
    assert file.search(select=(Maximise("valid/error"),)).name != name
    assert file.search(space=SPACE.without("training.steps")).name != name
    assert file.search(sampler=QuasiRandom(), trials=99, prune=Median(Minimise("valid/loss"))).name == name
    again = Space({"system.shape": Choice(With(Linear(), {"gain": LogUniform(0.1, 10.0)}), Square(gain=7.0)),
                   "training.steps": Integers(5, 20)})
    assert file.search(space=again).name != name                    # an option's component changed behind its name


def test_a_changed_space_begins_with_what_lies_inside_it(file):
    one = file.search(trials=10)
    go(one)
    wider = SPACE | {"training.steps": Integers(8, 40)}
    two = file.search(space=wider, trials=6)
    inherited = [trial for trial in two.trials() if "inherited" in trial.user_attrs]
    inside = [trial for trial in complete(one) if trial.params["training.steps"] >= 8]
    assert sorted(t.values for t in inherited) == sorted(t.values for t in inside) and 0 < len(inside) < 10
    assert len(go(two)) == 5 and two.ask() == DONE                  # the arm as it is was known; the others are free
    assert len([t for t in two.trials() if "inherited" not in t.user_attrs]) == 6


# ---------------------------------------------------------------- samplers, storages, choices


def test_quasi_random_points_fill_the_space_more_evenly_than_random_ones():
    from scipy.stats import qmc
    space = Space({f"p{i}": Uniform(0.0, 1.0) for i in range(3)})
    sobol = Sobol(space, 0)
    points = np.array([sobol.point(n) for n in range(64)])
    rng = np.random.default_rng(0)
    chance = [qmc.discrepancy(rng.random((64, 3))) for _ in range(20)]
    assert qmc.discrepancy(points) < min(chance)
    assert not np.allclose(points[0], 0)                            # scrambled: it does not start in a corner
    assert not np.allclose(points, np.array([Sobol(space, 1).point(n) for n in range(64)]))


def test_the_ends_of_a_front_come_first_then_what_is_far():
    points = [(0.0, 10.0), (1.0, 9.0), (5.0, 5.0), (9.0, 1.0), (10.0, 0.0)]
    assert spread(points, list(range(5)))[:3] == [0, 4, 2]
    assert spread([], []) == [] and spread([(1.0, 2.0)], [7]) == [7]


def test_where_searches_are_remembered(tmp_path, monkeypatch):
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    assert storage_url(tmp_path) == f"sqlite:///{tmp_path}/optuna.db"
    assert storage_url(tmp_path, several_hosts=True) == str(tmp_path / "optuna.journal")
    (tmp_path / "optuna.db").touch()
    assert storage_url(tmp_path, several_hosts=True).endswith("optuna.db")      # what is there is continued
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql://who:secret@localhost:1/x")
    assert storage_url(tmp_path).startswith("postgresql://")
    with pytest.raises(BadInput) as problem:
        Memory(storage_url(tmp_path))
    assert "secret" not in str(problem.value) and "localhost:1" in str(problem.value)


def test_boundaries_are_warned_of(file):
    one = file.search(trials=20, select=(Minimise("valid/error"),))
    go(one, lambda cell: record(cell, metrics={"valid/error": cell.trial.system.shape.gain}))
    assert "lies at the lower end of its range 0.1 .. 10" in doubts(one, chosen(one)[0].params)[0]
    space = Space({"system.shape.gain": Uniform(1e-4, 1.0), "samples_drawn": Integers(0, 99)})
    ended = file.search(space=space, trials=1)
    params = {"system.shape.gain": 0.01, "samples_drawn": 0}        # a gain of -.05 is refused, -1 samples are not
    assert [words.partition(" =")[0] for words in doubts(ended, params)] == ["samples_drawn"]
    inner = file.search(override(Trial(), {"samples_drawn": 9}), trials=12)
    go(inner)
    best = chosen(inner)[0]
    assert len(doubts(inner, best.params)) == len(SPACE.edges(best.params))


# ---------------------------------------------------------------- what is shown


def test_a_page_about_a_search(file):
    def outcome(cell: Cell) -> dict:
        if cell.point in (2, 5):
            return record(cell, "diverged" if cell.point == 2 else "pruned")
        return record(cell, metrics={"valid/error": error(cell.trial), "valid/quality": cell.trial.system.shape.gain})

    one = file.search(select=(Minimise("valid/error"), Maximise("valid/quality")), trials=14, arm="<plain> & simple",
                      prune=Halving(Minimise("valid/loss"), first=2))
    for _ in range(14):
        cell = one.ask()
        assert isinstance(cell, Cell)
        for step in (1, 2, 4):
            one.report(cell.key, step, {"valid/loss": cell.trial.system.shape.gain / step})
        one.tell(cell.key, outcome(cell))
    search_report.write(search_report.told({one.arm: one}), file.folder)
    parts = {part.title: part.html for part in search_page.sections(file.folder)}
    assert list(parts) == ["Search", "Front", "Slices", "Parallel coordinates", "Importances", "Curves of the search",
                           "Points"] and all(parts.values())
    page = "".join(parts.values())
    assert "<plain>" not in page and "&lt;plain&gt; &amp; simple" in page
    assert page.count("12 done") == 1 and "1 diverged" in page and "so it went" in page
    for name in ("system.shape", "system.shape[Linear].gain", "training.steps"):
        assert f"<figcaption>{name}</figcaption>" in parts["Slices"]
    assert parts["Slices"].count("<circle") == 2 * 12 + sum("system.shape[Linear].gain" in t.params
                                                           for t in complete(one))
    from xml.etree import ElementTree
    for html in parts.values():                                     # well formed, so no browser has to guess
        ElementTree.fromstring(f"<div>{html}</div>".replace("<br>", "<br/>"))
    assert search_page.sections(file.folder / "nowhere") == []


def test_an_old_search_is_no_part_of_a_study_that_is_not_tuned(file):
    """--tune once, and later the study as it is: its arms are untuned, and so is its page."""
    one = file.search()
    go(one)
    (file.folder / "toy").mkdir()
    search_report.write(search_report.told({"plain": one}), file.folder / "toy")
    shown = {}
    for tuned in (True, False):
        assert command(study(tune=TUNE if tuned else None), file.folder, "--report")[0] == 0
        shown[tuned] = (file.folder / "toy" / "report.html").read_text()
    assert "Parallel coordinates" in shown[True] and "Parallel coordinates" not in shown[False]
    assert (file.folder / "toy" / "search.json").exists()           # nothing is lost: the same --tune shows it again


def test_search_json_is_read_by_every_program(file):
    """No NaN, no Infinity, which are no JSON: numbers that are none are null, and the page leaves them out."""
    def outcome(cell: Cell) -> dict:
        one.report(cell.key, 1, {"valid/loss": math.inf})
        one.report(cell.key, 2, {"valid/loss": math.nan if cell.point else 2.0})
        return record(cell, metrics={"valid/error": error(cell.trial), "valid/ratio": -math.inf})

    one = file.search(prune=Halving(Minimise("valid/loss"), first=5))
    go(one, outcome)
    search_report.write(search_report.told({"plain": one}), file.folder)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    said = json.loads((file.folder / "search.json").read_text(), parse_constant=refuse)
    assert said["plain"]["trials"][0]["curve"] == {"1": [None], "2": [2.0]}
    assert said["plain"]["trials"][1]["metrics"]["valid/ratio"] is None
    parts = {part.title: part.html for part in search_page.sections(file.folder)}
    assert "polyline" in parts["Curves of the search"] or "path" in parts["Curves of the search"]
    assert search_report.points(search_report.read(file.folder), {"plain": one.name})["plain"]


# ---------------------------------------------------------------- when it ends


def test_a_search_of_failures_only_is_given_up(file):
    """After ten, one behind the other, in one command; whatever ends otherwise in between starts the count again."""
    def outcome(cell: Cell) -> dict:
        return record(cell, "diverged" if cell.point == 5 else "failed") | {
            "reason": "no such folder" if (cell.point or 0) % 3 else "out of memory"}

    space = Space({"system.shape.gain": LogUniform(0.1, 10.0)})
    one = file.search(space=space, trials=50, sampler=QuasiRandom())
    assert len(go(one, outcome, most=100)) == 6 + IN_A_ROW and one.ask() == DONE
    assert one.hopeless == "plain: 10 points in a row failed, 6 of them with: no such folder"
    again = file.search(space=space, trials=50, sampler=QuasiRandom())
    assert again.states()["waiting"] == 15 and not again.hopeless
    assert len(go(again, most=100)) == 49 and not again.hopeless                     # mended, they are tried again


def asking(file: Desk, one: Search, bound: Bound = Bound()) -> Any:
    from studies.engine.admission import Capacity  # and Ray with it, which PROGRAM below may not import yet
    from studies.engine.asking import Asking
    from studies.engine.inline import Place

    folder = file.folder / "toy"
    place = Place(study="toy", scale="laptop", data="Words", folder=folder, store=str(file.folder / "stages"),
                  resources=Resources(), code=Code("unknown", ""))
    return Asking([one], place, Capacity(Cluster("local", ((2.0, 0.0),)), Resources()), bound)


def suggested(searcher: Any, number: int) -> Cell:
    found = searcher.suggest(f"trial {number}")
    assert isinstance(found, dict)
    return found["made"]


def test_a_record_says_what_its_own_stages_took(tmp_path, monkeypatch):
    """Not the table, which all points share, though this cell happens to make it; the same where all is found made."""
    from studies.engine.inline import Place, attempt

    make = Table.make

    def slow(self: Table, out: Path, context: Any) -> None:
        time.sleep(0.5)
        make(self, out, context)

    monkeypatch.setattr(Table, "make", slow)
    trial = override(Trial(), {"training.pause": 0.01, "training.steps": 10})
    cell = Cell("plain", 0, trial, cell_key(trial, "valid"), split="valid", point=0)
    first, second = (attempt(cell, Place(
        study=study, scale="laptop", data="Words", folder=tmp_path / study, store=str(tmp_path / "stages"),
        resources=Resources(), code=Code("unknown", ""), program="studies/tune.py toy" if study == "one" else ""),
        lambda context: context.get(cell.scored())) for study in ("one", "two"))
    assert first["status"] == second["status"] == "done" and first["reused"] == {} != second["reused"]
    assert 0.1 <= first["own_seconds"] <= first["seconds"] - 0.5
    assert second["own_seconds"] == first["own_seconds"]
    stories = [Ledger(tmp_path / study).outbox(cell.key).read_text().splitlines()[0] for study in ("one", "two")]
    assert [json.loads(line)["tags"]["mlflow.source.name"] for line in stories] == ["studies/tune.py toy",
                                                                                   "studies/two.py"]


def test_a_driver_that_is_told_to_end_begins_nothing_and_gives_back(file):
    one, other = file.search(trials=9, owner="far-away:1:1"), file.search(trials=2)
    searcher = asking(file, one)
    first, second = suggested(searcher, 0), suggested(searcher, 1)
    searcher.on_trial_complete("trial 0")
    searcher.again(first)                                           # it made room on its node: it is first in line
    assert suggested(searcher, 2) == first
    searcher.closing = True                                         # the driver was told to end
    for number, cell in ((2, first), (1, second)):                  # both save themselves
        searcher.on_trial_complete(f"trial {number}")
        searcher.again(cell)
        assert searcher.suggest(f"trial {number + 2}") in (None, "FINISHED")
    assert searcher.suggest("trial 9") == "FINISHED" and searcher.work == {}
    late = asking(file, one)
    begun, _ = suggested(late, 0), suggested(late, 1)               # handed out both, and only one has begun
    late.leave({begun.key})
    assert late.work.keys() == other.elsewhere() == {begun.key} and late.suggest("trial 2") is None
    one.release(begun.key)
    taken = [other.ask(), other.ask()]                              # at once, though far-away's leases had begun
    assert [cell.key for cell in taken if isinstance(cell, Cell)] == [first.key, second.key]


def test_hours_bound_a_search_and_keep_room_for_its_comparison(file):
    """A point costs half an hour: of 4 hours, 1.5 are kept for three cells, so five points are asked for."""
    bound = Bound(Budget(hours=4.0), "CPU", cells=3)
    one = file.search(space=Space({"system.shape.gain": LogUniform(0.1, 10.0)}), trials=50, sampler=QuasiRandom())
    assert bound.expectation([one], 50, None).startswith("50 points of unknown cost")
    assert bound.expectation([one], 50, 36.0).startswith("50 points x 0.01 CPU hours = 0.5 CPU hours; no more than 4")
    searcher, number = asking(file, one, bound), 0
    while isinstance(found := searcher.suggest(f"trial {number}"), dict):
        searcher.on_trial_complete(f"trial {number}")
        searcher.ended(found["made"], record(found["made"]))
        number += 1
    assert number == 5 and found == "FINISHED" and bound.spent([one]) == 2.5
    assert bound.said == "--hours: 2.5 CPU hours of 4 are spent, 1.5 CPU hours kept for the comparison: no more points"
    assert bound.expectation([one], 10, None).startswith("10 points x 0.5 CPU hours = 5 CPU hours")
