"""The whole server as one ASGI app."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from fewstep import __version__
from fewstep.server import errors, images, videos
from fewstep.server.body import Bounded, wrong
from fewstep.server.config import ModelEntry, ServerConfig
from fewstep.server.errors import not_found, not_ready
from fewstep.server.facts import Facts
from fewstep.server.metrics import Measured
from fewstep.server.schema import Abilities, ModelCard, ModelList
from fewstep.server.service import Service


def build_app(config: ServerConfig, extra_routers: Iterable[APIRouter] = (), service: Service | None = None) -> FastAPI:
    """The app of one server. Its worker starts and ends with the app.

    Args:
        config: all that it is told.
        extra_routers: more routes, which see to their own keys.
        service: its parts, where the caller has made them; `app.state.service` holds them either way.

    Raises:
        MachineError: another server uses the folder, or it can't be written to.
    """
    service = service or Service.of(config)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        service.close()

    app = FastAPI(title="fewstep", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    errors.install(app)
    app.add_exception_handler(RequestValidationError, _bad_query)
    app.add_middleware(Bounded, most=int(config.limits.body_mb * 1e6))
    app.add_middleware(Measured, metrics=service.metrics)
    for router in (images.routes(service), videos.routes(service), about(service), *extra_routers):
        app.include_router(router)
    return app


async def _bad_query(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    details = [{**detail, "loc": detail["loc"][1:]} for detail in error.errors()]  # without the word "query"
    return errors.answer(wrong(details))


def about(service: Service) -> APIRouter:
    """What the server says about itself."""
    router = APIRouter()
    guarded = [Depends(service.door.enter)]

    def card(name: str) -> ModelCard:
        facts = service.engine.facts.get(name)
        abilities = abilities_of(service.engine.entries[name], facts) if facts else None
        return ModelCard(id=name, created=int(service.started), fewstep=abilities)

    @router.get("/v1/models", dependencies=guarded)
    def models() -> ModelList:
        return ModelList(data=[card(name) for name in service.engine.entries])

    @router.get("/v1/models/{id:path}", dependencies=guarded)
    def model(id: str) -> ModelCard:
        if id not in service.engine.entries:
            raise not_found("model", id, "model_not_found", "model")
        return card(id)

    @router.get("/health")
    def health() -> JSONResponse:
        """Whether the process is worth keeping: its worker lives."""
        if not service.worker.is_alive():
            raise errors.ApiError(503, "The worker has ended; restart the server.", "not_alive")
        return JSONResponse({"status": "alive"})

    @router.get("/ready")
    def ready() -> JSONResponse:
        """Whether requests are better sent here: all models are warm."""
        if not service.worker.ready.is_set():
            raise not_ready("The models are being loaded.")
        return JSONResponse({"status": "ready"})

    @router.get("/metrics", dependencies=guarded)
    def metrics() -> Response:
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def abilities_of(entry: ModelEntry, facts: Facts) -> Abilities:
    """What clients are told of a model."""
    return Abilities(
        makes=facts.kind,
        size="{}x{}".format(*facts.size) if facts.size else None,
        multiple=facts.multiple,
        frames=facts.frames,
        fps=entry.fps if facts.kind == "video" else None,
        recipes=[name for name, problems in facts.recipes.items() if not problems],
    )
