"""Two hosts on one machine: network namespaces with addresses of their own, and a cable between them."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.forks import NETWORK

ADDRESSES = ("10.213.77.1", "10.213.77.2")
INTERFACE = "cable"  # its name on both hosts


def ip(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["ip", *words], capture_output=True, text=True)


class Cable:
    """The connection of two hosts, which can be cut."""

    def __init__(self, hosts: tuple[str, str]):
        self.hosts = hosts

    def cut(self) -> None:
        self._set("down")

    def mend(self) -> None:
        self._set("up")

    def _set(self, state: str) -> None:
        done = ip("-n", self.hosts[1], "link", "set", INTERFACE, state)
        assert done.returncode == 0, done.stderr

    def variables(self, host: int) -> dict[str, str]:
        """The environment of a process that runs on a host."""
        return {NETWORK: self.hosts[host], "GLOO_SOCKET_IFNAME": INTERFACE}


@contextmanager
def connected() -> Iterator[Cable]:
    """Make two hosts with a cable between them. The test is skipped where that is not allowed."""
    if shutil.which("ip") is None:
        pytest.skip("two hosts need `ip` of iproute2, which is not installed")
    first, second = hosts = f"adopt{os.getpid()}a", f"adopt{os.getpid()}b"
    try:
        for host in hosts:
            done = ip("netns", "add", host)
            if done.returncode != 0:
                pytest.skip(f"two hosts need network namespaces, which only root may make: {done.stderr.strip()}")
        cable = ("link", "add", INTERFACE, "netns", first, "type", "veth", "peer", "name", INTERFACE, "netns", second)
        done = ip(*cable)
        if done.returncode != 0:
            pytest.skip(f"two hosts need a veth pair, and the kernel makes none: {done.stderr.strip()}")
        for host, address in zip(hosts, ADDRESSES, strict=True):
            for words in (
                ("addr", "add", f"{address}/24", "dev", INTERFACE),
                ("link", "set", "lo", "up"),
                ("link", "set", INTERFACE, "up"),
            ):
                done = ip("-n", host, *words)
                assert done.returncode == 0, done.stderr
        yield Cable(hosts)
    finally:
        for host in hosts:
            ip("netns", "del", host)  # the veth pair goes with it
