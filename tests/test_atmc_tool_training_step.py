"""One step of training: its gradient by slow obvious code, and what it must not do on the way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from atmc_tool import training
from atmc_tool.attacks.pgd import pgd
from atmc_tool.budget import Budget
from atmc_tool.codebooks import positions
from atmc_tool.compute import Compute, has_bfloat16, select_compute
from atmc_tool.config import AttackConfig, CompressConfig, ComputeConfig
from atmc_tool.data import DataSet
from atmc_tool.data.data_set import Augmentation
from atmc_tool.data.images import Images
from atmc_tool.errors import InputError
from atmc_tool.methods.atmc import Atmc
from atmc_tool.models import resolve_architecture
from atmc_tool.threat_model import parse_threat_model
from atmc_tool.training_attack import StepAttack
from atmc_tool.training_step import Setup, loss_and_gradients

CPU = torch.device("cpu")
EPS, STEPS, STEP_SIZE, CLEAN = 0.1, 3, 0.05, 0.3


def digits_cnn() -> nn.Module:
    torch.manual_seed(0)
    return resolve_architecture("digits-cnn").build()


def with_batch_norm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10), nn.Dropout(0.0)
    )


def noise_data(n: int = 20) -> DataSet:
    generator = np.random.default_rng(0)
    images = Images(generator.integers(0, 256, (n, 1, 8, 8), np.uint8), generator.integers(0, 10, n))
    return DataSet("noise", images, images, images, 10, tuple("0123456789"), Augmentation(shift=1, flip=True), "")


def setup(net: nn.Module, compute: Compute, device: torch.device = CPU) -> Setup:
    attack = AttackConfig(steps=STEPS, step_size=STEP_SIZE)
    return Setup(net, (0.2,), (0.7,), device, noise_data(), parse_threat_model(str(EPS)), attack, 0, compute)


def batch(n: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 8, 8, generator=generator), torch.randint(10, (n,), generator=generator)


def gradients(net: nn.Module, compute: Compute) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(2)
    weights = dict(net.named_parameters())
    attack = StepAttack("pgd", STEPS, STEP_SIZE)
    return loss_and_gradients(setup(net, compute), weights, *batch(), eps=EPS, weight=CLEAN, attack=attack)


@pytest.mark.parametrize("build", [digits_cnn, with_batch_norm])
def test_loss_and_gradients_are_those_of_the_obvious_code(build: Callable[[], nn.Module]) -> None:
    loss, named = gradients(build(), Compute())

    net = build()
    images, labels = batch()
    torch.manual_seed(2)
    noise = torch.rand_like(images) * 2 - 1
    net.eval()
    adversarial = (images + EPS * noise).clamp(images - EPS, images + EPS).clamp(0, 1)
    for _ in range(STEPS):
        adversarial = adversarial.detach().requires_grad_()
        F.cross_entropy(net((adversarial - 0.2) / 0.7), labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
        assert adversarial.grad is not None
        moved = adversarial.detach() + STEP_SIZE * adversarial.grad.sign()
        adversarial = moved.clamp(images - EPS, images + EPS).clamp(0, 1)
    net.train()
    net.zero_grad()
    expected = (1 - CLEAN) * F.cross_entropy(net((adversarial - 0.2) / 0.7), labels)
    expected = expected + CLEAN * F.cross_entropy(net((images - 0.2) / 0.7), labels)
    expected.backward()  # type: ignore[no-untyped-call]

    torch.testing.assert_close(loss, expected.detach())
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(named[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("micro_batch", [2, 7, 20, 100])
def test_micro_batches_change_nothing_but_rounding(micro_batch: int) -> None:
    loss, named = gradients(digits_cnn(), Compute())
    other_loss, other = gradients(digits_cnn(), Compute(micro_batch=micro_batch))
    torch.testing.assert_close(other_loss, loss)
    assert set(other) == set(named)
    for name, gradient in named.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-3, atol=1e-5)


def test_a_weight_that_takes_no_part_has_no_gradient() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    net.register_parameter("unused", nn.Parameter(torch.ones(3)))
    _, named = gradients(net, Compute(micro_batch=8))
    assert set(named) == {"1.weight", "1.bias"}


def test_bfloat16_is_on_and_is_close() -> None:
    net = digits_cnn()
    whole, half = setup(net, Compute()), setup(net, Compute(torch.bfloat16))
    weights = dict(net.named_parameters())
    images, _ = batch()
    logits = [s.classifier(weights, s.compute.dtype).logits(images) for s in (whole, half)]
    assert logits[1].dtype == torch.float32
    assert not torch.equal(logits[0], logits[1])
    torch.testing.assert_close(logits[1], logits[0], rtol=0.05, atol=0.02)
    loss, named = gradients(digits_cnn(), Compute())
    half_loss, half_named = gradients(digits_cnn(), Compute(torch.bfloat16))
    torch.testing.assert_close(half_loss, loss, rtol=0.02, atol=0.01)
    for name, gradient in named.items():
        assert half_named[name].dtype == torch.float32
        assert F.cosine_similarity(half_named[name].flatten(), gradient.flatten(), 0) > 0.98, name


class Pooled(nn.Module):
    """A network that adds up features in a tensor of its own, which takes no other type than its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 10, 3)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.conv(images).flatten(2).permute(2, 0, 1)
        pooled = torch.zeros(1, len(images), 10, device=images.device)
        return pooled.index_add(0, torch.zeros(len(rows), dtype=torch.long, device=images.device), rows)[0]


def test_a_network_that_does_not_run_in_bfloat16_runs_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atmc_tool.compute.has_bfloat16", lambda _: True)
    selected = select_compute(ComputeConfig(), Pooled(), (1, 8, 8), 20, CPU)
    assert selected.dtype is None
    assert selected.notes[0] == "training on cpu, in float32"
    assert selected.notes[1].startswith("the network does not run in bfloat16: ")
    with pytest.raises(InputError, match="does not run in bfloat16"):
        select_compute(ComputeConfig(precision="bf16"), Pooled(), (1, 8, 8), 20, CPU)


def test_precision_is_what_is_asked_for() -> None:
    for precision, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
        config = ComputeConfig.model_validate({"precision": precision})
        assert select_compute(config, digits_cnn(), (1, 8, 8), 20, CPU).dtype is dtype
    automatic = select_compute(ComputeConfig(), digits_cnn(), (1, 8, 8), 20, CPU)
    assert (automatic.dtype is torch.bfloat16) == has_bfloat16(CPU)
    name = "bfloat16, its first layer in float32" if has_bfloat16(CPU) else "float32"
    assert automatic.notes == (f"training on cpu, in {name}",)


LATENT: dict[str, Any] = {}
HARD = {"factors": "uvc", "projection": "hard"}


@pytest.mark.parametrize(
    ("variant", "step"),
    [
        *((LATENT, 0), (LATENT, 400), (LATENT, 900), (LATENT, 904), (HARD, 0), (HARD, 400), (HARD, 900)),
        *(({"objective": name}, 400) for name in ("natural", "pgd-at", "trades", "mart", "free", "fgsm-rs", "n-fgsm")),
        ({"average": 0.9, "label_smoothing": 0.1}, 400),
    ],
)
def test_a_step_never_waits_for_the_device(variant: dict[str, Any], step: int) -> None:
    """Tensors on `meta` have no values: whatever would bring one to the host, or need one to know a shape, raises.

    From step 750 on it quantises. 904 updates the codebooks, which with the hard projection does wait: for the number
    of entries that each factor keeps, which then is another one after every step.
    """
    device = torch.device("meta")
    config = CompressConfig.model_validate({"max_steps": 1000, "epochs": 1000, **variant})
    net = digits_cnn()
    method = Atmc(net, config, Budget(2638))
    if step >= 750:
        method.weights(0.75)  # the budget is met, codebooks start
    flat = [tensor.detach().to(device).requires_grad_() for tensor in method._flat]
    method._flat = method._quantizer._flat = flat
    _to(device, method._search, "_flat", "_importance", "_masks")
    method._search._flat = method._search._importance = flat  # type: ignore[attr-defined]
    _to(device, method._quantizer, "_auxiliaries", "_before", "_duals", "_centres")
    if method._masks is not None:
        kept = [positions(mask).to(device) for mask in method._masks]
        _to(device, method, "_masks")
        method._quantizer._kept = method._masks, kept
    net = net.to(device)
    method._rest = {name: parameter for name, parameter in net.named_parameters() if name in method._rest}
    run = setup(net, Compute(micro_batch=16), device)
    loop = training._Loop(run, method, config, Path(), "", False, None, lambda _: None, lambda: False)
    loop.step = step
    images, labels = batch()
    loop._train_step(images.to(device), labels.to(device))
    assert loop.step == step + 1
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(loop.loss_sum)  # so that the test can fail


def _to(device: torch.device, owner: object, *names: str) -> None:
    """Move lists of tensors, where they are attributes of `owner`."""
    for name in names:
        setattr(owner, name, [None if t is None else t.to(device) for t in getattr(owner, name)])


class Allocated(TorchDispatchMode):
    """Bytes of new storage that operators return."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        taken = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in taken:
                self.bytes += tensor.untyped_storage().nbytes()
        return result


def test_an_attack_step_allocates_little() -> None:
    """The gradient's sign with its mask of NaNs, and two projections, besides what the network itself takes."""

    class Flat:
        def logits(self, images: Tensor) -> Tensor:
            raise NotImplementedError

        def logits_and_gradient(self, *_: object) -> tuple[None, Tensor]:
            return None, gradient

    images, labels = batch()
    gradient = torch.rand_like(images)
    taken = []
    for steps in (1, 11):
        with Allocated() as allocated:
            pgd(Flat(), images, labels, EPS, steps=steps, step_size=STEP_SIZE, noise=gradient)
        taken.append(allocated.bytes)
    assert taken[1] - taken[0] == 10 * (3 + 1 / 4) * images.nbytes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler hides its own warnings, but not where they are errors
def test_a_compiled_network_gives_the_same_gradients() -> None:
    loss, named = gradients(digits_cnn(), Compute())
    net = digits_cnn()
    compute = select_compute(ComputeConfig(precision="fp32", compile=True), net, (1, 8, 8), 20, CPU)
    other_loss, other = gradients(net, compute)
    torch.testing.assert_close(other_loss, loss)
    for name, gradient in named.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-3, atol=1e-5)
    assert functional_call(net, dict(net.named_parameters()), (batch()[0],)).shape == (20, 10)
