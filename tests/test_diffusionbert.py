"""Laws of DiffusionBERT: its layout, its losses, its bound against enumeration, its way back to words."""

import dataclasses
import itertools
import json
import math

import pytest
import torch
from torch import Tensor

from search_spaces.diffusionbert import space
from search_spaces.domains import Choice
from trainables.config import ConfigError, fingerprint, from_dict, override, to_dict
from trainables.diffusion.absorbing import Absorbing, CosineSurvival
from trainables.diffusion.objectives import D3pm, Mdlm
from trainables.diffusion.sampler import Sampling, sample
from trainables.diffusion.steppers import LinearGrid, LogSnrGrid
from trainables.diffusion.times import InLogSnr, Times
from trainables.diffusion.unmasking import Ancestral
from trainables.diffusionbert import (
    LAST,
    NEVER,
    SEQUENCE_TO_SEQUENCE_PAPER,
    DiffusionBert,
    DiffusionBertSystem,
    Mixture,
    diffusionbert,
    diffusionbert_laptop,
)
from trainables.evaluation.evaluation import Evaluation
from trainables.evaluation.oracle import OracleScores
from trainables.evaluation.text_bound import BoundEstimate
from trainables.likelihood import Likelihood
from trainables.randomness import step_rng
from trainables.stages import Context, Store
from trainables.system import Batch
from trainables.tencdm import tencdm_laptop
from trainables.text.corpora import Stories, import_files, read_texts
from trainables.text.encoders import Bert, Roberta, Small
from trainables.text.word_information import read_information
from trainables.training.average import Ema, NoAverage
from trainables.training.learning_rate import Constant
from trainables.training.optimizers import AdamW
from trainables.training.train import Stopped, Training, load_weights, train
from trainables.trial import Trial, run

DATA = Stories(size=300)
SHORT = Training(optimizer=AdamW(lr=5e-3), schedule=Constant(), ema=NoAverage(), steps=100, batch=32,
                 precision="float32")
TINY = Small(layers=1, width=32, heads=2, feedforward=64, dropout=0.0, hidden=0.3, length=16, training=SHORT)
FEW = BoundEstimate(texts=16, draws=2)
PLAIN = DiffusionBert(lm=Bert(weights=TINY), length=12, bound=FEW)
WRITTEN = override(PLAIN, {"lengths": "written"})
READS = override(PLAIN, {"source_length": 6, "source_dropout": 0.3})
SPINDLE = override(PLAIN, {"process.spindle": 0.3})
PUBLISHED = override(SPINDLE, {"objective": D3pm(steps=16, cross_entropy=0.2, as_published=True)})
KINDS = {
    "plain": PLAIN, "written": WRITTEN, "reads": READS, "spindle": SPINDLE, "published": PUBLISHED,
    "roberta": override(PLAIN, {"lm": Roberta(weights=TINY)}),
    "roberta written": override(WRITTEN, {"lm": Roberta(weights=TINY), "source_length": 6}),
    "information": override(SPINDLE, {"measure": "information", "process.spindle": 0.2}),
    "steps": override(PLAIN, {"objective": Mdlm(steps=16, cross_entropy=1.0), "process.schedule": CosineSurvival()}),
    "mixture": override(PLAIN, {"objective": D3pm(steps=16)}),
    "prefix": override(PLAIN, {"told": "prefix"}), "layers": override(PLAIN, {"told": "layers"}),
    "fresh": override(PLAIN, {"pretrained": False}),
}


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    return Context(Store(tmp_path_factory.mktemp("store") / "stages"))


@pytest.fixture(params=KINDS)
def cfg(request) -> DiffusionBert:
    return KINDS[request.param]


def build(cfg: DiffusionBert, context: Context) -> DiffusionBertSystem:
    torch.manual_seed(0)
    return cfg.build(DATA, context).eval()


def rows(system: DiffusionBertSystem, count: int = 8, split: str = "train") -> Batch:
    return system.batches(split).take(torch.arange(count))


def draw(system: DiffusionBertSystem, sampling: Sampling, count: int = 8, batch: Batch | None = None, seed: int = 0):
    """(the batch that was asked for, the last state, the texts)"""
    rng = step_rng(seed, "draw")
    mask = system.draw_mask(count, rng, batch)
    batch = Batch(ids=torch.zeros_like(mask, dtype=torch.long), mask=mask, source=batch.source if batch else None)
    x, hat = sample(system, sampling, (count, system.cfg.state_length), rng, batch)
    return batch, x, system.decode(x, hat, batch)


# ---------------------------------------------------------------- the loss


def test_the_loss_is_a_function_of_its_noise_and_can_be_dealt_to_workers(cfg, context):
    system = build(cfg, context).train()
    batch = rows(system)
    whole = system.loss(batch, 0.0, step_rng(3, 5))["loss"]
    assert torch.isfinite(whole) and torch.equal(system.loss(batch, 0.0, step_rng(3, 5))["loss"], whole)
    assert not torch.equal(system.loss(batch, 0.0, step_rng(3, 6))["loss"], whole)
    halves = [system.loss(system.batches("train").take(torch.arange(part, 8, 2)), 0.0,
                          step_rng(3, 5, part=part, parts=2))["loss"] for part in (0, 1)]
    torch.testing.assert_close(torch.stack(halves).mean(), whole)


def test_the_objectives_meet_where_they_should(context):
    """Without a spindle D3PM's term exceeds the substitution's only by the mask's mass; a chain of many steps is
    continuous time; cross-entropy alone leaves the bound out."""
    batch, t = rows(build(PLAIN, context)), 0.5
    losses = {}
    for name, objective in {"continuous": Mdlm(), "many": Mdlm(steps=1 << 20), "d3pm": D3pm(steps=1 << 20),
                            "crossed": Mdlm(bound=0.0, cross_entropy=1.0)}.items():
        at_half = Times(low=t - 1e-6, high=t)
        system = build(override(PLAIN, {"objective": objective, "times": at_half}), context)
        with torch.no_grad():
            system.network.model.cls.predictions.decoder.bias[system.mask] += 6.0       # the mask is a likely answer
        losses[name] = {part: float(value.detach()) for part, value in
                        system.loss(batch, 0.0, step_rng(0, 0)).items()}
    for name in ("many", "continuous"):
        assert losses[name]["bound"] == pytest.approx(losses["continuous"]["bound"], rel=1e-4)
    assert losses["crossed"]["loss"] == pytest.approx(losses["continuous"]["bound"] * t, rel=1e-4)
    assert losses["d3pm"]["bound"] > losses["continuous"]["bound"] * 1.001


def test_pads_are_neither_read_nor_said_where_the_length_is_drawn_and_both_where_it_is_written(context):
    for cfg, matters in ((PLAIN, False), (WRITTEN, True)):
        system = build(cfg, context)
        batch = rows(system)
        other = dataclasses.replace(batch, ids=torch.where(batch.mask, batch.ids, 20))
        losses = [float(system.loss(each, 0.0, step_rng(0, 0))["bound"]) for each in (batch, other)]
        assert (losses[0] != losses[1]) == matters
        able = system.layout.able(batch)
        assert torch.equal(able, torch.ones_like(able) if matters else batch.mask & (batch.ids != system.layout.end))


def test_the_layout_of_a_sampler_is_that_of_training(cfg, context):
    """What a sampler takes for known, from the mask alone, is what training never hides, in its place."""
    system = build(cfg, context)
    batch = rows(system)
    layout = system.layout.places(batch, len(batch.ids))
    assert torch.equal(layout.known, ~system.layout.able(batch))
    assert torch.equal(batch.ids[layout.known], layout.ids[layout.known])


@pytest.mark.parametrize("kind", ["reads", "roberta written"])
def test_the_source_is_read_and_never_hidden(kind, context):
    system = build(KINDS[kind], context).train()
    batch = rows(system)
    turned = dataclasses.replace(batch, source=system.batches("train").take(torch.arange(8, 16)).source)
    losses = [system.loss(each, 0.0, step_rng(0, 0))["loss"] for each in (batch, turned)]
    assert losses[0] != losses[1] and batch.source is not None
    front, mask = system.layout.front(batch, 8)
    assert torch.equal(front, batch.source.ids) and not (front == system.mask).any()
    padded = torch.where(batch.source.mask, batch.source.ids, 9)
    assert (batch.source.ids != padded).any()
    silent = dataclasses.replace(batch, source=dataclasses.replace(batch.source, ids=padded))
    torch.testing.assert_close(system.loss(silent, 0.0, step_rng(0, 0))["loss"], losses[0])


def test_dropped_sources_are_empty_texts(context):
    system = build(override(READS, {"source_dropout": 0.5}), context)
    many = rows(system, 256)
    assert many.source is not None
    ids, mask = system.layout.front(many, 256, 0.5, step_rng(0, 0))
    empty, seen = system.layout.front(None, 1)
    dropped = (ids == empty).all(1)
    assert 0.4 < float(dropped.float().mean()) < 0.6 and torch.equal(mask[dropped], seen.expand(int(dropped.sum()), -1))
    assert torch.equal(ids[~dropped], many.source.ids[~dropped])
    assert int(seen.sum()) == 2


@pytest.mark.parametrize("objective", [Mdlm(steps=2048), D3pm(steps=2048)])
def test_a_chain_is_trained_in_all_its_steps(objective, context, monkeypatch):
    """Its first two steps, too: one draw in 2,048 each, of 200 batches of 512."""
    system, seen = build(override(PLAIN, {"objective": objective}), context), []

    def hide(ids, able, t, rng, published=False):
        seen.append(t.flatten())
        raise StopIteration

    monkeypatch.setattr(system.hiding, "hide", hide)
    batch = Batch(ids=torch.zeros(512, 12, dtype=torch.long), mask=torch.ones(512, 12, dtype=torch.bool))
    for step in range(200):
        with pytest.raises(StopIteration):
            system.loss(batch, 0.0, step_rng(0, step))
    steps = torch.cat(seen) * 2048
    assert torch.equal(steps, steps.round()) and steps.min() == 1 and steps.max() == 2048
    for k in (1, 2, 3, 2048):
        assert int((steps == k).sum()) == pytest.approx(50, abs=25)


def test_times_may_follow_another_law(context):
    """Even in log-SNR, of which an absorbing process has one: visible over hidden."""
    cfg = override(PLAIN, {"times": Times(law=InLogSnr(low=-2.0, high=2.0), low=0.0), "objective": Mdlm(steps=16)})
    system = build(cfg, context)
    assert torch.isfinite(system.loss(rows(system), 0.0, step_rng(0, 0))["loss"])
    t = cfg.times.draw(torch.ones(1000, 1), 0.0, step_rng(0, 0), cfg.process.schedule)         # type: ignore[arg-type]
    assert float(t.min()) == pytest.approx(1 / (1 + math.exp(2)), abs=1e-3)
    assert float(t.max()) == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-3)


@pytest.mark.parametrize("kind", ["plain", "spindle", "steps", "mixture"])
@torch.no_grad()
def test_the_loss_times_a_typical_length_is_the_bound(kind, context):
    """Means over draws; the mixture's own sum where the mask is an answer."""
    cfg = KINDS[kind]
    system = build(override(cfg, {"objective.cross_entropy": 0.0}), context)
    batch, steps = rows(system, 64), cfg.objective.steps
    asked = Mixture(system) if isinstance(cfg.objective, D3pm) else system
    losses = torch.stack([system.loss(batch, 0.0, step_rng(0, i))["bound"] for i in range(100)]).double()
    sums = torch.stack([asked.estimate(batch, steps, step_rng(1, i)).mean() for i in range(100)])
    error = math.hypot(*(float(each.std()) / 10 for each in (losses * system.typical, sums)))
    assert float(losses.mean()) * system.typical == pytest.approx(float(sums.mean()), abs=3.5 * error)
    assert error < 0.03 * float(sums.mean())


def test_it_learns(context, tmp_path):
    """From a model that knows no word to well below what words' frequencies tell, in 150 steps."""
    system = build(override(PLAIN, {"pretrained": False}), context)
    counts = read_information(context.get(PLAIN.information(DATA)))["counts"].double()
    unigram = float(-torch.special.xlogy(counts, counts / counts.sum()).sum() / counts.sum())
    before = float(system.diagnose()["bound_per_word"])
    train(system, system.batches("train"), override(SHORT, {"steps": 150, "optimizer.lr": 1e-2}), seed=0, out=tmp_path,
          context=context)
    after = float(system.eval().diagnose()["bound_per_word"])
    assert before > unigram and after < 0.8 * unigram


# ---------------------------------------------------------------- the bound


def short_text(system: DiffusionBertSystem, count: int) -> tuple[Tensor, Tensor]:
    """A text of `count` words as a state [1, L] and its mask."""
    text = read_texts_of(system)[0].split()[:count]
    ids, mask = system.words.ids([" ".join(text)], system.cfg.length + 1)
    assert int(mask.sum()) == count + 2
    return ids[:, 1:], mask[:, 1:]


def read_texts_of(system: DiffusionBertSystem) -> list[str]:
    return system.words.texts(rows(system, 4).ids)


@torch.no_grad()
def guesses(system: DiffusionBertSystem, ids: Tensor, mask: Tensor, t: float) -> dict[tuple[bool, ...], Tensor]:
    """log p [L, V] of the network for every set of hidden words, at time t."""
    n = int(mask.sum()) - 1
    sets = list(itertools.product((False, True), repeat=n))
    x = torch.stack([torch.where(torch.tensor([*hidden] + [False] * (ids.shape[1] - n)), system.mask, ids[0])
                     for hidden in sets])
    batch = Batch(ids=ids.expand(len(x), -1), mask=mask.expand(len(x), -1))
    h = system.states(x, torch.full((len(x), 1), t), system.layout.places(batch, len(x)))
    return dict(zip(sets, system.log_p(h).double(), strict=True))


def enumerated(system: DiffusionBertSystem, ids: Tensor, mask: Tensor, T: int) -> tuple[float, float]:
    """(bound, exact -ln p) of one text under the T-step chain, over all ways to get there; formulas spelled out."""
    n, process = int(mask.sum()) - 1, system.cfg.process
    words = ids[0, :n]
    weights = system.hiding.weights if process.spindle else torch.zeros_like(system.hiding.weights)
    reach = {(True,) * n: 1.0}                       # P(chain stands here and agrees with the text), by what is hidden
    bound = 0.0
    for k in range(T, 0, -1):
        t, s = (torch.tensor([[each / T]], dtype=torch.float64) for each in (k, k - 1))
        log_p = guesses(system, ids, mask, k / T)
        r = process.reveal(t, s, weights).expand(1, len(weights))[0]
        chance = process.hidden(t, weights[words]).expand(1, n)[0].tolist()
        following: dict[tuple[bool, ...], float] = {}
        for hidden in log_p:
            mass = math.prod(c if h else 1 - c for c, h in zip(chance, hidden, strict=True))
            says, stays = {}, {}
            for i in (i for i in range(n) if hidden[i]):
                p = log_p[hidden][i].exp()
                says[i] = float(p[words[i]] * r[words[i]])
                stays[i] = float((p * (1 - r)).sum())
                r_x = float(r[words[i]])
                bound += mass * (r_x * math.log(r_x / says[i]) + (
                    (1 - r_x) * math.log((1 - r_x) / stays[i]) if r_x < 1 else 0.0))
            if hidden in reach:
                for then in itertools.product(*((True, False) if h else (False,) for h in hidden)):
                    step = math.prod(stays[i] if then[i] else says[i] for i in says)
                    following[then] = following.get(then, 0.0) + reach[hidden] * step
        reach = following
    return bound, -math.log(reach[(False,) * n])


@pytest.mark.parametrize("kind", ["plain", "spindle", "steps", "layers", "roberta"])
@pytest.mark.parametrize("T", [1, 4])
def test_the_estimate_is_the_enumerated_bound_and_bounds_the_chains_own_likelihood(kind, T, context):
    system = build(KINDS[kind], context)
    ids, mask = short_text(system, 4)
    bound, exact = enumerated(system, ids, mask, T)
    assert bound >= exact - 1e-9 and (T > 1 or bound == pytest.approx(exact, abs=1e-6))
    batch = Batch(ids=ids.expand(3000, -1), mask=mask.expand(3000, -1))
    with torch.no_grad():
        found = system.estimate(batch, T, step_rng(0, T))
    error = float(found.std()) / 3000 ** 0.5
    assert float(found.mean()) == pytest.approx(bound, abs=3 * error + 1e-5)
    assert error < 0.05 * bound or T == 1


@pytest.mark.parametrize("kind", ["plain", "spindle"])
def test_in_continuous_time_the_estimate_is_the_integral(kind, context):
    """The density from 1 to LAST by quadrature, and one step from there to 0."""
    system = build(KINDS[kind], context)
    process, (ids, mask) = system.cfg.process, short_text(system, 3)
    words, log_p = ids[0, :3], guesses(system, ids, mask, 0.5)                        # a model that is not told t
    weights = system.hiding.weights if process.spindle else torch.zeros_like(system.hiding.weights)

    def expected(t: float) -> float:
        at, total = torch.tensor([[t]], dtype=torch.float64), 0.0
        chance = process.hidden(at, weights[words]).expand(1, 3)[0].tolist()
        rho = process.rate(at, weights).expand(1, len(weights))[0]
        for hidden, each in log_p.items():
            mass = math.prod(c if h else 1 - c for c, h in zip(chance, hidden, strict=True))
            for i in (i for i in range(3) if hidden[i]):
                own = float(rho[words[i]])
                total += mass * (-float(each[i, words[i]]) / LAST if t == LAST else
                                 own * -float(each[i, words[i]]) - own + float((rho * each[i].exp()).sum()))
        return total

    n = 400
    integral = sum(expected(LAST + (1 - LAST) * (i + 0.5) / n) for i in range(n)) * (1 - LAST) / n
    integral += expected(LAST) * LAST
    batch = Batch(ids=ids.expand(4000, -1), mask=mask.expand(4000, -1))
    with torch.no_grad():
        found = system.estimate(batch, 0, step_rng(0, 0))
    assert float(found.mean()) == pytest.approx(integral, abs=3 * float(found.std()) / 4000 ** 0.5 + 1e-3)


def test_what_is_reported_of_the_bound(context):
    system = build(PLAIN, context)
    found = {name: float(value) for name, value in system.diagnose().items()}
    assert found == {name: float(value) for name, value in system.diagnose().items()}
    texts = read_texts(context.get(DATA), "valid")[:16]
    assert len(texts) == 15                                                             # all that there are
    words = sum(len(text.split()) for text in texts)
    assert found["bound_per_text"] * 15 == pytest.approx(found["bound_per_word"] * words)
    assert found["bound_per_piece"] == pytest.approx(found["bound_per_word"])           # here a word is a piece
    assert found["bound_per_token"] * (words + 15) == pytest.approx(found["bound_per_word"] * words)
    for unit in ("token", "piece", "word"):
        assert found[f"bound_perplexity_per_{unit}"] == pytest.approx(math.exp(found[f"bound_per_{unit}"]))
    assert (found["bound_calls"], found["bound_seed"]) == (2, 0) and 0 < found["bound_error"]
    assert 0 < found["bound_length_per_text"] < 3
    written = {name: float(value) for name, value in build(WRITTEN, context).diagnose().items()}
    assert written["bound_length_per_text"] == 0


def test_words_that_the_tokenizer_does_not_know_count(tmp_path):
    """Every text has a letter that no other has: in held-out texts it is unknown, and its nats are counted."""
    store = Store(tmp_path / "stages")
    letters = [chr(0x3b1 + 0x100 * (i // 20) + i % 20) for i in range(80)]
    (tmp_path / "texts.txt").write_text("\n".join(f"the cat {letter} sat" for letter in letters))
    data = import_files(str(tmp_path / "texts.txt"), None, store)
    cfg = override(PLAIN, {"lm.weights.training.steps": 2})
    system = cfg.build(data, Context(store)).eval()
    batch = system.batches("valid").take(torch.arange(4))
    assert (batch.ids == system.network.unknown).any(1).all() and batch.words is not None
    assert system.count(batch)["word"] == 16 == int(batch.words.sum())
    words = system.words.read(["one two ! three", "aa bb cc dd ee"], 5)[2]
    assert words.tolist()[1] < 5                                                # cut: what was cut off is not counted


def test_pieces_are_not_words(context):
    letters = override(PLAIN, {"lm.weights.vocabulary": 300, "lm": Roberta(weights=override(TINY, {"vocabulary": 300})),
                               "length": 40})
    found = {name: float(value) for name, value in build(letters, context).diagnose().items()}
    assert found["bound_per_token"] < found["bound_per_piece"] < found["bound_per_word"] / 1.5


def test_what_the_objective_sums_to_is_reported_beside_the_bound(context):
    """Without a spindle the mixture is a bound, looser than the sampler's; with one it is reported as published."""
    loose = override(PUBLISHED, {"process.spindle": 0.0, "bound": BoundEstimate(texts=15, draws=40, steps=16)})
    found = build(loose, context).diagnose()
    assert found["bound_own_per_token"] > found["bound_per_token"]
    plain = build(PLAIN, context).diagnose()
    assert plain["bound_own_per_token"] == plain["bound_per_token"]
    assert torch.isfinite(build(PUBLISHED, context).diagnose()["bound_own_per_token"])


# ---------------------------------------------------------------- sampling


STEPPERS = [Ancestral(), Ancestral(temperature=0.1, top_k=3), Ancestral(top_p=0.5, order="confidence"),
            Ancestral(temperature=0.0, order="confidence")]


@pytest.mark.parametrize("kind", ["plain", "published"])
def test_the_published_stepper_walks(kind, context):
    """Known places stay known; D3pm's model may leave masks, which are no words of a text."""
    system = build(KINDS[kind], context)
    with torch.no_grad():
        system.network.model.cls.predictions.decoder.bias[system.mask] += 8.0
    batch, x, texts = draw(system, Sampling(stepper=Ancestral(as_published=True, top_k=5), steps=4))
    assert torch.equal(x == system.layout.end, torch.arange(12) == batch.mask.sum(1, keepdim=True) - 1)
    assert bool((x == system.mask).any()) == (kind == "published")
    assert not any("mask" in text.lower() for text in texts)
    _, x, _ = draw(system, Sampling(stepper=Ancestral(top_k=5), steps=4))
    assert not (x == system.mask).any()


@pytest.mark.parametrize("stepper", STEPPERS)
@pytest.mark.parametrize(("grid", "steps"), [(LinearGrid(), 1), (LinearGrid(), 7), (LinearGrid(end=0.2), 4),
                                             (LogSnrGrid(), 6)])
@pytest.mark.parametrize("kind", ["plain", "written", "roberta", "spindle", "published"])
def test_no_mask_is_left_whatever_the_steps(kind, stepper, grid, steps, context):
    system = build(KINDS[kind], context)
    batch, x, texts = draw(system, Sampling(stepper=stepper, grid=grid, steps=steps))
    assert not (x == system.mask).any()
    assert not any("mask" in text.lower() for text in texts)
    if KINDS[kind].lengths == "drawn":
        assert torch.equal(x == system.layout.end, torch.arange(12) == batch.mask.sum(1, keepdim=True) - 1)
        assert torch.equal(x == system.layout.pad, ~batch.mask)
        assert all(len(text.split()) <= n for text, n in zip(texts, (batch.mask.sum(1) - 1).tolist(), strict=True))


def test_a_step_leaves_visible_words_alone_and_the_guess_is_a_distribution(cfg, context):
    system = build(cfg, context)
    batch, t = rows(system), torch.full((8, 1), 0.5)
    x = system.hiding.hide(batch.ids, system.layout.able(batch), t.double(), step_rng(0, 0))
    with torch.no_grad():
        hat = system.denoise(x, t, previous=None, batch=batch)
    assert hat.x0.shape == (8, 12, system.network.vocabulary)
    torch.testing.assert_close(hat.x0.exp().sum(-1), torch.ones(8, 12), atol=1e-5, rtol=0)
    says_mask = isinstance(cfg.objective, D3pm)
    hidden = hat.x0[x == system.mask]
    assert (hat.x0[x != system.mask][:, system.mask] == NEVER).all()
    assert ((hidden[:, system.mask] > NEVER) == says_mask).all()
    visible = x != system.mask
    assert (hat.x0[visible].gather(1, x[visible][:, None]) == 0).all() and (hat.x0[~visible].max(-1).values < 0).all()


def test_the_sampler_draws_from_the_chain_whose_likelihood_was_enumerated(context):
    """Texts of two words: the likeliest come as often as exp(-NLL) says.  Spindle, two steps, time told."""
    system = build(override(SPINDLE, {"told": "layers", "process.spindle": 0.4}), context)
    ids, mask = short_text(system, 2)
    count = 6000
    batch = Batch(ids=torch.zeros(count, 12, dtype=torch.long), mask=mask.expand(count, -1))
    x, _ = sample(system, Sampling(stepper=Ancestral(), steps=2), (count, 12), step_rng(1, 1), batch)
    pairs, often = x[:, :2].unique(dim=0, return_counts=True)
    for place in often.argsort(descending=True)[:4].tolist():
        text = torch.where(torch.arange(12) < 2, torch.cat([pairs[place], ids[0, 2:]]), ids[0])[None]
        p = math.exp(-enumerated(system, text, mask, 2)[1])
        assert float(often[place]) / count == pytest.approx(p, abs=4 * (p / count) ** 0.5)


def test_a_prompt_is_kept_and_read(context):
    system = build(PLAIN, context)
    real = rows(system, 8)
    given = (torch.arange(12) < 3).expand(8, -1)
    batch = Batch(ids=real.ids, mask=real.mask, given=given)
    x, _ = sample(system, Sampling(stepper=Ancestral(), steps=6), (8, 12), step_rng(0, 0), batch, clean=real.ids)
    assert torch.equal(x[given], real.ids[given]) and not (x == system.mask).any()


@pytest.mark.parametrize("guidance", [0.0, 2.0])
@pytest.mark.parametrize("kind", ["reads", "roberta written"])
def test_sources_decide_what_is_written(kind, guidance, context):
    """Same dice, another source: other texts; guidance stays a distribution and leaves no mask."""
    system = build(KINDS[kind], context)
    sampling = Sampling(stepper=Ancestral(), steps=6, guidance=guidance)
    texts = []
    for first in (0, 8):
        source = system.batches("test").take(torch.arange(first, first + 7)).source
        asked = Batch(ids=torch.zeros(7, 12, dtype=torch.long), mask=torch.ones(7, 12, dtype=torch.bool), source=source)
        _, x, said = draw(system, sampling, 7, asked)
        assert not (x == system.mask).any()
        texts.append(said)
    assert texts[0] != texts[1]


def test_drawn_lengths_follow_the_training_texts(context):
    system = build(PLAIN, context)
    n = system.draw_mask(4000, step_rng(0, 0)).sum(1)
    real = torch.bincount(system.batches("train").take(torch.arange(300)).mask.sum(1), minlength=13) / 300
    assert (torch.bincount(n, minlength=13) / 4000).tolist() == pytest.approx(real.tolist(), abs=0.03)
    assert build(WRITTEN, context).draw_mask(3, step_rng(0, 0)).all()


# ---------------------------------------------------------------- training


def test_bf16_training_has_no_nan(cfg, context, tmp_path):
    system = build(cfg, context).train()
    short = override(SHORT, {"steps": 4, "precision": "bfloat16", "batch": 8, "record_every": 1, "validate_every": 4,
                             "validate_on": 8})
    told: list[dict] = []
    train(system, system.batches("train"), short, seed=0, out=tmp_path,
          context=Context(context.store, lambda step, metrics: told.append(dict(metrics))),
          validate=system.batches("valid"))
    assert all(math.isfinite(value) for each in told for value in each.values())
    with torch.autocast("cpu", torch.bfloat16):
        _, x, _ = draw(system, Sampling(stepper=Ancestral(), steps=3))
    assert not (x == system.mask).any()


@pytest.mark.parametrize("kind", ["plain", "published"])
def test_stopping_and_resuming_equals_not_stopping(kind, context, tmp_path):
    recipe = override(SHORT, {"steps": 9, "batch": 8, "ema": Ema(decay=0.9), "validate_every": 4, "validate_on": 8})
    # dropout, too, must be the same after a resume
    cfg = override(KINDS[kind], {"told": "layers", "lm.weights.dropout": 0.1, "lm.weights.training.steps": 20})

    def go(out, should_stop=lambda: False) -> DiffusionBertSystem:
        system = build(cfg, context)
        train(system, system.batches("train"), recipe, seed=3, out=out, validate=system.batches("valid"),
              context=Context(context.store, should_stop=should_stop))
        return system

    whole = go(tmp_path / "whole").state_dict()
    steps = itertools.count(1)
    with pytest.raises(Stopped):
        go(tmp_path / "parts", lambda: next(steps) == 5)
    parts = go(tmp_path / "parts").state_dict()
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    again = build(cfg, context)
    load_weights(again, tmp_path / "parts")
    assert all(torch.equal(whole[name], value) for name, value in again.state_dict().items())


def test_a_trial_runs_from_corpus_to_metrics(tmp_path):
    trial = Trial(
        system=override(READS, {"lm.weights.training.steps": 30}), data=DATA,
        training=override(SHORT, {"steps": 20, "validate_on": 16}),
        sampling=Sampling(stepper=Ancestral(), steps=4, count=15, batch=8, candidates=2, guidance=0.5),
        evaluation=Evaluation(metrics=(OracleScores(),), references=10))
    context = Context(Store(tmp_path / "stages"))
    metrics = run(trial, context)
    assert {"test/illegal", "test/oracle_nll", "valid/loss", "valid/bound_per_word"} <= metrics.keys()
    again = Likelihood(checkpoint=trial.checkpoint(), split="valid", estimate=FEW)       # the checkpoint's own number
    found = json.loads((context.get(again) / "bound.json").read_text())
    assert {f"valid/{name}": value for name, value in found.items()}.items() <= metrics.items()
    with pytest.raises(ConfigError, match="TEncDM has no bound on its texts' likelihood"):
        Likelihood(checkpoint=tencdm_laptop().checkpoint())


def test_weights_do_not_depend_on_which_stages_were_made_before(tmp_path):
    cfg = override(PLAIN, {"told": "layers", "lm.weights.training.steps": 20})
    context = Context(Store(tmp_path / "stages"))
    first, second = (build(cfg, context).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------- what is refused, and recipes


def test_a_spindle_that_these_words_do_not_allow_is_refused_and_told_how_much_they_do(context):
    with pytest.raises(ConfigError, match=r"system.process.spindle: .* it may be at most 1 / \(pi 0.7\d*\) = 0.4"):
        build(override(SPINDLE, {"process.spindle": 0.9}), context)
    build(override(SPINDLE, {"process.spindle": 0.43}), context)


@pytest.mark.parametrize("kind", ["spindle", "information", "reads"])
def test_it_is_refused_before_a_language_model_is_trained(kind, tmp_path, context):
    """By the same weights as in the end: of words that are learned once more, and thrown away."""
    cfg = override(KINDS[kind], {"process.spindle": 0.9})
    (stage,), fresh = cfg.spindle(DATA), Context(Store(tmp_path / "stages"))
    assert stage in cfg.needs_to_train(DATA)
    with pytest.raises(ConfigError, match=r"system.process.spindle: spindle 0.9 .* it may be at most 1 / \(pi"):
        stage.check(fresh)
    assert not list((tmp_path / "stages").glob("MaskedLmFolder*"))
    known = read_information(context.get(cfg.information(DATA)))["weight"]
    assert torch.equal(stage.foreseen(fresh), known)


@pytest.mark.parametrize("measure", ["frequency", "information"])
def test_every_spindle_that_a_search_draws_can_be_trained(measure, context):
    trial = override(diffusionbert_laptop(DATA), {"system": PLAIN})
    domain = space(trial)
    assert isinstance(domain["system.process"], Choice)
    for share in (0.0, 0.3, 1.0):
        point = domain.draw(lambda name, of, share=share: {"system.process": "spindle", "system.measure": measure}.get(
            name, of.at(share)))
        cfg = override(trial, domain.changes(point)).system
        assert isinstance(cfg, DiffusionBert) and cfg.measure == measure and cfg.process.spindle == share
        system = build(override(cfg, {"told": "nothing"}), context)
        weights = system.hiding.weights
        t = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
        assert (system.process.hidden(t, weights).diff(dim=0) >= 0).all()
        limit = 1 / math.pi / float(weights.abs().max())
        assert system.process.spindle == pytest.approx(share * limit) and (not share or not system.process.relative)
        assert torch.isfinite(system.loss(rows(system), 0.0, step_rng(0, 0))["loss"])


@pytest.mark.parametrize(("changes", "path", "reason"), [
    ({"process.spindle": 0.3, "objective": D3pm()}, "objective.as_published", "must be true"),
    ({"times.per_token": True}, "times.per_token", "one time for a text"),
    ({"length": 2}, "length", "at least 3"), ({"source_length": 1}, "source_length", "at least 3"),
    ({"source_dropout": 1.0}, "source_dropout", "in \\[0, 1\\)"),
    ({"objective.bound": 0.0}, "objective.bound", "not both 0"), ({"objective": D3pm(), "objective.steps": 0}, "", "1"),
    ({"bound.draws": 0}, "bound.draws", "at least 1"), ({"told": "shouted"}, "told", "must be"),
])
def test_nonsense_is_refused_with_its_path(changes, path, reason):
    with pytest.raises(ConfigError, match=reason) as error:
        override(PLAIN, changes)
    assert path in str(error.value)


def test_a_text_longer_than_the_model_reads_is_refused(context):
    with pytest.raises(ConfigError, match="the model reads 512 tokens at most, and text and source would be 606"):
        build(override(READS, {"length": 600}), context)
    with pytest.raises(ConfigError, match="DiffusionBert walks by Ancestral, not by EulerMaruyama"):
        override(diffusionbert_laptop(), {"sampling": Sampling()})


def test_the_paper_recipe_has_the_papers_numbers():
    trial = diffusionbert()
    system, training = trial.system, trial.training
    assert isinstance(system, DiffusionBert) and isinstance(system.objective, D3pm)
    assert (system.length, system.process.spindle, system.objective.steps, system.told) == (129, 0.3, 2048, "nothing")
    assert system.objective.cross_entropy / system.objective.steps == pytest.approx(0.01)
    assert (training.steps, training.batch, training.optimizer.lr) == (1_900_000, 32, 3e-6)
    assert (training.schedule.warmup, training.schedule.start * 3e-6) == (10_000, pytest.approx(1e-8))
    assert trial.sampling.steps == 128 and trial.sampling.stepper == Ancestral(top_k=30)


def test_the_conditional_recipe_is_the_papers():
    trial = override(diffusionbert(), SEQUENCE_TO_SEQUENCE_PAPER)
    system, training, sampling = trial.system, trial.training, trial.sampling
    assert isinstance(system, DiffusionBert) and isinstance(system.lm, Roberta) and system.process.spindle == 0
    assert system.objective == D3pm(steps=2000, cross_entropy=2000 * 3e-4)
    assert (training.optimizer.lr, training.batch // training.accumulate) == (5e-5, 64)
    assert training.schedule == Constant(warmup=10_000, start=1 / 3)
    assert (sampling.steps, sampling.stepper, sampling.batch, sampling.candidates) == (200, Ancestral(top_k=15), 32, 3)


@pytest.mark.parametrize("recipe", [diffusionbert, diffusionbert_laptop])
def test_a_recipe_can_be_written_down_and_read_again(recipe):
    trial = recipe()
    again = from_dict(Trial, to_dict(trial))
    assert again == trial and fingerprint(again) == fingerprint(trial)
    assert recipe(data=DATA).data == DATA


def test_configs_that_make_other_weights_are_other_configs():
    assert len({fingerprint(cfg.learned()) for cfg in KINDS.values()}) == len(KINDS)
    assert Absorbing() == Absorbing(spindle=0.0)
