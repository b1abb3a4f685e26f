"""The same lines for TensorBoard and for Weights & Biases: extras, imported when they are made."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from thinwire.errors import ConfigError


class TensorBoard:
    """Writes every number of a run's lines as a scalar that TensorBoard shows, by local step.

    Args:
        folder: of event files; each run gets a folder of its name in it.

    Raises:
        ConfigError: the extra is not installed.

    Example:
        >>> import thinwire as tw
        >>> log = tw.RunLog("mine", 0, {}, also=[tw.TensorBoard("runs/tb")])  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        _needs("tensorboard")
        self._writer: Any = None

    def start(self, name: str, head: dict[str, Any]) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(self._folder / name))
        self._writer.add_text("run", "\n".join(f"    {k}: {v}" for k, v in head.items()))

    def write(self, event: str, record: dict[str, Any]) -> None:
        for key, value in numbers(record).items():
            self._writer.add_scalar(f"{event}/{key}", value, record.get("step"))

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Hands every number of a run's lines to Weights & Biases, offline unless told otherwise.

    Nothing leaves the machine: `wandb sync FOLDER` sends an offline run when you say so.

    Args:
        project: the project's name.
        folder: where its files go.
        mode: "offline" or "online".

    Raises:
        ConfigError: the extra is not installed.

    Example:
        >>> import thinwire as tw
        >>> log = tw.RunLog("mine", 0, {}, also=[tw.WeightsAndBiases()])  # doctest: +SKIP
    """

    def __init__(
        self, project: str = "thinwire", folder: str | Path = "runs", mode: str = "offline"
    ) -> None:
        if mode not in ("offline", "online"):
            raise ConfigError(f"WeightsAndBiases(mode={mode!r}): choose offline or online")
        _needs("wandb")
        self._project, self._folder, self._mode = project, Path(folder), mode
        self._run: Any = None

    def start(self, name: str, head: dict[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        self._folder.mkdir(parents=True, exist_ok=True)
        # The log's own head says what machine it was, without its name.
        quiet = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, host="",
            x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
        )  # fmt: skip
        self._run = wandb.init(
            project=self._project, name=name, config=head, dir=self._folder, mode=self._mode,
            settings=quiet,
        )  # fmt: skip
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, event: str, record: dict[str, Any]) -> None:
        said = {f"{event}/{key}": value for key, value in numbers(record).items()}
        self._run.log({"step": record.get("step", 0), **said})

    def close(self) -> None:
        self._run.finish()


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """Returns the entries of a line that a curve can be drawn of.

    Example:
        >>> numbers({"loss": 0.5, "repaired": False, "dropped": (), "step": 3})
        {'loss': 0.5}
    """
    return {
        key: value
        for key, value in record.items()
        if key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _needs(package: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"this logger needs {package}: pip install 'thinwire[{package}]'"
        ) from error
