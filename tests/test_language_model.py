"""Laws of whole language models, frozen: read from states, written by their own generate, kept in the hub's format."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainables.config import ConfigError
from trainables.randomness import step_rng
from trainables.stages import Context, Store
from trainables.system import Batch
from trainables.text.checkpoints import quietly
from trainables.text.corpora import Stories, read_texts
from trainables.text.encoders import T5, Bart, Folder, Pretrained, Small, imported
from trainables.text.language_model import (
    Beam,
    Decoding,
    FrozenLanguageModel,
    Greedy,
    LanguageModelFolder,
    Nucleus,
    NucleusDraw,
)
from trainables.text.stories import WORLDS, tell
from trainables.training.average import NoAverage
from trainables.training.learning_rate import Constant
from trainables.training.optimizers import AdamW
from trainables.training.train import Training

FAMILIES = [Bart, T5]
DATA = Stories(size=300)
SHORT = Training(optimizer=AdamW(lr=1e-2), schedule=Constant(), ema=NoAverage(), steps=200, batch=32,
                 precision="float32", record_every=50)
TINY = Small(layers=1, width=32, heads=2, feedforward=64, dropout=0.02, vocabulary=500, length=16, training=SHORT)
PLAIN = Decoding(by=Greedy(), longest=16, shortest=0, unrepeated=0, repetition_penalty=1.0)


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    return Context(Store(tmp_path_factory.mktemp("store") / "stages"))


@pytest.fixture(scope="module")
def models(context) -> dict[type, FrozenLanguageModel]:
    return {family: FrozenLanguageModel.load(context.get(LanguageModelFolder(data=DATA, model=family(weights=TINY))))
            for family in FAMILIES}


def rows(model: FrozenLanguageModel, texts: list[str] | None = None) -> Batch:
    ids, mask = model.words.ids(texts or ["anna found a small cat . she kept it .", "bob lost a ball .", "tom"], 16)
    return Batch(ids=ids, mask=mask)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_holds_both_halves_in_the_hubs_format(family, models, context):
    from transformers import BartForConditionalGeneration, T5ForConditionalGeneration

    kind: Any = BartForConditionalGeneration if family is Bart else T5ForConditionalGeneration
    with quietly():
        whole = kind.from_pretrained(context.get(LanguageModelFolder(data=DATA, model=family(weights=TINY)))).eval()
    model, batch = models[family], rows(models[family])
    with torch.no_grad():
        expected = whole(input_ids=batch.ids, attention_mask=batch.mask.long(), labels=batch.ids).logits
        h = model.encode(batch.ids, batch.mask)
        said = model.logits(h, batch.mask, batch.ids)
    torch.testing.assert_close(said, expected)
    torch.testing.assert_close(h, model.encoder().encode(batch.ids, batch.mask))
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_language_model_says_what_it_reads(family, models, context):
    """Greedily, from its own encoder's states: most words of held-out texts."""
    model, texts = models[family], read_texts(context.get(DATA), "valid")
    batch = rows(model, texts)
    written = model.write(model.encode(batch.ids, batch.mask), batch.mask, PLAIN)
    assert agreement(written, texts) > 0.6


def agreement(written: list[str], texts: list[str]) -> float:
    """The share of words that stand where they should."""
    said = [(mine == real) for one, other in zip(written, texts, strict=True)
            for mine, real in zip(one.split() + [""] * 16, other.split(), strict=False)]
    return sum(said) / len(said)


def test_a_small_model_may_learn_from_sources_too(context):
    stage = LanguageModelFolder(data=DATA, model=Bart(weights=TINY), sources=True)
    texts = stage._texts(context, "train")
    assert len(texts) > 300 and "anna found cat" in texts
    assert replace(stage, sources=False)._texts(context, "train") == texts[:300]


@pytest.mark.parametrize("by", [Greedy(), Beam(beams=3), Nucleus(p=0.9)])
def test_writing_is_a_function_of_states_and_settings(by, models):
    """And of the dice, of a nucleus; the global random state is left alone, and so is who writes beside whom."""
    model = models[Bart]
    batch = rows(model, ["anna found a small cat . she kept it ."] * 6)
    # Noise enough that no word is certain, however well the model learned: two draws of six texts are not the same.
    h = model.encode(batch.ids, batch.mask) + 3.0 * step_rng(0, 0).normal((6, 16, 32))
    decoding = replace(PLAIN, by=by)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = model.write(h, batch.mask, decoding, step_rng(0, "words"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert model.write(h, batch.mask, decoding, step_rng(0, "words")) == first and len(first) == 6
    assert model.write(h[:2], batch.mask[:2], decoding, step_rng(0, "words", whole=6)) == first[:2]
    if isinstance(by, Nucleus):
        assert model.write(h, batch.mask, decoding, step_rng(1, "words")) != first
        hardly = replace(decoding, by=Nucleus(p=1e-6))
        assert model.write(h, batch.mask, hardly, step_rng(0, "words")) == model.write(h, batch.mask, PLAIN)
        with pytest.raises(ValueError, match="needs an rng"):
            model.write(h, batch.mask, decoding)


@pytest.mark.parametrize(("p", "kept"), [(0.6, 2), (0.8, 3), (1.0, 5)])
def test_a_nucleus_is_drawn_from_in_its_words_proportions(p, kept):
    """Of five words in no order; a word that was forbidden before, at -inf, is never drawn."""
    share = torch.tensor([0.0, 0.2, 0.05, 0.4, 0.1, 0.25])
    likely = share.sort(descending=True).indices[:kept]
    expected = torch.zeros(6).index_put((likely,), share[likely] / share[likely].sum())
    n = 40_000
    draw = NucleusDraw(p, step_rng(0, 0).uniform((n, 3)))
    said = draw(torch.zeros(n, 2, dtype=torch.long), share.log().expand(n, 6))
    assert torch.equal((said == 0).sum(1), torch.ones(n, dtype=torch.long)) and said[said != 0].isneginf().all()
    found = said.argmax(1).bincount(minlength=6) / n
    assert (found - expected).abs().max() < 4 * 0.5 / n ** 0.5 and not found[expected == 0].any()


@torch.no_grad()
def test_beams_find_likelier_texts_than_greed(models):
    model = models[Bart]
    batch = rows(model)
    h = model.encode(batch.ids, batch.mask) + 0.5 * step_rng(0, 0).normal((3, 16, 32))

    def likelihood(decoding: Decoding) -> float:
        said = rows(model, model.write(h, batch.mask, decoding))
        logits = model.logits(h, batch.mask, said.ids).log_softmax(-1)
        each = logits.gather(2, said.ids[..., None])[..., 0] * said.mask
        return float((each.sum(1) / said.mask.sum(1)).sum())

    assert likelihood(replace(PLAIN, by=Beam(beams=8))) >= likelihood(PLAIN) - 1e-4


def test_constraints_on_what_is_written_hold(models):
    model = models[Bart]
    batch = rows(model)
    h = model.encode(batch.ids, batch.mask)
    written = model.write(h, batch.mask, replace(PLAIN, longest=6))
    assert all(len(text.split()) <= 5 for text in written)
    plain, long = (model.write(h, batch.mask, replace(PLAIN, shortest=shortest)) for shortest in (0, 16))
    assert all(len(b.split()) >= len(a.split()) for a, b in zip(plain, long, strict=True))
    assert len(long[2].split()) > len(plain[2].split()) + 3
    single = model.write(h, batch.mask, replace(PLAIN, unrepeated=1, shortest=10))
    assert all(len(set(text.split())) == len(text.split()) for text in single)


@pytest.mark.parametrize(("build", "words"), [
    (lambda: Beam(beams=1), "at least 2"), (lambda: Nucleus(p=0.0), "in \\(0, 1\\]"),
    (lambda: Decoding(shortest=9, longest=8), "shortest <= longest"), (lambda: Decoding(unrepeated=-1), "n-gram"),
    (lambda: Decoding(repetition_penalty=0.0), "positive")])
def test_nonsense_is_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()


# ---------------------------------------------------------------- checkpoints by folder


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = random.Random(0)
    return [tell(rng.choice(WORLDS), rng)["text"] for _ in range(300)]


def save_whole(family: type, folder: Path, texts: list[str]) -> Any:
    """A checkpoint as its makers publish it."""
    tokenizer = family().tokenizer(texts, 500)
    torch.manual_seed(1)
    model = family().untrained(TINY, tokenizer).model.eval()
    with quietly():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_in_the_hubs_format_serves(family, texts, tmp_path):
    model = save_whole(family, tmp_path / "mine", texts)
    context = Context(Store(tmp_path / "store"))
    cfg = imported(LanguageModelFolder(data=DATA, model=family(weights=Pretrained(name=str(tmp_path / "mine")))),
                   context.store)
    assert isinstance(cfg.model.weights, Folder)
    loaded = FrozenLanguageModel.load(context.get(cfg))
    assert all(torch.equal(value, loaded.model.state_dict()[name]) for name, value in model.state_dict().items())
    batch = rows(loaded)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.logits(loaded.encode(batch.ids, batch.mask), batch.mask, batch.ids),
            model(input_ids=batch.ids, attention_mask=batch.mask.long(), labels=batch.ids).logits)


@torch.no_grad()
def test_a_bart_without_a_head_serves_as_facebook_publishes_it(texts, tmp_path):
    """BART-base's folder holds a BartModel: the head is the token table, its bias zero."""
    whole = save_whole(Bart, tmp_path / "mine", texts)
    with quietly():
        whole.model.save_pretrained(tmp_path / "mine")
    context = Context(Store(tmp_path / "store"))
    cfg = imported(LanguageModelFolder(data=DATA, model=Bart(weights=Pretrained(name=str(tmp_path / "mine")))),
                   context.store)
    loaded = FrozenLanguageModel.load(context.get(cfg))
    batch = rows(loaded)
    torch.testing.assert_close(
        loaded.logits(loaded.encode(batch.ids, batch.mask), batch.mask, batch.ids),
        whole(input_ids=batch.ids, attention_mask=batch.mask.long(), labels=batch.ids).logits)


@torch.no_grad()
def test_a_flan_t5_serves(texts, tmp_path):
    """Gated feed-forward layers, and a head of its own."""
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = T5().tokenizer(texts, 500)
    size: dict[str, Any] = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1,
                            "num_heads": 2, "vocab_size": len(tokenizer), "feed_forward_proj": "gated-gelu",
                            "tie_word_embeddings": False, "pad_token_id": tokenizer.pad_token_id,
                            "eos_token_id": tokenizer.eos_token_id, "decoder_start_token_id": tokenizer.pad_token_id}
    model: Any = T5ForConditionalGeneration(T5Config(**size)).eval()
    with quietly():
        model.save_pretrained(tmp_path / "mine")
    tokenizer.save_pretrained(tmp_path / "mine")
    context = Context(Store(tmp_path / "store"))
    named = LanguageModelFolder(data=DATA, model=T5(weights=Pretrained(name=str(tmp_path / "mine"))))
    loaded = FrozenLanguageModel.load(context.get(imported(named, context.store)))
    batch = rows(loaded)
    h = loaded.encode(batch.ids, batch.mask)
    torch.testing.assert_close(
        loaded.logits(h, batch.mask, batch.ids),
        model(input_ids=batch.ids, attention_mask=batch.mask.long(), labels=batch.ids).logits)
    assert len(loaded.write(h, batch.mask, PLAIN)) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_alone_is_refused(family, texts, tmp_path):
    model = save_whole(family, tmp_path / "mine", texts)
    whole = load_file(tmp_path / "mine" / "model.safetensors")
    save_file({name: value for name, value in whole.items() if "decoder." not in name},
              tmp_path / "mine" / "model.safetensors", {"format": "pt"})
    about = json.loads((tmp_path / "mine" / "config.json").read_text())
    about["architectures"] = [type(model).__name__.replace("ForConditionalGeneration", "EncoderModel")]
    (tmp_path / "mine" / "config.json").write_text(json.dumps(about))
    context = Context(Store(tmp_path / "store"))
    cfg = imported(LanguageModelFolder(data=DATA, model=family(weights=Pretrained(name=str(tmp_path / "mine")))),
                   context.store)
    with pytest.raises(ConfigError, match=f"weights of its {family.model_type} decoder.*whole encoder-decoder"):
        context.get(cfg)
    with pytest.raises(ConfigError, match=f"no weights of a {family.model_type} decoder .*EncoderModel kept none"):
        cfg.check(context)                                   # a study asks before it starts


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_models_pass_the_check_with_and_without_a_head_of_their_own(family, texts, tmp_path):
    """Both as their makers publish them; a head that is no copy of the token table must be there."""
    whole, context = save_whole(family, tmp_path / "mine", texts), Context(Store(tmp_path / "store"))

    def check() -> None:
        imported(LanguageModelFolder(data=DATA, model=family(weights=Pretrained(name=str(tmp_path / "mine")))),
                 context.store).check(context)

    check()
    if family is Bart:
        with quietly():
            whole.model.save_pretrained(tmp_path / "mine")                     # a BartModel
        check()
    about = json.loads((tmp_path / "mine" / "config.json").read_text())
    (tmp_path / "mine" / "config.json").write_text(json.dumps(about | {"tie_word_embeddings": False}))
    with pytest.raises(ConfigError, match="no head that says words"):
        check()
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(ConfigError, match="model.safetensors cannot be read"):
        check()


@pytest.mark.parametrize(("about", "words"), [
    ({"model_type": "gpt2"}, "type 'gpt2'.*must be of type 'bart'"),
    ({"model_type": "bert"}, "type 'bert'.*must be of type 'bart'"),
    ({"model_type": "bart", "is_decoder": True}, "a decoder")])
def test_a_decoder_alone_and_other_families_are_refused_before_anything_starts(about, words, texts, tmp_path):
    save_whole(Bart, tmp_path / "mine", texts)
    (tmp_path / "mine" / "config.json").write_text(json.dumps(about))
    with pytest.raises(ConfigError, match=words):
        imported(LanguageModelFolder(data=DATA, model=Bart(weights=Pretrained(name=str(tmp_path / "mine")))),
                 Store(tmp_path / "store"))
