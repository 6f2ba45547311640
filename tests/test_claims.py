"""Claims: read strictly, and judged by paired seeds with one correction over all of them."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_trial import recipe

from studies import claims as shipped
from studies.engine.answers import corrected, noninferiority_p, verdict
from studies.engine.ask import main
from studies.engine.claims import Claim, check_claim, chosen, read_claims
from studies.engine.study import Arm, BadInput, Minimise, Scale, Study, Watch
from trainables.config import ConfigError

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")]

STUDY = Study(
    name="toy", question="Which kind?", scales={"laptop": Scale(recipe)}, seeds=4,
    arms={"plain": Arm(), "fancy": Arm({"system.kind": "fancy"}), "odd": Arm({"system.kind": "odd"})},
    report=(Minimise("test/error"), Watch("valid/loss"), Watch("threads")))
SAID: dict[str, Any] = dict(says="It helps", paper="A paper, Table 1", study="toy", arm="fancy", base="plain",
                            metric="test/error", direction="less")


def claim(name: str = "helps", **changes: Any) -> Claim:
    said: dict[str, Any] = {"name": name} | SAID | changes
    return Claim(**said)


def write(path: Path, *claims: dict) -> Path:
    """A file of claims; JSON is YAML."""
    path.write_text(json.dumps({entry.get("name", "helps"): SAID | {
        name: value for name, value in entry.items() if name != "name"} for entry in claims or ({},)}))
    return path


def load(name: str) -> Study:
    assert name == "toy"
    return STUDY


# ---------------------------------------------------------------- the file


def test_the_shipped_claims_ask_every_study_and_name_their_paper():
    claims = read_claims(shipped.HERE / "claims.yaml", shipped.STUDIES, shipped.load)
    asked = set(shipped.STUDIES) - {"compare_conditional", "compare_classes"}      # no paper compares these systems
    assert {claim.study for claim in claims} == asked and len(asked) >= 10
    for claim in claims:
        assert claim.paper and claim.says[0].isupper() and not claim.says.endswith("."), claim.name
    for text in ("contextual", "tangent", "self-conditioning", "annealing", "spindle", "packing", "lion", "fast-"):
        assert any(claim.name.startswith(text) for claim in claims), text
    schedules = {claim.base for claim in claims if claim.name.startswith("tangent-beats-")}
    assert schedules == {"VP", "cosine", "sqrt"}
    controls = [claim for claim in claims if claim.base.endswith(" more")]
    assert controls and all(claim.base == claim.arm.replace("first", "more") and claim.at for claim in controls)


@pytest.mark.parametrize(("changes", "words"), [
    ({"study": "tay"}, "helps.study: there is no study 'tay' (did you mean 'toy'?)"),
    ({"arm": "fency"}, "helps.arm: toy has no arm 'fency' (did you mean 'fancy'?)"),
    ({"base": "plane"}, "helps.base: toy has no arm 'plane' (did you mean 'plain'?)"),
    ({"base": "fancy"}, "helps.base: must be another arm than 'fancy'"),
    ({"metric": "test/eror"}, "helps.metric: toy does not report 'test/eror' (did you mean 'test/error'?)"),
    ({"scale": "paper"}, "helps.scale: toy has no scale 'paper'"),
    ({"direction": "fewer"}, "helps.direction: must be 'less' | 'more' | 'same' | 'not more' | 'not less'"),
    ({"direction": "same"}, "helps.margin: direction 'same' needs one"),
    ({"margin": -0.1}, "helps: margin is a positive number, in the metric's unit, not -0.1"),
    ({"margin": "wide"}, "helps.margin: must be float, not 'wide'"),
    ({"at": 5}, "helps.at: test/error is measured once, at the end"),
    ({"metric": "valid/loss", "at": 11}, "helps.at: training ends after 10 steps, before 11"),
    ({"arms": "fancy"}, "helps.arms: Claim has no field 'arms' (did you mean 'arm'?)"),
])
def test_what_nobody_knows_is_one_line_and_exit_code_2(changes, words, tmp_path, capsys):
    file = write(tmp_path / "claims.yaml", changes)
    with pytest.raises(SystemExit) as ended:
        main(file, ["toy"], load, ["--dry-run", "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: ") and words in error and error.count("\n") == 1


@pytest.mark.parametrize(("text", "words"), [
    ("", "expected a mapping"), ("- a", "expected a mapping"), ("a: [", "claims.yaml: "),
    ("a: b", "a: must be a mapping of name, says"), ("a: {says: x}", "a: Claim needs paper, study"),
    ("a: {says: x}\nb: {}\na: {}", "'a' is said twice"), ("a: {says: x, says: y}", "'says' is said twice"),
    ("'a, b': {says: x}", "has no comma")])
def test_a_file_that_is_none(text, words, tmp_path):
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises((BadInput, ConfigError), match=words):
        read_claims(tmp_path / "claims.yaml", ["toy"], load)
    (tmp_path / "claims.yaml").write_bytes("a: {says: sm\xf8rrebr\xf8d}".encode("latin-1"))
    with pytest.raises(BadInput, match="claims.yaml: not UTF-8: byte 0xf8 at 12"):
        read_claims(tmp_path / "claims.yaml", ["toy"], load)
    with pytest.raises(BadInput, match="No such file"):
        read_claims(tmp_path / "nothing.yaml", ["toy"], load)


def test_only_and_the_steps_that_a_curve_has(tmp_path):
    claims = [claim("one"), claim("two")]
    assert chosen(claims, None) == claims and chosen(claims, "two, two") == [claims[1]]
    for text, words in (("tow", "did you mean 'two'"), (" ,", "name at least one")):
        with pytest.raises(BadInput, match=words):
            chosen(claims, text)
    (annealing,) = (each for each in read_claims(shipped.HERE / "claims.yaml", shipped.STUDIES, shipped.load)
                    if each.name == "annealing-learns-faster")
    study = shipped.load(annealing.study)
    with pytest.raises(ConfigError, match="is recorded every 500 steps, and not after 600"):
        check_claim(replace(annealing, at=600), study)
    check_claim(annealing, study, ["training.steps=500"])
    with pytest.raises(ConfigError, match="training ends after 400 steps, before 500"):
        check_claim(annealing, study, ["training.steps=400"])


# ---------------------------------------------------------------- the answer

CLEAR, SMALL, NOISY = [-1.0, -1.1, -0.9, -1.05], [0.011, -0.01, 0.002, -0.004], [-1.0, 1.2, -0.3, 0.4]


@pytest.mark.parametrize(("direction", "values", "expected"), [
    ("less", CLEAR, "supported"), ("more", CLEAR, "refuted"), ("same", CLEAR, "refuted"),
    ("not more", CLEAR, "supported"), ("not less", CLEAR, "refuted"),
    ("less", SMALL, "refuted"), ("more", SMALL, "refuted"), ("same", SMALL, "supported"),
    ("not more", SMALL, "supported"), ("not less", SMALL, "supported"),
    ("less", NOISY, "undecided"), ("same", NOISY, "undecided"), ("not more", NOISY, "undecided"),
    ("less", [], "undecided"), ("less", [-1.0], "undecided"), ("less", [-1.0, -1.0], "undecided"),
    ("less", [-1.0, -1.0, -1.0], "supported"), ("less", [math.nan, 1.0, 1.0], "undecided"),
])
def test_supported_refuted_or_undecided(direction, values, expected):
    asked = claim(direction=direction, margin=0.05)
    _, adjusted, within = corrected({asked: values})
    assert verdict(asked, values, adjusted.get("helps"), within.get("helps")) == expected


def test_without_a_margin_a_small_difference_refutes_nothing():
    asked = claim()
    _, adjusted, within = corrected({asked: SMALL})
    assert within == {} and verdict(asked, SMALL, adjusted["helps"], None) == "undecided"


def test_the_correction_is_over_all_claims():
    """Alone each is significant; two together are not."""
    values = [-1.0, -0.6, -1.3, -0.35]
    one, two = claim("one"), claim("two", arm="odd")
    p, alone, _ = corrected({one: values})
    _, both, _ = corrected({one: values, two: values})
    assert alone["one"] == p["one"] < 0.05 / 1.5 and both["one"] == both["two"] == pytest.approx(2 * p["one"])
    many = {claim(f"c{i}"): values for i in range(4)}
    _, adjusted, _ = corrected(many)
    assert {verdict(each, values, adjusted[each.name], None) for each in many} == {"undecided"}
    assert verdict(one, values, alone["one"], None) == "supported"


def test_where_nothing_differs_nothing_is_said_in_95_of_100_inquiries():
    """Five claims at four seeds, 100 times: one or more is called in 5 %; of those at the margin's edge, too."""
    generator = np.random.default_rng(0)
    claims = [claim(f"c{i}") for i in range(5)]
    edge = [replace(each, direction="not more", margin=0.5) for each in claims]
    called = wrong = 0
    for _ in range(100):
        drawn = {each: generator.normal(size=4).tolist() for each in claims}
        _, adjusted, _ = corrected(drawn)
        called += any(verdict(each, some, adjusted[each.name], None) != "undecided" for each, some in drawn.items())
        moved = {each: [value + 0.5 for value in generator.normal(size=4)] for each in edge}
        _, _, within = corrected(moved)
        wrong += any(p < 0.05 for p in within.values())
    assert 1 <= called <= 11 and 1 <= wrong <= 11


def test_no_worse_is_a_one_sided_test():
    assert noninferiority_p([0.5, 0.5, 0.5], 1.0, -1) == 0.0 and noninferiority_p([2.0, 2.0, 2.0], 1.0, -1) == 1.0
    assert noninferiority_p([0.9, 1.0, 1.1], 1.0, -1) == pytest.approx(0.5)
    assert noninferiority_p([-0.9, -1.0, -1.1], 1.0, 1) == pytest.approx(0.5)
