"""Where the time of a training step goes, what it has to compute, and what the machine can do."""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import atmc_tool.methods.search as search
import atmc_tool.trainee as trainee
import atmc_tool.training_step as training_step
from atmc_tool.methods.atmc import Atmc
from atmc_tool.methods.quantizer import Quantizer
from atmc_tool.selection import Selection
from atmc_tool.torch_classifier import TorchClassifier

# (owner, attribute) → stage; of nested calls only the inner one's time counts for the inner stage
STAGES: dict[tuple[Any, str], str] = {
    (training_step, "attacked"): "attack, rest",
    (TorchClassifier, "logits"): "forward",
    (TorchClassifier, "_lay_out"): "materialising",
    (Atmc, "weights"): "materialising",
    (Selection, "masks"): "projecting",
    (search, "straight_through_mask"): "projecting",
    (Atmc, "after_step"): "projecting",
    (Atmc, "penalty"): "codebooks",
    (Quantizer, "update"): "codebooks",
    (trainee, "augment"): "data",
    (sys.modules[__name__], "draw"): "data",
    (torch.autograd, "grad"): "backward",
    (torch.autograd, "backward"): "training backward",
    (torch.optim.SGD, "step"): "optimiser",
}

ORDER = (
    "data", "materialising", "attack forward", "attack backward", "attack, rest", "training forward",
    "training backward", "optimiser", "projecting", "codebooks",
)  # fmt: skip


def draw(feed: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The next batch, as a stage of its own."""
    return next(feed)


class Ledger(AbstractContextManager["Ledger"]):
    """Seconds by stage of what runs inside, each stage without the stages it calls; `seconds` is emptied by `take`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = defaultdict(float)
        self._running: list[tuple[str, float]] = []
        self._originals: list[tuple[Any, str, Any]] = []

    def take(self) -> dict[str, float]:
        """Seconds by stage since the last call."""
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds

    def __enter__(self) -> "Ledger":
        for (owner, attribute), stage in STAGES.items():
            original = getattr(owner, attribute)
            self._originals.append((owner, attribute, original))
            setattr(owner, attribute, self._timed(original, stage))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for owner, attribute, original in self._originals:
            setattr(owner, attribute, original)

    def _timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            label = stage
            if stage in ("forward", "backward"):
                attacking = any(name == "attack, rest" for name, _ in self._running)
                label = f"{'attack' if attacking else 'training'} {stage}"
            self._running.append((label, 0.0))
            start = self._clock()
            try:
                return function(*arguments, **named)
            finally:
                seconds = self._clock() - start
                name, inner = self._running.pop()
                self._seconds[name] += seconds - inner
                if self._running:
                    outer, others = self._running.pop()
                    self._running.append((outer, others + seconds))

        return timed


class _Demand(TorchDispatchMode):
    """Operations of products and convolutions by torch's own counts; bytes that they, and all operators, touch.

    torch's FlopCounterMode itself can't be used: it refuses gradients of leaves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flop = self.matrix_bytes = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read, written = (
            {id(t): t for t in tree_leaves(tree) if isinstance(t, Tensor)} for tree in ((args, kwargs), result)
        )
        storages = {t.untyped_storage().data_ptr() for t in read.values()}
        if func._schema.is_mutable or any(t.untyped_storage().data_ptr() not in storages for t in written.values()):
            size = sum(t.numel() * t.element_size() for t in (read | written).values())
            self.bytes += size
            if func._overloadpacket in flop_registry:
                self.matrix_bytes += size
                self.flop += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def demand(step: Callable[[], None]) -> dict[str, int]:
    """Of one `step`: `flop` (a multiply-add is two), `matrix_bytes` read and written by products, `bytes` by all."""
    counter = _Demand()
    with counter:
        step()
    return {"flop": counter.flop, "matrix_bytes": counter.matrix_bytes, "bytes": counter.bytes}


def ceilings(clock: Callable[[], float]) -> dict[str, float]:
    """GFLOP/s of a 1024³ product in fp32 and bf16, GB/s read and written by a copy of 256 MB: the best of 60 tries."""

    def best(work: Callable[[], Any]) -> float:
        work()
        seconds = []
        for _ in range(60):
            start = clock()
            work()
            seconds.append(clock() - start)
        return min(seconds)

    a = torch.randn(1024, 1024)
    b, source = a.bfloat16(), torch.zeros(64 << 20)
    target = torch.empty_like(source)
    return {
        "fp32_gflops": 2 * 1024**3 / best(lambda: a @ a) / 1e9,
        "bf16_gflops": 2 * 1024**3 / best(lambda: b @ b) / 1e9,
        "copy_gbs": 2 * source.nbytes / best(lambda: target.copy_(source)) / 1e9,
    }
