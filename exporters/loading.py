"""A compressed file as a torch network: `atmc_tool.load`. Torch is imported when it is called."""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from atmc_tool.compressed import CompressedModel
from atmc_tool.errors import InputError, UsageError
from atmc_tool.model_card import ModelCard
from exporters.atmc_file import read_atmc
from exporters.dense import dense_state

if TYPE_CHECKING:
    from torch import nn

    from atmc_tool.models.normalized import NormalizedNetwork

MODEL = "model.atmc"  # in a run folder
YOUR_OWN = "atmc_tool.load(path, model=YourNetwork())"


def load(path: str | Path, model: "nn.Module | None" = None) -> "NormalizedNetwork":
    """The network in the `.atmc` file `path`, in evaluation mode, where `model` is, else on the CPU.

    It takes what the exported ONNX file takes: float32 (N, C, H, W) in [0, 1]; images of integers, such as uint8, are a
    UsageError. The normalisation that the network was trained with is inside. `load(path).network` is the bare network,
    which takes normalised images.

    path: the file, or the run folder that it lies in

    model: the network to fill, in place; its names and shapes must be those of the file. Without it, the file names one
        of the built-in networks. A file is never a reason to run code, so a network of your own must be given.

    >>> logits = atmc_tool.load("atmc-run/model.atmc")(images)

    Raises:
        InputError: missing or damaged; a network that is not built in and not given; names or shapes that do not fit.
        UsageError: `model` is no `torch.nn.Module`.
    """
    import torch
    from torch import nn

    from atmc_tool.models import find_architecture
    from atmc_tool.models.normalized import NormalizedNetwork
    from atmc_tool.models.reading import fit_state, fitted_network

    if model is not None and not isinstance(model, nn.Module):
        raise UsageError("model is no network", expected="a torch.nn.Module, built", got=type(model).__name__)
    path = _file(Path(path))
    compressed = read_atmc(path)
    card = _card(path, compressed)
    state = {name: torch.from_numpy(array) for name, array in dense_state(compressed).items()}
    if model is None:
        architecture = find_architecture(card.arch)
        if architecture is None:
            what = f"the network of {path} is {card.arch!r}, code that is not run on the word of a file"
            raise InputError(what, hint=YOUR_OWN)
        model = fitted_network(architecture, state)
    else:
        fit_state(model, state, hint=f"give the network that {path} was made of, {card.arch}")
    return NormalizedNetwork(model, card.mean, card.std).eval()


def _file(path: Path) -> Path:
    """`path`, or the model.atmc in the folder that it is."""
    if not path.is_dir():
        return path
    if not (path / MODEL).is_file():
        raise InputError(f"no {MODEL} in the folder {path}", expected="a run folder or an .atmc file")
    return path / MODEL


def _card(path: Path, model: CompressedModel) -> ModelCard:
    try:
        return ModelCard.model_validate(model.manifest.get("card"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "card"
        raise InputError(f"the model card in {path} is damaged", got=f"{where}: {first['msg']}") from error
