"""Initial weights of networks whose layers are convolutions, batch norms and linear layers."""

from torch import nn


def he_weights(network: nn.Module, logits: nn.Linear) -> None:
    """Draw all weights from N(0, 2 / inputs of a unit), those of `logits` from N(0, 1 / inputs); biases are 0.

    After He et al. 2015, arXiv:1502.01852.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if module is logits else "relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
