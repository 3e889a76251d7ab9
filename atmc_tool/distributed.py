"""Several processes that train one network: who they are, what each one does, and what they tell each other.

Every rank holds the whole training set, the whole network and the whole state of the method. Of a batch it takes one
share; gradients are added up over the ranks. All else (updates, projections, codebooks) every rank computes alike.
torch's DistributedDataParallel is not used: it adds up gradients of parameters, and here the network runs on weights
that are functions of the parameters.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from atmc_tool.errors import AtmcError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes of a run; alone, every function below does nothing.

    rank:  this one's number, of `size`
    local: its number among those of its machine

    Raises:
        AtmcError: in every function that waits for the others: one of them has ended.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and talks to the user."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """This rank's part of n images: consecutive ones, the shares' lengths differing by one at most."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def parts(self, n: int, most: int | None) -> list[slice]:
        """This rank's share of n images in parts of at most `most` (None: one part), equally many on every rank.

        None is empty where n is at least the number of ranks.
        """
        share, largest = self.share(n), -(-n // self.size)
        count = -(-largest // most) if most else 1
        length = share.stop - share.start
        bounds = [share.start + length * i // count for i in range(count + 1)]
        return [slice(*pair) for pair in pairwise(bounds)]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor, in place, by its sum over the ranks: the same bits on every rank.

        One transfer of all their bytes, at a ring's 2·(size − 1)/size times. One type, one device.
        """
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _others():
            dist.all_reduce(flat)
        for tensor, part in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def gather(self, tensor: Tensor) -> Tensor:
        """The ranks' tensors of one shape: (size, *shape), the same bits on every rank."""
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        with _others():
            dist.all_gather(found, tensor)
        return torch.stack(found)

    def agree(self, stop: bool, seconds: float) -> tuple[bool, float]:
        """(whether any rank wants to stop, the first rank's clock): the same on every rank."""
        if self.size == 1:
            return stop, seconds
        said = self.gather(torch.tensor([float(stop), seconds], dtype=torch.float64))
        return bool(said[:, 0].any()), float(said[0, 1])

    def each(self, value: T) -> list[T]:
        """The ranks' values in the order of the ranks; anything that can be pickled, on the CPU."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _others():
            dist.all_gather_object(values, value)
        return values

    def together(self, make: Callable[[], T]) -> T:
        """What `make` returns here. Where it raises an AtmcError on any rank, the first such one is raised on all."""
        outcome: tuple[T] | AtmcError
        try:
            outcome = (make(),)
        except AtmcError as error:
            outcome = error
        for error_of_one in self.each(outcome if isinstance(outcome, AtmcError) else None):
            if error_of_one is not None:
                raise error_of_one
        assert not isinstance(outcome, AtmcError)
        return outcome[0]

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first rank, where alone it is called; its AtmcError is raised on every rank.

        Anything that can be pickled, on the CPU.
        """
        if self.size == 1:
            return make()
        said: list[Any] = [None, None]
        if self.first:
            try:
                said = [make(), None]
            except AtmcError as error:
                said = [None, error]
        with _others():
            dist.broadcast_object_list(said, device=torch.device("cpu"))
        if said[1] is not None:
            raise said[1]
        return said[0]  # type: ignore[no-any-return]

    def equal(self, state: Any) -> bool:
        """Whether every rank has the same bits in the tensors of `state` (nested mappings and sequences).

        By a digest of 64 bits of each tensor.
        """
        if self.size == 1:
            return True
        digests = self.gather(torch.stack([_digest(tensor) for tensor in _tensors(state)]).cpu())
        return bool((digests == digests[0]).all())


@contextmanager
def _others() -> Iterator[None]:
    """What torch says when another process is gone, as an AtmcError."""
    try:
        yield
    except RuntimeError as error:  # gloo raises no class of its own
        hint = "torchrun --max-restarts starts them again; else go on with --resume"
        raise AtmcError("another process of this run has ended", hint=hint) from error


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, Sequence) and not isinstance(state, str):
        for value in state:
            yield from _tensors(value)


def _digest(tensor: Tensor) -> Tensor:
    """Σ b_i · (2i + 1) modulo 2^64, b_i the bits of element i as float64: int64, no dimension, on its device."""
    bits = tensor.detach().double().contiguous().view(-1).view(torch.int64)
    odd = torch.arange(1, 2 * len(bits), 2, device=bits.device)
    return (bits * odd).sum()
