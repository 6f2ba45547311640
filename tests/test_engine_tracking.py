"""The shipper: exactly once, whatever the server does in between."""

import sqlite3
import time

import pytest
from served import Server, wait

from studies.engine.ledger import Outbox, curves
from studies.engine.shipping import Journal, Shipper, run_ids
from studies.engine.study import BadInput
from studies.engine.tracking import Tracking

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")]


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def tell(out, key: str, steps: range, end: str | None) -> None:
    outbox = Outbox(out / "toy" / "outbox" / f"{key}.jsonl")
    params = {f"p.{i}": i for i in range(150)} | {"long": "x" * 9999}
    outbox.start(key=key, name=f"cell {key}", tags={"arm": "a"}, params=params,
                 data={"name": "Words", "digest": "1", "config": {}}, texts={"config.json": "{}"})
    for step in steps:
        outbox.record(step, {"train/loss": 1 / step, "odd name!": float("nan")})
    if end:
        metrics = {"test/error": 2.0, "train/loss": 1 / steps[-1]}       # what training ended with is among them
        outbox.end(end, 1.0, metrics=metrics, reason="" if end == "done" else "because")
    outbox.close()


def state(tracking: Tracking) -> dict:
    """Everything the server knows, by key."""
    client, found = tracking.client, {}
    for run in client.search_runs([tracking.experiment]):
        curve = client.get_metric_history(run.info.run_id, "train/loss")
        assert run.inputs is not None
        found[run.data.tags["trial_key"]] = (
            run.info.run_id, run.info.status, [point.step for point in curve], run.data.metrics.get("test/error"),
            len(run.data.params), len(run.inputs.dataset_inputs))
    return found


def test_a_server_that_is_away_is_a_backlog_and_a_replay_changes_nothing(out, monkeypatch):
    tracking = Tracking("toy", out)
    shipper = Shipper(tracking, out / "toy" / "outbox")
    tell(out, "k1", range(1, 4), None)
    assert shipper.drain()
    assert state(tracking)["k1"][1:] == ("RUNNING", [1, 2, 3], None, 151, 1)

    def down(*arguments, **named):
        raise ConnectionError("down for minutes")

    with monkeypatch.context() as away:
        away.setattr(tracking.client, "log_batch", down)
        tell(out, "k1", range(2, 6), "done")             # resumed: steps 2 and 3 again
        tell(out, "k2", range(1, 1200), "failed")
        assert not shipper.drain() and "down for minutes" in shipper.problem
    assert shipper.drain()
    known = state(tracking)
    assert known["k1"][1:] == ("FINISHED", [1, 2, 3, 4, 5], 2.0, 151, 1)
    assert known["k2"][1:3] == ("FAILED", list(range(1, 1200)))
    assert run_ids(out / "toy" / "outbox", out) == {key: known[key][0] for key in ("k1", "k2")}

    for path in (out / "toy" / "outbox").glob(".shipped-*"):
        path.unlink()                                    # all is forgotten, so all is sent again
    again = Tracking("toy", out)
    assert Shipper(again, out / "toy" / "outbox").drain()
    assert state(again) == known


def test_a_database_that_was_restored_is_filled_again(out):
    """It has forgotten what the journal knows; then everything is sent again, to the runs that are left."""
    first = Tracking("toy", out)
    tell(out, "k1", range(1, 4), "done")
    assert Shipper(first, out / "toy" / "outbox").close()
    with sqlite3.connect(out / "mlflow.db") as database, sqlite3.connect(out / "backup.db") as backup:
        database.backup(backup)
    tell(out, "k1", range(4, 6), "done")
    tell(out, "k2", range(1, 3), "done")
    assert Shipper(Tracking("toy", out), out / "toy" / "outbox").close()
    known = state(first)
    with sqlite3.connect(out / "mlflow.db") as database, sqlite3.connect(out / "backup.db") as backup:
        backup.backup(database)
    assert "k2" not in state(first) and state(first)["k1"][2] == [1, 2, 3]
    assert Shipper(Tracking("toy", out), out / "toy" / "outbox").close()
    restored = state(first)
    assert restored["k1"] == known["k1"] and restored["k2"][1:] == known["k2"][1:]


def copy(source, target) -> None:
    with sqlite3.connect(source) as a, sqlite3.connect(target) as b:
        a.backup(b)


def test_a_backup_of_this_very_session_is_filled_again(out):
    """The head dies at work, and a backup of the same session comes back: the marks are equal, and a run is missing."""
    tracking = Tracking("toy", out)
    shipper = Shipper(tracking, out / "toy" / "outbox")
    tell(out, "k1", range(1, 4), "done")
    assert shipper.drain()
    copy(out / "mlflow.db", out / "backup.db")
    tell(out, "k2", range(1, 3), None)
    assert shipper.drain()
    copy(out / "backup.db", out / "mlflow.db")
    assert tracking.token() == shipper.journal.token and "k2" not in state(tracking)
    tell(out, "k2", range(1, 6), "done")
    assert Shipper(Tracking("toy", out), out / "toy" / "outbox").close()
    assert state(tracking)["k2"][1:4] == ("FINISHED", [1, 2, 3, 4, 5], 2.0)


def test_a_restored_database_without_its_mark_gets_the_points_back(out):
    """No run is missing, only what was told after the backup; restore.sh takes the mark off, also under a driver."""
    tracking = Tracking("toy", out)
    shipper = Shipper(tracking, out / "toy" / "outbox")
    tell(out, "k1", range(1, 4), None)
    assert shipper.drain()
    copy(out / "mlflow.db", out / "backup.db")
    tell(out, "k1", range(1, 8), None)
    assert shipper.drain() and state(tracking)["k1"][2] == [1, 2, 3, 4, 5, 6, 7]
    copy(out / "backup.db", out / "mlflow.db")
    with sqlite3.connect(out / "mlflow.db") as database:
        database.execute("delete from tags where key = 'journal'")
    assert state(tracking)["k1"][2] == [1, 2, 3]
    tell(out, "k1", range(1, 10), "done")
    assert shipper.close()
    assert state(tracking)["k1"][1:3] == ("FINISHED", [1, 2, 3, 4, 5, 6, 7, 8, 9])


def test_sent_again_a_superseded_point_stays_the_one_of_its_step(out):
    """On another machine a resumed step came out otherwise, after it was shipped; then all is sent again."""
    path = out / "toy" / "outbox" / "k1.jsonl"
    for value in (1.0, 2.0):
        outbox = Outbox(path)
        outbox.start(key="k1", name="cell", params={}, tags={})
        outbox.record(1, {"train/loss": value})
        outbox.close()
        assert Shipper(Tracking("toy", out), out / "toy" / "outbox").drain()
    (journal,) = path.parent.glob(".shipped-*")
    journal.unlink()
    tracking = Tracking("toy", out)
    assert Shipper(tracking, path.parent).drain()
    history = tracking.client.get_metric_history(tracking.runs["k1"], "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0)]


def test_a_server_must_answer_once_and_may_be_away_from_then_on(out, monkeypatch):
    """Between two rounds of a study: no bad input after hours of work, but a backlog."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(BadInput, match="no tracking server answers"):
        Tracking("toy", out).insist()
    later = Tracking("toy", out, answered=True)
    later.insist()
    tell(out, "k1", range(1, 4), "done")
    shipper = Shipper(later, out / "toy" / "outbox")
    assert not shipper.drain() and "no tracking server answers" in shipper.problem
    assert not shipper.close()
    later.settle()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    back = Tracking("toy", out)
    assert Shipper(back, out / "toy" / "outbox").close() and state(back)["k1"][1] == "FINISHED"


def test_a_report_beside_a_driver_leaves_its_journal_alone(out):
    outboxes = out / "toy" / "outbox"
    outboxes.mkdir(parents=True)
    journal = Journal(outboxes, journal_uri(out))
    for offset in range(200):
        journal.shipped("k1", offset, "run", False)
    written = journal.path.read_text()
    assert run_ids(outboxes, out) == {"k1": "run"} and journal.path.read_text() == written
    Shipper(Tracking("toy", out), outboxes)                # who leads the study may make it short
    assert len(journal.path.read_text()) < len(written) and Journal(outboxes, journal_uri(out)).offsets == {"k1": 199}


def journal_uri(out) -> str:
    return f"sqlite:///{out / 'mlflow.db'}"


def test_no_run_stays_running_behind_a_dead_driver(out):
    tracking = Tracking("toy", out)
    for key in ("continues", "removed"):
        tell(out, key, range(1, 3), None)
    Shipper(tracking, out / "toy" / "outbox").drain()
    Tracking("toy", out).settle({"continues"})
    assert {key: entry[1] for key, entry in state(tracking).items()} == {
        "study": "KILLED", "continues": "RUNNING", "removed": "KILLED"}


def test_a_shared_stage_has_a_run_of_its_own(out):
    outbox = Outbox(out / "toy" / "outbox" / "stage-Table-1.jsonl")
    outbox.start(key="Table-1", name="Table (plain, fancy)", params={"kind": "plain"}, tags={"stage": "Table"})
    outbox.record(5, {"train/loss": 0.5})
    outbox.end("done", 1.0)
    outbox.close()
    tracking = Tracking("toy", out)
    assert Shipper(tracking, out / "toy" / "outbox").drain()
    runs = {run.data.tags["kind"]: run for run in tracking.client.search_runs([tracking.experiment])}
    assert set(runs) == {"study", "stage"} and runs["study"].data.metrics == {}
    stage = runs["stage"]
    assert stage.data.metrics == {"train/loss": 0.5} and stage.data.params == {"kind": "plain"}
    assert stage.info.run_name == "Table (plain, fancy)" and stage.info.status == "FINISHED"
    assert stage.data.tags["mlflow.parentRunId"] == runs["study"].info.run_id
    tracking.settle()                                     # the parent runs on only while a driver does
    assert tracking.client.get_run(tracking.runs["study"]).info.status == "KILLED"


def test_points_past_the_checkpoint_are_superseded_and_not_doubled(out):
    """The first attempt dies after step 4; the second begins at step 3 with another number of workers."""
    path = out / "toy" / "outbox" / "k1.jsonl"
    for attempt in (1, 2):
        outbox = Outbox(path)
        outbox.start(key="k1", name="cell", params={}, tags={})
        for step in range(1, 5) if attempt == 1 else range(3, 7):
            outbox.record(step, {"train/loss": step + (0.125 if attempt == 2 and step == 4 else 0.0)})
        if attempt == 2:
            outbox.end("done", 1.0)
        outbox.close()
    expected = {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.125, 5: 5.0, 6: 6.0}
    assert curves(path) == {"train/loss": expected}
    tracking = Tracking("toy", out)
    assert Shipper(tracking, out / "toy" / "outbox").drain()
    history = tracking.client.get_metric_history(tracking.runs["k1"], "train/loss")
    assert [(point.step, point.value) for point in history] == list(expected.items())


def test_a_journal_line_torn_by_a_kill_costs_a_replay_and_no_more(out):
    tell(out, "k1", range(1, 4), "done")
    tracking = Tracking("toy", out)
    assert Shipper(tracking, out / "toy" / "outbox").close()
    known = state(tracking)
    (journal,) = (out / "toy" / "outbox").glob(".shipped-*")
    lines = journal.read_text().splitlines(keepends=True)
    for kept in range(len(lines)):
        journal.write_text("".join(lines[:kept]) + lines[kept][:7])
        again = Tracking("toy", out)
        assert Shipper(again, out / "toy" / "outbox").close()
        assert state(again) == known, f"after {kept} lines"


def test_a_server_that_is_killed_and_comes_back_minutes_later(out, monkeypatch):
    """A real server over HTTP: while it is dead, recording goes on; when it is back, not a point is missing."""
    server = Server(out)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.start()
    try:
        tracking = Tracking("toy", out)
        shipper = Shipper(tracking, out / "toy" / "outbox", every=0.2)
        shipper.start()
        tell(out, "k1", range(1, 40), None)
        wait(lambda: "k1" in shipper.journal.runs)
        server.kill()
        began = time.perf_counter()
        tell(out, "k1", range(40, 80), "done")
        tell(out, "k2", range(1, 20), "failed")
        assert time.perf_counter() - began < 5            # nobody waited for it
        wait(lambda: shipper.failures > 0)
        assert not shipper.drain() and shipper.problem
        server.start()
        assert shipper.close()
        found = state(tracking)
        assert found["k1"][1:3] == ("FINISHED", list(range(1, 80)))
        assert found["k2"][1:3] == ("FAILED", list(range(1, 20)))
        assert len(found) == 3
    finally:
        server.kill()
