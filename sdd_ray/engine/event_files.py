"""Figures of a run as an event file, which TensorBoard shows as curves.

A file is a row of TFRecords, each a protocol buffer `Event`; TensorBoard merges all files of a
folder.
"""

import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from sdd_ray.store.location import Location


class EventFile:
    """One new event file in a folder, complete after every `add`.

    Args:
        folder: Where it appears, with the first figures; may lie on S3. Other files there stay,
            such as that of the run which this one goes on from.
    """

    def __init__(self, folder: Location) -> None:
        # Reached through Ray's extra `tune`; with all that it imports it takes a second.
        from tensorboardX.event_file_writer import (  # type: ignore[import-untyped]
            EventsWriter,
        )

        self._local = tempfile.TemporaryDirectory(prefix="sdd_ray_events_")
        # Two files of one host can begin in one second.
        own = f".{uuid.uuid4().hex[:8]}"
        self._writer = EventsWriter(str(Path(self._local.name) / "events"), own)
        self._path = next(Path(self._local.name).iterdir())
        self._place = folder / self._path.name

    def __enter__(self) -> "EventFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Write figures of a step, by the names of their curves.

        Args:
            step: Place on the horizontal axis, such as the epoch.
            figures: May be NaN or infinite, which TensorBoard marks as such.

        Raises:
            OutputError: The folder cannot be written.
        """
        from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped]
        from tensorboardX.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        values = [Summary.Value(tag=k, simple_value=float(v)) for k, v in figures.items()]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self._writer.write_event(event)
        self._writer.flush()
        self._place.write_bytes(self._path.read_bytes())

    def close(self) -> None:
        """Remove what is kept on the local disk; nothing can be added any more."""
        if self._path.exists():
            self._writer.close()
            self._local.cleanup()
