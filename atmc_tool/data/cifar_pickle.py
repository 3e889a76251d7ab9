"""A batch of CIFAR's Python version, which is a pickle, read without running anything that a pickle may name.

The batch is a dict with an array `data`, uint8 (n, 3072), and a list of labels. NumPy pickles an array as calls of its
own functions; here passive stand-ins take their arguments, which are checked before an array is made of them.
"""

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atmc_tool.errors import InputError

EXPECTED = "a pickled dict of one uint8 array and lists, as CIFAR's makers publish it"

# What containers, numbers, strings and calls need; all else is refused before the pickle is loaded.
_PLAIN = """
PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 SHORT_BINSTRING BINSTRING SHORT_BINBYTES
BINBYTES BINBYTES8 SHORT_BINUNICODE BINUNICODE EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS BINPUT LONG_BINPUT
MEMOIZE BINGET LONG_BINGET
"""
_NESTING = "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 GLOBAL STACK_GLOBAL REDUCE BUILD"
_FEW = frozenset(_NESTING.split())
_OPCODES = frozenset(_PLAIN.split()) | _FEW
_MAX_FEW = 200  # nothing nests deeper


class _Array:
    """What an array's pickle says: `state` is (version, shape, type, Fortran order?, content)."""

    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Type:
    """What the pickle of an element type says, its name first."""

    def __init__(self, name: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        """Byte order and the like, which a type of one byte does not have."""


class _Forbidden(Exception):
    """The pickle wants something of a name that no batch needs."""


class _Unpickler(pickle.Unpickler):
    """Knows stand-ins for what a batch names, and nothing else; a file that changes one changes its own copy."""

    def find_class(self, module: str, name: str, /) -> Any:
        stand_ins: dict[tuple[str, str], Callable[..., object] | None] = {
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
            ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
            ("numpy", "ndarray"): None,  # only ever an argument of _reconstruct
            ("numpy", "dtype"): lambda kind, *_: _Type(kind),
            ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # Python 3's bytes by Python 2's protocols
        }
        if (module, name) not in stand_ins:
            raise _Forbidden(f"{module}.{name}"[:200])
        return stand_ins[module, name]


def read_batch(content: bytes, labels: str, width: int, where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The array `data`, uint8 (n, `width`), and the list under the key `labels`, int64 (n,).

    Raises:
        InputError: damaged, of another form, or with code in it, which is not run.
    """
    try:
        _check_opcodes(content)
        loaded = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        batch = {_text(key): value for key, value in loaded.items()} if isinstance(loaded, dict) else {}
        pixels = _as_array(batch.get("data"), width)
        numbers = batch.get(labels)
        if not isinstance(numbers, list) or any(type(number) is not int for number in numbers):
            raise InputError(f"{where} has no labels", expected=f"a list of integers under {labels!r}")
        if len(numbers) != len(pixels):
            raise InputError(f"{where} is damaged", expected=f"{len(pixels)} labels", got=len(numbers))
        return pixels, np.array(numbers, np.int64)
    except _Forbidden as error:
        hint = "use the files of https://www.cs.toronto.edu/~kriz/cifar.html"
        raise InputError(f"{where} contains code ({error}), which is not run", expected=EXPECTED, hint=hint) from error
    except InputError:
        raise
    except Exception as error:  # unpickling fails in many ways on damaged content, and runs nothing but the stand-ins
        message = f"{type(error).__name__}: {error}"[:200]
        raise InputError(f"{where} is damaged or no CIFAR file", expected=EXPECTED, got=message) from error


def _check_opcodes(content: bytes) -> None:
    """Refuse what could take more memory or stack than the file has bytes: large memos, deep nesting, repetition."""
    few = 0
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name not in _OPCODES:
            raise ValueError(f"opcode {opcode.name}, which no batch has")
        few += opcode.name in _FEW
        if few > _MAX_FEW or (opcode.name == "LONG_BINPUT" and int(argument or 0) > len(content)):
            raise ValueError("not of the form of a batch")


def _text(key: object) -> object:
    return key.decode("latin1") if isinstance(key, bytes) else key


def _as_array(value: object, width: int) -> NDArray[np.uint8]:
    """The uint8 array (n, width) that a stand-in describes."""
    state = value.state if isinstance(value, _Array) else None
    if not isinstance(state, tuple) or len(state) != 5:
        raise ValueError("'data' is no array")
    _, shape, kind, fortran, content = state
    if not isinstance(kind, _Type) or _text(kind.name) != "u1" or not isinstance(content, bytes):
        raise ValueError("'data' is no array of uint8")
    if not isinstance(shape, tuple) or shape != (len(content) // width, width) or len(content) % width:
        raise ValueError(f"'data' is not of shape (n, {width})")
    array = np.frombuffer(content, np.uint8)
    return array.reshape(shape, order="F" if fortran else "C")
