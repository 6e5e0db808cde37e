"""Head nodes that tests start beside whatever Ray this machine runs, and end without a trace."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

BIN = Path(sys.executable).parent


class Head(NamedTuple):
    """Where a head node answers: to drivers, to who submits jobs, to who reads metrics."""

    gcs: str
    jobs: str
    metrics: str


@contextlib.contextmanager
def head_node(
    environment: dict[str, str],
    *words: str,
    scaling: Callable[[str], dict[str, Any]] | None = None,
) -> Iterator[Head]:
    """Run a head node on loopback.

    Args:
        environment: Of its processes.
        words: More arguments of `ray start`.
        scaling: Makes the configuration of the autoscaler, given where drivers are answered.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # Sockets below it need a short path.
    port, dashboard, client, agent, agent_grpc, metrics = free_ports(6)
    gcs = f"127.0.0.1:{port}"
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats"),
        *(f"--temp-dir={folder}", "--node-ip-address=127.0.0.1", f"--port={port}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
        *(f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"),
        *words,
    ]
    if scaling is not None:
        (folder / "scaling.json").write_text(json.dumps(scaling(gcs)))
        command.append(f"--autoscaling-config={folder / 'scaling.json'}")
    said = folder / "head.log"
    with said.open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        end = time.monotonic() + 90
        while "Ray runtime started" not in said.read_text():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < end, said.read_text()
            time.sleep(0.2)
        yield Head(gcs, f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}/metrics")
    finally:
        stop(process, folder)


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def stop(process: subprocess.Popen, folder: Path) -> None:
    """End the head node and what is left of it; `ray stop` would end every Ray of this machine."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    process.kill()
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in (place / "cmdline").read_bytes():
                os.kill(int(place.name), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)
