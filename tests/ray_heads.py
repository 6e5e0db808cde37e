"""Head nodes that tests start beside whatever Ray this machine runs, and end without a trace."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_for_jobs(url, token, process, log, seconds=90):
    end = time.monotonic() + seconds
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})  # noqa: S310
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(asked, timeout=5):  # noqa: S310
            return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.3)


def stop(process, folder):
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
