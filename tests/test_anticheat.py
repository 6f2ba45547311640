"""Cheats that please one metric must not please them all: an anti-cheat table, on real texts where they are.

Every row is a set of texts; `worst(values)` is its departure from real text in the metric that likes it least.
Real texts that nobody has seen must come first, every cheat far behind them, and every single metric must be shown
to miss some cheat: otherwise the set would be larger than it need be.
"""

import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from trainables.config import override
from trainables.evaluation.evaluation import Evaluation
from trainables.evaluation.features import JudgeStates
from trainables.evaluation.frechet import Frechet
from trainables.evaluation.judge import Judge, JudgeNll
from trainables.evaluation.mauve import Mauve
from trainables.evaluation.memorisation import Memorisation
from trainables.evaluation.oracle import OracleScores
from trainables.evaluation.real import Real
from trainables.evaluation.variety import Variety
from trainables.evaluation.verdict import departures, worst
from trainables.stages import Context, Store
from trainables.text.corpora import Data, Stories, import_files, read_texts

E2E = Path(__file__).parent.parent.parent / "shared/data/e2e/devset.csv"
N = 250


def chain(texts: list[str], order: int, temperature: float, rng: random.Random) -> list[str]:
    """N texts from an n-gram model: each word given the order - 1 before it, from counts ** (1 / temperature)."""
    counts: dict[tuple, Counter] = defaultdict(Counter)
    for text in texts:
        said = ["<"] * (order - 1) + text.split() + [">"]
        for place in range(order - 1, len(said)):
            counts[tuple(said[place - order + 1:place])][said[place]] += 1
    written = []
    while len(written) < N:
        said = ["<"] * (order - 1)
        while said[-1] != ">" and len(said) < 100:
            seen = counts[tuple(said[len(said) - order + 1:])]
            said.append(rng.choices(list(seen), [count ** (1 / temperature) for count in seen.values()])[0])
        written.append(" ".join(word for word in said if word not in "<>"))
    return written


def shuffled(text: str, rng: random.Random) -> str:
    said = text.split()
    rng.shuffle(said)
    return " ".join(said)


def rows(folder: Path, held_out: list[str]) -> dict[str, list[str]]:
    """The table's rows, N texts each; `held_out` is real and has been shown to nobody."""
    train, rng = read_texts(folder, "train"), random.Random(0)
    return {
        "held-out real": held_out,
        "bigram": chain(train, 2, 1.0, rng),
        "trigram": chain(train, 3, 1.0, rng),
        "trigram, T = 0.3": chain(train, 3, 0.3, rng),
        "near copies": chain(train, 6, 1.0, rng),
        "training copies": rng.sample(train, N),
        "shuffled words": [shuffled(text, rng) for text in held_out],
        "few texts repeated": (held_out[:15] * N)[:N],
        "one sentence repeated": [" ".join([text.split(".")[0] + "."] * 4) for text in held_out],
    }


def table(data: Data, evaluation: Evaluation, context: Context) -> dict[str, dict[str, float]]:
    """The values of every row."""
    held_out = Real(data=data, split="valid", count=2 * N).texts(context)[N:]    # the first N are the baseline's
    assert len(held_out) == N
    return {name: evaluation.score(texts, "test", data, context)
            for name, texts in rows(context.get(data), held_out).items()}


QUICK = override(Judge(), {"training.steps": 150})
CLOUD = JudgeStates(judge=QUICK)
SET = (Mauve(features=CLOUD, buckets=15), Frechet(features=CLOUD), JudgeNll(judge=QUICK),
       Variety(hypotheses=100, references=30), Memorisation())


@pytest.fixture(scope="module")
def e2e(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    if not E2E.exists():
        pytest.skip(f"the E2E texts are not at {E2E}")
    context = Context(Store(tmp_path_factory.mktemp("store")))
    data = override(import_files(f"{E2E}:ref", None, context.store), {"judge": 0.2, "valid": 0.15})
    return table(data, Evaluation(metrics=SET, references=N), context)


def test_the_set_puts_real_texts_first(e2e: dict[str, dict[str, float]]):
    suspicion = {name: worst(values) for name, values in e2e.items()}
    real = suspicion.pop("held-out real")
    assert real < 2 and min(suspicion.values()) > 3, suspicion


def test_the_set_orders_cheats_by_how_bad_they_are(e2e: dict[str, dict[str, float]]):
    suspicion = {name: worst(values) for name, values in e2e.items()}
    for better, worse in (("trigram", "bigram"), ("bigram", "shuffled words"), ("trigram", "trigram, T = 0.3"),
                          ("near copies", "training copies"), ("trigram", "few texts repeated"),
                          ("bigram", "one sentence repeated")):
        assert suspicion[better] < suspicion[worse], (better, worse, suspicion)


def test_every_metric_alone_is_fooled(e2e: dict[str, dict[str, float]]):
    """Each value takes some cheat for real: no further from it than tolerance, or than unseen real texts are."""
    real = departures(e2e["held-out real"])
    for value in real:
        fooled_by = [name for name, values in e2e.items()
                     if name != "held-out real" and departures(values)[value] <= max(1.0, real[value])]
        assert fooled_by, value


def test_what_each_metric_is_there_for(e2e: dict[str, dict[str, float]]):
    dull = e2e["trigram, T = 0.3"]
    assert dull["judge_nll"] < dull["judge_nll_real"] - 0.5            # the judge likes dull texts better
    assert dull["diversity"] < 0.2 * dull["diversity_real"] and dull["mauve"] < 0.2

    copies = {name: value for name, value in e2e["training copies"].items()
              if not name.startswith(("memorisation", "copied"))}
    assert worst(copies) < 2                                           # without memorisation, copies are real texts
    assert e2e["training copies"]["memorisation"] == 1 == e2e["training copies"]["copied"]

    shuffled = e2e["shuffled words"]                                   # the same words: entropy cannot see it
    assert departures(shuffled)["entropy"] < 1 < 10 < departures(shuffled)["judge_nll"]


def test_the_oracle_agrees(tmp_path: Path):
    """Where the truth is known, what the set calls far from real is what the grammar calls wrong."""
    context = Context(Store(tmp_path))
    metrics = (OracleScores(), *(metric for metric in SET if not isinstance(metric, Mauve)))
    stories = table(Stories(size=12_000), Evaluation(metrics=metrics, references=N), context)
    assert worst(stories["held-out real"]) < 2 and stories["held-out real"]["illegal"] == 0
    suspicion = {name: worst(values) for name, values in stories.items() if name != "held-out real"}
    assert min(suspicion.values()) > 3, suspicion
    illegal = [stories[name]["illegal"] for name in ("near copies", "trigram", "bigram", "shuffled words")]
    assert illegal == sorted(illegal) and illegal[0] < illegal[1] < illegal[-1]
