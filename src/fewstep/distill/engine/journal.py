"""A file of JSON lines that a run writes as it goes, and cuts where it takes up an earlier moment again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

from fewstep.files import replacing


class Journal:
    """Lines at the end of a file. `writing` False does nothing: of many processes one writes."""

    def __init__(self, path: Path, *, writing: bool = True) -> None:
        self.path, self.writing = path, writing
        self._file: TextIO | None = None

    def write(self, line: Any) -> None:
        if not self.writing:
            return
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        print(json.dumps(line, ensure_ascii=False), file=self._file, flush=True)

    def cut(self, lines: int) -> None:
        """Keep so many lines; one that a kill cut in two is never among them."""
        self.close()
        if not self.writing or not self.path.exists():
            return
        found = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        if len(found) > lines:
            with replacing(self.path) as aside:
                aside.write_text("".join(found[:lines]), encoding="utf-8")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
