"""A signature of the file to verify, by an elliptic key: made by the package model-signing, and tried here."""

import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path

from atmc_tool.errors import InputError, MissingEnvironmentError, UsageError
from atmc_tool.files import read_bytes, sha256
from evaluators.gate import Check

MAX_KEY = 2**20  # bytes
MAX_SIGNATURE = 2**26


def check_signature(path: Path, signature: Path | None, public_key: Path | None) -> Check:
    """That `signature`, in the format of model-signing (a Sigstore bundle), is one of the file `path` by `public_key`.

    The digest of the file is what is signed, so it may be renamed. Needs no network. Not applied where neither is
    given.

    Raises:
        UsageError: one of `signature` and `public_key` is given without the other.
        MissingEnvironmentError: model-signing is not installed.
        InputError: a file is missing or damaged, or the signature is of another file or by another key.
    """
    if signature is None or public_key is None:
        if signature is public_key:
            return Check("signature", None, "no --signature is given")
        given, missing = ("--public-key", "--signature") if signature is None else ("--signature", "--public-key")
        raise UsageError(f"{given} alone says nothing", expected=f"{missing} with it")
    if find_spec("model_signing") is None:
        hint = "pip install 'atmc-tool[signing]'"
        raise MissingEnvironmentError("--signature needs the package model-signing", hint=hint)
    read_bytes(signature, MAX_SIGNATURE)  # for the errors of files, one line each
    key = sha256(read_bytes(public_key, MAX_KEY))
    try:
        with redirect_stdout(sys.stderr):  # it prints warnings
            from model_signing.verifying import Config

            Config().use_elliptic_key_verifier(public_key=public_key).verify(path, signature)
    except Exception as error:  # whatever goes wrong in it, the file is not shown to be what the key signed
        got = str(error) or type(error).__name__
        raise InputError(f"{signature} is no signature of {path} by {public_key}", got=got) from error
    evidence = {"signature": str(signature), "public_key_sha256": key}
    return Check("signature", True, f"the file is what {public_key} signed, {key[:12]}", evidence)
