"""How a training computes on its device: in which precision, how many images at once, compiled or not."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atmc_tool.config import ComputeConfig
from atmc_tool.errors import InputError
from atmc_tool.memory import available_bytes, bytes_per_image, fitting_micro_batch, in_words


@dataclass(frozen=True)
class Compute:
    """How the passes of a training step run; weights, gradients, updates and projections are float32 always.

    dtype:       of convolutions and matrix products (autocast); None: float32
    micro_batch: images that go through the network at once, gradients adding up; None: the whole batch
    notes:       what there is to say about it to the user: what is on, what is not and why
    """

    dtype: torch.dtype | None = None
    micro_batch: int | None = None
    notes: tuple[str, ...] = ()


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware (x86: AVX512-BF16 or AMX; CUDA: compute capability 8.0)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 and later
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16"))


def select_compute(
    config: ComputeConfig,
    network: nn.Module,
    image_shape: tuple[int, int, int],
    batch_size: int,
    device: torch.device,
    *,
    graphs: int = 1,
) -> Compute:
    """What `config` means for `network` (on `device`) and batches of `batch_size` images of `image_shape` (C, H, W).

    graphs: of forward passes that are in memory at the same time

    `auto` is bfloat16 where the device has it and the network runs in it. A batch that does not fit into memory is
    split. Costs a forward pass of two and one of four images.

    Raises:
        InputError: bfloat16 is asked for and the network does not run in it; not even two images fit into memory.
    """
    dtype, notes, micro_batch = None, [], config.micro_batch
    if config.precision == "bf16" or (config.precision == "auto" and has_bfloat16(device)):
        problem = _problem_in(torch.bfloat16, network, torch.zeros(2, *image_shape, device=device))
        if problem is None:
            dtype = torch.bfloat16
        elif config.precision == "bf16":
            what = "the network does not run in bfloat16"
            raise InputError(what, got=problem, hint="--set compute.precision=fp32")
        else:
            notes.append(f"the network does not run in bfloat16: {problem}")
    if micro_batch is None and (available := available_bytes(device)) is not None:
        per_image = bytes_per_image(network, image_shape, dtype, device)
        n_parameters = sum(parameter.numel() for parameter in network.parameters())
        micro_batch = fitting_micro_batch(batch_size, graphs * per_image, n_parameters, available)
        if micro_batch is not None:
            how = f"batches of {batch_size} images go through the network {micro_batch} at a time"
            notes.append(f"{how}: {in_words(available)} are free")
    if config.compile:
        # CUDA graphs come with this mode: the host launches one graph instead of hundreds of kernels
        network.compile(mode="reduce-overhead" if device.type == "cuda" else "default")
    how = "float32" if dtype is None else "bfloat16, its first layer in float32"
    parts = f", {config.micro_batch} images at a time" if config.micro_batch else ""
    notes.insert(0, f"training on {device}, in {how}{parts}{', compiled' if config.compile else ''}")
    return Compute(dtype, micro_batch, tuple(notes))


@torch.no_grad()
def _problem_in(dtype: torch.dtype, network: nn.Module, images: Tensor) -> str | None:
    """Why `network` can't run on `images` under autocast to `dtype`; None where it can."""
    network.eval()
    try:
        with torch.autocast(images.device.type, dtype):
            network(images)
    except (RuntimeError, ValueError, TypeError) as error:
        return (str(error) or type(error).__name__).splitlines()[0]
    return None
