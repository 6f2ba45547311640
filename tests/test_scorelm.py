"""Laws of the score LM: exact posteriors, packing, noise levels, prompts, sources, lengths; on a small world."""

import dataclasses
import math
import typing

import pytest
import torch

from trainables.config import ConfigError, override
from trainables.diffusion.gaussian import Gaussian
from trainables.diffusion.sampler import Sampling, guided, sample
from trainables.diffusion.scalings import edm_weight, scalings
from trainables.diffusion.schedules import Karras, Tangent
from trainables.diffusion.steppers import DpmPlusPlus2M, EulerOde, Heun, LinearGrid, LogSnrGrid, Stepper
from trainables.diffusion.times import Times
from trainables.evaluation.evaluation import Evaluation
from trainables.evaluation.oracle import OracleScores
from trainables.networks.score_transformer import ScoreTransformer
from trainables.randomness import Rng, step_rng
from trainables.scorelm import AS_PUBLISHED, ScoreLm, ScoreLmSystem, scorelm
from trainables.stages import Context, Store, key
from trainables.system import Batch, Prediction
from trainables.text.corpora import Stories, import_files, read_rows, read_texts
from trainables.text.documents import SingleDocuments, TokenisedTexts
from trainables.text.packing import Packed, Padded
from trainables.text.pieces import SentencePiece
from trainables.text.prompts import NoPrompts, Spans
from trainables.training.average import NoAverage
from trainables.training.learning_rate import Constant
from trainables.training.optimizers import AdamW
from trainables.training.train import Stopped, Training, load_weights, train
from trainables.trial import Trial, run

DATA = Stories(size=300)
PLAIN = ScoreLm(
    tokenizer=SentencePiece(vocabulary=1_000, coverage=1.0), length=13, packing=Packed(capacity=40), embedding=8,
    deviation=1.0, process=Gaussian(schedule=Karras(low=0.3, high=20.0, rho=7.0)), prompts=NoPrompts(),
    network=ScoreTransformer(layers=2, width=32, heads=2, feedforward=48, told=16, dropout=0.0))
READS = override(PLAIN, {"source_length": 6, "source_dropout": 0.2, "self_conditioning": 0.5})
SHORT = Training(optimizer=AdamW(lr=5e-3), schedule=Constant(), ema=NoAverage(), steps=30, batch=8,
                 precision="float32")
QUICK = Sampling(stepper=DpmPlusPlus2M(), grid=LogSnrGrid(), steps=5, count=8, batch=8)
OUTPUTS = ["head", "posterior"]


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    return Context(Store(tmp_path_factory.mktemp("store") / "stages"))


def system_of(cfg: ScoreLm, context: Context, trained: bool = False) -> ScoreLmSystem:
    """Fresh weights; or, in the place of training, weights that say something of everything."""
    torch.manual_seed(0)
    system = cfg.build(DATA, context)
    if trained:
        with torch.no_grad():
            for parameter in system.network.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return system.eval()


def packed(system: ScoreLmSystem, count: int = 8, split: str = "train") -> Batch:
    return system.batches(split).take(torch.arange(count))


# ---------------------------------------------------------------- reference numbers


@pytest.mark.parametrize(("sigma", "c_skip", "c_out", "c_in", "weight", "noise"), [
    (1, 0.500000, 0.707107, 0.707107, 2.000000, 0.000250), (2, 0.200000, 0.894427, 0.447214, 1.250000, 0.173412),
    (5, 0.038462, 0.980581, 0.196116, 1.040000, 0.402409), (10, 0.009901, 0.995037, 0.099504, 1.010000, 0.575671)])
def test_karras_scalings(sigma, c_skip, c_out, c_in, weight, noise):
    said = [float(value) for value in (*scalings(torch.tensor(float(sigma))), edm_weight(torch.tensor(float(sigma))))]
    assert said == pytest.approx([c_skip, c_out, c_in, noise, weight], abs=1e-6)


@pytest.mark.parametrize(("rho", "levels"), [(1.0, (1, 3.25, 5.5, 7.75, 10)),
                                             (7.0, (1, 1.916383, 3.474830, 6.013451, 10))])
def test_the_published_noise_levels(rho, levels):
    sigma = Karras(low=1.0, high=10.0, rho=rho).sigma(torch.linspace(0, 1, 5, dtype=torch.float64))
    assert sigma.tolist() == pytest.approx(levels, abs=1e-6)


@pytest.fixture
def coin(context) -> ScoreLmSystem:
    """Two equally common words, at -1 and 1, and a network that knows nothing: its guess is tanh(x / sigma^2)."""
    cfg = override(PLAIN, {"output": "posterior", "embedding": 1, "process.schedule": Karras(low=1.0, high=10.0)})
    system = system_of(cfg, context)
    with torch.no_grad():
        system.commonness.fill_(-1e9)
        system.commonness[:2], system.table[0], system.table[1] = 0.0, -0.01, 0.01
    return system


@torch.no_grad()
def test_a_network_that_knows_nothing_has_the_exact_posterior(coin):
    """Bayes' cross-entropy and accuracy for two words in one dimension."""
    z = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000).float()[:, None, None]
    for sigma, nats, hits in ((1, 0.356316, 0.841345), (2, 0.581726, 0.691462), (5, 0.673537, 0.579260),
                              (10, 0.688172, 0.539828)):
        t = torch.full((1, 1), max((sigma - 1) / 9, 1e-7))
        logits = coin.logits(1 + sigma * z, t, None, None, coin.vectors())[:, 0]
        assert float(-logits.log_softmax(-1)[:, 1].mean()) == pytest.approx(nats, abs=2e-4)
        assert float((logits.argmax(-1) == 1).float().mean()) == pytest.approx(hits, abs=2e-4)
        guess = coin.guess(logits[:, None], 1 + sigma * z, t, coin.vectors())
        torch.testing.assert_close(guess, torch.tanh((1 + sigma * z) / sigma**2), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_informative_band_of_many_words(context):
    """8,000 words in 128 dimensions: nats per word by sigma, as the exact posterior has them.

    The published figures are means over 2,000 draws of other words; these are 1,000, so both have an error.
    """
    cfg = override(PLAIN, {"output": "posterior", "embedding": 128})
    system = system_of(cfg, context)
    words, rng = torch.nn.Parameter(torch.randn(8_000, 128)), step_rng(0, 0)
    vectors = torch.nn.functional.normalize(words, dim=1) * 128**0.5
    system.commonness = torch.nn.Parameter(torch.zeros(8_000))
    ids = torch.arange(1_000)[:, None]
    for sigma, nats in ((1, 0.0), (2, 0.191), (3, 2.823), (4, 5.107), (5, 6.503), (6, 7.240), (8, 8.040), (10, 8.376)):
        t = cfg.process.schedule.time(torch.tensor([[-2 * math.log(sigma)]]))
        x_t = vectors[ids] + sigma * rng.normal((1_000, 1, 128))
        said = -system.logits(x_t, t, None, None, vectors).log_softmax(-1)[:, 0].gather(1, ids)
        error = float(said.std()) * (1 / 1_000 + 1 / 2_000) ** 0.5
        assert float(said.mean()) == pytest.approx(nats, abs=3.5 * error + 0.001)
        assert nats == 0 or 3.5 * error < 0.6 * nats


class From3(Rng):
    """Starts at x = 3."""

    def normal(self, shape):
        return torch.full(tuple(shape), 0.3)


@pytest.mark.parametrize(("stepper", "steps", "end"), [
    (EulerOde(), 5, 0.358922), (EulerOde(), 20, 0.415824), (EulerOde(), 200, 0.446574),
    (Heun(average="noise"), 5, 0.593397), (Heun(average="noise"), 20, 0.462427),
    (Heun(average="noise"), 200, 0.450651)])
def test_samplers_on_two_words(stepper, steps, end, coin):
    """The published grid: even in sigma from the highest to the lowest, and then 0."""
    setattr(coin, "prior", lambda shape, rng: coin.cfg.process.prior((*shape, 1), rng))         # noqa: B010
    x, hat = sample(coin, Sampling(stepper=stepper, grid=LinearGrid(), steps=steps, count=1, batch=1), (1, 4),
                    From3(torch.Generator()))
    torch.testing.assert_close(x, torch.full((1, 4, 1), end), atol=2e-4, rtol=0)      # sigma(CLOSEST) is not quite 1
    torch.testing.assert_close(x, hat.x0)


@pytest.mark.parametrize("stepper", [member() for member in typing.get_args(Stepper)])
@pytest.mark.parametrize("grid", [LinearGrid(), LogSnrGrid()])
def test_a_constant_denoiser_ends_at_its_constant(stepper, grid, coin):
    """One word only: whatever the walk, its last step to noise 0 returns the guess."""
    with torch.no_grad():
        coin.commonness[0] = -1e9
    x, hat = sample(coin, Sampling(stepper=stepper, grid=grid, steps=7, count=3, batch=3), (3, 4), step_rng(0, 0))
    assert torch.equal(x, torch.ones(3, 4, 1)) and torch.equal(hat.x0, x)


# ---------------------------------------------------------------- words as vectors


def test_all_words_have_one_norm_and_learn(context):
    for deviation in (0.001, 1.0):
        system = system_of(override(PLAIN, {"deviation": deviation}), context)
        norms = system.vectors().norm(dim=1)
        torch.testing.assert_close(norms, torch.full_like(norms, 8**0.5))
        system.train().loss(packed(system), 0.0, step_rng(0, 0))["loss"].backward()
        assert system.table.grad is not None and float(system.table.grad.abs().amax()) > 0


@torch.no_grad()
def test_the_guess_is_the_expected_vector_and_a_prompt_is_itself(context):
    system = system_of(PLAIN, context)
    V = system.pieces.vocabulary
    logits = torch.full((1, 3, V), -1e9)
    logits[0, 0, 5] = logits[0, 1, 7] = logits[0, 1, 9] = logits[0, 2, 3] = 0.0
    x, t = torch.randn(1, 3, 8), torch.tensor([[0.4, 0.4, 0.0]])
    guess, vectors = system.guess(logits, x, t, system.vectors()), system.vectors()
    torch.testing.assert_close(guess[0], torch.stack([vectors[5], (vectors[7] + vectors[9]) / 2, x[0, 2]]))
    logits[0, 0, 6] = -1.0
    sharp = [float(system.guess(logits, x, t, vectors, T)[0, 0] @ vectors[5]) for T in (0.1, 1.0, 10.0)]
    assert sharp[0] > sharp[1] > sharp[2]


# ---------------------------------------------------------------- packing


@torch.no_grad()
@pytest.mark.parametrize("output", OUTPUTS)
def test_packed_and_unpacked_logits_are_equal(output, context):
    """Every document of packed rows, alone in a row of its own: the same words under the same noise."""
    system = system_of(override(PLAIN, {"output": output}), context, trained=True)
    batch, vectors = packed(system), system.vectors()
    assert batch.segment is not None and batch.segment.max() >= 2
    t = system.levels(batch, 0.0, step_rng(0, 0))
    x_t, _ = system.cfg.process.corrupt(system.embed(batch.ids), t, step_rng(0, 1))
    segment = torch.where(batch.mask, batch.segment, -1)
    together = system.logits(x_t, t, segment, None, vectors)
    for row in range(len(batch)):
        for number in range(int(batch.segment[row].max()) + 1):
            mine = segment[row] == number
            alone = system.logits(x_t[row, mine][None], t[row, mine][None], None, None, vectors)
            torch.testing.assert_close(together[row, mine], alone[0], atol=1e-3, rtol=1e-4)


def test_a_neighbour_changes_nothing_and_the_loss_counts_each_token_once(context):
    """The loss of packed rows is the sum over their documents, whatever else the row holds."""
    system = system_of(PLAIN, context, trained=True)
    batch = packed(system)
    assert batch.segment is not None
    whole = system.loss(batch, 0.0, step_rng(0, 0))["loss"]
    parts = []
    for number in range(system.full[1]):
        mine = batch.mask & (batch.segment == number)
        other = torch.where(batch.segment == number, batch.ids, 11)                # another neighbour altogether
        parts.append(system.loss(dataclasses.replace(batch, mask=mine), 0.0, step_rng(0, 0))["loss"])
        changed = dataclasses.replace(batch, ids=other)
        logits = [system.logits(system.embed(each.ids), torch.full((len(batch), 1), 0.4),
                                torch.where(batch.mask, batch.segment, -1), None, system.vectors())[mine]
                  for each in (batch, changed)]
        assert torch.equal(*logits)
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("cfg", [PLAIN, override(READS, {"prompts": Spans(), "multilevel": 0.5}),
                                 override(PLAIN, {"as_published": True, "weighting": "edm"})])
def test_the_loss_is_a_function_of_its_noise_and_can_be_dealt_to_workers(cfg, context):
    system = system_of(cfg, context, trained=True).train()
    batch = packed(system)
    whole = system.loss(batch, 0.0, step_rng(3, 5))["loss"]
    assert torch.equal(system.loss(batch, 0.0, step_rng(3, 5))["loss"], whole)
    assert not torch.equal(system.loss(batch, 0.0, step_rng(3, 6))["loss"], whole)
    halves = [system.loss(system.batches("train").take(torch.arange(part, 8, 2)), 0.0,
                          step_rng(3, 5, part=part, parts=2))["loss"] for part in (0, 1)]
    torch.testing.assert_close(torch.stack(halves).mean(), whole)


@torch.no_grad()
@pytest.mark.parametrize("packing", [Packed(capacity=40), Padded()])
def test_a_network_that_knows_nothing_pays_for_each_token_alike(packing, context):
    """All words equally likely: ln V nats a token over an epoch, however rows are filled, with or without prompts."""
    for prompts in (NoPrompts(), Spans()):
        system = system_of(override(PLAIN, {"packing": packing, "prompts": prompts}), context)
        torch.nn.init.zeros_(system.network.leave.weight)
        rows = system.batches("train")
        losses = [system.loss(rows.take(torch.arange(len(rows))), 0.0, step_rng(0, i))["loss"] for i in range(10)]
        assert sum(map(float, losses)) / 10 == pytest.approx(math.log(system.pieces.vocabulary), rel=0.03)
        assert float(system.diagnose()["filled"]) == pytest.approx(rows.efficiency)         # type: ignore[attr-defined]


@torch.no_grad()
@pytest.mark.parametrize("cfg", [PLAIN, override(READS, {"self_conditioning": 0.0})])
def test_held_out_documents_cost_alone_what_they_cost_in_a_row(cfg, context):
    """One noise level for all: the mean over single documents is the mean over packed rows."""
    system = system_of(override(cfg, {"times": Times(low=0.4, high=0.4001, stratified=False)}), context, trained=True)
    documents, few = system.rows.documents("train"), system.batches("train")
    single = SingleDocuments(documents, cfg.length, cfg.source_length, system.pieces.pad)
    alone, together = (float(sum(system.loss(each.take(torch.arange(len(each))), 0.0, step_rng(0, i))["loss"]
                                 for i in range(6))) / 6 for each in (single, few))
    assert alone == pytest.approx(together, rel=0.02)
    held_out = system.batches("valid")
    assert len(held_out) == 15 and held_out.take(torch.arange(15)).segment is None


def test_packing_more_than_halves_the_rows_and_keeps_the_documents(context):
    few, many = (system_of(override(PLAIN, {"packing": packing}), context).batches("train")
                 for packing in (Packed(capacity=40), Padded()))
    assert len(many) == 300 and len(few) < 0.4 * 300
    ids = [sorted(int(i) for i in batch.ids[batch.mask])
           for batch in (each.take(torch.arange(len(each))) for each in (few, many))]
    assert ids[0] == ids[1]


# ---------------------------------------------------------------- noise levels


def test_levels_are_of_documents_or_of_tokens_and_happen_as_often_as_said(context):
    rows = torch.arange(60)
    for share in (0.0, 0.3, 1.0):
        system = system_of(override(PLAIN, {"multilevel": share}), context)
        batch = system.batches("train").take(rows)
        assert batch.segment is not None
        t = system.levels(batch, 0.0, step_rng(0, 0))
        first = t[:, 0], batch.mask & (batch.segment == 0)
        many = ((t != first[0][:, None]) & first[1]).any(1)
        assert float(many.float().mean()) == pytest.approx(share, abs=0.15 if 0 < share < 1 else 0)
        if share == 0:
            documents = [t[row][batch.mask[row] & (batch.segment[row] == number)].unique()
                         for row in range(60) for number in range(int(batch.segment[row].max()) + 1)]
            assert all(len(levels) == 1 for levels in documents)
            levels = torch.cat(documents)
            assert len(levels.unique()) == len(levels)                              # each document has its own
            assert float(levels.mean()) == pytest.approx(0.5, abs=0.05) and float(levels.std()) > 0.25


def test_as_published_a_row_has_one_level(context):
    system = system_of(override(PLAIN, {"as_published": True}), context)
    t = system.levels(packed(system), 0.0, step_rng(0, 0))
    assert bool((t == t[:, :1]).all()) and len(t[:, 0].unique()) == len(t)


@torch.no_grad()
def test_each_token_is_told_its_own_noise(context):
    system = system_of(PLAIN, context, trained=True)
    x, t = system.embed(packed(system).ids)[:, :6], torch.full((8, 6), 0.3)
    told = t.clone()
    told[:, 2] = 0.6
    logits = [system.logits(x, each, None, None, system.vectors()) for each in (t, told, t[:, :1])]
    assert not torch.allclose(logits[0], logits[1]) and torch.allclose(logits[0], logits[2], atol=1e-4)


# ---------------------------------------------------------------- prompts


def test_what_is_given_is_clean_and_costs_nothing(context, monkeypatch):
    """Prompts: time 0, the word's own vector, no loss; every other word is noised and counts."""
    system = system_of(override(PLAIN, {"prompts": Spans()}), context)
    batch, seen = packed(system), {}
    inner = system.logits

    def logits(x_t, t, segment, guess, vectors):
        seen.update(x_t=x_t, t=t, out=inner(x_t, t, segment, guess, vectors).detach().requires_grad_())
        return seen["out"]

    monkeypatch.setattr(system, "logits", logits)
    system.loss(batch, 0.0, step_rng(0, 0))["loss"].backward()
    given = seen["t"] <= 0
    assert 0.2 < float(given[batch.mask].float().mean()) < 0.7
    assert torch.equal(seen["x_t"][given], system.embed(batch.ids)[given])
    paid = seen["out"].grad.abs().sum(-1) > 0
    assert torch.equal(paid, batch.mask & ~given)


@torch.no_grad()
def test_a_sample_keeps_its_prompt_wherever_it_stands(context):
    system = system_of(override(PLAIN, {"self_conditioning": 0.5}), context, trained=True)
    batch = system.batches("test").take(torch.arange(6))
    given = torch.zeros_like(batch.mask)
    given[:, 0] = given[:, 3] = given[:3, 5] = True
    batch = dataclasses.replace(batch, given=given)
    for stepper in (EulerOde(), Heun(), DpmPlusPlus2M()):
        x, hat = sample(system, override(QUICK, {"stepper": stepper}), (6, 13), step_rng(0, 0), batch,
                        system.embed(batch.ids))
        assert torch.equal(x[given], system.embed(batch.ids)[given])
        assert hat.logits is not None
        nothing = torch.where(given[..., None], torch.zeros_like(hat.logits), hat.logits)
        texts = system.decode(x, dataclasses.replace(hat, logits=nothing), batch)
        fourth = [row["text"].split()[2] for row in read_rows(context.get(DATA), "test")[:6]]
        assert all(word in text for word, text in zip(fourth, texts, strict=True))


# ---------------------------------------------------------------- sources


def test_sources_stand_before_texts_and_are_never_noised(context):
    system = system_of(READS, context)
    rows, pieces = read_rows(context.get(DATA), "train"), system.pieces
    batch = packed(system, len(system.batches("train")))
    assert batch.given is not None and batch.segment is not None
    found = set()
    for row in range(len(batch)):
        for number in range(int(batch.segment[row].max()) + 1):
            mine = batch.mask[row] & (batch.segment[row] == number)
            source, text = (batch.ids[row][mine & part].tolist() for part in (batch.given[row], ~batch.given[row]))
            found.add((*pieces.texts([source, text]),))
    assert found == {(row["source"], row["text"]) for row in rows}


@torch.no_grad()
def test_a_sampler_meets_what_training_showed(context, monkeypatch):
    """The looks that the loss takes, with a hint and without, against the sampler's: what was seen, what was said."""
    system = system_of(override(READS, {"self_conditioning": 1.0}), context, trained=True)
    single, seen, inner = system.batches("test").take(torch.arange(9)), [], system.logits
    assert single.source is not None
    S = single.source.ids.shape[1]

    def logits(x_t, t, segment, guess, vectors):
        said = inner(x_t, t, segment, guess, vectors)
        seen.append((x_t, t, segment, guess.clone(), said))                 # the hint is then written into it
        return said

    monkeypatch.setattr(system, "logits", logits)
    system.loss(single, 0.0, step_rng(0, 0))
    first, second = seen                                             # training's: one without a hint, and one with it
    assert not first[3].any() and second[3][:, :S].any()
    x_t, t = first[0][:, S:], first[1][:, S:S + 1]
    hat = system.denoise(x_t, t, previous=None, batch=single)
    again = system.denoise(x_t, t, previous=hat, batch=single)
    looked = torch.cat([single.source.mask, single.mask], 1)
    for theirs, ours, said in ((first, seen[2], hat), (second, seen[3], again)):
        for part in (0, 2, 3):                                       # the states, who sees whom, the hint
            assert torch.equal(theirs[part][looked], ours[part][looked])
        assert torch.equal(theirs[1][looked], ours[1].expand_as(looked)[looked]) and said.logits is not None
        torch.testing.assert_close(said.logits[single.mask], theirs[4][:, S:][single.mask], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_sources_and_texts_apart_are_the_packed_row(context):
    system = system_of(READS, context, trained=True)
    single = system.batches("test").take(torch.arange(9))
    assert single.source is not None
    t = torch.full((9, 1), 0.6)
    x_t, _ = system.cfg.process.corrupt(system.embed(single.ids), t, step_rng(0, 0))
    hat = system.denoise(x_t, t, previous=None, batch=single)
    assert hat.logits is not None
    for row in range(9):
        source, text = single.source.ids[row][single.source.mask[row]], single.mask[row]
        x = torch.cat([system.embed(source), x_t[row, text]])[None]
        when = torch.cat([torch.zeros(len(source)), torch.full((int(text.sum()),), 0.6)])[None]
        alone = system.logits(x, when, None, torch.zeros_like(x), system.vectors())[0, len(source):]
        torch.testing.assert_close(hat.logits[row, text], alone, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_a_lost_source_is_no_source(context):
    """What training shows of a document that lost its source is what guidance pushes away from."""
    system = system_of(override(READS, {"source_dropout": 1 - 1e-9, "self_conditioning": 0.0}), context, trained=True)
    batch = packed(system)
    assert batch.given is not None
    source, _ = system.given(batch, step_rng(0, 0))
    kept = system.visible(batch, source, step_rng(0, 0))
    lost = system.train().visible(batch, source, step_rng(0, 0))
    assert torch.equal(kept >= 0, batch.mask) and torch.equal(lost >= 0, batch.mask & ~batch.given)
    system.eval()
    single = system.batches("test").take(torch.arange(5))
    x_t, t = system.embed(single.ids) + 0.5, torch.full((5, 1), 0.5)
    none = system.denoise(x_t, t, previous=None, batch=dataclasses.replace(single, source=None)).logits
    alone = system.logits(x_t, t, torch.where(single.mask, 0, -1), None, system.vectors())
    torch.testing.assert_close(none, alone)


def test_sources_are_lost_at_their_rate_by_document(context):
    system = system_of(override(READS, {"source_dropout": 0.3}), context).train()
    batch = packed(system, len(system.batches("train")))
    assert batch.given is not None and batch.segment is not None
    segment = system.visible(batch, batch.given, step_rng(0, 0))
    shares = [float((segment[row][mine] < 0).float().mean()) for row in range(len(batch))
              for number in range(int(batch.segment[row].max()) + 1)
              if (mine := batch.given[row] & (batch.segment[row] == number)).any()]
    assert set(shares) == {0.0, 1.0} and len(shares) == 300 and 0.2 < sum(shares) / 300 < 0.4


@torch.no_grad()
def test_guidance_zero_is_the_identity_and_more_goes_further(context):
    system = system_of(READS, context, trained=True)
    batch = system.batches("test").take(torch.arange(6))
    x_t, t = system.embed(batch.ids) + 1.0, torch.full((6, 1), 0.7)
    plain = system.denoise(x_t, t, previous=None, batch=batch)
    without = system.denoise(x_t, t, previous=None, batch=dataclasses.replace(batch, source=None))
    assert not torch.allclose(plain.x0, without.x0, atol=1e-3)
    assert torch.equal(guided(system, x_t, t, None, batch, 0.0).x0, plain.x0)
    further = guided(system, x_t, t, None, batch, 0.5)
    torch.testing.assert_close(further.x0, plain.x0 + 0.5 * (plain.x0 - without.x0))
    x, hat = sample(system, override(QUICK, {"guidance": 1.5}), (6, 13), step_rng(0, 0), batch)
    assert bool(x.isfinite().all()) and len(system.decode(x, hat, batch)) == 6


# ---------------------------------------------------------------- lengths


def test_lengths_are_drawn_as_often_as_texts_have_them(context):
    system = system_of(PLAIN, context)
    mask = system.draw_mask(20_000, step_rng(0, 0))
    assert mask.shape == (20_000, 13) and bool((mask[:, :-1] >= mask[:, 1:]).all())
    real = torch.tensor([len(text.split()) + 2 for text in read_texts(context.get(DATA), "train")])
    for length in real.unique():
        assert float((mask.sum(1) == length).float().mean()) == pytest.approx(float((real == length).float().mean()),
                                                                              abs=0.02)


@torch.no_grad()
def test_what_lies_past_the_drawn_length_changes_nothing_and_is_not_decoded(context):
    system = system_of(PLAIN, context, trained=True)
    mask = system.draw_mask(5, step_rng(0, 0))
    assert not mask.all()
    batch = Batch(ids=torch.zeros(5, 13, dtype=torch.long), mask=mask)
    x, t = torch.randn(5, 13, 8, generator=torch.Generator().manual_seed(0)), torch.full((5, 1), 0.5)
    other = torch.where(mask[..., None], x, x + 5)
    hats = [system.denoise(each, t, previous=None, batch=batch) for each in (x, other)]
    assert all(hat.logits is not None for hat in hats)
    assert torch.equal(*(hat.logits[mask] for hat in hats))                         # type: ignore[index]
    word = system.pieces.ids(["bun"], 9)[0][1]
    logits = torch.zeros(5, 13, system.pieces.vocabulary)
    logits[..., word] = 1.0
    texts = system.decode(x, Prediction(x, logits), batch)
    assert [len(text.split()) for text in texts] == mask.sum(1).tolist()
    logits[:, 2, system.pieces.end] = 2.0
    assert system.decode(x, Prediction(x, logits), batch) == ["bun bun"] * 5


@pytest.mark.parametrize(("lengths", "mean"), [("padded", 13.0), ("expanded", 12.3)])
def test_where_pads_are_learned_they_count_and_samples_have_full_length(lengths, mean, context):
    system = system_of(override(PLAIN, {"lengths": lengths, "packing": Padded()}), context)
    batch = packed(system, 300)
    own = torch.tensor([len(text.split()) + 2 for text in read_texts(context.get(DATA), "train")])
    pads = (batch.ids == system.pieces.pad) & batch.mask
    assert torch.equal(batch.mask.sum(1) - pads.sum(1), own)
    assert float(batch.mask.sum(1).float().mean()) == pytest.approx(mean, abs=0.2)
    assert bool(system.draw_mask(4, step_rng(0, 0)).all())


# ---------------------------------------------------------------- where a sampler starts


@torch.no_grad()
def test_the_prior_is_what_training_saw_at_the_highest_noise(context):
    cfg = override(PLAIN, {"process.schedule": Karras(low=0.3, high=1.0)})
    system = system_of(cfg, context)
    x = system.prior((4_000, 13), step_rng(0, 0)).flatten(0, 1)
    documents = system.rows.documents("train")
    x_0 = system.embed(torch.from_numpy(documents.target_ids()).long())
    torch.testing.assert_close(x.mean(0), x_0.mean(0), atol=0.03, rtol=0)
    torch.testing.assert_close(x.T.cov(), x_0.T.cov() + torch.eye(8), atol=0.12, rtol=0)
    system.cfg = override(cfg, {"as_published": True})
    alone = system.prior((4_000, 13), step_rng(0, 0)).flatten(0, 1)
    torch.testing.assert_close(alone.T.cov(), torch.eye(8), atol=0.05, rtol=0)


# ---------------------------------------------------------------- training


FULL = override(READS, {"prompts": Spans(), "multilevel": 0.5, "output": "posterior"})


def test_resumed_is_uninterrupted_bit_for_bit(context, tmp_path):
    ends = []
    for name, stops in (("whole", ()), ("parts", (7, 20))):
        for stop in (*stops, 0):
            system, step = system_of(FULL, context), iter(range(1, 100))
            inner = dataclasses.replace(context, should_stop=lambda step=step, stop=stop: next(step) == stop)
            while stop and next(iter([True])):
                try:
                    train(system, system.batches("train"), SHORT, seed=0, out=tmp_path / name, context=inner)
                except Stopped:
                    break
                raise AssertionError("was not stopped")
        train(system, system.batches("train"), SHORT, seed=0, out=tmp_path / name, context=context)
        fresh = system_of(FULL, context)
        load_weights(fresh, tmp_path / name)
        ends.append(dict(fresh.named_parameters()))
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert any(not torch.equal(value, ends[0][name]) for name, value in system_of(FULL, context).named_parameters())


@pytest.mark.parametrize("output", OUTPUTS)
def test_bfloat16_trains_without_nan(output, context, tmp_path):
    system, losses = system_of(override(FULL, {"output": output, "weighting": "edm"}), context), []
    inner = dataclasses.replace(context, record=lambda step, said: losses.append(said.get("train/loss")))
    train(system, system.batches("train"), override(SHORT, {"precision": "bfloat16", "record_every": 1}), seed=0,
          out=tmp_path, context=inner, validate=system.batches("valid"))
    assert len(losses) == 30 and all(math.isfinite(loss) for loss in losses)
    assert all(bool(value.isfinite().all()) for value in system.parameters())
    assert sum(losses[-10:]) < sum(losses[:10])


def test_what_context_tells_is_learned(context, tmp_path):
    """The laptop's kind of network knows the exact posterior of a place by itself, and soon more than that."""
    cfg = override(PLAIN, {"output": "posterior", "embedding": 16, "self_conditioning": 0.0})
    system = system_of(cfg, context)
    with torch.no_grad():
        before = system.diagnose()
    train(system, system.batches("train"), override(SHORT, {"steps": 150, "optimizer.lr": 1e-2}), seed=0, out=tmp_path,
          context=context)
    with torch.no_grad():
        after = system.diagnose()
    assert after.keys() == before.keys() == {"filled"} | {f"{name}_at_{share}" for name in ("nats", "accuracy")
                                                          for share in (25, 50, 75)}
    for share in (50, 75):
        assert float(after[f"nats_at_{share}"]) < 0.85 * float(before[f"nats_at_{share}"])


def test_a_trial_from_corpus_to_metrics(context):
    trial = Trial(system=override(READS, {"output": "posterior"}), data=DATA, training=override(SHORT, {"steps": 20}),
                  sampling=override(QUICK, {"count": 20, "batch": 10, "guidance": 0.5}),
                  evaluation=Evaluation(metrics=(OracleScores(),), references=15))
    metrics = run(trial, context)
    assert 0 <= metrics["test/illegal"] <= 1 and 0.5 < metrics["valid/filled"] <= 1
    assert metrics["valid/nats_at_25"] < metrics["valid/nats_at_75"]
    assert run(dataclasses.replace(trial, sampling=override(trial.sampling, {"guidance": 0.0})), context) != metrics
    warmer = override(trial, {"system.temperature": 0.9})
    assert key(warmer.checkpoint()) == key(trial.checkpoint()) and key(warmer.samples()) != key(trial.samples())


# ---------------------------------------------------------------- what is refused, and the recipes


@pytest.mark.parametrize(("changes", "words"), [
    ({"length": 3}, "length must be at least 4"), ({"source_length": 1}, "source_length"),
    ({"packing": Packed(capacity=12)}, "packing.capacity must be at least .* 13"),
    ({"source_length": 30}, "packing.capacity must be at least .* 43"), ({"embedding": 0}, "embedding"),
    ({"deviation": 0.0}, "deviation"), ({"temperature": 0.0}, "temperature"), ({"multilevel": 1.5}, "share in"),
    ({"self_conditioning": -0.1}, "share in"), ({"source_dropout": 1.0}, "share in"),
    ({"process.schedule": Tangent()}, "variance exploding"), ({"process.predicts": "noise"}, "predict x0"),
    ({"times": Times(per_token=True)}, "multilevel says")])
def test_nonsense_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        override(PLAIN, changes)


def test_a_corpus_without_sources_is_refused(context, tmp_path):
    store = Store(tmp_path / "stages")
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"text {i} is here ." for i in range(200)))
    stage = TokenisedTexts(data=import_files(str(texts), None, store), tokenizer=SentencePiece(), length=16,
                           source_length=8)
    with pytest.raises(ConfigError, match="no sources"):
        Context(store).get(stage)


def test_the_paper_recipe_has_the_published_numbers():
    trial, system = scorelm(), scorelm().system
    assert isinstance(system, ScoreLm)
    network = system.network
    assert (network.layers, network.width, network.heads, system.embedding, system.length) == (8, 512, 8, 128, 64)
    assert system.process.schedule == Karras(low=1.0, high=10.0, rho=1.0) and trial.sampling.steps == 200
    assert (trial.training.optimizer.lr, trial.training.schedule.warmup, trial.training.steps) == (1e-4, 30_000, 1e6)
    assert isinstance(trial.sampling.stepper, EulerOde) and system.prompts == Spans()


def test_as_published_is_one_difference_that_sets_all_of_it(context):
    system = override(scorelm(), AS_PUBLISHED).system
    assert isinstance(system, ScoreLm)
    assert system.as_published and system.network.as_published and system.network.theta == 1_000.0
    assert system.lengths == "expanded" and not scorelm().system.network.as_published       # type: ignore[union-attr]
    small = {name.removeprefix("system."): value for name, value in AS_PUBLISHED.items()}
    built = system_of(override(PLAIN, small), context)
    assert torch.isfinite(built.loss(packed(built), 0.0, step_rng(0, 0))["loss"])
