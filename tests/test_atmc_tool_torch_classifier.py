import pytest
import torch
from torch import Tensor, nn

from atmc_tool.torch_classifier import TorchClassifier


class Flattening(nn.Module):
    """Flattens as users do: `view` takes contiguous tensors only, `flatten` any."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head, self.how = nn.Linear(4 * 36, 5), how
        self.contiguous: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        x = torch.dropout(self.norm(self.conv(x)), 0.5, self.training)
        self.contiguous.append(x.is_contiguous())
        return self.head(x.view(x.size(0), -1) if self.how == "view" else x.flatten(1))


@pytest.mark.parametrize("how", ["view", "flatten"])
def test_runs_in_the_layout_that_the_network_takes_and_changes_nothing_by_finding_out(how: str) -> None:
    torch.manual_seed(0)
    network, images = Flattening(how), torch.rand(6, 3, 8, 8)
    expected = network.eval()(images)
    network.train()
    before = {name: tensor.clone() for name, tensor in network.norm.state_dict().items()}
    state = torch.get_rng_state()
    for _ in range(2):  # the layout is found once and kept
        network.contiguous.clear()
        with torch.no_grad():
            TorchClassifier(network, dict(network.named_parameters()), (0.0,), (1.0,)).logits(images)
    assert network.contiguous == [how == "view"]
    assert network.training
    assert network.norm.num_batches_tracked == before["num_batches_tracked"] + 2
    torch.set_rng_state(state)
    classifier = TorchClassifier(
        network.eval(), {**network.state_dict(), **{f"norm.{k}": v for k, v in before.items()}}, (0.0,), (1.0,)
    )
    torch.testing.assert_close(classifier.logits(images), expected)


def test_random_numbers_stay_the_same() -> None:
    torch.manual_seed(0)
    images = torch.rand(6, 3, 8, 8)
    drawn = []
    for network in [Flattening("view")] * 2:
        torch.manual_seed(1)
        network.load_state_dict(Flattening("view").state_dict())
        torch.manual_seed(2)
        drawn.append(TorchClassifier(network, dict(network.named_parameters()), (0.0,), (1.0,)).logits(images))
    assert torch.equal(*drawn)
