import numpy as np
import pytest
from numpy_classifiers import BatchNormalised, Mlp, Noisy, Softmax, digits, fit

from evaluators.accuracy import accuracy, batched_logits, check_determinism, check_logits, images_digest


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return digits()[0][1200:1300].astype(np.float32) / 255


def test_batches_give_the_logits_of_all_images(images: np.ndarray) -> None:
    seen: list[tuple[int, int]] = []
    logits = batched_logits(fit(), images, 33, lambda *done: seen.append(done))
    np.testing.assert_allclose(logits, fit().logits(images), atol=1e-4)
    assert seen == [(33, 100), (66, 100), (99, 100), (100, 100)]


def test_accuracy_counts() -> None:
    logits = np.float32([[1, 0], [0, 1], [np.nan, 1], [0, 1]])
    measured = accuracy(logits, np.array([0, 0, 1, 1]))
    assert (measured.successes, measured.n) == (2, 4)


def test_logits_of_an_honest_classifier_pass(images: np.ndarray) -> None:
    assert check_logits(fit().logits(images), len(images)).passed
    assert check_determinism(fit(), images).passed


@pytest.mark.parametrize(
    ("logits", "words"),
    [
        (np.zeros((5, 1), np.float32), "shape"),
        (np.zeros(5, np.float32), "shape"),
        (np.zeros((4, 3), np.float32), "shape"),
        (np.full((5, 3), np.nan, np.float32), "5 of 5"),
        (np.float32([[0, 1, 2]] * 4 + [[0, 1, np.inf]]), "1 of 5"),
        (np.full((5, 4), 0.25, np.float32), "probabilities"),
        (np.eye(5, dtype=np.float32), "probabilities"),
    ],
)
def test_outputs_that_are_no_logits(logits: np.ndarray, words: str) -> None:
    check = check_logits(logits, 5)
    assert check.passed is False
    assert words in check.reason


def test_softmax_is_found(images: np.ndarray) -> None:
    assert check_logits(fit(Softmax).logits(images), len(images)).passed is False


@pytest.mark.parametrize(("kind", "words"), [(Noisy, "noise"), (BatchNormalised, "batch")])
def test_outputs_that_are_not_a_function_of_the_image(kind: type[Mlp], words: str, images: np.ndarray) -> None:
    check = check_determinism(fit(kind), images)
    assert check.passed is False
    assert words in check.reason


def test_digest_depends_on_pixels_labels_order_and_shape() -> None:
    images, labels = digits()
    images, labels = images[:10], labels[:10]
    digest = images_digest(images, labels)
    assert digest == images_digest(images.copy(), labels.astype(np.int32))
    changed = images.copy()
    changed[3, 0, 4, 4] ^= 1
    others = [
        images_digest(changed, labels),
        images_digest(images, labels[::-1]),
        images_digest(images[::-1], labels),
        images_digest(images.reshape(10, 1, 4, 16), labels),
        images_digest(images[:9], labels[:9]),
    ]
    assert len({digest, *others}) == 6
