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
LLOYD_TOLERANCE = 1e-4  # the published code's


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
    """The 8-bit stage of ATMC (arXiv:1902.03538) the way its published code runs it.

    W (m × n) = (I + U) V + C where m ≤ n, else U (I + V) + C, with everything but the main factor 0 at the start. A
    step: PGD with the factors re-multiplied in every forward pass; half clean, half adversarial loss and the penalty
    rho/2 ‖θ − z + u‖²; SGD; the l0 projection over all factors by sorting their magnitudes. Every few steps: z by
    `table_lloyd` of θ + u for each factor, then u += θ − z. Factors with fewer than 2^bits nonzeros stay as they are.
    """

    def __init__(
        self,
        network: nn.Module,
        keep: float,
        bits: int,
        rho: float,
        lr: float,
        eps: float,
        steps: int,
        tolerance: float,
    ):
        self.network, self.bits, self.rho, self.eps, self.steps = network, bits, rho, eps, steps
        self.tolerance = tolerance
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
            z = tensor + self.duals[i]
            if z.count_nonzero() >= 2**self.bits:
                z = table_lloyd(z.flatten(), 2**self.bits, self.tolerance).reshape(z.shape)
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


def table_lloyd(values: Tensor, size: int, tolerance: float) -> Tensor:
    """Each value's centre; values (n,), zeros among them.

    Lloyd with one centre fixed at 0 and `size` free ones, which start at nonzero values drawn at random. Distances,
    memberships and their products are tables of n × (size + 1), in memory that is allocated once. An empty cell's
    centre becomes 0. It ends after `LLOYD_ITERATIONS`, or when (Σ |shift|)² < `tolerance`.
    """
    nonzero = values[values != 0]
    centres = torch.cat([values.new_zeros(1), nonzero[torch.randperm(len(nonzero))[:size]]])
    table, member = values.new_empty(2, len(values), len(centres))
    for _ in range(LLOYD_ITERATIONS):
        nearest = torch.sub(values[:, None], centres, out=table).square_().argmin(1)
        member.zero_().scatter_(1, nearest[:, None], 1.0)
        sums, count = torch.mul(values[:, None], member, out=table).sum(0), member.sum(0)
        moved = torch.where(count > 0, sums / count.clamp(min=1), 0.0)
        moved[0] = 0
        shift, centres = (moved - centres).abs().sum(), moved
        if shift.square() < tolerance:
            break
    return centres[nearest]
