"""Nights: the file of what is watched, the history and its verdicts, and nights for real."""

import importlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from listening import hook
from toy_night import SAID, cells, found, judged, night, toy, write

from studies.engine import code_version
from studies.engine.clearing import clear
from studies.engine.hardware import hardware, processor
from studies.engine.ledger import Ledger
from studies.engine.night import StudyNight
from studies.engine.nightly import nightly
from studies.engine.nights import History, Verdict, cells_of
from studies.engine.study import Study
from studies.engine.watched import read_nightly

TESTS = Path(__file__).parent

# MLflow, SQLAlchemy and Ray warn about each other; what is ours still stops a test.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")]


# ---------------------------------------------------------------- the file


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
