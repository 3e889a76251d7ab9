"""The skeleton computes what the network computes, for weights given as inputs, and holds nothing else."""

import logging

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx_networks import NETWORKS, Branching, images, randomized, run, torch_logits, traced
from torch import Tensor, nn

from atmc_tool.errors import AtmcError
from atmc_tool.models import ARCHITECTURES
from exporters.onnx_skeleton import trace_skeleton


def parameters(network: nn.Module, skeleton: bytes) -> dict[str, np.ndarray]:
    state = network.state_dict()
    return {info.name: state[info.name].numpy() for info in onnx.load_from_string(skeleton).graph.input[1:]}


@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("name", NETWORKS)
def test_computes_the_network_with_normalisation_inside(name: str, n: int) -> None:
    network, skeleton = traced(name)
    _, shape, mean, std = NETWORKS[name]
    x = images(shape, n)
    (got,) = run(skeleton, {"input": x, **parameters(network, skeleton)}, ["logits"])
    np.testing.assert_allclose(got, torch_logits(network, mean, std, x), atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_interface_is_the_contract(name: str) -> None:
    network, skeleton = traced(name)
    model = onnx.load_from_string(skeleton)
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, [(o.domain, o.version) for o in model.opset_import]) == (10, [("", 21)])
    image, *rest = model.graph.input
    shape = NETWORKS[name][1]
    assert image.name == "input"
    assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim] == ["N", *shape]
    (output,) = model.graph.output
    assert output.name == "logits"
    assert [d.dim_param or d.dim_value for d in output.type.tensor_type.shape.dim] == ["N", 10]
    not_needed = {"unusual": {"again.weight", "auxiliary.weight", "auxiliary.bias"}}.get(name, set())
    state = {k: v for k, v in network.state_dict().items() if "num_batches" not in k and k not in not_needed}
    assert [info.name for info in rest] == list(state)
    for info in rest:
        assert [d.dim_value for d in info.type.tensor_type.shape.dim] == list(state[info.name].shape)


@pytest.mark.parametrize("name", NETWORKS)
def test_holds_no_weight_and_tells_nothing_of_the_machine(name: str) -> None:
    _, skeleton = traced(name)
    model = onnx.load_from_string(skeleton)
    assert all(np.prod(tensor.dims) <= 8 for tensor in model.graph.initializer)
    assert not any(tell in skeleton for tell in (b"/", b".py", b"torch", b"stack", b"onnx_networks"))


def test_equal_networks_give_equal_bytes() -> None:
    build, shape, mean, std = NETWORKS["unusual"]
    assert trace_skeleton(build(), shape, 10, mean, std) == traced("unusual")[1]


def test_leaves_the_network_and_the_process_as_they_were(capfd: pytest.CaptureFixture[str]) -> None:
    build, shape, mean, std = NETWORKS["residual"]
    network = build()
    network.bn.eval()
    modes = [module.training for module in network.modules()]
    assert len(set(modes)) == 2
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.manual_seed(0)
    generator = torch.get_rng_state()
    assert trace_skeleton(network, shape, 10, mean, std) == traced("residual")[1], "its mode makes a difference"
    assert capfd.readouterr() == ("", "")
    assert modes == [module.training for module in network.modules()]
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())
    assert logging.getLogger("torch.onnx").isEnabledFor(logging.ERROR)


@pytest.mark.parametrize(("name", "limit"), [("digits-cnn", 1_200), ("resnet20", 10_000)])
def test_registered_networks_are_small_and_exact(name: str, limit: int) -> None:
    architecture = ARCHITECTURES[name]
    network = randomized(architecture.build())
    assert architecture.image_shape is not None
    skeleton = trace_skeleton(network, architecture.image_shape, 10, architecture.mean, architecture.std)
    assert len(skeleton) < limit
    x = images(architecture.image_shape, 3)
    (got,) = run(skeleton, {"input": x, **parameters(network, skeleton)})
    expected = torch_logits(network, architecture.mean, architecture.std, x)
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_normalisation_that_changes_nothing_costs_nothing() -> None:
    operators = [node.op_type for node in onnx.load_from_string(traced("linear")[1]).graph.node]
    assert operators == ["Reshape", "Gemm"]


def test_control_flow_of_tensors_is_exported() -> None:
    network = Branching()
    skeleton = trace_skeleton(network, (1, 4, 4), 10, (0.5,), (1.0,))
    for brightness in (0.9, 0.1):
        x = np.full((3, 1, 4, 4), brightness, np.float32)
        (got,) = run(skeleton, {"input": x, **parameters(network, skeleton)})
        np.testing.assert_allclose(got, torch_logits(network, (0.5,), (1.0,), x), atol=1e-5)


class Flawed(nn.Module):
    """A network whose `flaw` can't be exported, inside another one."""

    def __init__(self, flaw: str) -> None:
        super().__init__()
        self.body = Body(flaw)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Body(nn.Module):
    def __init__(self, flaw: str) -> None:
        super().__init__()
        self.flaw = flaw
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        match self.flaw:
            case "control flow":
                x = x * 2 if x.sum() > 0 else x
            case "loop":
                for _ in range(int(x.sum())):
                    x = x + 1
            case "operator":
                x = torch.special.bessel_j0(x)
            case "numpy":
                x = torch.from_numpy(np.sin(x.detach().numpy()))
            case "two outputs":
                return self.fc(x), x  # type: ignore[return-value]
            case "classes":
                return x
            case "batch":
                x = x.reshape(2, 16)
            case "rows":
                x = x[x[:, 0] > 0]
            case "shape":
                x = F.pad(x, (0, 1))
        return self.fc(x)


@pytest.mark.parametrize(
    ("flaw", "told"),
    [
        (
            "control flow",
            "control flow depends on the values of the image in body (Body), test_exporters_onnx_skeleton.py",
        ),
        ("loop", "control flow depends on the values of the image in body (Body)"),
        ("operator", "bessel_j0"),
        ("numpy", "in body (Body)"),
        ("two outputs", "got tuple"),
        ("classes", "expected one tensor of logits (N, 10), got (N, 16)"),
        ("batch", "fixes the batch size"),
        ("rows", "a row of logits for each image"),
        ("shape", "in body.fc (Linear)"),
    ],
)
def test_what_cannot_be_exported_is_named_in_one_line(flaw: str, told: str, capfd: pytest.CaptureFixture[str]) -> None:
    network = Flawed(flaw)
    with pytest.raises(AtmcError) as caught:
        trace_skeleton(network, (1, 4, 4), 10, (0.0,), (1.0,))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert network.training
    assert capfd.readouterr() == ("", "")


def test_a_parameter_named_as_the_image_is_refused() -> None:
    network = nn.Sequential(nn.Flatten())
    network.register_parameter("input", nn.Parameter(torch.ones(1)))
    with pytest.raises(AtmcError, match="rename"):
        trace_skeleton(network, (1, 2, 5), 10, (0.0,), (1.0,))
