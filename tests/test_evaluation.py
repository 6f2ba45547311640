"""Evaluation: each metric against what it must be by hand, and the laws that all of them keep."""

import gc
import itertools
import math
import random
import weakref
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import scipy.linalg
import torch

from trainables.config import ConfigError, from_dict, override, to_dict
from trainables.evaluation import mauve as mauve_file
from trainables.evaluation.bleu import Bleu
from trainables.evaluation.consensus import agreed, bleu
from trainables.evaluation.evaluation import BETTER, Evaluation, Metric, RealScores
from trainables.evaluation.features import EncoderStates, Features, JudgeStates, MiniLM, Pooled
from trainables.evaluation.frechet import Frechet, frechet
from trainables.evaluation.judge import Judge, JudgeLm, JudgeNll
from trainables.evaluation.mauve import Mauve, mauve
from trainables.evaluation.memorisation import Memorisation
from trainables.evaluation.oracle import OracleScores
from trainables.evaluation.perplexity import Perplexity
from trainables.evaluation.pretrained import _points as points_of
from trainables.evaluation.pretrained import held, nats, points
from trainables.evaluation.real import Real
from trainables.evaluation.rouge import Rouge, rouge2
from trainables.evaluation.variety import Variety, distinct, entropy, self_bleu
from trainables.evaluation.verdict import TOLERANCES, departures, remarks, worst
from trainables.evaluation.words import Hashes, ngrams, words
from trainables.stages import Context, Store, key
from trainables.text.corpora import Stories, import_files, read_rows, read_texts
from trainables.text.encoders import Bert, Small
from trainables.text.tokenizers import byte_level_bpe

JUDGE = override(Judge(), {"training.steps": 60, "training.schedule.warmup": 5, "width": 64})
DATA = Stories(size=1000)
N = 50


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return Context(Store(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def real(context: Context) -> list[str]:
    return read_texts(context.get(DATA), "valid")[:N]


@pytest.fixture(scope="module")
def sources(context: Context) -> list[str]:
    """What the texts of `real` were written from."""
    return [row["source"] for row in read_rows(context.get(DATA), "valid")[:N]]


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A causal language model in Hugging Face format, untrained, in a folder."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("causal")
    tokenizer: Any = byte_level_bpe(["the cat sat on the mat ."] * 5, 280)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.5,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)).save_pretrained(folder)
    return str(folder)


def all_metrics(causal: str) -> list[Metric]:
    cloud = JudgeStates(judge=JUDGE)
    return [OracleScores(), Mauve(features=cloud, buckets=5), Frechet(features=cloud), JudgeNll(judge=JUDGE),
            Variety(hypotheses=20, references=10), Memorisation(), Perplexity(name=causal, length=48), Bleu(),
            Rouge()]


# ---------------------------------------------------------------- laws of all metrics


def test_all_members_of_the_union_are_tested():
    assert [type(metric) for metric in all_metrics("")] == list(get_args(Metric))
    assert set(BETTER.values()) == {"lower", "higher", "neither"}
    assert set(TOLERANCES) <= set(BETTER)


@pytest.mark.parametrize("place", range(len(get_args(Metric))), ids=[metric.__name__ for metric in get_args(Metric)])
def test_a_metric_gives_its_values_and_no_others(place: int, context: Context, real: list[str], sources: list[str],
                                                 causal: str):
    metric = all_metrics(causal)[place]
    evaluation = Evaluation(metrics=(metric,), references=N)
    assert from_dict(Evaluation, to_dict(evaluation)) == evaluation
    values, absent = evaluation.measure(real, "test", DATA, context, sources)
    assert not absent and all(math.isfinite(value) for value in values.values())
    assert set(values) == {*metric.better, *(f"{name}_real" for name in metric.better)}
    assert values == evaluation.measure(list(real), "test", DATA, context, list(sources)).values
    for cheat in (["", "  "], []):
        values, absent = evaluation.measure(cheat, "test", DATA, context)
        assert set(absent) == set(metric.better) and all("samples" in reason for reason in absent.values())
    one = evaluation.measure(["", *real[1:]], "test", DATA, context, sources)      # an empty one among them is counted
    assert set(metric.better) <= set(one.values)


def test_scoring_asks_for_nothing_but_its_needs(context: Context, real: list[str], sources: list[str], causal: str,
                                                monkeypatch):
    evaluation = Evaluation(metrics=tuple(all_metrics(causal)), references=N)
    needs = evaluation.needs(DATA)
    assert len({key(stage) for stage in needs}) == len(needs)
    for stage in needs:
        context.get(stage)
    monkeypatch.setattr(Store, "_make", lambda self, stage, context: pytest.fail(f"{key(stage)} was not announced"))
    for split in ("valid", "test"):
        assert not evaluation.measure(real, split, DATA, context, sources).absent


def test_the_real_value_is_the_score_of_real_texts(context: Context, causal: str):
    evaluation = Evaluation(metrics=tuple(all_metrics(causal)), references=N)
    rows = Real(data=DATA, split="valid", count=N).rows(context)
    values = evaluation.measure([row["text"] for row in rows], "test", DATA, context,
                                [row["source"] for row in rows]).values
    for name in values:
        assert name.endswith("_real") or values[name] == values[f"{name}_real"]


def test_values_that_depend_on_n_are_refused_at_another_n(context: Context, real: list[str], causal: str):
    evaluation = Evaluation(metrics=tuple(all_metrics(causal)), references=N)
    values, absent = evaluation.measure(real[:20], "test", DATA, context)
    of_n = ("total_variation", "mauve", "fd", "distinct_1", "distinct_2", "diversity", "self_bleu", "duplicates")
    for name in (*Bleu.better, *Rouge.better):
        assert absent.pop(name) == "the samples were not written from sources"
    assert absent == dict.fromkeys(of_n, f"needs {N} samples, there are 20")
    assert {"judge_nll", "entropy", "memorisation", "illegal", "perplexity"} <= set(values)
    more = evaluation.measure(real + real, "test", DATA, context).values
    assert more["mauve"] == evaluation.score(real, "test", DATA, context)["mauve"]    # the first N are read
    held_out = len(read_texts(context.get(DATA), "valid"))
    large = Evaluation(metrics=(Frechet(features=JudgeStates(judge=JUDGE)),), references=held_out + 1)
    values, absent = large.measure(real * 9, "valid", DATA, context)
    assert absent["fd"] == f"needs {held_out + 1} real texts, valid has {held_out}" and "fd" not in values


def test_nonsense_is_refused():
    with pytest.raises(ConfigError, match="must be valid or test, not 'train'"):
        Real(data=DATA, split="train", count=5)
    with pytest.raises(ValueError, match="give these values twice: mauve"):
        Evaluation(metrics=(Mauve(), Mauve(features=MiniLM())))
    with pytest.raises(ValueError, match="references 20 cannot fill MAUVE's 50 buckets"):
        Evaluation(metrics=(Mauve(),), references=20)


def test_only_stories_have_an_oracle(context: Context, tmp_path: Path):
    (tmp_path / "texts.txt").write_text("".join(f"this is text {n} .\n" for n in range(80)))
    data = import_files(str(tmp_path / "texts.txt"), None, context.store)
    evaluation = Evaluation(metrics=(OracleScores(), Memorisation()), references=5)
    values, absent = evaluation.measure(["a"], "test", data, context)
    assert absent["illegal"] == "Imported has no oracle; only Stories has"
    assert absent["memorisation"] == "no sample has 4 words" and values["copied"] == 0


# ---------------------------------------------------------------- words and variety


def test_words_and_ngrams():
    assert words("Bob's cat, it SAT.") == ["bob's", "cat", ",", "it", "sat", "."]
    assert list(ngrams(["a", "b", "c"], 2)) == [("a", "b"), ("b", "c")] and not list(ngrams(["a"], 2))


def test_variety_by_hand():
    assert entropy("a a b b".split()) == pytest.approx(math.log(2)) and entropy([]) == 0
    assert distinct([["a", "b", "a", "b"]], 2) == pytest.approx(2 / 3) and distinct([["a"]], 2) == 0
    said = [[f"{name}{place}" for place in range(8)] for name in "abcdefgh"]
    assert self_bleu([said[0]] * 8, 8, 3) == pytest.approx(1) and self_bleu(said, 8, 3) == 0


def test_repeated_samples_lose_variety(context: Context, real: list[str]):
    evaluation = Evaluation(metrics=(Variety(),), references=N)
    honest, dull = (evaluation.score(texts, "test", DATA, context) for texts in (real, real[:5] * (N // 5)))
    assert dull["duplicates"] == pytest.approx(0.9) and dull["diversity"] < honest["diversity"] / 5
    assert dull["self_bleu"] > honest["self_bleu"]


# ---------------------------------------------------------------- memorisation


def test_memorisation_is_the_share_of_known_runs(context: Context):
    train = read_texts(context.get(DATA), "train")
    known = {run for text in train for run in ngrams(words(text), 4)}
    rng = random.Random(0)
    samples = [" ".join(rng.sample(text.split(), k=len(text.split())) if rng.random() < 0.5 else text.upper().split())
               for text in train[:40]] + ["unheard of"]
    runs = [run for text in samples for run in ngrams(words(text), 4)]
    score = Memorisation().score(samples, Real(data=DATA, split="test", count=5), context)
    assert score["memorisation"] == pytest.approx(sum(run in known for run in runs) / len(runs))
    whole = {tuple(words(text)) for text in train}
    assert score["copied"] == pytest.approx(sum(tuple(words(text)) in whole for text in samples) / len(samples))


def test_hashes_see_order():
    hashes = Hashes()
    assert len(set(hashes.of_ngrams("a b a b c".split(), 2).tolist())) == 3
    assert hashes.of_ngrams(["a", "b"], 2) != hashes.of_ngrams(["b", "a"], 2) and not len(hashes.of_ngrams(["a"], 2))


# ---------------------------------------------------------------- clouds


def test_frechet_is_the_distance_of_two_gaussians():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(300, 6)) * 2 + 1
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root: Any = scipy.linalg.sqrtm(cov_a @ cov_b)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * root.real)
    assert frechet(a, b) == pytest.approx(expected) == pytest.approx(frechet(b, a))
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    few = rng.normal(size=(5, 40)).astype(np.float32)                                # fewer texts than features
    assert frechet(few, few) == pytest.approx(0, abs=1e-6) and frechet(few, few + 1) == pytest.approx(40, rel=1e-5)


def test_mauve_is_the_librarys(monkeypatch: pytest.MonkeyPatch):
    import faiss

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 8)), rng.normal(size=(60, 8)) + 0.5
    ours = mauve(a, b, buckets=6)
    monkeypatch.setattr(mauve_file._library(), "faiss", faiss)                       # as it comes, with its warnings
    theirs = mauve_file._library().compute_mauve(p_features=a, q_features=b, num_buckets=6, verbose=False).mauve
    assert ours == theirs and mauve(a, a, 6) == pytest.approx(1) and mauve(a, b + 20, 6) < 0.05 < ours < 1


def test_all_kinds_of_features_are_points_on_a_sphere(context: Context, real: list[str], causal: str):
    small = Small(layers=1, width=32, heads=2, feedforward=64, vocabulary=400, length=24)
    tiny = override(Bert(weights=small), {"weights.training.steps": 2, "weights.training.schedule.warmup": 0})
    kinds = [MiniLM(length=32), Pooled(name=causal, pooling="last", length=32), EncoderStates(encoder=tiny, length=24),
             JudgeStates(judge=JUDGE)]
    assert [type(kind) for kind in kinds] == list(get_args(Features))
    for kind in kinds:
        for stage in kind.needs(DATA):
            context.get(stage)
        features = kind.of(real[:7], DATA, context)
        assert features.shape[0] == 7 and features.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
        again = kind.of(real[6:0:-1], DATA, context)                                 # other neighbours, same point
        np.testing.assert_allclose(again, features[:0:-1], atol=1e-5)


# ---------------------------------------------------------------- likelihoods


def test_nats_are_of_a_text_alone_whatever_its_batch(causal: str):
    texts = ["the cat sat .", "", "the mat", "on the mat the cat sat on the cat ."]
    device = torch.device("cpu")
    together = nats(causal, texts, 48, device, ends=True)
    for row, text in enumerate(texts):
        alone = nats(causal, [text], 48, device, ends=True)
        assert together.nats[row] == pytest.approx(alone.nats[0], rel=1e-5)
        assert together.words[row] == len(words(text)) + 1 and together.tokens[row] == alone.tokens[0]
    cut = nats(causal, texts[-1:], 3, device, ends=True)
    assert cut.tokens.tolist() == [3] and cut.words[0] <= 3 and cut.nats[0] < together.nats[3]


def test_nats_are_the_models_own_loss(causal: str):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = "the cat sat on the mat ."
    ids = AutoTokenizer.from_pretrained(causal)(text, return_tensors="pt")["input_ids"]      # <s> ... </s>
    expected = AutoModelForCausalLM.from_pretrained(causal)(input_ids=ids, labels=ids).loss.item()
    said = nats(causal, [text], 48, torch.device("cpu"), ends=True)
    assert said.nats[0] / said.tokens[0] == pytest.approx(expected, rel=1e-5)


def test_perplexity_is_a_mean_over_texts(causal: str, context: Context):
    texts = ["the cat sat", "on the mat the cat", "zzz qqq xxx"] * 7
    said = nats(causal, texts, 48, torch.device("cpu"))
    each = np.sort(np.exp(said.nats / said.tokens))
    score = Perplexity(name=causal, length=48).score([*texts, ""], Real(data=DATA, split="test", count=5), context)
    assert score["perplexity"] == pytest.approx(each.mean())
    assert score["perplexity_trimmed"] == pytest.approx(each[1:-1].mean())


@pytest.mark.parametrize("files", [(), ("config.json",)])
def test_a_folder_that_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path, files: tuple[str, ...]):
    for name in files:
        (tmp_path / name).write_text("{}")
    for ask in (nats, lambda *args: points(args[0], args[1], "mean", *args[2:])):
        with pytest.raises(ConfigError, match="the folder holds no checkpoint") as error:
            ask(str(tmp_path), ["a"], 8, torch.device("cpu"))
        assert "\n" not in str(error.value)


def test_the_judge_learns_from_its_own_split_alone(context: Context, real: list[str]):
    fresh = Context(Store(context.store.folder.parent / "fresh"))
    folder = fresh.get(DATA)
    for split in ("train", "valid", "test"):
        (folder / f"{split}.jsonl").unlink()
    there = fresh.get(JudgeLm(data=DATA, judge=JUDGE))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in there.iterdir()}
    here = context.get(JudgeLm(data=DATA, judge=JUDGE))
    assert (there / "model.safetensors").read_bytes() == (here / "model.safetensors").read_bytes()


def test_the_judge_hears_word_order(context: Context, real: list[str]):
    rng = random.Random(0)
    shuffled = [" ".join(rng.sample(text.split(), k=len(text.split()))) for text in real]
    evaluation = Evaluation(metrics=(JudgeNll(judge=JUDGE),), references=N)
    fluent, wrong = (evaluation.score(texts, "test", DATA, context)["judge_nll"] for texts in (real, shuffled))
    strange = evaluation.score(["zyx wvu ëøß"] * N, "test", DATA, context)["judge_nll"]
    assert fluent < 2 and wrong > fluent + 1 and strange > wrong                     # nothing unknown is cheap


# ---------------------------------------------------------------- the oracle and the verdict


def test_the_oracle_knows_real_from_shuffled(context: Context, real: list[str]):
    evaluation = Evaluation(metrics=(OracleScores(),), references=N)
    honest = evaluation.score([text.upper().replace(" .", ".") for text in real], "test", DATA, context)
    assert honest["illegal"] == 0 == honest["illegal_real"]
    assert abs(honest["oracle_nll"] - honest["oracle_nll_real"]) < 0.1
    wrong = evaluation.score([" ".join(sorted(text.split())) for text in real], "test", DATA, context)
    assert wrong["illegal"] == 1 and wrong["oracle_nll"] > honest["oracle_nll"] + 1
    assert wrong["total_variation"] > honest["total_variation"] + 0.2


def test_departures_know_the_bad_side():
    good = {"mauve": 0.99, "mauve_real": 0.95, "judge_nll": 3.0, "judge_nll_real": 3.0,
            "copied": 0.0, "copied_real": 0.1}
    assert worst(good) == 0 and remarks(good) == []
    bad = good | {"judge_nll": 1.0, "copied": 1.0, "words": 9.0}
    assert departures(bad) == pytest.approx({"mauve": 0, "judge_nll": 8, "copied": 18})
    assert worst(bad) == pytest.approx(18) and remarks(bad) == ["copied 1, real 0.1", "judge_nll 1, real 3"]
    assert worst({}) == 0


def test_real_scores_are_a_stage_of_data_and_metrics_alone():
    evaluation = Evaluation(metrics=(Variety(),), references=N)
    real = Real(data=DATA, split="test", count=N)
    assert evaluation.baseline("test", DATA) == RealScores(metrics=(Variety(),), real=real)
    assert [type(stage).__name__ for stage in evaluation.needs(DATA)] == ["Stories", "RealScores", "RealScores"]


# ---------------------------------------------------------------- sources


def test_bleu_takes_every_text_of_a_source_as_a_reference(context: Context, tmp_path: Path):
    things = [f"{first}{rest}" for first in "cbrmh" for rest in ("at", "og", "ug", "un", "ip", "ock", "eel")]
    (tmp_path / "texts.csv").write_text("text,notes\n" + "".join(
        f"the {thing} is very {how} today,{thing}\n" for thing in things * 2 for how in ("small", "brown")))
    data = import_files(f"{tmp_path / 'texts.csv'}:text:notes", None, context.store)
    source = read_rows(context.get(data), "test")[0]["source"]

    def of(text: str, source: str) -> dict[str, float]:
        return Bleu().score_pairs([text], [source], Real(data=data, split="test", count=2), context)  # type: ignore

    assert of(f"the {source} is very brown today", source)["bleu"] == pytest.approx(1)
    assert of(f"the {source} is very small today", source)["bleu"] == pytest.approx(1)
    assert 0 < of(f"the {source} is very small now", source)["bleu"] < 1
    assert "no text of these samples' sources" in str(of("the cat", "lion")["bleu"])


def test_rouge_counts_shared_words_and_takes_the_best_text_of_a_source(context: Context, tmp_path: Path):
    """By hand: F is twice what is shared over what both have; first 4 of 5 and 6 words, 2 of 4 and 5 pairs."""
    (tmp_path / "texts.csv").write_text("text,notes\n" + "".join(
        f"{text},note {row}\n" for row in range(60) for text in (f"The cat {row} lay down there.", f"nothing {row}")))
    data = import_files(f"{tmp_path / 'texts.csv'}:text:notes", None, context.store)
    source = read_rows(context.get(data), "test")[0]["source"]
    real = Real(data=data, split="test", count=2)

    def of(text: str, source: str) -> dict[str, Any]:
        return Rouge().score_pairs([text], [source], real, context)

    row = source.split()[1]
    found = of(f"the cat {row}, sat down", source)
    assert found == pytest.approx({"rouge1": 8 / 11, "rouge2": 4 / 9, "rouge_l": 8 / 11})
    assert of(f"there lay down {row} cat the", source) == pytest.approx({"rouge1": 1, "rouge2": 0.2, "rouge_l": 1 / 3})
    assert set(of(f"nothing {row}", source).values()) == {1.0} and set(of("", source).values()) == {0.0}
    both = Rouge().score_pairs([f"nothing {row}", "else"], [source] * 2, real, context)
    assert both == pytest.approx(dict.fromkeys(both, 0.5))
    assert "no text of these samples' sources" in of("the cat", "lion")["rouge1"]
    assert rouge2("the cat sat down", "the cat lay down there") == pytest.approx(2 / 7)
    assert rouge2("cat", "cat") == rouge2("", "a cat") == 0


def test_what_is_alike_decides_what_is_agreed():
    """LD4LG's shared pairs (case and marks apart) and BLEU, of which longer runs are a part, choose otherwise."""
    texts = ["a b x c d y e f z g h", "A B, q! c d w E F, v G H", "a b c d m n o p r s t u", "k a b c d l i j 1 2 3 4"]
    utilities = [sum(rouge2(text, other) for other in texts if other is not text) for text in texts]
    assert utilities.index(max(utilities)) == 0 and agreed(texts, "rouge2") == texts[0]
    assert agreed(texts, "bleu") == agreed(texts) != texts[0]
    assert agreed(["only"], "rouge2") == "only"


def test_a_model_is_loaded_once_for_all_metrics_of_an_evaluation_and_let_go(
        context: Context, real: list[str], sources: list[str], causal: str, monkeypatch: pytest.MonkeyPatch):
    """Its points and its perplexities, of samples and of real texts, are from one model, and the same as from many."""
    import transformers

    made: list[weakref.ref] = []

    def counted(kind: Any) -> None:
        load = kind.from_pretrained
        monkeypatch.setattr(kind, "from_pretrained", lambda *names, **how: remember(load(*names, **how)))

    def remember(model: Any) -> Any:
        made.append(weakref.ref(model))
        return model

    evaluation = Evaluation(references=N, metrics=(
        Frechet(features=Pooled(name=causal, length=31)), Perplexity(name=causal, length=31)))
    samples = [f"{text} so" for text in real]
    apart = [points(causal, samples, "last", 31, context.device), nats(causal, samples, 31, context.device).nats]
    counted(transformers.AutoModelForCausalLM)
    counted(transformers.AutoModel)
    evaluation.measure(samples[::-1], "test", DATA, context)
    assert len(made) == 1
    gc.collect()
    assert made[0]() is None
    with held():
        points_of.cache_clear()
        together = [points(causal, samples, "last", 31, context.device), nats(causal, samples, 31, context.device).nats]
        with held():
            nats(causal, real, 31, context.device)
        nats(causal, real, 31, context.device)
    assert len(made) == 2 and all(np.array_equal(one, other) for one, other in zip(apart, together, strict=True))


def test_the_most_agreed_text_is_chosen_by_method_4():
    """Values of shared/spec/token_systems.md, 8.7."""
    a, b, c = ("how can i make new friends ?", "how do i make friends ?", "what is the best way to make friends ?")
    for (reference, hypothesis), value in {(a, b): 0.123005, (b, a): 0.122528, (a, c): 0.069954, (c, a): 0.068144,
                                           (b, c): 0.144498, (c, b): 0.141786}.items():
        assert bleu(reference, hypothesis) == pytest.approx(value, abs=1e-6)
    pairs = list(itertools.combinations([a, b, c], 2))
    assert np.mean([bleu(earlier, later) for earlier, later in pairs]) == pytest.approx(0.112486, abs=1e-6)
    assert np.mean([bleu(later, earlier) for earlier, later in pairs]) == pytest.approx(0.110820, abs=1e-6)
    for length, value in {1: 1.0, 2: 0.221389, 3: 0.575720, 4: 1.0}.items():      # why a text is not asked about itself
        said = " ".join(a.split()[:length])
        assert bleu(said, said) == pytest.approx(value, abs=1e-6)
    risks = [sum(bleu(text, other) for other in (a, b, c) if other != text) for text in (a, b, c)]
    assert risks == pytest.approx([0.192960, 0.267025, 0.209931], abs=1e-6)
    assert agreed([a, b, c]) == b and agreed([a]) == a and agreed(["", a, b]) in (a, b)
    assert bleu("", a) == bleu(a, "") == 0.0
