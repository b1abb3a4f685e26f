"""The shapes of real models: what a measurement on one tensor would not show."""

from __future__ import annotations


def resnet50() -> list[tuple[str, tuple[int, ...]]]:
    """Returns (name, shape) of the 161 trainable tensors of ResNet-50 (v1.5), in order.

    Example:
        >>> import math
        >>> len(resnet50()), sum(math.prod(shape) for _, shape in resnet50())
        (161, 25557032)
    """
    out: list[tuple[str, tuple[int, ...]]] = []

    def conv(name: str, cout: int, cin: int, size: int) -> None:
        out.append((f"{name}.weight", (cout, cin, size, size)))

    def norm(name: str, width: int) -> None:
        out.extend([(f"{name}.weight", (width,)), (f"{name}.bias", (width,))])

    conv("conv1", 64, 3, 7)
    norm("bn1", 64)
    cin = 64
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        width = 32 << stage
        for block in range(blocks):
            at = f"layer{stage}.{block}"
            for i, (cout, c, size) in enumerate(
                [(width, cin, 1), (width, width, 3), (4 * width, width, 1)], start=1
            ):
                conv(f"{at}.conv{i}", cout, c, size)
                norm(f"{at}.bn{i}", cout)
            if block == 0:
                conv(f"{at}.downsample.0", 4 * width, cin, 1)
                norm(f"{at}.downsample.1", 4 * width)
            cin = 4 * width
    out.extend([("fc.weight", (1000, 2048)), ("fc.bias", (1000,))])
    return out


def gpt2() -> list[tuple[str, tuple[int, ...]]]:
    """Returns (name, shape) of the 148 trainable tensors of GPT-2 small, its output tied.

    Example:
        >>> import math
        >>> len(gpt2()), sum(math.prod(shape) for _, shape in gpt2())
        (148, 124439808)
    """
    out: list[tuple[str, tuple[int, ...]]] = [("wte", (50257, 768)), ("wpe", (1024, 768))]

    def linear(name: str, cin: int, cout: int) -> None:
        out.extend([(f"{name}.weight", (cin, cout)), (f"{name}.bias", (cout,))])

    def norm(name: str) -> None:
        out.extend([(f"{name}.weight", (768,)), (f"{name}.bias", (768,))])

    for block in range(12):
        at = f"h.{block}"
        norm(f"{at}.ln_1")
        linear(f"{at}.attn.c_attn", 768, 2304)
        linear(f"{at}.attn.c_proj", 768, 768)
        norm(f"{at}.ln_2")
        linear(f"{at}.mlp.c_fc", 768, 3072)
        linear(f"{at}.mlp.c_proj", 3072, 768)
    norm("ln_f")
    return out
