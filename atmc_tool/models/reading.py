"""Trained networks from files, ours and other people's, and the network that their weights belong to."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from atmc_tool.errors import InputError
from atmc_tool.files import read_bytes, sha256
from atmc_tool.model_card import ModelCard
from atmc_tool.models import ARCHITECTURES, Architecture, find_architecture, resolve_architecture
from atmc_tool.models.safetensors_file import decode_safetensors
from atmc_tool.models.torch_file import load_torch

MAX_FILE_BYTES = 4 << 30  # of a file, and of its tensors once decoded
MAX_CLASSES = 1 << 16
CARD_KEY = "atmc_tool"
_NESTED_UNDER = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and DistributedDataParallel, of torch.compile
_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_PLAIN_TYPES = _FLOATS | {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_NOT_STATES = (".atmc", ".onnx", ".pt2")


@dataclass(frozen=True)
class ModelFile:
    """A trained network as read from a file.

    state:  name → finite CPU tensor, floating-point ones as float32; names without prefixes of wrappers
    card:   what the file says about itself, None in files that are not ours
    digest: hexadecimal SHA-256 of the file
    module: the network itself where the file is a whole pickled module, else None
    """

    state: dict[str, Tensor]
    card: ModelCard | None
    digest: str
    module: nn.Module | None = None


def read_model(path: Path, trust_pickle: bool = False) -> ModelFile:
    """Read a state dict: safetensors by that suffix, anything else as a file of `torch.save`.

    The state dict may stand under `state_dict`, `model_state_dict` or `model`. No code in the file is run, unless
    the file can't be loaded otherwise and `trust_pickle`; only then may it be a whole pickled module.

    Raises:
        InputError: missing, empty, larger than 4 GiB, damaged, with code in it, without a state dict, or with a
            weight that is NaN or infinite.
    """
    if path.suffix.lower() in _NOT_STATES:
        raise InputError(f"{path} is not a trained network's file", expected=".pt, .pth, .safetensors", got=path.suffix)
    content = read_bytes(path, MAX_FILE_BYTES)
    if not content:
        raise InputError(f"{path} is empty", expected="the weights of a trained network", got="0 bytes")
    module: nn.Module | None = None
    found: Mapping[str, Tensor]
    card: Any
    if path.suffix.lower() == ".safetensors":
        found, card = decode_safetensors(path, content)
    else:
        loaded = load_torch(path, content, trust_pickle)
        card = loaded.get(CARD_KEY) if isinstance(loaded, Mapping) else None
        module = _find_module(loaded)
        found = module.state_dict() if module is not None else _find_state(path, loaded)
    return ModelFile(_checked(path, _without_wrappers(found)), _parse_card(path, card), sha256(content), module)


def fit_state(
    network: nn.Module, state: Mapping[str, Tensor], hint: str = "give the right network with --arch"
) -> None:
    """Load `state` into `network`, every key and shape of which must fit.

    Only the batch counters of batch norm may be missing (files older than torch 0.4.1 have none); they become 0.

    Raises:
        InputError: names what is missing, unexpected and wrongly shaped; the network is then as it was.
    """
    own = _tensors(network)
    fitting = _without_wrappers(state)
    if differences := _differences(own, fitting):
        raise InputError(f"the weights do not fit {type(network).__name__}: {differences}", hint=hint)
    with torch.no_grad():
        for name, tensor in own.items():
            if name in fitting:
                tensor.copy_(fitting[name])
            else:
                tensor.zero_()


def fitted_network(architecture: Architecture, state: Mapping[str, Tensor]) -> nn.Module:
    """A network of `architecture` with the weights `state`, and with as many logits as these give.

    Raises:
        UsageError, InputError: see `resolve_architecture`, `fit_state`.
    """
    network = architecture.build(_n_classes(architecture, _without_wrappers(state)))
    fit_state(network, state)
    return network


def infer_architecture(state: Mapping[str, Tensor]) -> Architecture:
    """The one network of `ARCHITECTURES` whose keys and shapes are those of `state`, for any number of classes.

    Raises:
        InputError: none fits (names the nearest and how it differs), or several do (`lenet` and `lenet-relu`).
    """
    state = _without_wrappers(state)
    with torch.device("meta"):  # shapes alone: no memory, no random numbers
        known = {name: _tensors(a.build(_n_classes(a, state))) for name, a in ARCHITECTURES.items()}
    fitting = [name for name, own in known.items() if not _differences(own, state)]
    if len(fitting) == 1:
        return ARCHITECTURES[fitting[0]]
    if fitting:
        raise InputError(
            f"the weights fit {' and '.join(fitting)} alike, and the file does not say which",
            hint=f"choose one with --arch {fitting[0]}",
        )
    nearest = max(known, key=lambda name: _similarity(known[name], state))
    differences = _differences(known[nearest], state)
    raise InputError(
        f"the weights fit none of {', '.join(known)}; the nearest is {nearest}, with {differences}",
        hint="give the network with --arch pkg.mod:callable or --arch file.py:callable",
    )


def choose_architecture(file: ModelFile, spec: str | None) -> Architecture:
    """The network of `file`: what the user says (`spec`), else its own module, else its card, else what fits.

    A file is never a reason to run code: where its card names a callable, the user has to repeat it.

    Raises:
        UsageError, InputError: see `resolve_architecture`, `infer_architecture`.
    """
    if spec is not None:
        return resolve_architecture(spec)
    if (module := file.module) is not None:
        return Architecture(type(module).__name__, lambda _: copy.deepcopy(module))
    if file.card is None:
        return infer_architecture(file.state)
    if (known := find_architecture(file.card.arch)) is None:
        raise InputError(
            f"the file's network is {file.card.arch!r}, code that is not run on the word of a file",
            expected=f"a registered network ({', '.join(ARCHITECTURES)}) or --arch",
            hint=f"--arch {file.card.arch}",
        )
    return known


def _n_classes(architecture: Architecture, state: Mapping[str, Tensor]) -> int:
    """Rows of the layer of `architecture` whose units are the classes; 10 where `state` has none that could be it."""
    weight = state.get(f"{architecture.logits}.weight")
    return len(weight) if weight is not None and weight.ndim == 2 and 1 < len(weight) <= MAX_CLASSES else 10


def _find_module(loaded: object) -> nn.Module | None:
    nested = [loaded.get(key) for key in _NESTED_UNDER] if isinstance(loaded, Mapping) else []
    module = next((value for value in (loaded, *nested) if isinstance(value, nn.Module)), None)
    return module.module if isinstance(module, nn.DataParallel) else module


def _find_state(path: Path, loaded: object) -> Mapping[str, Tensor]:
    nested = [loaded.get(key) for key in _NESTED_UNDER] if isinstance(loaded, Mapping) else []
    for value in (loaded, *nested):
        if isinstance(value, Mapping) and value and all(_is_entry(*entry) for entry in value.items()):
            return value
    got = f"keys {_listed(str(key) for key in loaded)}" if isinstance(loaded, Mapping) else type(loaded).__name__
    expected = f"name → tensor, at the top or under {', '.join(_NESTED_UNDER)}"
    raise InputError(f"{path} holds no state dict", expected=expected, got=got)


def _is_entry(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor)


def _without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = dict(state)
    while prefix := next((p for p in _WRAPPERS if state and all(key.startswith(p) for key in state)), ""):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def _checked(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor dense, real, finite, on the CPU; a copy of its own, float32 where floating-point."""
    for name, tensor in state.items():
        if tensor.dtype not in _PLAIN_TYPES or tensor.layout is not torch.strided or tensor.device.type != "cpu":
            form = f"{tensor.dtype}, {tensor.layout}, {tensor.device}"
            raise InputError(f"{path}: {name} is not a plain tensor", expected="dense real numbers", got=form)
    # A tensor of a few bytes can be expanded to any size by a stride of 0.
    size = sum(max(4, tensor.element_size()) * tensor.numel() for tensor in state.values())
    if size > MAX_FILE_BYTES:
        raise InputError(f"{path} is too large", expected=f"at most {MAX_FILE_BYTES} bytes of tensors", got=f"{size}")
    checked = {}
    for name, tensor in state.items():
        dtype = torch.float32 if tensor.dtype in _FLOATS else tensor.dtype
        own = tensor.detach().to(dtype).clone(memory_format=torch.contiguous_format)
        if bad := int((~torch.isfinite(own)).sum()):
            got = f"{bad} of {own.numel()} NaN or infinite"
            raise InputError(f"{path}: {name} is not finite", expected="float32 numbers", got=got)
        checked[name] = own
    return checked


def _parse_card(path: Path, card: Any) -> ModelCard | None:
    if card is None:
        return None
    try:
        return ModelCard.model_validate_json(card)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"the model card in {path} is damaged", got=f"{where}: {first['msg']}") from error


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """The network's own parameters and buffers by their names in files, sharing its memory."""
    return _without_wrappers({name: t for name, t in network.state_dict().items() if isinstance(t, Tensor)})


def _differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """What keeps `state` from fitting a network with the tensors `own`; empty where nothing does."""
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    wrong = [
        f"{name} {_form(state[name])} instead of {_form(own[name])}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    groups = {"missing": missing, "unexpected": unexpected, "wrongly shaped": wrong}
    return "; ".join(f"{len(names)} {what} ({_listed(names)})" for what, names in groups.items() if names)


def _similarity(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> float:
    """Share of all keys that both have with the same shape; a key with another shape counts half."""
    shared = [1.0 if own[name].shape == state[name].shape else 0.5 for name in own if name in state]
    return sum(shared) / len(own.keys() | state.keys())


def _form(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"


def _listed(names: Iterable[str], limit: int = 5) -> str:
    names = list(names)
    return ", ".join(name[:120] for name in names[:limit]) + (", …" if len(names) > limit else "")
