"""Our attacks against pyautoattack, foolbox and ART on the same images; merges into benchmarks/results/attacks.json.

    python benchmarks/attacks.py digits build/benchmarks/digits-0/model.pt --eps 0.1 --eps-l2 0.5
    python benchmarks/attacks.py mnist build/benchmarks/mnist-0/model.pt --eps 0.3 --eps-l2 2 -n 1000 --strong 200

The networks are those that benchmarks/pipeline.py has trained. All attacks run in torch on one thread. The attacks of
AutoAttack run one after the other, each on what is left, ours and pyautoattack's with the same steps and queries.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foolbox
import numpy as np
import torch
from art.attacks.evasion import (
    AutoProjectedGradientDescent,
    BasicIterativeMethod,
    MomentumIterativeMethod,
    ProjectedGradientDescent,
)
from art.estimators.classification import PyTorchClassifier
from pyautoattack import AutoAttack
from torch import Tensor, nn

from atmc_tool.attacks.bim import bim
from atmc_tool.attacks.classifier import correct
from atmc_tool.attacks.cw import CONFIDENCE, cw
from atmc_tool.attacks.fgsm import fgsm
from atmc_tool.attacks.momentum import momentum
from atmc_tool.attacks.pgd import default_step_size
from atmc_tool.attacks.starts import start_noise
from atmc_tool.attacks.worst_case import worst_case
from atmc_tool.attacks.wrm import WEIGHT, wrm
from atmc_tool.data import load_data, test_subset
from atmc_tool.machine import machine
from atmc_tool.models.reading import choose_architecture, fitted_network, read_model
from atmc_tool.tied import own_state
from atmc_tool.torch_classifier import TorchClassifier
from evaluators.attack_plan import AttackSettings
from evaluators.robustness import attack

RESULT = Path(__file__).parent / "results" / "attacks.json"
STEPS, RESTARTS, BATCH = 20, 3, 128
ITERATIONS, WRM_STEPS = 10, 15  # of BIM and MI-FGSM, and of WRM


class Whole(nn.Module):
    """The classifier as a module, as others' attacks take it."""

    def __init__(self, classifier: TorchClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.logits(images)


class Arrays:
    """The torch classifier for NumPy arrays, as `evaluators` take it."""

    def __init__(self, classifier: TorchClassifier) -> None:
        self.classifier = classifier

    def logits(self, images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.classifier.logits(torch.from_numpy(images)).numpy()

    def logits_and_gradient(self, images: np.ndarray, labels: np.ndarray, loss: Any, targets: Any = None) -> Any:
        tensors = [None if array is None else torch.from_numpy(array) for array in (images, labels, targets)]
        found = self.classifier.logits_and_gradient(tensors[0], tensors[1], loss, tensors[2])
        return tuple(tensor.numpy() for tensor in found)


def timed(run: Callable[[], float]) -> dict[str, float]:
    started = time.monotonic()
    accuracy = run()
    return {"accuracy": round(accuracy, 4), "seconds": round(time.monotonic() - started, 1)}


def small(classifier: TorchClassifier, x: Tensor, y: Tensor, eps: float, norm: str) -> dict[str, Any]:
    """FGSM, PGD and APGD-CE, ours and theirs: accuracies on all images."""

    def share(adversarial: Tensor) -> float:
        with torch.no_grad():
            logits = torch.cat([classifier.logits(part) for part in adversarial.split(BATCH)])
        return float(correct(logits, y).float().mean())

    def ours(restarts: int) -> float:
        with torch.no_grad():
            found = worst_case(classifier, x, y, eps, steps=STEPS, restarts=restarts, norm=norm, batch_size=BATCH)
        return float(found.robust.float().mean())

    fool = foolbox.PyTorchModel(Whole(classifier).eval(), bounds=(0, 1), device="cpu")
    kinds = {"linf": (foolbox.attacks.LinfFastGradientAttack, foolbox.attacks.LinfPGD)}
    kinds["l2"] = (foolbox.attacks.L2FastGradientAttack, foolbox.attacks.L2PGD)
    step, many = kinds[norm]
    art_model = PyTorchClassifier(
        Whole(classifier), nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0, 1), device_type="cpu"
    )
    art = {"norm": np.inf if norm == "linf" else 2, "eps": eps, "batch_size": BATCH, "verbose": False}
    pgd = ProjectedGradientDescent(
        art_model, eps_step=2.5 * eps / STEPS, max_iter=STEPS, num_random_init=RESTARTS, **art
    )
    apgd = AutoProjectedGradientDescent(
        art_model, eps_step=2 * eps, max_iter=100, nb_random_init=1, loss_type="cross_entropy", **art
    )
    one_step = [fgsm(classifier, a, b, eps, norm=norm) for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True)]

    def worst_of_foolbox() -> float:
        robust = torch.ones(len(y), dtype=torch.bool)
        for _ in range(RESTARTS):
            attacked = many(rel_stepsize=2.5 / STEPS, steps=STEPS)
            fooled = [
                attacked(fool, a, b, epsilons=eps)[2] for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True)
            ]
            robust &= ~torch.cat(fooled)
        return float(robust.float().mean())

    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - what ART draws from
    images, labels = x.numpy(), y.numpy()
    return {
        "fgsm": timed(lambda: share(torch.cat(one_step))),
        "fgsm, foolbox": timed(lambda: 1 - float(step()(fool, x, y, epsilons=eps)[2].float().mean())),
        "pgd": timed(lambda: ours(RESTARTS)),
        "pgd, foolbox": timed(worst_of_foolbox),
        "pgd, art": timed(lambda: share(torch.from_numpy(pgd.generate(images, labels)))),
        "apgd-ce, art": timed(lambda: share(torch.from_numpy(apgd.generate(images, labels)))),
    }


def papers(classifier: TorchClassifier, x: Tensor, y: Tensor, eps: float, norm: str) -> dict[str, Any]:
    """What `verify --attack comparison` runs, beside the same attacks of others: accuracies on all images.

    C&W-inf is PGD on the margin up to a confidence: ART's PGD gets that loss; both three times, from other starts.
    Neither has WRM: beside it stands the loop of its paper, by autograd.
    """

    def share(attack: Callable[[Tensor, Tensor, slice], Tensor]) -> float:
        right = []
        for first in range(0, len(y), BATCH):
            part = slice(first, first + BATCH)
            attacked = attack(x[part], y[part], part)
            with torch.no_grad():
                right.append(correct(classifier.logits(attacked), y[part]))
        return round(float(torch.cat(right).float().mean()), 4)

    def start(part: slice, seed: int) -> Tensor:
        rows = range(*part.indices(len(y)))
        return torch.from_numpy(start_noise(seed, 0, rows, tuple(x.shape[1:]), norm))

    def confident(logits: Tensor, labels: Tensor) -> Tensor:
        classes = labels.argmax(1) if labels.ndim == 2 else labels
        own = nn.functional.one_hot(classes, logits.shape[1]).bool()
        lead = logits.masked_fill(own, -torch.inf).amax(1) - logits[own]
        return lead.clamp(max=CONFIDENCE).sum()

    def plain_wrm(images: Tensor, labels: Tensor, _: slice) -> Tensor:
        moved = images.clone()
        for t in range(WRM_STEPS):
            moved.requires_grad_()
            loss = WEIGHT * nn.functional.cross_entropy(classifier.logits(moved), labels, reduction="sum")
            value = loss - ((moved - images) ** 2).sum() / 2
            (gradient,) = torch.autograd.grad(value, moved)
            moved = (moved.detach() + gradient / (t + 1) ** 0.5).clamp(0, 1)
        return moved

    def art(kind: Any, loss: Any = None, **options: Any) -> float:
        model = PyTorchClassifier(
            Whole(classifier),
            nn.CrossEntropyLoss() if loss is None else loss,
            tuple(x.shape[1:]),
            10,
            clip_values=(0, 1),
            device_type="cpu",
        )
        attack = kind(model, eps=eps, batch_size=BATCH, verbose=False, **options)
        return share(lambda images, labels, _: torch.from_numpy(attack.generate(images.numpy(), labels.numpy())))

    fool = foolbox.PyTorchModel(Whole(classifier).eval(), bounds=(0, 1), device="cpu")
    kind = foolbox.attacks.LinfBasicIterativeAttack if norm == "linf" else foolbox.attacks.L2BasicIterativeAttack
    basic = kind(rel_stepsize=1 / ITERATIONS, steps=ITERATIONS, random_start=False)
    order = np.inf if norm == "linf" else 2
    size = default_step_size(eps, STEPS)
    small_steps = {"eps_step": eps / ITERATIONS, "max_iter": ITERATIONS}
    many = {"eps_step": size, "max_iter": STEPS, "norm": order, "num_random_init": 1}
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - what ART draws from
    table = {
        "bim-10": share(lambda a, b, _: bim(classifier, a, b, eps, steps=ITERATIONS, norm=norm)),
        "bim-10, foolbox": share(lambda a, b, _: basic(fool, a, b, epsilons=eps)[1]),
        "mi-fgsm-10": share(lambda a, b, _: momentum(classifier, a, b, eps, steps=ITERATIONS, norm=norm)),
        "mi-fgsm-10, art": art(MomentumIterativeMethod, norm=order, decay=1.0, **small_steps),
        "cw-20": [
            share(
                lambda a, b, part, seed=seed: cw(
                    classifier, a, b, eps, steps=STEPS, step_size=size, noise=start(part, seed), norm=norm
                )
            )
            for seed in range(3)
        ],
        "cw-20, art": [art(ProjectedGradientDescent, confident, **many) for _ in range(3)],
        "wrm-15": share(lambda a, b, _: wrm(classifier, a, b, steps=WRM_STEPS)),
        "wrm-15, plain loop": share(plain_wrm),
    }
    if norm == "linf":
        table["bim-10, art"] = art(BasicIterativeMethod, **small_steps)
    return table


def strong(classifier: TorchClassifier, x: Tensor, y: Tensor, eps: float, norm: str, queries: int) -> dict[str, Any]:
    """Accuracy left after each attack of AutoAttack, ours and pyautoattack's; and what `verify` runs by default."""
    arrays, images, labels = Arrays(classifier), x.numpy(), y.numpy()
    table: dict[str, Any] = {}
    started = time.monotonic()
    settings = AttackSettings("autoattack", square_queries=queries, batch_size=BATCH)
    found = attack(arrays, images, labels, eps, settings, norm=norm)
    table["ours"] = {result.name: round(result.accuracy.value, 4) for result in found.attacks}
    table["ours"]["seconds"] = round(time.monotonic() - started, 1)
    started = time.monotonic()
    default = attack(arrays, images, labels, eps, AttackSettings(batch_size=BATCH), norm=norm)
    table["default"] = {result.name: round(result.accuracy.value, 4) for result in default.attacks}
    table["default"] |= {
        "worst case": round(float(default.robust.mean()), 4),
        "seconds": round(time.monotonic() - started, 1),
    }
    with torch.no_grad():
        left = correct(classifier.logits(x), y)
    started = time.monotonic()
    theirs = AutoAttack(Whole(classifier).eval(), norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, seed=0)
    theirs.square.n_queries = queries
    table["pyautoattack"] = {}
    for name in ("apgd-ce", "apgd-t", "fab-t", "square"):
        theirs.attacks_to_run = [name]
        rows = left.nonzero()[:, 0]
        fooling, _ = theirs.run_standard_evaluation(x[rows], y[rows], batch_size=BATCH)
        with torch.no_grad():
            left[rows] = correct(classifier.logits(fooling), y[rows])
        table["pyautoattack"][name] = round(float(left.float().mean()), 4)
    table["pyautoattack"]["seconds"] = round(time.monotonic() - started, 1)
    return table


def main() -> None:
    """Measure one network under both norms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("model", type=Path)
    parser.add_argument("--eps", type=float, required=True)
    parser.add_argument("--eps-l2", type=float, required=True)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--strong", type=int, default=1000, help="images for AutoAttack's attacks; 0: as before")
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--norms", nargs="+", default=["linf", "l2"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    file = read_model(arguments.model)
    assert file.card is not None
    network = fitted_network(choose_architecture(file, None), file.state).eval()
    classifier = TorchClassifier(network, own_state(network), file.card.mean, file.card.std)
    chosen = test_subset(load_data(arguments.data).test, arguments.n, 0)
    x, y = torch.from_numpy(chosen.floats()), torch.from_numpy(chosen.labels)
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for norm in arguments.norms:
        eps = arguments.eps if norm == "linf" else arguments.eps_l2
        few = min(arguments.strong, len(y))
        name = f"{arguments.data}, {norm}"
        results[name] = {
            **results.get(name, {}),
            "eps": eps,
            "machine": machine(torch.device("cpu")),
            "n": len(y),
            "small": small(classifier, x, y, eps, norm),
            "papers": papers(classifier, x, y, eps, norm),
        }
        if few:
            results[name] |= {"n_strong": few, "queries": arguments.queries}
            results[name]["strong"] = strong(classifier, x[:few], y[:few], eps, norm, arguments.queries)
        RESULT.write_text(json.dumps(results, indent=2) + "\n")
        print(json.dumps(results[name], indent=2))


if __name__ == "__main__":
    main()
