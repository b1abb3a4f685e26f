"""The source as trees: modules, what each imports, and what it calls."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "thinwire"
SRC = Path(__file__).parents[2] / "src" / PACKAGE

ROOMS = (
    ("errors", "value", "keys", "version", "memory", "host", "files", "units"),
    ("link",),
    ("flat", "kernels", "topology", "transport", "outer", "schedule", "watch"),
    ("compress",),
    ("wire",),
    ("exchange",),
    ("stats", "round", "lean", "refused", "ledger"),
    ("checkpoint", "parameters", "report", "seat", "company", "shell", "presets", "simulate"),
    ("virtual",),
    ("plan",),
    ("hub", "runs", "snapshots", "elastic"),
    ("names",),
    ("door",),
    ("cli",),
)
"""The floors of the house, lowest first (HOUSE.md, section 4); the door is `__init__.py`."""
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}


def files() -> list[Path]:
    return sorted(f for f in SRC.rglob("*.py") if not f.name.endswith("_pb2.py"))  # generated


def module_of(path: Path) -> str:
    """`compress.topk` of compress/topk.py, `compress` of its `__init__.py`, "" of the door."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return module.split(".", maxsplit=1)[0] or "door"


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Every module a tree imports, in functions too, with its full dotted name.

    `package` is the dotted package that relative imports start from.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def own_imports(path: Path) -> set[str]:
    """The modules of this package that a file imports, without the package's name."""
    module = module_of(path)
    is_package = path.name == "__init__.py"
    package = ".".join(filter(None, [PACKAGE, module if is_package else module.rpartition(".")[0]]))
    found = set()
    for name in imports(tree_of(path), package):
        head, _, rest = name.partition(".")
        if head == PACKAGE:
            found.add(existing(rest))
    return found


def existing(dotted: str) -> str:
    """The module among the leading names of `dotted`: what follows it is a name inside it."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        at = SRC.joinpath(*parts[:end])
        if at.with_suffix(".py").is_file() or (at / "__init__.py").is_file():
            return ".".join(parts[:end])
    return ""


def dotted_name(node: ast.AST) -> str:
    """`torch.rand` of that expression; "" of anything but names joined by dots."""
    if isinstance(node, ast.Attribute):
        inner = dotted_name(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return node.id if isinstance(node, ast.Name) else ""


RANDOM = {
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli",
    "multinomial", "normal", "poisson", "normal_", "uniform_", "random_", "bernoulli_",
    "exponential_", "geometric_", "log_normal_", "cauchy_", "dropout",
}  # fmt: skip
FORBIDDEN_MODULES = {
    "socket",
    "time",
    "random",
    "datetime",
    "secrets",
    "uuid",
    "requests",
    "urllib",
}


def offences(tree: ast.AST, package: str) -> list[str]:
    """What a core room must not do: touch a socket, a clock, the global draws or the screen."""
    found = [
        f"imports {name}"
        for name in imports(tree, package)
        if name.split(".")[0] in FORBIDDEN_MODULES or name.startswith("numpy.random")
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted_name(node.func)
        last = node.func.attr if isinstance(node.func, ast.Attribute) else name
        if name in ("print", "input", "breakpoint"):
            found.append(f"line {node.lineno} calls {name}")
        if last in ("manual_seed", "seed", "set_rng_state", "default_rng"):
            found.append(f"line {node.lineno} seeds with {name or last}")
        if name.startswith(("np.random.", "numpy.random.")):
            found.append(f"line {node.lineno} draws with {name}")
        drawn = last in RANDOM and (isinstance(node.func, ast.Attribute))
        if drawn and not any(k.arg == "generator" for k in node.keywords):
            found.append(f"line {node.lineno} draws with {name or last} and no generator")
        if name.startswith("os.environ") or name == "os.getenv":
            found.append(f"line {node.lineno} reads the environment")
    return found
