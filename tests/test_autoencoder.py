"""Laws of the language autoencoder: texts that come back out of a few vectors."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_language_model import DATA, PLAIN, SHORT, TINY, agreement, rows, save_whole

from trainables.config import ConfigError, override
from trainables.networks.perceiver import Perceiver
from trainables.randomness import step_rng
from trainables.stages import Context, Store
from trainables.system import Batch
from trainables.text.autoencoder import (
    AutoencoderLoss,
    AutoencoderTraining,
    Cached,
    Live,
    TrainedAutoencoder,
    load_autoencoder,
)
from trainables.text.corpora import read_texts
from trainables.text.encoders import T5, Bart, Pretrained, imported
from trainables.text.encodings import EncodedSplit
from trainables.text.language_model import FrozenLanguageModel, LanguageModelFolder
from trainables.training.train import set_training, train

SIZE = Perceiver(latents=4, width=8, layers=1, heads=2, deviation=0.0)


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    return Context(Store(tmp_path_factory.mktemp("store") / "stages"))


def stage(changes: dict[str, Any] | None = None, family: type = Bart) -> TrainedAutoencoder:
    said = AutoencoderTraining(features=Live(), training=replace(SHORT, steps=5))
    made = TrainedAutoencoder(language_model=LanguageModelFolder(data=DATA, model=family(weights=TINY)), length=16,
                              perceiver=SIZE, autoencoder=said)
    return override(made, changes or {})


@pytest.mark.parametrize(("build", "words"), [
    (lambda: Cached(noise=-1.0), "0 or more"), (lambda: AutoencoderTraining(latent_noise=-0.1), "0 or more")])
def test_nonsense_is_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_a_width_that_does_not_fit_is_refused(context, tmp_path):
    save_whole(Bart, tmp_path / "mine", read_texts(context.get(DATA), "train"))
    context = Context(Store(tmp_path / "store"))
    cfg = override(stage(), {"perceiver.heads": 5,
                             "language_model.model": Bart(weights=Pretrained(name=str(tmp_path / "mine")))})
    with pytest.raises(ConfigError, match="perceiver: heads must divide the language model's width of 32"):
        context.get(imported(cfg, context.store))
    with pytest.raises(ConfigError, match=r"perceiver.heads: must divide .* width of 32, and 5 do not"):
        imported(cfg, context.store).check(context)          # a study asks before it starts
    imported(override(cfg, {"perceiver.heads": 4}), context.store).check(context)


@pytest.mark.parametrize(("family", "features"), [(Bart, Live()), (Bart, Cached(noise=0.1)), (T5, Cached(noise=0.1))])
def test_texts_come_back_out_of_a_few_vectors(family, features, context):
    """Trained for a few seconds: BART brings back nearly all words, T5 most, and each text's vectors its own text."""
    trained = stage({"autoencoder.features": features, "autoencoder.training": replace(SHORT, steps=300)}, family)
    model = FrozenLanguageModel.load(context.get(trained.language_model))
    perceiver = load_autoencoder(trained, model, context)
    real = read_texts(context.get(DATA), "valid")
    batch = rows(model, real)
    with torch.no_grad():
        Z = perceiver.compress(model.encode(batch.ids, batch.mask), batch.mask)
        torch.testing.assert_close(Z.norm(dim=-1), torch.full(Z.shape[:2], 8 ** 0.5))
        written = model.write(perceiver.expand(Z), None, PLAIN)
        other = model.write(perceiver.expand(Z.roll(1, 0)), None, PLAIN)
    assert agreement(written, real) > (0.95 if family is Bart else 0.6) > agreement(other, real) + 0.1


def test_only_the_perceiver_learns_and_only_it_is_kept(context):
    trained = stage()
    stored = load_file(context.get(trained) / "model.safetensors")
    assert all(name.startswith("perceiver.") for name in stored)
    loss = AutoencoderLoss(trained, FrozenLanguageModel.load(context.get(trained.language_model)))
    assert stored.keys() == {name for name, value in loss.named_parameters() if value.requires_grad}


@pytest.mark.parametrize(("features", "noisy"), [
    (Live(), True), (Live(dropout=False), False), (Cached(noise=0.2, dropout=False), True),
    (Cached(noise=0.0, dropout=False), False)])
def test_noise_is_where_it_was_asked_for_and_nowhere_on_held_out_texts(features, noisy, context):
    """The published noise is the dropout of a frozen model in training mode."""
    trained = stage({"autoencoder.features": features})
    model = AutoencoderLoss(trained, FrozenLanguageModel.load(context.get(trained.language_model)))
    batch = trained.rows("train", model, context).take(torch.arange(6))
    assert (batch.encodings is not None) == isinstance(features, Cached)

    def loss(step: int) -> float:
        torch.manual_seed(step)
        return float(model.loss(batch, 0.0, step_rng(0, step))["loss"].detach())

    set_training(model)
    assert (loss(1) != loss(2)) == noisy and loss(1) == loss(1)
    model.eval()
    held_out = loss(1)
    assert held_out == loss(2)
    live = AutoencoderLoss(stage(), model.language_model).eval()
    live.perceiver = model.perceiver
    assert float(live.loss(batch, 0.0, step_rng(0, 0))["loss"].detach()) == pytest.approx(held_out, rel=1e-5)


def test_latents_can_be_noised_too(context):
    quiet, loud = (stage({"autoencoder.features": Live(dropout=False), "autoencoder.latent_noise": noise})
                   for noise in (0.0, 3.0))
    language_model = FrozenLanguageModel.load(context.get(quiet.language_model))
    torch.manual_seed(0)
    models = [AutoencoderLoss(each, language_model) for each in (quiet, loud)]
    models[1].perceiver = models[0].perceiver
    batch = rows(language_model)
    a, b = (float(model.train().loss(batch, 0.0, step_rng(0, 0))["loss"].detach()) for model in models)
    assert a != b
    a, b = (float(model.eval().loss(batch, 0.0, step_rng(0, 0))["loss"].detach()) for model in models)
    assert a == b


def test_pads_change_neither_loss_nor_gradient_and_the_loss_is_a_mean_over_texts(context):
    trained = stage({"autoencoder.features": Live(dropout=False)})
    torch.manual_seed(0)
    model = AutoencoderLoss(trained, FrozenLanguageModel.load(context.get(trained.language_model)))
    batch = rows(model.language_model)
    assert not batch.mask.all()
    spoilt = Batch(ids=torch.where(batch.mask, batch.ids, 7), mask=batch.mask)

    def gradient(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        loss = model.loss(batch, 0.0, step_rng(0, 0))["loss"]
        loss.backward()
        return loss.detach(), torch.cat([weight.grad.flatten() for weight in model.perceiver.parameters()
                                         if weight.grad is not None])

    torch.testing.assert_close(gradient(spoilt), gradient(batch))
    alone = [model.loss(Batch(ids=batch.ids[i:i + 1], mask=batch.mask[i:i + 1]), 0.0, step_rng(0, 0))["loss"]
             for i in range(3)]
    torch.testing.assert_close(torch.stack(alone).mean(), model.loss(batch, 0.0, step_rng(0, 0))["loss"])


def test_training_goes_on_as_if_it_had_not_stopped(context, tmp_path):
    """Though it depends on dropout inside the frozen model."""
    from trainables.training.train import Stopped

    trained = stage()
    language_model = FrozenLanguageModel.load(context.get(trained.language_model))

    def run(out: Path, stops: tuple[int, ...]) -> dict[str, torch.Tensor]:
        for stop in (*stops, 10**9):
            torch.manual_seed(0)
            model = AutoencoderLoss(trained, language_model)
            seen: list[int] = []
            inner = replace(context, record=lambda step, said, seen=seen: seen.append(step),
                            should_stop=lambda seen=seen, stop=stop: bool(seen) and seen[-1] >= stop)
            try:
                train(model, trained.rows("train", model, context), replace(SHORT, steps=6, record_every=1), seed=0,
                      out=out, context=inner, validate=trained.rows("valid", model, context))
            except Stopped:
                continue
        return load_file(out / "model.safetensors")

    whole, pieces = run(tmp_path / "whole", ()), run(tmp_path / "pieces", (2, 4))
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)


def test_cached_states_are_the_encoders(context):
    trained = stage({"autoencoder.features": Cached()})
    model = FrozenLanguageModel.load(context.get(trained.language_model))
    batch = EncodedSplit(context.get(trained.states()), "valid").take(torch.arange(5))
    assert batch.encodings is not None
    torch.testing.assert_close(batch.encodings[batch.mask], model.encode(batch.ids, batch.mask)[batch.mask],
                               atol=1e-5, rtol=1e-4)
    assert not batch.encodings[~batch.mask].any()
