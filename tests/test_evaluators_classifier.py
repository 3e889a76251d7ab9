"""Reading ONNX files, and classifying and attacking with onnxruntime alone."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, external_data_helper, helper, numpy_helper
from onnx_models import CLASSES, SHAPE, batch, classifier, loss_of, reference_logits, relative_error

from atmc_tool.errors import AtmcError, InputError, MissingEnvironmentError, UsageError
from evaluators.classifier import (
    ClassifierFacts,
    OrtClassifier,
    decoded_weights,
    facts,
    optimized_operators,
    parse_onnx,
    read_onnx,
)

CODES = np.random.default_rng(0).integers(0, 3, (16, 4, 3, 3)).astype(np.int32)
CODEBOOK = np.array([-0.25, 0.125, 0.5], np.float32)
BODY = """
"conv1.weight" = Gather(codebook, codes)
c = Conv<pads=[1,1,1,1]>(x, "conv1.weight", "conv1.bias")
r = Relu(c)
y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
"""


def model() -> ModelProto:
    """A convolutional classifier that decodes its weight from codes and a codebook."""
    bias = np.random.default_rng(1).standard_normal(16).astype(np.float32) / 10
    return classifier(BODY, {"codes": CODES, "codebook": CODEBOOK, "conv1.bias": bias})


def cuda_works() -> bool:
    try:
        return OrtClassifier(model(), "cuda").provider == "cuda"
    except MissingEnvironmentError:
        return False


def test_reads_what_was_written(tmp_path: Path) -> None:
    path, proto = tmp_path / "model.onnx", model()
    path.write_bytes(proto.SerializeToString())
    assert read_onnx(path) == proto


def test_says_what_the_graph_says_of_itself() -> None:
    proto = model()
    helper.set_model_props(proto, {"atmc_tool.version": "1"})
    expected = ClassifierFacts("image", "logits", SHAPE, None, CLASSES, 21, {"atmc_tool.version": "1"})
    assert facts(proto) == expected
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 7
    assert facts(proto).batch == 7


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.onnx"):
        read_onnx(tmp_path / "missing.onnx")


def test_every_truncation_is_refused() -> None:
    content = model().SerializeToString()
    for length in [*range(40), *range(40, len(content), 97), len(content) - 1]:
        with pytest.raises(InputError, match="the file"):
            parse_onnx(content[:length], "the file")


def test_a_flipped_bit_is_refused_or_harmless() -> None:
    """Nothing but InputError may come of it: no other exception, no crash. Values of weights may change unseen."""
    rng, content = np.random.default_rng(2), bytearray(model().SerializeToString())
    images, labels = batch(n=2)
    problems = []
    for at in rng.choice(len(content), 150, replace=False):
        flipped = content.copy()
        flipped[at] ^= 1 << int(rng.integers(8))
        try:
            OrtClassifier(parse_onnx(bytes(flipped)), "cpu", threads=1).logits_and_gradient(images, labels, "margin")
        except AtmcError as error:
            problems.append(str(error))
    assert problems
    assert not [problem for problem in problems if "\n" in problem]


def test_weights_in_another_file_are_refused() -> None:
    proto = model()
    tensor = next(t for t in proto.graph.initializer if t.name == "codes")
    external_data_helper.set_external_data(tensor, "/etc/passwd")
    tensor.ClearField("raw_data")
    with pytest.raises(InputError, match="keeps weights in another file"):
        parse_onnx(proto.SerializeToString())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "(float[N,1,2,2] a, float[N,4] b) => (float[N,4] c) { f = Flatten(a) c = Add(f, b) }",
            "float .* and float",
        ),
        ("(double[N,1,2,2] a) => (double[N,4] c) { c = Flatten(a) }", "got double"),
        ("(float[N,4] a) => (float[N,4] c) { c = Identity(a) }", "input .* expected one, float32 images"),
        ("(float[N,1,H,2] a) => (float[N,F] c) { c = Flatten(a) }", r"got float \(N, 1, H, 2\)"),
        ("(float[N,1,2,2] a) => (float[N,1,2,2] c) { c = Identity(a) }", "output .* expected one, float32 logits"),
        ("(float[N,1,2,2] a) => (float[N,4] c, float[N,4] d) { c = Flatten(a) d = Flatten(a) }", "output"),
        ("(float[N,1,1,1] a) => (float[N,1] c) { c = Flatten(a) }", "at least 2 classes"),
        ("(float[N,1,2,2] a) => (int64[N,4] c) { f = Flatten(a) c = Cast<to=7>(f) }", "got int64"),
        ("(float[N,1,2,2] a) => (float[N,4] c) { c = Nonsense(a) }", "not valid ONNX.*Nonsense"),
        ("(float[N,1,2,2] a) => (float[N,4] c) { c = Flatten(b) }", "not valid ONNX"),
        ("(float[N,1,2,2] a) => (float[N,5] c) { c = Flatten(a) }", "not valid ONNX"),
    ],
)
def test_what_is_no_image_classifier_is_refused(text: str, problem: str) -> None:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> g {text}')
    with pytest.raises(InputError, match=problem):
        parse_onnx(proto.SerializeToString())


def test_an_unknown_opset_is_refused() -> None:
    proto = model()
    proto.opset_import[0].version = 99
    with pytest.raises(InputError, match=r"opset|99"):
        parse_onnx(proto.SerializeToString())


def test_what_onnxruntime_cannot_load_is_refused_in_one_line() -> None:
    proto = model()
    proto.graph.node[2].domain = "nowhere"
    proto.opset_import.append(helper.make_opsetid("nowhere", 1))
    with pytest.raises(InputError, match="onnxruntime can't load the model") as raised:
        OrtClassifier(proto, "cpu")
    assert "\n" not in str(raised.value)


def test_logits_agree_with_the_reference() -> None:
    proto, (images, _) = model(), batch(n=5)
    logits = OrtClassifier(proto.SerializeToString(), "cpu", threads=1).logits(images)
    assert (logits.dtype, logits.shape) == (np.float32, (5, CLASSES))
    assert relative_error(logits, reference_logits(proto, images.astype(np.float64))) <= 1e-6


def test_a_step_along_the_gradient_raises_the_loss_as_it_says() -> None:
    proto, (images, labels) = model(), batch(n=5)
    network = OrtClassifier(proto, "cpu", threads=1)
    for loss in ("cross_entropy", "margin"):
        gradient = network.logits_and_gradient(images, labels, loss)[1]
        assert (gradient.dtype, gradient.shape) == (np.float32, images.shape)
        step = 1e-6 * gradient.astype(np.float64) / np.linalg.norm(gradient)
        ahead, behind = (loss_of(reference_logits(proto, images + s * step), labels, loss).sum() for s in (1, -1))
        assert (ahead - behind) / 2e-6 == pytest.approx(np.linalg.norm(gradient), rel=1e-4)


def test_the_same_twice() -> None:
    images, labels = batch(n=5)
    network = OrtClassifier(model(), "cpu", threads=1)
    for _ in range(2):
        np.testing.assert_array_equal(network.logits(images), network.logits(images))
        first, second = (network.logits_and_gradient(images, labels, "margin")[1] for _ in range(2))
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (np.zeros((2, 4, 6, 5), np.float32), r"float32 \(2, 4, 6, 5\)"),
        (np.zeros((4, 6, 6), np.float32), r"float32 \(4, 6, 6\)"),
        (np.zeros((0, 4, 6, 6), np.float32), r"float32 \(0, 4, 6, 6\)"),
        (np.zeros((2, 4, 6, 6)), "float64"),
        (np.zeros((2, 4, 6, 6), np.uint8), "uint8"),
    ],
)
def test_other_images_are_refused(images: NDArray[Any], got: str) -> None:
    network = OrtClassifier(model(), "cpu", threads=1)
    with pytest.raises(InputError, match=rf"expected float32 \(N, 4, 6, 6\), got {got}"):
        network.logits(images)
    with pytest.raises(InputError, match=got):
        network.logits_and_gradient(images, np.zeros(len(images), np.int64), "margin")


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_fixed_batch_size_is_run_in_parts(batch_size: int) -> None:
    (images, labels), free = batch(n=5), model()
    fixed = model()
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch_size
    fixed.graph.output[0].type.tensor_type.shape.dim[0].dim_value = batch_size
    parts, whole = (OrtClassifier(proto, "cpu", threads=1) for proto in (fixed, free))
    assert relative_error(parts.logits(images), whole.logits(images)) <= 1e-6
    got, expected = (network.logits_and_gradient(images, labels, "margin") for network in (parts, whole))
    assert (got[0].shape, got[1].shape) == (expected[0].shape, images.shape)
    assert relative_error(got[1], expected[1]) <= 1e-5


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (np.array([0, CLASSES]), r"labels out of range: expected 0 to 4, got 0 to 5"),
        (np.array([-1, 0]), "labels out of range"),
        (np.array([0]), r"expected int64 \(2,\), got int64 \(1,\)"),
        (np.array([0.0, 1.0]), "got float64"),
    ],
)
def test_other_labels_are_refused(labels: NDArray[Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        OrtClassifier(model(), "cpu", threads=1).logits_and_gradient(batch(n=2)[0], labels, "cross_entropy")


def test_a_network_without_gradient_rules_still_classifies() -> None:
    images, labels = batch(n=2)
    network = OrtClassifier(classifier("y = Sin(x)"), "cpu", threads=1)
    assert np.isfinite(network.logits(images)).all()
    with pytest.raises(AtmcError, match="no gradient rule for the operator Sin"):
        network.logits_and_gradient(images, labels, "margin")


def test_a_gradient_that_is_zero_everywhere() -> None:
    images, labels = batch(n=2)
    gradient = OrtClassifier(classifier("y = Round(x)"), "cpu", threads=1).logits_and_gradient(
        images, labels, "cross_entropy"
    )[1]
    np.testing.assert_array_equal(gradient, np.zeros_like(images))


def test_initialisers_listed_as_inputs_are_no_inputs() -> None:
    """As every file of IR version 3 lists them."""
    images, labels = batch(n=2)
    proto, listing = model(), model()
    for tensor in listing.graph.initializer:
        listing.graph.input.insert(0, helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    assert facts(listing) == facts(proto)
    got, expected = (
        OrtClassifier(m, "cpu", threads=1).logits_and_gradient(images, labels, "margin")[1] for m in (listing, proto)
    )
    assert relative_error(got, expected) <= 1e-6
    np.testing.assert_array_equal(decoded_weights(listing, ["conv1.weight"])["conv1.weight"], CODEBOOK[CODES])


def test_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model().SerializeToString())
    code = f"""
import sys
sys.modules["torch"] = None
from pathlib import Path
import numpy as np
from evaluators.classifier import OrtClassifier, read_onnx
network = OrtClassifier(read_onnx(Path({str(tmp_path / "model.onnx")!r})), "cpu", threads=1)
print(network.logits_and_gradient(np.ones((2, 4, 6, 6), np.float32), np.array([0, 1]), "margin")[1].shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(2, 4, 6, 6)\n", "")


def test_an_unknown_provider_is_refused() -> None:
    with pytest.raises(UsageError, match="expected auto, cpu or cuda, got tpu"):
        OrtClassifier(model(), "tpu")


def test_cpu_is_what_was_asked_for() -> None:
    network = OrtClassifier(model(), "cpu")
    assert (network.provider, network.note) == ("cpu", "")


@pytest.mark.skipif(cuda_works(), reason="there is CUDA")
def test_cuda_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MissingEnvironmentError, match="CUDA"):
        OrtClassifier(model(), "cuda")
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(cuda_works(), reason="there is CUDA")
@pytest.mark.parametrize("driver", [True, False])
def test_auto_falls_back_and_says_so_where_cuda_was_to_be_expected(
    driver: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if driver:
        (tmp_path / "nvidia-smi").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    network = OrtClassifier(model(), "auto")
    assert network.provider == "cpu"
    package = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    assert network.note.startswith("running on the CPU, for onnxruntime can't use CUDA: ") == (driver and package)
    network.logits_and_gradient(*batch(n=2), "margin")
    assert capfd.readouterr() == ("", "")


@pytest.mark.gpu
@pytest.mark.skipif(not cuda_works(), reason="there is no CUDA")
def test_cuda_agrees_with_the_cpu() -> None:
    (images, labels), proto = batch(n=5), model()
    cpu, cuda = OrtClassifier(proto, "cpu"), OrtClassifier(proto, "auto")
    assert (cuda.provider, cuda.note) == ("cuda", "")
    assert relative_error(cuda.logits(images), cpu.logits(images)) <= 1e-5
    for loss in ("cross_entropy", "margin"):
        expected = cpu.logits_and_gradient(images, labels, loss)[1]
        assert relative_error(cuda.logits_and_gradient(images, labels, loss)[1], expected) <= 1e-4


def test_decoded_as_the_codes_say() -> None:
    proto = model()
    head = next(numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == "head")
    decoded = decoded_weights(proto, ["head", "conv1.weight", "no such weight"])
    assert list(decoded) == ["head", "conv1.weight"]
    np.testing.assert_array_equal(decoded["head"], head)
    np.testing.assert_array_equal(decoded["conv1.weight"], CODEBOOK[CODES])
    assert decoded["conv1.weight"].dtype == np.float32


def test_what_depends_on_the_image_is_no_weight() -> None:
    with pytest.raises(InputError, match=r"depend on the image: got some of conv1\.weight, r$"):
        decoded_weights(model(), ["conv1.weight", "r"])


def test_no_decoder_is_left_after_optimisation() -> None:
    left = optimized_operators(model())
    assert left["Conv"] == 1
    assert "Gather" not in left


def test_a_decoder_that_cannot_be_computed() -> None:
    proto = model()
    codes = next(t for t in proto.graph.initializer if t.name == "codes")
    codes.CopyFrom(numpy_helper.from_array(CODES + 100, "codes"))
    with pytest.raises(InputError, match="onnxruntime can't"):
        decoded_weights(proto, ["conv1.weight"])


def test_shapes_that_are_not_declared_are_found() -> None:
    proto = model()
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", None]))
    assert facts(proto).n_classes == CLASSES
