"""The laptop recipes on texts that no grammar made: a CSV file with sources, by every one of them."""

import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from trainables.config import flat, from_dict, override, to_dict
from trainables.diffusionbert import diffusionbert_laptop
from trainables.evaluation.bleu import Bleu
from trainables.evaluation.oracle import OracleScores
from trainables.evaluation.variety import Variety
from trainables.ld4lg import ld4lg_laptop
from trainables.ld4lg_annealed import ld4lg_annealed_laptop
from trainables.scorelm import scorelm_laptop
from trainables.stages import Context, Store
from trainables.tencdm import tencdm_laptop
from trainables.text.conditions import Source
from trainables.text.corpora import Data, import_files
from trainables.trial import Trial, read_lines, run

RECIPES = [tencdm_laptop, ld4lg_laptop, ld4lg_annealed_laptop, diffusionbert_laptop, scorelm_laptop]


def reading(recipe: Any) -> dict[str, Any]:
    """How a recipe is made to read sources.  Annealed LD4LG diffuses raw encodings, which have no norm to be put to."""
    if recipe is ld4lg_annealed_laptop:
        return {"system.source": Source()}
    return sys.modules[recipe.__module__].SEQUENCE_TO_SEQUENCE


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    return Context(Store(tmp_path_factory.mktemp("store") / "stages"))


@pytest.fixture(scope="module")
def data(context, tmp_path_factory) -> Data:
    """300 descriptions of 60 restaurants, each with what is to be said; some are longer than any story."""
    path: Path = tmp_path_factory.mktemp("texts") / "restaurants.csv"
    rng, lines = random.Random(0), ["said,mr"]
    for number in range(300):
        name, food, price = f"place{number % 60}", rng.choice(["thai", "french", "plain"]), rng.choice(["low", "high"])
        more = " and people come back for more of it" * rng.randrange(8)
        lines.append(f'"{name} serves {food} food at {price} prices{more} ({number}).","name[{name}], food[{food}]"')
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return import_files(f"{path}:said:mr", None, context.store)


def hardly(trial: Trial) -> Trial:
    """The same trial with next to no training, of any stage."""
    steps, warmups = ([path for path in flat(trial) if path.endswith(f"training.{name}")]
                      for name in ("steps", "schedule.warmup"))
    return override(trial, dict.fromkeys(steps, 2) | dict.fromkeys(warmups, 0) | {
        "training.batch": 8, "training.validate_on": 8, "sampling.steps": 2, "sampling.count": 8, "sampling.batch": 8,
        "sampling.candidates": 1, "evaluation.references": 8, "evaluation.metrics": (Variety(), Bleu())})


@pytest.mark.parametrize("reads", [False, True], ids=["alone", "from sources"])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_a_laptop_recipe_knows_that_other_texts_are_no_stories(recipe, reads, data, context):
    trial = override(recipe(data), reading(recipe) if reads else {})
    assert trial.data == data and trial.system.reads_source == reads
    assert not any(isinstance(metric, OracleScores) for metric in trial.evaluation.metrics)
    assert trial.system.length > 2 * recipe().system.length                       # real texts are longer
    assert from_dict(Trial, to_dict(trial)) == trial
    override(trial, {"sampling.count": 500}).check(context)


@pytest.mark.skipif(not os.environ.get("PALIMPSEST_LABS"), reason="takes half a minute: PALIMPSEST_LABS=1 runs it")
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_a_laptop_recipe_goes_from_a_file_with_sources_to_scores(recipe, data, context):
    """At its own sizes: positions, lengths and widths fit together, whatever was learned in two steps."""
    trial = hardly(override(recipe(data), reading(recipe)))
    trial.check(context)
    assert "valid/loss" in run(trial, context)
    lines = read_lines(context.get(trial.samples()) / "samples.jsonl")
    assert len(lines) == 8 and all(line["source"].startswith("name[") for line in lines)
