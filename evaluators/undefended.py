"""A control of the attack: what is known to have no defence must fall, at the same eps, to the same attack.

A gate has no training data and no torch, so the control is a linear classifier that is fitted to the images that are
measured. How many of them an attack can break at all is then known exactly, and the attack, which goes through the same
code, session and settings as that on the artefact, has to find them. A network that was trained without attacks, where
one is given, is attacked as well, and has to fall to chance.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from atmc_tool.attacks.classifier import Classifier, correct
from atmc_tool.threat_model import Norm, ThreatModel
from evaluators.accuracy import Floats, Labels, accuracy, batched_logits, chance, share
from evaluators.attack_plan import LIKELY_TARGETS, AttackSettings
from evaluators.attack_strength import tolerated
from evaluators.gate import Check
from evaluators.robustness import Robustness, StageProgress, attack
from evaluators.spread import Spread

SAMPLES = 256  # the first so many images
CONTROLLED = 128  # of them, by the linear control
PIXELS: Mapping[Norm, int] = {"linf": 2**23, "l2": 2**21}  # of all its images: fewer of them where they are large
CLASSES = 10  # of the linear control: where there are more, labels count modulo 10
RIDGES = tuple(10.0**exponent for exponent in range(-4, 0))  # relative to the mean square of a pixel
TELLING = 2  # times what is tolerated: so few images to find tell nothing, for an attack that can't move passes too
UNDECIDED = 1e-3  # of the largest logit: a margin below is rounding
OPSET, IR_VERSION = 21, 10

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Linear:
    """z = x·weight + bias: weight (C·H·W, classes), bias (classes,), float32."""

    weight: Floats
    bias: Floats

    def logits(self, images: Floats) -> Doubles:
        """Logits, float64 (n, classes)."""
        flat = images.reshape(len(images), -1).astype(np.float64)
        return np.asarray(flat @ self.weight.astype(np.float64) + self.bias)

    def likely(self, images: Floats, labels: Labels) -> Labels:
        """The wrong classes that all attacks aim at, (n, at most 3), the likeliest first."""
        own = np.arange(len(self.bias)) == labels[:, None]
        order = np.argsort(-np.where(own, -np.inf, self.logits(images)), 1)
        return order[:, : min(LIKELY_TARGETS, len(self.bias) - 1)]

    def highest_margins(self, images: Floats, labels: Labels, eps: float, norm: Norm, targets: Labels) -> Doubles:
        """The largest z_t − z_y in ball and box, float64 (n, k), for targets (n, k). Positive: t can be reached.

        A margin is linear in the image. In l-infinity every pixel goes to the end of its own interval that raises it.
        In l2 the best change is μ g, g being the margin's gradient, clipped to the box, with the largest μ that keeps
        its length at eps (the condition of Karush, Kuhn and Tucker); μ is found pixel by pixel.
        """
        flat = images.reshape(len(images), -1).astype(np.float64)
        weight, logits, rows = self.weight.astype(np.float64), self.logits(images), np.arange(len(labels))
        low, high = -flat, 1 - flat
        if norm == "linf":
            low, high = np.maximum(low, -eps), np.minimum(high, eps)
        margins = np.empty(targets.shape)
        for column, target in enumerate(targets.T):
            slope = (weight[:, target] - weight[:, labels]).T
            change = np.where(slope > 0, high, low) if norm == "linf" else _longest(slope, low, high, eps)
            margins[:, column] = logits[rows, target] - logits[rows, labels] + (slope * change).sum(1)
        return margins

    def model(self, image_shape: tuple[int, ...]) -> ModelProto:
        """The same as an ONNX classifier of images (N, C, H, W)."""
        nodes = [
            helper.make_node("Flatten", ["image"], ["pixels"]),
            helper.make_node("Gemm", ["pixels", "weight", "bias"], ["logits"]),
        ]
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *image_shape])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(self.bias)])
        stored = [numpy_helper.from_array(self.weight, "weight"), numpy_helper.from_array(self.bias, "bias")]
        graph = helper.make_graph(nodes, "undefended", [image], [logits], stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _longest(slope: Doubles, low: Doubles, high: Doubles, eps: float) -> Doubles:
    """The change of the pixels, (n, pixels), within [low, high] and of length at most eps that rises most on `slope`.

    With μ from eps / ‖slope‖ on: pixels that μ · slope takes beyond the box stay at it, and the others share what is
    left of eps², which gives the next μ. It only rises, and its change is never too long, so the pixels at the box
    only become more; once no further one comes it is the largest μ.
    """
    size = np.abs(slope)
    room = np.where(slope > 0, high, -low)
    at_box = size == 0
    room = np.where(at_box, 0, room)
    while True:
        free = np.where(at_box, 0, size)
        left, share = eps**2 - np.where(at_box, room**2, 0).sum(1), (free**2).sum(1)
        factor = np.sqrt(np.maximum(left, 0) / np.where(share > 0, share, 1))[:, None]
        beyond = ~at_box & (factor * size >= room)
        if not beyond.any():
            return np.asarray(np.sign(slope) * np.where(at_box, room, factor * size))
        at_box |= beyond


def fit_linear(images: Floats, labels: Labels, ridge: float) -> Linear:
    """The ridge regression of ±1 for each class, over the images (n, C, H, W), by an (n, n) system."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    features = np.concatenate([flat, np.ones((len(flat), 1))], 1)
    gram = features @ features.T
    weight = max(ridge * float(np.trace(gram)), 1e-12)
    targets = 2 * np.eye(max(2, int(labels.max()) + 1))[labels] - 1
    solution = features.T @ np.linalg.solve(gram + weight * np.eye(len(gram)), targets)
    return Linear(solution[:-1].astype(np.float32), solution[-1].astype(np.float32))


def telling_linear(images: Floats, labels: Labels, eps: float, norm: Norm) -> Linear:
    """Of the linear classifiers fitted with `RIDGES` the one that tells most of an attack with eps.

    It is the one with most images that eps can break and half of eps can't: one that nothing breaks, or anything, tells
    little.
    """
    fitted = [fit_linear(images, labels, ridge) for ridge in RIDGES]

    def told(linear: Linear) -> int:
        broken, half = (
            linear.highest_margins(images, labels, radius, norm, linear.likely(images, labels)).max(1) > 0
            for radius in (eps, eps / 2)
        )
        return int((broken & ~half).sum())

    return max(fitted, key=told)


def check_undefended(
    make: Callable[[ModelProto], Classifier],
    images: Floats,
    labels: Labels,
    threat_model: ThreatModel,
    settings: AttackSettings,
    network: tuple[str, Classifier] | None = None,
    progress: StageProgress | None = None,
    spread: Spread | None = None,
) -> Check:
    """The white-box attacks of `settings` break a linear classifier as far as it can be broken, and bring `network`
    down to chance.

    make:    a session of an ONNX model, as the artefact has one
    network: name and classifier of one that was trained without attacks
    """
    white_box = replace(settings, square_queries=0)
    passed, reason, evidence = _judge_linear(make, images, labels, threat_model, white_box)
    if network is not None:
        name, classifier = network
        first = images[:SAMPLES], labels[:SAMPLES]
        found = attack(classifier, *first, threat_model.eps, white_box, progress, spread, threat_model.norm)
        fallen, words, facts = _judge_network(name, classifier, *first, found, settings.batch_size)
        passed = fallen if passed is None else passed and fallen
        reason, evidence = f"{reason}; {words}", evidence | {"network": facts}
    return Check("undefended", passed, reason, evidence)


def _judge_linear(
    make: Callable[[ModelProto], Classifier],
    images: Floats,
    labels: Labels,
    threat_model: ThreatModel,
    settings: AttackSettings,
) -> tuple[bool | None, str, dict[str, Any]]:
    """Whether the attack finds what is there, a reason, and the evidence.

    An image must be found where it is classified correctly and one of the likeliest wrong classes, which all attacks
    aim at, can be reached. None where there are hardly more of them than may be missed.
    """
    few = max(1, min(CONTROLLED, len(images), PIXELS[threat_model.norm] // images[0].size))
    images, labels = images[:few], labels[:few] % CLASSES
    eps, norm = threat_model.eps, threat_model.norm
    linear = telling_linear(images, labels, eps, norm)
    found = attack(make(linear.model(images.shape[1:])), images, labels, eps, settings, norm=norm)
    if found.robust is None:
        return False, f"the control could not be attacked: {found.no_gradient}", {}
    logits = linear.logits(images)
    right, decided = correct(logits, labels), UNDECIDED * float(np.abs(logits).max())
    others = np.stack([np.delete(np.arange(logits.shape[1]), label) for label in labels])
    highest = linear.highest_margins(images, labels, eps, norm, others).max(1)
    reachable = linear.highest_margins(images, labels, eps, norm, linear.likely(images, labels)).max(1)
    findable = right & (reachable > decided)
    there, missed = int(findable.sum()), int((found.robust & findable).sum())
    impossible = int((right & ~found.robust & (highest < -decided)).sum())
    exact, measured = share(right & (highest < 0), labels), share(found.robust, labels)
    evidence = {
        "n": few,
        "clean": float(right.mean()),
        "exact": exact.value,
        "attacked": measured.value,
        "findable": there,
        "missed": missed,
        "impossible": impossible,
    }
    reason = (
        f"of {there} images that eps {threat_model.text} must fool of a linear classifier of accuracy "
        f"{right.mean():.4f} the attack finds {there - missed} (n {few})"
    )
    if impossible:
        return False, f"{reason}: {impossible} images are fooled that can't be within eps", evidence
    if missed > tolerated(few):
        return False, f"{reason}: {missed} images that can be fooled are not: raise --steps", evidence
    if there <= TELLING * tolerated(few):
        return None, f"{reason}: so few tell nothing, eps is too small for that, or the images too few", evidence
    return True, reason, evidence


def _judge_network(
    name: str, classifier: Classifier, images: Floats, labels: Labels, found: Robustness, batch_size: int
) -> tuple[bool, str, dict[str, Any]]:
    """Whether the network is one, and fell; a reason, and the evidence."""
    logits = batched_logits(classifier, images, batch_size)
    clean, guess = accuracy(logits, labels), chance(labels, logits.shape[1])
    facts: dict[str, Any] = {"file": name, "chance": guess, "clean": clean.to_json()}
    if found.accuracy is None:
        return False, f"{name} could not be attacked: {found.no_gradient}", facts
    facts["robust"] = found.accuracy.to_json()
    words = f"{name} falls from {clean.value:.4f} to {found.accuracy.value:.4f} (n {clean.n}, chance {guess:.4f})"
    if clean.clopper_pearson.low <= guess:
        return False, f"{words}: it is no better than chance without an attack", facts
    if found.accuracy.clopper_pearson.low > guess:
        return False, f"{words}: it has a defence, or the attack is too weak at this eps", facts
    return True, words, facts
