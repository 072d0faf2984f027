"""The client of docs/live-protocol.md runs as it stands there, and the document names what the code has."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image

from fewstep.server import live, stream
from fewstep.server.web.room import Limits
from tests.server.live.drawn import DrawnStudio
from tests.server.live.served import served

DOCUMENT = (Path(__file__).parents[3] / "docs" / "live-protocol.md").read_text(encoding="utf-8")
CLIENT = re.findall(r"```python\n(.*?)```", DOCUMENT, re.S)[0]


def test_the_documents_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with served(DrawnStudio()) as at:
        exec(CLIENT.replace("127.0.0.1:8000", at), {})
    assert Image.open("live.webp").n_frames == 48
    told: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [message["type"] for message in told][:2] == ["hello", "ready"]
    assert len(CLIENT.splitlines()) <= 20


def test_the_document_names_every_message_and_code() -> None:
    for message in get_args(live.Message):
        assert f'"type": "{message.model_fields["type"].annotation.__args__[0]}"' in DOCUMENT
    for code in (stream.GARBAGE, stream.FAILED, stream.FULL, stream.NO_KEY, stream.SILENT):
        assert f"| {code} |" in DOCUMENT
    limits = Limits()
    for told in (f"{limits.message:,} characters", f"At most {limits.window} chunks", f"{limits.silence:.0f} seconds"):
        assert told in DOCUMENT
    assert f"{live.PROMPT_CHARACTERS:,}" in DOCUMENT
    assert {field.name for field in fields(live.Chunk)} == {"frames", "index", "prompt", "due", "work"}
