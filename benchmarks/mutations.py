"""Damaged and hostile files: 100,000 mutants of `.atmc` files, each read in full.

    python benchmarks/mutations.py [FILE.atmc ...] [--count 100000]   # a quarter of an hour on a core

Without files, of a network like that of digits (52,768 weights, 5 % kept, 4 bits). `tests/mutations.py` says what the
mutants are. A reading may end in InputError; a mutant of raw bytes never in another network. None may take two seconds,
nor four times the memory of reading the honest file: the bytes of Python and NumPy are counted for one in sixteen; for
the others the system refuses the process more than that (Linux). Writes benchmarks/results/mutations.json; exit code 1
where something does not hold.
"""

import argparse
import itertools
import json
import platform
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline import processor

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from mutations import keep_little, model_digest, mutants, read  # noqa: E402  # from tests/
from test_exporters_atmc_file import digits_like  # noqa: E402

from exporters.atmc_file import decode_model, encode_model  # noqa: E402

LONGEST_SECONDS, MOST_MEMORY = 2.0, 4.0
COUNTED = 16  # every so manieth mutant, for counting takes 15 times as long as reading


def measure(content: bytes, count: int, seed: int) -> dict[str, Any]:
    """Counts of outcomes by kind, the slowest reading, and the most memory in multiples of the honest file's."""
    honest = model_digest(decode_model(content))
    base = read(content, honest)
    outcomes: Counter[str] = Counter()
    slowest, most = 0.0, 0
    crashes: list[str] = []
    started = time.monotonic()
    for index, (kind, mutant) in enumerate(itertools.islice(mutants(content, seed), count)):
        try:
            reading = read(mutant, honest, None if index % COUNTED == 0 else int(MOST_MEMORY * base.peak))
        except Exception as error:  # what must not be
            outcomes[f"{kind}: crash"] += 1
            crashes.append(f"{type(error).__name__}: {error}"[:200])
            continue
        outcomes[f"{kind}: {reading.outcome}"] += 1
        slowest, most = max(slowest, reading.seconds), max(most, reading.peak)
    return {
        "bytes": len(content),
        "mutants": count,
        "counted": -(-count // COUNTED),
        "seed": seed,
        "outcomes": dict(sorted(outcomes.items())),
        "crashes": crashes[:20],
        "slowest_seconds": slowest,
        "honest_seconds": base.seconds,
        "honest_peak_bytes": base.peak,
        "most_memory": most / base.peak,
        "minutes": (time.monotonic() - started) / 60,
    }


def sound(found: dict[str, Any]) -> bool:
    """Whether everything holds that must."""
    outcomes = found["outcomes"]
    wrong = outcomes.get("raw: other", 0) + sum(n for name, n in outcomes.items() if name.endswith("crash"))
    return not wrong and found["slowest_seconds"] < LONGEST_SECONDS and found["most_memory"] <= MOST_MEMORY


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    keep_little()
    contents = {path.name: path.read_bytes() for path in arguments.files}
    found = {
        name: measure(content, arguments.count, arguments.seed)
        for name, content in (contents or {"like digits": encode_model(digits_like("U", "V"))}).items()
    }
    result = {
        "command": f"python benchmarks/mutations.py --count {arguments.count} --seed {arguments.seed}",
        "machine": {"processor": processor(), "python": platform.python_version(), "numpy": version("numpy")},
        "files": found,
    }
    print(json.dumps(result, indent=2))
    (ROOT / "benchmarks" / "results" / "mutations.json").write_text(json.dumps(result, indent=2) + "\n")
    if not all(sound(each) for each in found.values()):
        sys.exit("error: something was accepted, crashed, or took too long or too much")


if __name__ == "__main__":
    main()
