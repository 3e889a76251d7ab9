"""What torchrun says to the processes that it starts, and how they join. Imports no torch where there is one process.

torchrun gives each of its processes RANK, LOCAL_RANK and WORLD_SIZE, and from the second start on after a failure a
TORCHELASTIC_RESTART_COUNT above 0.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atmc_tool.distributed import Ranks


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if "TORCHELASTIC_RUN_ID" in os.environ and text.isdecimal() else default


def is_first() -> bool:
    """Whether this process is the one that writes files and talks to the user; so is one that is alone."""
    return _number("RANK", 0) == 0


@contextmanager
def joined() -> Iterator["Ranks"]:
    """The processes that torchrun started, joined until the end; one that is alone joins nothing."""
    from atmc_tool.distributed import Ranks

    size = _number("WORLD_SIZE", 1)
    if size == 1:
        yield Ranks()
        return
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield Ranks(_number("RANK", 0), size, _number("LOCAL_RANK", 0))
    finally:
        dist.destroy_process_group()


def restarted(ranks: "Ranks") -> bool:
    """Whether torchrun started the processes again after one of them had ended."""
    return any(ranks.each(_number("TORCHELASTIC_RESTART_COUNT", 0) > 0))
