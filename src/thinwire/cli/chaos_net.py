"""Four hosts in one machine: network namespaces on a bridge, whose links can be slowed and cut."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys

from thinwire.errors import ConfigError, ThinwireError

CLONE_NEWNET = 0x40000000
RATE = "400kbit"
"""Of a link that is slow."""
INTERFACE = "tw0"
"""Of each host, inside."""


def check_allowed() -> None:
    """Raises a ConfigError where this user may make no network namespaces."""
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if sys.platform != "linux" or missing or os.geteuid() != 0:
        raise ConfigError(
            "--namespaces needs Linux, root, and the commands ip and tc; without it links are "
            "slowed and cut in the transport"
        )


class Hosts:
    """Makes the hosts; `with` leaves none of them behind.

    Args:
        N: how many.

    Raises:
        ThinwireError: they could not be made.
    """

    def __init__(self, N: int) -> None:
        self.N = N
        # Two stories of two programs must not meet: the names hold the process number.
        self._id = os.getpid() % 65536
        self._bridge = f"tw{self._id:x}b"

    def address(self, rank: int) -> str:
        """Returns a host's address; rank -1 is the bridge itself."""
        return f"10.{77 + self._id // 256 % 64}.{self._id % 256}.{2 + rank}"

    def enter(self, rank: int) -> None:
        """Moves this process to that host."""
        handle = os.open(f"/var/run/netns/{self._name(rank)}", os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(handle, CLONE_NEWNET):
            raise ThinwireError(f"host {rank}: {os.strerror(ctypes.get_errno())}")
        os.close(handle)
        os.environ["GLOO_SOCKET_IFNAME"] = INTERFACE

    def slow(self, rank: int) -> None:
        """Slows both directions of a host's link."""
        shape = f"root tbf rate {RATE} burst 16kb latency 400ms"
        self._run(f"tc qdisc replace dev {self._port(rank)} {shape}")
        self._run(f"ip netns exec {self._name(rank)} tc qdisc replace dev {INTERFACE} {shape}")

    def cut(self, rank: int) -> None:
        """Cuts a host's link: nothing comes through, and nobody is told."""
        self._run(f"ip link set {self._port(rank)} down")

    def mend(self, rank: int) -> None:
        """Makes a host's link as it was."""
        self._run(f"ip link set {self._port(rank)} up")
        for command in (
            f"tc qdisc del dev {self._port(rank)} root",
            f"ip netns exec {self._name(rank)} tc qdisc del dev {INTERFACE} root",
        ):
            self._run(command, may_fail=True)

    def __enter__(self) -> Hosts:
        try:
            self._run(f"ip link add {self._bridge} type bridge")
            self._run(f"ip addr add {self.address(-1)}/24 dev {self._bridge}")
            self._run(f"ip link set {self._bridge} up")
            for rank in range(self.N):
                name, port = self._name(rank), self._port(rank)
                within = f"ip -n {name}"
                self._run(f"ip netns add {name}")
                self._run(f"ip link add {port} type veth peer name {INTERFACE} netns {name}")
                self._run(f"ip link set {port} master {self._bridge} up")
                self._run(f"{within} addr add {self.address(rank)}/24 dev {INTERFACE}")
                self._run(f"{within} link set {INTERFACE} up")
                self._run(f"{within} link set lo up")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _remove(self) -> None:
        for rank in range(self.N):
            self._run(f"ip link del {self._port(rank)}", may_fail=True)
            self._run(f"ip netns del {self._name(rank)}", may_fail=True)
        self._run(f"ip link del {self._bridge}", may_fail=True)

    def _name(self, rank: int) -> str:
        return f"tw{self._id:x}-{rank}"

    def _port(self, rank: int) -> str:
        return f"tw{self._id:x}p{rank}"

    def _run(self, command: str, may_fail: bool = False) -> None:
        done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
        if done.returncode and not may_fail:
            raise ThinwireError(f"{command}: {done.stderr.strip() or 'failed'}")
