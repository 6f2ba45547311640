"""Whom a night is told, and in what words."""


import pytest
from listening import hook, mailbox
from toy_night import cells, night, write

from studies.engine.notices import addresses, main, markdown, message, send, slack_like, worth_saying
from studies.engine.regression import metric_finding

# MLflow, SQLAlchemy and Ray warn about each other; what is ours still stops a test.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")]


BAD = night(cells(2.0), "regressed", number=2, why="plain: test/error is worse",
            suspects=["abc123 anna: faster <loss>"], changed=["trainables/a.py: loss"],
            compared_with={"number": 1, "night": "2026-01-01", "commit": "d" * 40},
            findings=[metric_finding("plain", "test/error", [1.0, 1.1, 1.2, 1.3], [2.0, 2.1, 2.2, 2.3], -1, 0.1,
                                     0.01).as_dict()])


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
