"""The shipper: exactly once, whatever the server does in between."""

import json

import pytest

from studies.engine.ledger import Outbox
from studies.engine.tracking import Shipper, Tracking, run_ids

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
        outbox.end(end, 1.0, metrics={"test/error": 2.0}, reason="" if end == "done" else "because")
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


def test_a_database_that_was_deleted_is_filled_again(out):
    tell(out, "k1", range(1, 4), "done")
    assert Shipper(Tracking("toy", out), out / "toy" / "outbox").drain()
    (out / "mlflow.db").rename(out / "lost.db")
    tracking = Tracking("toy", out)
    assert Shipper(tracking, out / "toy" / "outbox").drain()
    assert state(tracking)["k1"][1:] == ("FINISHED", [1, 2, 3], 2.0, 151, 1)


def test_no_run_stays_running_behind_a_dead_driver(out):
    tracking = Tracking("toy", out)
    for key in ("continues", "removed"):
        tell(out, key, range(1, 3), None)
    Shipper(tracking, out / "toy" / "outbox").drain()
    Tracking("toy", out).settle({"continues"})
    assert {key: entry[1] for key, entry in state(tracking).items()} == {
        "study": "KILLED", "continues": "RUNNING", "removed": "KILLED"}


def test_shared_stages_curves_belong_to_the_study(out):
    outbox = Outbox(out / "toy" / "outbox" / "stage-Table-1.jsonl")
    outbox.start(key="Table-1", stage=True)
    outbox.record(5, {"train/loss": 0.5})
    outbox.end("done", 1.0)
    outbox.close()
    tracking = Tracking("toy", out)
    assert Shipper(tracking, out / "toy" / "outbox").drain()
    (parent,) = tracking.client.search_runs([tracking.experiment])
    assert parent.data.metrics == {"Table-1/train/loss": 0.5}
    assert json.loads(next((out / "toy" / "outbox").glob(".shipped-*")).read_text())["stage-Table-1"]["offset"] > 0
