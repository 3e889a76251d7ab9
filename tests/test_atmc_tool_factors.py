import numpy as np
import pytest
import torch

from atmc_tool.factors import factorize, main_factor, materialize, to_compressed

SHAPES = [(4, 6), (6, 4), (5, 5), (8, 3, 3, 3), (40, 2, 3, 3), (3, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["none", "uvc"])
def test_starts_at_exactly_the_weight(shape: tuple[int, ...], kind: str) -> None:
    weight = torch.randn(shape)
    factors = factorize(weight, kind)  # type: ignore[arg-type]
    assert torch.equal(materialize(factors, weight.shape), weight)
    assert set(factors) == ({"U", "V", "C"} if kind == "uvc" else {main_factor(shape[0], weight[0].numel())})


@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_product_with_the_identity_written_out(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    m, n = shape[0], weight[0].numel()
    factors = {name: torch.randn_like(t).double() for name, t in factorize(weight, "uvc").items()}
    if m <= n:
        expected = (torch.eye(m).double() + factors["U"]) @ factors["V"] + factors["C"]
    else:
        expected = factors["U"] @ (torch.eye(n).double() + factors["V"]) + factors["C"]
    torch.testing.assert_close(materialize(factors, weight.shape), expected.reshape(shape))


def test_every_factor_gets_a_gradient() -> None:
    weight = torch.randn(4, 6)
    factors = {name: torch.randn_like(t).requires_grad_() for name, t in factorize(weight, "uvc").items()}
    torch.autograd.backward(materialize(factors, weight.shape).square().sum())
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in factors.values())


@pytest.mark.parametrize("shape", SHAPES)
def test_compressed_holds_the_same_weight(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator)
    factors = {
        name: torch.randint(-2, 3, t.shape, generator=generator).float() for name, t in factorize(weight, "uvc").items()
    }
    compressed = to_compressed(factors, weight.shape, quantized=True)
    np.testing.assert_allclose(compressed.dense(), materialize(factors, weight.shape).numpy(), rtol=1e-6)
    for name, sparse in compressed.factors.items():
        assert sparse.shape == compressed.factor_shape(name)
        assert sparse.kept == int((factors[name] != 0).sum())
        assert sparse.codebook is not None
        assert len(sparse.codebook) <= 4
        np.testing.assert_array_equal(sparse.codebook[sparse.codes], sparse.values)
        np.testing.assert_array_equal(sparse.dense(), factors[name].numpy())


def test_an_empty_factor_is_left_out() -> None:
    compressed = to_compressed(factorize(torch.randn(4, 6), "uvc"), torch.Size((4, 6)), quantized=False)
    assert list(compressed.factors) == ["V"]
