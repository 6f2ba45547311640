"""Samplers: our names for them -> Optuna's objects, each draw seeded by what it is for.

    sampler(Tpe(), space, seed, trials)         the sampler of the next draw, given the trials so far

A sampler is made anew for every draw, from (seed, number of the trial): one that was kept would begin its random
numbers again when a driver is restarted, and propose again what it proposed before.  So a draw is a function of the
seed, its number and what is known by then.

Scrambled Sobol points are our own (scipy's generator): Optuna's QMCSampler leaves categorical and conditional
parameters to independent random numbers, and takes for its space whatever its first trial happened to have.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from search_spaces.domains import Choice, Domain, Integers, LogUniform, Space
from studies.engine.tuning import GaussianProcess, Nsga2, QuasiRandom, Sampler, Tpe
from trainables.randomness import seed_of


def distribution(domain: Domain) -> BaseDistribution:
    """A domain in Optuna's terms."""
    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.names)
    if isinstance(domain, Integers):
        return IntDistribution(domain.low, domain.high, log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=isinstance(domain, LogUniform))


def suggest(trial: optuna.Trial, name: str, domain: Domain) -> Any:
    """Ask Optuna for one parameter."""
    if isinstance(domain, Choice):
        return trial.suggest_categorical(name, domain.names)
    if isinstance(domain, Integers):
        return trial.suggest_int(name, domain.low, domain.high, log=domain.log)
    return trial.suggest_float(name, domain.low, domain.high, log=isinstance(domain, LogUniform))


def sampler(how: Sampler, space: Space, seed: int, trials: Sequence[FrozenTrial]) -> BaseSampler:
    """The sampler of the draw after these trials."""
    number = seed_of(seed, "draw", len(trials)) % 2**32
    explore = Sobol(space, seed)
    # With early stopping most points end pruned.  TPE ranks those by how far they came, behind all that finished; the
    # Gaussian process is blind to them, and knows no slope from one value.  Both take what other searches found, but
    # how much of this space was looked at, only its own points say.
    seen = sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and "inherited" not in trial.user_attrs
               for trial in trials)
    finished = sum(trial.state == TrialState.COMPLETE for trial in trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                 # that conditional parameters are drawn by themselves: we know
        if isinstance(how, QuasiRandom):
            return explore
        if isinstance(how, Nsga2):
            return Mixed(NSGAIISampler(population_size=how.population, seed=number), explore)
        if seen < how.startup or finished < (1 if isinstance(how, Tpe) else 2):
            return explore
        if isinstance(how, Tpe):
            return TPESampler(n_startup_trials=0, multivariate=True, group=True, constant_liar=True,
                              warn_independent_sampling=False, seed=number)
        assert isinstance(how, GaussianProcess)
        return Mixed(GPSampler(n_startup_trials=0, seed=number, warn_independent_sampling=False), explore)


class Mixed(BaseSampler):
    """One sampler for the parameters that it can take together, another for all others."""

    def __init__(self, together: BaseSampler, others: BaseSampler):
        self.together, self.others = together, others

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.together.infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        return self.together.sample_relative(study, trial, search_space)

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str,
                           param_distribution: BaseDistribution) -> Any:
        return self.others.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.together.before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self.together.after_trial(study, trial, state, values)


class Sobol(BaseSampler):
    """The scrambled Sobol point of the trial's number, one dimension for every parameter that may ever be asked for."""

    def __init__(self, space: Space, seed: int):
        self.parameters = {parameter.name: (place, parameter.domain)
                           for place, parameter in enumerate(space.parameters())}
        self.seed = seed_of(seed, "sobol") % 2**32

    def point(self, number: int) -> Any:
        """Shares in [0, 1), one a parameter."""
        engine = qmc.Sobol(max(len(self.parameters), 1), scramble=True, rng=self.seed)
        if number:
            engine.fast_forward(number)
        return engine.random(1)[0]

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str,
                           param_distribution: BaseDistribution) -> Any:
        place, domain = self.parameters[param_name]
        return domain.at(float(self.point(trial.number)[place]))
