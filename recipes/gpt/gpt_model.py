"""A GPT on bytes: 256 tokens, learned positions, pre-norm blocks, tied output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """What decides the model's size; 837,888 parameters as it stands.

    Args:
        layers: blocks.
        heads: of attention.
        width: entries of a token's vector.
        context: bytes that are seen at once.
    """

    layers: int = 4
    heads: int = 4
    width: int = 128
    context: int = 128


class Block(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm1, self.norm2 = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        self.up = nn.Linear(shape.width, 4 * shape.width, bias=False)
        self.down = nn.Linear(4 * shape.width, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, w = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, w // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        heard = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(heard.transpose(1, 2).reshape(b, t, w))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Predicts each next byte.

    Args:
        shape: of the model.
        seed: of its first weights.
    """

    def __init__(self, shape: Shape, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.token = nn.Embedding(256, shape.width)
            self.place = nn.Embedding(shape.context, shape.width)
            self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
            self.norm = nn.LayerNorm(shape.width)
            for name, p in self.named_parameters():
                if p.dim() == 2:
                    ends = name.endswith(("out.weight", "down.weight"))
                    std = 0.02 / (2 * shape.layers) ** 0.5 if ends else 0.02
                    nn.init.normal_(p, std=std)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits, (b, t, 256), of the bytes after x, (b, t) int64."""
        h = self.token(x) + self.place.weight[: x.shape[1]]
        for block in self.blocks:
            h = block(h)
        return functional.linear(self.norm(h), self.token.weight)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the mean cross-entropy in nats; y is x one byte on."""
        return functional.cross_entropy(self(x).flatten(0, 1).float(), y.flatten())


def parameters(shape: Shape) -> int:
    """Returns d of a model of that shape."""
    return sum(p.numel() for p in GPT(shape, 0).parameters())
