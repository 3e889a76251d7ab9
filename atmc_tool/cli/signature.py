"""A signature of the file to verify, by an elliptic key: made by the package model-signing, and tried here."""

import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from atmc_tool.errors import InputError, MissingEnvironmentError, UsageError
from atmc_tool.files import read_bytes, sha256, write_atomic
from evaluators.gate import Check

MAX_KEY = 2**20  # bytes
MAX_SIGNATURE = 2**26


def check_signature(path: Path, content: bytes, signature: Path | None, public_key: Path | None) -> Check:
    """That `signature`, in the format of model-signing (a Sigstore bundle), is one of `content` by `public_key`.

    The digest is what is signed, so the file may be renamed; `path` is what errors call it. model-signing reads copies
    in a private folder: a file that is exchanged after it was read makes no difference. Needs no network. Not applied
    where neither is given.

    Raises:
        UsageError: one of `signature` and `public_key` is given without the other.
        MissingEnvironmentError: model-signing is not installed.
        InputError: a file is missing or damaged, or the signature is of another file or by another key.
        AtmcError: the copies can't be written.
    """
    if signature is None or public_key is None:
        if signature is public_key:
            return Check("signature", None, "no --signature is given")
        given, missing = ("--public-key", "--signature") if signature is None else ("--signature", "--public-key")
        raise UsageError(f"{given} alone says nothing", expected=f"{missing} with it")
    if find_spec("model_signing") is None:
        hint = "pip install 'atmc-tool[signing]'"
        raise MissingEnvironmentError("--signature needs the package model-signing", hint=hint)
    signed, key = read_bytes(signature, MAX_SIGNATURE), read_bytes(public_key, MAX_KEY)
    with TemporaryDirectory(prefix="atmc-tool-") as private:
        for name, copy in (("model", content), ("signature", signed), ("key", key)):
            write_atomic(Path(private, name), copy, hint="free space, or name another temporary folder by TMPDIR")
        try:
            with redirect_stdout(sys.stderr):  # it prints warnings
                from model_signing.verifying import Config

                config = Config().use_elliptic_key_verifier(public_key=Path(private, "key"))
                config.verify(Path(private, "model"), Path(private, "signature"))
        except Exception as error:  # whatever goes wrong in it, the file is not shown to be what the key signed
            got = str(error) or type(error).__name__
            raise InputError(f"{signature} is no signature of {path} by {public_key}", got=got) from error
    evidence = {"signature": str(signature), "public_key_sha256": sha256(key)}
    return Check("signature", True, f"the file is what {public_key} signed, {sha256(key)[:12]}", evidence)
