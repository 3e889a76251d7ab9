"""The loop of a search: ask, evaluate what is new, tell; over again until enough strategies were proposed.

What was evaluated is never evaluated again. So a search that was interrupted goes on by starting over: the algorithm
asks for the same, and is told what the log holds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from atmc_tool.search.algorithm import Algorithm, Proposal
from atmc_tool.search.evaluation import Outcome
from atmc_tool.search.space import Space
from atmc_tool.search.strategy import Strategy
from atmc_tool.search.trial_log import Key, Trial, TrialLog, strategy_digest

Work = Callable[[Sequence[tuple[Strategy, float]]], Iterator[tuple[int, Outcome]]]
"""Strategies with fidelities → (index, outcome) of each, in any order."""


@dataclass(frozen=True)
class _Asked:
    proposal: Proposal
    strategy: Strategy
    digest: str


class Search:
    """`algorithm` in `space`: `evaluations` proposals, `batch` at once.

    halving: see `rungs`
    """

    def __init__(
        self, space: Space, work: Work, log: TrialLog, *, evaluations: int, batch: int, halving: int | None
    ) -> None:
        self._space, self._work, self._log = space, work, log
        self._evaluations, self._batch, self._rungs = evaluations, batch, rungs(batch, halving)
        self._eta = halving or 1
        self._known: dict[Key, Trial] = {}
        for trial in sorted(log.trials, key=lambda trial: (trial.repeats is not None, trial.number)):
            self._known.setdefault(trial.key, trial)

    def run(self, algorithm: Algorithm) -> Iterator[Trial]:
        """The trial of every proposal, in order: the one of its highest fidelity."""
        done = 0
        while done < self._evaluations:
            proposals = algorithm.ask(min(self._batch, self._evaluations - done))
            asked = [self._asked(proposal) for proposal in proposals]
            trials = self._compete(asked)
            algorithm.tell(proposals, [trial.outcome for trial in trials])
            done += len(proposals)
            yield from trials

    def _asked(self, proposal: Proposal) -> _Asked:
        strategy = self._space.strategy(proposal.rates, {})
        return _Asked(proposal, strategy, strategy_digest(strategy))

    def _compete(self, asked: Sequence[_Asked]) -> list[Trial]:
        """A trial for each of `asked`: all at the lowest fidelity, the best ones at the next, and so on."""
        found: dict[int, Trial] = {}
        left = list(range(len(asked)))
        for fidelity in self._rungs:
            trials = self._evaluate([asked[place] for place in left], fidelity)
            found |= dict(zip(left, trials, strict=True))
            ranked = sorted(left, key=lambda place: (-found[place].outcome.reward, place))
            left = sorted(ranked[: max(1, len(left) // self._eta)])
        return [found[place] for place in range(len(asked))]

    def _evaluate(self, asked: Sequence[_Asked], fidelity: float) -> list[Trial]:
        """The trials of `asked`; those of strategies that are known repeat them."""
        first: dict[Key, int] = {}
        for place, one in enumerate(asked):
            first.setdefault((one.digest, fidelity), place)
        new = [asked[place] for key, place in first.items() if key not in self._known]
        for index, outcome in self._work([(one.strategy, fidelity) for one in new]):
            trial = self._trial(new[index], outcome, None)
            self._known[trial.key] = trial
            self._log.add(trial)
        return [self._remembered(one, fidelity) for one in asked]

    def _remembered(self, one: _Asked, fidelity: float) -> Trial:
        known = self._known[one.digest, fidelity]
        if known.number == one.proposal.number:
            return known
        trial = self._trial(one, known.outcome, known.number)
        self._log.add(trial)
        return trial

    def _trial(self, one: _Asked, outcome: Outcome, repeats: int | None) -> Trial:
        rates: Mapping[str, float] = {name: rate.keep for name, rate in one.strategy.layers.items()}
        return Trial(one.proposal.number, one.digest, rates, outcome, repeats)


def rungs(batch: int, halving: int | None) -> list[float]:
    """Fidelities that the proposals of a batch compete at, up to 1, each `halving` times the one before.

    The best 1/halving of them go on to the next (Jamieson and Talwalkar 2016, arXiv:1502.07943); as many rungs as it
    takes to come down to one.
    """
    levels = [1.0]
    while halving is not None and batch >= halving:
        batch //= halving
        levels.insert(0, levels[0] / halving)
    return levels


def best(trials: Sequence[Trial]) -> Trial:
    """The trial of the highest reward among those with all images; the first of equals."""
    return max((trial for trial in trials if trial.outcome.fidelity == 1), key=lambda trial: trial.outcome.reward)


def front(trials: Sequence[Trial], size: Callable[[Outcome], int]) -> list[Trial]:
    """The trials that no other beats in clean accuracy, robust accuracy and size together, in order of size."""
    whole: dict[str, Trial] = {}
    for trial in trials:
        if trial.outcome.fidelity == 1:
            whole.setdefault(trial.digest, trial)

    def beaten(one: Outcome, other: Outcome) -> bool:
        gains = (other.clean - one.clean, other.robust - one.robust, size(one) - size(other))
        return min(gains) >= 0 and max(gains) > 0

    outcomes = [trial.outcome for trial in whole.values()]
    left = [t for t in whole.values() if not any(beaten(t.outcome, other) for other in outcomes)]
    return sorted(left, key=lambda trial: (size(trial.outcome), trial.number))
