"""How many images of a batch fit through a network at once: what there is, what an image takes, what follows."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from atmc_tool.errors import InputError
from atmc_tool.torch_classifier import TorchClassifier

SHARE = 0.8  # of what is free; the rest is for what other processes are about to take
SAFETY = 1.6  # peak ÷ what is kept: 1.00 to 1.06 (ResNet-18, ResNet-20, WRN-16-2), 1.45 (digits-cnn), 1.55 (LeNet)
COPIES = 16  # of the parameters in float32: 6 measured while pruning; the rest for the best epoch's, and U, V, C


def available_bytes(device: torch.device, root: Path = Path("/")) -> int | None:
    """Bytes that can still be allocated on `device`; None where that is not known.

    On the CPU it is the least of the system's available memory and of what the control groups of this process leave
    (versions 1 and 2, each group up to the root), where cached files count as free. Known on Linux alone.

    root: where `proc` and `sys` are
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu" or sys.platform != "linux":
        return None
    found = [_field(root / "proc/meminfo", "MemAvailable:", 1024), *_left_by_groups(root)]
    return min((number for number in found if number is not None), default=None)


def _left_by_groups(root: Path) -> list[int | None]:
    """Limit − usage + cached files of every control group that this process is in."""
    groups = _text(root / "proc/self/cgroup").splitlines()
    left: list[int | None] = []
    for _, controllers, path in (line.split(":", 2) for line in groups if line.count(":") >= 2):
        if controllers == "":
            top, names = "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            top = "sys/fs/cgroup/memory"
        else:
            continue
        group = Path(path.lstrip("/"))
        for folder in (root / top / each for each in (group, *group.parents)):
            limit, usage = (_text(folder / name).strip() for name in names[:2])
            if limit.isdecimal() and usage.isdecimal():
                cached = _field(folder / "memory.stat", names[2], 1) or 0
                left.append(max(0, int(limit) - int(usage) + cached))
    return left


def _field(path: Path, name: str, unit: int) -> int | None:
    """The number after `name` in a line of its own, times `unit`; None where there is none."""
    for line in _text(path).splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == name:
            return unit * int(words[1])
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def bytes_per_image(
    network: nn.Module, image_shape: tuple[int, int, int], dtype: torch.dtype | None, device: torch.device
) -> int:
    """Bytes that one more image of `image_shape` (C, H, W) makes a forward pass keep for its backward pass.

    Half of what four images keep beyond what two keep, so that weights cancel out. The network (on `device`) runs in
    training mode; statistics of batch norm, random numbers and modes are afterwards what they were.

    dtype: of convolutions and products (autocast); None: float32
    """
    modes = {module: module.training for module in network.modules()}
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        network.train()
        few, more = (_kept(network, torch.zeros(n, *image_shape, device=device), dtype) for n in (2, 4))
    for module, training in modes.items():
        module.training = training
    return max(0, more - few) // 2


def _kept(network: nn.Module, images: Tensor, dtype: torch.dtype | None) -> int:
    """Bytes of all storages that a forward pass keeps for its backward pass."""
    state = {name: buffer.clone() for name, buffer in network.named_buffers()}
    state |= {name: parameter.detach().requires_grad_() for name, parameter in network.named_parameters()}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = TorchClassifier(network, state, (0.0,), (1.0,), dtype).logits(images)
        logits.sum()  # the graph, and with it what is kept, lives until here
    return sum(sizes.values())


def fitting_micro_batch(batch_size: int, per_image: int, n_parameters: int, available: int | None) -> int | None:
    """How many images of a batch go through the network at once; None: all of them, as where `available` is not known.

    A step is taken to need SAFETY · per_image bytes for each image at once and COPIES float32 values for each
    parameter, and may take SHARE of `available`. Where the batch is split, its parts are as equal as can be.

    per_image: see `bytes_per_image`

    Raises:
        InputError: not even two images fit.
    """
    if available is None:
        return None
    room = SHARE * available - 4 * COPIES * n_parameters
    fit = int(room // max(1, SAFETY * per_image))
    if fit >= batch_size:
        return None
    if fit >= 2:
        parts = -(-batch_size // fit)
        return -(-batch_size // parts)
    needed = (2 * SAFETY * per_image + 4 * COPIES * n_parameters) / SHARE
    raise InputError(
        "a training step does not fit into memory",
        expected=f"{in_words(needed)} for two images at once",
        got=f"{in_words(available)} free",
        hint="free memory, or try all the same: --set compute.micro_batch=2",
    )


def in_words(size: float) -> str:
    """`"1.2 GB"` or `"34 MB"`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
