"""`fewstep serve`: models behind OpenAI's API for images and videos; `fewstep keys`: who may use them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from fewstep.cli.check import at_least
from fewstep.cli.show import RECIPE_HELP, note, working
from fewstep.errors import FewstepError, InputError, MachineError, bad_value
from fewstep.files import replacing

if TYPE_CHECKING:
    from fastapi import APIRouter

    from fewstep.server.config import ServerConfig
    from fewstep.server.engine import Engine
    from fewstep.server.service import Service
    from fewstep.server.studio import LiveStudio

COMMAND = "fewstep serve"
SOCKET_MESSAGE = 65_536  # bytes
SHUTDOWN = 30  # seconds that open requests are given at the end
KeyFile = Annotated[Path, typer.Option("--file", "-f", help="The file of keys; made where it is not there.")]

keys_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Keys for a server: make them. Only their hashes are kept.",
)


def serve(
    model: Annotated[
        str, typer.Argument(help="A zoo model, a pipeline folder, a hub id, or a YAML file that lists several models.")
    ],
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help=RECIPE_HELP)] = None,
    host: Annotated[str, typer.Option(help="The address to listen on; other machines reach 0.0.0.0.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on; 0 takes a free one.")] = 8000,
    folder: Annotated[Path, typer.Option(help="Where jobs and results are kept.")] = Path("fewstep-serve"),
    keys: Annotated[Path | None, typer.Option(help="Let in only these keys; see 'fewstep keys add'.")] = None,
    open_to_all: Annotated[
        bool, typer.Option("--open", help="Without keys, answer everyone who can reach this server, from any web page.")
    ] = False,
    queue: Annotated[int, typer.Option(help="Requests that may wait, of pictures and of videos each.")] = 64,
    keep: Annotated[float, typer.Option(help="How many hours results are kept.")] = 24,
    keep_gb: Annotated[float, typer.Option(help="How many gigabytes of results are kept; the oldest go first.")] = 10,
    viewers: Annotated[int, typer.Option(help="Viewers of live video at once, at most.")] = 8,
) -> None:
    """Serve models to OpenAI's clients: POST /v1/images/generations, /v1/images/edits and /v1/videos.

    **Example:** `fewstep serve zoo:shapes-4step --port 8000`
    """
    at_least(1, queue, "--queue", COMMAND)
    at_least(1, viewers, "--viewers", COMMAND)
    for option, value in (("--keep", keep), ("--keep-gb", keep_gb)):
        if not value > 0:
            raise InputError(bad_value(option, COMMAND, "above 0", value))
    need_extra()
    from fewstep.models.load import resolve
    from fewstep.server.config import Limits, ServerConfig, check_host, read_keys, read_models

    check_host(host, keys=keys is not None, open_to_all=open_to_all)
    entries = read_models(model, recipe)
    for entry in entries:
        resolve(entry.model)  # a wrong name is told before anything heavy is imported
    config = ServerConfig(
        models=entries,
        folder=folder,
        limits=Limits(queue=queue, keep_hours=keep, keep_gb=keep_gb),
        keys=None if keys is None else read_keys(keys),
        guarded=not open_to_all,
    )
    with working():
        _run(config, host, port, viewers)


@keys_app.command()
def add(
    name: Annotated[str, typer.Argument(help="Whose key it is.", metavar="NAME")],
    file: KeyFile = Path("keys.yaml"),
    requests_per_minute: Annotated[int | None, typer.Option(help="Requests to make something, at most.")] = None,
    jobs_waiting: Annotated[int | None, typer.Option(help="Jobs that wait or run at one time, at most.")] = None,
) -> None:
    """Make a key, print it once, and add its hash to a file. Who loses the key needs a new one.

    **Example:** `fewstep keys add alice --file keys.yaml --requests-per-minute 60`
    """
    at_least(1, requests_per_minute, "--requests-per-minute", "fewstep keys add")
    at_least(1, jobs_waiting, "--jobs-waiting", "fewstep keys add")
    need_extra()
    from fewstep.server.config import KeyEntry, read_keys
    from fewstep.server.keys import hashed, new_key

    entries = [*read_keys(file)] if file.exists() else []
    if any(entry.name == name for entry in entries):
        raise InputError(f"{file} has a key of {name!r} already; delete that entry first, or take another name.")
    key = new_key()
    limits = {"requests_per_minute": requests_per_minute, "jobs_waiting": jobs_waiting}
    entries.append(KeyEntry(name=name, sha256=hashed(key), **limits))
    _write_keys(file, [entry.model_dump(exclude_none=True) for entry in entries])
    note(f"Added {name} to {file}. This is the only time that the key is shown:")
    print(key)


def need_extra() -> None:
    """Refuse, with the way out, where the packages of the server are missing.

    Raises:
        MachineError: one of them is.
    """
    try:
        import av  # noqa: F401
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MachineError(f"The server needs the package {error.name!r}: pip install 'fewstep[serve]'.") from None


def _write_keys(file: Path, entries: list[Mapping[str, Any]]) -> None:
    with replacing(file) as aside:
        aside.touch(mode=0o600)
        aside.write_text(yaml.safe_dump({"keys": entries}, sort_keys=False), encoding="utf-8")


def _run(config: ServerConfig, host: str, port: int, viewers: int) -> None:
    import uvicorn

    from fewstep.server.app import build_app
    from fewstep.server.service import Service

    service = Service.of(config)
    worker, studio = service.worker, _studio(service.engine, viewers)
    app = build_app(config, [] if studio is None else [_live(service, studio)], service)
    # A viewer's messages are short, and pictures are compressed already.
    sockets = {"ws_max_size": SOCKET_MESSAGE, "ws_per_message_deflate": False}
    options: dict[str, Any] = {"log_level": "warning", "timeout_graceful_shutdown": SHUTDOWN, **sockets}
    server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, **options))

    def give_up() -> None:
        server.should_exit = True

    worker.when_broken = give_up
    worker.when_ready = lambda: _tell_ready(service.engine, _url(server))
    server.run()
    if isinstance(worker.broken, FewstepError):
        raise worker.broken
    if worker.broken is not None:
        raise InputError(f"The models could not be loaded: {worker.broken}") from worker.broken
    if not server.started:  # uvicorn has said why
        sys.exit(2)


def _studio(engine: Engine, viewers: int) -> LiveStudio | None:
    """Live video, where one of the models makes it chunk by chunk."""
    from fewstep.server.studio import LiveStudio

    entry = engine.live_entry
    return None if entry is None else LiveStudio(entry, engine.techniques, engine.live.result, viewers)


def _live(service: Service, studio: LiveStudio) -> APIRouter:
    from fewstep.server.stream import routes

    return routes(studio, authorize=service.door.why_not, metrics=service.metrics.registry)


def _tell_ready(engine: Engine, url: str) -> None:
    note(f"Ready: {', '.join(engine.entries)} at {url}/v1")
    if engine.live_entry is None:
        return
    if error := engine.live.exception():
        note(f"There is no live video of {engine.live_entry.name}: {error}")
    else:
        note(f"Live: {engine.live_entry.name} at {url}")


def _url(server: Any) -> str:
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
