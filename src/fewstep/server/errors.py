"""Every answer that is not a success, in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from fewstep.files import disk_is_full

TYPES = {429: "rate_limit_error"}  # by status; all others below 500 are the request's fault


@dataclass(eq=False)
class ApiError(Exception):
    """A refusal that the client is told.

    Attributes:
        status: of HTTP.
        message: one sentence: what is wrong, where, what would be right.
        code: a word for programs.
        param: the field of the request that is wrong.
        headers: to send with it.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        param = None if self.param is None else printable(self.param)
        return {"error": {"message": printable(self.message), "type": kind, "param": param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, code, param)


def not_found(what: str, name: str, code: str = "not_found", param: str | None = None) -> ApiError:
    return ApiError(404, f"There is no {what} {name!r}.", code, param)


def busy(message: str, after: float, code: str) -> ApiError:
    """A 429 that says when to come again, in whole seconds from now."""
    return ApiError(429, message, code, headers={"Retry-After": str(max(1, round(after)))})


def not_ready(message: str) -> ApiError:
    return ApiError(503, message, "not_ready", headers={"Retry-After": "5"})


FAILED = ApiError(500, "The server failed on this request; its log says why.", "server_error")
DISK_FULL = ApiError(500, "The server's disk is full.", "disk_full")


def no_room(error: BaseException) -> bool:
    """Whether an error means a full disk; SQLite has its own words for that."""
    return disk_is_full(error) or "disk is full" in str(error)


def printable(text: str) -> str:
    """The text without lone surrogates, which JSON can name and UTF-8 can't."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def answer(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, dict(error.headers))


def install(app: FastAPI) -> None:
    """Let `app` answer all errors in our shape; those that nobody foresaw go to the log, never to the client."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return answer(error)

    async def of_the_framework(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        codes = {404: "not_found", 405: "method_not_allowed"}
        said = f"{request.method} {request.url.path!r}: {error.detail}."
        return answer(ApiError(error.status_code, said, codes.get(error.status_code), headers=error.headers or {}))

    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        return answer(DISK_FULL if no_room(error) else FAILED)

    app.add_exception_handler(ApiError, ours)
    app.add_exception_handler(HTTPException, of_the_framework)
    app.add_exception_handler(Exception, unforeseen)
