"""Auto-PGD, which sets its own step size (Croce & Hein 2020, arXiv:2003.01690, algorithm 1)."""

from dataclasses import dataclass, fields

from array_api_compat import array_namespace, device

from atmc_tool.attacks.classifier import Array, Classifier, Loss, correct
from atmc_tool.attacks.losses import loss_values
from atmc_tool.attacks.norms import direction, length, projection
from atmc_tool.threat_model import Norm

MOMENTUM = 0.75  # α of the paper
ENOUGH_RISES = 0.75  # ρ: share of the steps since the last checkpoint that must raise the loss


def checkpoints(steps: int) -> list[int]:
    """Numbers of the steps after which the step size is judged: p·steps rounded up, with p_0 = 0, p_1 = 0.22 and
    p_(j+1) = p_j + max(p_j − p_(j−1) − 0.03, 0.06).
    """
    shares = [0, 22]  # hundredths
    while shares[-1] < 100:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 3, 6))
    return [-(-share * steps // 100) for share in shares[1:] if share < 100]


@dataclass
class _Search:
    """Samples that are not fooled yet; every array has one row for each of them.

    at, before:                the current point and the last one
    slope, latest:             gradient and loss at the current point
    best, best_slope, highest: the point of the largest loss so far, with its gradient and loss
    size:                      of the step, (N, 1, 1, 1)
    rises:                     steps since the last checkpoint that raised the loss
    checked, halved:           `highest` at the last checkpoint; whether the step size was halved there
    """

    rows: Array
    images: Array
    labels: Array
    targets: Array | None
    at: Array
    before: Array
    slope: Array
    latest: Array
    best: Array
    best_slope: Array
    highest: Array
    size: Array
    rises: Array
    checked: Array
    halved: Array

    def keep(self, mask: Array) -> None:
        """Only the samples of `mask`, bool (N,)."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                setattr(self, field.name, value[mask])


def apgd(
    classifier: Classifier,
    images: Array,
    labels: Array,
    eps: float,
    *,
    steps: int,
    noise: Array,
    loss: Loss = "cross_entropy",
    targets: Array | None = None,
    norm: Norm = "linf",
) -> Array:
    """Ascent with momentum from the best point so far, with steps of 2·eps that are halved where they do not help.

    images:  float32 (N, C, H, W) in [0, 1]; labels, and the classes to end at, targets, int64 (N,)
    noise:   (N, C, H, W); the start is project(images + eps·noise/‖noise‖)
    Returns: adversarial images (N, C, H, W): one that fools where one was found, else that of the largest loss.

    A sample costs at most `steps` + 1 input gradients, and none after it is fooled.
    """
    xp = array_namespace(images)
    found = xp.asarray(images, copy=True)
    start = projection(images, eps, norm)(images + eps * noise / length(noise, norm)[:, None, None, None])
    logits, slope = classifier.logits_and_gradient(start, labels, loss, targets)
    value = loss_values(logits, labels, loss, targets)
    none = xp.zeros_like(value)
    s = _Search(
        rows=xp.arange(labels.shape[0], device=device(labels)),
        images=images,
        labels=labels,
        targets=targets,
        at=start,
        before=start,
        slope=slope,
        latest=value,
        best=start,
        best_slope=slope,
        highest=value,
        size=(none + 2 * eps)[:, None, None, None],
        rises=none,
        checked=value,
        halved=none > 0,
    )
    checks, last = checkpoints(steps), 0
    _drop_fooled(s, logits, found)
    for step in range(1, steps + 1):
        if s.rows.shape[0] == 0:
            break
        project = projection(s.images, eps, norm)
        moved = project(s.at + s.size * direction(s.slope, norm))
        if step > 1:
            moved = project(s.at + MOMENTUM * (moved - s.at) + (1 - MOMENTUM) * (s.at - s.before))
        s.before, s.at = s.at, moved
        logits, s.slope = classifier.logits_and_gradient(s.at, s.labels, loss, s.targets)
        _record(s, loss_values(logits, s.labels, loss, s.targets))
        _drop_fooled(s, logits, found)
        if step in checks:
            _judge(s, step - last)
            last = step
    found[s.rows] = s.best
    return found


def _drop_fooled(s: _Search, logits: Array, found: Array) -> None:
    """Put current points that fool into `found` and drop their samples; `logits` are those of the current points."""
    xp = array_namespace(logits)
    holds = correct(logits, s.labels)
    if not bool(xp.all(holds)):
        found[s.rows[~holds]] = s.at[~holds]
        s.keep(holds)


def _record(s: _Search, value: Array) -> None:
    """Take note of the loss at the current points."""
    xp = array_namespace(value)
    s.rises = s.rises + xp.astype(value > s.latest, value.dtype)
    s.latest = value
    better = value > s.highest
    s.highest = xp.where(better, value, s.highest)
    s.best = xp.where(_per_image(better), s.at, s.best)
    s.best_slope = xp.where(_per_image(better), s.slope, s.best_slope)


def _judge(s: _Search, steps: int) -> None:
    """Halve the step size and go back to the best point where too few of the last `steps` steps raised the loss, or
    where neither the step size nor the largest loss has changed since the last checkpoint."""
    xp = array_namespace(s.highest)
    s.halved = (s.rises < ENOUGH_RISES * steps) | (~s.halved & (s.checked >= s.highest))
    back = _per_image(s.halved)
    s.size = xp.where(back, s.size / 2, s.size)
    s.at, s.slope = xp.where(back, s.best, s.at), xp.where(back, s.best_slope, s.slope)
    s.latest = xp.where(s.halved, s.highest, s.latest)
    s.checked, s.rises = s.highest, xp.zeros_like(s.rises)


def _per_image(mask: Array) -> Array:
    return mask[:, None, None, None]
