"""Data sets from the user's own code."""

from pathlib import Path

import numpy as np
import pytest

from atmc_tool import data
from atmc_tool.errors import InputError, UsageError

HEAD = """
import numpy as np
from atmc_tool.data import Augmentation, DataSet, Images

def arrays():
    x = np.arange(20 * 4 * 4, dtype=np.uint8).reshape(20, 4, 4)
    return {"x_train": x, "y_train": np.arange(20) % 2, "x_test": x[:6], "y_test": np.arange(6) % 2}

def part(n, classes=3):
    return Images(np.full((n, 2, 4, 4), n, np.uint8), np.arange(n) % classes)

def data_set(**changes):
    parts = dict(train=part(9), validation=part(4), test=part(6), n_classes=3, class_names=("a", "b", "c"))
    return DataSet(name="mine", augmentation=Augmentation(1, True), digest="", **{**parts, **changes})
"""


def write(folder: Path, code: str) -> str:
    path = folder / "mine.py"
    path.write_text(HEAD + code)
    return f"{path}:make"


def test_a_mapping_of_arrays(tmp_path: Path) -> None:
    spec = write(tmp_path, "make = arrays")
    read = data.load_data(spec, validation=0.2)
    assert (len(read.train), len(read.validation), len(read.test)) == (16, 4, 6)
    assert read.name == spec


def test_a_data_set_keeps_its_own_validation_part(tmp_path: Path) -> None:
    read = data.load_data(write(tmp_path, "make = data_set"))
    assert (len(read.train), len(read.validation), len(read.test)) == (9, 4, 6)
    assert read.augmentation == data.Augmentation(1, True)
    assert read.class_names == ("a", "b", "c")
    assert len(read.digest) == 64
    limited = data.load_data(f"{tmp_path}/mine.py:data_set", limit=3)
    assert (len(limited.train), len(limited.validation), len(limited.test)) == (3, 4, 3)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def make(): return 3", r"expected a DataSet or a mapping with x_train, y_train, x_test, y_test, got int"),
        ("def make(): raise KeyError('x\\ny')", "gave no data set: got KeyError"),
        ("def make(): return {'x_train': arrays()['x_train'], 'x_test': arrays()['x_test']}", "has no labels"),
        ("def make(): return arrays() | {'y_train': None}", "has no labels"),
        ("def make(): return arrays() | {'x_train': arrays()['x_train'] * np.nan}", "images hold NaN"),
        (
            "def make(): return arrays() | {'x_train': [np.zeros((4, 4)), np.zeros((4, 5))]}",
            "can't be read as one array",
        ),
        ("def make(): return arrays() | {'x_train': np.array(['a', None])}", "expected one shape"),
        ("def make(): return data_set(n_classes=4)", "class_names don't fit n_classes: expected 4, got 3"),
        ("def make(): return data_set(test=part(6, classes=4))", "a label is out of range: expected 0 to 2, got 3"),
        ("def make(): return data_set(test=None)", r"\(test\) holds no arrays.*got NoneType"),
        ("def make(): return data_set(validation=part(0))", r"\(validation\) holds no images"),
        (
            "def make(): return data_set(test=Images(part(6).floats(), part(6).labels))",
            r"\(test\) holds no images.*float32",
        ),
        ("def make(): return data_set(test=Images(part(6).images, part(5).labels))", "labels don't fit"),
        ("def make(): return data_set(test=Images(part(6).images[:, :1], part(6).labels))", "differ in shape"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        data.load_data(write(tmp_path, code))
    assert "\n" not in str(caught.value)


def test_a_missing_name_is_a_usage_error(tmp_path: Path) -> None:
    write(tmp_path, "")
    with pytest.raises(UsageError, match="did you mean arrays"):
        data.load_data(f"{tmp_path}/mine.py:arays")


def test_an_npz_opened_by_the_user_is_a_mapping(tmp_path: Path) -> None:
    x = np.zeros((4, 2, 2), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=[0, 1, 0, 1], x_test=[[[7]]], y_test=[1])
    with pytest.raises(InputError, match="differ in shape"):
        data.load_data(write(tmp_path, f"def make(): return np.load({str(tmp_path / 'a.npz')!r})"))
