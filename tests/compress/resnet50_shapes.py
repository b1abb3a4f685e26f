"""The shapes of the 161 trainable tensors of ResNet-50 (torchvision's v1.5), in order."""

from __future__ import annotations

from thinwire.flat import Spans


def shapes() -> list[tuple[str, tuple[int, ...]]]:
    """Returns (name, shape) of conv1, four stages of bottlenecks, and the classifier."""
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


def spans() -> Spans:
    names, sizes = zip(*shapes(), strict=True)
    return Spans(names, sizes)
