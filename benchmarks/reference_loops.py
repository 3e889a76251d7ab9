"""What the training benchmark compares with: the loop a user would write, and a straightforward port of the paper's.

Both have the objective and the attack of the engine: ½ CE(f(x), y) + ½ CE(f(x'), y), PGD from a random start with
batch norm in evaluation mode.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

LLOYD_ITERATIONS = 20
"""At this number 400,000 values and 256 centres take the 10 s that the paper's code was measured to take."""


def plain_loop(
    network: nn.Module, optimizer: torch.optim.Optimizer, eps: float, steps: int
) -> Callable[[Tensor, Tensor], None]:
    """A step of PGD adversarial training in a few lines: fp32, channels first, `loss.backward()` inside the attack."""

    def step(x: Tensor, y: Tensor) -> None:
        network.eval()
        adversarial = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
        for _ in range(steps):
            adversarial = adversarial.detach().requires_grad_()
            F.cross_entropy(network(adversarial), y).backward()  # type: ignore[no-untyped-call]
            assert adversarial.grad is not None
            moved = adversarial.detach() + 2.5 * eps / steps * adversarial.grad.sign()
            adversarial = torch.min(torch.max(moved, x - eps), x + eps).clamp(0, 1)
        network.train()
        optimizer.zero_grad()
        loss = 0.5 * F.cross_entropy(network(x), y) + 0.5 * F.cross_entropy(network(adversarial), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


class PaperPort:
    """ATMC as its procedure is described (arXiv:1902.03538): factors re-multiplied in every forward pass, the budget
    met by sorting all magnitudes after every step, codebooks by Lloyd on a dense entries × values table of distances.

    W (m × n) = (I + U) V + C where m ≤ n, else U (I + V) + C, with everything but the main factor 0 at the start.
    """

    def __init__(self, network: nn.Module, keep: float, bits: int, rho: float, lr: float, eps: float, steps: int):
        self.network, self.bits, self.rho, self.eps, self.steps = network, bits, rho, eps, steps
        self.factors: dict[str, list[Tensor]] = {}
        self.rest: list[Tensor] = []
        for name, weight in network.named_parameters():
            if weight.dim() < 2:
                self.rest.append(weight)
                continue
            matrix = weight.detach().flatten(1).clone()
            m, n = matrix.shape
            side = torch.zeros(min(m, n), min(m, n))
            self.factors[name] = [t.requires_grad_() for t in (side, matrix, torch.zeros(m, n))]
        self.flat = [t for factors in self.factors.values() for t in factors]
        self.kept = int(keep * sum(factors[1].numel() for factors in self.factors.values()))
        self.optimizer = torch.optim.SGD([*self.flat, *self.rest], lr=lr, momentum=0.9, weight_decay=1e-4)
        self._project()
        self.auxiliaries = [t.detach().clone() for t in self.flat]
        self.duals = [torch.zeros_like(t) for t in self.flat]

    def _logits(self, x: Tensor) -> Tensor:
        shapes = {name: weight.shape for name, weight in self.network.named_parameters()}
        weights = {}
        for name, (side, main, rest) in self.factors.items():
            eye = torch.eye(len(side))
            wide = main.shape[0] <= main.shape[1]
            product = (eye + side) @ main if wide else main @ (eye + side)
            weights[name] = (product + rest).reshape(shapes[name])
        logits: Tensor = functional_call(self.network, weights, (x,))
        return logits

    @torch.no_grad()
    def _project(self) -> None:
        magnitudes = torch.cat([t.abs().flatten() for t in self.flat])
        threshold = magnitudes.sort(descending=True).values[self.kept - 1]
        for tensor in self.flat:
            tensor[tensor.abs() < threshold] = 0

    @torch.no_grad()
    def _quantize(self) -> None:
        for i, tensor in enumerate(self.flat):
            target, nonzero = tensor + self.duals[i], tensor != 0
            z = torch.where(nonzero, target, 0.0)
            if nonzero.sum() > 2**self.bits:
                z[nonzero] = table_lloyd(target[nonzero], 2**self.bits)
            self.auxiliaries[i] = z
            self.duals[i] = self.duals[i] + tensor - z

    def step(self, x: Tensor, y: Tensor, codebooks: bool) -> None:
        """A step of the quantising part; `codebooks`: one that updates them."""
        self.network.eval()
        adversarial = (x + torch.empty_like(x).uniform_(-self.eps, self.eps)).clamp(0, 1)
        for _ in range(self.steps):
            adversarial = adversarial.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(self._logits(adversarial), y), adversarial)
            moved = adversarial.detach() + 2.5 * self.eps / self.steps * gradient.sign()
            adversarial = torch.min(torch.max(moved, x - self.eps), x + self.eps).clamp(0, 1)
        self.network.train()
        self.optimizer.zero_grad()
        loss = 0.5 * F.cross_entropy(self._logits(x), y) + 0.5 * F.cross_entropy(self._logits(adversarial), y)
        for tensor, z, dual in zip(self.flat, self.auxiliaries, self.duals, strict=True):
            loss = loss + self.rho / 2 * (tensor - z + dual).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self._project()
        if codebooks:
            self._quantize()


def table_lloyd(values: Tensor, size: int) -> Tensor:
    """Each value's centre, by Lloyd from random centres on the (n, size) table of distances; values (n,)."""
    centres = values[torch.randperm(len(values))[:size]]
    for _ in range(LLOYD_ITERATIONS):
        nearest = (values[:, None] - centres[None]).abs().argmin(1)
        count = torch.bincount(nearest, minlength=size)
        sums = torch.zeros(size).index_add_(0, nearest, values)
        moved = torch.where(count > 0, sums / count.clamp(min=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres[(values[:, None] - centres[None]).abs().argmin(1)]
