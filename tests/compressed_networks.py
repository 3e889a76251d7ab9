"""Networks with random weights, pruned and quantised without any training, as the files of this tool hold them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from atmc_tool.compressed import CompressedModel, CompressedWeight, sparsify
from atmc_tool.model_card import ModelCard
from atmc_tool.models import ARCHITECTURES
from exporters.onnx_skeleton import trace_skeleton

CARD = ModelCard(
    arch="digits-cnn", image_shape=(1, 8, 8), n_classes=10, data="digits", eps="0.1", mean=(0.3,), std=(0.4,)
)


def pruned(weight: torch.Tensor, keep: float, values: int) -> CompressedWeight:
    """The largest entries, rounded to `values` even steps."""
    dense = weight.detach().numpy().reshape(len(weight), -1)
    least = np.quantile(np.abs(dense), 1 - keep)
    step = np.abs(dense).max() / (values / 2)
    kept = np.where(np.abs(dense) >= least, np.sign(dense) * np.maximum(1, np.round(np.abs(dense) / step)) * step, 0)
    main = "V" if kept.shape[0] <= kept.shape[1] else "U"
    return CompressedWeight(tuple(weight.shape), {main: sparsify(kept.astype(np.float32), quantized=True)})


def compressed_network(
    network: nn.Module,
    card: ModelCard,
    *,
    keep: float = 0.2,
    values: int = 16,
    metrics: dict[str, object] | None = None,
) -> CompressedModel:
    """`network` as a file holds it; every weight of two or more dimensions keeps the share `keep`."""
    network.eval()
    weights = {name: pruned(p, keep, values) for name, p in network.named_parameters() if p.ndim >= 2}
    rest = {name: tensor.numpy().copy() for name, tensor in network.state_dict().items() if name not in weights}
    skeleton = trace_skeleton(network, card.image_shape, card.n_classes, card.mean, card.std)
    facts = {"card": card.model_dump(mode="json"), "metrics": metrics or {}}
    return CompressedModel(weights, rest, skeleton, facts)


def digits_network(seed: int = 0, **how: object) -> CompressedModel:
    """A digits-cnn with random weights and biases, which normalises its input."""
    torch.manual_seed(seed)
    network = ARCHITECTURES["digits-cnn"].build()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.1)
    return compressed_network(network, CARD, **how)  # type: ignore[arg-type]


def random_images(shape: Sequence[int], n: int = 8, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """float32 (n, *shape) in [0, 1]."""
    return np.random.default_rng(seed).random((n, *shape), np.float32)
