"""Laws of the spindle's strength: what is called valid hides every word of every sentence at a positive rate."""

import itertools
import json
import math
import typing

import pytest
import torch
from torch import Tensor

from trainables.config import ConfigError, override
from trainables.diffusion.absorbing import Absorbing, Survival
from trainables.diffusion.objectives import D3pm, Mdlm
from trainables.diffusionbert import DiffusionBert, diffusionbert_laptop
from trainables.randomness import step_rng
from trainables.stages import Context, Store
from trainables.text.corpora import Stories
from trainables.text.encoders import Bert, Small
from trainables.text.spindle import extremes, told
from trainables.text.word_information import Measure, sentence_weights, weigh
from trainables.training.average import NoAverage
from trainables.training.learning_rate import Constant
from trainables.training.optimizers import AdamW
from trainables.training.train import Training

SCHEDULES = [member() for member in typing.get_args(Survival)]
MEASURES = typing.get_args(Measure)
COUNTS = {"few": [1000, 100, 10, 1], "even": [7, 6, 5, 5], "one of all": [10**6, 1, 0, 0], "unsaid": [50, 20, 0, 3]}
LONGEST = 4

DATA = Stories(size=300)
SHORT = Training(optimizer=AdamW(lr=5e-3), schedule=Constant(), ema=NoAverage(), steps=20, batch=32,
                 precision="float32")
PUBLISHED = DiffusionBert(
    lm=Bert(weights=Small(layers=1, width=32, heads=2, feedforward=64, dropout=0.0, hidden=0.3, length=16,
                          training=SHORT)),
    length=12, objective=D3pm(steps=16, cross_entropy=0.2, as_published=True), process=Absorbing(spindle=0.3))


def sentences(value: Tensor) -> Tensor:
    """The values [N, LONGEST] of all sentences of LONGEST words."""
    return torch.stack([value[list(words)] for words in itertools.product(range(len(value)), repeat=LONGEST)])


def all_weights(value: Tensor, measure: Measure) -> Tensor:
    """The published weights [N] of all words of all sentences of 1 to LONGEST words."""
    rows, found = sentences(value), []
    for n in range(1, LONGEST + 1):
        mask = (torch.arange(LONGEST) < n).expand(rows.shape)
        found.append(sentence_weights(rows, mask, measure)[mask])
    return torch.cat(found)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("measure", MEASURES)
def test_no_sentence_has_a_larger_weight_than_the_two_extreme_ones_and_they_are_sentences(measure, counts):
    value, _ = weigh(torch.tensor(COUNTS[counts]), measure)
    every, two = all_weights(value, measure), extremes(value, LONGEST, measure)
    assert two.shape == (2, LONGEST)
    torch.testing.assert_close(two.max(), every.max(), atol=0, rtol=1e-12)
    torch.testing.assert_close(two.min(), every.min(), atol=0, rtol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("measure", MEASURES)
def test_the_largest_valid_spindle_hides_every_word_of_every_sentence_more_and_more_and_a_larger_one_is_refused(
        measure, counts, schedule):
    value, corpus = weigh(torch.tensor(COUNTS[counts]), measure)
    weights, found = extremes(value, LONGEST, measure), all_weights(value, measure).unique()
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    share = Absorbing(schedule=schedule, spindle=1.0, relative=True)
    process = share.settled(weights)
    hidden = process.hidden(t, found)
    assert (hidden.diff(dim=0) > -1e-15).all() and (hidden[1:-1] > 0).all() and (hidden[1:-1] < 1).all()
    assert (override(process, {"spindle": 0.99 * process.spindle}).hidden(t, found).diff(dim=0) > 0).all()
    beyond = override(process, {"spindle": 1.05 * process.spindle})
    with pytest.raises(ValueError, match=f"at most 1 / .* = {process.spindle:.3g}"):
        beyond.settled(weights)
    assert not (beyond.hidden(t, found).diff(dim=0) > 0).all()
    assert share.settled(corpus).spindle > 0                            # which may be more than sentences allow:
    if (measure, counts) == ("information", "few"):
        assert not (share.settled(corpus).hidden(t, found).diff(dim=0) > 0).all()


# ---------------------------------------------------------------- in a system


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    return Context(Store(tmp_path_factory.mktemp("store") / "stages"))


@pytest.mark.parametrize("lengths", ["drawn", "written"])
@pytest.mark.parametrize("measure", MEASURES)
def test_a_share_is_one_of_what_sentences_allow_where_they_hide(measure, lengths, context):
    cfg = override(PUBLISHED, {"process.spindle": 1.0, "process.relative": True, "measure": measure,
                               "lengths": lengths})
    system = cfg.build(DATA, context).eval()
    batch = system.batches("train").take(torch.arange(len(system.batches("train"))))
    weights = system.hiding.published_weights(batch.ids, system.layout.able(batch))
    t = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    assert system.process.spindle > 0 and not system.process.relative
    for every in (weights.unique(), system.hiding.weights):
        assert (system.process.hidden(t, every).diff(dim=0) >= 0).all()
        assert math.pi * system.process.spindle * float(every.abs().max()) <= 1 + 1e-12
    assert torch.isfinite(system.loss(batch.to(torch.device("cpu")), 0.0, step_rng(0, 0))["loss"])
    (stage,) = cfg.spindle(DATA)
    assert json.loads((context.get(stage) / "spindle.json").read_text())["most"] == system.process.spindle


def test_what_words_allow_and_sentences_do_not_is_refused_before_anything_is_trained(tmp_path, context):
    plain = override(PUBLISHED, {"measure": "information", "process.relative": True, "process.spindle": 1.0})
    (sentences,) = plain.spindle(DATA)
    said = told(sentences.information, context)
    assert said is not None
    allowed = Absorbing(spindle=1.0, relative=True).settled(said["weight"]).spindle
    valid = json.loads((context.get(sentences) / "spindle.json").read_text())["most"]
    assert valid < 0.9 * allowed
    between = override(PUBLISHED, {"measure": "information", "process.spindle": (valid + allowed) / 2})
    (stage,), fresh = between.spindle(DATA), Context(Store(tmp_path / "stages"))
    stage.check(fresh)                                                   # the corpus' weights allow it
    trial = override(diffusionbert_laptop(DATA), {"system": between})
    for ask in (lambda: trial.check(fresh), lambda: between.build(DATA, fresh), lambda: between.build(DATA, context)):
        with pytest.raises(ConfigError, match=f"system.process.spindle: .* at most 1 / .* = {valid:.3g} .as published"):
            ask()
    assert not list((tmp_path / "stages").glob("MaskedLmFolder*"))
    override(trial, {"system.process.spindle": 0.999 * valid}).check(fresh)
    override(trial, {"system.objective": Mdlm()}).check(fresh)                # whose sentences decide nothing


def test_the_published_strength_is_valid_in_any_sentence(context):
    """Frequencies are in [0, 1], so no weight reaches 1, and .3 pi is less than 1."""
    PUBLISHED.check(DATA, context)
    for counts in COUNTS.values():
        value, _ = weigh(torch.tensor(counts), "frequency")
        assert Absorbing(spindle=0.3).settled(extremes(value, 129, "frequency")).spindle == 0.3
