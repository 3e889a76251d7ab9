"""An ONNX file as a classifier that can be attacked: logits and gradients by onnxruntime alone."""

import contextlib
import io
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from atmc_tool.attacks.classifier import Loss
from atmc_tool.errors import AtmcError, InputError, MissingEnvironmentError, UsageError
from atmc_tool.files import read_bytes
from atmc_tool.onnx_tensors import is_elsewhere, tensors
from evaluators.onnx_gradient import differentiate
from evaluators.onnx_graph import opset, subgraph
from evaluators.onnx_losses import LOGITS_GRADIENTS

MAX_BYTES = 2**31 - 1  # protobuf's own limit
RUNTIME: str = ort.__version__

_CPU: list[Any] = ["CPUExecutionProvider"]
_CUDA: list[Any] = [("CUDAExecutionProvider", {"use_tf32": "0"}), *_CPU]  # TF32 would round factors to 10 bits
_SILENT = 4  # only fatal messages: errors are raised, and stderr is the command line's
ort.set_default_logger_severity(_SILENT)


@dataclass(frozen=True)
class ClassifierFacts:
    """What an ONNX graph says of itself.

    image_shape: (channels, height, width); `batch`: the batch size where it is fixed, else None
    metadata:    the file's metadata_props
    """

    input_name: str
    output_name: str
    image_shape: tuple[int, int, int]
    batch: int | None
    n_classes: int
    opset: int
    metadata: Mapping[str, str]


def read_onnx(path: Path) -> ModelProto:
    """The model in the file `path`, checked: it parses, is valid ONNX, whole in this one file, and a classifier.

    Raises:
        InputError: missing, too large, damaged, of external data, or not an image classifier.
    """
    return parse_onnx(read_bytes(path, MAX_BYTES), str(path))


def parse_onnx(content: bytes, name: str = "the model") -> ModelProto:
    """The model in `content`, checked as by `read_onnx`; `name` is what errors call it."""
    model = parse_graph(content, name)
    facts(model, name)
    return model


def parse_graph(content: bytes, name: str = "the model") -> ModelProto:
    """The model in `content`: valid ONNX, whole in this one file, of any inputs and outputs.

    Raises:
        InputError: it is not.
    """
    model = ModelProto()
    try:
        model.ParseFromString(content)
        if any(is_elsewhere(tensor) for tensor in tensors(model)):
            hint = "in Python, onnx.save(onnx.load(FILE), ONE_FILE) puts all into one"
            raise InputError(
                f"{name} keeps weights in another file", expected="one self-contained ONNX file", hint=hint
            )
        onnx.checker.check_model(model, full_check=True)
    except (DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{name} is not an ONNX file, or damaged: {error}") from error
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise InputError(f"{name} is not valid ONNX: {reason[:300]}") from error
    return model


def facts(model: ModelProto, name: str = "the model") -> ClassifierFacts:
    """Shapes, classes and metadata of a classifier: one float32 image input, one float32 output of logits.

    Raises:
        InputError: the graph has other inputs or outputs, or an opset newer than onnx knows.
    """
    version, newest = opset(model), onnx.defs.onnx_opset_version()
    if not 1 <= version <= newest:
        raise InputError(f"unknown opset in {name}", expected=f"1 to {newest}", got=version)
    graph = onnx.shape_inference.infer_shapes(model).graph
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = [info for info in graph.input if info.name not in initializers]
    image = _single(name, "input", "float32 images (N, C, H, W) of fixed C, H, W", inputs, 4)
    logits = _single(name, "output", "float32 logits (N, classes) of at least 2 classes", graph.output, 2)
    if logits[1] < 2:
        raise InputError(f"{name} is not a classifier", expected="at least 2 classes", got=logits[1])
    return ClassifierFacts(
        input_name=inputs[0].name,
        output_name=graph.output[0].name,
        image_shape=(image[1], image[2], image[3]),
        batch=image[0] or None,
        n_classes=logits[1],
        opset=version,
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )


def _single(name: str, side: str, expected: str, infos: Iterable[onnx.ValueInfoProto], rank: int) -> list[int]:
    """Dimensions of the only value of `infos`, 0 for a batch that is not fixed."""
    types = [info.type.tensor_type for info in infos]
    sizes = [d.dim_value for d in types[0].shape.dim] if len(types) == 1 else []
    if len(sizes) != rank or types[0].elem_type != TensorProto.FLOAT or min(sizes[1:]) < 1 or sizes[0] < 0:
        shapes = ["(" + ", ".join(d.dim_param or str(d.dim_value or "?") for d in t.shape.dim) + ")" for t in types]
        kinds = [TensorProto.DataType.Name(t.elem_type).lower() for t in types]
        got = " and ".join(f"{kind} {shape}" for kind, shape in zip(kinds, shapes, strict=True)) or "none"
        hint = 'docs/verify.md, "Files from elsewhere", says what to do'
        what = f"the {side} of {name} is not an image classifier's"
        raise InputError(what, expected=f"one, {expected}", got=got, hint=hint)
    return sizes


class OrtClassifier:
    """The classifier in an ONNX model, on NumPy arrays: images float32 (N, C, H, W), labels int64 (N,).

    `provider`: "cpu", "cuda", or "auto" for CUDA where it works; `threads` within an operator, None: all cores.
    The attribute `provider` is what the session really runs on; `note` says so where "auto" could not get CUDA though
    this package of onnxruntime and an NVIDIA driver are made for it.

    Raises:
        InputError: not a classifier, or onnxruntime can't load it.
        MissingEnvironmentError: CUDA was asked for and is not there.
        UsageError: no such provider.
    """

    def __init__(self, model: bytes | ModelProto, provider: str = "auto", threads: int | None = None) -> None:
        self._model = parse_onnx(model) if isinstance(model, bytes) else model
        self.facts = facts(self._model)
        self._threads = threads
        if provider not in ("auto", "cpu", "cuda"):
            raise UsageError("unknown provider", expected="auto, cpu or cuda", got=provider)
        problem = "" if provider == "cpu" else _cuda_problem()
        if problem and provider == "cuda":
            hint = "it needs onnxruntime-gpu and an NVIDIA GPU with driver, CUDA and cuDNN; or use the provider cpu"
            raise MissingEnvironmentError(f"onnxruntime can't use CUDA: {problem}", hint=hint)
        expected = bool(problem) and _cuda_is_plausible()
        self.note = f"running on the CPU, for onnxruntime can't use CUDA: {problem}" if expected else ""
        self._providers = _CPU if problem or provider == "cpu" else _CUDA
        self._forward = self._session(self._model)
        self.provider: Literal["cpu", "cuda"] = "cuda" if _on_cuda(self._forward) else "cpu"
        self._gradients: dict[tuple[Loss, bool], ort.InferenceSession] = {}

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits, float32 (N, classes).

        Raises:
            InputError: images of another shape or type.
        """
        self._check_images(images)
        return self._run(self._forward, images)[0]

    def logits_and_gradient(
        self,
        images: NDArray[np.float32],
        labels: NDArray[np.int64],
        loss: Loss,
        targets: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits, float32 (N, classes), and the gradient of the loss summed over the batch, float32 (N, C, H, W).

        Raises:
            InputError: images, labels or targets of another shape or type, or classes out of range.
            AtmcError: the graph has an operator without a gradient rule.
        """
        self._check_images(images)
        fed = {"labels": labels} if targets is None else {"labels": labels, "targets": targets}
        for name, classes in fed.items():
            self._check_classes(name, classes, len(images))
        if loss not in LOGITS_GRADIENTS:
            raise UsageError("unknown loss", expected=" or ".join(LOGITS_GRADIENTS), got=loss)
        key = (loss, targets is not None)
        if key not in self._gradients:
            # One graph per loss: onnxruntime computes all outputs of a graph, fetched or not.
            # As floats: onnxruntime 1.31 moves quantisation through the gradient's nodes and then fails to load it.
            differentiated = differentiate(self._model, [loss], targeted=targets is not None, observe=self._observed)
            self._gradients[key] = self._session(differentiated, {"session.disable_quant_qdq": "1"})
        logits, gradient = self._run(self._gradients[key], images, *fed.values())
        return logits, gradient

    def _run(self, session: ort.InferenceSession, *arrays: NDArray[Any]) -> list[NDArray[np.float32]]:
        """The outputs for `arrays`, in the order of the inputs; where the batch is fixed, in parts of its size.

        What is missing in the last part is filled up with its last image.
        """
        # The image comes first of them: initialisers, which a file may list as inputs too, are none of a session's.
        names = [info.name for info in session.get_inputs()]
        n, size = len(arrays[0]), self.facts.batch
        if size is None:
            return _run(session, dict(zip(names, arrays, strict=True)))
        chosen = np.minimum(np.arange(-(-n // size) * size), n - 1).reshape(-1, size)
        parts = [_run(session, {name: a[rows] for name, a in zip(names, arrays, strict=True)}) for rows in chosen]
        return [np.concatenate(results)[:n] for results in zip(*parts, strict=True)]

    def _observed(self, model: ModelProto) -> Callable[[int], dict[str, NDArray[Any]]]:
        """How to get every value of `model`, which takes this classifier's images, on a number of random ones."""
        every = ModelProto()
        every.CopyFrom(model)
        del every.graph.output[:]
        names = [name for node in every.graph.node for name in node.output if name]
        every.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        session, batch = self._session(every), self.facts.batch

        def values(n: int) -> dict[str, NDArray[Any]]:
            images = np.random.default_rng(n).random((batch or n, *self.facts.image_shape), np.float32)
            return dict(zip(names, _run(session, {self.facts.input_name: images}), strict=True))

        return values

    def _session(self, model: ModelProto, entries: Mapping[str, str] = MappingProxyType({})) -> ort.InferenceSession:
        options = _options()
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        options.intra_op_num_threads = self._threads or 0
        return _load(model, options, self._providers)

    def _check_images(self, images: NDArray[Any]) -> None:
        expected = f"float32 ({', '.join(map(str, ('N', *self.facts.image_shape)))})"
        shape_fits = images.ndim == 4 and images.shape[1:] == self.facts.image_shape and len(images) > 0
        if not shape_fits or images.dtype != np.float32:
            raise InputError("images do not fit the network", expected=expected, got=f"{images.dtype} {images.shape}")

    def _check_classes(self, name: str, classes: NDArray[Any], n: int) -> None:
        if classes.dtype != np.int64 or classes.shape != (n,):
            raise InputError(f"{name} do not fit", expected=f"int64 ({n},)", got=f"{classes.dtype} {classes.shape}")
        if classes.min() < 0 or classes.max() >= self.facts.n_classes:
            expected, got = f"0 to {self.facts.n_classes - 1}", f"{classes.min()} to {classes.max()}"
            raise InputError(f"{name} out of range", expected=expected, got=got)


def decoded_weights(model: ModelProto, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Name → value as onnxruntime computes it from what the file stores; names that the graph lacks are left out.

    Raises:
        InputError: a value depends on the image, or onnxruntime can't compute it.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    computed = {name for node in model.graph.node for name in node.output}
    wanted = [name for name in dict.fromkeys(names) if name in stored or name in computed]
    to_compute = [name for name in wanted if name not in stored]
    values = {name: numpy_helper.to_array(stored[name]) for name in wanted if name in stored}
    if to_compute:
        part = subgraph(onnx.shape_inference.infer_shapes(model, data_prop=True), to_compute)
        if any(info.name not in stored for info in part.graph.input):
            raise InputError("not weights, for they depend on the image", got=f"some of {', '.join(to_compute)}")
        session = _load(part, _options(), _CPU)
        with _one_line("onnxruntime can't decode the weights"):
            values |= dict(zip(to_compute, session.run(to_compute, {}), strict=True))
    return {name: values[name] for name in wanted}


def optimized_operators(model: ModelProto) -> Counter[str]:
    """How many operators of each kind are left after all of onnxruntime's optimisations for the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options = _options()
        options.optimized_model_filepath = str(path)
        _load(model, options, _CPU)
        return Counter(node.op_type for node in onnx.load_model(path).graph.node)


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    return options


def _load(model: ModelProto, options: ort.SessionOptions, providers: list[Any]) -> ort.InferenceSession:
    with _one_line("onnxruntime can't load the model"):
        # Its own fallback prints to stdout.
        return ort.InferenceSession(model.SerializeToString(), options, providers=providers, enable_fallback=0)


def _run(session: ort.InferenceSession, fed: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
    with _one_line("onnxruntime can't run the model"):
        results: list[NDArray[np.float32]] = session.run(None, dict(fed))
    return results


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """onnxruntime's exceptions share no base class of their own: each becomes an InputError of one line."""
    try:
        yield
    except AtmcError:
        raise
    except Exception as error:
        raise InputError(f"{what}: {str(error)[:300]}") from error


def _on_cuda(session: ort.InferenceSession) -> bool:
    return "CUDAExecutionProvider" in session.get_providers()


def _cuda_is_plausible() -> bool:
    """Whether somebody would expect CUDA here: onnxruntime's GPU package, and an NVIDIA driver."""
    return "CUDAExecutionProvider" in ort.get_available_providers() and shutil.which("nvidia-smi") is not None


def _cuda_problem() -> str:
    """Why onnxruntime can't run on CUDA; empty where it can. A provider that it lists may still fail to load."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return "this package of it has none"
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            ort.preload_dlls()  # from Python packages, as torch does: onnxruntime itself searches system folders only
    text = '<ir_version: 8, opset_import: ["": 16]> probe (float[1] x) => (float[1] y) { y = Abs(x) }'
    try:
        session = _load(onnx.parser.parse_model(text), _options(), _CUDA)
        _run(session, {"x": np.ones(1, np.float32)})
    except InputError as error:
        return str(error)
    return "" if _on_cuda(session) else "its CUDA libraries or the GPU are missing"
