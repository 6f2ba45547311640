"""Bad input: one clear sentence, exit code 2, and nothing has started."""

import os
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import fsspec
import pytest
from fake_trial import recipe
from filelock import FileLock

from studies.engine import writable
from studies.engine.cluster import find_cluster
from studies.engine.main import main
from studies.engine.options import Options, resources_of
from studies.engine.study import Arm, BadInput, Minimise, Resources, Scale, Study
from studies.engine.tracking import shown

STUDY = Study(name="toy", question="Which?", report=(Minimise("test/error"),),
              arms={"plain": Arm(), "fancy": Arm({"system.kind": "fancy"})},
              scales={"laptop": Scale(recipe),
                      "paper": Scale(partial(recipe, samples_drawn=9), Resources(gpus=1, workers=64))})


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("RAY_AUTH")]:
        monkeypatch.delenv(name)


def refused(capsys, out, *arguments: str) -> str:
    """What a command line says when it ends with exit code 2 and has not run a thing."""
    with pytest.raises(SystemExit) as ended:
        main(STUDY, ["--out", str(out), *arguments])
    printed = capsys.readouterr()
    assert ended.value.code == 2, printed
    assert "Traceback" not in printed.err and len(printed.err.splitlines()) < 24
    assert not (out.is_dir() and (list(out.glob("toy/cells/*")) or list(out.glob("mlflow.db"))))
    return " ".join(printed.err.split())


@pytest.mark.parametrize("arguments, words", [
    (["--set", "training.stepz=3"], "training.stepz: Training has no field 'stepz' (did you mean 'steps'?)"),
    (["--set", "trainin.steps=3"], "did you mean 'training'?"),
    (["--set", "training.steps=few"], "training.steps: must be int"),
    (["--set", "training.steps"], "expected path=value"),
    (["--set", "system.shape.gain=-1"], "system.shape.gain: gain must be positive, not -1.0"),
    (["--set", "training.steps=2000"], "training.steps: a fake trial has no such patience"),
    (["--arms", "plain,fancyy"], "no arm 'fancyy' (did you mean 'fancy'?)"),
    (["--arms", ","], "name at least one"),
    (["--scale", "lapptop"], "did you mean 'laptop'?"),
    (["--scale", "paper"], "64 x (1 CPUs, 1 GPUs)"),
    (["--workers", "500"], "500 x (1 CPUs, 0 GPUs)"),
    (["--workers", "0"], "at least 1"),
    (["--least", "0"], "--least: at least 1, not 0"),
    (["--workers", "2", "--least", "3"], "--least: at most the 2 workers of a trial"),
    (["--gpus", "-1"], "--gpus: no negative number"),
    (["--gpus", "1.5"], "--gpus: a worker computes on one GPU, or on a part of one, not on 1.5"),
    (["--gpus", "0.5", "--workers", "2"], "--gpus: a trial of 2 workers wants a whole GPU for each, not 0.5"),
    (["--gpus", "2"], "not on 2: --workers 2 takes 2 GPUs"),
    (["--gpus", "0.5"], "0.5 GPUs"),
    (["--margin", "test/eror=0.1"], "toy does not report 'test/eror' (did you mean 'test/error'?)"),
    (["--margin", "test/error=none"], "--margin: test/error=VALUE, a positive number"),
    (["--margin", "test/error"], "--margin: test/error=VALUE, a positive number"),
    (["--seeds", "0"], "at least 1"),
    (["--seeds", "three"], "--seeds"),
    (["--data", "no-such-corpus"], "no file and no built-in corpus"),
    (["--test-data", "a.txt"], "goes with a --data file"),
    (["--bogus"], "No such option"),
])
def test_what_is_typed_wrong_is_refused(arguments, words, tmp_path, capsys):
    assert words in refused(capsys, tmp_path / "out", *arguments)


@pytest.mark.parametrize("name, content, column, words", [
    ("absent.txt", None, "", "no such file"),
    ("empty.txt", b"", "", "empty"),
    ("latin.txt", "sm\xf8rrebr\xf8d\n".encode("latin-1") * 99, "", "UTF-8"),
    ("few.txt", b"one text\n", "", "text"),
    ("table.csv", b"mr,ref\n" + b"a,a text\n" * 99, ":reff", "did you mean 'ref'?"),
])
def test_data_files_that_cannot_be_used_are_refused(name, content, column, words, tmp_path, capsys):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert words in refused(capsys, tmp_path / "out", "--data", f"{tmp_path / name}{column}")


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "--out: cannot write into" in refused(capsys, tmp_path / "file")
    assert "--json" in refused(capsys, tmp_path / "out", "--json", str(tmp_path / "file" / "outcome.json"))
    assert "is a folder" in refused(capsys, tmp_path / "out", "--json", str(tmp_path))
    (tmp_path / "out" / "toy").touch()                       # where the study's own folder would be
    assert "--out: cannot write into" in refused(capsys, tmp_path / "out")


def test_a_file_that_is_written_last_is_tried_first(tmp_path, capsys):
    long = tmp_path / "there" / ("long" * 99)
    assert f"--json: cannot write {long}" in refused(capsys, tmp_path / "out", "--json", str(long))
    assert not list((tmp_path / "there").iterdir())
    busy = Path(shutil.copy(shutil.which("sleep") or "", tmp_path / "busy"))
    busy.chmod(0o555)                                        # which stops root, too, while the program runs
    with subprocess.Popen([busy, "60"]) as program:
        assert f"--json: cannot write {busy}: " in refused(capsys, tmp_path / "out", "--json", str(busy))
        program.kill()
    known, link = tmp_path / "known.json", tmp_path / "link.json"
    known.write_text("of yesterday")
    link.symlink_to(tmp_path / "to come.json")
    for name in (known, link, tmp_path / "new.json", Path("/dev/null")):
        writable.file("--json", name)
    assert known.read_text() == "of yesterday" and link.is_symlink()
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["known.json", "link.json"]


@pytest.mark.parametrize("store, words", [
    ("no-such-protocol://bucket/x", "no-such-protocol://bucket/x cannot be used: "),
    ("ftp://ada:secret@127.0.0.1:1/x", "ftp://127.0.0.1:1/x cannot be used: "),              # nobody answers
    ("gs://ada:secret@bucket", "gs://bucket cannot be used: "),                               # no package, or no bucket
    ("s3://[bucket/x", "cannot be used: "),
    ("file", "--store: cannot write into "),
])
def test_a_store_that_cannot_be_used_is_refused(store, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "gcsfs", None)          # as where it is not installed
    (tmp_path / "file").touch()
    (tmp_path / "texts.txt").write_text("".join(f"text {number}\n" for number in range(99)))
    for more in ([], ["--data", "texts.txt"]):
        said = refused(capsys, tmp_path / "out", "--store", store, *more)
        assert said.startswith("error: --store: ") and words in said and "secret" not in said


def test_who_only_looks_needs_no_store(tmp_path, capsys):
    for how, words in (("--report", "Which?"), ("--dry-run", "it cannot run here: --store: foo://x cannot be used")):
        with pytest.raises(SystemExit) as ended:
            main(STUDY, ["--out", str(tmp_path), "--store", "foo://x", how])
        assert ended.value.code == 0 and words in capsys.readouterr().out


def test_a_store_that_works_keeps_nothing_of_the_trial(tmp_path):
    url = f"memory://{tmp_path.name}/stages"
    writable.store("--store", url)
    assert fsspec.filesystem("memory").find(f"/{tmp_path.name}") == []
    writable.store("--store", str(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == []


def test_a_ray_address_that_does_not_answer_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert "no Ray cluster answers at 127.0.0.1:1" in refused(capsys, tmp_path / "out")
    for nowhere in ("127.0.0.1:99999", f"{'a' * 99}.example:1"):
        monkeypatch.setenv("RAY_ADDRESS", nowhere)
        assert f"no Ray cluster answers at {nowhere}" in refused(capsys, tmp_path / "out")
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    assert "is not host:port" in refused(capsys, tmp_path / "out")


def test_a_ray_address_that_is_a_dashboard_is_what_on_takes(tmp_path, capsys, monkeypatch):
    (tmp_path / "token").write_text("a" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    said = refused(capsys, tmp_path / "out")
    assert "http://127.0.0.1:1" in said and "host:port" not in said and "Name or service" not in said
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    with pytest.raises(BadInput, match="--on http://127.0.0.1:1"):         # a command without --on
        find_cluster()


def test_what_a_trial_holds_is_the_scale_s_but_for_what_is_typed():
    scales = {"laptop": Scale(recipe, Resources(workers=4, least=2))}
    study = Study(name="toy", question="?", report=(Minimise("test/error"),), arms={"plain": Arm()}, scales=scales)
    typed = partial(Options, scale=None, data=None, test_data=None, seeds=None, arms=None, assignments=(),
                    out=Path("x"), store=None, json=None, dry_run=False, report=False)
    for options, expected in (
            (typed(workers=None), Resources(workers=4, least=2)), (typed(workers=8), Resources(workers=8, least=2)),
            (typed(workers=1), Resources(workers=1, least=1)),
            (typed(workers=6, least=3, gpus=1.0), Resources(workers=6, least=3, gpus=1.0)),
            (typed(workers=1, gpus=0.25), Resources(workers=1, least=1, gpus=0.25))):
        assert resources_of(study, "laptop", options) == expected


def test_what_was_typed_can_be_typed_again():
    typed = Options(scale="laptop", data="a b.csv:x", test_data=None, seeds=4, arms=None, assignments=("a=1", "b=2"),
                    workers=None, out=Path("x"), store=None, json=None, dry_run=False, report=False, decide=True,
                    hours=2.0, gpus=0.5, margins=("test/error=0.1",))
    assert shlex.join(typed.words()) == ("--data 'a b.csv:x' --seeds 4 --gpus 0.5 --hours 2 --set a=1 --set b=2 "
                                         "--margin test/error=0.1 --decide")


def test_a_tracking_server_that_does_not_answer_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:secret@127.0.0.1:1/?token=secret")
    said = refused(capsys, tmp_path / "out")
    assert "no tracking server answers at http://127.0.0.1:1" in said and "secret" not in said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:secret@[127.0.0.1")
    said = refused(capsys, tmp_path / "out")
    assert "no tracking server answers at http://…" in said and "secret" not in said


def test_two_drivers_of_one_study_do_not_meet(tmp_path, capsys):
    (tmp_path / "toy").mkdir()
    with FileLock(tmp_path / "toy" / ".driver.lock"):
        assert "another run of this study is at work" in refused(capsys, tmp_path)


@pytest.mark.parametrize("uri, safe", [
    ("sqlite:////home/a/mlflow.db", "sqlite:////home/a/mlflow.db"),
    ("https://ada:secret@host:5000/x?token=secret", "https://host:5000/x"),
    ("postgresql://ada:secret@host/db", "postgresql://host/db"),
    ("databricks", "databricks"), ("http://ada:secret@[half", "http://…"),
])
def test_a_tracking_uri_is_shown_without_its_secrets(uri, safe):
    assert shown(uri) == safe


def test_a_plan_for_a_cluster_can_be_read_on_a_laptop(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(STUDY, ["--out", str(tmp_path), "--scale", "paper", "--dry-run"])
    assert ended.value.code == 0 and "it cannot run here" in capsys.readouterr().out


def test_help_needs_no_cluster(capsys):
    with pytest.raises(SystemExit) as ended:
        main(STUDY, ["--help"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0 and all(flag in printed for flag in ("--dry-run", "--set", "--json", "--report"))
