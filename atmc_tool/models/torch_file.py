"""Files of `torch.save` → Python objects, without running code that a file may contain."""

import io
import pickle
import re
import struct
import sys
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
    Zip files (torch ≥ 1.6) are first checked against their checksums, which torch does not do. The older format has
    none: there only damage to its structure can be seen, not a flipped bit of a weight.

    Raises:
        InputError: damaged, not written by `torch.save`, or with code in it where not trusted.
    """
    if content.startswith(b"PK\x03\x04"):
        content = _verified_zip(path, content)
    refused = _load(path, content, weights_only=True)
    if not isinstance(refused, _Refused):
        return refused
    if not trust_pickle:
        raise InputError(
            f"{path} contains code ({refused.name}), as a whole pickled module does, which would run on loading",
            expected="a file of tensors only, such as torch.save(model.state_dict(), path)",
            hint="--trust-pickle loads it all the same; use it only for a file whose origin you trust",
        )
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)  # where the module's class may be, as for --arch pkg.mod:callable
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


def _verified_zip(path: Path, content: bytes) -> bytes:
    """The same archive, written anew from records that match their checksums.

    Anew, because torch's reader and Python's do not judge every field alike: with one flipped attribute bit torch
    takes a record for a folder and returns uninitialised memory for its tensor.
    """
    whole = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(whole, "w") as verified:
            records = archive.infolist()
            if any(record.filename.endswith("/constants.pkl") for record in records):
                raise InputError(
                    f"{path} is a TorchScript archive",
                    expected="a state dict",
                    hint="save torch.jit.load(path).state_dict() with torch.save",
                )
            if any(record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1 for record in records):
                # Stored ones can't expand beyond the file, whose size has been judged.
                raise InputError(f"{path} holds compressed or encrypted records, which torch.save never writes")
            if len({record.filename for record in records}) != len(records):
                raise _damaged(path)
            if not any(record.CRC for record in records):
                return content  # written under torch.serialization.set_crc32_options(False): nothing to compare
            for record in records:
                verified.writestr(zipfile.ZipInfo(record.filename), archive.read(record))
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise _damaged(path) from error
    return whole.getvalue()
