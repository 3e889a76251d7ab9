import numpy as np
import torch

from atmc_tool.averaging import Average


def walk(steps: int, tensor: torch.Tensor, average: Average) -> list[np.ndarray]:
    """The values that `tensor` takes, each of them put into the average."""
    values = []
    for step in range(steps):
        tensor.copy_(torch.tensor([1.0, -2.0, 3.0]) * (step + 1) ** 2)
        average.update()
        values.append(tensor.numpy().astype(np.float64))
    return values


def test_young_it_is_the_mean_and_old_it_is_exponential() -> None:
    tensor = torch.zeros(3)
    average = Average([tensor], 0.8)
    values = [np.zeros(3), *walk(4, tensor, average)]
    expected = np.mean(values, axis=0)  # the first 1/(1 − decay) values weigh alike
    np.testing.assert_allclose(average.state()["values"][0], expected, rtol=1e-5)
    for value in walk(30, tensor, average):
        expected = 0.8 * expected + 0.2 * value
    np.testing.assert_allclose(average.state()["values"][0], expected, rtol=1e-5)


def test_a_restart_forgets() -> None:
    tensor = torch.zeros(3)
    average = Average([tensor], 0.8)
    walk(9, tensor, average)
    average.restart()
    begun = tensor.clone()
    tensor += 4
    average.update()
    torch.testing.assert_close(average.state()["values"][0], begun + 2)


def test_in_place_it_stands_for_the_tensors_and_they_come_back() -> None:
    tensor = torch.zeros(3)
    average = Average([tensor], 0.8)
    walk(9, tensor, average)
    before, averaged = tensor.clone(), average.state()["values"][0].clone()
    with average.in_place():
        assert torch.equal(tensor, averaged)
    assert torch.equal(tensor, before)
    average.put()
    assert torch.equal(tensor, averaged)


def test_of_nothing_it_does_nothing() -> None:
    average = Average([], 0.0)
    average.update()
    with average.in_place():
        average.restart()
    assert average.state()["values"] == []
