"""The device that a run works on."""

import torch

from atmc_tool.errors import MissingEnvironmentError


def select_device(text: str) -> torch.device:
    """`auto` (CUDA where it is there), `cpu`, `cuda` or `cuda:0`.

    Raises:
        MissingEnvironmentError: not a device, or not there.
    """
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise MissingEnvironmentError("unknown device", expected="auto, cpu or cuda:0", got=repr(text)) from error
    count = torch.cuda.device_count()
    if device.type not in ("cpu", "cuda"):
        raise MissingEnvironmentError("unknown device", expected="auto, cpu or cuda:0", got=repr(text))
    if device.type == "cuda" and (device.index or 0) >= count:
        raise MissingEnvironmentError(
            f"device {text} is not there", expected=f"one of {count} CUDA devices" if count else "a CUDA device",
            got="none" if not count else text, hint="use --device auto, or run atmc-tool doctor",
        )  # fmt: skip
    return device
