"""Hosts for a test: network namespaces on a bridge that stands in a namespace of its own, so that nothing is seen from outside of them.

Each host has an address, its own loopback and its own empty temporary folder; of the rest it sees this machine's files. Needs root and
``ip`` (iproute2).
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from sr3_core import processes

PLACE = "10.77.0"  # the first three numbers of every address; its packets never leave the namespaces
_MARK = "sr3-"  # before the pid of the test in the name of a namespace
_LEFT_OUT = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ray_address", "ray_tmpdir")


def need(what: str) -> None:
    """Fail with one line where hosts cannot be made; with ``E2E=no-containers`` say what was not tested and leave it out."""
    missing = [] if os.geteuid() == 0 else ["root"]
    missing += [
        f"{program} ({package})" for program, package in (("ip", "iproute2"), ("nsenter", "util-linux")) if not shutil.which(program)
    ]
    if "no-containers" in os.environ.get("E2E", "").split(","):
        pytest.skip(f"not tested: {what}")
    if missing:
        pytest.fail(f"not tested: {what}; missing: {', '.join(missing)}; E2E=no-containers leaves it out", pytrace=False)


class Host:
    """One host: a namespace with the interface ``eth0`` at ``address``, kept by a process of its own."""

    def __init__(self, name: str, address: str, scratch: Path) -> None:
        self.name, self.address, self._scratch = name, address, scratch
        keep = ["ip", "netns", "exec", name, "sh", "-c", f"mount -t tmpfs sr3 {scratch} && echo up && exec sleep infinity"]
        self._keeper = subprocess.Popen(keep, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert self._keeper.stdout is not None and self._keeper.stdout.readline() == "up\n"

    def popen(self, command: list[str], *, environment: dict[str, str], **given: Any) -> "subprocess.Popen[Any]":
        """``command`` on this host, in a session of its own; ``given`` as of subprocess.Popen."""
        inside = ["nsenter", "--net", "--mount", "--target", str(self._keeper.pid), "env", "-C", os.getcwd(), *command]
        kept = {name: value for name, value in os.environ.items() if name.lower() not in _LEFT_OUT}
        own = {"TMPDIR": str(self._scratch), "RAY_TMPDIR": str(self._scratch), "GLOO_SOCKET_IFNAME": "eth0"}
        return subprocess.Popen(inside, env={**kept, **own, **environment}, stdin=subprocess.DEVNULL, start_new_session=True, **given)

    def serve(self, command: list[str], log: Path, *, up: str, environment: dict[str, str], seconds: float = 240) -> None:
        """Start ``command`` and wait until its output holds ``up``."""
        with log.open("w") as stream:
            process = self.popen(command, environment=environment, stdout=stream, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + seconds
        while up not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[:4]} on {self.address} did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.2)

    def output(self, command: list[str], *, environment: dict[str, str], seconds: float = 120) -> str:
        """What ``command`` prints; it must end well."""
        process = self.popen(command, environment=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, err = process.communicate(timeout=seconds)
        assert process.returncode == 0, f"{command[:3]}: {out[-2000:]}{err[-3000:]}"
        return out

    def cut(self) -> None:
        """Take its link down: it hears nobody and nobody hears it."""
        ip("-n", self.name, "link", "set", "eth0", "down")


class Network:
    """Hosts by name at ``PLACE``.N in the order they are added, the first one at the bridge itself."""

    def __init__(self, scratch: Path, removals: contextlib.ExitStack) -> None:
        self._mark, self._scratch, self._removals = f"{_MARK}{os.getpid()}", scratch, removals
        self._hosts: list[Host] = []

    def add(self, name: str) -> Host:
        """A new host; it goes, with its links and all that runs on it, when ``removals`` are made."""
        name, number = f"{self._mark}-{name}", len(self._hosts) + 1
        address = f"{PLACE}.{number}"
        ip("netns", "add", name)
        self._removals.callback(_remove, name)
        ip("-n", name, "link", "set", "lo", "up")
        if not self._hosts:
            ip("-n", name, "link", "add", "eth0", "type", "bridge")
        else:
            hub = self._hosts[0].name
            ip("-n", hub, "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", hub, "link", "set", f"port{number}", "master", "eth0", "up")
        ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        host = Host(name, address, self._scratch)
        self._hosts.append(host)
        return host


def ip(*arguments: str) -> str:
    """The output of ``ip``; RuntimeError with what it said when it fails."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=20)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _remove(name: str) -> None:
    """End everything that runs in a namespace, then remove it; its links go with it."""
    processes.end(map(int, ip("netns", "pids", name).split()), patience_seconds=2)
    ip("netns", "delete", name)


@contextlib.contextmanager
def network() -> Generator[Network, None, None]:
    """A Network for the block; all of it is removed afterwards, and what a test that was killed left is removed first."""
    for name in (line.split()[0] for line in ip("netns", "list").splitlines()):
        pid = name.removeprefix(_MARK).partition("-")[0]
        if name.startswith(_MARK) and pid.isdigit() and not processes.identity(int(pid)):
            _remove(name)
    # a short folder: below it the paths of Ray's sockets stay within 107 bytes
    with tempfile.TemporaryDirectory(prefix="sr3-") as scratch, contextlib.ExitStack() as removals:
        yield Network(Path(scratch), removals)
