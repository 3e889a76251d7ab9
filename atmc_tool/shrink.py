"""A user's network at the shapes of a state dict from which filters and channels have been removed."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from atmc_tool.errors import InputError


def shrink(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give `network` the tensors of `state`, and its layers the sizes that they then have, in place.

    state: what `atmc-tool unpack --shrink` has written, as `safetensors.torch.load_file` reads it

    Sizes of convolutions, linear layers and batch norms follow their tensors. Code that states a number of channels
    itself, as a reshape to a fixed size or a pad of channels does, still states the old one.

    Raises:
        InputError: other names than the network's, or a tensor with other dimensions or larger than the network's.
    """
    own = network.state_dict(keep_vars=True)
    if own.keys() != state.keys():
        differing = sorted(own.keys() ^ state.keys())
        raise InputError("the state dict is another network's", got=f"{differing[0]!r} in one of them only")
    for name, tensor in state.items():
        before, after = tuple(own[name].shape), tuple(tensor.shape)
        if len(before) != len(after) or any(new > old for old, new in zip(before, after, strict=True)):
            raise InputError(f"{name!r} does not fit the network", expected=f"at most {before}", got=after)
    tied: dict[Tensor, Tensor] = {}
    for path, module in network.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, _ConvNd):
            _resize_convolution(module, state[f"{prefix}weight"])
        for name, old in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if prefix + name not in state:
                continue  # a buffer that is not saved
            if old not in tied:
                new = state[prefix + name].to(old.device, old.dtype).clone()
                tied[old] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
            setattr(module, name, tied[old])
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, _NormBase) and module.running_mean is not None:
            module.num_features = len(module.running_mean)


def _resize_convolution(module: _ConvNd, weight: Tensor) -> None:
    """The sizes that follow from the new weight: as many filters in each group as before, where there are groups."""
    if module.transposed:  # never cut
        return
    if module.groups > 1:
        module.groups = len(weight) * module.groups // module.out_channels
    module.out_channels, module.in_channels = len(weight), weight.shape[1] * module.groups
