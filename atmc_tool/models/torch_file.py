"""Files of `torch.save` → Python objects, without running code that a file may contain."""

import io
import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from atmc_tool.errors import InputError

# What torch 2.13 raises on files cut or flipped at any byte (tried at every one, in both formats), and for sizes
# that can't be had. Nothing but torch.load on the file's own bytes runs where these are caught.
_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    struct.error,
)
# A name that is not on torch's list of harmless ones, or an opcode (pickle protocol 4) that torch does not judge.
_CODE = re.compile(r"GLOBAL (\S+)|unrecognized function|Can only (?:build|create)|Unsupported operand (?:147|149)\b")


def load_torch(path: Path, content: bytes, trust_pickle: bool) -> Any:
    """The object in `content`, the bytes of `path`, its tensors on the CPU.

    Loaded with `weights_only`; only if that is refused because the file contains code, and `trust_pickle`, in full.
    Zip files (torch ≥ 1.6) are checked against their checksums first, which torch does not do. The older format has
    none: there only damage to its structure can be seen, not a flipped bit of a weight.

    Raises:
        InputError: damaged, not written by `torch.save`, or with code in it where not trusted.
    """
    if content.startswith(b"PK\x03\x04"):
        _check_zip(path, content)
    refused = _load(path, content, weights_only=True)
    if not isinstance(refused, _Refused):
        return refused
    if not trust_pickle:
        raise InputError(
            f"{path} contains code ({refused.name}), as a whole pickled module does, which would run on loading",
            expected="a file of tensors only, such as torch.save(model.state_dict(), path)",
            hint="--trust-pickle loads it all the same; use it only for a file whose origin you trust",
        )
    return _load(path, content, weights_only=False)


class _Refused:
    """Torch will not load the file with `weights_only`, because of `name`."""

    def __init__(self, name: str) -> None:
        self.name = name


def _load(path: Path, content: bytes, weights_only: bool) -> Any:
    stream = io.BytesIO(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and storages: nothing its reader can act on
            loaded = torch.load(stream, map_location="cpu", weights_only=weights_only)
    except ImportError as error:
        raise _not_importable(path, error) from error
    except _DAMAGE as error:
        if weights_only and isinstance(error, pickle.UnpicklingError) and (code := _CODE.search(str(error))):
            return _Refused(code.group(1) or "a pickled object")
        if not weights_only and isinstance(error, AttributeError):
            raise _not_importable(path, error) from error
        raise _damaged(path) from error
    # The older format is a sequence of pickles and raw tensors, read to its last byte where it is whole.
    if not content.startswith(b"PK") and stream.tell() != len(content):
        raise _damaged(path)
    return loaded


def _not_importable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} needs Python code that is not here",
        got=str(error),
        hint="run where that code can be imported, or save the state_dict and give the network with --arch",
    )


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is damaged or not a PyTorch file", expected="a whole file written by torch.save")


def _check_zip(path: Path, content: bytes) -> None:
    """Every record is stored as it is (so that none can expand beyond the file) and matches its checksum."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            records = archive.infolist()
            if any(record.filename.endswith("/constants.pkl") for record in records):
                raise InputError(
                    f"{path} is a TorchScript archive",
                    expected="a state dict",
                    hint="save torch.jit.load(path).state_dict() with torch.save",
                )
            if any(record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1 for record in records):
                raise InputError(f"{path} holds compressed or encrypted records, which torch.save never writes")
            # All zero: written under torch.serialization.set_crc32_options(False), there is nothing to compare.
            if any(record.CRC for record in records) and (bad := archive.testzip()) is not None:
                raise InputError(f"{path} is damaged", expected="records that match their checksums", got=f"not {bad}")
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise _damaged(path) from error
