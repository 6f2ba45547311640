"""Laws of configs: frozen and typed, changed by path with every check, equal exactly when their fingerprints are."""

import copy
import dataclasses
import json
from typing import ClassVar, Literal

import pytest

from trainables.config import (
    ConfigError,
    assign,
    config,
    differences,
    fingerprint,
    flat,
    from_dict,
    override,
    to_dict,
)
from trainables.diffusion.gaussian import Gaussian
from trainables.diffusion.schedules import Cosine, Tangent
from trainables.tencdm import tencdm, tencdm_laptop
from trainables.text.corpora import Stories
from trainables.text.encoders import Bert, Embeddings, Roberta
from trainables.training.optimizers import AdamW, Lion
from trainables.trial import Trial


@config
class Round:
    radius: float = 1.0

    def __post_init__(self):
        if self.radius <= 0:
            raise ValueError(f"radius must be positive, not {self.radius}")


@config
class Box:
    sides: tuple[float, ...] = (1.0, 2.0)
    corner: tuple[int, str] = (0, "sharp")


@config
class Paint:
    colour: Literal["red", "green"] = "red"
    name: str = "plain"
    coats: int = 1
    glossy: bool = False


@config
class Thing:
    shape: Round | Box = Round()
    paint: Paint = Paint()
    parts: tuple[Round | Box, ...] = ()
    low: int = 0
    high: int = 10

    def __post_init__(self):
        if self.low >= self.high:
            raise ValueError(f"low must be below high, not {self.low} and {self.high}")


@config
class Versioned:
    x: int = 0
    version: ClassVar[int] = 1


def refused(action, *words: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        action()
    for word in words:
        assert word in str(caught.value), f"{word!r} not in {str(caught.value)!r}"
    return caught.value


# ---------------------------------------------------------------- values


def test_values_are_frozen_keyword_only_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Round().radius = 2.0                                              # type: ignore[misc]
    with pytest.raises(TypeError):
        Round(2.0)                                                        # type: ignore[call-arg, misc]
    assert {Thing(): 1}[Thing()] == 1 and Thing() != Thing(low=1)


def test_only_int_to_float_and_list_to_tuple_are_converted():
    assert type(Round(radius=2).radius) is float
    assert Box(sides=[3, 4]).sides == (3.0, 4.0)                          # type: ignore[arg-type]
    refused(lambda: Round(radius="2"), "radius", "float", "'2'")          # type: ignore[arg-type]
    refused(lambda: Round(radius=True), "radius", "True (bool)")
    refused(lambda: Paint(coats=1.0), "coats", "int", "1.0 (float)")      # type: ignore[arg-type]
    refused(lambda: Paint(coats=True), "coats", "True (bool)")
    refused(lambda: Paint(glossy=1), "glossy", "bool", "1 (int)")         # type: ignore[arg-type]
    refused(lambda: Paint(name=None), "name", "None")                     # type: ignore[arg-type]
    refused(lambda: Paint(colour="blue"), "colour", "'red' | 'green'", "'blue'")       # type: ignore[arg-type]
    refused(lambda: Box(corner=(1,)), "corner", "2 entries, not 1")       # type: ignore[arg-type]
    refused(lambda: Thing(shape=Paint()), "shape", "Round | Box", "Paint")             # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_are_finite(value):
    refused(lambda: Round(radius=value), "radius", "finite")
    refused(lambda: override(Thing(), {"shape.radius": value}), "shape.radius", "finite")


# ---------------------------------------------------------------- override


def test_override_rebuilds_from_leaf_to_root():
    thing = override(Thing(), {"shape": Box(), "shape.sides": (5, 6), "paint.coats": 3})
    assert thing == Thing(shape=Box(sides=(5.0, 6.0)), paint=Paint(coats=3))
    assert Thing() == Thing(shape=Round())                                # the value it was made from is as it was


def test_a_whole_component_and_its_inside_in_either_order():
    once, again = {"shape": Box(), "shape.sides": (5.0,)}, {"shape.sides": (5.0,), "shape": Box()}
    assert override(Thing(), once) == override(Thing(), again) == Thing(shape=Box(sides=(5.0,)))


def test_changes_that_are_only_right_together():
    """One after the other, the first would be refused."""
    refused(lambda: override(Thing(), {"low": 20}), "low", "low must be below high", "20 and 10")
    assert override(Thing(), {"low": 20, "high": 30}) == Thing(low=20, high=30)
    trial = tencdm_laptop()
    refused(lambda: override(trial, {"training.steps": 50}), "training.steps", "warmup 100 is longer")
    short = override(trial, {"training.steps": 50, "training.schedule.warmup": 10})
    assert short.training.steps == 50 and short.training.schedule.warmup == 10


def test_checks_of_the_root_run_when_a_leaf_changes():
    error = refused(lambda: override(tencdm(), {"system.network.positions": 32}), "length must lie in 4..32")
    assert error.path == "system.network.positions"
    error = refused(lambda: override(tencdm(), {"system.network.layers": 7}), "layers must be even, not 7")
    assert error.path == "system.network.layers"


def test_errors_name_the_path_the_value_and_a_near_miss():
    trial = tencdm_laptop()
    refused(lambda: override(trial, {"training.stepz": 3}), "training.stepz", "Training has no field", "'steps'")
    refused(lambda: override(trial, {"trainning.steps": 3}), "trainning", "Trial has no field", "'training'")
    refused(lambda: override(trial, {"seed.x": 3}), "seed.x", "seed is 0 (int) and has no fields")
    refused(lambda: override(trial, {"training.optimizer.lr": "big"}), "training.optimizer.lr", "float", "'big' (str)")
    refused(lambda: override(trial, {"training.optimizer": Tangent()}), "training.optimizer", "AdamW | Lion", "Tangent")


def test_an_error_survives_the_way_between_processes():
    error = copy.copy(ConfigError("a.b", "must be 1"))            # by what pickle would ask it for
    assert (error.path, error.problem, str(error)) == ("a.b", "must be 1", "a.b: must be 1")


# ---------------------------------------------------------------- assign


@pytest.mark.parametrize(("text", "expected"), [
    ("shape.radius=0.5", Thing(shape=Round(radius=0.5))),
    ("shape.radius = 5e-1", Thing(shape=Round(radius=0.5))),
    ("low=-3", Thing(low=-3)),
    ("paint.glossy=true", Thing(paint=Paint(glossy=True))),
    ("paint.glossy=False", Thing(paint=Paint(glossy=False))),
    ("paint.colour=green", Thing(paint=Paint(colour="green"))),
    ("paint.name=a=b, 3", Thing(paint=Paint(name="a=b, 3"))),
    ("paint.name=true", Thing(paint=Paint(name="true"))),
    ("paint=Paint(colour=green, glossy=true, name=mat)", Thing(paint=Paint(colour="green", glossy=True, name="mat"))),
    ("paint=Paint(colour='green', name='two words')", Thing(paint=Paint(colour="green", name="two words"))),
    ("shape=Box", Thing(shape=Box())),
    ("shape=Box()", Thing(shape=Box())),
    ("shape=Box(sides=(1, 2, 3))", Thing(shape=Box(sides=(1.0, 2.0, 3.0)))),
    ("parts=(Round, Box(sides=(1,)), Round(radius=2))", Thing(parts=(Round(), Box(sides=(1.0,)), Round(radius=2.0)))),
    ("parts=()", Thing(parts=())),
])
def test_a_value_is_read_as_its_field_says(text, expected):
    assert assign(Thing(), [text]) == expected


def test_assignments_build_on_each_other_and_are_checked_together():
    assert assign(Thing(), ["shape=Box", "shape.sides=(7,)"]) == Thing(shape=Box(sides=(7.0,)))
    trial = assign(tencdm(), ["system.process=Gaussian(schedule=Tangent(d=5), predicts=v)", "training.optimizer=Lion"])
    assert trial.system.process == Gaussian(schedule=Tangent(d=5.0), predicts="v")
    assert isinstance(trial.training.optimizer, Lion)


@pytest.mark.parametrize(("text", "words"), [
    ("low", ("path=value", "'low'")),
    ("=3", ("path=value",)),
    ("low=three", ("low", "must be int", "'three'")),
    ("low=1.5", ("low", "must be int", "1.5 (float)")),
    ("low=1 2", ("low", "cannot read '1 2'")),
    ("low=1+1", ("low", "cannot read '1 + 1'", "int")),
    ("low=11", ("low", "low must be below high, not 11 and 10")),
    ("lo=1", ("lo", "Thing has no field", "'low'")),
    ("shape=Bax", ("shape", "'Bax' is none of Round, Box", "'Box'")),
    ("shape=Round(2)", ("shape", "Name(field=value")),
    ("shape=Round(radius=-1)", ("shape", "radius must be positive, not -1")),
    ("shape=Round(radius=big)", ("shape.radius", "float", "'big'")),
    ("shape=Round(radio=1)", ("shape.radio", "Round has no field", "'radius'")),
    ("shape=Round(**x)", ("shape", "no field '**'")),
    ("shape=os.getcwd()", ("shape", "write a component as Name")),
    ("shape=3", ("shape", "Round | Box", "3 (int)")),
    ("paint.colour=blue", ("paint.colour", "'red' | 'green'", "'blue'")),
    ("paint.glossy=yes", ("paint.glossy", "bool", "'yes'")),
    ("paint.name.x=3", ("paint.name", "has no fields")),
    ("parts=(Round, Bix)", ("parts", "'Bix' is none of Round, Box")),
])
def test_a_bad_assignment_is_refused_by_path(text, words):
    refused(lambda: assign(Thing(), [text]), *words)


# ---------------------------------------------------------------- flat, differences, dicts


def test_flat_says_every_leaf_and_every_choice():
    assert flat(Thing(shape=Box(), parts=(Round(),))) == {
        "shape": "Box", "shape.sides": [1.0, 2.0], "shape.corner": [0, "sharp"],
        "paint.colour": "red", "paint.name": "plain", "paint.coats": 1, "paint.glossy": False,
        "parts": [{"class": "Round", "radius": 1.0}], "low": 0, "high": 10}
    leaves = flat(tencdm())
    assert leaves["system.process.schedule"] == "Tangent" and leaves["system.process.schedule.d"] == 9.0
    json.dumps(leaves, allow_nan=False)


@pytest.mark.parametrize("recipe", [tencdm, tencdm_laptop])
def test_every_flat_path_is_a_path_of_assign(recipe):
    """What is shown is what can be set: scalars said again change nothing."""
    trial = recipe()
    said = [f"{path}={value}" for path, value in flat(trial).items() if isinstance(value, (bool, int, float))]
    assert len(said) > 30 and assign(trial, said) == trial


def test_differences_name_what_differs_and_a_swapped_component_as_it_is_written():
    trial = tencdm_laptop()
    assert differences(trial, trial) == {}
    assert differences(trial, override(trial, {"training.steps": 500, "seed": 1})) == {"training.steps": 500, "seed": 1}
    cosine = override(trial, {"system.process.schedule": Cosine()})
    assert differences(trial, cosine) == {"system.process.schedule": "Cosine"}
    assert differences(cosine, trial) == {"system.process.schedule": "Tangent(d=2.0)"}     # with what is not as usual
    small = Bert(weights=trial.system.encoder.weights)                    # type: ignore[union-attr]
    assert differences(trial, override(trial, {"system.encoder": Embeddings(of=small)})) == {
        "system.encoder": "Embeddings"}


@pytest.mark.parametrize("recipe", [tencdm, tencdm_laptop])
@pytest.mark.parametrize("changes", [
    {}, {"seed": 3}, {"system.encoder": Embeddings(of=Roberta()), "data": Stories(size=100)}])
def test_a_recipe_comes_back_from_json(recipe, changes):
    trial = override(recipe(), changes)
    back = from_dict(Trial, json.loads(json.dumps(to_dict(trial), allow_nan=False)))
    assert back == trial and hash(back) == hash(trial) and fingerprint(back) == fingerprint(trial)


def test_a_dict_cannot_name_what_the_annotations_do_not():
    said = to_dict(Thing(parts=(Round(),)))
    refused(lambda: from_dict(Thing, {**said, "class": "Paint"}), "'Paint' is none of Thing")
    refused(lambda: from_dict(Thing, {**said, "shape": {"class": "Rund"}}), "shape", "'Rund' is none of", "'Round'")
    refused(lambda: from_dict(Thing, {**said, "shape": {"class": "Path"}}), "shape", "'Path' is none of")
    refused(lambda: from_dict(Thing, {**said, "shap": 1}), "shap", "Thing has no field", "'shape'")
    refused(lambda: from_dict(Thing, {**said, "shape": {"class": "Round", "radius": -1}}), "shape", "positive, not -1")
    refused(lambda: from_dict(Thing, {**said, "paint": {"class": "Paint", "coats": "x"}}), "paint.coats", "'x'")
    refused(lambda: from_dict(Thing, {**said, "shape": {"class": "Box", "corner": [1]}}), "shape.corner", "2 entries")
    refused(lambda: from_dict(Thing, {**said, "low": [1, 2]}), "low", "int")
    refused(lambda: from_dict(Stories, {"class": "Stories", "size": 1}), "at least 100")


# ---------------------------------------------------------------- fingerprints


def test_fingerprints_are_equal_exactly_when_values_are():
    things = [Thing(), Thing(low=1), Thing(shape=Round(radius=2)), Thing(shape=Box()), Thing(paint=Paint(name="x")),
              Thing(parts=(Round(),)), Thing(parts=(Round(), Round())), Thing(parts=(Box(),))]
    for i, one in enumerate(things):
        for j, other in enumerate(things):
            assert (fingerprint(one) == fingerprint(other)) == (one == other) == (i == j)
    assert fingerprint(Round(radius=2)) == fingerprint(Round(radius=2.0))
    assert fingerprint(Box(sides=(0.0,))) == fingerprint(Box(sides=(-0.0,)))


def test_a_class_and_its_version_are_part_of_the_identity(monkeypatch):
    assert fingerprint(AdamW(lr=1e-3)) != fingerprint(Lion(lr=1e-3))
    assert fingerprint(Thing(shape=Round())) != fingerprint(Thing(shape=Box()))
    before = fingerprint(Versioned()), fingerprint(Versioned(x=1))
    monkeypatch.setattr(Versioned, "version", 2)
    assert len({*before, fingerprint(Versioned()), fingerprint(Versioned(x=1))}) == 4


def test_every_leaf_of_a_recipe_is_part_of_its_fingerprint():
    trial = tencdm_laptop()
    seen = {fingerprint(trial)}
    changed = 0
    for path, value in flat(trial).items():
        for other in _others(value):
            try:
                seen.add(fingerprint(override(trial, {path: other})))
                changed += 1
                break
            except ConfigError:
                continue
    assert changed > 50 and len(seen) == changed + 1


def _others(value):
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [other for other in (value * 2, value + 1, value / 2, value - 1) if other != value]
    return [f"{value}x"] if isinstance(value, str) else []
