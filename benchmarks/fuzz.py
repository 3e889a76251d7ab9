"""Coverage-guided fuzzing of the reader of `.atmc` files, by atheris (`pip install 'atmc-tool[fuzz]'`, Linux).

    python benchmarks/fuzz.py -runs=100000 -max_len=65536 build/fuzz   # libFuzzer's options; a folder for its corpus

Anything but InputError is a find. Half of the changes are libFuzzer's own, the others those of `tests/mutations.py`,
which get past the digests.
"""

import random
import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

with atheris.instrument_imports(include=["exporters"]):
    from exporters.atmc_file import decode_model, encode_model

from mutations import damaged, sealed  # noqa: E402  # from tests/
from test_exporters_atmc_file import digits_like  # noqa: E402

from atmc_tool.errors import InputError  # noqa: E402


def one_input(content: bytes) -> None:
    """Read `content`; what is accepted has to be written again."""
    try:
        model = decode_model(content)
    except InputError:
        return
    encode_model(model)


def change(content: bytes, most: int, seed: int) -> bytes:
    """A change of `content`, at most `most` bytes."""
    rng = random.Random(seed)  # nothing secret
    if rng.random() < 0.5:
        return bytes(atheris.Mutate(content, most))
    try:
        return sealed(content, rng)[:most]
    except (InputError, ValueError, KeyError, TypeError, AttributeError, IndexError):  # no file that can be sealed
        return damaged(content, rng)[:most]


def main() -> None:
    folder = next((Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")), None)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "honest.atmc").write_bytes(encode_model(digits_like("U", "V")))
    atheris.Setup(sys.argv, one_input, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
