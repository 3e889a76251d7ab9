"""One load of an ONNX file, for graph.py: prints its seconds and its peak of resident memory above that before.

python benchmarks/graph_load.py FILE
"""

import json
import sys
import time

import onnx.parser
import onnxruntime as ort
from resident import above

TEXT = '<ir_version: 8, opset_import: ["": 16]> probe (float[1] x) => (float[1] y) { y = Abs(x) }'


def session(model: str | bytes) -> ort.InferenceSession:
    """A session as users make it, but of one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def main() -> None:
    """Load the file once, after another session, so that what is loaded only once is not measured."""
    session(onnx.parser.parse_model(TEXT).SerializeToString())
    seconds = []

    def load() -> None:
        started = time.perf_counter()
        session(sys.argv[1])
        seconds.append(time.perf_counter() - started)

    peak = above(load)
    print(json.dumps({"seconds": seconds[0], "peak": peak}))


if __name__ == "__main__":
    main()
