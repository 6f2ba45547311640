"""The questions of studies/: each builds, plans from the command line, and changes what it says and nothing else."""

import importlib
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from studies.engine.ledger import Ledger
from studies.engine.plan import Plan
from studies.engine.planning import make_plan
from studies.engine.study import Study
from trainables.config import differences
from trainables.diffusion.ranges import FullRange
from trainables.diffusion.steppers import Heun
from trainables.diffusion.times import Exposure, InTime
from trainables.stages import Context, Store, key
from trainables.text.corpora import Stories, import_files
from trainables.text.decoder import TrainedDecoder
from trainables.training.optimizers import Lion
from trainables.trial import Trained, run

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path.stem for path in (ROOT / "studies").glob("*.py") if path.stem != "__init__")
ASKED = {"tune", "claims", "nightly"}    # which studies these files are about, their arguments or a file say
NAMES = [name for name in FILES if name not in ASKED]

# What each ablation is about: no arm may differ from its base in anything else, and some arm must in each of these.
COMPARED = {
    "ablation_encoder": {"system.encoder"},
    "ablation_schedule": {"system.process.schedule", "system.times.low", "system.decoder.noise_up_to"},
    "ablation_self_conditioning": {"system.self_conditioning"},
    "ablation_optimizer": {"training.optimizer"},
    "ablation_packing": {"system.packing", "system.multilevel", "training.batch"},
    "ablation_spindle": {"system.objective", "system.process.spindle", "system.measure"},
    "ablation_sampler": {"sampling.stepper", "sampling.grid", "sampling.steps"},
    "ablation_annealing": {"system.times.range", "system.times.law"},
    "ablation_decoder": {"system.decoder.layers", "system.decoder.noise_from", "system.decoder.noise_up_to"},
}


def load(name: str) -> Study:
    return importlib.import_module(f"studies.{name}").study


def plan(name: str, folder: Path, scale: str = "laptop", seeds: int = 2) -> Plan:
    study = load(name)
    return make_plan(study, scale=scale, why="asked for", ledger=Ledger(folder / name), store=Store(folder / "stages"),
                     resources=study.scales[scale].resources, seeds=seeds, arms=study.arms)


def standing_on(stages: Plan, kind: type) -> set[str]:
    """The keys of all stages of a kind that the plan's cells stand on."""
    return {key(stage) for cell in stages.cells for stage in cell.stages() if isinstance(stage, kind)}


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in [name for name in os.environ if name.startswith("RAY_A") or name == "MLFLOW_TRACKING_URI"]:
        monkeypatch.delenv(name)


# ---------------------------------------------------------------- every study


@pytest.mark.parametrize("name", NAMES)
def test_a_study_is_named_as_its_file_and_says_what_it_expects(name):
    study = load(name)
    assert study.name == name and study.question.endswith("?") and study.expectation
    assert f"python studies/{name}.py" in (importlib.import_module(f"studies.{name}").__doc__ or "")


@pytest.mark.parametrize("name", NAMES)
def test_every_arm_can_be_asked_for(name):
    """--arms separates names by commas."""
    for arm in load(name).arms:
        assert "," not in arm and arm == arm.strip(), arm


@pytest.mark.parametrize("name, scale", [(name, scale) for name in NAMES for scale in load(name).scales])
def test_a_dry_run_prints_a_plan(name, scale, out, monkeypatch, capsys):
    """The file itself, run as a program with these arguments."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--dry-run", "--scale", scale, "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "studies" / f"{name}.py"), run_name="__main__")
    printed, study = capsys.readouterr().out, load(name)
    assert ended.value.code == 0 and f"# {name}: {study.question}" in printed and f"- scale {scale}: " in printed
    assert f"{len(study.arms)} arms" in printed and all(f"| {arm} |" in printed for arm in study.arms)
    assert ("cannot run" in printed) == (study.scales[scale].resources.gpus > torch.cuda.device_count())
    assert not list(out.glob("*.db")) and not list(out.rglob("cells")) and not list(out.rglob("model.safetensors"))


@pytest.mark.parametrize("system", ["tencdm", "ld4lg", "ld4lg_annealed", "diffusionbert", "scorelm"])
def test_a_search_prints_its_plan(system, out, monkeypatch, capsys):
    assert set(FILES) - set(NAMES) == ASKED
    monkeypatch.setattr(sys, "argv", ["tune.py", system, "--dry-run", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "studies" / "tune.py"), run_name="__main__")
    assert ended.value.code == 0 and f"# tune_{system}: " in capsys.readouterr().out


def test_a_study_is_a_command(out):
    done = subprocess.run([sys.executable, "studies/ablation_decoder.py", "--dry-run", "--scale", "laptop", "--out",
                           str(out)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and not done.stderr and "# ablation_decoder" in done.stdout


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("ablation")])
def test_arms_differ_in_what_is_compared_and_in_nothing_else(name):
    study = load(name)
    for scale in study.scales:
        base = study.trial(scale, study.base)
        changed = {path for arm in study.arms for path in differences(base, study.trial(scale, arm))}
        for path in changed:
            assert any(f"{path}.".startswith(f"{about}.") for about in COMPARED[name]), (scale, path)
    everywhere = {path for scale in study.scales for arm in study.arms
                  for path in differences(study.trial(scale, study.base), study.trial(scale, arm))}
    for about in COMPARED[name]:
        assert any(f"{path}.".startswith(f"{about}.") for path in everywhere), about


# ---------------------------------------------------------------- studies that share what they compare


@pytest.mark.parametrize("scale", ["laptop", "paper"])
@pytest.mark.parametrize("name, decoders", [("ablation_sampler", 1), ("ablation_decoder", 5)])
def test_one_checkpoint_per_seed_serves_all_arms(name, decoders, scale, tmp_path):
    stages = plan(name, tmp_path, scale)
    assert len(standing_on(stages, Trained)) == 2 and len(standing_on(stages, TrainedDecoder)) == decoders
    trained = [shared for shared in stages.shared if isinstance(shared.stage, Trained)]
    assert [{cell.arm for cell in shared.cells} for shared in trained] == [set(stages.arms)] * 2
    assert len({key(cell.trial.samples()) for cell in stages.cells}) == len(stages.cells)


def test_the_base_of_one_study_is_found_by_the_next(tmp_path):
    """Self-conditioning's, the optimizer's, the sampler's and the decoder's arms meet in one checkpoint."""
    trained = standing_on(plan("ablation_sampler", tmp_path), Trained)
    for name in ("ablation_self_conditioning", "ablation_optimizer", "ablation_decoder", "ablation_schedule"):
        assert trained <= standing_on(plan(name, tmp_path), Trained), name


def test_samplers_train_nothing_twice(tmp_path):
    """Two arms, run for real at toy size: one checkpoint, two sets of samples, each with its own scores."""
    study, context = load("ablation_sampler"), Context(Store(tmp_path))
    small = ["training.steps=120", "training.validate_on=64", "system.network.layers=1", "sampling.count=40",
             "evaluation.references=40", "system.encoder.weights.training.steps=50",
             "system.decoder.training.steps=20"]
    scores = [run(study.trial("laptop", arm, assignments=small), context) for arm in ("DPM++ 10", "DDPM 10")]
    made = [path.name.partition("-")[0] for path in tmp_path.iterdir() if path.is_dir()]
    assert made.count("Trained") == made.count("TrainedDecoder") == 1 and made.count("Sampled") == 2
    assert scores[0]["valid/loss"] == scores[1]["valid/loss"]
    assert scores[0]["test/oracle_nll"] != scores[1]["test/oracle_nll"]


# ---------------------------------------------------------------- what single studies promise


@pytest.fixture(scope="module", params=["stories", "file"])
def said(request, tmp_path_factory):
    """A context and a corpus with sources: the built-in one, and somebody's file."""
    folder = tmp_path_factory.mktemp("said")
    context = Context(Store(folder / "stages"))
    if request.param == "stories":
        return context, Stories()
    (folder / "pairs.csv").write_text("said,asked\n" + "\n".join(
        f"place {number} serves good food,name[{number}]" for number in range(100)), encoding="utf-8")
    return context, import_files(f"{folder / 'pairs.csv'}:said:asked", None, context.store)


def test_systems_see_as_many_texts_whatever_they_are(said):
    """All five; the score LM packs a row full, so that its texts a step follow from their length."""
    study = load("compare_systems")
    trials = {arm: study.trial("laptop", arm, data=said[1]) for arm in study.arms}
    assert {trial.training.steps for trial in trials.values()} == {2_000}
    assert {arm for arm, trial in trials.items() if trial.training.batch != 64} == {"score LM"}


def test_conditional_systems_read_sources_and_see_as_many_pairs(said):
    """And what is not compared, like steps and candidates, can still be set."""
    (context, data), study = said, load("compare_conditional")
    trials = [study.trial("laptop", arm, data=data, assignments=["sampling.candidates=2"]) for arm in study.arms]
    for trial in trials:
        trial.check(context)
        assert trial.system.reads_source and trial.sampling.candidates == 2
        assert {"bleu", "rouge2"} <= {value for metric in trial.evaluation.metrics for value in metric.better}
        assert trial.evaluation == trials[0].evaluation and trial.sampling.consensus == trials[0].sampling.consensus
    assert {trial.training.steps * trial.training.batch for trial in trials} == {128_000}
    half = study.trial("laptop", "DiffusionBERT", data=data, assignments=["training.steps=1000"])
    assert half.training == replace(trials[2].training, steps=1_000)
    paper = [study.trial("paper", arm) for arm in study.arms]
    assert all(0 <= 102_400_000 - trial.training.steps * trial.training.batch < trial.training.batch
               and trial.sampling.candidates == 1 for trial in paper)


def test_schedules_on_the_laptop_keep_their_levels_of_noise():
    study = load("ablation_schedule")
    levels = []
    for arm in study.arms:
        system = study.trial("laptop", arm).system
        times = [system.times.low, system.decoder.noise_up_to]
        levels.append([float(system.process.schedule.at(torch.tensor(t))[1]) for t in times])
    assert torch.tensor(levels).std(0).max() < 2e-3


def test_an_annealing_has_its_control():
    study = load("ablation_annealing")
    for scale in study.scales:
        times = {arm: study.trial(scale, arm).system.times for arm in study.arms}
        assert times["uniform"].range == FullRange() and times["uniform"].law == InTime()
        shapes = [arm.removesuffix(" first") for arm in times if arm.endswith(" first")]
        assert len(times) == 1 + 2 * len(shapes)
        for shape in shapes:
            first, more = times[f"{shape} first"], times[f"{shape} more"]
            assert first.law == InTime() and not isinstance(first.range, FullRange)
            assert more == replace(first, range=FullRange(), law=Exposure(range=first.range))


def test_lion_decays_weights_as_much_as_adam():
    study = load("ablation_optimizer")
    for scale in study.scales:
        base = study.trial(scale, "AdamW").training.optimizer
        for arm in study.arms:
            optimizer = study.trial(scale, arm).training.optimizer
            if isinstance(optimizer, Lion) and arm.startswith("Lion x"):
                assert optimizer.lr * optimizer.weight_decay == pytest.approx(base.lr * base.weight_decay)


def test_samplers_look_as_often_as_they_say():
    """Heun looks twice a step, and once where it arrives; the others once."""
    study = load("ablation_sampler")
    for arm in study.arms:
        sampling = study.trial("laptop", arm).sampling
        looks = sampling.steps * (2 if isinstance(sampling.stepper, Heun) else 1)
        assert arm.endswith(f" {looks}")
