"""Several processes that train one network: who they are, what each one does, and what they tell each other.

Every rank holds the whole training set, the whole network and the whole state of the method. Of a batch it takes one
share; gradients are added up over the ranks. All else (updates, projections, codebooks) every rank computes alike.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """The processes of a run: this one's number and how many there are; alone, every function below does nothing."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and talks to the user."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """This rank's part of n images: consecutive ones, the shares' lengths differing by one at most."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor, in place, by its sum over the ranks: the same bits on every rank.

        One transfer of all their bytes, at a ring's 2·(size − 1)/size times. float32, one device.
        """
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def agree(self, stop: bool, seconds: float) -> tuple[bool, float]:
        """(whether any rank wants to stop, the first rank's clock): the same on every rank."""
        if self.size == 1:
            return stop, seconds
        said = torch.tensor([float(stop), seconds if self.first else 0.0], dtype=torch.float64)
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return bool(said[0]), float(said[1])

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What `make` returns on the first rank, where alone it is called: nested dicts of tensors and numbers."""
        if self.size == 1:
            return make()
        content: list[bytes | None] = [None]
        if self.first:
            buffer = io.BytesIO()
            torch.save(make(), buffer)
            content = [buffer.getvalue()]
        dist.broadcast_object_list(content)
        assert content[0] is not None
        return torch.load(io.BytesIO(content[0]), weights_only=True)

    def equal(self, tensors: Sequence[Tensor]) -> bool:
        """Whether every rank has the same bits in `tensors`, float32: by a 63-bit digest of each."""
        if self.size == 1:
            return True
        digests = torch.stack([_digest(tensor) for tensor in tensors]).cpu()
        others = [torch.empty_like(digests) for _ in range(self.size)]
        dist.all_gather(others, digests)
        return all(torch.equal(other, digests) for other in others)


def _digest(tensor: Tensor) -> Tensor:
    """Σ bits_i · (2i + 1) modulo 2^64 of a float32 tensor: int64, without a dimension, on its device."""
    bits = tensor.detach().contiguous().view(-1).view(torch.int32).long()
    odd = torch.arange(1, 2 * len(bits), 2, device=bits.device)
    return (bits * odd).sum()
