"""Nights: what code a result depends on, what is said of paired cells, whom it is told, and nights for real."""

import asyncio
import contextlib
import http.server
import importlib
import json
import math
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from studies.engine import code_version
from studies.engine.clearing import clear
from studies.engine.code_version import CodeVersions
from studies.engine.hardware import hardware, processor
from studies.engine.ledger import Ledger
from studies.engine.night import StudyNight
from studies.engine.nightly import nightly
from studies.engine.nights import History, Verdict, cells_of, judge_night, settle
from studies.engine.notices import addresses, main, markdown, message, send, slack_like, worth_saying
from studies.engine.regression import judge, mean_bounds, median_bounds, metric_finding, speed_finding
from studies.engine.study import Arm, BadInput, Maximise, Minimise, Scale, Study, Watch
from studies.engine.watched import read_nightly

TESTS = Path(__file__).parent

# MLflow, SQLAlchemy and Ray warn about each other; what is ours still stops a test.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")]


# ---------------------------------------------------------------- what code a result depends on

CORE = {
    "core/__init__.py": "",
    "core/maths.py": '''
        SCALE = 2.0
        def used(x):
            """Doubles."""
            return x * SCALE
        def unused(x):
            return x
        ''',
    "core/passed_on.py": "from core.maths import used\n",
    "core/other.py": "class Other:\n    size = 1\n",
    "core/made.py": '''
        class Table:
            version = 1
            def needs(self): return ()
            def make(self, out, context): return 1
        ''',
    "core/model.py": '''
        from typing import TYPE_CHECKING
        import json
        from core import made
        from core.other import Other
        from core.passed_on import used
        if TYPE_CHECKING:
            from core.nowhere import Nothing
        class Model:
            other: Other | None = None
            def loss(self, x: Other) -> "Nothing":
                from core.late import late
                return used(x) + late(x)
            def table(self):
                return made.Table()
        ''',
    "core/late.py": "import numpy as np\ndef late(x):\n    return np.abs(x)\n",
}


class Core:
    """A few files, and a class that stands for one in them."""

    def __init__(self, root: Path):
        self.root = root
        for name, text in CORE.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text(textwrap.dedent(text))

    def version(self, module: str = "core.model", name: str = "Model") -> str:
        return CodeVersions(self.root)(self.stand_in(module, name))

    def table(self) -> dict[str, str]:
        return CodeVersions(self.root).table([self.stand_in("core.model", "Model")])

    @staticmethod
    def stand_in(module: str, name: str) -> type:
        return type(name, (), {"__module__": module, "__qualname__": name})

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text()
        assert old in text
        (self.root / name).write_text(text.replace(old, new))


@pytest.fixture
def core(tmp_path) -> Core:
    return Core(tmp_path)


def test_a_class_reaches_what_it_names_and_nothing_else(core):
    assert core.table().keys() == {
        "python", "package numpy", "core/__init__.py: on import", "core/model.py: Model", "core/model.py: on import",
        "core/maths.py: used", "core/maths.py: SCALE", "core/maths.py: on import", "core/passed_on.py: on import",
        "core/late.py: late", "core/late.py: on import"}


@pytest.mark.parametrize("name, old, new", [
    ("core/maths.py", '"""Doubles."""', '"""Twice as much."""  # a comment'),
    ("core/maths.py", "    return x * SCALE", "\n    return (x\n            * SCALE)"),
    ("core/maths.py", "def unused(x):\n    return x", "def unused(x):\n    return x + 1"),
    ("core/other.py", "size = 1", "size = 2"),                              # an annotation alone
    ("core/made.py", "return 1", "return 2"),                               # a stage has a key of its own
])
def test_what_does_not_count_changes_nothing(core, name, old, new):
    before = core.version()
    core.edit(name, old, new)
    assert core.version() == before


@pytest.mark.parametrize("name, old, new", [
    ("core/maths.py", "SCALE = 2.0", "SCALE = 2.5"), ("core/maths.py", "x * SCALE", "x + SCALE"),
    ("core/late.py", "np.abs(x)", "-x"), ("core/model.py", "used(x) + late(x)", "used(x) - late(x)"),
    ("core/model.py", "other: Other | None", "other: Other | int"), ("core/passed_on.py", "core.maths", "core.late"),
    ("core/maths.py", "SCALE = 2.0", "SCALE = 2.0\nprint()"),               # runs on import
])
def test_what_counts_changes_it(core, name, old, new):
    before = core.version()
    core.edit(name, old, new)
    assert core.version() != before


def test_a_new_release_of_a_package_counts(core, monkeypatch):
    before = core.version()
    monkeypatch.setattr(code_version, "installed", lambda package: "99")
    assert core.version() != before and core.version("core.made", "Table") == core.version("core.made", "Table")


def test_a_stage_counts_where_it_is_asked_about(core):
    before = core.version("core.made", "Table")
    core.edit("core/made.py", "return 1", "return 2")
    assert core.version("core.made", "Table") != before


def test_all_code_that_a_real_trial_runs_is_in_its_version(tmp_path):
    """Watched while it runs: a function that a stage calls and that its digest, or its needs', does not know would be a
    change that a night does not see."""
    from test_trial import tiny

    from trainables.config import classes
    from trainables.stages import Context, Stage, Store, upstream
    from trainables.text.corpora import Stories

    root, versions, ours = code_version.ROOT, CodeVersions(), f"{code_version.ROOT / 'trainables'}/"
    making: list[Stage | None] = [None]
    called: dict[Stage, set[tuple[str, str]]] = {}

    class Watching(Store):
        def get(self, stage: Stage, context: Context, make: Any = None) -> Path:
            def watched(*arguments: Any) -> None:
                making.append(stage)
                (make or stage.make)(*arguments)
                making.pop()
            making.append(None)                     # what the store does, naming stages included, is nobody's
            try:
                return super().get(stage, context, watched)
            finally:
                making.pop()

    def note(frame: Any, event: str, argument: Any) -> None:
        if making[-1] and (code := frame.f_code).co_filename.startswith(ours):
            called.setdefault(making[-1], set()).add((code.co_filename, code.co_qualname.partition(".")[0]))

    few = ("training.steps", "system.decoder.training.steps", "system.encoder.weights.training.steps")
    trial = tiny(Stories(size=100), dict.fromkeys(few, 4))
    sys.settrace(note)
    try:
        Context(Watching(tmp_path)).get(trial.metrics())
    finally:
        sys.settrace(None)
    assert len(called) > 5 and sum(map(len, called.values())) > 200
    harness = {"trainables.stages", "trainables.training.parallel"}         # where a stage runs, not what it says
    for stage, names in called.items():
        known = set().union(*(versions.reached(classes(each)) for each in upstream(stage)))
        said = {(".".join(Path(file).relative_to(root).with_suffix("").parts), name) for file, name in names}
        missed = {at for at in said - known if at[0] not in harness and not at[1].startswith("<")}
        assert not missed, type(stage).__name__


@pytest.mark.parametrize("changed, part", [("Scored", "has its samples: it is only scored"),
                                           ("Sampled", "is trained: it is sampled and scored"), ("Trained", None)])
def test_changed_code_runs_what_stands_on_it_and_nothing_else(tmp_path, changed, part):
    """Cells done with one state of the code, planned with another: what the store has of them is used."""
    from studies.engine.inline import Place, attempt
    from studies.engine.planning import make_plan
    from studies.engine.provenance import Code
    from studies.engine.study import Resources
    from trainables.stages import Store

    def planned(code: Any) -> Any:
        return make_plan(toy(), scale="laptop", why="", ledger=Ledger(tmp_path / "toy"), resources=Resources(), seeds=2,
                         store=Store(tmp_path / "stages", code=code), arms=["plain"])

    place = Place(study="toy", scale="laptop", data="Words", folder=tmp_path / "toy", store=str(tmp_path / "stages"),
                  resources=Resources(), code=Code("unknown", ""), by_code=lambda cls: cls.__name__)
    for cell in planned(place.by_code).missing:
        assert attempt(cell, place, lambda context, cell=cell: context.get(cell.scored()))["status"] == "done"
    assert not planned(lambda cls: cls.__name__).missing and len(planned(None).missing) == 2
    again = planned(lambda cls: cls.__name__ + "!" * (cls.__name__ == changed))
    assert len(again.missing) == 2 and set(again.reused.values()) == ({part} if part else set())
    assert {each.why for each in again.stale.values()} == {f"stage {changed} has another version or other code"}


# ---------------------------------------------------------------- what is said of pairs


def test_equal_to_the_last_bit_is_the_same_and_nothing_to_pair_is_open():
    assert judge([0.0, 0.0], 0.1, 0.01) == "same" and judge([], 0.1, 0.01) == "open"
    assert judge([0.5], 0.1, 0.01) == judge([0.5, 0.5], 0.1, 0.01) == "open"
    assert judge([0.5] * 3, 0.1, 0.01) == "regressed"
    assert judge([0.0, 0.0, 1e-9], 0.1, 0.01) == "fine" and judge([0.0, float("nan"), 0.0], 0.1, 0.01) == "open"


@pytest.mark.parametrize("loss, kind", [(1.0, "regressed"), (0.3, "open"), (0.0, "fine"), (-1.0, "improved")])
def test_the_margin_divides_what_matters_from_what_does_not(loss, kind):
    """Twelve pairs with a spread of .15: the bounds are about .2 to either side."""
    wobble = [0.1 * (-1) ** seed * (1 + seed / 12) for seed in range(12)]
    assert judge([loss + each for each in wobble], 0.3, 0.001) == kind


def test_bounds_of_a_mean_are_those_of_a_t_test():
    from scipy import stats

    values = [0.3, 0.1, 0.7, 0.2, 0.4]
    low, high = mean_bounds(values, 0.025)
    assert (low, high) == pytest.approx(tuple(stats.ttest_1samp(values, 0).confidence_interval(0.95)))
    narrow, wide = (metric_finding("a", "m", values, [0.0] * 5, 1, 0.1, 0.01, looks) for looks in (1, 3))
    assert narrow.low == pytest.approx(low) and (wide.low or math.inf) < (low or math.inf), "each look has a part"


def test_worse_is_more_of_what_is_minimised_and_less_of_what_is_maximised():
    before, now = [1.0, 1.1, 0.9, 1.05, 0.95], [2.0, 2.1, 1.9, 2.05, 1.95]
    assert metric_finding("a", "m", before, now, -1, 0.1, 0.01).kind == "regressed"
    assert metric_finding("a", "m", before, now, +1, 0.1, 0.01).kind == "improved"
    found = metric_finding("a", "m", before, now, -1, 0.1, 0.01)
    assert (found.loss, found.share, found.pairs) == (pytest.approx(1.0), pytest.approx(1.0), 5)


def test_speed_is_the_median_of_ratios_and_one_outlier_does_not_matter():
    before = [100.0 + i for i in range(12)]
    slow = [0.7 * b for b in before]
    assert speed_finding("a", before, slow, 0.1, 0.005).kind == "regressed"
    assert speed_finding("a", before, slow, 0.4, 0.005).kind == "fine"
    assert speed_finding("a", before, [1.0, *before[1:]], 0.1, 0.005).kind == "fine"
    assert speed_finding("a", before[:4], slow[:4], 0.1, 0.005).kind == "open", "four coins fall alike too often"
    assert speed_finding("a", [], [], 0.1, 0.005).loss is None


def test_bounds_of_a_median_err_as_often_as_they_say():
    from scipy import stats

    for n in (1, 5, 6, 7, 12, 25):
        for level in (0.25, 0.025, 0.001):
            low, high = median_bounds(list(range(n)), level)
            if low is None:
                assert stats.binom.cdf(0, n, 0.5) > level
                continue
            assert high == n - 1 - low
            assert stats.binom.cdf(low, n, 0.5) <= level < stats.binom.cdf(low + 1, n, 0.5)


# ---------------------------------------------------------------- the file

SAID = '''
    false_alarms = 0.01
    [studies.toy]
    study = "toy"
    scale = "laptop"
    seeds = 4
    most = 6
    speed = "15%"
    [studies.toy.margins]
    "test/error" = "2%"
    "test/quality" = 0.05
    '''


def toy(module: str = "fake_trial") -> Study:
    recipe = importlib.import_module(module).recipe
    return Study(name="toy", question="Which kind?", arms={"plain": Arm(), "fancy": Arm({"system.kind": "fancy"})},
                 scales={"laptop": Scale(recipe)},
                 report=(Minimise("test/error"), Maximise("test/quality"), Watch("threads")))


def found(name: str) -> Study:
    if name != "toy":
        raise BadInput(f"no study {name!r}")
    return toy()


def write(folder: Path, text: str = SAID) -> Path:
    path = folder / "nightly.toml"
    path.write_text(textwrap.dedent(text))
    return path


@pytest.mark.parametrize("old, new, words", [
    ("0.01", "0.7", "false_alarms: a share of nights, more than 0 and less than 0.5, not 0.7"),
    ("0.01", '"often"', "false_alarms: must be a number, not 'often'"),
    ("false_alarms", "false_alarm", "false_alarm: is not known (did you mean 'false_alarms'?)"),
    ('study = "toy"', 'study = "toi"', "studies.toy.study: no study 'toi'"),
    ('study = "toy"', "", "studies.toy.study: must be said"),
    ('"laptop"', '"laptob"', "studies.toy.scale: no scale 'laptob' (did you mean 'laptop'?)"),
    ("seeds = 4", "sceeds = 4", "studies.toy.sceeds: is not known (did you mean 'seeds'?)"),
    ("seeds = 4", "seeds = 2", "studies.toy.seeds: at least 3, not 2"),
    ("seeds = 4", "seeds = true", "studies.toy.seeds: must be a whole number, not True"),
    ("most = 6", "most = 3", "studies.toy.most: at least seeds = 4, not 3"),
    ("most = 6", "hours = -1.0", "studies.toy.hours: must be a positive number, not -1.0"),
    ("most = 6", 'arms = ["plane"]', "studies.toy.arms[0]: no arm 'plane' (did you mean 'plain'?)"),
    ("most = 6", "arms = []", "studies.toy.arms: name arms, each once, not []"),
    ("most = 6", "arms = [1]", "studies.toy.arms: must be a list of texts, not [1]"),
    ('"15%"', '"15"', "studies.toy.speed: a positive number in the metric's unit, or a share such as \"2%\", not '15'"),
    ('"2%"', "-1", "studies.toy.margins.test/error: a positive number in the metric's unit"),
    ("test/error", "test/eror", "margins.test/eror: toy reports no such metric (did you mean 'test/error'?)"),
    ("test/error", "threads", "studies.toy.margins.threads: has no better and no worse; these have: test/error"),
    ("[studies.toy]", "[studies.Toy]", "studies.Toy: a name is a folder's name"),
    ("false_alarms = 0.01", 'notify = ["https://secret"]', "notify[0]: the name of an environment variable"),
    ("[studies.toy]", "[studies.toy", "is not TOML"),
])
def test_a_file_that_is_wrong_is_refused_with_its_path(tmp_path, capsys, old, new, words):
    assert nightly(write(tmp_path, SAID.replace(old, new)), tmp_path / "out", find=found) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in " ".join(said.split()) and "Traceback" not in said
    assert not list(tmp_path.glob("out/nightly-*")), "nothing was started"


def test_what_is_typed_is_refused_too(tmp_path, capsys, monkeypatch):
    file = write(tmp_path)
    options: dict[str, Any]
    for options, words in (({"only": "toi"}, "--only: no study 'toi' (did you mean 'toy'?)"),
                           ({"accept": True}, "--accept: say whose last night"),
                           ({"accept": True, "only": "toy"}, "--accept: toy has no night"),
                           ({"json": tmp_path}, f"--json: {tmp_path} is a folder; name a file"),
                           ({"json": file / "x.json"}, f"--json: cannot write {file / 'x.json'}: File exists")):
        assert nightly(file, tmp_path / "out", find=found, **options) == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "out" / "nightly-toy").exists(), "nothing was started"
    assert nightly(tmp_path / "absent.toml", tmp_path / "out") == 2 and "cannot be read" in capsys.readouterr().err
    wrong = write(tmp_path, SAID.replace("most = 6", 'most = 6\n    set = ["training.stepps=3"]'))
    assert nightly(wrong, tmp_path / "out", find=found) == 2
    assert "training.stepps" in (said := capsys.readouterr().err) and "did you mean 'steps'" in said
    loud = write(tmp_path, 'notify = ["NIGHTLY_TEST_ADDRESS"]\n' + textwrap.dedent(SAID))
    assert nightly(loud, tmp_path / "out", find=found) == 2
    assert "NIGHTLY_TEST_ADDRESS is not set" in capsys.readouterr().err
    monkeypatch.setenv("NIGHTLY_TEST_ADDRESS", "nonsense://hunter2")
    assert nightly(loud, tmp_path / "out", find=found) == 2
    assert "no address that apprise knows" in (said := capsys.readouterr().err) and "hunter2" not in said


def test_the_shipped_file_is_good():
    shipped = read_nightly(TESTS.parent / "studies" / "nightly.toml")
    assert [watched.name for watched in shipped.studies] == ["encoder"] and shipped.studies[0].claims == 7


def test_a_second_night_at_work_is_told_apart(tmp_path, capsys):
    from filelock import FileLock

    with FileLock(tmp_path / ".night.lock"):
        assert nightly(write(tmp_path), tmp_path, find=found) == 75
    assert "another night is at work" in capsys.readouterr().err


def test_nothing_is_accepted_behind_the_back_of_a_night_at_work(tmp_path, capsys):
    """Which has read the history, and would write its own over what was accepted."""
    from filelock import FileLock

    History(tmp_path).add(night(cells(2.0), "regressed"))
    accept: dict[str, Any] = {"find": found, "only": "toy", "accept": True}
    with FileLock(tmp_path / ".night.lock"):
        assert nightly(write(tmp_path), tmp_path, **accept) == 75
    assert "another night is at work" in capsys.readouterr().err and not History(tmp_path).good_nights("toy")
    assert nightly(write(tmp_path), tmp_path, **accept) == 0 and len(History(tmp_path).good_nights("toy")) == 1


# ---------------------------------------------------------------- the history


def night(cells: list[dict], verdict: str = "pass", **more: Any) -> dict:
    return {"kind": "night", "study": "toy", "number": 1, "night": "2026-01-01", "at": 0.0, "host": "h",
            "commit": "c" * 40, "dirty": False, "code": {}, "scale": "laptop", "verdict": verdict, "why": "because",
            "findings": [], "compared_with": None, "changed": [], "suspects": [], "cells": cells} | more


def cells(error: float, key: str = "k", speed: float = 100.0, seeds: int = 6, **more: Any) -> list[dict]:
    return [{"arm": arm, "seed": seed, "key": f"{key}-{arm}-{seed}", "config": f"c-{arm}-{seed}", "status": "done",
             "reason": "", "host": "h", "speed": speed + seed,
             "metrics": {"test/error": error + seed, "test/quality": 10 - error - seed}} | more
            for arm in ("plain", "fancy") for seed in range(seeds)]


def judged(tmp_path: Path, good: list[dict] | None, now: list[dict], **more: Any) -> Any:
    watched = read_nightly(write(tmp_path), found).studies[0]
    return judge_night(watched, night(good) if good else None, cells_of({"cells": now}), **more)


def test_verdicts_of_a_night(tmp_path):
    good = cells(1.0)
    assert judged(tmp_path, None, good).word == "pass"
    assert judged(tmp_path, good, good).why.startswith("reused")
    assert judged(tmp_path, good, cells(1.0, key="other")).why == "the same to the last bit"
    worse = judged(tmp_path, good, cells(2.0, key="other"))
    assert worse.word == "regressed" and "plain: test/error 3.5 -> 4.5, worse by 1, +28.6 %" in worse.why
    assert judged(tmp_path, good, cells(0.5, key="other")).why == "within the margins"
    wild = [cell | {"metrics": cell["metrics"] | {"test/error": 5.0 * (-1) ** cell["seed"]}} for cell in good]
    assert judged(tmp_path, good, [cell | {"key": "x"} for cell in wild]).word == "inconclusive"
    lost = judged(tmp_path, good, [*good[1:], good[0] | {"status": "failed", "reason": "it broke"}])
    assert lost.word == "failed" and lost.why == "plain seed 0 failed: it broke"
    gone = judged(tmp_path, good, [good[0] | {"metrics": {"test/error": 1.0, "test/quality": None}}, *good[1:]])
    assert gone.word == "failed" and gone.why == "plain seed 0: test/quality has no value any more"
    assert judged(tmp_path, good, []).word == "failed"


def test_cells_of_another_config_are_no_pairs(tmp_path):
    good = cells(1.0, config="another")
    found = judged(tmp_path, good, cells(2.0))
    assert {each.pairs for each in found.findings} == {0} and found.word == "inconclusive"


def test_speed_counts_on_the_same_machine(tmp_path):
    good, slow = cells(1.0), cells(1.0, key="other", speed=50.0)
    found = judged(tmp_path, good, slow)
    assert found.word == "inconclusive" and "all arms: 48.8 % slower" in found.why, "12 cells can have one neighbour"
    assert found.why.endswith("; whether code or machine, the next night that runs tells")
    other = judged(tmp_path, good, [cell | {"hardware": "1 x other"} for cell in slow])
    assert other.word == "pass" and other.why.endswith(
        "; speed could not be compared: tonight ran on 1 x other, the good night on h")
    a_little = judged(tmp_path, good, [cell | {"speed": cell["speed"] * 1.8} for cell in slow if cell["seed"] < 3])
    assert a_little.word == "pass" and "; speed is open: all arms: " in a_little.why
    assert judged(tmp_path, good, [cell | {"key": cell["key"].replace("other", "k")} for cell in slow]).word == "pass"
    good, slow = cells(1.0, seeds=32), cells(1.0, key="other", speed=30.0, seeds=32)
    assert "all arms: 60.6 % slower" in (found := judged(tmp_path, good, slow)).why and found.word == "regressed"
    assert judged(tmp_path, good, slow, last=False).word == "inconclusive", "a busy hour is no regression yet"
    a, b = ([cell | {"hardware": "2 x this", "host": name} for cell in some] for name, some in
            (("gpu-1", good), ("gpu-7", slow)))
    assert judged(tmp_path, a, b).word == "regressed", "autoscaled machines are others every night, of one kind"


class Nights:
    """A history of nights with many cells, whose values stay what they are; only speeds count."""

    def __init__(self, folder: Path, seeds: int = 32):
        self.watched, self.history = read_nightly(write(folder), found).studies[0], History(folder / "nights")
        self.seeds, self.number = seeds, 0

    def __call__(self, speed: float, verdict: str | None = None, key: str | None = None) -> Verdict:
        """A night of this speed, remembered with what is said of it, or with `verdict`."""
        self.number += 1
        some = cells(1.0, key=key or f"k{self.number}", speed=speed, seeds=self.seeds)
        now = cells_of({"cells": some})
        past = self.history.past(self.watched, now)
        said = judge_night(self.watched, self.history.good(self.watched, now), now, past)
        self.history.add(night(some, verdict or said.word, number=self.number, why=said.why,
                               findings=[each.as_dict() for each in said.findings]))
        return said

    def by_chance(self) -> float:
        """What a night may lose here."""
        past = self.history.past(self.watched, cells_of({"cells": cells(1.0, key="next", seeds=self.seeds)}))
        return past.by_chance("all arms", self.watched.level)


def test_a_slow_machine_is_told_from_slow_code_by_several_nights(tmp_path):
    """Nights here differ by 10 %: 30 % slower can be chance once, and three times in a row it cannot."""
    nights = Nights(tmp_path)
    assert nights(100.0).word == "pass" and nights.by_chance() > 0.3, "nothing is known of this machine"
    for speed in (108.0, 92.0, 110.0, 88.0, 104.0, 89.0, 106.0, 90.0, 101.0, 100.0):
        assert nights(speed).word == "pass"
    assert 0.25 < nights.by_chance() < 0.4
    first = nights(62.0)
    assert first.word == "inconclusive" and first.slow and not any(each.kind == "regressed" for each in first.findings)
    again = nights(62.0, key="k12")
    assert again.word == "inconclusive" and "in a row" not in again.why, "the same cells again are no second night"
    second = nights(62.0)
    assert second.word == "regressed" and second.why.endswith("slow for 2 nights in a row"), second.why
    assert nights(63.0).why.endswith("slow for 3 nights in a row"), "nobody has mended it"
    assert nights(100.0).word == "pass"
    nights(62.0)
    nights(103.0)
    assert nights(62.0).word == "inconclusive", "no row"


def test_a_slow_night_that_passed_does_not_become_the_measure_and_what_is_accepted_does(tmp_path):
    nights = Nights(tmp_path)
    for speed in (100.0, 101.0, 99.0, 100.0, 100.0):
        nights(speed)
    assert nights(87.0).word == "pass"
    assert nights(50.0).word == "regressed", "the five nights before it know better"
    assert nights.history.accept("toy") == 7
    assert nights(50.0).word == "pass" and nights(50.0).word == "pass"
    for _ in range(4):
        assert nights(150.0).word == "pass"
    assert nights(45.0).word == "regressed", "faster code is the measure by now"


def test_few_cells_need_a_second_night(tmp_path):
    nights = Nights(tmp_path, seeds=6)
    for speed in (100.0, 101.0, 99.0, 100.0, 100.0):
        nights(speed)
    assert nights(55.0).word == "inconclusive"
    assert nights(55.0).word == "regressed"


def test_a_seed_that_few_nights_ran_is_compared_with_its_arm_on_the_others(tmp_path):
    nights = Nights(tmp_path)
    nights(50.0)                                            # all seeds beside a neighbour
    nights.seeds = 4
    for _ in range(5):
        nights(100.0)
    nights.seeds = 32
    now = cells_of({"cells": cells(1.0, key="now", seeds=32)})
    reference = nights.history.past(nights.watched, now).reference
    assert reference["plain", 3] == 103.0 and reference["plain", 30] == 101.5


def test_machines_that_wander_are_known_and_code_that_became_faster_is_no_wandering(tmp_path):
    watched, history = read_nightly(write(tmp_path), found).studies[0], History(tmp_path)

    def by_chance(*losses: float, claim: str = "all arms", **more: Any) -> float:
        for loss in losses:
            fact = speed_finding("all arms", [1.0] * 20, [1.0 - loss] * 20, 0.15, 0.01).as_dict()
            history.add(night(cells(1.0), number=len(history.nights("toy")) + 1, findings=[fact], **more))
        return history.past(watched, cells_of({"cells": cells(1.0)})).by_chance(claim, watched.level)

    unknown = by_chance()
    assert 2 * 0.15 < unknown < 4 * 0.15, "twice the margin could be the machine, before there are nights"
    assert by_chance(*[-1.0] * 3) == pytest.approx(unknown), "faster"
    assert by_chance(0.4, verdict="regressed") == pytest.approx(unknown), "what was found is no wandering"
    assert (quiet := by_chance(*[0.02] * 10)) < 0.2
    assert by_chance(0.25, verdict="inconclusive") == pytest.approx(quiet), "nobody knows yet"
    assert (noisy := by_chance(0.02)) > quiet, "it went by, so it was the machine"
    assert by_chance(claim="plain") == pytest.approx(unknown)
    by_chance(0.9, verdict="regressed")
    history.accept("toy")
    assert noisy < by_chance() < 0.6, "one night that was accepted counts, as far as two margins"
    assert by_chance(*[0.01] * 20) < quiet, "of long ago"


def at_night(watched: Any, good: list[dict], now: list[dict]) -> tuple[Verdict, list[int]]:
    """What settle() says of a night whose cells would be these, and the seeds that it looked at."""
    seen: list[int] = []

    def look(seeds: int, last: bool) -> Verdict:
        seen.append(seeds)
        return judge_night(watched, night(good), cells_of({"cells": [cell for cell in now if cell["seed"] < seeds]}),
                           None, last)

    return settle(watched, len({cell["seed"] for cell in good}), look), seen


def test_a_slow_down_at_equal_values_is_found_by_more_seeds(tmp_path):
    """The shipped file: one look's eight pairs can never tell, 128 can; a busy hour at the beginning is none."""
    watched = read_nightly(write(tmp_path, SAID.replace("most = 6", "most = 64")), found).studies[0]
    good, slow = cells(1.0, seeds=64), cells(1.0, key="other", seeds=64)
    for cell in slow:
        cell["speed"] *= 0.45
    verdict, seen = at_night(watched, good, slow)
    assert verdict.word == "regressed" and seen == [4, 8, 16, 32, 64] and "all arms: 55.0 % slower" in verdict.why
    hour = [cell if cell["seed"] < 4 else cell | {"speed": cell["speed"] / 0.45} for cell in slow]
    verdict, seen = at_night(watched, good, hour)
    assert verdict.word == "pass" and seen == [4, 8, 16, 32, 64], "once slow, the last look tells"
    one = [cell if cell["arm"] == "fancy" else cell | {"speed": cell["speed"] / 0.45} for cell in slow]
    verdict, _ = at_night(watched, good, one)
    assert verdict.word == "regressed" and verdict.why.startswith("fancy: 55.0 % slower")


@pytest.mark.parametrize("what", ["test/quality", "tokens per second"])
def test_what_the_look_that_fills_a_night_up_finds_is_not_thrown_away(tmp_path, what):
    """The first four seeds lose less than the margin, and pass; all 64 lose more."""
    watched = read_nightly(write(tmp_path, SAID.replace("most = 6", "most = 64")), found).studies[0]
    good, now = cells(1.0, seeds=64), cells(1.0 + 1e-9, key="other", seeds=64)
    for cell in now:
        first = cell["seed"] < 4
        if what == "test/quality":
            cell["metrics"][what] -= (0.04 if first else 0.11) + 1e-6 * cell["seed"]
        else:
            cell["speed"] *= 0.9 if first else 0.45
    verdict, seen = at_night(watched, good, now)
    assert verdict.word == "regressed" and seen == [4, 64]
    assert {found.metric for found in verdict.findings if found.kind == "regressed"} == {what}


def test_a_processor_has_a_name(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: AMD  EPYC 7B13\n\nmodel name : again\n")
    assert hardware(tmp_path / "cpuinfo") == f"{os.cpu_count()} x AMD EPYC 7B13"
    assert processor(tmp_path / "absent")


def test_suspects_are_named_or_it_is_said_where_to_ask(tmp_path, monkeypatch):
    """Outside of a repository, as in an image."""
    watched = read_nightly(write(tmp_path), found).studies[0]
    some = StudyNight(watched, History(tmp_path / "out"), code_version.current(), print, tmp_path)
    bad = Verdict("regressed", "", ())
    assert some.suspects(night([]), bad, ["a.py: f", "b.py: g", "package torch"], "d" * 40, False) == [
        "commits that are not known here; where the repository is: git log cccccccccccc..dddddddddddd -- a.py b.py",
        "package torch"]
    assert some.suspects(night([]), bad, ["a.py: f"], "unknown", False)[0].startswith("commits that are not known: the")
    assert some.suspects(night([]), bad, ["package torch"], "unknown", False) == ["package torch"]


def test_the_history_is_whole_and_finds_the_good_night(tmp_path):
    watched = read_nightly(write(tmp_path), found).studies[0]
    history = History(tmp_path)
    now = cells_of({"cells": cells(1.0)})
    assert history.good(watched, now) is None and history.accept("toy") is None
    history.add(night(cells(1.0)))
    history.add(night(cells(2.0), "regressed", number=2))
    history.add(night(cells(3.0, config="another"), number=3))
    with open(history.path, "a") as file:
        file.write('{"kind": "night", "torn')
    again = History(tmp_path)
    assert [line["number"] for line in again.nights("toy")] == [1, 2, 3]
    good = again.good(watched, now)
    assert good is not None and good["number"] == 1, "2 has regressed, and 3 has no pairs"
    again.add(night(cells(2.0), "regressed", number=4))
    assert again.accept("toy") == 4 and (good := History(tmp_path).good(watched, now)) and good["number"] == 4
    assert not list(tmp_path.glob(".nights.jsonl.*"))


def test_checkpoints_of_old_code_are_cleared_and_what_is_compared_with_is_kept(tmp_path):
    watched, history, ledger = read_nightly(write(tmp_path), found).studies[0], History(tmp_path), Ledger(
        tmp_path / "nightly-toy")
    for number, verdict in enumerate(["pass", "regressed", "regressed", "regressed"], start=1):
        some = cells(float(number), key=f"k{number}")
        for cell in some:
            ledger.write_cell({"key": cell["key"], "stages": ["Table-1", f"Trained-{number}"], "ended": float(number)})
        history.add(night(some, verdict, number=number, at=float(number)))
    ledger.write_cell({"key": "of-a-night-that-was-stopped", "stages": ["Trained-5"], "ended": 4.5})
    for name in ("Table-1", "Trained-1", "Trained-2", "Trained-3", "Trained-4", "Trained-5", "Trained-of-a-study"):
        (tmp_path / "stages" / name).mkdir(parents=True)
    assert clear(history, [watched], keep=2) == ["Trained-2"] and clear(history, [watched], keep=2) == []
    assert {path.name for path in (tmp_path / "stages").iterdir()} == {
        "Table-1", "Trained-1", "Trained-3", "Trained-4", "Trained-5", "Trained-of-a-study"}


def test_changed_definitions_are_found_between_two_nights(tmp_path):
    history = History(tmp_path)
    old = history.keep_code({"a.py: f": "1", "a.py: g": "1", "package torch": "2.13"})
    new = history.keep_code({"a.py: f": "2", "a.py: h": "1", "package torch": "2.14"})
    assert history.changed({"plain": old}, {"plain": new}) == ["a.py: f", "a.py: g", "a.py: h", "package torch"]
    assert history.keep_code({"a.py: f": "2", "a.py: h": "1", "package torch": "2.14"}) == new


# ---------------------------------------------------------------- whom it is told


BAD = night(cells(2.0), "regressed", number=2, why="plain: test/error is worse",
            suspects=["abc123 anna: faster <loss>"], changed=["trainables/a.py: loss"],
            compared_with={"number": 1, "night": "2026-01-01", "commit": "d" * 40},
            findings=[metric_finding("plain", "test/error", [1.0, 1.1, 1.2, 1.3], [2.0, 2.1, 2.2, 2.3], -1, 0.1,
                                     0.01).as_dict()])


@contextlib.contextmanager
def hook(status: int = 200) -> Iterator[tuple[str, list]]:
    """A webhook on this machine, and what it got."""
    got: list = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def mailbox() -> Iterator[tuple[int, list[str]]]:
    """A mail server on this machine, and the letters that it took."""
    letters: list[str] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 here\r\n")
        while line := (await reader.readline()).decode().strip():
            command = line.upper()
            if command == "DATA":
                writer.write(b"354 go on\r\n")
                letters.append((await reader.readuntil(b"\r\n.\r\n")).decode())
            writer.write(b"221 bye\r\n" if command == "QUIT" else b"250 yes\r\n")
            if command == "QUIT":
                break
        writer.close()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(take, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1], letters
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def test_a_webhook_gets_what_slack_reads(monkeypatch):
    with hook() as (url, got):
        monkeypatch.setenv("NIGHTLY_TEST_ADDRESS", f"{url}/services/T0/B0/sec%20ret?thread=7")
        assert send([BAD], addresses(["NIGHTLY_TEST_ADDRESS"])) == []
    (path, payload), = got
    assert path == "/services/T0/B0/sec%20ret?thread=7" and payload == {"text": message([BAD])}
    assert "1 regressed at cccccccccccc" in payload["text"]
    assert "suspected: abc123 anna: faster <loss>" in payload["text"]
    assert "plain: test/error 1.15 -> 2.15, worse by 1, +87.0 %" in payload["text"]
    assert slack_like("mailtos://user:pass@host") == "mailtos://user:pass@host"


def test_mail_is_sent(monkeypatch):
    with mailbox() as (port, letters):
        monkeypatch.setenv("NIGHTLY_TEST_ADDRESS", f"mailto://127.0.0.1:{port}?from=night@example.org&to=team@example.org")
        assert send([BAD], addresses(["NIGHTLY_TEST_ADDRESS"])) == []
    import email
    import email.policy

    letter = email.message_from_string(letters[0], policy=email.policy.default)
    assert "team@example.org" in letter["To"] and letter["Subject"].startswith("Nightly 2026-01-01: 1 regressed")
    body = letter.get_body(("plain", "html"))
    assert body is not None and "suspected: abc123" in body.get_content()


def test_an_address_that_does_not_answer_is_known_by_its_variable(monkeypatch, caplog, capsys):
    with hook(500) as (url, got):
        monkeypatch.setenv("NIGHTLY_TEST_ADDRESS", f"{url}/hunter2")
        assert send([BAD], addresses(["NIGHTLY_TEST_ADDRESS"])) == ["NIGHTLY_TEST_ADDRESS"] and got
    nobody = {"NIGHTLY_TEST_ADDRESS": slack_like(f"{url}/hunter2")}
    assert send([BAD], nobody) == ["NIGHTLY_TEST_ADDRESS"]
    assert "hunter2" not in caplog.text + "".join(capsys.readouterr())


def test_a_night_that_failed_is_told_to_whom_the_file_names(tmp_path, monkeypatch, capsys):
    """Standard input of `python -m studies.engine.notices`: mail too; a file that is the trouble is no reason."""
    file = write(tmp_path, 'notify = ["NIGHTLY_TEST_ADDRESS", "NIGHTLY_TEST_UNSET"]')
    monkeypatch.delenv("PALIMPSEST_NOTIFY", raising=False)
    assert main("night failed", "night on h: exit 2", file) == 1, "nobody to tell"
    with hook() as (url, got), mailbox() as (port, letters):
        monkeypatch.setenv("PALIMPSEST_NOTIFY", f"{url}/hunter2")
        monkeypatch.setenv("NIGHTLY_TEST_ADDRESS", f"mailto://127.0.0.1:{port}?from=night@example.org&to=team@example.org")
        assert main("night failed", "night on h: exit 2", file) == 0
        assert main("night failed", "again", write(tmp_path, "notify = [")) == 0
        monkeypatch.setenv("NIGHTLY_TEST_ADDRESS", "nonsense://hunter2")
        assert main("night failed", "third", write(tmp_path, 'notify = ["NIGHTLY_TEST_ADDRESS"]')) == 0, "one took it"
    assert [payload["text"] for _, payload in got] == ["night on h: exit 2", "again", "third"] and len(letters) == 1
    assert "Subject: night failed" in letters[0] and "night on h: exit 2" in letters[0]
    assert main("night failed", "fourth", file) == 1 and "not told: PALIMPSEST_NOTIFY" in (
        said := capsys.readouterr().err) and "hunter2" not in said


def test_trouble_and_its_end_are_said_and_peace_is_not():
    fine = night(cells(1.0))
    assert worth_saying([BAD], {}) and worth_saying([fine], {"toy": "regressed"})
    assert not worth_saying([fine], {"toy": "pass"}) and not worth_saying([fine], {})


def test_the_summary_says_what_how_much_and_who():
    text = markdown([BAD])
    assert "## ❌ toy: regressed" in text and "| plain | test/error | 1.15 | 2.15 | +1 |" in text
    assert "- abc123 anna: faster <loss>" in text and "- trainables/a.py: loss" in text


# ---------------------------------------------------------------- nights for real


class Repository:
    """A repository with the code of a trial, and a folder of nights."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.out = folder / "repository", folder / "nights"
        self.folder.mkdir()
        self.file = write(folder)
        self.trial = self.folder / "night_trial.py"
        self.trial.write_text((TESTS / "fake_trial.py").read_text())
        monkeypatch.syspath_prepend(str(self.folder))
        monkeypatch.setenv("PYTHONPATH", f"{self.folder}:{TESTS}")
        for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
            monkeypatch.delenv(name, raising=False)
        self.git("init", "-q")
        self.commit("the trial")
        sys.modules.pop("night_trial", None)                   # another test's repository had one
        code_version.current.cache_clear()
        self.module = importlib.import_module("night_trial")

    def git(self, *arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(self.folder), "-c", "user.name=anna", "-c", "user.email=anna@example.org", *arguments],
            capture_output=True, text=True, check=True).stdout

    def commit(self, words: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", words)

    def edit(self, old: str, new: str, words: str) -> None:
        text = self.trial.read_text()
        assert old in text
        self.trial.write_text(text.replace(old, new))
        self.commit(words)
        importlib.reload(self.module)
        code_version.current.cache_clear()

    @staticmethod
    def found(name: str) -> Study:
        return toy("night_trial")

    def night(self, **options: Any) -> tuple[int, dict]:
        """The exit code, and what --json says of the one study."""
        said = self.out.parent / "night.json"
        ended = nightly(self.file, self.out, json=said, find=self.found, root=self.folder, **options)
        result = json.loads(said.read_text())
        assert result["exit"] == ended
        return ended, result["nights"][0]


def test_a_slow_down_is_found_although_every_value_is_what_it_was(tmp_path, monkeypatch):
    """Seen by more seeds than the first look has, and, these being few, by a second night; each is told once, which
    whoever started the night can see."""
    monkeypatch.setenv("INVOCATION_ID", "0123")
    repository = Repository(tmp_path, monkeypatch)
    repository.edit('context.record(step, {"train/loss": total',
                    'context.record(step, {"train/tokens_per_second": 1000.0 + self.seed, "train/loss": total',
                    "a meter")
    assert repository.night()[0] == 0
    repository.edit('1000.0 + self.seed', '450.0 + self.seed', "careful copies")
    with hook() as (url, got):
        monkeypatch.setenv("NIGHTLY_TEST_ADDRESS", url)
        repository.file.write_text('notify = ["NIGHTLY_TEST_ADDRESS"]\n' + repository.file.read_text())
        ended, second = repository.night()
        assert ended == 0 and second["verdict"] == "inconclusive" and len(second["cells"]) == 12
        assert len(got) == 1 and "all arms: 54.9 % slower" in got[0][1]["text"]
        repository.edit('450.0 + self.seed', '451.0 + self.seed', "less careful")
        ended, third = repository.night()
    assert ended == 3 and third["why"].startswith("all arms: 54.8 % slower (95 % interval +54.6 to +54.9 %)")
    assert third["why"].endswith("median of 12 pairs, slow for 2 nights in a row"), third["why"]
    assert {found["kind"] for found in third["findings"] if found["metric"].startswith("test/")} == {"same"}
    assert {suspect.partition(" ")[2] for suspect in third["suspects"]} == {
        "anna: careful copies", "anna: less careful"}
    assert len(got) == 2 and "slower" in got[1][1]["text"]
    assert (repository.out / "told").read_text() == "0123\n"

    repository.edit('451.0 + self.seed', '452.0 + self.seed', "even less")
    write(tmp_path, SAID.replace("most = 6", "most = 6\n    hours = 1e-9"))
    ended, fourth = repository.night()
    assert ended == 1 and fourth["why"].startswith("no cell has ended; hours = 1e-09 do not reach: "), fourth["why"]
    assert fourth["why"].endswith("and 8 of 8 cells were not run")


def test_a_regression_is_found_with_its_commit_and_nothing_else_is_run(tmp_path, monkeypatch, capsys):
    repository = Repository(tmp_path, monkeypatch)
    with hook() as (url, got):
        monkeypatch.setenv("NIGHTLY_TEST_ADDRESS", url)
        repository.file.write_text('notify = ["NIGHTLY_TEST_ADDRESS"]\n' + repository.file.read_text())
        ended, first = repository.night()
        assert ended == 0 and first["why"].startswith("the first night") and len(first["cells"]) == 12
        records = set(repository.out.glob("nightly-toy/cells/*.json"))

        repository.edit('"""What a scale of a study takes."""', '"""What a scale takes."""  # in short', "words")
        ended, second = repository.night()
        assert ended == 0 and second["why"].startswith("reused") and not second["changed"]
        assert set(repository.out.glob("nightly-toy/cells/*.json")) == records and len(second["cells"]) == 12
        assert not got, "peace is not news"

        repository.edit("total += float(", "total += 0.2 + float(", "a faster sum")
        repository.edit("samples_drawn: int = 8", "samples_drawn: int = 8  # many", "more words")
        capsys.readouterr()
        assert nightly(repository.file, repository.out, find=repository.found, root=repository.folder,
                       dry_run=True) == 0
        assert "changed since: night_trial.py: Trained" in capsys.readouterr().out
        ended, third = repository.night()
        assert ended == 3 and third["verdict"] == "regressed"
        assert third["compared_with"]["number"] == 2 and third["changed"] == ["night_trial.py: Trained"]
        suspects = [suspect.partition(" ")[2] for suspect in third["suspects"]]
        assert "anna: a faster sum" in suspects and "anna: words" not in suspects
        loss = next(each for each in third["findings"] if each["metric"] == "test/error")
        assert loss["loss"] == pytest.approx(2.0, abs=1e-6) and loss["kind"] == "regressed" and loss["pairs"] == 4
        assert len(got) == 1 and "toy: regressed" in got[0][1]["text"] and "a faster sum" in got[0][1]["text"]
        assert len(list(repository.out.glob("stages/Table-*/table.json"))) == 2, "the tables were not made again"

        assert nightly(repository.file, repository.out, find=repository.found, root=repository.folder,
                       only="toy", accept=True) == 0
        ended, fourth = repository.night()
        assert ended == 0 and fourth["why"].startswith("reused") and fourth["compared_with"]["number"] == 3
        assert len(got) == 2 and "toy: pass" in got[1][1]["text"], "the end of trouble is news"

    from mlflow import MlflowClient
    client = MlflowClient(tracking_uri=f"sqlite:///{repository.out}/mlflow.db")
    experiment = client.get_experiment_by_name("nightly-toy")
    assert experiment is not None
    parent, = client.search_runs([experiment.experiment_id], "tags.kind = 'study'")
    assert (parent.data.tags["verdict"], parent.data.tags["night"], parent.data.tags["nightly"]) == (
        "pass", "4", fourth["night"])
    assert parent.data.tags["commit"] == repository.git("rev-parse", "HEAD").strip()
    curve = client.get_metric_history(parent.info.run_id, "plain/test/error")
    assert [point.step for point in curve] == [1, 2, 3, 4] and curve[2].value == pytest.approx(curve[1].value + 2)
    html = (repository.out / "history.html").read_text()
    assert "test/error ↓  margin 2 %" in html and html.count('class="mark"') == 2 and "a faster sum" in html
    assert "http" not in html.replace("http://www.w3.org/2000/svg", ""), "the page stands alone"
