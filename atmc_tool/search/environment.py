"""The search for a strategy as a game: one move a layer, the reward at the end (Heracles; He et al. 2018, AMC)."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from atmc_tool.search.space import Space

State = NDArray[np.float32]
STATES = 11


class StrategyEnvironment(gymnasium.Env[State, State]):
    """Layer after layer an action in [0, 1]: the share of the way from the lowest to the highest rate.

    A state are 11 numbers in [0, 1]: index, input channels, output channels, positions of the output, output over input
    channels, entries of a kernel, weights, whether the layer is linear; then what is known only in the game: the shares
    of the network's cost that are removed so far and still ahead, and the action that was executed last.

    The budget is a wall: an action is lowered to the largest one that leaves every later layer its lowest rate. `step`
    says the action that was executed as `info["executed"]`; that is the one to learn from.

    reward: of the rates executed in a whole game; None: 0, and whoever plays finds it out later
    """

    def __init__(self, space: Space, reward: Callable[[Sequence[float]], float] | None = None) -> None:
        self.space, self._reward = space, reward
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (STATES,), np.float32)
        self.action_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
        self._fixed = _described(space)
        shares = [sum(layer.weights for layer in layers) for layers in space.decisions]
        self._shares = np.array(shares) / sum(shares)
        self.executed: list[float] = []
        self._last = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[State, dict[str, Any]]:
        """The state of the first layer. Nothing here is random."""
        super().reset(seed=seed, options=options)
        self.executed, self._last = [], 0.0
        return self._state(), {}

    def step(self, action: State) -> tuple[State, float, bool, bool, dict[str, Any]]:
        """The next layer's state, the reward at the end of the game, and whether it is the end."""
        wanted = self.space.rate(float(np.clip(action, 0, 1).reshape(-1)[0]))
        rate = self.space.walled(self.executed, wanted)
        self.executed.append(rate)
        self._last = self.space.action(rate)
        over = len(self.executed) == len(self.space.decisions)
        reward = self._reward(self.executed) if over and self._reward is not None else 0.0
        return self._state(), reward, over, False, {"executed": self._last, "rate": rate}

    def _state(self) -> State:
        done = len(self.executed)
        index = min(done, len(self.space.decisions) - 1)
        removed = float(np.dot(self._shares[:done], 1 - np.array(self.executed)))
        moving = [removed, float(self._shares[done:].sum()), self._last]
        return np.array([*self._fixed[index], *moving], np.float32).clip(0, 1)


def _described(space: Space) -> NDArray[np.float64]:
    """(decisions, 8): what is known of every layer from the start, each column from 0 to 1."""
    rows = []
    for index, layers in enumerate(space.decisions):
        first, weights = layers[0], sum(layer.weights for layer in layers)
        outputs, inputs, *kernel = first.shape
        size = float(np.prod(kernel))
        rows.append([index, inputs, outputs, first.outputs, outputs / inputs, size, weights, first.linear])
    table = np.array(rows, np.float64)
    low, high = table.min(0), table.max(0)
    scaled: NDArray[np.float64] = (table - low) / np.where(high > low, high - low, 1.0)
    return scaled
