"""A lab of N hosts on one Linux machine: network namespaces on a bridge, links shaped both ways.

    python bench/netlab/lab.py run --hosts 4 --rate 100mbit -- train.py --its --arguments
    python bench/netlab/lab.py sweep      # removes what a lab that was killed has left

Each host is a namespace with one interface, `eth0`, on a bridge in a namespace of its own, so that
nothing is made outside them and removing them removes it all. Both ends of each link have a token
bucket (`tc tbf`). The kernel need have no netem: a delay comes from `thinwire.Paced`, in programs
that take theirs from `line()` below. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jobs

from thinwire import units
from thinwire.cli.signals import ended, held
from thinwire.errors import ConfigError, ThinwireError
from thinwire.link import Link

PREFIX = "twlab"
NET = "10.77.0"
MOST_HOSTS = 250
PORT = 29511
RENO = "net.ipv4.tcp_congestion_control=reno"
"""The one congestion control that every kernel has and lets a namespace choose. BBR, which some
machines are set to, sends next to nothing for 0.2 s every 10 s, to see how long the way is."""
ABOUT = "Reno, buckets of 0.5 ms up to 200 Mbit/s and of 4 ms above"
"""What every host of a lab has; results that say another were measured in an earlier one."""
TOOLS = {"ip": "iproute2", "tc": "iproute2", "sysctl": "procps"}
"""What a lab calls, and the package that has it."""


@dataclass(frozen=True)
class Traffic:
    """What went over the interfaces while a job ran, and what it says it framed.

    Args:
        sent: bytes that left each host, Ethernet headers in.
        received: bytes that came to each host.
        framed: bytes of frames that each rank says it sent; None where it says nothing.
    """

    sent: list[int]
    received: list[int]
    framed: list[int | None]

    def lines(self) -> Iterator[str]:
        """Yields the reconciliation, one line a host."""
        for host, (out, came, framed) in enumerate(
            zip(self.sent, self.received, self.framed, strict=True)
        ):
            line = f"host {host}: {out:,} bytes sent, {came:,} received on eth0"
            if framed is not None:
                line += f"; {framed:,} framed"
                if framed:
                    line += f", the rest {100 * (out / framed - 1):.2f} % (Ethernet, TCP/IP, Gloo)"
            yield line


@dataclass
class Lab:
    """N hosts, up while a `with` statement runs.

    Args:
        hosts: how many.
        rate: bits per second of each link, each way; None for unshaped.
        burst: seconds of it that pass at once after a pause. None for 0.5 ms, and for 4 ms above
            200 Mbit/s: timers that fire late would leave a fast line idle.

    Raises:
        ConfigError: this is no root's process, a tool is not installed, or there are more hosts
            than addresses.
    """

    hosts: int
    rate: float | None
    burst: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.hosts <= MOST_HOSTS:
            raise ConfigError(
                f"{self.hosts} hosts do not fit the {MOST_HOSTS} addresses of {NET}.0/24; "
                "write --hosts 4"
            )
        if sys.platform != "linux" or os.geteuid() != 0:
            raise ConfigError(
                "network namespaces need root on Linux: run it with sudo; without root, "
                "`thinwire demo --link 100mbit,20ms` holds traffic to a line, too"
            )
        for tool in TOOLS:
            if shutil.which(tool) is None:
                raise _missing(tool)
        self.names = [f"{PREFIX}-{os.getpid()}-{i}" for i in range(self.hosts)]
        self.switch = f"{PREFIX}-{os.getpid()}-switch"

    def __enter__(self) -> Lab:
        sweep()
        try:
            self._raise()
        except BaseException as error:
            self._leave(error)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._leave(error)

    def close(self) -> None:
        """Removes every namespace with all that runs in it, whatever comes between.

        Raises:
            ThinwireError: one could not be removed, the first of those; the others are.
        """
        failed: list[ThinwireError] = []
        with held():
            for name in (*self.names, self.switch):
                try:
                    remove(name)
                except ThinwireError as error:
                    failed.append(error)
        if failed:
            raise failed[0]

    def job(
        self,
        command: Sequence[str],
        environment: dict[str, str],
        torchrun: bool = True,
        limit: float | None = None,
        log: Path | None = None,
    ) -> Traffic:
        """Runs one process of a job on each host, and returns what went over the wire.

        Args:
            command: a Python script and its arguments.
            environment: more of it, for all.
            torchrun: whether torchrun starts it; else it is given the same variables by us, which
                saves a process a host.
            limit: seconds after which it is given up.
            log: where what the processes say is appended; by default it is shown.

        Raises:
            JobFailed: a process failed, or they took too long; the others are ended.
        """
        with tempfile.TemporaryDirectory(prefix="netlab-") as folder:
            before = [self.counters(name) for name in self.names]
            try:
                with jobs.together() as running:
                    for host in range(self.hosts):
                        started = self._start(host, command, environment, folder, torchrun, log)
                        running.append(started)
                    jobs.wait(running, limit)
            finally:
                # torchrun's workers have sessions of their own.
                with held():
                    for name in self.names:
                        clear(name)
            after = [self.counters(name) for name in self.names]
            framed = [_framed(Path(folder) / f"{rank}.json") for rank in range(self.hosts)]
        pairs = list(zip(before, after, strict=True))
        return Traffic([b[1] - a[1] for a, b in pairs], [b[0] - a[0] for a, b in pairs], framed)

    def counters(self, name: str) -> tuple[int, int]:
        """Returns the bytes that eth0 of a host has received and sent."""
        table = _ip("netns", "exec", name, "cat", "/proc/net/dev")
        numbers = re.search(r"eth0:\s*(.*)", table)
        assert numbers is not None
        columns = numbers[1].split()
        return int(columns[0]), int(columns[8])

    def _raise(self) -> None:
        _ip("netns", "add", self.switch)
        _ip("-n", self.switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "switch", "up")
        for host, name in enumerate(self.names):
            port = f"port{host}"
            _ip("netns", "add", name)
            _ip(
                "link", "add", "eth0", "netns", name, "type", "veth",
                "peer", "name", port, "netns", self.switch,
            )  # fmt: skip
            _ip("-n", self.switch, "link", "set", port, "master", "switch", "up")
            _ip("-n", name, "addr", "add", f"{NET}.{host + 1}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("netns", "exec", name, "sysctl", "-qw", RENO)
            if self.rate is not None:
                burst = self.burst or (0.0005 if self.rate <= 2e8 else 0.004)
                burst = max(6_000, int(self.rate / 8 * burst))
                bucket = ["rate", f"{self.rate:.0f}bit", "burst", f"{burst}b", "latency", "100ms"]
                for where, device in ((name, "eth0"), (self.switch, port)):
                    _tc("-n", where, "qdisc", "add", "dev", device, "root", "tbf", *bucket)

    def _start(
        self, host: int, command: Sequence[str], environment: dict[str, str],
        folder: str, torchrun: bool, log: Path | None,
    ) -> subprocess.Popen[bytes]:  # fmt: skip
        given = {**environment, "GLOO_SOCKET_IFNAME": "eth0", "NETLAB_REPORT": folder}
        launch = []
        if torchrun:
            launch = [
                "-m", "torch.distributed.run", "--nnodes", f"{self.hosts}", "--nproc-per-node", "1",
                "--node-rank", f"{host}", "--master-addr", f"{NET}.1", "--master-port", f"{PORT}",
            ]  # fmt: skip
        else:
            given |= jobs.variables(host, self.hosts, f"{NET}.1", PORT)
        inside = ["ip", "netns", "exec", self.names[host], sys.executable]
        return jobs.start([*inside, *launch, *command], given, log)

    def _leave(self, error: BaseException | None) -> None:
        try:
            self.close()
        except ThinwireError as left:
            if not isinstance(error, Exception):
                raise
            # What broke first is raised, and this said beside it.
            print(f"netlab: not removed: {left}", file=sys.stderr)


def line() -> Link | None:
    """Returns the delay that this job's lab asks its programs to add, as a link; None for none."""
    delay = os.environ.get("NETLAB_DELAY")
    return None if delay is None else Link(None, units.seconds(delay))


def report(**said: Any) -> None:
    """Tells the lab what this rank says of itself; `framed` is reconciled with the interface."""
    folder = os.environ.get("NETLAB_REPORT")
    if folder is not None:
        Path(folder, f"{os.environ['RANK']}.json").write_text(json.dumps(said))


def names() -> list[str]:
    """Returns the namespaces of all labs on this machine."""
    listed = _ip("netns", "list").splitlines()
    return [entry.split()[0] for entry in listed if entry.startswith(f"{PREFIX}-")]


def sweep() -> list[str]:
    """Removes the namespaces of labs whose process is gone, and returns their names."""
    gone = [name for name in names() if not Path("/proc", name.split("-")[1]).exists()]
    for name in gone:
        remove(name)
    return gone


def remove(name: str) -> None:
    """Ends what runs in a namespace of ours and removes it, if it is there."""
    if name not in names():
        return
    clear(name)
    _ip("netns", "del", name)


def clear(name: str) -> None:
    """Kills what runs in a namespace, and waits until it is gone."""
    until = time.monotonic() + jobs.GRACE
    while (pids := _ip("netns", "pids", name).split()) and time.monotonic() < until:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.01)


def _framed(file: Path) -> int | None:
    if not file.exists():
        return None
    return int(json.loads(file.read_text())["framed"])


def _ip(*arguments: str) -> str:
    return _run("ip", *arguments)


def _tc(*arguments: str) -> str:
    return _run("tc", *arguments)


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise _missing(command[0]) from None
    if done.returncode:
        raise ThinwireError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _missing(tool: str) -> ConfigError:
    return ConfigError(f"{tool} is not installed; apt-get install {TOOLS[tool]}")


def main() -> int:
    parser = argparse.ArgumentParser(description="A lab of shaped hosts on one Linux machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a Python script as a torchrun job across the hosts")
    run.add_argument("--hosts", type=int, default=4)
    run.add_argument("--rate", default="100mbit", help="of each link, each way; or unlimited")
    run.add_argument("--delay", help="one way, by our own paced link: for programs that use line()")
    run.add_argument("--plain", action="store_true", help="set torchrun's variables without it")
    run.add_argument("script", nargs=argparse.REMAINDER, metavar="-- SCRIPT ...")
    commands.add_parser("sweep", help="remove what a lab that was killed has left")
    said = parser.parse_args()

    def work() -> None:
        if said.command == "sweep":
            print("\n".join(f"removed {name}" for name in sweep()) or "nothing was left")
            return
        script = said.script[1:] if said.script[:1] == ["--"] else said.script
        if not script:
            raise ConfigError("nothing to run; write: lab.py run --hosts 4 -- train.py")
        environment = {}
        if said.delay is not None:
            units.seconds(said.delay)
            environment["NETLAB_DELAY"] = said.delay
            print(f"delay {said.delay}: by the paced link of programs that ask line()")
        rate = None if said.rate == "unlimited" else units.rate(said.rate)
        with Lab(said.hosts, rate) as lab:
            traffic = lab.job(script, environment, torchrun=not said.plain)
        print("\n".join(traffic.lines()))

    return ended("netlab", work, "all hosts are removed")


if __name__ == "__main__":
    sys.exit(main())
