"""Laws of trials: from text to scores in one call, exactly resumed, never made twice, refused in time."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from safetensors.torch import load_file

from trainables.config import ConfigError, override
from trainables.diffusion.sampler import Sampling
from trainables.diffusion.steppers import DpmPlusPlus2M, EulerMaruyama, LogSnrGrid
from trainables.evaluation.context_gain import ContextGain
from trainables.evaluation.evaluation import Evaluation
from trainables.evaluation.memorisation import Memorisation
from trainables.evaluation.oracle import OracleScores
from trainables.evaluation.variety import Variety
from trainables.networks.transformer import Transformer
from trainables.stages import Context, Store, key, upstream
from trainables.tencdm import TEncDM, tencdm, tencdm_laptop
from trainables.text.corpora import Data, Stories, import_files
from trainables.text.decoder import DecoderTraining
from trainables.text.encoders import Bert, Small
from trainables.text.stories import Oracle
from trainables.training.average import Ema, NoAverage
from trainables.training.learning_rate import Constant, Cosine
from trainables.training.optimizers import AdamW
from trainables.training.train import Stopped, Training
from trainables.trial import Trial, read_curve, read_lines, run

SHORT = Training(optimizer=AdamW(lr=5e-3), schedule=Constant(), ema=NoAverage(), steps=40, batch=32,
                 precision="float32")


def tiny(data: Data = Stories(size=300), changes: Mapping[str, object] = MappingProxyType({})) -> Trial:
    trial = Trial(
        system=TEncDM(
            encoder=Bert(weights=Small(layers=1, width=16, heads=2, feedforward=32, dropout=0.0, vocabulary=300,
                                       length=16, training=SHORT)),
            length=13,
            network=Transformer(layers=2, width=16, heads=2, feedforward=32, positions=16, dropout=0.1),
            decoder=DecoderTraining(layers=1, heads=2, feedforward=32, dropout=0.1, training=SHORT)),
        data=data,
        training=Training(optimizer=AdamW(lr=5e-3), schedule=Cosine(warmup=3), ema=Ema(decay=0.9), steps=12, batch=16,
                          accumulate=2, record_every=2, validate_every=5, save_every=100, validate_on=15,
                          precision="float32"),
        sampling=Sampling(stepper=DpmPlusPlus2M(), grid=LogSnrGrid(), steps=3, count=14, batch=5),
        evaluation=Evaluation(metrics=(OracleScores(), Variety(), Memorisation()), references=12))
    return override(trial, changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def context(folder) -> Context:
    return Context(Store(folder / "stages"))


@pytest.fixture(scope="module")
def first(context) -> tuple[dict[str, float], set[str]]:
    """The scores of a first run, which makes everything, and what lies in the store after it."""
    return run(tiny(), context), set(folders(context))


@pytest.fixture(scope="module")
def metrics(first) -> dict[str, float]:
    return first[0]


def forbidden(*_, **__):
    raise AssertionError("something was made again")


def folders(context: Context) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in context.store.folder.iterdir() if path.is_dir()}


# ---------------------------------------------------------------- end to end


def test_from_text_to_scores(metrics, context):
    trial = tiny()
    assert {"test/illegal", "test/oracle_nll", "test/total_variation", "test/diversity", "valid/loss",
            "valid/context_gain"} <= metrics.keys()
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())
    assert metrics["test/illegal_real"] == 0 and metrics["valid/context_gain"] < 1
    rows = read_lines(context.get(trial.samples()) / "samples.jsonl")
    assert len(rows) == 14 and all(row.keys() == {"text"} for row in rows)
    assert metrics["test/illegal"] == Oracle().illegal([row["text"] for row in rows])
    assert all(context.store.has(stage) for stage in upstream(trial.metrics()))


def test_what_a_trial_makes_is_what_it_says_it_needs(first):
    """No stage is asked for behind the graph's back: the study makes the shared ones first, from `needs` alone."""
    assert first[1] == {key(stage) for stage in upstream(tiny().metrics())}


def test_a_second_run_makes_nothing(metrics, context, monkeypatch):
    before = folders(context)
    monkeypatch.setattr(Store, "_make", forbidden)
    seen: list = []
    again = replace(context, record=lambda *said: seen.append(said))
    assert run(tiny(), again) == metrics and not seen and folders(context) == before


@pytest.mark.parametrize(("changes", "made"), [
    ({"sampling.stepper": EulerMaruyama()}, {"Sampled", "Scored"}),
    ({"evaluation.metrics": (Variety(),)}, {"RealScores", "Scored"}),
    ({"system.decoder.training.optimizer.lr": 1e-3}, {"TrainedDecoder", "Sampled", "Scored"}),
    ({"seed": 1}, {"Trained", "Sampled", "Scored"}),
])
def test_a_change_pays_for_what_it_touches(changes, made, metrics, context):
    before = folders(context)
    changed = run(override(tiny(), changes), context)
    after = folders(context)
    assert {name.partition("-")[0] for name in after.keys() - before.keys()} == made
    assert {name: after[name] for name in before} == before
    if "seed" in changes:
        assert changed["valid/loss"] != metrics["valid/loss"]


def test_the_curve_is_kept_with_the_checkpoint_and_told_by_stage(folder):
    """The same values go to whoever listens; the encoder's and decoder's losses carry their names."""
    seen: dict[str, list[int]] = {}

    def record(step, said):
        for name in said:
            seen.setdefault(name, []).append(step)

    context = Context(Store(folder / "listened"), record=record)
    trial = override(tiny(), {"system.encoder.weights.seed": 1, "sampling.count": 12})
    scores = run(trial, context)
    assert seen["valid/loss"] == [5, 10, 12] and seen["train/loss"] == [2, 4, 6, 8, 10, 12]
    assert seen["valid/context_gain"] == [5, 10, 12]
    assert {"encoder/valid/loss", "decoder/valid/loss", "decoder/valid/accuracy"} <= seen.keys()
    kept = read_curve(context.get(trial.checkpoint()) / "curve.jsonl")
    assert kept.keys() == {name for name in seen if name.startswith(("train/", "valid/"))}
    assert scores["valid/loss"] == kept["valid/loss"]


# ---------------------------------------------------------------- stop and go on


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("stops", [(1,), (7,), (4, 5, 11)])
def test_stopped_and_resumed_the_weights_are_the_same_bit_for_bit(stops, metrics, context, tmp_path):
    """Through the stage itself, with dropout, self-conditioning, micro-batches, averages; and the curve is the same."""
    stage = tiny().checkpoint()
    whole, curve = weights(context.get(stage)), read_curve(context.get(stage) / "curve.jsonl")
    shutil.copytree(context.store.folder, tmp_path / "stages", ignore=shutil.ignore_patterns("Trained-*", "*.lock"))
    store, done = Store(tmp_path / "stages"), 0
    for stop in stops:
        steps = iter(range(done + 1, 99))
        with pytest.raises(Stopped) as caught:
            Context(store, should_stop=lambda steps=steps, stop=stop: next(steps) == stop).get(stage)
        assert caught.value.step == stop and not store.has(stage) and store.unfinished(stage).exists()
        done = stop
    resumed = Context(store).get(stage)
    assert not store.unfinished(stage).exists()
    again, last = weights(resumed), read_curve(resumed / "curve.jsonl")
    assert again.keys() == whole.keys() and all(torch.equal(again[name], whole[name]) for name in whole)
    for ended in (last, curve):
        del ended["train/examples_per_second"], ended["train/tokens_per_second"]
    assert last == curve


# ---------------------------------------------------------------- sources


def test_a_conditional_trial_reads_the_test_sources_in_turn(context):
    """More samples than sources: they cycle; every sample says what it was written from."""
    trial = tiny(changes={"system.source_length": 6, "training.steps": 4, "sampling.count": 20,
                          "sampling.guidance": 0.5})
    trial.check(context)
    scores = run(trial, context)
    assert "valid/context_gain" not in scores and "test/illegal" in scores
    said = [row["source"] for row in read_lines(context.get(trial.samples()) / "samples.jsonl")]
    real = [row["source"] for row in read_lines(context.get(trial.data) / "test.jsonl")]
    assert len(real) == 15 and said == real + real[:5]


def test_samples_do_not_depend_on_the_size_of_the_last_batch(context, metrics):
    few, more = (override(tiny(), {"sampling.count": count}) for count in (14, 20))
    one, two = (read_lines(context.get(trial.samples()) / "samples.jsonl") for trial in (few, more))
    assert one[:10] == two[:10]


# ---------------------------------------------------------------- refused before anything starts


def texts(folder: Path, lines: list[str], store: Store):
    path = folder / "texts.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return import_files(str(path), None, store)


def test_texts_that_are_too_short_are_refused(tmp_path):
    context = Context(Store(tmp_path / "stages"))
    data = texts(tmp_path, [f"word{i} two" for i in range(200)], context.store)
    with pytest.raises(ConfigError, match="data: the longest text has 2 words"):
        tiny(data).check(context)
    data = texts(tmp_path, [f"word{i} two three four" for i in range(200)], context.store)
    tiny(data).check(context)


def test_sources_that_are_not_there_are_refused(tmp_path):
    context = Context(Store(tmp_path / "stages"))
    data = texts(tmp_path, [f"word{i} two three four" for i in range(200)], context.store)
    with pytest.raises(ConfigError, match=r"system.source_length: .* no sources to read; it must be 0"):
        tiny(data, {"system.source_length": 6}).check(context)
    tiny(changes={"system.source_length": 6}).check(context)


@pytest.mark.parametrize("recipe", [tiny, tencdm])
def test_too_few_samples_to_compare_are_refused(recipe, tmp_path):
    """Also where the corpus has not been downloaded yet."""
    context = Context(Store(tmp_path / "stages"))
    trial = override(recipe(), {"sampling.count": 11})
    with pytest.raises(ConfigError, match=r"sampling.count: must be at least evaluation.references = 1\d*, not 11"):
        trial.check(context)
    override(trial, {"evaluation.references": 11, "evaluation.metrics": (Variety(),)}).check(context)


def test_a_corpus_that_must_be_downloaded_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "_make", forbidden)
    tencdm().check(Context(Store(tmp_path / "stages")))


def test_the_recipes_pass_their_own_checks(tmp_path):
    context = Context(Store(tmp_path / "stages"))
    tencdm_laptop().check(context)
    tencdm_laptop(Stories(size=2_000)).check(context)


def test_the_bounds_of_a_small_corpus_are_those_of_the_stories_there_are(metrics, context):
    """Fewer held-out stories than the gain would look at."""
    bounds = next(stage for stage in upstream(tiny().metrics()) if type(stage).__name__ == "ContextBounds")
    known = ContextGain(context.get(bounds)).known
    assert known["x0"].shape == (15, 13, 16) and known["x_t"].shape == (10, 15, 13, 16)
    assert (known["oracle"].sum() < known["alone"].sum()) and (known["t"].diff() > 0).all()
