"""Memory of the sessions of an attack on ResNet-18, forward and gradient, with weights of their own and shared.

    python benchmarks/session_memory.py

Each variant runs in a process of its own: `own` as `evaluators/classifier.py` loads them; `shared`: every weight is
one array that all sessions get by `SessionOptions.add_initializer`. After each session the C library gives freed memory
back (`malloc_trim`), so that what is counted is what the sessions hold. Writes benchmarks/results/session_memory.json.
"""

import argparse
import ctypes
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto, numpy_helper

from atmc_tool.compressed import CompressedModel
from atmc_tool.machine import machine
from atmc_tool.models import resolve_architecture
from evaluators.onnx_gradient import differentiate
from exporters.onnx_file import build_onnx
from exporters.onnx_skeleton import trace_skeleton

RESULT = Path(__file__).parent / "results" / "session_memory.json"
SHARED_FROM = 1000  # elements
MIB = 2**20


def resident() -> float:
    """MiB of this process, after freed memory went back."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / MIB


def measure(variant: str) -> dict[str, Any]:
    """MiB that forward and two gradient sessions hold, one after the other, and the digest of their outputs."""
    torch.manual_seed(0)
    network = resolve_architecture("resnet18").build(10).eval()
    state = {key: tensor.numpy() for key, tensor in network.state_dict().items()}
    skeleton = trace_skeleton(network, (3, 32, 32), 10, (0.0,), (1.0,))
    model = ModelProto()
    model.ParseFromString(build_onnx(CompressedModel({}, state, skeleton, {}), "0" * 64, dense=True))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    models = [model, differentiate(model, ["cross_entropy"]), differentiate(model, ["margin"])]
    names = [name for name, array in stored.items() if array.size >= SHARED_FROM] if variant == "shared" else []
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(stored[name]) for name in names}
    before, held, sessions = resident(), [], []
    for each in models:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        for name, value in values.items():
            options.add_initializer(name, value)
        sessions.append(onnxruntime.InferenceSession(each.SerializeToString(), options, ["CPUExecutionProvider"]))
        held.append(round(resident() - before, 1))
    fed = (np.random.default_rng(0).random((4, 3, 32, 32), np.float32), np.arange(4))
    digest = hashlib.sha256()
    for session in sessions:
        for output in session.run(None, dict(zip([i.name for i in session.get_inputs()], fed, strict=False))):
            digest.update(output.tobytes())
    weights = sum(array.nbytes for array in stored.values()) / MIB
    return {"weights": round(weights, 1), "held": held, "outputs": digest.hexdigest()}


def main() -> None:
    """Measure both variants, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=["own", "shared"])
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(measure(arguments.variant)))
        return
    result: dict[str, Any] = {
        "command": "python benchmarks/session_memory.py",
        "machine": machine(torch.device("cpu")),
        "versions": {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__},
        "MiB": {},
    }
    for variant in ("own", "shared"):
        command = [sys.executable, __file__, "--variant", variant]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        result["MiB"][variant] = json.loads(done.stdout.splitlines()[-1])
    result["equal outputs"] = len({found["outputs"] for found in result["MiB"].values()}) == 1
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
