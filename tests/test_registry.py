"""The registry: the best cell of a study becomes a generator there, once, and writes what it wrote; on real MLflow."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import test_trial

from studies.engine import registry
from studies.engine.findings import Findings
from studies.engine.inline import Place, attempt, make_stage
from studies.engine.ledger import Ledger
from studies.engine.plan import Plan
from studies.engine.planning import make_plan
from studies.engine.provenance import Code
from studies.engine.registry import fetch, keep_best
from studies.engine.selection import best_arm, best_cell, candidates, validation
from studies.engine.shipping import Shipper
from studies.engine.study import Arm, Minimise, Resources, Scale, Study, Watch
from studies.engine.tracking import Tracking
from trainables.config import ConfigError
from trainables.generate import main
from trainables.stages import Store
from trainables.text.corpora import Data, Stories
from trainables.trial import Trial, read_lines

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning", "UserWarning")]



def recipe(data: Data = Stories(size=300)) -> Trial:
    """TEncDM, hardly trained; a time for each token, since then nobody enumerates what context tells."""
    return test_trial.tiny(data, {"system.times.per_token": True, "training.steps": 4})


STUDY = Study(
    name="toy", question="How many steps?", scales={"laptop": Scale(recipe)},
    arms={"three": Arm(), "two": Arm({"sampling.steps": 2})}, report=(Watch("test/length"), Minimise("test/illegal")))
NAME = "palimpsest-toy"


@dataclass
class Here:
    """A finished study of two arms and one seed, and its MLflow."""

    out: Path

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.out / "toy")

    @property
    def store(self) -> Store:
        return Store(self.out / "stages")

    def plan(self, *arms: str) -> Plan:
        return make_plan(STUDY, scale="laptop", why="asked for", ledger=self.ledger, store=self.store,
                         resources=Resources(), seeds=1, arms=arms or tuple(STUDY.arms))

    def findings(self, *arms: str) -> Findings:
        return Findings(self.plan(*arms), self.ledger)

    def keep(self, *arms: str) -> str | None:
        return keep_best(self.findings(*arms), self.store, self.out)

    def say(self, arm: str, **metrics: float) -> str:
        """Put these metrics into the arm's record; its key."""
        (cell,) = (cell for cell in self.plan().cells if cell.arm == arm)
        record = self.ledger.cell(cell.key) or {}
        record["metrics"] = {name.replace("__", "/"): value for name, value in metrics.items()}
        self.ledger.write_cell(record)
        return cell.key

    def aliases(self) -> dict[str, str]:
        """Alias -> the arm of its version."""
        client = Tracking("toy", self.out).client
        return {alias: client.get_model_version(NAME, number).tags["arm"]
                for alias, number in client.get_registered_model(NAME).aliases.items()}

    def versions(self) -> list[Any]:
        return list(Tracking("toy", self.out).client.search_model_versions(f"name = '{NAME}'"))


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Iterator[Here]:
    """Both cells done as a worker does them, and shipped."""
    here = Here(tmp_path_factory.mktemp("results"))
    patch = pytest.MonkeyPatch()
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = Place(study="toy", scale="laptop", data="Stories", folder=here.ledger.folder, store=here.store.url,
                  resources=Resources(), code=Code("abc", ""))
    for cell in here.plan().cells:
        assert attempt(cell, place, lambda context, cell=cell: context.get(cell.scored()))["status"] == "done"
    assert Shipper(Tracking("toy", here.out), here.ledger.folder / "outbox").close()
    yield here
    patch.undo()


def test_the_best_seed_of_the_best_arm_by_validation_where_it_has_it(here):
    here.say("three", test__illegal=0.1, valid__illegal=0.4)
    two = here.say("two", test__illegal=0.2, valid__illegal=0.3)
    found = best_cell(here.findings(), here.store)
    assert found is not None and (found[0].key, *found[1:]) == (two, "valid/illegal", 0.3)
    assert best_arm(here.findings()) == ("two", "valid/illegal")
    three = here.say("three", test__illegal=0.1)
    found = best_cell(here.findings(), here.store)
    assert found is not None and (found[0].key, *found[1:]) == (three, "test/illegal", 0.1)
    assert best_arm(here.findings()) == ("three", "test/illegal")
    here.say("three", nothing=1.0)
    here.say("two", nothing=1.0)
    assert best_cell(here.findings(), here.store) is None


def test_seeds_are_chosen_by_validation_texts_scored_for_the_best_arm_alone(here, monkeypatch):
    """Test would choose seed 1; one seed is really sampled and scored on validation, the other is given a score."""
    here.say("three", test__illegal=0.2)
    here.say("two", test__illegal=0.3)
    plan = make_plan(STUDY, scale="laptop", why="", ledger=here.ledger, store=here.store, resources=Resources(),
                     seeds={"three": 2, "two": 1}, arms=("three", "two"))
    first, second = (cell for cell in plan.cells if cell.arm == "three")
    lucky = (here.ledger.cell(first.key) or {}) | {"key": second.key, "seed": 1, "metrics": {"test/illegal": 0.1}}
    here.ledger.write_cell(lucky)
    try:
        findings = Findings(plan, here.ledger)
        found = best_cell(findings, here.store)
        assert found is not None and (found[0].seed, *found[1:]) == (1, "test/illegal", 0.1)         # nobody has looked
        wanted = candidates(findings, here.store)
        assert [shared.cells for shared in wanted] == [(first,), (second,)]
        place = Place(study="toy", scale="laptop", data="Stories", folder=here.ledger.folder, store=here.store.url,
                      resources=Resources(), code=Code("abc", ""))
        assert make_stage(wanted[0], place)["status"] == "done"
        scored = here.store.path(validation(second, "test/illegal"))
        scored.mkdir()
        mine = json.loads((here.store.path(wanted[0].stage) / "metrics.json").read_text())["valid/illegal"]
        (scored / "metrics.json").write_text(json.dumps({"valid/illegal": mine + 0.1}))
        findings = Findings(plan, here.ledger)
        found = best_cell(findings, here.store)
        assert candidates(findings, here.store) == ()
        assert found is not None and (found[0].seed, *found[1:]) == (0, "valid/illegal", mine)
    finally:
        (here.ledger.folder / "cells" / f"{second.key}.json").unlink()
        shutil.rmtree(here.store.path(validation(first, "test/illegal")))


def test_once_however_often_and_whatever_breaks_in_between(here, monkeypatch):
    three = here.say("three", test__illegal=0.1, test__length=9.0)
    here.say("two", test__illegal=0.2, test__length=9.0)
    for broken in ("log_model_artifacts", "finalize_logged_model", "create_model_version",
                   "set_registered_model_alias"):
        with monkeypatch.context() as away:
            away.setattr(f"mlflow.MlflowClient.{broken}", down)
            assert here.keep() == "ConnectionError: down for minutes"
    for _ in range(2):
        assert here.keep() is None
    (version,), tracking = here.versions(), Tracking("toy", here.out)
    assert here.aliases() == {"best": "three", "best-laptop": "three"}
    assert version.run_id == tracking.find(three)
    assert version.tags.items() >= {
        "cell": three, "arm": "three", "seed": "0", "scale": "laptop", "commit": "abc", "chosen_by": "test/illegal",
        "arm_chosen_by": "test/illegal",
        "value": "0.1", "metric.test/length": "9.0"}.items()
    (model,) = tracking.client.search_logged_models([tracking.experiment])
    assert model.status == "READY" and model.source_run_id == version.run_id
    assert (here.out / "toy" / "best" / "generator.json").is_file()
    assert not [path.name for path in (here.out / "toy").glob(".*")]


def down(*_, **__):
    raise ConnectionError("down for minutes")


def test_mlflow_loads_it_alone_and_it_writes_what_its_cell_wrote(here, tmp_path):
    """In another process and folder, its stages renamed; what is imported comes with the model."""
    texts = [row["text"] for row in read_lines(here.store.path(here.plan().cells[0].samples()) / "samples.jsonl")]
    program = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "import mlflow.pyfunc\n"
        f"model = mlflow.pyfunc.load_model('models:/{NAME}@best')\n"
        "print(model.predict({'n': 3, 'seed': 0}))\n"
        "import pandas; print(len(model.predict(pandas.DataFrame({'n': [2, 4], 'seed': [0, 1]}))))\n"
        "import trainables; print('/code/' in trainables.__file__, 'ray' in sys.modules, 'studies' in sys.modules)\n"
        "print(model.metadata.get_input_schema().input_names(), model.input_example)\n")
    here.store.folder.rename(here.out / "elsewhere")
    try:
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=os.environ | uri_of(here),
                              capture_output=True, text=True, timeout=600)
    finally:
        (here.out / "elsewhere").rename(here.store.folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        str(texts[:3]), "6", "True False False", "['n', 'seed'] {'n': 3, 'seed': 0}"]


def uri_of(here: Here) -> dict[str, str]:
    return {"MLFLOW_TRACKING_URI": f"sqlite:///{here.out / 'mlflow.db'}", "MLFLOW_DISABLE_TELEMETRY": "true"}


def test_generate_knows_its_uri(here, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri_of(here)["MLFLOW_TRACKING_URI"])
    texts = [row["text"] for row in read_lines(here.store.path(here.plan().cells[0].samples()) / "samples.jsonl")]
    for uri in (f"models:/{NAME}@best", f"models:/{NAME}/1"):
        with pytest.raises(SystemExit) as ended:
            main(["--model", uri, "-n", "4", "--device", "cpu"])
        assert not ended.value.code and capsys.readouterr().out.splitlines() == texts[:4]
    for uri in ("models:/palimpsest-tay@best", f"models:/{NAME}@worst", f"models:/{NAME}/7"):
        with pytest.raises(SystemExit) as ended:
            main(["--model", uri])
        error = capsys.readouterr().err
        assert ended.value.code == 2 and uri in error
        assert error.startswith("error: --model: ") and error.count("\n") == 1
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI names the server"):
        fetch(f"models:/{NAME}@best", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_better_one_moves_the_alias_and_no_other_command_does(here):
    here.say("three", test__illegal=0.1)
    here.say("two", test__illegal=0.2)
    assert here.keep("two") is None                      # three was not asked, and is better
    assert len(here.versions()) == 1 and here.aliases()["best"] == "three"
    two = here.say("two", test__illegal=0.05)
    for _ in range(2):
        assert here.keep() is None
        assert len(here.versions()) == 2 and here.aliases() == {"best": "two", "best-laptop": "two"}
    here.say("two", test__illegal=0.2)                   # compared again, and judged otherwise
    assert here.keep() is None
    assert len(here.versions()) == 2 and here.aliases() == {"best": "three", "best-laptop": "three"}
    here.say("two", test__illegal=0.15)
    (three,) = (cell.key for cell in here.plan().cells if cell.arm == "three")
    here.ledger.supersede(three, "another")              # its code has changed: what it says counts no more
    assert Shipper(Tracking("toy", here.out), here.ledger.folder / "outbox").close()
    assert here.keep("two") is None and here.aliases()["best"] == "two" and two != three


def test_what_is_no_generator_is_not_registered(here, monkeypatch):
    monkeypatch.setattr(registry, "Sampled", int)
    monkeypatch.setattr(registry, "Tracking", down)
    here.say("three", test__illegal=0.01)
    assert here.keep() is None
