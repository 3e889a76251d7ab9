"""Images from their files: how many a second, and how much memory, batch by batch and whole.

    python benchmarks/streaming.py [--data cifar10-jpeg]   # about three minutes; the set lies below ATMC_DATA_DIR

One epoch of batches of 128 training images, without any training, in a process of its own for each way; the peak is
that of the process's resident memory above what the imports take. Also decoded: the two photos of scikit-learn
(640 × 427, JPEG), 512 times, as 224 × 224. Writes benchmarks/results/streaming.json.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline import processor
from sklearn.datasets import load_sample_images  # type: ignore[import-untyped]

WAYS = ("whole", "streamed")
BATCH = 128
PHOTOS = 512


def peak() -> int:
    """Peak of the resident memory of this process, bytes (Linux)."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def epoch(spec: str, way: str, size: int | None) -> dict[str, Any]:
    """Seconds until the first batch, seconds of the epoch, images and memory of an epoch over `spec`."""
    from atmc_tool import data
    from atmc_tool.data import image_folder
    from atmc_tool.data.loader import batches, training_images

    image_folder.STREAM_ABOVE = 0 if way == "streamed" else 2**62
    base, started = peak(), time.perf_counter()
    train = training_images(data.load_data(spec, image_size=size).train, "cpu")
    opened = time.perf_counter() - started
    started, n = time.perf_counter(), 0
    for images, _ in batches(*train, BATCH, epoch=0, seed=0):
        n += len(images)
    seconds = time.perf_counter() - started
    return {
        "way": way,
        "seconds_to_open": opened,
        "seconds_of_the_epoch": seconds,
        "images": n,
        "images_per_second": n / seconds,
        "peak_bytes": peak() - base,
    }


def photo_folder(folder: Path) -> None:
    """An image folder of links to scikit-learn's photos."""
    for photo in load_sample_images().filenames:
        for part, n in (("train", PHOTOS), ("val", 2)):
            kind = folder / part / Path(photo).stem
            kind.mkdir(parents=True)
            for number in range(n):
                (kind / f"{number}.JPEG").symlink_to(photo)


def alone(spec: str, way: str, size: int | None) -> dict[str, Any]:
    """`epoch` in a process of its own."""
    command = [sys.executable, __file__, "--data", spec, "--way", way, *(["--size", str(size)] if size else [])]
    facts: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"data": Path(spec).name, **facts}


def main() -> None:
    """Measure all, print it and write it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="cifar10-jpeg")
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--size", type=int)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(epoch(arguments.data, arguments.way, arguments.size)))
        return
    results = [alone(arguments.data, way, None) for way in WAYS]
    with tempfile.TemporaryDirectory() as folder:
        photo_folder(Path(folder, "photos"))
        results += [alone(f"{folder}/photos", way, 224) for way in WAYS]
    for result in results:
        print(result)
    machine = {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()}
    versions = {name: version(name) for name in ("pillow", "torch", "numpy")}
    target = Path(__file__).parent / "results" / "streaming.json"
    target.write_text(json.dumps({"machine": machine, "versions": versions, "epochs": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
