"""HYDRA: scores that rank the weights of a robust network are trained, the weights are not (Sehwag et al. 2020).

W·m with m the mask of the largest |s|; the gradient goes straight through m (arXiv:2002.10509, equation 3):
∂L/∂s = sign(s)·(∂L/∂(W·m) · W).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from atmc_tool.methods.search import Fixed
from atmc_tool.selection import Selection


class _ScoredMask(torch.autograd.Function):
    @staticmethod
    def forward(scores: Tensor, weight: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG004
        return weight * mask

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], _output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        scores, weight = ctx.saved_tensors
        return scores.sign() * gradients[0] * weight, None, None


def initial_scores(matrix: Tensor) -> Tensor:
    """s = √(6 / fan-in) · W / max|W| of a weight as matrix (m, n), fan-in n: ranks the weights by their magnitude.

    Sehwag et al. 2020, section 3.2. A weight that is zero everywhere gets scores of zero.
    """
    largest = matrix.abs().amax().clamp(min=torch.finfo(matrix.dtype).tiny)
    return float((6 / matrix.shape[1]) ** 0.5) * matrix / largest


class ScoreSearch(Fixed):
    """A score per entry, of the shape of its factor; selection and gradients run over the scores."""

    trains_weights = False

    def __init__(self, flat: Sequence[Tensor], selection: Selection) -> None:
        self._scores = [initial_scores(t.detach()).requires_grad_() for t in flat]
        super().__init__(flat, selection, self._scores)

    def parameters(self) -> list[Tensor]:
        return self._scores

    def effective(self, kept: int) -> list[Tensor]:
        self._masks = self._selection.masks(self._scores, kept)
        scored: list[Tensor] = [
            _ScoredMask.apply(scores, tensor.detach(), mask)  # type: ignore[no-untyped-call]  # torch has no types here
            for scores, tensor, mask in zip(self._scores, self._flat, self._masks, strict=True)
        ]
        return scored

    @torch.no_grad()
    def restart(self) -> None:
        for scores, tensor in zip(self._scores, self._flat, strict=True):
            scores.copy_(initial_scores(tensor))

    def state(self) -> dict[str, Any]:
        return {**super().state(), "scores": [t.detach() for t in self._scores]}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        for tensor, saved in zip(self._scores, state["scores"], strict=True):
            tensor.copy_(saved)
