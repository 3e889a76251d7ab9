"""Reading trained networks in the forms people save them, and finding the network they belong to."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from atmc_tool.errors import InputError, UsageError
from atmc_tool.model_card import ModelCard
from atmc_tool.models import ARCHITECTURES, find_architecture
from atmc_tool.models.lenet import LeNet
from atmc_tool.models.reading import (
    ModelFile,
    choose_architecture,
    fit_state,
    fitted_network,
    infer_architecture,
    read_model,
)
from atmc_tool.models.writing import write_model

CARD = ModelCard(arch="lenet", image_shape=(1, 28, 28), n_classes=10)


def _state(name: str = "digits-cnn") -> dict[str, Tensor]:
    return dict(ARCHITECTURES[name].build().state_dict())


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _prefixed(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def _refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


FORMS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "best_prec1": 0.9},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "model_state_dict": lambda state: {"epoch": 3, "model_state_dict": state},
    "data parallel": lambda state: {"state_dict": _prefixed(state, "module.")},
    "compiled": lambda state: _prefixed(state, "_orig_mod."),
    "compiled, distributed": lambda state: _prefixed(state, "_orig_mod.module."),
    "parameters": lambda state: {name: nn.Parameter(tensor) for name, tensor in state.items()},
    "doubles": lambda state: {name: tensor.double() for name, tensor in state.items()},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".ckpt", ""])
def test_state_dicts_as_people_save_them(form: Callable[[dict[str, Tensor]], Any], suffix: str, tmp_path: Path) -> None:
    state = _state()
    path = tmp_path / f"model{suffix}"
    torch.save(form(state), path)
    file = read_model(path)
    assert _same(file.state, state)
    assert {(tensor.dtype, tensor.requires_grad) for tensor in file.state.values()} == {(torch.float32, False)}
    assert file.card is None
    assert file.module is None
    assert file.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_other_peoples_safetensors(tmp_path: Path) -> None:
    state = _state()
    safetensors.torch.save_file(_prefixed(state, "module."), tmp_path / "model.safetensors")
    assert _same(read_model(tmp_path / "model.safetensors").state, state)


def test_half_precision_becomes_float32_exactly(tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in _state().items()}
    torch.save(state, tmp_path / "model.pt")
    loaded = read_model(tmp_path / "model.pt").state
    assert all(loaded[name].dtype == torch.float32 and torch.equal(loaded[name].half(), state[name]) for name in state)


def test_a_whole_module_only_where_trusted(tmp_path: Path) -> None:
    network = ARCHITECTURES["lenet"].build()
    for value in (network, {"model": network}, nn.DataParallel(network)):
        torch.save(value, tmp_path / "whole.pt")
        assert "--trust-pickle" in _refusal(lambda: read_model(tmp_path / "whole.pt"))
        file = read_model(tmp_path / "whole.pt", trust_pickle=True)
        assert isinstance(file.module, LeNet)
        assert _same(file.state, network.state_dict())
        built = choose_architecture(file, None).build()
        assert built is not file.module
        images = torch.rand(2, 1, 28, 28)
        assert torch.equal(built(images), network(images))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([1, 2], "got list"),
        (torch.ones(3), "got Tensor"),
        ({}, "holds no state dict"),
        ({"state_dict": {}}, "got keys state_dict"),
        ({"epoch": 1, "net": {"a": torch.ones(1)}}, "got keys epoch, net"),
        ({3: torch.ones(1)}, "got keys 3"),
        ({f"key{i}": i for i in range(9)}, "got keys key0, key1, key2, key3, key4, …"),
    ],
)
def test_a_file_without_a_state_dict(value: object, says: str, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "model.pt")
    message = _refusal(lambda: read_model(tmp_path / "model.pt"))
    assert "at the top or under state_dict, model_state_dict, model" in message
    assert says in message


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.tensor([1.0, torch.nan]), "1 of 2 NaN or infinite"),
        (torch.tensor([-torch.inf, torch.inf]), "2 of 2 NaN or infinite"),
        (torch.tensor([1e300], dtype=torch.float64), "1 of 1 NaN or infinite"),
        (torch.eye(2).to_sparse(), "sparse_coo"),
        (torch.ones(1, dtype=torch.complex64), "complex64"),
        (torch.ones(1, dtype=torch.uint16), "uint16"),
        (torch.ones(1).to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (torch.empty(2, device="meta"), "meta"),
        (torch.zeros(1).expand(10**13), "too large"),
    ],
)
def test_tensors_that_are_no_weights(tensor: Tensor, says: str, tmp_path: Path) -> None:
    torch.save({"fine": torch.ones(1), "layer.bad": tensor}, tmp_path / "model.pt")
    message = _refusal(lambda: read_model(tmp_path / "model.pt"))
    assert says in message
    assert "layer.bad" in message or says == "too large"


def test_files_that_are_no_networks(tmp_path: Path) -> None:
    assert "No such file" in _refusal(lambda: read_model(tmp_path / "missing.pt"))
    _refusal(lambda: read_model(tmp_path))
    for name in ("model.pt", "model.safetensors"):
        (tmp_path / name).write_bytes(b"")
        assert "is empty" in _refusal(lambda name=name: read_model(tmp_path / name))  # type: ignore[misc]
    for name in ("model.atmc", "model.onnx"):
        assert "expected .pt, .pth, .safetensors" in _refusal(lambda name=name: read_model(tmp_path / name))  # type: ignore[misc]
    with (tmp_path / "huge.pt").open("wb") as file:
        file.truncate(5 << 30)  # a hole: takes no space
    assert "at most 4294967296 bytes" in _refusal(lambda: read_model(tmp_path / "huge.pt"))


@pytest.mark.parametrize("card", [5, torch.ones(1), "", "{}", '{"arch": 3}', CARD.model_dump_json()[:-1]])
def test_a_damaged_card(card: object, tmp_path: Path) -> None:
    torch.save({"state_dict": _state(), "atmc_tool": card}, tmp_path / "model.pt")
    assert "card in" in _refusal(lambda: read_model(tmp_path / "model.pt"))


@pytest.mark.parametrize("name", ["digits-cnn", "lenet", "resnet20", "mobilenet-v2"])
def test_fit_state_loads_every_entry(name: str) -> None:
    state = _state(name)
    for prefix in ("", "module."):
        network = ARCHITECTURES[name].build()
        fit_state(network, _prefixed(state, prefix))
        assert _same(network.state_dict(), state)


def test_fit_state_serves_networks_whose_names_look_wrapped() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 3)

    network, state = Wrapper(), Wrapper().state_dict()
    fit_state(network, {name.removeprefix("module."): tensor for name, tensor in state.items()})
    assert _same(network.state_dict(), state)


def test_fit_state_allows_missing_batch_counters_and_nothing_else() -> None:
    network = ARCHITECTURES["resnet20"].build()
    network(torch.rand(2, 3, 32, 32))
    assert network.state_dict()["bn1.num_batches_tracked"] == 1
    state = {name: tensor for name, tensor in _state("resnet20").items() if not name.endswith("num_batches_tracked")}
    fit_state(network, state)
    assert network.state_dict()["bn1.num_batches_tracked"] == 0
    assert all(torch.equal(network.state_dict()[name], state[name]) for name in state)
    del state["bn1.running_mean"]
    assert "1 missing (bn1.running_mean)" in _refusal(lambda: fit_state(network, state))


def test_fit_state_lists_all_that_differs_and_changes_nothing() -> None:
    network = ARCHITECTURES["digits-cnn"].build()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in _state().items()}
    del state["conv1.bias"]
    state |= {f"extra{i}": torch.ones(1) for i in range(7)} | {"fc2.bias": torch.ones(9), "fc1.bias": torch.tensor(0.0)}
    message = _refusal(lambda: fit_state(network, state))
    assert "do not fit DigitsCNN" in message
    assert "1 missing (conv1.bias)" in message
    assert "7 unexpected (extra0, extra1, extra2, extra3, extra4, …)" in message
    assert "2 wrongly shaped (fc1.bias a number instead of 128, fc2.bias 9 instead of 10)" in message
    assert "--arch" in message
    assert _same(network.state_dict(), before)


@pytest.mark.parametrize("name", ["digits-cnn", "resnet20"])
def test_infer_finds_the_only_network_that_fits(name: str) -> None:
    state = _state(name)
    generator = torch.get_rng_state()
    assert infer_architecture(state).name == name
    assert infer_architecture(_prefixed(state, "module.")).name == name
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("name", ["lenet", "lenet-relu"])
def test_infer_does_not_guess_between_networks_of_the_same_weights(name: str) -> None:
    message = _refusal(lambda: infer_architecture(_state(name)))
    assert "lenet and lenet-relu" in message
    assert "--arch" in message


def test_infer_names_the_nearest_network_and_how_it_differs() -> None:
    state = _state("resnet20") | {"linear.weight": torch.ones(100, 65), "linear.bias": torch.ones(99)}
    message = _refusal(lambda: infer_architecture(state))
    assert "nearest is resnet20" in message
    assert "2 wrongly shaped (linear.weight 100×65 instead of 100×64, linear.bias 99 instead of 100)" in message
    assert "--arch pkg.mod:callable" in message
    assert "8 missing" in _refusal(lambda: infer_architecture({"stranger": torch.ones(2)}))


def test_choose_takes_the_users_word_then_the_cards_then_what_fits(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    write_model(path, _state("lenet"), CARD.model_copy(update={"arch": "lenet-relu"}))
    assert choose_architecture(read_model(path), None) is ARCHITECTURES["lenet-relu"]
    assert choose_architecture(read_model(path), "lenet") is ARCHITECTURES["lenet"]
    with pytest.raises(UsageError):
        choose_architecture(read_model(path), "lenett")
    assert choose_architecture(ModelFile(_state("resnet20"), None, ""), None) is ARCHITECTURES["resnet20"]


def test_a_card_does_not_run_code(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').close()\ndef build(): pass\n")
    for arch in (f"{tmp_path / 'net.py'}:build", "os:abort", "unknown"):
        file = ModelFile(_state("lenet"), CARD.model_copy(update={"arch": arch}), "")
        assert f"--arch {arch}" in _refusal(lambda file=file: choose_architecture(file, None))  # type: ignore[misc]
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("name", "n_classes"), [("resnet18", 100), ("wrn-28-4", 7), ("resnet20", 43), ("lenet-adv", 26), ("vgg16", 2)]
)
def test_the_weights_say_how_many_classes_there_are(name: str, n_classes: int) -> None:
    state = ARCHITECTURES[name].build(n_classes).state_dict()
    architecture = infer_architecture(state)
    assert architecture is ARCHITECTURES[name]
    assert _same(fitted_network(architecture, _prefixed(state, "module.")).state_dict(), state)


def test_a_damaged_number_of_classes_is_refused_and_not_built() -> None:
    state = _state("lenet-adv")
    for weight in (torch.ones(1, 1).expand(1 << 40, 1), torch.ones(128), torch.ones(0, 128)):
        message = _refusal(
            lambda weight=weight: fitted_network(ARCHITECTURES["lenet-adv"], {**state, "fc2.weight": weight})
        )  # type: ignore[misc]
        assert "instead of 10×128" in message


def test_a_card_may_name_a_width_and_a_file_without_one_is_not_guessed() -> None:
    narrow = find_architecture("wrn-16-2")
    assert narrow is not None
    state = narrow.build(5).state_dict()
    card = CARD.model_copy(update={"arch": "wrn-16-2"})
    assert choose_architecture(ModelFile(state, card, ""), None).name == "wrn-16-2"
    assert "nearest is wrn-16-8" in _refusal(lambda: infer_architecture(state))
    for arch in ("wrn-16-21", "resnet18-99999999"):
        file = ModelFile(state, card.model_copy(update={"arch": arch}), "")
        assert "code that is not run" in _refusal(lambda file=file: choose_architecture(file, None))  # type: ignore[misc]
