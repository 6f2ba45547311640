"""Generators: a released system writes what its cell wrote, without the study, the store and the corpus."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import test_diffusionbert
import test_ld4lg
import test_scorelm
import test_trial

from trainables.config import ConfigError, override
from trainables.diffusion.sampler import Sampling
from trainables.diffusion.unmasking import Ancestral
from trainables.evaluation.evaluation import Evaluation
from trainables.evaluation.oracle import OracleScores
from trainables.generate import found, main
from trainables.generator import Generator
from trainables.ld4lg import Source
from trainables.release import release
from trainables.shelf import opened
from trainables.stages import Context, Store
from trainables.text.corpora import Stories
from trainables.text.language_model import Nucleus
from trainables.text.latents import PerceiverLatents
from trainables.trial import Trained, Trial, read_lines

ROOT = Path(__file__).resolve().parents[1]
DATA = Stories(size=300)
FEW = Evaluation(metrics=(OracleScores(),), references=10)


def tencdm(**changes) -> Trial:
    return test_trial.tiny(changes={"training.steps": 4} | {f"system.{name}": new for name, new in changes.items()})


def ld4lg(system, **sampling) -> Trial:
    hardly = {"system.representation.model.weights.training.steps": 60, "training.steps": 4}
    if isinstance(system.representation, PerceiverLatents):
        hardly["system.representation.training.training.steps"] = 60
    return override(test_ld4lg.tiny(system, **sampling), hardly)


def scorelm(system) -> Trial:
    return Trial(system=system, data=DATA, training=override(test_scorelm.SHORT, {"steps": 4}), evaluation=FEW,
                 sampling=override(test_scorelm.QUICK, {"count": 14, "batch": 5}))


def diffusionbert(system) -> Trial:
    return Trial(system=override(system, {"lm.weights.training.steps": 20}), data=DATA, evaluation=FEW,
                 training=override(test_diffusionbert.SHORT, {"steps": 4}),
                 sampling=Sampling(stepper=Ancestral(), steps=4, count=14, batch=5))


TRIALS = {
    "TEncDM": tencdm(),
    "TEncDM from sources": tencdm(source_length=6),
    "LD4LG of classes": ld4lg(test_ld4lg.CLASSES, guidance=0.5),
    "LD4LG from sources": ld4lg(override(test_ld4lg.PLAIN, {"source": Source(length=8)}), guidance=1.0, candidates=2),
    "LD4LG by a nucleus": ld4lg(override(test_ld4lg.PLAIN, {"decoding.by": Nucleus(p=0.95)})),
    "annealed LD4LG": ld4lg(override(test_ld4lg.RAW, {"decoding.by": Nucleus(p=0.95)})),      # else always one text
    "DiffusionBERT": diffusionbert(test_diffusionbert.SPINDLE),
    "DiffusionBERT from sources": diffusionbert(test_diffusionbert.READS),
    "score LM": scorelm(test_scorelm.PLAIN),
    "score LM, learned pads": scorelm(override(test_scorelm.PLAIN, {"lengths": "expanded"})),
    "score LM from sources": scorelm(test_scorelm.READS),
}


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    return Context(Store(tmp_path_factory.mktemp("store") / "stages"))


@pytest.mark.parametrize("name", TRIALS)
def test_a_generator_writes_what_its_cell_wrote_and_stands_alone(name, context, tmp_path, monkeypatch):
    """The folder is moved away, and whoever made something or read the store would fail."""
    sampled = TRIALS[name].samples()
    rows = read_lines(context.get(sampled) / "samples.jsonl")
    shutil.move(release(sampled, context.store, tmp_path / "made"), tmp_path / "generator")
    monkeypatch.setattr(Store, "get", forbidden)
    monkeypatch.setattr(Store, "path", forbidden)
    generator = Generator.load(tmp_path / "generator")
    if "class" in rows[0]:
        wanted = [row for row in rows if row["class"] == rows[0]["class"]]
        again = list(generator.write(len(rows), label=rows[0]["class"]))
        assert [row for row, was in zip(again, rows, strict=True) if was in wanted] == wanted
    else:
        sources = list(dict.fromkeys(row["source"] for row in rows)) if "source" in rows[0] else []
        again = list(generator.write(len(rows), sources=sources))
        assert again == rows
        assert list(generator.write(3, sources=sources)) == rows[:3]                # the same noise for fewer rows
        more = list(generator.write(len(rows) + 6, sources=sources))
        assert len(more) == len(rows) + 6 and more[:len(rows)] == rows
        other = list(generator.write(len(rows), seed=1, sources=sources))
        assert [row["text"] for row in other] != [row["text"] for row in rows]


def forbidden(*_, **__):
    raise AssertionError("the store was asked")


@pytest.fixture(scope="module")
def plain(context, tmp_path_factory) -> Path:
    """TEncDM, released."""
    sampled = TRIALS["TEncDM"].samples()
    context.get(sampled)
    return release(sampled, context.store, tmp_path_factory.mktemp("released") / "generator", {"study": "toy"})


def test_what_is_released_has_no_texts_and_no_pickle(plain, context):
    files = {str(path.relative_to(plain)): path for path in plain.rglob("*") if path.is_file()}
    assert {path.suffix for path in files.values()} == {".json", ".safetensors"}
    assert "Trained/model.safetensors" in files and "TrainedDecoder/model.safetensors" in files
    assert "EncoderFolder/model.safetensors" not in files                 # nothing here reads a text
    texts = [row["text"] for row in read_lines(context.get(DATA) / "train.jsonl")]
    for path in files.values():
        content = path.read_bytes()
        assert not any(text.encode() in content for text in texts[:50]), path
    about = json.loads((plain / "generator.json").read_text())
    assert about["about"] == {"study": "toy"} and about["stages"]["Trained"]["version"] == Trained.version
    assert not list(plain.parent.glob(".*"))                              # and nothing beside it


def test_the_score_lm_is_released_with_counts_in_place_of_texts(context, tmp_path):
    sampled = TRIALS["score LM"].samples()
    context.get(sampled)
    made = release(sampled, context.store, tmp_path / "generator")
    assert {path.name for path in (made / "TokenisedTexts").iterdir()} == {"pieces.model", "use.safetensors"}


def test_releasing_again_replaces_the_folder(plain, context):
    before = (plain / "generator.json").read_text()
    release(TRIALS["TEncDM"].samples(), context.store, plain, {"study": "toy"})
    assert (plain / "generator.json").read_text() == before and not list(plain.parent.glob(".*"))


def test_a_release_that_fails_leaves_what_was_there(plain, context, monkeypatch):
    monkeypatch.setattr(os, "replace", disk_full)
    before = {path: path.stat().st_mtime_ns for path in plain.rglob("*")}
    with pytest.raises(OSError, match="No space"):
        release(TRIALS["TEncDM"].samples(), context.store, plain)
    assert {path: path.stat().st_mtime_ns for path in plain.rglob("*")} == before
    assert not list(plain.parent.glob(".*"))


def disk_full(*_):
    raise OSError(28, "No space left on device")


# ---------------------------------------------------------------- the command


def say(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["--device", "cpu", *arguments])
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def test_from_a_checkpoint_a_samples_folder_or_a_released_one_the_same_texts(plain, context, capsys, tmp_path):
    sampled = TRIALS["TEncDM"].samples()
    texts = [row["text"] for row in read_lines(context.get(sampled) / "samples.jsonl")]
    for folder in (context.store.path(sampled.checkpoint), context.store.path(sampled), plain):
        code, out, err = say(capsys, "--model", str(folder), "-n", "14")
        assert (code, err) == (0, "") and out.splitlines() == texts
    code, out, _ = say(capsys, "--model", str(plain), "-n", "2", "--out", str(tmp_path / "texts.jsonl"))
    assert (code, out) == (0, "") and [row["text"] for row in read_lines(tmp_path / "texts.jsonl")] == texts[:2]
    code, out, _ = say(capsys, "--model", str(plain), "-n", "14", "--steps", "5", "--stepper", "Posterior(eta=0.0)")
    assert code == 0 and len(out.splitlines()) == 14 and out.splitlines() != texts
    assert [path.name for path in tmp_path.iterdir()] == ["texts.jsonl"]


def test_it_is_a_command(plain):
    done = subprocess.run([sys.executable, "-m", "trainables.generate", "--model", str(plain), "-n", "3"], cwd=ROOT,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == "" and len(done.stdout.splitlines()) == 3


def test_sources_come_from_a_file(context, capsys, tmp_path):
    sampled = TRIALS["TEncDM from sources"].samples()
    context.get(sampled)
    model = str(release(sampled, context.store, tmp_path / "generator"))
    (tmp_path / "sources.txt").write_text("tom lost a ball .\nsam has a dog .\n")
    code, out, _ = say(capsys, "--model", model, "-n", "5", "--source", str(tmp_path / "sources.txt"), "--out",
                       str(tmp_path / "out.jsonl"))
    rows = read_lines(tmp_path / "out.jsonl")
    assert code == 0 and [row["source"] for row in rows] == ["tom lost a ball .", "sam has a dog ."] * 2 + [
        "tom lost a ball ."]
    code, _, err = say(capsys, "--model", model)
    assert code == 2 and err == "error: --source: this TEncDM writes from sources; name a file of them\n"
    code, _, err = say(capsys, "--model", model, "--source", str(tmp_path / "nothing.txt"))
    assert code == 2 and "no such file" in err


@pytest.mark.parametrize("name", ["score LM", "DiffusionBERT"])
def test_a_prompt_is_kept_where_it_stands(name, context, capsys):
    """Its words first, something in each gap, more behind it; with the same noise fewer texts are the first ones."""
    sampled = TRIALS[name].samples()
    context.get(sampled)
    model = str(context.store.path(sampled))
    code, out, err = say(capsys, "--model", model, "-n", "6", "--prompt", "tom _ a ball")
    texts = [line.split() for line in out.splitlines()]
    assert (code, err, len(texts)) == (0, "", 6)
    assert all(line.startswith("tom") and "a ball" in line for line in out.splitlines()), out
    assert any(len(text) > 4 for text in texts) and len(set(map(tuple, texts))) > 1
    code, out, _ = say(capsys, "--model", model, "-n", "2", "--prompt", "tom _ a ball")
    assert [line.split() for line in out.splitlines()] == texts[:2]
    code, out, err = say(capsys, "--model", model, "--prompt", "tom lost a ball . " * 4)
    assert code == 2 and out == "" and "--prompt: is too long: texts have 1" in err
    assert "--prompt: has no word to be given" in say(capsys, "--model", model, "--prompt", " _ ")[2]


@pytest.mark.parametrize(("arguments", "words"), [
    (["--prompt", "tom lost"], "--prompt: this TEncDM diffuses what an encoder makes of a whole text"),
    (["-n", "0"], "-n: at least 1 text, not 0"),
    (["--class", "happy"], "--class: this TEncDM knows no classes"),
    (["--steps", "0"], "sampling.steps: steps must be at least 1, not 0"),
    (["--stepper", "Euler"], "sampling.stepper: 'Euler' is none of"),
    (["--stepper", "Ancestral"], "sampling.stepper: TEncDM walks by"),
    (["--set", "sampling.guidance=1"], "sampling.guidance: pushes away from the guess without a source or a class"),
    (["--set", "system.length=3"], "--set: system.length=3: what a generator may change begins with sampling."),
    (["--out", "/nowhere/at/all.jsonl"], "--out: there is no folder /nowhere/at"),
    (["--out", "/"], "--out: / is a folder; name a file"),
    (["--device", "abacus"], "--device: 'abacus' cannot be used"),
    (["--model", "/nowhere"], "--model: there is no folder /nowhere"),
    (["--model", "gopher:/x"], "--model: nobody here fetches gopher: URIs"),
])
def test_bad_input_is_one_line(arguments, words, plain, capsys):
    code, out, err = say(capsys, "--model", str(plain), *arguments)
    assert code == 2 and out == "" and words in err and err.startswith("error: ") and err.count("\n") == 1


def test_a_class_is_asked_for_by_name(context, capsys, tmp_path):
    sampled = TRIALS["LD4LG of classes"].samples()
    context.get(sampled)
    model = str(release(sampled, context.store, tmp_path / "generator"))
    code, _, err = say(capsys, "--model", model)
    assert code == 2 and "--class: this Ld4lg writes texts of a class; name one of" in err
    known = Generator.load(tmp_path / "generator").classes
    code, _, err = say(capsys, "--model", model, "--class", known[0] + "x")
    assert code == 2 and f"did you mean {known[0]!r}?" in err
    assert say(capsys, "--model", model, "--class", known[0], "-n", "2")[0] == 0


def test_a_folder_that_is_none_says_so(context, capsys, tmp_path):
    for content, words in ((None, "neither a released generator"), ("[1]", "not a JSON object"),
                           ("{", "is not JSON"), ("{}", "does not describe a generator")):
        if content is not None:
            (tmp_path / "generator.json").write_text(content)
        code, _, err = say(capsys, "--model", str(tmp_path))
        assert code == 2 and words in err and err.count("\n") == 1
    data = context.get(DATA)
    code, _, err = say(capsys, "--model", str(data))
    assert code == 2 and "neither a released generator" in err


def test_a_checkpoint_that_was_sampled_in_two_ways_asks_which(context, capsys, tmp_path):
    trial = TRIALS["TEncDM"]
    ways = [trial.samples(), replace(trial, sampling=override(trial.sampling, {"steps": 2})).samples()]
    store = Store(tmp_path / "stages")
    shutil.copytree(context.store.folder, store.folder, dirs_exist_ok=True)
    for sampled in ways:
        Context(store).get(sampled)
    code, _, err = say(capsys, "--model", str(store.path(trial.checkpoint())))
    assert code == 2 and "it was sampled in 2 ways: name one of Sampled-" in err
    shutil.rmtree(store.path(ways[0]))
    assert say(capsys, "--model", str(store.path(trial.checkpoint())))[0] == 0
    shutil.rmtree(store.path(ways[1]))
    code, _, err = say(capsys, "--model", str(store.path(trial.checkpoint())))
    assert code == 2 and "nothing in this store was sampled from it" in err


def test_a_stage_of_another_version_is_refused_and_one_that_is_missing(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "old")
    about = json.loads((plain / "generator.json").read_text())
    about["stages"]["TrainedDecoder"]["version"] = 0
    (tmp_path / "old" / "generator.json").write_text(json.dumps(about))
    with pytest.raises(ConfigError, match="its TrainedDecoder is of version 0, and this code is of version 1"):
        Generator.load(tmp_path / "old")
    del about["stages"]["TrainedDecoder"]
    (tmp_path / "old" / "generator.json").write_text(json.dumps(about))
    with pytest.raises(ConfigError, match="its TrainedDecoder is not there, and a generator makes nothing"):
        Generator.load(tmp_path / "old")


def test_a_later_field_of_a_config_does_not_shut_a_released_generator(plain, tmp_path):
    """What the file does not say is as usual; stages are found by their kind and not by what they say."""
    shutil.copytree(plain, tmp_path / "old")
    about = json.loads((plain / "generator.json").read_text())
    del about["samples"]["sampling"]["candidates"], about["samples"]["checkpoint"]["training"]["accumulate"]
    (tmp_path / "old" / "generator.json").write_text(json.dumps(about))
    assert list(Generator.load(tmp_path / "old").write(4)) == list(Generator.load(plain).write(4))


def test_a_folder_is_no_uri():
    with found("a/folder") as folder:
        assert folder == Path("a/folder")
    with pytest.raises(ConfigError, match="there is no folder a/folder"):
        opened(folder)
