"""Laws of search spaces: every corner of every shipped space is a valid trial, and points and trials are two views."""

import importlib
import math
from typing import Any

import numpy as np
import pytest
from fake_trial import Linear, Square, Trial

from search_spaces.corners import around, check, corners, count, spell
from search_spaces.domains import Choice, Integers, LogUniform, Space, Uniform, With
from trainables.config import ConfigError, override

SHIPPED = [(name, of) for name in ("tencdm", "ld4lg", "ld4lg_annealed", "diffusionbert", "scorelm")
           for of in ("nuisance", "space")] + [("joint", "space")]
SCALES = ("", "_laptop")


def shipped(name: str, of: str, scale: str) -> tuple[Space, Any]:
    """A shipped space, and the recipe around which it lies."""
    system = "tencdm" if name == "joint" else name
    trial = getattr(importlib.import_module(f"trainables.{system}"), system + scale)()
    return getattr(importlib.import_module(f"search_spaces.{name}"), of)(trial), trial


def draw(space: Space, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return space.draw(lambda name, domain: domain.at(float(rng.random())))


# ---------------------------------------------------------------- the shipped ones


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name, of", SHIPPED)
def test_every_corner_of_every_shipped_space_builds(name, of, scale):
    space, trial = shipped(name, of, scale)
    check(space, trial)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name, of", SHIPPED)
def test_a_recipe_is_a_point_of_its_space(name, of, scale):
    space, trial = shipped(name, of, scale)
    assert override(trial, space.changes(space.point(trial))) == trial


@pytest.mark.parametrize("name, of", SHIPPED)
def test_a_drawn_point_and_its_trial_are_two_views_of_one_thing(name, of):
    space, trial = shipped(name, of, "_laptop")
    for seed in range(20):
        point = draw(space, seed)
        drawn = override(trial, space.changes(point))
        assert space.point(drawn) == point
        assert {parameter.name for parameter in space.parameters()} >= point.keys()


@pytest.mark.parametrize("name", ["tencdm", "ld4lg", "ld4lg_annealed", "diffusionbert", "scorelm", "joint"])
def test_the_paths_that_a_loss_depends_on_exist(name):
    module = importlib.import_module(f"search_spaces.{name}")
    _, trial = shipped(name, "space", "")
    for path in module.LOSS_DEPENDS_ON:
        value: Any = trial
        for part in path.split("."):
            value = getattr(value, part)


def test_the_joint_space_is_the_missions():
    space, _ = shipped("joint", "space", "")
    names = [parameter.name for parameter in space.parameters()]
    assert {"system.encoder", "system.process.schedule", "system.process.schedule[Tangent].d",
            "system.self_conditioning", "system.times.range", "system.times.range[PolynomialRange].power",
            "training.optimizer", "training.optimizer[AdamW].lr", "training.optimizer[Lion].lr"} <= set(names)
    assert space["system.encoder"].names == ("Bert", "Roberta", "T5", "Bart", "Embeddings")      # type: ignore[union-attr]


def test_what_depends_on_a_choice_is_there_with_it_alone():
    """The tangent's coefficient under its schedule, the power under polynomial annealing, a rate by optimizer."""
    space, trial = shipped("joint", "space", "_laptop")
    seen: set[tuple] = set()
    for seed in range(60):
        point = draw(space, seed)
        for choice, option, inner in (("system.process.schedule", "Tangent", "d"),
                                      ("system.times.range", "PolynomialRange", "power"),
                                      ("training.optimizer", "AdamW", "lr"), ("training.optimizer", "Lion", "lr")):
            assert (f"{choice}[{option}].{inner}" in point) == (point[choice] == option)
            seen.add((choice, point[choice]))
        drawn = override(trial, space.changes(point))
        assert type(drawn.training.optimizer).__name__ == point["training.optimizer"]
    assert len(seen) == 3 + 2 + 2
    domains = {parameter.name: parameter.domain for parameter in space.parameters()}
    adam, lion = domains["training.optimizer[AdamW].lr"], domains["training.optimizer[Lion].lr"]
    assert lion.high == pytest.approx(adam.high / 5)                                              # type: ignore[union-attr]


# ---------------------------------------------------------------- domains


NUMBERS = [Uniform(-1.0, 3.0), LogUniform(1e-5, 1e-1), Integers(2, 9), Integers(1, 1000, log=True)]


@pytest.mark.parametrize("domain", NUMBERS, ids=repr)
def test_a_number_s_share_of_its_range_is_its_place(domain):
    values = [domain.at(share) for share in np.linspace(0, 1, 301)]
    assert values[0] == pytest.approx(domain.low) and values[-1] == pytest.approx(domain.high)
    assert values == sorted(values) and all(domain.low <= value <= domain.high for value in values)
    assert domain.share(domain.low) == 0 and domain.share(domain.high) == pytest.approx(1)
    if isinstance(domain, Integers):
        assert set(values) <= set(range(domain.low, domain.high + 1))
        if not domain.log:
            assert set(values) == set(range(domain.low, domain.high + 1))
    else:
        for share in (0.1, 0.5, 0.9):
            assert domain.share(domain.at(share)) == pytest.approx(share)


def test_whole_numbers_are_equally_likely():
    values = [Integers(1, 4).at((i + 0.5) / 4000) for i in range(4000)]
    assert [values.count(n) for n in (1, 2, 3, 4)] == [1000] * 4
    assert Choice("a", "b", "c").at(0.99999) == "c" and Choice("a", "b").at(1.0) == "b"


@pytest.mark.parametrize("wrong", [
    lambda: Uniform(1.0, 1.0), lambda: Uniform(2.0, 1.0), lambda: Uniform(0.0, math.inf), lambda: LogUniform(0.0, 1.0),
    lambda: Integers(1, 1), lambda: Integers(0, 4, log=True), lambda: Integers(1, 2.5),      # type: ignore[arg-type]
    lambda: Choice(), lambda: Choice(1, 1), lambda: Choice(Linear(), Linear(gain=2.0)),
    lambda: With(3, {"x": Uniform(0.0, 1.0)}),
    lambda: Space({"a": 3}),                                                                 # type: ignore[dict-item]
    lambda: Space({"system": Choice(1), "system.kind": Choice("a")}),
])
def test_domains_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError):
        wrong()


def test_true_and_one_are_two_options():
    choice = Choice(True, 1)
    assert choice.option(True).value is True and choice.option(1).value == 1 and choice.option(1).value is not True


def test_options_of_one_class_have_names():
    choice = Choice(With(Linear(gain=1.0), label="one"), With(Linear(gain=2.0), label="two"))
    space = Space({"system.shape": choice})
    assert space.point(override(Trial(), {"system.shape": Linear(gain=2.0)})) == {"system.shape": "two"}
    assert space.changes({"system.shape": "one"}) == {"system.shape": Linear(gain=1.0)}


# ---------------------------------------------------------------- spaces


SPACE = Space({
    "training.steps": Integers(5, 20),
    "system.shape": Choice(With(Linear(), {"gain": LogUniform(0.1, 10.0)}), Square()),
    "system.kind": Choice("plain", "fancy"),
})


def test_corners_are_all_ends_of_all_branches():
    found = list(corners(SPACE))
    assert len(found) == count(SPACE) == 2 * (2 + 1) * 2
    assert len({spell(corner) for corner in found}) == len(found)
    for corner in found:
        assert ("system.shape[Linear].gain" in corner) == (corner["system.shape"] == "Linear")
        assert corner["training.steps"] in (5, 20)


def test_a_space_with_too_many_corners_is_checked_in_pairs():
    """A conflict of any two domains is still met."""
    space = Space({f"p{i}": Uniform(0.0, 1.0) for i in range(20)})
    found = list(corners(space))
    assert len(found) == 4 * 20 * 19 / 2
    for one, other in (("p3", "p17"), ("p0", "p1")):
        assert {(corner[one], corner[other]) for corner in found} == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize("space, words", [
    (Space({"training.stepz": Integers(1, 9)}),
     "training.stepz: Training has no field 'stepz' (did you mean 'steps'?)"),
    (Space({"system.shape.gain": Uniform(-1.0, 2.0)}), "gain must be positive, not -1.0"),
    (Space({"training.steps": Uniform(5.0, 20.0)}), "training.steps: must be int, not 5.0"),
    (Space({"system.kind": Choice("plain", "purple")}), "system.kind"),
    (Space({"system.shape": Choice(With(Square(), {"gain": Uniform(1.0, 3.0)}))}), "none of the options Square"),
    (Space({"training.steps": Integers(20, 30)}), "training.steps: is 10, which lies outside"),
    (Space({"system.shape": Choice(With(Linear(), {"gainz": Uniform(0.5, 1.0)}))}), "no field 'gainz'"),
])
def test_a_space_that_does_not_fit_is_an_error_with_its_path(space, words):
    with pytest.raises(ConfigError) as error:
        check(space, Trial())
    assert words in str(error.value)


def test_an_error_names_the_corner():
    with pytest.raises(ConfigError, match=r"gain must be positive, not 0.0 \[at the corner system.shape.gain = 0, "):
        check(Space({"system.shape.gain": Uniform(0.0, 2.0), "training.steps": Integers(1, 20)}), Trial())


@pytest.mark.parametrize("point, words", [
    ({"training.steps": 6, "system.shape": "Square"}, "system.kind: is missing"),
    ({"training.steps": 6, "system.shape": "Square", "system.kind": "plain", "more": 1}, "more: is no parameter"),
    ({"training.steps": 6, "system.shape": "Square", "system.shape[Linear].gain": 1.0, "system.kind": "plain"},
     "is no parameter of this point"),
    ({"training.steps": 6, "system.shape": "Cube", "system.kind": "plain"}, "is one of Linear, Square, not 'Cube'"),
    ({"training.steps": 60, "system.shape": "Square", "system.kind": "plain"}, "lies outside"),
    ({"training.steps": 6.5, "system.shape": "Square", "system.kind": "plain"}, "lies outside"),
])
def test_a_point_of_another_space_is_refused(point, words):
    with pytest.raises(ConfigError) as error:
        SPACE.changes(point)
    assert words in str(error.value)


def test_numbers_at_an_end_are_said():
    def edges(gain: float, steps: int) -> dict:
        return SPACE.edges({"system.shape": "Linear", "system.shape[Linear].gain": gain, "training.steps": steps,
                            "system.kind": "plain"})

    assert edges(1.0, 12) == {}
    assert edges(0.101, 20) == {"system.shape[Linear].gain": "lower", "training.steps": "upper"}
    assert edges(9.9, 12) == {"system.shape[Linear].gain": "upper"}
    assert SPACE.edges({"system.shape": "Square", "training.steps": 12, "system.kind": "plain"}) == {}


def test_points_around_a_point_move_one_domain():
    base = SPACE.point(Trial())
    moved = [{name.partition("[")[0] for name in base.keys() | other.keys() if base.get(name) != other.get(name)}
             for other in around(SPACE, base)]
    assert {name for names in moved for name in names} == set(SPACE) and max(map(len, moved)) == 1


def test_spaces_add_up():
    more = SPACE | {"samples_drawn": Integers(1, 9)}
    assert set(more) == {*SPACE, "samples_drawn"} and set(more.without("system.shape", "system.kind")) == {
        "training.steps", "samples_drawn"}
