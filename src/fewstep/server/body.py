"""Reading a request's body, JSON or multipart alike, and refusing what is too large before it is read."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fewstep.server.errors import ApiError, answer, invalid
from fewstep.server.schema import Extras

Asked = TypeVar("Asked", bound=BaseModel)
JSON, FORM = "application/json", "multipart/form-data"


class _TooLarge(Exception):
    """Raised through whatever reads the body, up to `Bounded`."""


class Bounded:
    """An app whose requests have a largest size; of a larger one no more than that is read."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.most:
                raise _TooLarge
            return message

        said = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            if said.isdigit() and int(said[:20]) > self.most:
                raise _TooLarge
            await self.app(scope, counted, send)
        except _TooLarge:
            message = f"The body of a request must have at most {self.most} bytes."
            refusal = answer(ApiError(413, message, "body_too_large", headers={"Connection": "close"}))
            await refusal(scope, receive, send)


@dataclass(frozen=True)
class Body(Generic[Asked]):
    """A checked body.

    Attributes:
        asked: its text fields.
        files: the bytes of its files, by field. What a client calls its files is not kept.
    """

    asked: Asked
    files: Mapping[str, bytes]


async def read(request: Request, kind: type[Asked], files: tuple[str, ...] = ()) -> Body[Asked]:
    """The body of a request, checked against `kind`; its files may be those named `files`.

    Raises:
        ApiError: 400, what is wrong in it.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media == FORM:
        fields, found = await _form(request, files)
    elif media == JSON:
        fields, found = _json(await request.body()), {}
    else:
        raise invalid(f"The Content-Type of a request must be {JSON} or {FORM}. Got {media!r}.", "Content-Type")
    try:
        return Body(kind.model_validate(fields), found)
    except ValidationError as error:
        raise wrong(error.errors(include_url=False, include_context=False), kind) from None


def wrong(details: Sequence[Any], kind: type[BaseModel] | None = None) -> ApiError:
    """All that is wrong with a request, a sentence each; `param` names the first.

    Args:
        details: as pydantic lists them.
        kind: of the body; None for what is not in a body.
    """
    sentences = [_sentence(detail, kind) for detail in details[:5]]
    return invalid(" ".join(sentences), _name(details[0]["loc"]), _code(details[0]["type"]))


def _sentence(detail: Any, kind: type[BaseModel] | None) -> str:
    name = reprlib.repr(_name(detail["loc"]))
    if detail["type"] == "extra_forbidden":
        inside = Extras if detail["loc"][0] == "fewstep" else kind
        known = inside.model_fields if inside else {}
        return f"There is no field {name}; there is {', '.join(known)}."
    if detail["type"] == "missing":
        return f"The field {name} must be given."
    said = detail["msg"].removeprefix("Value error, ").removeprefix("Input should ").removeprefix("be ")
    rule = said.removeprefix("must be ")
    return f"The {name} of the request must be {rule}. Got {reprlib.repr(detail['input'])}."


def _name(place: tuple[str | int, ...]) -> str:
    return ".".join(map(str, place))


def _code(kind: str) -> str:
    return {"extra_forbidden": "unknown_parameter", "missing": "missing_required_parameter"}.get(kind, "invalid_value")


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):  # also bytes that are no UTF-8, and numbers of thousands of digits
        raise invalid("The body must be JSON.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise invalid(f"The body must be a JSON object. Got {reprlib.repr(value)}.", code="invalid_json")
    return value


async def _form(request: Request, names: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, bytes]]:
    fields: dict[str, Any] = {}
    found: dict[str, bytes] = {}
    async with request.form(max_files=8, max_fields=64) as form:
        for key, value in form.multi_items():
            name = key.removesuffix("[]")
            if name in fields or name in found:
                raise invalid(f"The field {name!r} must be given once.", name)
            if isinstance(value, str):
                fields[name] = value
            elif name in names:
                found[name] = await value.read()
            else:
                raise invalid(f"The field {name!r} takes no file.", name)
    return nested(fields), found


def nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Form fields as JSON would have them: `fewstep[steps]` inside `fewstep`, and that, given whole, read as JSON.

    The official client sends an object in a form in the first way; the second is easier by hand.

    Raises:
        ApiError: `fewstep` is no JSON object, or is given in both ways.
    """
    made: dict[str, Any] = {}
    for key, value in fields.items():
        name, bracket, rest = key.partition("[")
        if not bracket:
            made[name] = _json(value.encode("utf-8", "surrogatepass")) if name == "fewstep" else value
        elif isinstance(made.setdefault(name, {}), dict) and rest.endswith("]"):
            made[name][rest[:-1]] = value
        else:
            raise invalid(f"The field {key!r} contradicts another field of this form.", name)
    return made


def described(kind: type[BaseModel], media: tuple[str, ...] = (JSON,), files: tuple[str, ...] = ()) -> dict[str, Any]:
    """What our OpenAPI document says about a body: its schema, with everything in place."""
    schema = kind.model_json_schema()
    parts = schema.pop("$defs", {})
    whole = _inlined(schema, parts)
    whole["properties"] |= {name: {"type": "string", "format": "binary"} for name in files}
    return {"requestBody": {"required": True, "content": {name: {"schema": whole} for name in media}}}


def _inlined(value: Any, parts: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        if "$ref" in value:
            return _inlined(parts[value["$ref"].rpartition("/")[2]], parts)
        return {key: _inlined(inner, parts) for key, inner in value.items()}
    return [_inlined(inner, parts) for inner in value] if isinstance(value, list) else value
