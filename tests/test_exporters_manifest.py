"""Manifests that lie: a well-formed file whose digests are right, but whose contents break a rule of FORMAT.md."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from atmc_reference import manifest_of, seal, seal_stored

from atmc_tool.errors import InputError
from exporters.atmc_file import decode_model
from exporters.container import Limits


def weight_entry(**fields: object) -> dict[str, object]:
    return {"name": "w", "shape": [2, 3], "factors": {"V": [2, 3]}, **fields}


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").view(np.uint8).reshape(-1, 4).T.tobytes()


GOOD_CONTENTS = {"rest": floats(0.5), "codebooks": floats(-1, 1, 2), "codes": b"\x06", "gaps": b"\x01\x01"}
GOOD_MANIFEST: dict[str, Any] = {
    "weights": [weight_entry()],
    "rest": [{"name": "b", "dtype": "F32", "shape": []}],
    "facts": {},
}


def test_the_test_file_is_good_until_it_is_made_bad() -> None:
    model = decode_model(seal(GOOD_MANIFEST, GOOD_CONTENTS))
    assert model.weights["w"].dense().tolist() == [[0, 2, 0], [1, 0, 0]]
    assert model.rest["b"] == 0.5


def sealed(contents: dict[str, bytes] | None = None, **fields: object) -> bytes:
    return seal({**GOOD_MANIFEST, **fields}, {**GOOD_CONTENTS, **(contents or {})})


def one_weight(contents: dict[str, bytes] | None = None, **fields: object) -> bytes:
    return sealed(contents, weights=[weight_entry(**fields)])


def one_rest(dtype: str, content: bytes, shape: list[int]) -> bytes:
    return sealed({"rest": content}, rest=[{"name": "b", "dtype": dtype, "shape": shape}])


def streams_with(**fields: object) -> Callable[[], bytes]:
    entries = {name: {"bytes": len(content), "sha256": "0" * 64} for name, content in GOOD_CONTENTS.items()}
    entries["gaps"] |= fields
    return lambda: sealed(streams=entries)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "a plain safetensors file": (lambda: safetensors.numpy.save({"w": np.zeros(3, np.float32)}), "not made of bytes"),
    "safetensors of bytes": (lambda: safetensors.numpy.save({"w": np.zeros(3, np.uint8)}), "not an .atmc file"),
    "another format": (lambda: seal(GOOD_MANIFEST, GOOD_CONTENTS, format="pt"), "expected format 'atmc', got 'pt'"),
    "a later version": (lambda: seal(GOOD_MANIFEST, {}, version="2"), "version.*expected 1, got '2'. Hint: upgrade"),
    "a later level": (lambda: seal(GOOD_MANIFEST, {}, level="4"), "level.*expected 1 or 3, got '4'. Hint: upgrade"),
    "no streams": (lambda: seal_stored({}, sha256="0" * 64), "first stream is not the manifest"),
    "manifest not first": (lambda: seal_stored({"gaps": b"", "manifest": b""}), "first stream is not the manifest"),
    "no digest": (lambda: seal(GOOD_MANIFEST, GOOD_CONTENTS, sha256=""), "damaged: header and manifest"),
    "another digest": (lambda: seal(GOOD_MANIFEST, GOOD_CONTENTS, sha256="1" * 64), "damaged: header and manifest"),
    "manifest not compressed": (lambda: seal_stored({"manifest": b"{}"}), "manifest is not an LZMA2 stream"),
    "manifest too large": (lambda: seal(b" " * 2**20 + b"{}", {}), "manifest is larger than stated"),
    "manifest not UTF-8": (lambda: seal(b'"\xff"', {}), "manifest is not UTF-8"),
    "manifest not JSON": (lambda: seal(b"{", {}), "manifest is not JSON"),
    "manifest with a key twice": (lambda: seal(b'{"facts": {"a": 1, "a": 2}}', {}), "the key 'a' twice"),
    "manifest with NaN": (lambda: seal(b'{"facts": {"a": NaN}}', {}), "not finite"),
    "manifest a list": (lambda: seal(b"[]", {}), "does not follow the format"),
    "manifest with more": (lambda: sealed(more=1), "at 'more'"),
    "manifest without facts": (lambda: seal({"weights": [], "rest": []}, {}), "at 'facts'"),
    "facts a list": (lambda: sealed(facts=[]), "at 'facts'"),
    "a missing stream": (lambda: sealed(streams={}), "does not hold the streams of its manifest"),
    "an unknown stream": (lambda: sealed({"extra": b"x"}), "at 'streams.extra"),
    "an empty stream": (streams_with(bytes=0), "at 'streams.gaps.bytes'"),
    "a stream of a negative size": (streams_with(bytes=-2), "at 'streams.gaps.bytes'"),
    "a stream of a fractional size": (streams_with(bytes=2.0), "at 'streams.gaps.bytes'"),
    "a digest in capitals": (streams_with(sha256="A" * 64), "at 'streams.gaps.sha256'"),
    "a digest with a line end": (streams_with(sha256="a" * 64 + "\n"), "at 'streams.gaps.sha256'"),
    "a stream with another digest": (streams_with(), "damaged: stream 'rest'"),
    "no name": (lambda: one_weight(name=""), "at 'weights.0.name'"),
    "a number as name": (lambda: one_weight(name=3), "at 'weights.0.name'"),
    "a name twice": (lambda: one_weight(name="b"), "the tensor 'b' twice"),
    "no shape": (lambda: one_weight(shape=[]), "at 'weights.0.shape'"),
    "a size of 0": (lambda: one_weight(shape=[2, 0]), "at 'weights.0.shape.1'"),
    "a negative size": (lambda: one_weight(shape=[-2, -3]), "at 'weights.0.shape.0'"),
    "a boolean size": (lambda: one_weight(shape=[True, 6]), "at 'weights.0.shape.0'"),
    "nine dimensions": (lambda: one_weight(shape=[2, 3] + [1] * 7), "at 'weights.0.shape'"),
    "an unknown factor": (lambda: one_weight(factors={"W": [2, 3]}), "at 'weights.0.factors.W"),
    "a factor of one number": (lambda: one_weight(factors={"V": [2]}), "at 'weights.0.factors.V"),
    "negative kept": (lambda: one_weight(factors={"V": [-1, 3]}), "at 'weights.0.factors.V.0'"),
    "a codebook of 257": (lambda: one_weight(factors={"V": [2, 257]}), "at 'weights.0.factors.V.1'"),
    "more kept than elements": (lambda: one_weight(factors={"V": [7, 3]}), "expected at most 6, got 7"),
    "the side factor's own size": (lambda: one_weight(factors={"U": [5, 3]}), "expected at most 4, got 5"),
    "too many elements": (lambda: one_weight(shape=[2**20, 2**20]), "too large"),
    "elements beyond 64 bits": (lambda: one_weight(shape=[2**30] * 8), "too large"),
    "a side factor too large": (lambda: one_weight(shape=[2**17], factors={"V": [0, 3]}), "can't have the size"),
    "an empty array of another size": (lambda: one_rest("F32", floats(0.5), [0, 5]), "expected 0 bytes, got 4"),
    "an empty array too large": (lambda: one_rest("F32", floats(0.5), [0] + [2**31 - 1] * 7), "too large"),
    "too many entries": (lambda: one_weight(shape=[2**14, 2**15], factors={"V": [2**27, 3]}), "too many stored"),
    "an unknown type": (lambda: one_rest("BF16", b"\0\0", [1]), "at 'rest.0.dtype'"),
    "rest of another size": (lambda: one_rest("F32", bytes(8), [1]), "'rest'.*expected 4 bytes, got 8"),
    "rest missing": (lambda: sealed(rest=[], weights=[weight_entry()]), "'rest'.*expected 0 bytes, got 4"),
    "codebook of another size": (lambda: sealed({"codebooks": floats(1, 2)}), "'codebooks'.*expected 12 bytes, got 8"),
    "values where none belong": (lambda: sealed({"values": floats(1)}), "'values'.*expected 0 bytes, got 4"),
    "codes of another size": (lambda: sealed({"codes": b"\0\0"}), "'codes'.*expected 1 bytes, got 2"),
    "too few gaps": (lambda: sealed({"gaps": b"\0"}), "'gaps'.*expected 2 to 10 bytes, got 1"),
    "too many gap bytes": (lambda: sealed({"gaps": bytes(11)}), "'gaps'.*expected 2 to 10 bytes, got 11"),
    "too many gaps": (lambda: sealed({"gaps": bytes(3)}), "expected 2 gaps, got 3"),
    "a gap that leaves the tensor": (lambda: sealed({"gaps": b"\x01\x04"}), "'w.V'.*positions below 6, got 6"),
    "a code outside the codebook": (lambda: sealed({"codes": b"\x07"}), "'w.V'.*codes below 3, got 3"),
    "bits after the last code": (lambda: sealed({"codes": b"\x16"}), "'w.V'.*unused bits"),
    "a codebook out of order": (lambda: sealed({"codebooks": floats(-1, 2, 1)}), "'w.V' has a codebook"),
    "a codebook with a value twice": (lambda: sealed({"codebooks": floats(-1, 1, 1)}), "'w.V' has a codebook"),
    "a codebook with zero": (lambda: sealed({"codebooks": floats(-1, -0.0, 1)}), "'w.V' has a codebook"),
    "an unused NaN in a codebook": (lambda: sealed({"codebooks": floats(np.nan, 1, 2)}), "'w.V' has a codebook"),
    "infinity in a codebook": (lambda: sealed({"codebooks": floats(-1, 1, np.inf)}), "'w.V' has values that are NaN"),
    "NaN in rest": (lambda: sealed({"rest": floats(np.nan)}), "tensor 'b' has values that are NaN"),
    "infinity in half precision": (lambda: one_rest("F16", b"\x00\x7c", [1]), "tensor 'b' has values that are NaN"),
    "neither false nor true": (lambda: one_rest("BOOL", b"\x02", [1]), "tensor 'b'.*false nor true"),
}


@pytest.mark.parametrize(("make", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files_are_refused_in_one_line(make: Callable[[], bytes], message: str) -> None:
    limits = Limits(manifest_bytes=2**19)
    with pytest.raises(InputError, match=message) as caught:
        decode_model(make(), limits)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_values_of_a_factor_without_codebook_are_finite() -> None:
    manifest = {**GOOD_MANIFEST, "weights": [weight_entry(factors={"V": [1, 0]})]}
    contents = {"rest": floats(0.5), "values": floats(2.5), "gaps": b"\x05"}
    assert decode_model(seal(manifest, contents)).weights["w"].dense()[1, 2] == 2.5
    with pytest.raises(InputError, match=r"'w\.V' has values that are NaN"):
        decode_model(seal(manifest, {**contents, "values": floats(-np.inf)}))


@pytest.mark.parametrize("stream", ["skeleton", "gaps", "rest"])
def test_a_bomb_is_refused_before_it_is_inflated(stream: str) -> None:
    """16 MiB of zeros in a few KB; stated so, or stated as the size that is allowed."""
    bomb = {**GOOD_CONTENTS, stream: bytes(2**24)}
    honest = seal(GOOD_MANIFEST, bomb)
    entries = manifest_of(honest)["streams"]
    entries[stream]["bytes"] = len(GOOD_CONTENTS.get(stream, b"skeleton"))
    lying = seal({**GOOD_MANIFEST, "streams": entries}, bomb)
    for content in (honest, lying):
        tracemalloc.start()
        with pytest.raises(InputError, match=r"can't have the size it states|larger than stated"):
            decode_model(content, Limits(skeleton_bytes=2**16))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**21


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(tensors=2), "expected at most 2 weights, factors and other arrays, got "),
        (Limits(elements=8), "expected at most 8 elements, got 13"),
        (Limits(kept=1), "expected at most 1, got 2"),
        (Limits(manifest_bytes=100), "expected at most 100 bytes"),
        (Limits(file_bytes=100), "expected at most 100 bytes"),
        (Limits(header_bytes=100), "expected at most 100 bytes"),
    ],
)
def test_limits_hold(limits: Limits, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode_model(seal(GOOD_MANIFEST, GOOD_CONTENTS), limits)


def test_empty_factors_do_not_count_as_elements() -> None:
    content = one_weight(factors={"U": [0, 0], "V": [2, 3], "C": [0, 0]})
    assert decode_model(content, Limits(elements=6 + 6 + 1)).weights["w"].dense().shape == (2, 3)
    with pytest.raises(InputError, match="expected at most 12 elements, got 13"):
        decode_model(content, Limits(elements=12))
