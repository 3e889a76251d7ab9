"""Networks for 8×8 digits as users write them: plain torch, no hint of how they will be exported or compressed."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Functional(nn.Module):
    """Pooling by functions, one convolution used twice, no batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.again = nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Linear(12 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 2)
        x = F.elu(self.again(F.relu(self.again(x))))
        x = F.adaptive_avg_pool2d(x, (2, 2))
        return self.head(F.dropout(x.view(x.size(0), -1), 0.1, self.training))


class Separable(nn.Module):
    """Depthwise, grouped and dilated convolutions, group norm, squeeze and excitation, hard activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, padding_mode="reflect", bias=False)
        self.norm = nn.GroupNorm(4, 16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=16)
        self.pointwise = nn.Conv2d(16, 24, 1, groups=2)
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 6, 1), nn.SiLU(), nn.Conv2d(6, 24, 1))
        self.scale = nn.Parameter(torch.full((24, 1, 1), 0.5))
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.stem(x)))
        a, b = torch.chunk(F.mish(self.pointwise(self.depthwise(x))), 2, dim=1)
        x = torch.stack([a, b], dim=2).flatten(1, 2)  # channels of both groups in turn
        x = x * F.hardsigmoid(self.squeeze(x)) * self.scale
        return self.head(torch.amax(x, dim=(-2, -1)))


class Rows(nn.Module):
    """Convolutions in one dimension: each row of the image is a channel of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(8, 24, 3, padding=1)
        self.second = nn.Conv1d(24, 24, 3, padding=2, dilation=2, groups=3)
        self.slopes = nn.PReLU(24)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(F.leaky_relu(self.first(x.squeeze(1)), 0.1), 2)
        x = self.slopes(self.second(x))
        mean, largest = F.adaptive_avg_pool1d(x, 1).squeeze(-1), x.max(dim=2).values
        return self.head(torch.cat([mean, largest], 1))


class Linear(nn.Module):
    """Linear layers only."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Softplus(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.token_norm, self.channel_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.token_mlp = nn.Sequential(nn.Linear(tokens, 24), nn.GELU(), nn.Linear(24, tokens))
        self.channel_mlp = nn.Sequential(nn.Linear(dim, 32), nn.GELU("tanh"), nn.Linear(32, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mlp(self.token_norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mlp(self.channel_norm(x))


class Mixer(nn.Module):
    """MLP-Mixer (arXiv:2105.01601): patches by reshape and permute, products over tokens and over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 16)
        self.blocks = nn.ModuleList(MixerBlock(16, 16) for _ in range(2))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(b, h * w // 4, 4 * c)
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        attention = torch.softmax(torch.einsum("bhid,bhjd->bhij", q, k) * self.scale, dim=-1)
        return self.out((attention @ v).transpose(1, 2).reshape(b, n, d))


class ViT(nn.Module):
    """Vision transformer (arXiv:2010.11929) with attention of its own, a class token, and len() of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, 16) * 0.1)
        self.position = nn.Parameter(torch.randn(1, 17, 16) * 0.1)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = Attention(16, 4)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.position
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(x[:, 0])


class Encoder(nn.Module):
    """torch's own transformer layer over the rows of the image, an embedding of positions, normalised features."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.position = nn.Embedding(8, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x[:, 0]) + self.position(torch.arange(8, device=x.device))
        return 8 * self.head(F.normalize(self.layer(x).mean(1), dim=1))


class Tied(nn.Module):
    """An encoder whose weight also decodes, transposed, and a layer that has its weight from another one."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(64, 32)
        self.hidden = nn.Linear(32, 32)
        self.twin = nn.Linear(32, 32)
        self.twin.weight = self.hidden.weight
        self.head = nn.Linear(64 + 32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        z = torch.tanh(self.encoder(x))
        rest = torch.abs(x - torch.sigmoid(F.linear(z, self.encoder.weight.t())))
        return self.head(torch.cat([rest, torch.clamp(self.twin(F.selu(self.hidden(z))), min=0)], -1))
