"""A running average of tensors while they are trained."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Average:
    """The exponential average a of `tensors` θ, which others change in place; of no tensors it does nothing.

    With the update number t since the start, a ← a + max(1 − decay, 1/(t + 1))·(θ − a): the start is forgotten at the
    rate at which the average grows old. Takes the memory of θ once.
    """

    def __init__(self, tensors: Sequence[Tensor], decay: float) -> None:
        self._tensors = [tensor.detach() for tensor in tensors]
        self._decay = decay
        self.restart()

    def restart(self) -> None:
        """Forget all but θ as it is."""
        self._values = [tensor.clone() for tensor in self._tensors]
        self._updates = 0

    def update(self) -> None:
        """Take θ as it is into the average."""
        self._updates += 1
        if self._values:
            torch._foreach_lerp_(self._values, self._tensors, max(1 - self._decay, 1 / (self._updates + 1)))

    def put(self) -> None:
        """θ ← a, in place."""
        for tensor, value in zip(self._tensors, self._values, strict=True):
            tensor.copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """θ is a inside, and to the bit what it was after."""
        before = [tensor.clone() for tensor in self._tensors]
        self.put()
        try:
            yield
        finally:
            for tensor, value in zip(self._tensors, before, strict=True):
                tensor.copy_(value)

    def state(self) -> dict[str, Any]:
        """What `load_state` takes back."""
        return {"values": self._values, "updates": self._updates}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        for value, saved in zip(self._values, state["values"], strict=True):
            value.copy_(saved)
        self._updates = state["updates"]
