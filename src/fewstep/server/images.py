"""POST /v1/images/generations and /v1/images/edits, and the pictures that are answered as URLs."""

from __future__ import annotations

import asyncio
import base64
import time
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from PIL import Image

from fewstep.server.body import FORM, Body, described, read
from fewstep.server.config import KeyEntry, ModelEntry
from fewstep.server.engine import Shot, Work
from fewstep.server.errors import ApiError, invalid, not_found
from fewstep.server.facts import Facts
from fewstep.server.jobs import Stored
from fewstep.server.media import TYPES, encoded, picture_of, repaint_mask
from fewstep.server.schema import EditRequest, ImageRequest, ImagesResponse, Made, Picture, width_height
from fewstep.server.service import Service, new_id, seed_of, size_of, work_of
from fewstep.server.worker import Ticket

FILES = ("image", "mask")


def routes(service: Service) -> APIRouter:
    router = APIRouter()
    admitted = Depends(service.door.admit)

    @router.post("/v1/images/generations", openapi_extra=described(ImageRequest))
    async def generate(request: Request, caller: KeyEntry = admitted) -> ImagesResponse:
        asked = (await read(request, ImageRequest)).asked
        entry, facts = service.model(asked.model, "image")
        if asked.fewstep.strength is not None:
            raise invalid("Only edits have a strength: leave it out.", "fewstep.strength")
        work = work_of(entry, facts, size_of(facts, asked.size), asked.fewstep)
        return await _answer(service, request, caller, asked, work)

    @router.post("/v1/images/edits", openapi_extra=described(EditRequest, (FORM,), FILES))
    async def edit(request: Request, caller: KeyEntry = admitted) -> ImagesResponse:
        body = await read(request, EditRequest, FILES)
        entry, facts = service.model(body.asked.model, "image")
        image, mask = await run_in_threadpool(_sources, body, entry, facts)
        size = width_height(body.asked.size) or fitting(image.size, facts)
        work = work_of(entry, facts, size, body.asked.fewstep)  # before anything of that size is made
        image, mask = image.resize(size), mask and mask.resize(size)
        return await _answer(service, request, caller, body.asked, work, image, mask)

    @router.get("/v1/files/{id}/content", response_class=FileResponse)
    def file_content(id: str) -> FileResponse:
        """No key is asked for: who knows the URL was given it."""
        path = None if id.startswith("video_") else service.results.path(id)
        if path is None:
            raise not_found("file", id)
        return FileResponse(path, media_type=TYPES[path.suffix[1:]])

    return router


async def _answer(
    service: Service,
    request: Request,
    caller: KeyEntry,
    asked: ImageRequest,
    work: Work,
    image: Image.Image | None = None,
    mask: Image.Image | None = None,
) -> ImagesResponse:
    """The pictures of a request, made in their turn."""
    service.check_waiting(caller)
    seed = seed_of(asked.fewstep)
    shots = [Shot(asked.prompt, seed + i, image, mask) for i in range(asked.n or 1)]
    made = await _made(request, service, Ticket(work, shots, caller.name))
    suffix = asked.output_format or "png"
    data = await run_in_threadpool(_encoded, made, suffix, asked.output_compression)
    if asked.response_format == "url":
        files = [await run_in_threadpool(_kept, service, one, suffix) for one in data]
        pictures = [Picture(url=str(request.url_for("file_content", id=file.id))) for file in files]
    else:
        pictures = [Picture(b64_json=base64.b64encode(one).decode()) for one in data]
    return ImagesResponse(
        created=int(time.time()),
        data=pictures,
        output_format=suffix,
        size="{}x{}".format(*made[0].size),
        fewstep=Made(seed=seed, recipe=work.recipe),
    )


async def _made(request: Request, service: Service, ticket: Ticket) -> list[Image.Image]:
    """The pictures; the work is given up when the client hangs up."""
    service.worker.submit(ticket)
    result: asyncio.Future[Any] = asyncio.wrap_future(ticket.future)
    gone: asyncio.Future[Any] = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([result, gone], return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise ApiError(499, "The client has gone.", "cancelled")
        made: list[Image.Image] = result.result()
        return made
    finally:
        ticket.cancelled = True
        result.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _encoded(pictures: list[Image.Image], suffix: str, compression: int | None) -> list[bytes]:
    return [encoded(picture, suffix, compression) for picture in pictures]


def _kept(service: Service, data: bytes, suffix: str) -> Stored:
    def fill(path: Path) -> None:
        path.write_bytes(data)

    file = service.results.write(new_id("file"), suffix, fill)
    service.jobs.store(file)
    return file


def _sources(body: Body[EditRequest], entry: ModelEntry, facts: Facts) -> tuple[Image.Image, Image.Image | None]:
    """The picture to edit, and the mask of what is to be painted anew.

    Raises:
        ApiError: 400, a picture is missing or wrong, or the model can't do that.
    """
    if "image" not in body.files:
        raise invalid("The field 'image' must be given, as a file.", "image", "missing_required_parameter")
    for name in body.files:
        if name not in facts.edits:
            raise invalid(f"The model {entry.name!r} can't start from a {name!r}.", name, "unsupported_by_model")
    pictures = {name: picture_of(data, name) for name, data in body.files.items()}
    image, mask = pictures["image"], pictures.get("mask")
    if mask and mask.size != image.size:
        raise invalid(f"The 'mask' must have the size of the 'image', {image.size}. Got {mask.size}.", "mask")
    repaint = repaint_mask(mask) if mask else None
    if repaint and not repaint.getbbox():
        raise invalid("The 'mask' must be transparent where the picture is to be painted anew; it is nowhere.", "mask")
    return image.convert("RGB"), repaint


def fitting(size: tuple[int, int], facts: Facts) -> tuple[int, int]:
    """The size of an edited picture where the request names none: the picture's shape, the model's number of pixels."""
    width, height = size
    own = facts.size or size
    scale = (own[0] * own[1] / (width * height)) ** 0.5
    sides = [max(1, round(side * scale / facts.multiple)) * facts.multiple for side in (width, height)]
    return sides[0], sides[1]
