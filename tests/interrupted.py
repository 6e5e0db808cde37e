"""Commands in a process of their own that get a signal when they say a line."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence


def interrupted(stage: str, words: Sequence[str], sent: signal.Signals, after: str):
    """Start a command; send a signal when it says a line that begins so.

    Returns its status and what it said.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", f"sdd_ray.{stage}", *words],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # as from a terminal, the workers get the signal as well
        # A shell gives its background jobs a Ctrl-C that they ignore, and so would this one be.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    said = []
    try:
        for line in process.stderr:
            said.append(line)
            if line.startswith(after):
                os.killpg(process.pid, sent)
                break
        said += process.stderr.readlines()
        status = process.wait(60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return status, "".join(said)
