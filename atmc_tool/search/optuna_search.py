"""Search by Optuna's samplers: TPE, CMA-ES, and NSGA-II for several objectives (extra `search`)."""

import warnings
from collections.abc import Sequence
from typing import Literal

import optuna

from atmc_tool.search.algorithm import Proposal
from atmc_tool.search.evaluation import Outcome
from atmc_tool.search.space import Space

Name = Literal["tpe", "cmaes", "nsga2"]
POPULATION = (8, 50)  # least and most of NSGA-II
USED, LEAST_USED = "used", 0.1  # share of the budget
GENERATIONS = 6  # that NSGA-II has at least, where the population can be made small enough


class OptunaSearch:
    """A position in [0, 1] for every decision, where its rate stands between the bounds on a logarithmic scale.

    `tpe` (Bergstra et al. 2011) and `cmaes` (Hansen and Ostermeier 2001) maximise the reward; the rates are scaled
    alike so that they use up the budget, for a strategy that leaves some of it only loses. `nsga2` (Deb et al. 2002)
    looks for the front of clean accuracy, robust accuracy and cost: one more position says how much of the budget is
    used, from a tenth of it, or what the lowest rates take, to all, on a logarithmic scale.
    """

    def __init__(self, space: Space, name: Name, seed: int, evaluations: int) -> None:
        self._space, self._name, self._count = space, name, 0
        lowest = space.spent([space.wall.lower] * len(space.decisions))
        self._least = max(LEAST_USED, lowest / space.wall.limit)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        directions: list[Literal["maximize", "minimize"]]
        directions = ["maximize", "maximize", "minimize"] if name == "nsga2" else ["maximize"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study = optuna.create_study(directions=directions, sampler=_sampler(name, seed, evaluations))
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            f"{index:04}": optuna.distributions.FloatDistribution(0.0, 1.0) for index in range(len(space.decisions))
        }
        if name == "nsga2":
            self._distributions[USED] = optuna.distributions.FloatDistribution(0.0, 1.0)
        self._open: dict[int, optuna.Trial] = {}

    def ask(self, count: int) -> list[Proposal]:
        """The next `count` proposals."""
        proposals = []
        for _ in range(count):
            trial = self._study.ask(self._distributions)
            wanted = [self._space.log_rate(trial.params[name]) for name in self._distributions if name != USED]
            rates = self._space.filled(wanted, self._least ** (1 - trial.params.get(USED, 1.0)))
            self._open[self._count] = trial
            proposals.append(Proposal(self._count, rates))
            self._count += 1
        return proposals

    def tell(self, proposals: Sequence[Proposal], outcomes: Sequence[Outcome]) -> None:
        """What became of the proposals of the last `ask`."""
        for proposal, outcome in zip(proposals, outcomes, strict=True):
            values = [outcome.reward]
            if self._name == "nsga2":
                values = [outcome.clean, outcome.robust, float(self._space.size(outcome))]
            self._study.tell(self._open.pop(proposal.number), values)


def _sampler(name: Name, seed: int, evaluations: int) -> optuna.samplers.BaseSampler:
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, multivariate=True)
    if name == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=seed)
    least, most = POPULATION
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=min(most, max(least, evaluations // GENERATIONS)))
