"""The doctor on one machine: what is wrong is said, with its place; what is right as well."""

import os
import socket
from pathlib import Path

import pytest

from studies.engine.doctor import Finding, examine

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("RAY_A", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


def bad(out: Path, store: str | None = None, cpus: int = 1, gpus: float = 0.0, workers: int = 1) -> list[str]:
    found = list(examine(out, store, cpus, gpus, workers))
    assert all(isinstance(finding, Finding) and finding.words for finding in found)
    return [finding.words for finding in found if finding.grade == "BAD"]


def test_a_sound_machine(tmp_path):
    assert bad(tmp_path / "out") == []
    assert not list((tmp_path / "out").glob(".doctor*"))         # it leaves nothing behind


def test_what_is_wrong_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (words,) = bad(tmp_path / "file" / "out")
    assert "cannot be written" in words
    (words,) = bad(tmp_path, workers=500)
    assert "500 x (1 CPUs, 0 GPUs)" in words and "can never hold" in words
    (words,) = bad(tmp_path, store="no-such-protocol://bucket/x")
    assert "--store: no-such-protocol://bucket/x cannot be used" in words
    (words,) = bad(tmp_path, store=str(tmp_path / "file"))
    assert "--store: cannot write into" in words
    with socket.socket() as closed:                              # bound and not listening: nobody answers
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{closed.getsockname()[1]}")
        (words,) = bad(tmp_path)
    assert "no tracking server answers" in words and "secret" not in words


def test_a_cluster_that_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    (words,) = bad(tmp_path)
    assert "no Ray cluster answers at 127.0.0.1:1" in words
