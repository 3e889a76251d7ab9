import pytest
import torch

from atmc_tool import admm


def test_penalty_and_its_gradient() -> None:
    theta = torch.tensor([1.0, 2.0], requires_grad=True)
    z, u = torch.tensor([0.5, 2.5]), torch.tensor([0.1, 0.2])
    value = admm.penalty([theta], [z], [u], rho=0.4)
    assert value.item() == pytest.approx(0.2 * (0.6**2 + 0.3**2), rel=1e-6)
    torch.autograd.backward(value)
    assert theta.grad is not None
    torch.testing.assert_close(theta.grad, torch.tensor([0.4 * 0.6, 0.4 * -0.3]))


def test_the_gradient_does_not_grow_with_dual_updates() -> None:
    """R-ADMM's code kept the graph in the dual, so the gradient grew with every update (ratios 1, 2, 3, 4)."""
    theta, z, u = torch.tensor([1.0], requires_grad=True), torch.tensor([0.0]), torch.tensor([0.0])
    mask = torch.tensor([True])
    for _ in range(4):
        admm.update_dual(theta, z, u, mask)
        assert not u.requires_grad
        gradient = torch.autograd.grad(admm.penalty([theta], [z], [u], rho=1.0), theta)[0]
        torch.testing.assert_close(gradient, theta.detach() - z + u)


def test_dual_is_zero_off_the_mask() -> None:
    u = torch.tensor([1.0, 1.0])
    admm.update_dual(torch.tensor([3.0, 3.0]), torch.tensor([1.0, 1.0]), u, torch.tensor([True, False]))
    assert u.tolist() == [3.0, 0.0]


def test_finds_the_projection_of_a_quadratic() -> None:
    """min ‖θ − a‖² subject to θ in {−1, 1}² by ADMM ends at the nearest corner with vanishing residuals."""
    a = torch.tensor([0.6, -1.7])
    theta, u, rho = a.clone(), torch.zeros(2), 1.0
    z = theta.sign()
    for _ in range(200):
        theta = (2 * a + rho * (z - u)) / (2 + rho)
        before, z = z, (theta + u).sign()
        admm.update_dual(theta, z, u, torch.ones(2, dtype=torch.bool))
    primal, dual = admm.residuals([theta], [z], [before], rho)
    assert z.tolist() == [1.0, -1.0]
    assert primal < 1e-4
    assert dual == 0.0
