"""How fast ONNX files run, how long they take to load and how much memory that takes: side by side, interleaved.

Every file gets processes of its own, which hold nothing but onnxruntime: this module, run as a script. They take turns,
so that a change of the machine's speed meets all files alike. Only ratios of one such measurement are claims.
"""

import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort

from atmc_tool.errors import InputError, MissingEnvironmentError

STARTS = 3  # fresh processes of each file: one process may be lucky with its memory
ROUND_SECONDS = 0.15
MIN_CALLS = 3
PAUSE = 0.02  # until the threads of the process that had its turn no longer spin
NOISE = 0.05  # equal files measure up to so much apart
VERSION: str = ort.__version__
_SILENT = 4
_PROVIDERS: dict[str, list[str]] = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
}


@dataclass(frozen=True)
class Timing:
    """Calls with one batch size: for each round, those of each process in turn, the seconds of every call."""

    batch: int
    rounds: tuple[tuple[float, ...], ...]

    @property
    def calls(self) -> list[float]:
        """Seconds of all calls."""
        return [seconds for calls in self.rounds for seconds in calls]

    def to_json(self) -> dict[str, Any]:
        """Latencies in seconds, throughput in images per second."""
        calls = self.calls
        return {
            "batch": self.batch,
            "p50": statistics.median(calls),
            "p95": float(np.quantile(calls, 0.95)),
            "images_per_second": self.batch * len(calls) / sum(calls),
            "calls": len(calls),
            "round_medians": [statistics.median(each) for each in self.rounds],
        }


@dataclass(frozen=True)
class Measured:
    """One file. Of each process: seconds to load, and bytes of memory at the peak above what it held before loading.

    load_peaks: while it loaded; peaks: until its end; None where the system does not say
    """

    bytes: int
    loads: tuple[float, ...]
    load_peaks: tuple[int | None, ...]
    peaks: tuple[int | None, ...]
    timings: Mapping[int, Timing]

    def to_json(self) -> dict[str, Any]:
        """Medians, and what they are of."""
        return {
            "bytes": self.bytes,
            "load_seconds": statistics.median(self.loads),
            "load_peak_bytes": _median(self.load_peaks),
            "peak_bytes": _median(self.peaks),
            "loads": list(self.loads),
            "load_peaks": list(self.load_peaks),
            "batches": [timing.to_json() for timing in self.timings.values()],
        }


@dataclass(frozen=True)
class Speed:
    """How many times faster the second file runs than the first: the median over rounds, and its spread."""

    batch: int
    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> Literal["faster", "slower", "no speed-up"]:
        """`no speed-up` where the spread reaches into the noise between equal files."""
        if self.low > 1 + NOISE:
            return "faster"
        return "slower" if self.high < 1 - NOISE else "no speed-up"

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {"batch": self.batch, "ratio": self.ratio, "low": self.low, "high": self.high, "verdict": self.verdict}


def speed(first: Timing, second: Timing) -> Speed:
    """Of two timings that took turns. The spread is the exact 95 % interval of the median ratio over the rounds (by
    order statistics, whatever their distribution), widened to the medians of the single processes."""
    pairs = zip(first.rounds, second.rounds, strict=True)
    ratios = [statistics.median(one) / statistics.median(other) for one, other in pairs]
    n = len(ratios) // STARTS
    starts = [statistics.median(ratios[i * n : (i + 1) * n]) for i in range(STARTS)]
    low, high = median_interval(ratios)
    return Speed(first.batch, statistics.median(ratios), min(low, *starts), max(high, *starts))


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Interval that holds the median with at least 95 % of probability; all values where there are fewer than 6."""
    n, ordered = len(values), sorted(values)
    outside = 0
    while 2 * sum(math.comb(n, i) for i in range(outside + 1)) <= 0.05 * 2**n:
        outside += 1
    index = max(outside - 1, 0)
    return ordered[index], ordered[n - 1 - index]


def measure(
    paths: Sequence[Path],
    batches: Sequence[int],
    *,
    provider: str = "cpu",
    threads: int | None = None,
    rounds: int = 7,
    progress: Callable[[int, int], None] | None = None,
) -> list[Measured]:
    """Measure ONNX files of one image input side by side.

    batches: numbers of images in a call
    threads: within an operator; None: all cores
    rounds:  for every batch size and each of `STARTS` processes

    Raises:
        InputError: onnxruntime can't load or run a file.
        MissingEnvironmentError: the provider is not there.
    """
    loaded: list[list[dict[str, Any]]] = [[] for _ in paths]
    calls: list[dict[int, list[tuple[float, ...]]]] = [{batch: [] for batch in batches} for _ in paths]
    total, done = STARTS * rounds * len(batches), 0
    for start in range(STARTS):
        turns = list(range(len(paths)))
        turns = turns[start % len(paths) :] + turns[: start % len(paths)]
        with contextlib.ExitStack() as stack:
            workers = {i: stack.enter_context(_worker(paths[i], provider, threads)) for i in turns}
            facts = {i: workers[i]({"load": True}) for i in turns}
            for batch in batches:
                for _ in range(rounds):
                    for i in turns:
                        calls[i][batch].append(tuple(workers[i]({"batch": batch})["seconds"]))
                    done += 1
                    if progress is not None:
                        progress(done, total)
            for i in turns:
                loaded[i].append({**facts[i], **workers[i]({"end": True})})
    return [
        Measured(
            path.stat().st_size,
            tuple(each["seconds"] for each in of_file),
            tuple(each["load_peak"] for each in of_file),
            tuple(each["peak"] for each in of_file),
            {batch: Timing(batch, tuple(timed)) for batch, timed in by_batch.items()},
        )
        for path, of_file, by_batch in zip(paths, loaded, calls, strict=True)
    ]


def _median(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


@contextlib.contextmanager
def _worker(path: Path, provider: str, threads: int | None) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """A process for the file `path`, as a function of one request that gives its answer."""
    own = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (own, os.environ.get("PYTHONPATH"))))}
    command = [sys.executable, "-m", "evaluators.latency", str(path), provider, str(threads or 0)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def ask(request: dict[str, Any]) -> dict[str, Any]:
            with contextlib.suppress(BrokenPipeError):
                requests.write(json.dumps(request) + "\n")
                requests.flush()
            line = answers.readline()
            answer: dict[str, Any] = json.loads(line) if line else {"error": f"{path}: its process ended"}
            if "missing" in answer:
                raise MissingEnvironmentError(answer["missing"])
            if "error" in answer:
                raise InputError(answer["error"])
            return answer

        try:
            yield ask
        finally:
            process.kill()


def _serve(path: str, provider: str, threads: int) -> None:
    """What a process of its own does: answer each line of stdin by one of stdout."""
    fed: dict[int, dict[str, Any]] = {}
    Path(path).read_bytes()  # so that no file is loaded from the disk and the other from memory
    session: Any = None
    before: int | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if "load" in request:
            before = _reset_peak()
            started = time.perf_counter()
            session = _load(path, provider, threads)
            answer: dict[str, Any] = {"seconds": time.perf_counter() - started, "load_peak": _above(before)}
        elif "batch" in request:
            answer = {"seconds": _round(session, fed, request["batch"])}
            time.sleep(PAUSE)
        else:
            answer = {"peak": _above(before)}
        print(json.dumps(answer), flush=True)


def _load(path: str, provider: str, threads: int) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = threads
    if provider == "cuda" and hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(sys.stderr):
            ort.preload_dlls()
    session = ort.InferenceSession(path, options, providers=_PROVIDERS[provider], enable_fallback=0)
    if session.get_providers()[0] != _PROVIDERS[provider][0]:
        raise MissingEnvironmentError(f"onnxruntime can't use the provider {provider} here")
    return session


def _round(session: Any, fed: dict[int, dict[str, Any]], batch: int) -> list[float]:
    """Seconds of every call of a round; before the first round of a batch size, as many calls that do not count."""
    if batch not in fed:
        fed[batch] = _images(session, batch)
        _calls(session, fed[batch])
    return _calls(session, fed[batch])


def _calls(session: Any, images: dict[str, Any]) -> list[float]:
    seconds: list[float] = []
    while len(seconds) < MIN_CALLS or sum(seconds) < ROUND_SECONDS:
        started = time.perf_counter()
        session.run(None, images)
        seconds.append(time.perf_counter() - started)
    return seconds


def _images(session: Any, batch: int) -> dict[str, Any]:
    (info,) = session.get_inputs()
    fixed, *shape = info.shape
    if isinstance(fixed, int) and fixed != batch:
        raise ValueError(f"the file takes batches of {fixed} alone")
    return {info.name: np.random.default_rng(0).random((batch, *shape), np.float32)}


def _reset_peak() -> int | None:
    """Bytes at the peak from now on; where the system can't forget the peak so far (any but Linux), of that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _above(before: int | None) -> int | None:
    now = _peak()
    return None if now is None or before is None else now - before


def _peak() -> int | None:
    """Largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        if "VmHWM" in fields:
            return 1024 * int(fields["VmHWM"].split()[0])
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    try:
        _serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    except MissingEnvironmentError as error:
        print(json.dumps({"missing": str(error)}), flush=True)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        print(json.dumps({"error": f"{sys.argv[1]} can't be measured: {str(error)[:300]}"}), flush=True)
