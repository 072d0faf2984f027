"""Whatever a client sends: an answer in OpenAI's shape, never a failure of the server, and the server goes on."""

from __future__ import annotations

import json
import resource
import socket
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fewstep.server.schema import EditRequest, Extras, ImageRequest, VideoRequest
from tests.server.running import Running

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["auto", "64x64", "0x0", "1x1", "99999x99999", "shapes", "moving", "\ud800", "4", "1e999"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def bodies(kind: type[ImageRequest] | type[VideoRequest]) -> st.SearchStrategy[dict[str, Any]]:
    """JSON objects near to what `kind` takes. Steps are few where they are any, so that each try is quick."""
    extras = st.fixed_dictionaries(
        {"steps": st.just(1)}, optional={n: ANYTHING for n in Extras.model_fields if n != "steps"}
    )
    fields = {n: ANYTHING for n in kind.model_fields if n not in ("prompt", "fewstep")}
    return st.fixed_dictionaries(
        {"prompt": ANYTHING | st.just("a red ring"), "fewstep": extras | ANYTHING},
        optional={**fields, "strange": ANYTHING},
    )


def check(response: Any) -> None:
    body = response.json()
    if response.status_code != 200:
        assert 400 <= response.status_code < 500, body
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert body["error"]["message"].endswith(".")


KINDS = {"/v1/images/generations": ImageRequest, "/v1/images/edits": EditRequest, "/v1/videos": VideoRequest}


@pytest.mark.parametrize("path", KINDS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_json_breaks_the_server(server: Running, path: str, data: st.DataObject) -> None:
    body = data.draw(bodies(KINDS[path]) | ANYTHING)
    with server.http() as http:
        response = http.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
        check(response)
        if path == "/v1/videos" and response.status_code == 200:
            assert http.delete(f"/v1/videos/{response.json()['id']}").status_code == 200


RAW = {
    "not utf-8": b'{"prompt": "\xff"}',
    "cut": b'{"prompt": "a',
    "deep": b"[" * 100_000,
    "deep in a field": b'{"prompt": ' + b'{"a":' * 400 + b"1" + b"}" * 401,
    "long number": b'{"n": ' + b"9" * 5000 + b"}",
    "empty": b"",
    "a list": b"[]",
    "surrogate": b'{"prompt": "\\ud800", "\\udfff": 1, "model": "\\ud800"}',
    "surrogate model": b'{"prompt": "a", "model": "\\ud800"}',
    "surrogate recipe": b'{"prompt": "a", "fewstep": {"recipe": "\\ud800"}}',
    "null byte": b'{"prompt": "a\\u0000"}',
}


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize("path", KINDS)
def test_no_bytes_break_the_server(server: Running, path: str, name: str) -> None:
    with server.http() as http:
        response = http.post(path, content=RAW[name], headers={"content-type": "application/json"})
        check(response)
        assert response.status_code in (400, 404)


FORMS: dict[str, dict[str, Any]] = {
    "object twice": {"data": {"prompt": "a", "fewstep": '{"steps": 1}', "fewstep[seed]": "1"}},
    "no object": {"data": {"prompt": "a", "fewstep": "[1]"}},
    "open bracket": {"data": {"prompt": "a", "fewstep[": "1"}},
    "file for text": {"files": {"prompt": ("../../etc/passwd", b"x")}},
    "text for file": {"files": {"x": b""}, "data": {"prompt": "a", "image": "not a file", "input_reference": "x"}},
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("path", ["/v1/videos", "/v1/images/edits"])
def test_no_form_breaks_the_server(server: Running, path: str, name: str) -> None:
    form = {"files": {"strange": b"x"}, **FORMS[name]}
    with server.http() as http:
        response = http.post(path, **form)
        check(response)
        assert response.status_code == 400


def test_extras_in_a_form_come_whole_or_in_brackets(server: Running) -> None:
    with server.http() as http:
        for extras in ({"fewstep": '{"steps": 1}'}, {"fewstep[steps]": "1"}):
            made = http.post("/v1/videos", data={"prompt": "a", **extras}, files={"": b""})
            assert made.status_code in (200, 400)
            made = http.post("/v1/videos", files=[(n, (None, v)) for n, v in {"prompt": "a", **extras}.items()])
            assert made.status_code == 200, made.text
            assert http.delete(f"/v1/videos/{made.json()['id']}").status_code == 200


def test_other_kinds_of_bodies_are_refused(server: Running) -> None:
    with server.http() as http:
        response = http.post("/v1/videos", content=b'{"prompt": "a"}', headers={"content-type": "text/plain"})
        check(response)
        assert response.json()["error"]["param"] == "Content-Type"


@pytest.mark.parametrize("path", ["/v1/nope", "/v1/images", "/nope"])
def test_unknown_places(server: Running, path: str) -> None:
    with server.http() as http:
        response = http.post(path)
        check(response)
        assert response.status_code == 404
        assert http.put("/v1/videos").json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "id", ["../jobs.sqlite", "..%2fjobs.sqlite", "%2e%2e%2fjobs.sqlite", "..%5c..%5cx", "%00", "/etc/passwd", "a'--"]
)
def test_no_id_leads_out_of_the_folder(server: Running, id: str) -> None:
    with server.http() as http:
        for path in (f"/v1/files/{id}/content", f"/v1/videos/{id}/content", f"/v1/videos/{id}"):
            response = http.get(path)
            check(response)
            assert response.status_code == 404


def test_a_video_s_file_is_no_file_of_everyone(server: Running) -> None:
    with server.http() as http:
        made = http.post("/v1/videos", json={"prompt": "a", "seconds": 0.3}).json()
        while http.get(f"/v1/videos/{made['id']}").json()["status"] != "completed":
            pass
        assert http.get(f"/v1/videos/{made['id']}/content").status_code == 200
        assert http.get(f"/v1/files/{made['id']}/content").status_code == 404
        http.delete(f"/v1/videos/{made['id']}")


def test_urls_of_clients_are_not_fetched(server: Running) -> None:
    with socket.socket() as trap, server.http() as http:
        trap.bind(("127.0.0.1", 0))
        trap.listen()
        trap.settimeout(0.3)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/a.png"
        response = http.post("/v1/videos", json={"prompt": "a", "input_reference": {"image_url": url}})
        check(response)
        assert response.status_code == 400
        with pytest.raises(TimeoutError):
            trap.accept()


def test_a_body_that_is_too_large_is_not_read(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    head = "POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as said:
        said.sendall(f"{head}Content-Length: 99999999999\r\n\r\n".encode())
        assert b" 413 " in said.recv(1000)
    with socket.create_connection((host, int(port)), timeout=10) as unsaid:
        unsaid.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        piece = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
        sent = 0
        try:
            while sent < 200:
                unsaid.sendall(piece)
                sent += 1
        except OSError:
            pass
        assert sent < 60
    with server.http() as http:
        response = http.post("/v1/videos", files={"input_reference": b"x" * 26_000_000}, data={"prompt": "a"})
        assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


def test_a_request_that_needs_too_much_memory_fails_alone(server: Running) -> None:
    with server.http() as http, open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000, limits[1]))
        try:
            response = http.post("/v1/images/generations", json={"prompt": "a", "size": "8192x8192"})
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
        assert response.status_code == 500
        error = response.json()["error"]
        assert (error["code"], error["type"]) == ("out_of_memory", "server_error")
        assert response.headers["x-should-retry"] == "false"
        assert http.post("/v1/images/generations", json={"prompt": "a"}).status_code == 200
        assert 'fewstep_out_of_memory_total{model="shapes"} 1.0' in http.get("/metrics").text


def test_our_openapi_document_holds_together(server: Running) -> None:
    with server.http() as http:
        document = http.get("/openapi.json").json()
    assert {"/v1/images/generations", "/v1/images/edits", "/v1/videos", "/v1/models"} <= set(document["paths"])
    body = document["paths"]["/v1/videos"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    assert "$ref" not in json.dumps(body)
    assert body["application/json"]["schema"]["properties"]["fewstep"]["properties"]["steps"]
