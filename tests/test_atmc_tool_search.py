"""Searches for strategies: budgets that hold, outcomes that repeat, a loop that goes on where it was stopped."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from atmc_tool.config import AttackConfig
from atmc_tool.data import load_data
from atmc_tool.models import ARCHITECTURES
from atmc_tool.search.algorithm import Algorithm, Proposal
from atmc_tool.search.budget_wall import BudgetWall
from atmc_tool.search.ddpg import DdpgSearch
from atmc_tool.search.environment import STATES, StrategyEnvironment
from atmc_tool.search.evaluation import Evaluator, Outcome, Scoring, unit_masks
from atmc_tool.search.layers import cost_of, kept_units, layers_of, whole_cost
from atmc_tool.search.loop import Search, best, front, rungs
from atmc_tool.search.optuna_search import OptunaSearch
from atmc_tool.search.random_search import RandomSearch
from atmc_tool.search.space import Space
from atmc_tool.search.strategy import Strategy, StrategyBudget, strategy_of
from atmc_tool.search.trial_log import Trial, TrialLog, read_trials
from atmc_tool.threat_model import ThreatModel
from atmc_tool.training_step import Setup

SHAPE = (1, 8, 8)


class Small(nn.Module):
    """Two branches that read one tensor, batch norm, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.shortcut = nn.Conv2d(12, 16, 1, stride=2)
        self.last = nn.BatchNorm2d(16)
        self.third = nn.Conv2d(16, 20, 3, stride=2, padding=1)
        self.fc = nn.Linear(20, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x)).relu()
        x = self.last(self.second(x) + self.shortcut(x)).relu()
        logits: torch.Tensor = self.fc(self.third(x).relu().mean((2, 3)))
        return logits


def network() -> nn.Module:
    torch.manual_seed(0)
    return Small()


def space_of(structure: str, keep: float, measure: str = "weights", lower: float = 0.02, upper: float = 1.0) -> Space:
    layers = layers_of(network(), SHAPE)
    cost = cost_of(layers, structure, measure)  # type: ignore[arg-type]
    limit = int(keep * whole_cost(layers, structure, cost))
    wall = BudgetWall(layers, structure, cost, limit, lower, upper)
    return Space(wall, StrategyBudget(measure=measure, share=keep))  # type: ignore[arg-type]


SPACES = [
    space_of("irregular", 0.05),
    space_of("irregular", 0.05, lower=0.05),
    space_of("irregular", 0.3, "flops", upper=0.5),
    space_of("channel", 0.4, "shrunk", lower=0.05),
    space_of("filter", 0.5, lower=0.05),
]


def setup_of(model: nn.Module, eps: float | None = 0.1) -> Setup:
    threat_model = None if eps is None else ThreatModel(eps, str(eps))
    return Setup(
        model, (0.0,), (1.0,), torch.device("cpu"), load_data("digits"), threat_model, AttackConfig(steps=2), seed=0
    )


def outcome(rates: Sequence[float], space: Space, fidelity: float = 1.0) -> Outcome:
    """A made-up outcome: the more alike the rates the better; nothing is run."""
    spread = float(np.std(np.log(rates)))
    clean, robust = 1 / (1 + spread), 1 / (2 + spread)
    spent = space.spent(rates)
    return Outcome(clean, robust, clean + robust, spent, spent, spent, None, fidelity, 0.0)


class MadeUp:
    """Evaluations of `outcome`; counts them, and stops after so many."""

    def __init__(self, space: Space, most: int | None = None) -> None:
        self.space, self.most, self.seen = space, most, []  # type: tuple[Space, int | None, list[tuple[Strategy, float]]]

    def __call__(self, asked: Sequence[tuple[Strategy, float]]) -> Iterator[tuple[int, Outcome]]:
        for index in reversed(range(len(asked))):
            if self.most is not None and len(self.seen) >= self.most:
                raise KeyboardInterrupt
            self.seen.append(asked[index])
            shares = asked[index][0].shares
            rates = [shares[layers[0].name] for layers in self.space.decisions]
            yield index, outcome(rates, self.space, asked[index][1])


def algorithm(name: str, space: Space, evaluations: int = 12) -> Algorithm:
    if name == "random":
        return RandomSearch(space, 0)
    if name == "ddpg":
        return DdpgSearch(space, 0, evaluations)
    return OptunaSearch(space, name, 0, evaluations)  # type: ignore[arg-type]


def run(name: str, space: Space, path: Path, work: MadeUp, halving: int | None = None) -> list[Trial]:
    search = Search(space, work, TrialLog(path), evaluations=12, batch=4, halving=halving)
    return list(search.run(algorithm(name, space)))


NAMES = ["random", "ddpg", "tpe", "cmaes", "nsga2"]


@given(st.sampled_from(SPACES), st.lists(st.floats(0, 1), min_size=5, max_size=5))
def test_no_actions_execute_more_than_the_budget(space: Space, actions: list[float]) -> None:
    environment = StrategyEnvironment(space, lambda rates: 1 + space.spent(rates))
    state, _ = environment.reset()
    over, reward = False, 0.0
    while not over:
        assert state.shape == (STATES,)
        assert environment.observation_space.contains(state)
        action = actions[len(environment.executed)]
        before = len(environment.executed)
        assert reward == 0
        state, reward, over, _, info = environment.step(np.array([action], np.float32))
        assert info["executed"] <= max(action, space.action(space.walled(environment.executed[:before], 0.0))) + 0.1
    assert space.spent(environment.executed) <= space.wall.limit
    assert reward == 1 + space.spent(environment.executed)
    strategy = space.strategy(environment.executed, {})
    layers = space.wall.layers
    kept = [kept_units(layer, space.wall.structure, strategy.shares[layer.name]) for layer in layers]
    assert space.wall.cost(kept) <= space.wall.limit
    assert all(units >= 1 for units in kept)


@given(st.sampled_from(SPACES), st.lists(st.floats(0, 1), min_size=5, max_size=5), st.sampled_from([1.0, 0.5, 0.1]))
def test_rates_that_fill_the_budget_stay_within_it(space: Space, positions: list[float], share: float) -> None:
    wanted = [space.log_rate(position) for position in positions[: len(space.decisions)]]
    lowest = space.spent([space.wall.lower] * len(space.decisions))
    assert space.spent(space.filled(wanted, share)) <= max(lowest, share * space.wall.limit)


def test_what_the_masks_keep_is_what_the_strategy_costs() -> None:
    for space in SPACES:
        rates = RandomSearch(space, 1).ask(1)[0].rates
        strategy = space.strategy(rates, {})
        masks = unit_masks(dict(network().named_parameters()), strategy.structure, strategy.shares)
        kept = sum(int(mask.sum()) for mask in masks.values())
        structure = space.wall.structure
        units = [kept_units(layer, structure, strategy.shares[layer.name]) for layer in space.wall.layers]
        assert kept == cost_of(space.wall.layers, structure, "weights")(units)


@pytest.mark.parametrize("name", NAMES)
def test_a_search_that_was_stopped_ends_like_one_that_was_not(name: str, tmp_path: Path) -> None:
    for halving in (None, 2) if name == "random" else (None,):
        space = SPACES[0]
        straight = run(name, space, tmp_path / f"straight{halving}", MadeUp(space), halving)
        path = tmp_path / f"stopped{halving}"
        first = MadeUp(space, most=7)
        with pytest.raises(KeyboardInterrupt):
            run(name, space, path, first, halving)
        with path.open("ab") as file:
            file.write(b'{"number": 11, "dig')  # what a killed process leaves
        again = MadeUp(space)
        resumed = run(name, space, path, again, halving)
        assert resumed == straight
        assert best(resumed) == best(straight)
        assert not {(s.model_dump_json(), f) for s, f in first.seen} & {(s.model_dump_json(), f) for s, f in again.seen}
        log = TrialLog(path)
        log.finish()
        assert [t.number for t in read_trials(path) if t.outcome.fidelity == 1] == sorted(
            t.number for t in straight if t.outcome.fidelity == 1
        )


@pytest.mark.parametrize("name", NAMES)
def test_proposals_keep_to_the_budget_and_follow_from_the_seed(name: str) -> None:
    space = SPACES[3]

    def proposals() -> list[Proposal]:
        searching, found = algorithm(name, space), []
        for _ in range(3):
            asked = searching.ask(4)
            searching.tell(asked, [outcome(one.rates, space) for one in asked])
            found += asked
        return found

    one = proposals()
    state = torch.random.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002 - that it stays as it is
    assert proposals() == one
    assert torch.equal(torch.random.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002
    assert [proposal.number for proposal in one] == list(range(12))
    assert all(space.spent(proposal.rates) <= space.wall.limit for proposal in one)


@pytest.mark.parametrize("name", ["tpe", "cmaes", pytest.param("ddpg", marks=pytest.mark.slow)])
def test_searches_learn(name: str) -> None:
    """The made-up reward is highest for equal rates; what is proposed last is better than what is proposed first."""
    space = space_of("irregular", 0.2, lower=0.02, upper=0.9)
    searching, rewards = algorithm(name, space, 200), []
    for _ in range(50):
        asked = searching.ask(4)
        outcomes = [outcome(one.rates, space) for one in asked]
        searching.tell(asked, outcomes)
        rewards += [one.reward for one in outcomes]
    assert np.mean(rewards[-40:]) > np.mean(rewards[:40]) + 0.1


def test_the_replay_holds_what_was_executed() -> None:
    space = SPACES[0]
    searching = DdpgSearch(space, 0, 24)
    asked = searching.ask(8)
    searching.tell(asked, [outcome(one.rates, space) for one in asked])
    n = len(space.decisions)
    executed = [[space.action(rate) for rate in one.rates] for one in asked]
    stored = searching.replay.actions[: 8 * n].reshape(8, n)
    np.testing.assert_allclose((stored + 1) / 2, executed, atol=1e-6)
    rewards = searching.replay.rewards[: 8 * n].reshape(8, n).sum(1)
    np.testing.assert_allclose(rewards, [outcome(one.rates, space).reward for one in asked], rtol=1e-6)
    assert searching.replay.dones[: 8 * n].reshape(8, n).tolist() == [[0.0] * (n - 1) + [1.0]] * 8


def test_the_same_strategy_is_evaluated_once(tmp_path: Path) -> None:
    class Same:
        def ask(self, count: int) -> list[Proposal]:
            self.count = getattr(self, "count", -1) + 1
            return [Proposal(2 * self.count + i, (0.05,) * 5) for i in range(count)]

        def tell(self, proposals: Sequence[Proposal], outcomes: Sequence[Outcome]) -> None:
            assert len(proposals) == len(outcomes)

    space, work = SPACES[0], MadeUp(SPACES[0])
    log = TrialLog(tmp_path / "trials.jsonl")
    trials = list(Search(space, work, log, evaluations=6, batch=2, halving=None).run(Same()))
    assert len(work.seen) == 1
    assert [trial.repeats for trial in trials] == [None, 0, 0, 0, 0, 0]
    assert [trial.number for trial in read_trials(tmp_path / "trials.jsonl")] == list(range(6))


def test_halving_gives_all_images_to_the_best_alone() -> None:
    assert rungs(4, None) == [1.0]
    assert rungs(4, 2) == [0.25, 0.5, 1.0]
    assert rungs(9, 3) == [1 / 9, 1 / 3, 1.0]
    assert rungs(3, 4) == [1.0]


def test_the_front_holds_what_nothing_beats() -> None:
    def trial(number: int, clean: float, robust: float, size: int) -> Trial:
        found = Outcome(clean, robust, clean + robust, size, size, size, None, 1.0, 0.0)
        return Trial(number, str(number), {}, found)

    trials = [trial(0, 0.9, 0.5, 10), trial(1, 0.8, 0.5, 10), trial(2, 0.5, 0.6, 10), trial(3, 0.4, 0.1, 5)]
    assert [t.number for t in front(trials, lambda outcome: outcome.weights)] == [3, 0, 2]


def test_an_evaluation_leaves_nothing_behind() -> None:
    """The same strategy gives the same outcome after others; fine-tuning and measured statistics are gone."""
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = tuple(layers_of(model, SHAPE))
    evaluator = Evaluator(setup_of(model), layers, Scoring(images=60, calibration=60, attack_steps=2, steps=3))
    half = strategy_of({layer.name: 0.5 for layer in layers})
    tenth = strategy_of({layer.name: 0.1 for layer in layers})
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = evaluator.evaluate(half)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = evaluator.evaluate(tenth)
    assert replace(evaluator.evaluate(half), seconds=0) == replace(first, seconds=0)
    assert other.weights < first.weights
    assert first.reward == first.clean + first.robust
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_batch_norm_is_measured_again() -> None:
    """Without it a network whose statistics are wrong guesses; with it, they do not matter."""
    architecture = ARCHITECTURES["digits-cnn"]
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(1, affine=False), architecture.build())
    layers = tuple(layers_of(model, SHAPE))
    scoring = Scoring(images=60, calibration=100, attack_steps=1)
    whole = strategy_of({layer.name: 1.0 for layer in layers})
    right = Evaluator(setup_of(model), layers, scoring).evaluate(whole)
    norm = model[0]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    norm.running_var.fill_(1e6)
    assert replace(Evaluator(setup_of(model), layers, scoring).evaluate(whole), seconds=0) == replace(right, seconds=0)
    assert float(norm.running_var) == 1e6


def test_without_a_threat_model_robust_is_clean() -> None:
    model = network()
    layers = tuple(layers_of(model, SHAPE))
    found = Evaluator(setup_of(model, None), layers, Scoring(images=30, calibration=30, steps=1)).evaluate(
        strategy_of({layer.name: 1.0 for layer in layers})
    )
    assert found.robust == found.clean
