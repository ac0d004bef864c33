"""The notes of `prepare` about photos that are done, from which a killed run continues."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from osdface_core.files import write_text

from .photos import PhotoRecord, PrepareOptions


class PhotoRecords:
    """One line per photo that is done; the first line holds the options that all lines depend on."""

    def __init__(self, dst: Path, options: PrepareOptions, identity: str | Path | None) -> None:
        self.path = dst / ".prepare.jsonl"
        self.header = {"version": 1, **asdict(options), "identity": str(identity or "")}
        self.records: dict[str, PhotoRecord] = {}
        dst.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            self._read(self.path.read_text("utf-8").splitlines())
        self.rewrite()

    def _read(self, lines: list[str]) -> None:
        """Read what an earlier run did with these options. A line that a kill cut off counts as not done."""
        try:
            if not lines or json.loads(lines[0]) != self.header:
                return
        except ValueError:
            return
        for line in lines[1:]:
            try:
                record = PhotoRecord.from_dict(json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue
            self.records[record.source] = record

    def done(self, source: str, sha256: str) -> PhotoRecord | None:
        """Return the record of a photo that has not changed since."""
        record = self.records.get(source)
        return record if record and record.sha256 == sha256 else None

    def forget(self, sources: Iterable[str]) -> None:
        """Drop photos that are gone or have to be done again."""
        for source in list(sources):
            self.records.pop(source, None)

    def add(self, record: PhotoRecord) -> None:
        """Note a finished photo; its faces are on the disk already."""
        self.records[record.source] = record
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(asdict(record)) + "\n")

    def rewrite(self) -> None:
        """Write one line per record, without those that were replaced."""
        lines = [self.header, *(asdict(record) for record in self.records.values())]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))
