import torch
from torch import nn

from atmc_tool.tied import own_state, tied


class Shared(nn.Module):
    """A weight, a buffer and a whole module with two names each."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)
        self.again = self.norm

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: object) -> None:
        pass


def test_each_tensor_goes_by_the_first_of_its_names() -> None:
    network = Shared()
    others = tied(network)
    assert others["second.weight"] == "first.weight"
    assert {name for name in others if name.startswith("again.")} == {
        f"again.{name}" for name in network.norm.state_dict()
    }
    own = own_state(network)
    assert own.keys() | others.keys() | {"_extra_state"} == network.state_dict().keys()
    assert not own.keys() & others.keys()
    assert {name for name, _ in network.named_parameters()} <= own.keys()
    assert own["first.weight"].data_ptr() == network.first.weight.data_ptr()


def test_equal_values_do_not_tie() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].load_state_dict(network[0].state_dict())
    assert tied(network) == {}
    assert all(torch.equal(own_state(network)[name], tensor) for name, tensor in network.state_dict().items())
