"""Deep deterministic policy gradient over the layers, as in Heracles, by stable-baselines3 (extra `search`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import truncnorm
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from atmc_tool.search.algorithm import Proposal
from atmc_tool.search.environment import State, StrategyEnvironment
from atmc_tool.search.evaluation import Outcome
from atmc_tool.search.space import Space

HIDDEN = (300, 300)
WARM_UP = 0.25  # of all episodes: random ones, as 100 of 400 in Heracles
SIGMA, DECAY = 0.5, 0.99  # of the exploration noise, and its fall from an episode to the next
UPDATES, BATCH = 20, 128  # after each episode
REPLAY = 200  # episodes that are remembered
TAU = 0.01
ACTOR_RATE, CRITIC_RATE = 1e-4, 1e-3


class Replay(ReplayBuffer):
    """A memory that draws by a generator of its own; rewards of a batch have their mean taken off, as in Heracles."""

    def __init__(self, *arguments: Any, generator: np.random.Generator, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._generator = generator

    def sample(self, batch_size: int, env: object = None) -> ReplayBufferSamples:  # noqa: ARG002 - as it is called
        """`batch_size` transitions."""
        chosen = self._generator.integers(self.size(), size=batch_size)
        rewards = self.rewards[chosen]
        parts = (
            self.observations[chosen, 0],
            self.actions[chosen, 0],
            self.next_observations[chosen, 0],
            self.dones[chosen],
            rewards - rewards.mean(),
        )
        return ReplayBufferSamples(*(self.to_torch(part) for part in parts))


class _Agent(DDPG):
    """Actor and critic learn at rates of their own, which stay as they are."""

    def _update_learning_rate(self, optimizers: object) -> None:
        pass


@dataclass
class _Episode:
    """states (decisions + 1, 11), executed actions (decisions,)."""

    states: list[State]
    executed: list[float]


class DdpgSearch:
    """DDPG (Lillicrap et al. 2016, arXiv:1509.02971) with the settings of Heracles.

    The first quarter of the episodes takes actions uniform in [0, 1]; the others draw from a normal distribution around
    the actor's action, cut off at 0 and 1, whose width falls from 0.5 by 1 % an episode. The budget is the wall of the
    environment. Unlike in Heracles' code the *executed* action is what is remembered. Every step of an episode gets an
    equal part of its reward, so that they add up to it (Heracles: all of it; the best actions are the same).
    """

    def __init__(self, space: Space, seed: int, evaluations: int) -> None:
        self._environment = StrategyEnvironment(space)
        self._generator = np.random.default_rng(seed)
        self._warm_up, self._count = max(1, round(WARM_UP * evaluations)), 0
        self._open: dict[int, _Episode] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._agent = _Agent(
                "MlpPolicy",
                self._environment,
                buffer_size=REPLAY * len(space.decisions),
                tau=TAU,
                gamma=1.0,
                replay_buffer_class=Replay,
                replay_buffer_kwargs={"generator": self._generator},
                policy_kwargs={"net_arch": list(HIDDEN)},
                device="cpu",
            )
            self._random_state = torch.random.get_rng_state()
        self._agent.set_logger(Logger(folder=None, output_formats=[]))
        for network, rate in ((self._agent.actor, ACTOR_RATE), (self._agent.critic, CRITIC_RATE)):
            for group in network.optimizer.param_groups:
                group["lr"] = rate

    @property
    def replay(self) -> ReplayBuffer:
        """What it remembers; actions there are in [-1, 1]."""
        assert self._agent.replay_buffer is not None
        return self._agent.replay_buffer

    def ask(self, count: int) -> list[Proposal]:
        """The next `count` episodes."""
        return [self._play() for _ in range(count)]

    def tell(self, proposals: Sequence[Proposal], outcomes: Sequence[Outcome]) -> None:
        """Remember the episodes, then learn: 20 updates for each that is past the warm-up."""
        for proposal, outcome in zip(proposals, outcomes, strict=True):
            self._remember(self._open.pop(proposal.number), outcome.reward)
        updates = UPDATES * sum(proposal.number + 1 >= self._warm_up for proposal in proposals)
        if updates:
            with torch.random.fork_rng(devices=[]):
                torch.random.set_rng_state(self._random_state)
                self._agent.train(updates, BATCH)
                self._random_state = torch.random.get_rng_state()

    def _play(self) -> Proposal:
        state, _ = self._environment.reset()
        episode, over = _Episode([state], []), False
        while not over:
            action = np.array([self._action(state)], np.float32)
            state, _, over, _, info = self._environment.step(action)
            episode.states.append(state)
            episode.executed.append(info["executed"])
        proposal = Proposal(self._count, tuple(self._environment.executed))
        self._open[self._count] = episode
        self._count += 1
        return proposal

    def _action(self, state: State) -> float:
        if self._count < self._warm_up:
            return float(self._generator.random())
        mean = float(self._agent.predict(state, deterministic=True)[0][0])
        sigma = SIGMA * DECAY ** (self._count - self._warm_up)
        low, high = (0 - mean) / sigma, (1 - mean) / sigma
        return float(truncnorm.rvs(low, high, loc=mean, scale=sigma, random_state=self._generator))

    def _remember(self, episode: _Episode, reward: float) -> None:
        n = len(episode.executed)
        for step, executed in enumerate(episode.executed):
            action: NDArray[np.float32] = self._agent.policy.scale_action(np.array([[executed]], np.float32))
            self.replay.add(
                episode.states[step][None],
                episode.states[step + 1][None],
                action,
                np.array([reward / n]),
                np.array([step == n - 1]),
                [{}],
            )
