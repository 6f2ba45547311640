"""Which settings suit a system?

    python studies/tune.py tencdm --dry-run                 the space, the plan, and what is already there
    python studies/tune.py tencdm                           30 points by TPE, the worst stopped early, the best compared
                                                            with the recipe on test texts, with other seeds
    python studies/tune.py tencdm --space joint --goals quality,diversity,cost --sampler nsga2 --trials 60
                                                            a front; nobody is stopped early, unless --prune-on says how
    python studies/tune.py ld4lg --trials 50                the same command with a larger budget continues
    python studies/tune.py tencdm --trials 200 --hours 10   200 points, or what 10 hours bear, the comparison included
    make search                                             every search in optuna-dashboard, slice by slice

A metric that the recipe never records is refused before anything starts.  Ten points that fail one behind the other end
a search (exit code 3): what breaks all points is mended first, and the same command goes on.

SYSTEM is tencdm, ld4lg, ld4lg_annealed, diffusionbert or scorelm; further options are those of every study (--data,
--set, --scale, --seeds, --out, --report, ...; `studies/ablation_encoder.py --help` lists them).
"""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer

from search_spaces.domains import Space
from studies.engine.main import main
from studies.engine.pruning import Halving, Median, Pruner
from studies.engine.study import Arm, Maximise, Minimise, Resources, Scale, Study, Watch
from studies.engine.tuning import GaussianProcess, Nsga2, QuasiRandom, Sampler, Sought, Tpe, Tune
from trainables.config import ConfigError
from trainables.tencdm import TEncDM
from trainables.trial import Trial


class System(StrEnum):
    tencdm = "tencdm"
    ld4lg = "ld4lg"
    ld4lg_annealed = "ld4lg_annealed"
    diffusionbert = "diffusionbert"
    scorelm = "scorelm"


class Which(StrEnum):
    space = "space"
    nuisance = "nuisance"
    joint = "joint"


class How(StrEnum):
    tpe = "tpe"
    quasi_random = "quasi-random"
    gp = "gp"
    nsga2 = "nsga2"


class Stop(StrEnum):
    halving = "halving"
    median = "median"
    none = "none"


SAMPLERS: dict[How, Sampler] = {How.tpe: Tpe(), How.quasi_random: QuasiRandom(), How.gp: GaussianProcess(),
                                How.nsga2: Nsga2()}
TRIALS, GOALS, SEED = 30, "quality", 1_000      # what an option is that nobody types
# What is taken for quality: the first that the data and the recipe's evaluation have.
QUALITY = (Minimise("valid/illegal"), Maximise("valid/mauve"), Maximise("valid/bleu"), Minimise("valid/fd"),
           Minimise("valid/judge_nll"), Minimise("valid/perplexity"))
REPORT = (
    Minimise("test/illegal"), Minimise("test/oracle_nll"), Minimise("test/total_variation"), Maximise("test/mauve"),
    Maximise("test/bleu"), Minimise("test/fd"), Minimise("test/judge_nll"), Minimise("test/perplexity"),
    Maximise("test/diversity"), Watch("test/memorisation"), Minimise("test/wrong_class"), Watch("valid/loss"))


@dataclass(frozen=True)
class Goals:
    """`quality`, `diversity`, `cost`, or metrics as min:valid/x, max:valid/y; as a function of the trial."""

    words: tuple[str, ...]

    def __call__(self, trial: Trial) -> Sought:
        return tuple(self.goal(word, trial) for word in self.words)

    def goal(self, word: str, trial: Trial) -> Minimise | Maximise:
        known = {f"valid/{name}" for metric in trial.evaluation.metrics for name in metric.better}
        if word == "quality":
            found = next((metric for metric in QUALITY if metric.metric in known), None)
            if found is None:
                names = ", ".join(metric.metric.partition("/")[2] for metric in QUALITY)
                raise ConfigError("evaluation.metrics", f"gives nothing that could be quality ({names}): name goals "
                                                        "as min:valid/METRIC or max:valid/METRIC")
            return found
        if word == "diversity":
            return Maximise("valid/diversity")
        if word == "cost":
            return Minimise("cost/seconds")
        kind, _, metric = word.partition(":")
        return Minimise(metric) if kind == "min" else Maximise(metric)


@dataclass(frozen=True)
class Stopping:
    """When to stop a trial, as a function of it: the first look is its first validation."""

    how: Stop
    metrics: Sought
    depends_on: tuple[str, ...]
    space: Callable[[Trial], Space]

    def __call__(self, trial: Trial) -> Pruner | None:
        if self.how == Stop.none:
            return None
        metrics = self.metrics or self.usual(trial)
        if not metrics:
            return None
        first, steps = trial.training.validate_every, trial.training.steps
        return Median(metrics[0], after=first) if self.how == Stop.median else \
            Halving(*metrics, first=first, steps=steps)

    def usual(self, trial: Trial) -> Sought:
        """Raw losses tell little of what hangs on context, and are not comparable where the task moves; the share of
        what context tells is both, where it is known (TEncDM on the built-in corpus)."""
        if isinstance(trial.system, TEncDM) and trial.system.context_bounds(trial.data):
            return (Maximise("valid/context_gain"),)
        moves = any(f"{path}.".startswith(f"{root}.") for path in self.space(trial) for root in self.depends_on)
        return () if moves else (Minimise("valid/loss"),)


def parse_goals(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    for word in words:
        if word not in ("quality", "diversity", "cost") and word.partition(":")[0] not in ("min", "max"):
            raise typer.BadParameter(f"{word!r} is none of quality, diversity, cost, min:METRIC, max:METRIC")
    if not words:
        raise typer.BadParameter("name at least one")
    return words


def parse_curves(text: str, stop: Stop | None) -> Sought:
    """Metrics that training records by step."""
    words = parse_goals(text)
    for word in words:
        if ":" not in word:
            raise typer.BadParameter(f"{word!r} is neither min:METRIC nor max:METRIC", param_hint="--prune-on")
    if stop == Stop.none:
        raise typer.BadParameter("--prune none stops nobody", param_hint="--prune-on")
    if stop == Stop.median and len(words) > 1:
        raise typer.BadParameter("the median is of one metric; halving takes several", param_hint="--prune-on")
    return tuple((Minimise if word.startswith("min:") else Maximise)(word.partition(":")[2]) for word in words)


def study_of(system: System, which: Which, goals: tuple[str, ...], how: How, trials: int, stop: Stop | None,
             stop_on: Sought, seed: int) -> Study:
    """The search as a study: the recipe, and the points that were found.   stop: None for what is usual: one curve says
    who falls behind in one goal, but of several it would stop the cheap or the diverse that belong on the front."""
    typed = {"--space": (which, Which.space), "--trials": (trials, TRIALS), "--sampler": (how, How.tpe),
             "--goals": (",".join(goals), GOALS), "--prune": (stop, None), "--prune-on": (spelled(stop_on), ""),
             "--search-seed": (seed, SEED)}
    if stop is None:
        stop = Stop.halving if stop_on or len(goals) == 1 else Stop.none
    recipes: Any = importlib.import_module(f"trainables.{system}")
    if which == Which.joint and system != System.tencdm:
        raise typer.BadParameter("the joint space is over tencdm", param_hint="--space")
    spaces: Any = importlib.import_module(f"search_spaces.{'joint' if which == Which.joint else system}")
    space = spaces.nuisance if which == Which.nuisance else spaces.space
    tune = Tune(space=space, select=Goals(goals), trials=trials, sampler=SAMPLERS[how], seed=seed, keep_untuned=True,
                prune=Stopping(stop, stop_on, spaces.LOSS_DEPENDS_ON, space), loss_depends_on=spaces.LOSS_DEPENDS_ON)
    return Study(
        name=f"tune_{system}" + ("" if which == Which.space else f"_{which}"),
        question=f"Which settings suit {system}?",
        scales={"laptop": Scale(getattr(recipes, f"{system}_laptop")),
                "paper": Scale(getattr(recipes, system), Resources(gpus=1))},
        arms={system.value: Arm()}, report=REPORT, seeds=3, tune=tune,
        program=" ".join([f"studies/tune.py {system}", *(f"{flag} {value}" for flag, (value, usual) in typed.items()
                                                         if value != usual)]))


def spelled(metrics: Sought) -> str:
    """As --prune-on has them."""
    return ",".join(f"{'min' if isinstance(metric, Minimise) else 'max'}:{metric.metric}" for metric in metrics)


def run(
    context: typer.Context,
    system: Annotated[System, typer.Argument(help="Whose recipe is tuned.")],
    space: Annotated[Which, typer.Option(
        help="Everything, the optimizer's only, or the mission's joint one.")] = Which.space,
    trials: Annotated[int, typer.Option(min=1, help="Points, those of earlier commands included.")] = TRIALS,
    sampler: Annotated[How, typer.Option(help="How points are chosen.")] = How.tpe,
    goals: Annotated[str, typer.Option(
        help="Comma-separated: quality, diversity, cost, min:valid/METRIC, max:valid/METRIC.")] = GOALS,
    prune: Annotated[Stop | None, typer.Option(
        help="Who is stopped early; without it, halving for one goal and with --prune-on, else none.")] = None,
    prune_on: Annotated[str | None, typer.Option(
        help="By what: min:valid/METRIC or max:valid/METRIC, as training records it; several with commas.")] = None,
    search_seed: Annotated[int, typer.Option(help="Of the search and its trainings.")] = SEED,
    storage: Annotated[str | None, typer.Option(
        help="Where it is remembered: a .db or .journal file, postgresql://...; without it, in OUT.")] = None,
) -> None:
    """Which settings suit a system?  Options of every study go along: --data, --set, --scale, --seeds, --out, ..."""
    if storage is not None:
        os.environ["OPTUNA_STORAGE"] = storage
    try:
        curves = () if prune_on is None else parse_curves(prune_on, prune)
        study = study_of(system, space, parse_goals(goals), sampler, trials, prune, curves, search_seed)
    except ValueError as error:         # a space that does not fit the recipe, a goal that is none
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    main(study, context.args)


def command(arguments: list[str] | None = None) -> None:
    """The command line; sys.argv where None."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(run)
    app(args=arguments, prog_name="tune.py")


if __name__ == "__main__":
    command()
