"""What torchrun says to the processes that it starts, and how they join.

torchrun gives each of its processes RANK, LOCAL_RANK and WORLD_SIZE, and from the second start on after a failure a
TORCHELASTIC_RESTART_COUNT above 0.
"""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

    from atmc_tool.distributed import Ranks

POLL_SECONDS = 0.01


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if "TORCHELASTIC_RUN_ID" in os.environ and text.isdecimal() else default


def is_first() -> bool:
    """Whether this process is the one that writes files and talks to the user; so is one that is alone."""
    return _number("RANK", 0) == 0


def several() -> bool:
    """Whether torchrun started more than one process."""
    return _number("WORLD_SIZE", 1) > 1


def threads() -> int | None:
    """Threads for this process: its part of the machine's processors; None where it is alone."""
    return max(1, (os.cpu_count() or 1) // _number("LOCAL_WORLD_SIZE", 1)) if several() else None


@contextmanager
def joined() -> Iterator["Ranks"]:
    """The processes that torchrun started, joined until the end; one that is alone joins nothing."""
    from atmc_tool.distributed import Ranks

    if not several():
        yield Ranks()
        return
    import torch
    import torch.distributed as dist

    rank, size = _number("RANK", 0), _number("WORLD_SIZE", 1)
    cuda = torch.cuda.is_available() and dist.is_nccl_available()
    store, _, _ = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=dist.PrefixStore(_new_name(store, rank, size), store),  # type: ignore[attr-defined]
        rank=rank,
        world_size=size,
    )
    try:
        yield Ranks(rank, size, _number("LOCAL_RANK", 0))
    finally:
        dist.destroy_process_group()


def _new_name(store: "Store", rank: int, size: int) -> str:
    """A name that all processes of this start know, and none of an earlier start.

    The store is torchrun's and outlives a restart. What ended processes left in it, such as their addresses, must not
    be found again (torch 2.13 would connect to them). The count of restarts is no such name: it may differ between
    machines. So the first process answers whom it hears, until all have thanked it for the name that it gave out.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"atmc/hello/{rank}", own)
        name = store.get(f"atmc/answer/{own}").decode()
        store.set(f"atmc/thanks/{name}/{rank}", "")
        return name
    waiting = set(range(1, size))
    while waiting:
        for other in tuple(waiting):
            if store.check([f"atmc/thanks/{own}/{other}"]):
                waiting.remove(other)
            elif store.check([f"atmc/hello/{other}"]):
                store.set(f"atmc/answer/{store.get(f'atmc/hello/{other}').decode()}", own)
        time.sleep(POLL_SECONDS)
    return own


def restarted(ranks: "Ranks") -> bool:
    """Whether torchrun started the processes again after one of them had ended."""
    return any(ranks.each(_number("TORCHELASTIC_RESTART_COUNT", 0) > 0))
