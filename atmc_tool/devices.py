"""The device that a run works on."""

import torch

from atmc_tool.distributed import Ranks
from atmc_tool.errors import MissingEnvironmentError, UsageError


def select_device(text: str, ranks: Ranks) -> torch.device:
    """`auto` (CUDA where it is there), `cpu`, `cuda` or `cuda:0`; with several ranks a CUDA device for each.

    Raises:
        MissingEnvironmentError: not a device, or not there.
        UsageError: one CUDA device for several ranks.
    """
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    if ranks.size > 1 and text.startswith("cuda:"):
        raise UsageError("one device for several processes", expected="--device auto, cuda or cpu", got=text)
    if ranks.size > 1 and text == "cuda":
        text = f"cuda:{ranks.local}"
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise MissingEnvironmentError("unknown device", expected="auto, cpu or cuda:0", got=repr(text)) from error
    count = torch.cuda.device_count()
    if device.type not in ("cpu", "cuda"):
        raise MissingEnvironmentError("unknown device", expected="auto, cpu or cuda:0", got=repr(text))
    if device.type == "cuda" and (device.index or 0) >= count:
        many = count and ranks.size > 1
        hint = "as many processes as devices" if many else "use --device auto, or run atmc-tool doctor"
        raise MissingEnvironmentError(
            f"device {text} is not there", expected=f"one of {count} CUDA devices" if count else "a CUDA device",
            got="none" if not count else text, hint=hint,
        )  # fmt: skip
    return device
