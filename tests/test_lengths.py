"""Laws of lengths: texts that are written from sources are as long as those that have such sources."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainables.config import override
from trainables.ld4lg import Ld4lg, Ld4lgSystem
from trainables.ld4lg_annealed import ld4lg_annealed_laptop
from trainables.randomness import step_rng
from trainables.scorelm import ScoreLm, ScoreLmSystem, scorelm_laptop
from trainables.stages import Context, Store
from trainables.text.conditions import Source
from trainables.text.corpora import Data, import_files
from trainables.text.documents import DocumentLengths
from trainables.text.latents import LengthHistogram, LengthsBySource
from trainables.text.lengths import count_lengths, draw_lengths, length_law
from trainables.text.rows import Row
from trainables.trial import Sampled, conditions_of


def test_lengths_follow_their_sources():
    counts = count_lengths(torch.tensor([1, 2]).repeat(1000), torch.tensor([2, 4]).repeat(1000), (2, 4))
    assert counts[1, 2] == counts[2, 4] == 1000 and counts.sum() == 2000 and counts.shape == (3, 5)
    law = length_law(counts)
    assert law.sum(1).tolist() == pytest.approx([1, 1, 1]) and not law[:, 0].any() and (law[:, 1:] > 0).all()
    assert law[1, 2] > 0.99 and law[2, 4] > 0.99
    assert law[0, 2] == pytest.approx(float(law[0, 4])) and law[0, 2] > 0.49              # a source length never seen
    seen = length_law(counts, unseen=0.0)
    assert (seen > 0).tolist() == [[False, False, True, False, True]] * 3                 # what no text has, none has


def test_lengths_are_drawn_as_often_as_the_law_says():
    law = torch.tensor([[0.0, 0.5, 0.0, 0.5], [0.0, 0.1, 0.2, 0.7]], dtype=torch.float64)
    drawn = draw_lengths(law[torch.tensor([0, 1]).repeat(20_000)], step_rng(0, 0)).view(-1, 2)
    for row in (0, 1):
        found = torch.bincount(drawn[:, row], minlength=4) / len(drawn)
        assert found.tolist() == pytest.approx(law[row].tolist(), abs=0.015)


# ---------------------------------------------------------------- in systems


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    return Context(Store(tmp_path_factory.mktemp("store") / "stages"))


@pytest.fixture(scope="module")
def data(context, tmp_path_factory) -> Data:
    """Notes of one word, from which short texts are written, and of three, from which long ones are."""
    rows: list[Row] = []
    names = "anna ben carl dora emil fred gina hans".split()             # few, so that each is one token
    for name, other in itertools.product(names, names):
        rows += [{"source": name, "text": f"{name} ran to {other}"},
                 {"source": f"{name} lost {other}", "text": f"{name} lost the {other} and was sad all day"}]
    file: Path = tmp_path_factory.mktemp("notes") / "notes.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return import_files(str(file), None, context.store)


def annealed(data: Data) -> Ld4lg:
    system = override(ld4lg_annealed_laptop(data), {
        "system.representation.model.weights.training.steps": 50, "system.representation.model.weights.width": 32,
        "system.network.width": 32, "system.network.layers": 1, "system.length": 24}).system
    assert isinstance(system, Ld4lg)
    return system


def score_lm(data: Data) -> ScoreLm:
    system = override(scorelm_laptop(data), {"system.length": 24, "system.packing.capacity": 60,
                                             "system.network.layers": 1}).system
    assert isinstance(system, ScoreLm)
    return system


READING = {"annealed LD4LG": (annealed, {"source": Source(length=12)}, LengthsBySource),
           "score LM": (score_lm, {"source_length": 12}, DocumentLengths)}


@pytest.mark.parametrize("name", READING)
def test_a_sampler_draws_the_length_of_texts_whose_sources_are_as_long(name, data, context):
    recipe, reads, stage = READING[name]
    cfg = override(recipe(data), reads)
    assert any(isinstance(each, stage) for each in cfg.needs_to_sample(data))
    torch.manual_seed(0)
    system: Ld4lgSystem | ScoreLmSystem = cfg.build_to_sample(data, context).eval()
    held_out = system.batches("valid")
    real = held_out.take(torch.arange(len(held_out)))
    assert real.source is not None
    sources, texts = real.source.mask.sum(1), real.mask.sum(1)
    short, long = sources <= sources.float().mean(), sources > sources.float().mean()
    assert short.any() and long.any() and texts[short].max() < texts[long].min()
    asked = conditions_of(held_out.take(torch.arange(len(held_out)).repeat(50)))           # lengths are no condition
    drawn = system.draw_mask(len(asked.ids), step_rng(0, 0), asked).sum(1).view(50, -1)
    between = (texts[short].max() + texts[long].min()) / 2
    assert float((drawn[:, short] < between).float().mean()) > 0.9                         # EASE: some of the others'
    assert float((drawn[:, long] > between).float().mean()) > 0.9
    learned = system.batches("train")
    if name == "annealed LD4LG":                       # whose training batches are texts; what none has, none gets
        assert set(drawn.flatten().tolist()) <= set(learned.take(torch.arange(len(learned))).mask.sum(1).tolist())


@pytest.mark.parametrize("name", READING)
def test_without_sources_lengths_are_all_texts(name, data, context):
    recipe, _, stage = READING[name]
    cfg = recipe(data)
    needed = cfg.needs_to_sample(data)
    assert not any(isinstance(each, stage) for each in needed)
    assert name == "score LM" or isinstance(needed[-1], LengthHistogram)
    torch.manual_seed(0)
    system = cfg.build_to_sample(data, context).eval()
    drawn = system.draw_mask(4_000, step_rng(0, 0)).sum(1)
    held_out = system.batches("valid")
    between = held_out.take(torch.arange(len(held_out))).mask.sum(1).float().mean()
    assert float((drawn > between).float().mean()) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("name", READING)
def test_only_samples_that_are_written_from_sources_have_become_others(name, data):
    """What is trained is what it was."""
    recipe, reads, stage = READING[name]
    trial = replace((ld4lg_annealed_laptop if name == "annealed LD4LG" else scorelm_laptop)(data),
                    system=override(recipe(data), reads))
    samples: Sampled = trial.samples()
    assert any(isinstance(each, stage) for each in samples.needs())
    assert not any(isinstance(each, stage) for each in trial.checkpoint().needs())
