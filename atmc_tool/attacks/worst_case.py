"""The worst case per sample over restarts and losses of PGD."""

from collections.abc import Sequence

from array_api_compat import array_namespace, device

from atmc_tool.attacks.classifier import Array, Classifier, Loss
from atmc_tool.attacks.pgd import default_step_size, pgd
from atmc_tool.attacks.standing import Progress, SampleAttack, WorstCase, attack_standing
from atmc_tool.attacks.starts import start_noise
from atmc_tool.threat_model import Norm


def worst_case(
    classifier: Classifier,
    images: Array,
    labels: Array,
    eps: float,
    *,
    steps: int,
    restarts: int = 1,
    step_size: float | None = None,
    losses: Sequence[Loss] = ("cross_entropy",),
    norm: Norm = "linf",
    random_start: bool = True,
    seed: int = 0,
    first_index: int = 0,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> WorstCase:
    """PGD from `restarts` starts with each of the losses; samples already fooled are dropped from later work.

    images:    float32 (n, C, H, W) in [0, 1], n ≥ 1; labels int64 (n,)
    step_size: None for 2.5·eps/steps
    first_index: number of images[0] in the set that they are a part of; parts then get the noise of the whole set
    progress:  called with (attempts done, attempts in all), an attempt being one sample from one start

    With torch, call it under `torch.no_grad()`: only the gradient with respect to the images is needed.
    """
    size = default_step_size(eps, steps) if step_size is None else step_size

    def attempt(loss: Loss, restart: int) -> SampleAttack:
        def attack(x: Array, y: Array, indices: Sequence[int]) -> Array:
            noise = None
            if random_start:
                starts = start_noise(seed, restart, indices, tuple(x.shape[1:]), norm)
                noise = array_namespace(x).asarray(starts, device=device(x))
            return pgd(classifier, x, y, eps, steps=steps, step_size=size, noise=noise, loss=loss, norm=norm)

        return attack

    return attack_standing(
        classifier,
        images,
        labels,
        eps,
        [attempt(loss, restart) for loss in losses for restart in range(restarts)],
        norm=norm,
        indices=range(first_index, first_index + images.shape[0]),
        batch_size=batch_size,
        progress=progress,
    )
