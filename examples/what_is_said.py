"""What one vector becomes under each operator: bytes, and how much of it is said."""

import torch

import thinwire as tw
from thinwire.wire.body import pack

u = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).pow(3)
for C in (
    tw.Identity(),
    tw.TopK(density=0.01),
    tw.RandK(density=0.01),
    tw.Sign(),
    tw.QSGD(bits=4, bucket=512, norm="max"),
    tw.Rotated(levels=15),
    tw.TopK(density=0.01) >> tw.Sign(),
    tw.TopK(density=0.01, scope="chunk") >> tw.QSGD(bits=4),
):
    payload = C.compress(u, tw.Key(seed=0))
    body = pack(payload, C)
    left = (u - C.decompress(payload)).square().sum() / u.square().sum()
    print(f"{4 * len(u) / len(body):7.1f}x smaller, {1 - left.item():6.1%} said   {C}")
