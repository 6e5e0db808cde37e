"""Connect to Ray, or start it for the length of one command, and check what it has to offer."""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from sdd_ray.engine.room import available, patience
from sdd_ray.errors import ResourceError, SddError
from sdd_ray.settings import RayConfig

_KNOCK_SECONDS = 10.0


@contextmanager
def session(config: RayConfig) -> Iterator[None]:
    """Join the configured cluster, or start a local one and stop it at the end.

    A session within a session uses the outer one, so that one command can run several stages.
    What workers print stays in Ray's log files and its dashboard; the commands say what matters.

    Raises:
        ResourceError: The cluster does not answer.
        SddError: Ray failed while the session was used.
    """
    if ray.is_initialized():
        with patience(config.wait_for_nodes_s):  # that of the outer session stays where it is 0
            yield
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")  # the dashboard's page of Train
    # Ray's note that a local cluster asks for a token is no concern of its only user.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    if address:
        _join(address)
    else:
        # Without "local" Ray would look for a head node on this machine, and join it instead.
        ray.init(
            address="local",
            num_cpus=config.num_cpus,
            include_dashboard=config.dashboard,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
    _announce(started=not address)
    try:
        with patience(config.wait_for_nodes_s):
            yield
    except ray.exceptions.RayError as error:
        cause = str(error).strip().splitlines()[-1]
        raise SddError(
            f"Ray failed: {cause}; the same command goes on from what is finished"
        ) from error
    finally:
        ray.shutdown()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end a run of Ray Train or Ray Tune as it ends everything else.

    Both take the signal to stop their workers, and keep it for ever: later stages of the same
    command could not be interrupted. Ray Train leaves the process besides, as if all were well.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def _join(address: str) -> None:
    try:
        _knock(address)
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise ResourceError(
            f"no Ray cluster answers at {address} ({error}); is it up, and does RAY_AUTH_MODE fit?"
        ) from error


def _knock(address: str) -> None:
    """Raise an OSError if nobody listens there; Ray itself would go on asking for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()


def _announce(started: bool) -> None:
    cpus, gpus = available("CPU"), available("GPU")
    url = ray.get_runtime_context().worker.node.webui_url if started else None
    dashboard = f", dashboard http://{url}" if url else ""
    what = "started a local Ray" if started else "joined a Ray cluster"
    sys.stderr.write(f"{what}: {cpus:g} CPUs, {gpus:g} GPUs{dashboard}\n")
