"""Keys, what each may do, and what no other web site may."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from fewstep.errors import InputError
from fewstep.server.config import KeyEntry, ServerConfig, check_host, read_keys
from fewstep.server.errors import ApiError
from fewstep.server.jobs import WAITING
from fewstep.server.keys import Door, Rate, find, hashed, new_key, refuse_other_sites
from tests.server.running import MOVING, SHAPES, running, until

pytestmark = pytest.mark.filterwarnings("ignore:The Sora:DeprecationWarning")


def entry(name: str, key: str, **limits: Any) -> KeyEntry:
    return KeyEntry(name=name, sha256=hashed(key), **limits)


def test_a_key_is_found_by_its_hash() -> None:
    ann, bob = entry("ann", "fs-a"), entry("bob", "fs-b")
    assert find("fs-b", [ann, bob]) == bob
    assert find("fs-c", [ann, bob]) is None
    assert find("", [ann, bob]) is None
    assert find("fs-a\ud800", [ann, bob]) is None
    assert new_key() != new_key()
    assert len(new_key()) > 40


def test_a_minute_holds_so_many_requests() -> None:
    now = [0.0]
    rate = Rate(lambda: now[0])
    assert [rate.wait("a", 2), rate.wait("a", 2)] == [0.0, 0.0]
    now[0] = 20.0
    assert rate.wait("a", 2) == 40.0
    assert rate.wait("b", 2) == 0.0  # each owner for himself
    assert rate.wait("c", None) == 0.0
    now[0] = 60.5
    assert rate.wait("a", 2) == 0.0


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:8000", "[::1]:8000", "127.0.0.1"])
def test_this_machine_may_ask(host: str) -> None:
    refuse_other_sites(host, None)
    refuse_other_sites(host, f"http://{host}")


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("evil.example:8000", None),  # a name of theirs that they pointed to 127.0.0.1
        ("127.0.0.1:8000", "http://evil.example"),
        ("127.0.0.1:8000", "http://127.0.0.1:9000"),
        ("127.0.0.1:8000", "null"),
        ("", None),
    ],
)
def test_other_sites_may_not(host: str, origin: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        refuse_other_sites(host, origin)
    assert caught.value.status == 403


def test_a_live_socket_needs_a_key_too() -> None:
    door = Door((entry("ann", "fs-a"),), guarded=True)
    assert door.why_not("fs-a") is None
    assert "needs a key" in (door.why_not("fs-b") or "")
    assert "needs a key" in (door.why_not(None) or "")
    assert Door(None, guarded=True).why_not(None) is None


def test_with_keys_from_end_to_end(tmp_path: Path) -> None:
    keys = (
        entry("ann", "fs-ann"),
        entry("bob", "fs-bob", requests_per_minute=3),
        entry("cat", "fs-cat", jobs_waiting=1),
    )
    with running(ServerConfig(models=(SHAPES, MOVING), folder=tmp_path, keys=keys)) as server:
        ann, bob, cat = (server.client(f"fs-{name}") for name in ("ann", "bob", "cat"))
        for wrong in ("", "fs-", "fs-anna"):
            with pytest.raises((openai.AuthenticationError, openai.OpenAIError)):
                server.client(wrong).models.list()
        with server.http() as http:
            for path in ("/v1/models", "/metrics", "/v1/videos"):
                response = http.get(path)
                assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
                assert response.headers["www-authenticate"] == "Bearer"
            assert http.get("/health").status_code == http.get("/ready").status_code == 200
            url = ann.images.generate(prompt="a", response_format="url").data[0].url  # type: ignore[index]
            assert http.get(str(url)).status_code == 200

        hers = ann.videos.create(prompt="a red ring", extra_body={"fewstep": {"steps": 1}})
        for call in (bob.videos.retrieve, bob.videos.delete, bob.videos.download_content):
            with pytest.raises(openai.NotFoundError):
                call(hers.id)
        assert bob.videos.list().data == []
        assert [video.id for video in ann.videos.list().data] == [hers.id]

        for _ in range(3):
            bob.images.generate(prompt="a")
        with pytest.raises(openai.RateLimitError) as caught:
            bob.images.generate(prompt="a")
        assert caught.value.code == "rate_limit_exceeded"
        assert 50 < int(caught.value.response.headers["retry-after"]) <= 60
        bob.models.list()  # looking is free

        long = cat.videos.create(prompt="a red ring", extra_body={"fewstep": {"steps": 1000}})
        with pytest.raises(openai.RateLimitError, match="may have 1 jobs waiting"):
            cat.images.generate(prompt="a")
        cat.videos.delete(long.id)
        until(lambda: not server.service.jobs.count(*WAITING))
        with ThreadPoolExecutor(8) as pool:
            asked = [
                pool.submit(cat.videos.create, prompt="a", extra_body={"fewstep": {"steps": 1000}}) for _ in range(8)
            ]
        errors = [one.exception() for one in asked]
        assert sum(error is None for error in errors) == 1
        assert sum(isinstance(error, openai.RateLimitError) for error in errors) == 7


def test_without_keys_other_sites_are_refused(tmp_path: Path) -> None:
    with running(ServerConfig(models=(SHAPES,), folder=tmp_path)) as server, server.http() as http:
        assert http.get("/v1/models").status_code == 200
        assert http.get("/v1/models", headers={"origin": "http://evil.example"}).status_code == 403
        assert http.get("/v1/models", headers={"host": "evil.example"}).status_code == 403


def test_other_machines_are_let_in_with_keys_or_on_purpose() -> None:
    for allowed in (("127.0.0.1", False, False), ("0.0.0.0", True, False), ("0.0.0.0", False, True)):
        host, keys, open_to_all = allowed
        check_host(host, keys=keys, open_to_all=open_to_all)
    with pytest.raises(InputError, match="Without --keys"):
        check_host("0.0.0.0", keys=False, open_to_all=False)


def test_a_bad_file_of_keys_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    for text, said in (
        ("keys: [{name: a, sha256: short}]", "sha256"),
        ("keys: 3", "one list"),
        ("[]", "one list"),
        ("keys: [", "YAML"),
        (f"keys: [{{name: a, sha256: '{'0' * 64}'}}, {{name: a, sha256: '{'1' * 64}'}}]", "names must differ"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=said):
            read_keys(file)
    with pytest.raises(InputError, match="no file"):
        read_keys(tmp_path / "other.yaml")
