"""Laws of every system: a new one is covered the day it is written, and refused here until it has a config below.

    SYSTEMS        one small config of each kind of each system, hardly trained: laws need no quality
"""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from trainables.config import ConfigError, fingerprint, from_dict, override, to_dict
from trainables.diffusion.gaussian import Gaussian
from trainables.diffusion.sampler import Sampling
from trainables.diffusion.schedules import Karras, LinearBeta
from trainables.diffusion.steppers import DpmPlusPlus2M, LogSnrGrid, Posterior
from trainables.diffusion.times import Times
from trainables.diffusion.unmasking import Ancestral
from trainables.diffusionbert import DiffusionBert, diffusionbert, diffusionbert_laptop
from trainables.evaluation.evaluation import Evaluation
from trainables.evaluation.oracle import OracleScores
from trainables.evaluation.text_bound import BoundEstimate
from trainables.ld4lg import Ld4lg, Source, ld4lg, ld4lg_laptop
from trainables.ld4lg_annealed import ld4lg_annealed, ld4lg_annealed_laptop
from trainables.networks.latent_transformer import LatentTransformer
from trainables.networks.perceiver import Perceiver
from trainables.networks.score_transformer import ScoreTransformer
from trainables.networks.transformer import Transformer
from trainables.randomness import seed_of, step_rng
from trainables.scorelm import ScoreLm, scorelm, scorelm_laptop
from trainables.stages import Context, Store
from trainables.system import Batch
from trainables.tencdm import TEncDM, tencdm, tencdm_laptop
from trainables.text.autoencoder import AutoencoderTraining, Cached
from trainables.text.checkpoints import quietly
from trainables.text.corpora import Stories, read_texts
from trainables.text.decoder import DecoderTraining
from trainables.text.families import T5, Bart, Bert, Folder, Pretrained, Roberta, Small
from trainables.text.language_model import Decoding, Nucleus
from trainables.text.latents import PerceiverLatents, RawEncodings
from trainables.text.packing import Packed
from trainables.text.pieces import SentencePiece
from trainables.training.average import Ema, NoAverage
from trainables.training.learning_rate import Constant
from trainables.training.optimizers import AdamW
from trainables.training.train import Stopped, Training, train
from trainables.trial import Sampled, System, Trained, Trial, read_lines, run

DATA = Stories(size=300)
SHORT = Training(optimizer=AdamW(lr=5e-3), schedule=Constant(), ema=NoAverage(), steps=20, batch=16,
                 precision="float32")
TINY = Small(layers=1, width=32, heads=2, feedforward=64, dropout=0.0, vocabulary=500, hidden=0.3, length=16,
             training=SHORT)
SPEAKS = Decoding(by=Nucleus(), longest=16, shortest=6, unrepeated=0, repetition_penalty=1.0)    # never nothing
TENCDM = TEncDM(
    encoder=Bert(weights=TINY), length=13, times=Times(low=0.05),
    network=Transformer(layers=2, width=32, heads=2, feedforward=64, positions=16, dropout=0.0),
    decoder=DecoderTraining(layers=1, heads=2, feedforward=64, dropout=0.0, training=SHORT))
LD4LG = Ld4lg(
    representation=PerceiverLatents(
        model=Bart(weights=TINY), perceiver=Perceiver(latents=4, width=8, layers=1, heads=2, deviation=0.0),
        training=AutoencoderTraining(features=Cached(noise=0.1), training=SHORT)),
    length=16, times=Times(low=0.05),
    network=LatentTransformer(layers=2, width=32, heads=2, positions=16, dropout=0.0, dense=1), decoding=SPEAKS)
ANNEALED = override(LD4LG, {
    "representation": RawEncodings(model=Bart(weights=TINY)), "process": Gaussian(schedule=LinearBeta(), predicts="x0"),
    "loss": "l1", "network.dense": 0, "network.relative": True, "network.reads": "attended", "network.clock": "index"})
DIFFUSIONBERT = DiffusionBert(lm=Bert(weights=TINY), length=12, bound=BoundEstimate(texts=8, draws=1))
SCORELM = ScoreLm(
    tokenizer=SentencePiece(vocabulary=1_000, coverage=1.0), length=13, packing=Packed(capacity=40), embedding=8,
    deviation=1.0, process=Gaussian(schedule=Karras(low=0.3, high=20.0, rho=7.0)),
    network=ScoreTransformer(layers=1, width=32, heads=2, feedforward=48, told=16, dropout=0.0))
READS = {"source_length": 8, "source_dropout": 0.2}
SYSTEMS: dict[str, Any] = {
    "tencdm": TENCDM, "tencdm reads": override(TENCDM, READS),
    "ld4lg": LD4LG, "ld4lg classes": override(LD4LG, {"classes": True}),
    "ld4lg reads": override(LD4LG, {"source": Source(length=8, dropout=0.2)}),
    "annealed": ANNEALED,
    "diffusionbert": DIFFUSIONBERT, "diffusionbert reads": override(DIFFUSIONBERT, READS),
    "scorelm": SCORELM, "scorelm reads": override(SCORELM, READS | {"self_conditioning": 0.5}),
}
PLAIN = ["tencdm", "ld4lg", "annealed", "diffusionbert", "scorelm"]
HINTED = [name for name, cfg in SYSTEMS.items() if hasattr(cfg, "self_conditioning")]
RECIPES = [tencdm, tencdm_laptop, ld4lg, ld4lg_laptop, ld4lg_annealed, ld4lg_annealed_laptop, diffusionbert,
           diffusionbert_laptop, scorelm, scorelm_laptop]


def test_every_system_has_its_laws():
    assert {type(cfg) for cfg in SYSTEMS.values()} == set(get_args(System))


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    return Context(Store(tmp_path_factory.mktemp("store") / "stages"))


def built(name: str, context: Context, **changes: Any) -> Any:
    """Weights that say something of everything they are connected with."""
    torch.manual_seed(0)
    system = override(SYSTEMS[name], changes).build(DATA, context).eval()
    with torch.no_grad():
        for parameter in system.parameters():
            if parameter.requires_grad and parameter.dim() > 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return system


@torch.no_grad()
def guess_of(system: Any, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:
    return system.denoise(x_t, t, previous=None, batch=batch).x0


def sampling(stepper: Any, **changes: Any) -> Sampling:
    return override(Sampling(stepper=stepper, grid=LogSnrGrid(), steps=3, count=8, batch=4), changes)


def trial(cfg: Any, **changes: Any) -> Trial:
    stepper = Ancestral() if isinstance(cfg, DiffusionBert) else DpmPlusPlus2M()
    return Trial(system=cfg, data=DATA, training=dataclasses.replace(SHORT, steps=2, batch=4, validate_on=8),
                 sampling=sampling(stepper), evaluation=Evaluation(metrics=(OracleScores(),), references=8), **changes)


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize("name", SYSTEMS)
def test_permuting_the_batch_permutes_the_guess(name, context):
    system = built(name, context)
    order = torch.arange(12).roll(5)
    batch, again = (system.batches("valid").take(rows) for rows in (torch.arange(12), order))
    x_t = system.prior((12, system.cfg.state_length), step_rng(0, 0))
    t = torch.linspace(0.9, 0.2, 12)[:, None]
    guess, permuted = (guess_of(system, x, at, of) for x, at, of in ((x_t, t, batch), (x_t[order], t[order], again)))
    torch.testing.assert_close(permuted, guess[order], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(permuted, guess)


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_is_recorded_has_the_names_that_a_search_may_ask_for(name, context):
    cfg, system = SYSTEMS[name], built(name, context)
    batch = system.batches("valid").take(torch.arange(4))
    with torch.no_grad():
        losses, told = system.loss(batch, 1.0, step_rng(0, "names")), system.diagnose()
    assert set(losses) == set(cfg.losses) and set(told) == set(cfg.diagnoses(DATA))
    curves = trial(cfg).curves()
    assert {f"valid/{loss}" for loss in cfg.losses} <= set(curves) and len(set(curves)) == len(curves)
    assert "valid/illegal" in trial(cfg).scores()


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("name", HINTED)
def test_the_first_guess_carries_no_gradient_and_is_made_for_the_share_that_should_have_it(name, share, context):
    system = built(name, context, self_conditioning=share).train()
    looks: list[bool] = []
    system.network.register_forward_pre_hook(lambda *_: looks.append(torch.is_grad_enabled()))
    batch = system.batches("train").take(torch.arange(4))
    first, second = (system.loss(batch, 0.5, step_rng(1, 2))["loss"] for _ in range(2))
    assert looks == ([False, True] if share else [True]) * 2
    assert torch.equal(first, second) and first.requires_grad


# ---------------------------------------------------------------- training


def digest(module: nn.Module) -> str:
    said = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        said.update(name.encode() + value.numpy().tobytes())
    return said.hexdigest()


def initial_weights(store: str | Path, seed: int) -> dict[str, str]:
    """The digests of the weights with which training begins, by system (as Trained.make begins)."""
    context, found = Context(Store(store)), {}
    for name in PLAIN:
        stage = Trained(system=SYSTEMS[name].learned(), data=DATA, training=SHORT, seed=seed)
        for needed in stage.needs():
            context.get(needed)
        torch.manual_seed(seed_of(seed, "initial weights"))
        found[name] = digest(stage.system.build(DATA, context))
    return found


def test_two_processes_with_one_seed_have_bit_identical_initial_weights(context):
    here = initial_weights(context.store.folder, 1)
    torch.rand(7)                                                                 # whatever was drawn before
    assert initial_weights(context.store.folder, 1) == here
    script = Path(__file__).absolute()
    there = subprocess.run([sys.executable, str(script), str(context.store.folder), "1"], capture_output=True,
                           text=True, check=True,
                           env={**os.environ, "PYTHONPATH": str(script.parents[1]), "PYTHONHASHSEED": "7"})
    assert json.loads(there.stdout) == here
    others = initial_weights(context.store.folder, 2)
    assert all(others[name] != here[name] for name in PLAIN if name != "diffusionbert")
    assert others["diffusionbert"] == here["diffusionbert"]                       # it starts as the language model


@pytest.mark.parametrize("name", PLAIN)
def test_stopped_and_resumed_is_bit_for_bit_as_if_nothing_had_happened(name, context, tmp_path):
    cfg = dataclasses.replace(SHORT, steps=4, batch=4, ema=Ema(decay=0.5), save_every=2, validate_on=8)
    for folder, stops in (("whole", ()), ("parts", (1, 3))):
        for stop in (*stops, None):
            torch.manual_seed(3)
            system = SYSTEMS[name].build(DATA, context)
            steps = iter(range(1, 10))
            asked = dataclasses.replace(
                context, should_stop=lambda steps=steps, stop=stop: stop is not None and next(steps) >= stop)
            (tmp_path / folder).mkdir(exist_ok=True)
            try:
                train(system, system.batches("train"), cfg, seed=0, out=tmp_path / folder, context=asked,
                      validate=system.batches("valid"))
            except Stopped:
                assert stop is not None
    whole, parts = (load_file(tmp_path / folder / "model.safetensors") for folder in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)


# ---------------------------------------------------------------- sampling


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_stepper_that_is_allowed_leads_to_texts_which_the_seed_decides(name, context):
    cfg = SYSTEMS[name]
    cfg.build_to_sample(DATA, context)                      # makes the stages that it needs, which moves the generator
    torch.manual_seed(1)
    system = cfg.build_to_sample(DATA, context).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in system.network.parameters():                                # a network that has much to say
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    for kind in cfg.steppers:
        drawn = [texts(cfg, system, sampling(kind()), seed, context) for seed in (0, 0, 1)]
        assert drawn[0] == drawn[1] and len(drawn[0]) == 4
        assert drawn[0] != drawn[2]
        assert not any("[MASK]" in text or "<mask>" in text for text in drawn[0])


def texts(cfg: Any, system: Any, how: Sampling, seed: int, context: Context) -> list[str]:
    """As a Sampled stage draws them."""
    stage = Sampled(system=cfg, checkpoint=Trained(system=cfg, data=DATA, training=SHORT, seed=seed), sampling=how)
    asked = stage.asked(context)
    return stage.draw(system, [asked[row % len(asked)] for row in range(4)], 0, context)


@pytest.mark.parametrize("name", ["tencdm reads", "ld4lg classes", "ld4lg reads", "diffusionbert reads",
                                  "scorelm reads"])
def test_another_condition_and_none_at_all_are_other_guesses(name, context):
    """Catches networks that never look at their source."""
    system = built(name, context)
    batch = system.batches("valid").take(torch.arange(4))
    other = system.batches("valid").take(torch.tensor([5, 6, 7, 8]))
    swapped = dataclasses.replace(batch, source=other.source, label=(
        None if batch.label is None else (batch.label + 1) % len(system.space.classes)))
    x_t = system.prior((4, system.cfg.state_length), step_rng(0, 0))
    t = torch.full((4, 1), 0.8)

    guess = guess_of(system, x_t, t, batch)
    for of in (swapped, dataclasses.replace(batch, source=None, label=None)):
        assert not torch.allclose(guess, guess_of(system, x_t, t, of), atol=1e-4)


# ---------------------------------------------------------------- checkpoints of the hub, by folder

TAKES = [(name, family) for name, families in {
    "tencdm": (Bert, Roberta, T5, Bart), "ld4lg": (Bart, T5), "annealed": (Bart, T5), "diffusionbert": (Bert, Roberta),
}.items() for family in families]
PLACE = {"tencdm": "encoder", "ld4lg": "representation.model", "annealed": "representation.model",
         "diffusionbert": "lm"}


@pytest.fixture(scope="module")
def published(tmp_path_factory, context):
    """Folders as model makers publish them: config.json, model.safetensors, a tokenizer."""
    folders, said = {}, read_texts(context.get(DATA), "train")
    for family in (Bert, Roberta, T5, Bart):
        folders[family] = folder = tmp_path_factory.mktemp("hub") / family.__name__.lower()
        tokenizer = family().tokenizer(said, 500)
        torch.manual_seed(1)
        with quietly():
            model: Any = family().untrained(TINY, tokenizer).model
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folders


@pytest.mark.parametrize(("name", "family"), TAKES)
def test_a_folder_in_the_hubs_format_serves_from_config_to_scores(name, family, published, context):
    named = trial(override(SYSTEMS[name], {PLACE[name]: family(weights=Pretrained(name=str(published[family])))}))
    settled = named.settled(context.store)
    settled.check(context)
    assert isinstance(getattr_path(settled.system, f"{PLACE[name]}.weights"), Folder)
    scores = run(settled, context)
    assert "test/illegal_real" in scores and len(read_lines(context.get(settled.samples()) / "samples.jsonl")) == 8


@pytest.mark.parametrize(("name", "family"), TAKES)
def test_a_decoder_only_model_and_another_family_are_refused_with_the_reason(name, family, published, context,
                                                                            tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    with quietly():
        GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=50)).save_pretrained(tmp_path / "gpt")
    another = next(folder for kind, folder in published.items() if kind is not family)
    for folder in (tmp_path / "gpt", another):
        kind = json.loads((folder / "config.json").read_text())["model_type"]
        named = trial(override(SYSTEMS[name], {PLACE[name]: family(weights=Pretrained(name=str(folder)))}))
        reason = f"of type '{kind}', and .* must be of type '{family.model_type}'"
        with pytest.raises(ConfigError, match=reason) as error:
            named.settled(context.store)
        assert error.value.path == f"system.{PLACE[name]}.weights.name" and "\n" not in str(error.value)


def getattr_path(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = getattr(value, name)
    return value


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize(("recipe", "changes"), [
    (recipe, sys.modules[recipe.__module__].SEQUENCE_TO_SEQUENCE)
    for recipe in (tencdm, tencdm_laptop, ld4lg, ld4lg_laptop, diffusionbert, diffusionbert_laptop, scorelm,
                   scorelm_laptop)], ids=lambda value: getattr(value, "__name__", ""))
def test_reading_sources_is_a_difference_of_a_recipe(recipe, changes):
    reads = override(recipe(), changes)
    assert reads.system.reads_source and not recipe().system.reads_source
    reads.samples().needs()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_a_recipe_is_a_value_that_can_be_written_down_and_read_again(recipe):
    again = from_dict(Trial, json.loads(json.dumps(to_dict(recipe()))))
    assert again == recipe() and fingerprint(again) == fingerprint(recipe())


@pytest.mark.parametrize("name", SYSTEMS)
def test_guidance_needs_a_guess_without_conditions_that_was_learned(name, context):
    """Before anything is trained: with nothing to leave out it is refused, and where training leaves nothing out."""
    guided = override(trial(SYSTEMS[name]), {"sampling.guidance": 0.5})
    reads = [condition for condition in ("source", "class") if getattr(guided.system, f"reads_{condition}")]
    if not reads:
        with pytest.raises(ConfigError, match="reads neither; it must be 0, not 0.5") as error:
            guided.check(context)
        assert error.value.path == "sampling.guidance"
        override(guided, {"sampling.guidance": 0.0}).check(context)
    for condition in reads:
        path = f"system.{guided.system.dropouts[condition]}"
        override(guided, {path: 0.1}).check(context)
        never = override(guided, {path: 0.0})
        with pytest.raises(ConfigError, match="must be above 0 .* not 0.0, for sampling.guidance 0.5") as error:
            never.check(context)
        assert error.value.path == path
        override(never, {"sampling.guidance": 0.0}).check(context)


def test_a_walk_of_another_process_is_refused():
    with pytest.raises(ConfigError, match="sampling.stepper: DiffusionBert walks by Ancestral, not by Posterior"):
        override(trial(DIFFUSIONBERT), {"sampling.stepper": Posterior()})


if __name__ == "__main__":
    print(json.dumps(initial_weights(sys.argv[1], int(sys.argv[2]))))
