"""Wall-clock time of `atmc-tool --help`, median of 10 after one warm-up: python benchmarks/startup.py"""

import statistics
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    """Print the median, fastest and slowest run in seconds."""
    command = [str(Path(sys.executable).parent / "atmc-tool"), "--help"]
    seconds = []
    for _ in range(11):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    counted = seconds[1:]
    print(f"median {statistics.median(counted):.3f} s, min {min(counted):.3f} s, max {max(counted):.3f} s")


if __name__ == "__main__":
    main()
