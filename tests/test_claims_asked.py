"""Claims, asked: answers from a ledger in every format, what they cost, and the command run for real."""

import json
import os
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pytest
from fake_trial import Trained
from test_claims import STUDY, claim, load, write
from test_page import Outline

from studies import claims as shipped
from studies.engine.answers import Answer, answers
from studies.engine.answers_report import as_dict, markdown, page, sentence
from studies.engine.ask import Inquiry, affords, again, costs, left, main, plan_of
from studies.engine.claims import Asked, by_study
from studies.engine.cluster import Cluster
from studies.engine.findings import Findings
from studies.engine.halt import Halt
from studies.engine.ledger import Ledger, Outbox
from studies.engine.options import open_store
from studies.engine.report import as_json
from trainables.stages import Store

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")]

# ---------------------------------------------------------------- from a ledger

ERROR = {"plain": 2.0, "fancy": 1.0, "odd": 2.0}
WOBBLE = [0.02, -0.01, 0.03, -0.02]


def inquiry(out: Path, **changes: Any) -> Inquiry:
    usual: dict[str, Any] = dict(only=None, seeds=None, hours=None, assignments=(), dry_run=False, report=True)
    return Inquiry(out=out, **usual | changes)


def tell(out: Path, group: Asked, skip: tuple[str, int] | None = None) -> Findings:
    """Records of the arms that are asked about, half an hour each; valid/loss is the error over the step."""
    ledger = Ledger(out / "toy")
    for cell in plan_of(group, inquiry(out), None).cells:
        if (cell.arm, cell.seed) == skip:
            continue
        error = ERROR[cell.arm] + cell.seed + WOBBLE[(3 * cell.seed + sum(map(ord, cell.arm))) % 4]
        ledger.write_cell({
            "key": cell.key, "arm": cell.arm, "seed": cell.seed, "scale": "laptop", "status": "done", "reason": "",
            "metrics": {"test/error": error, "valid/loss": error / 10, "threads": 1.0}, "real": [], "samples": [],
            "stages": [], "seconds": 1800.0, "cpu_hours": 0.5, "gpu_hours": 0.0, "started": 1.7e9, "ended": 1.7e9 + 60})
        outbox = Outbox(ledger.outbox(cell.key))
        for step in range(1, 11):
            outbox.record(step, {"valid/loss": error / step})
        outbox.close()
    return Findings(plan_of(group, inquiry(out), None), ledger)


CLAIMS = (claim(), claim("early", metric="valid/loss", at=5, margin=0.05),
          claim("odd-is-plain", arm="odd", direction="same", margin=0.2), claim("odd-helps", arm="odd", margin=0.2),
          claim("threads-differ", metric="threads", direction="more"))


@pytest.fixture
def group() -> Asked:
    return Asked(STUDY, "laptop", CLAIMS)


@pytest.fixture
def found(group, tmp_path) -> list[Answer]:
    return answers([(group, tell(tmp_path, group))], Store(tmp_path / "stages"))


def test_answers_come_with_their_interval_their_n_and_their_cells(found, group, tmp_path):
    helps, early, same, odd, threads = found
    assert [answer.verdict for answer in found] == ["supported", "supported", "supported", "refuted", "undecided"]
    assert helps.difference.mean == pytest.approx(-1.0, abs=0.05) and helps.difference.n == 4
    assert early.difference.mean == pytest.approx(helps.difference.mean / 5)      # the curve's point, not its end
    cells = {(cell.arm, cell.seed): cell.key for cell in plan_of(group, inquiry(tmp_path), None).cells}
    assert helps.pairs == tuple((seed, cells["fancy", seed], cells["plain", seed]) for seed in range(4))
    assert threads.difference.mean == 0.0 and threads.more is None and same.same == odd.same
    assert "It helps: supported.  fancy - plain in test/error: -1.0" in sentence(helps)
    assert "4 paired seeds" in sentence(helps) and "in valid/loss after 5 steps: -0.2" in sentence(early)


def test_seeds_beyond_those_that_were_asked_for_are_not_looked_at(group, tmp_path):
    tell(tmp_path, group)
    two = Findings(plan_of(group, inquiry(tmp_path, seeds=2), None), Ledger(tmp_path / "toy"))
    first = answers([(group, two)], Store(tmp_path / "stages"))[0]
    assert [seed for seed, _, _ in first.pairs] == [0, 1]


def test_what_is_lacking_is_said(group, tmp_path):
    found = answers([(group, tell(tmp_path, group, skip=("fancy", 2)))], Store(tmp_path / "stages"))
    assert found[0].note == "fancy: 1 not run" and [seed for seed, _, _ in found[0].pairs] == [0, 1, 3]
    for path in (tmp_path / "toy" / "outbox").glob("*.jsonl"):
        path.unlink()
    again = answers([(group, Findings(plan_of(group, inquiry(tmp_path), None), Ledger(tmp_path / "toy")))],
                    Store(tmp_path / "stages"))
    assert again[1].verdict == "undecided" and "plain: 4 without valid/loss after 5 steps" in again[1].note


def test_a_checkpoint_that_another_study_has_trained_has_its_own_curve(group, tmp_path):
    findings, store = tell(tmp_path, group), Store(tmp_path / "stages")
    for cell in findings.plan.cells:
        findings.ledger.outbox(cell.key).unlink()
        (trained,) = (stage for stage in cell.stages() if isinstance(stage, Trained))
        folder = store.path(trained)
        folder.mkdir(parents=True)
        rows = [{"step": 5, "valid/loss": 9.0}, {"step": 5, "valid/loss": ERROR[cell.arm] + WOBBLE[cell.seed]}]
        (folder / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    early = answers([(group, findings)], store)[1]
    assert early.difference.mean == pytest.approx(-1.0) and early.difference.n == 4


def test_every_format_says_the_same(found):
    said = json.loads(as_json(as_dict(found, "abc")))
    assert [entry["verdict"] for entry in said["claims"]] == [answer.verdict for answer in found]
    assert said["claims"][0]["cells"][0] == dict(zip(("seed", "arm", "base"), found[0].pairs[0], strict=True))
    assert said["claims"][0]["difference"]["mean"] == found[0].difference.mean and said["claims"][1]["at"] == 5
    text = markdown(found, ["2 CPU hours in toy"])
    html = page(found, ["2 CPU hours in toy"], "abc", "python studies/claims.py --seeds 4")
    assert "python studies/claims.py --seeds 4" in html
    for answer in found:
        key = answer.pairs[0][1]
        assert f"`{key}`" in text and f"<code>{key}</code>" in html and answer.claim.name in html
    assert "3 supported, 1 refuted, 1 undecided, of 5 claims" in text
    outline = Outline()
    outline.feed(html)
    assert outline.open == [] and outline.fetched == ["data:,"] and "script" not in outline.tags


def test_the_page_escapes_what_a_file_may_say(tmp_path):
    group = Asked(STUDY, "laptop", (claim(says="<b>It</b> & helps", paper="<script>", quoted="<i>"),))
    html = page(answers([(group, tell(tmp_path, group))], Store(tmp_path / "stages")), ["<u>"], "abc", "python")
    assert not any(mark in html for mark in ("<b>It", "<script>", "<i>\"", "<u>"))
    assert "&lt;b&gt;It&lt;/b&gt; &amp; helps" in html


# ---------------------------------------------------------------- what it costs


def test_a_dry_run_says_the_cost_as_far_as_it_is_known(group, tmp_path):
    here = Cluster("local", ((2.0, 0.0),))
    plans = [plan_of(group, inquiry(tmp_path, dry_run=True), here)]
    assert "unknown CPU hours: nothing has run here yet" in costs([group], plans)[-1]
    tell(tmp_path, replace(group, claims=CLAIMS[:1]))
    plans = [plan_of(group, inquiry(tmp_path, dry_run=True), here)]
    lines = costs([group], plans)
    assert "| toy | laptop | 5 | plain, fancy, odd | 8 | 4 | 2 | 3 CPU hours, 2 of its parts guessed |" in lines[2]
    assert "12 cells, 4 to run: about 3 CPU hours, of which 2 parts are guessed" in lines[-1]
    assert not list(tmp_path.glob("*.db"))


def test_hours_are_those_of_all_studies_together(group, tmp_path):
    here, other = Cluster("local", ((2.0, 0.0),)), replace(group, claims=CLAIMS[:1])
    tell(tmp_path, other)                                                       # 8 cells, 4 hours
    groups = [group, replace(group, scale="laptop", claims=CLAIMS[:1])]
    assert left(group, groups, inquiry(tmp_path, hours=10.0), here) == pytest.approx(10 - 8 + 4)
    assert left(group, groups, inquiry(tmp_path, hours=1.0), here) == pytest.approx(4)
    asked = inquiry(tmp_path, report=False)
    assert [affords(group, hours, asked, here) for hours in (5.0, 4.2, 0.0)] == [True, False, False]


@pytest.mark.parametrize("problem", [Halt("Ray does not start here"), OSError(28, "No space left on device")])
def test_a_halt_is_said_and_is_exit_code_3(problem, tmp_path, monkeypatch, capsys):
    def halts() -> Cluster:
        raise problem

    monkeypatch.setattr("studies.engine.ask.find_cluster", halts)
    with pytest.raises(SystemExit) as ended:
        main(write(tmp_path / "claims.yaml"), ["toy"], load, ["--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert ended.value.code == 3 and said.startswith("halted: ") and said.count("\n") == 1


# ---------------------------------------------------------------- for real


@pytest.fixture
def ray_here(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def ask(path: Path, out: Path, *arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(path, ["toy"], load, ["--out", str(out), *arguments])
    return int(ended.value.code or 0)


def test_it_runs_what_is_missing_of_what_is_asked_and_no_more(ray_here, tmp_path, capsys):
    early = {"name": "early", "metric": "valid/loss", "at": 6}
    out, file = tmp_path / "out", write(tmp_path / "claims.yaml", {}, early)
    assert ask(file, out, "--dry-run") == 0
    assert "16" not in capsys.readouterr().out and not list(out.rglob("cells"))
    (out / "toy").mkdir()
    own = {"report.html": "of all arms", "decide.json": json.dumps(
        {"scale": "laptop", "most": 20, "seeds": {"plain": 8, "fancy": 5, "odd": 8}})}
    for name, text in own.items():
        (out / "toy" / name).write_text(text)
    assert ask(file, out, "--seeds", "3") == 0
    printed = capsys.readouterr().out
    assert {name: (out / "toy" / name).read_text() for name in own} == own          # the study's, as it left them
    assert not {"outcome.json", "table.md", "plan.md", "best"} & set(os.listdir(out / "toy"))
    assert "It helps: " in printed and printed.count("done   trial") == 6 and "odd seed" not in printed
    said = json.loads((out / "claims" / "claims.json").read_text())["claims"]
    keys = {cell[role] for entry in said for cell in entry["cells"] for role in ("arm", "base")}
    assert keys == {path.stem for path in (out / "toy" / "cells").glob("*.json")} and len(keys) == 6
    assert {path.name for path in (out / "claims").iterdir()} == {"claims.md", "claims.json", "claims.html"}
    before = os.listdir(out / "toy" / "cells")
    assert ask(file, out, "--seeds", "3", "--only", "early") == 0
    printed = capsys.readouterr().out
    assert "done   trial" not in printed and "0 of 1 claims" not in printed and "It helps: " in printed
    assert escape(f"python studies/claims.py --only early --seeds 3 --claims {file}") in (
        out / "claims" / "claims.html").read_text()
    assert ask(file, out, "--report", "--seeds", "3") == 0 and os.listdir(out / "toy" / "cells") == before
    assert len(json.loads((out / "claims" / "claims.json").read_text())["claims"]) == 2


def test_the_command_on_the_page_asks_the_same(tmp_path):
    assert again(shipped.HERE / "claims.yaml", inquiry(tmp_path)) == "python studies/claims.py"
    asked = inquiry(tmp_path, only="one,two", seeds=8, hours=2.5, assignments=("training.steps=5", "a=(1, 2)"))
    assert again(tmp_path / "mine.yaml", asked) == (
        f"python studies/claims.py --only one,two --seeds 8 --hours 2.5 --claims {tmp_path}/mine.yaml "
        "--set training.steps=5 --set 'a=(1, 2)'")


def test_a_cluster_says_where_results_are(group, tmp_path, monkeypatch, capsys):
    """As of every study: what PALIMPSEST_OUT holds is found, and stages go where PALIMPSEST_STORE says."""
    tell(tmp_path, group)
    asked: list[Inquiry] = []
    monkeypatch.setattr("studies.engine.ask.ask", lambda path, studies, load, inquiry: asked.append(inquiry) or 0)
    monkeypatch.setenv("PALIMPSEST_OUT", str(tmp_path))
    monkeypatch.setenv("PALIMPSEST_STORE", str(tmp_path / "elsewhere"))
    file = write(tmp_path / "claims.yaml")
    for words in ([], ["--out", str(tmp_path / "b"), "--store", "s3://bucket/stages"]):
        with pytest.raises(SystemExit):
            main(file, ["toy"], load, words)
    here, there = asked
    assert here.out == tmp_path and not plan_of(group, here, None).missing
    assert open_store(here.options(group)).folder == tmp_path / "elsewhere"
    assert there.out == tmp_path / "b" and there.options(group).store == "s3://bucket/stages"


def test_claims_of_one_study_at_one_scale_are_one_run():
    groups = by_study([claim("one"), claim("two", arm="odd"), claim("three")], load)
    assert [(group.scale, [each.name for each in group.claims], group.arms) for group in groups] == [
        ("laptop", ["one", "two", "three"], ["plain", "fancy", "odd"])]
