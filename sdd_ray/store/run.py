"""An output while it is written: its parts, what was set aside, and whether it is whole.

An output folder is in one of three states, which any reader can see:

- ``manifest.json`` is there: complete. It is the last file to be written.
- ``_incomplete.json`` without a manifest: a run was interrupted, and the same command resumes.
- neither: not an output of this package, and never touched.

Each part is a Parquet file and a record beside it under ``_work``; the record is written after the
part, so that a part with a record is finished and is never computed again.
"""

import hashlib
import json
import platform
import resource
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import sdd_ray
from sdd_ray import columns
from sdd_ray.config import digest_of, identity_of, to_dict
from sdd_ray.errors import OutputError
from sdd_ray.store.location import Location, is_partial

MANIFEST = "manifest.json"
INCOMPLETE = "_incomplete.json"
WORK = "_work"
INDEX = "index.parquet"
LISTING = "listing.json"
BATCH_SIZE = "batch_size.json"
REJECTS = "rejects.parquet"
READ_AT_ONCE = 16
"""Small files that are read together: each takes tens of milliseconds on S3."""
_SECONDS_BETWEEN_NOTES = 60.0
_VERSIONED = ("ray", "torch", "numpy", "pyarrow", "scipy", "onnxruntime")


@dataclass(frozen=True)
class Reject:
    """One row set aside: its key, a short reason that is counted, and what exactly was wrong."""

    image_id: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class PartRecord:
    """What became of one part; `digest` is the SHA-256 of its file, `name` and `suffix`."""

    name: str
    rows_in: int
    rows_out: int
    digest: str
    peak_memory_mib: int
    rejects: list[Reject] = field(default_factory=list)
    suffix: str = ".parquet"

    @property
    def file(self) -> str:
        """Name of the file in the output folder."""
        return self.name + self.suffix


@dataclass
class RunTotals:
    """Sums over finished parts."""

    rows_in: int = 0
    rows_out: int = 0
    worker_peak_memory_mib: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    def add(self, record: PartRecord) -> None:
        """Add one part."""
        self.rows_in += record.rows_in
        self.rows_out += record.rows_out
        self.worker_peak_memory_mib = max(self.worker_peak_memory_mib, record.peak_memory_mib)
        self.rejected.update(reject.reason for reject in record.rejects)


def part_name(number: int) -> str:
    """Return the name of a numbered part; in order of name as in order of number."""
    return f"part-{number:06d}"


def write_part(
    output: Location, name: str, table: pa.Table, rejects: Sequence[Reject] = (), rows_in: int = -1
) -> PartRecord:
    """Write one finished part and then its record; safe to repeat, and to run on any worker.

    Args:
        output: Folder of the dataset.
        name: Name of the part, without suffix.
        table: Its rows.
        rejects: Rows set aside.
        rows_in: Rows that went in, if not the rows of the table and the rejects together.

    Raises:
        OutputError: The output cannot be written.
    """
    content = parquet_bytes(table)
    (output / f"{name}.parquet").write_bytes(content)
    record = PartRecord(
        name=name,
        rows_in=table.num_rows + len(rejects) if rows_in < 0 else rows_in,
        rows_out=table.num_rows,
        digest=hashlib.sha256(content).hexdigest(),
        peak_memory_mib=peak_memory_mib(),
        rejects=list(rejects),
    )
    (output / WORK / "parts" / f"{name}.json").write_bytes(json.dumps(asdict(record)).encode())
    return record


def read_records(output: Location) -> dict[str, PartRecord]:
    """Return the records of all finished parts of an output by name."""
    folder = output / WORK / "parts"
    if not folder.exists():
        return {}
    names = [name for name in folder.names() if name.endswith(".json")]
    with ThreadPoolExecutor(READ_AT_ONCE) as threads:
        records = threads.map(lambda name: record_from_json((folder / name).read_bytes()), names)
        return {record.name: record for record in records}


def record_from_json(text: str | bytes) -> PartRecord:
    """Return the record of which this is the JSON text."""
    tree = json.loads(text)
    return PartRecord(**{**tree, "rejects": [Reject(**item) for item in tree["rejects"]]})


def parquet_bytes(table: pa.Table) -> bytes:
    """Return the table as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def peak_memory_mib() -> int:
    """Return the largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak / 2**20 if sys.platform == "darwin" else peak / 2**10)


class OutputRun:
    """The writing of one output folder: begun, resumed, or found complete.

    Args:
        output: Folder of the output.
        command: Name of the command, recorded in the manifest.
        config: Its configuration tree.
        inputs: Digests of what is read, by the key of the configuration that names it; a resumed
            run must read the same.

    Raises:
        OutputError: The folder holds something else, or the output of another configuration.
    """

    def __init__(
        self, output: Location, command: str, config: Any, inputs: Mapping[str, str] | None = None
    ) -> None:
        self.output = output
        self.command = command
        self._config = config
        self._inputs = dict(inputs or {})
        # What is named by its digest may lie anywhere: the key that holds its path does not count.
        kept = {k: v for k, v in identity_of(config).items() if k not in self._inputs}
        self._identity = {"command": command, "config": kept, "inputs": self._inputs}
        self._started = self._noted = time.time()
        self._seconds_before = 0.0
        self._attempts = 1
        self.is_complete = self._enter()

    def finished(self) -> dict[str, PartRecord]:
        """Return the records of all finished parts by name."""
        return read_records(self.output)

    def forget(self, name: str) -> None:
        """Remove a finished Parquet part, so that it is made again."""
        (self.work / "parts" / f"{name}.json").remove()
        (self.output / f"{name}.parquet").remove()

    @property
    def work(self) -> Location:
        """Folder for files that a resumed run needs and a complete output does not."""
        return self.output / WORK

    def check_parts(self, records: Sequence[PartRecord]) -> None:
        """Check that every finished part is where this process sees it.

        Raises:
            OutputError: A part is not there, as when a worker wrote to the disk of its own node.
        """
        missing = sorted({record.file for record in records} - set(self.output.names()))
        if missing:
            raise OutputError(
                f"{self.output.uri}: {len(missing)} of {len(records)} finished parts are not there,"
                f" first {missing[0]}; workers on other nodes must reach the output: give a shared"
                " folder or s3://"
            )

    def complete(
        self,
        records: Sequence[PartRecord],
        results: Mapping[str, Any] | None = None,
        extra_rejects: Sequence[Reject] = (),
    ) -> dict[str, Any]:
        """Write the rejects and the manifest, remove the working files, return the manifest.

        Args:
            records: Every part of the output.
            results: What else the command has to say, recorded under ``results``.
            extra_rejects: Rows set aside before any part was made.

        Raises:
            OutputError: A part is not there, or the folder cannot be written.
        """
        self.check_parts(records)
        totals = RunTotals()
        for record in records:
            totals.add(record)
        rejects = [*extra_rejects, *(item for record in records for item in record.rejects)]
        totals.rejected.update(reject.reason for reject in extra_rejects)
        (self.output / REJECTS).write_bytes(parquet_bytes(_reject_table(rejects)))
        content = "".join(f"{r.name} {r.digest}\n" for r in sorted(records, key=lambda r: r.name))
        manifest = {
            "command": self.command,
            "config": to_dict(self._config),
            "identity": digest_of(self._identity),
            "inputs": self._inputs,
            "counts": {
                "rows_in": totals.rows_in + len(extra_rejects),
                "rows_out": totals.rows_out,
                "rejected": dict(sorted(totals.rejected.items())),
            },
            "parts": {record.file: record.rows_out for record in records},
            "digest": hashlib.sha256(content.encode()).hexdigest(),
            "results": dict(results or {}),
            "seconds": round(self._seconds_before + time.time() - self._started, 3),
            "attempts": self._attempts,
            "peak_memory_mib": {
                "driver": peak_memory_mib(),
                "worker": totals.worker_peak_memory_mib,
            },
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": versions(),
        }
        self._sweep(self.output)
        (self.output / MANIFEST).write_bytes(json.dumps(manifest, indent=2).encode())
        self._clean()
        return manifest

    def pause(self) -> None:
        """Record the time spent so far, so that a run that is resumed reports the sum."""
        self._noted = time.time()
        self._mark(self._seconds_before + self._noted - self._started)

    def note_time(self) -> None:
        """Record the time spent so far now and then, for a run that is killed."""
        if time.time() - self._noted >= _SECONDS_BETWEEN_NOTES:
            self.pause()

    def _enter(self) -> bool:
        if (self.output / MANIFEST).exists():
            manifest = self._state(MANIFEST, "identity")
            if manifest["identity"] != digest_of(self._identity):
                raise OutputError(self._other("is complete", manifest))
            self._clean()
            return True
        if (self.output / INCOMPLETE).exists():
            mark = self._state(INCOMPLETE, "identity", "seconds")
            if digest_of(mark["identity"]) == digest_of(self._identity):
                self._seconds_before = float(mark["seconds"])
                self._attempts = int(mark.get("attempts", 1)) + 1
                self._mark(self._seconds_before)
                return False
            if not self._holds_no_work():
                raise OutputError(self._other("was begun", mark["identity"]))
            # A command whose mistake was corrected takes over; what was listed may be the mistake.
            self._clean()
            self._mark(0.0)
            return False
        if self.output.exists() and (not self.output.is_folder() or self.output.names()):
            raise OutputError(
                f"{self.output.uri} holds files that sdd_ray did not write;"
                " nothing is overwritten: give another output or empty it"
            )
        self._mark(0.0)
        return False

    def _holds_no_work(self) -> bool:
        """Return whether nothing was done but to list the source."""
        names = self.output.names() + (self.work.names() if self.work.exists() else [])
        return set(names) <= {INCOMPLETE, WORK, INDEX, LISTING, BATCH_SIZE}

    def _state(self, name: str, *keys: str) -> dict[str, Any]:
        place = self.output / name
        try:
            tree = json.loads(place.read_bytes())
        except ValueError:
            tree = None
        if not isinstance(tree, dict) or not tree.keys() >= set(keys):
            raise OutputError(
                f"{place.uri} is damaged, or sdd_ray did not write it;"
                " nothing is overwritten: give another output, or remove this one"
            )
        return tree

    def _mark(self, seconds: float) -> None:
        mark = {
            "identity": self._identity,
            "seconds": round(seconds, 3),
            "attempts": self._attempts,
        }
        (self.output / INCOMPLETE).write_bytes(json.dumps(mark, indent=2).encode())

    def _other(self, state: str, found: Mapping[str, Any]) -> str:
        same_command = found.get("command") == self.command
        keys = (
            _differences(found.get("config", {}), self._identity["config"]) if same_command else []
        )
        keys += ["input " + k for k in _differences(found.get("inputs", {}), self._inputs)]
        what = f"differs in {', '.join(keys[:5])}" if keys else f"is of {found.get('command')}"
        return (
            f"{self.output.uri} {state} with another configuration, which {what};"
            " nothing is overwritten: give another output, or remove this one"
        )

    def _sweep(self, folder: Location) -> None:
        """Remove what writers that were killed left aside; nobody writes any more."""
        for entry in list(folder.entries()):
            if entry.is_folder and entry.name != WORK:
                self._sweep(folder / entry.name)
            elif is_partial(entry.name):
                (folder / entry.name).remove()

    def _clean(self) -> None:
        if self.work.exists():
            self.work.remove_tree()
        (self.output / INCOMPLETE).remove()  # last: what lies here without it counts as foreign


def versions() -> dict[str, str]:
    """Return the versions of this package, Python and the libraries that shape results."""
    found = {"sdd_ray": sdd_ray.__version__, "python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _reject_table(rejects: Sequence[Reject]) -> pa.Table:
    ordered = sorted(rejects, key=lambda r: (r.image_id, r.reason))
    names = columns.REJECTS.names
    return pa.table({n: [getattr(r, n) for r in ordered] for n in names}, schema=columns.REJECTS)


def _differences(found: Any, wanted: Any, prefix: str = "") -> list[str]:
    """Return the dotted keys in which two trees differ; at the top, those of `wanted` alone."""
    if not isinstance(found, Mapping) or not isinstance(wanted, Mapping):
        return [] if found == wanted else [prefix.rstrip(".")]
    keys = sorted(set(wanted) | (set(found) if prefix else set()))
    return [d for k in keys for d in _differences(found.get(k), wanted.get(k), f"{prefix}{k}.")]
