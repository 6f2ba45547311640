"""What is typed: studies/tune.py, and --tune of any study."""

import importlib

import pytest
from toy_search import ROOT, SPACE

from studies import tune
from studies.engine.pruning import Halving, Median
from studies.engine.study import Maximise, Minimise, Study
from studies.engine.tuning import nuisance
from trainables.config import ConfigError, override
from trainables.evaluation.variety import Variety
from trainables.tencdm import tencdm_laptop

pytest_plugins = ["toy_search"]                    # its fixture
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")]


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("[ac]*_*.py")), ids=lambda path: path.stem)
def test_every_study_can_search_its_nuisances(path):
    """Each arm around its own optimizer, on the validation counterpart of what the study decides by."""
    study = importlib.import_module(f"studies.{path.stem}").study
    if path.stem == "ablation_optimizer":                 # it compares what would be searched
        with pytest.raises(ConfigError, match="lr: is searched, and training.optimizer.lr is set"):
            study.searching(nuisance(study.report, 7))
        return
    found = study.searching(nuisance(study.report, 7))
    for arm in found.arms:
        trial = found.trial("laptop", arm)
        task = found.searched("laptop", arm, trial)
        first = {"compare_conditional": Maximise("valid/bleu"), "compare_classes": Minimise("valid/wrong_class")}.get(
            path.stem, Minimise("valid/illegal"))
        assert task.select == (first,)                             # what they name first of what evaluation gives
        assert task.prune is None or task.prune.metrics == (Minimise("valid/loss"),)
        assert task.tune.trials == 7 and task.space.point(trial)["training.optimizer.lr"] == trial.training.optimizer.lr
        assert found.found({}).arms.keys() == study.arms.keys()


@pytest.mark.parametrize("system", list(tune.System))
def test_every_system_can_be_tuned(system):
    """Goals and pruners follow from the recipe: what its data can be judged by, what its space leaves comparable."""
    found = tune.study_of(system, tune.Which.nuisance, ("quality", "diversity", "cost"), tune.How.nsga2, 5,
                          None, (), 3)
    tasks = {scale: found.searched(scale, system, found.trial(scale, system)) for scale in found.scales}
    assert tasks["laptop"].select == (Minimise("valid/illegal"), Maximise("valid/diversity"), Minimise("cost/seconds"))
    assert tasks["laptop"].prune is tasks["paper"].prune is None    # one curve knows nothing of the other goals
    asked = tune.study_of(system, tune.Which.nuisance, ("quality", "cost"), tune.How.nsga2, 5, None,
                          (Minimise("valid/loss"), Minimise("train/loss")), 3)
    by = asked.searched("laptop", system, asked.trial("laptop", system)).prune
    assert isinstance(by, Halving) and by.metrics == (Minimise("valid/loss"), Minimise("train/loss"))
    found = tune.study_of(system, tune.Which.nuisance, ("quality",), tune.How.tpe, 5, None, (), 3)
    tasks = {scale: found.searched(scale, system, found.trial(scale, system)) for scale in found.scales}
    assert tasks["paper"].select[0] in (Maximise("valid/mauve"), Minimise("valid/judge_nll"))
    metric = Maximise("valid/context_gain") if system == "tencdm" else Minimise("valid/loss")
    assert tasks["laptop"].prune is not None and tasks["laptop"].prune.metrics == (metric,)
    assert tasks["paper"].prune is not None and tasks["paper"].prune.metrics == (Minimise("valid/loss"),)
    assert found.name == f"tune_{system}_nuisance" and tasks["laptop"].base.seed == 3


@pytest.mark.parametrize("typed", [
    "", "--trials 30 --sampler tpe --prune-on max:valid/context_gain",
    "--space joint --goals quality,diversity,cost --sampler nsga2 --trials 60",
    "--space nuisance --prune median --search-seed 7", "--prune none --goals min:valid/illegal"])
def test_the_command_on_the_page_is_this_search(typed, monkeypatch):
    studies: list[Study] = []
    monkeypatch.setattr(tune, "main", lambda study, arguments: studies.append(study))
    for words in (["tencdm", *typed.split(), "--scale", "laptop"], None):
        with pytest.raises(SystemExit):
            tune.command(words or studies[0].program.split()[1:])
    asked, again = studies
    assert asked.name == again.name and asked.tune == again.tune and asked.program == again.program
    assert asked.program.split()[:2] == ["studies/tune.py", "tencdm"]
    assert set(asked.program.split()[2:]) <= set(typed.split())     # what is not typed is not said


def test_losses_stop_nobody_where_the_space_moves_the_task():
    found = tune.study_of(tune.System.scorelm, tune.Which.space, ("quality",), tune.How.tpe, 5, tune.Stop.median,
                          (), 3)
    assert found.searched("laptop", "scorelm", found.trial("laptop", "scorelm")).prune is None
    trial = found.trial("laptop", "scorelm")
    asked = tune.Stopping(tune.Stop.median, (Minimise("valid/loss"),), (), lambda trial: SPACE)
    assert asked(trial) == Median(Minimise("valid/loss"), after=500)
    several = tune.parse_curves("min:valid/loss,max:valid/context_gain", tune.Stop.halving)
    rule = tune.Stopping(tune.Stop.halving, several, (), lambda trial: SPACE)(trial)
    assert rule is not None and rule.metrics == (Minimise("valid/loss"), Maximise("valid/context_gain"))


@pytest.mark.parametrize("arguments, words", [
    (["tencdm", "--goals", "speed"], "none of quality, diversity, cost"),
    (["ld4lg", "--space", "joint"], "the joint space is over tencdm"),
    (["tencdm", "--space", "joint", "--prune-on", "min:valid/loss"], "system.encoder: varies, and valid/loss is"),
    (["tencdm", "--goals", "min:test/illegal"], "what is reported may not choose"),
    (["tencdm", "--prune-on", "quality"], "neither min:METRIC nor max:METRIC"),
    (["tencdm", "--prune", "median", "--prune-on", "min:valid/loss,min:train/loss"], "the median is of one metric"),
    (["tencdm", "--prune", "none", "--prune-on", "min:valid/loss"], "--prune none stops nobody"),
    (["tencdm", "--tune", "5"], "is a search already; --trials sets its points"),
    (["gpt"], "'gpt' is not one of"),
    (["tencdm", "--goals", "min:valid/ilegal"], "valid/ilegal: is sought, and no score on validation texts (did you "
                                                "mean 'valid/illegal'?)"),
    (["tencdm", "--prune-on", "min:valid/losss"], "valid/losss: stops trials, and is nothing that training records by "
                                                  "step (did you mean 'valid/loss'?)"),
    (["tencdm", "--space", "nuisance", "--by-code"], "--by-code: a search is its storage's memory"),
])
def test_what_cannot_be_searched_is_said_in_a_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(SystemExit) as ended:
        tune.command([*arguments, "--dry-run", "--out", str(tmp_path), "--scale", "laptop"])
    assert ended.value.code == 2
    printed = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert words in printed and "Traceback" not in printed


def test_a_recipe_without_a_measure_of_quality_is_refused():
    trial = override(tencdm_laptop(), {"evaluation.metrics": (Variety(),)})
    assert tune.Goals(("diversity",))(trial) == (Maximise("valid/diversity"),)
    with pytest.raises(ConfigError, match="evaluation.metrics: gives nothing that could be quality"):
        tune.Goals(("quality",))(trial)
