"""A provider to talk to, and the command as a user runs it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

SCRIPT = str(Path(__file__).parent.parent / "stream_demo.py")
LIMIT = 60  # seconds, after which what a test waits for has failed

posix_only = pytest.mark.skipif(os.name != "posix", reason="POSIX's signals and pipes")


class Provider:
    """A server on 127.0.0.1 that speaks OpenAI's streamed chat completions.

    Attributes:
        url: What --base-url takes.
        script: Packets to send, and events to wait for between them.
        cut: Whether the connection is closed where the script ends, in mid-answer.
        status: The HTTP status; other than 200, the error "no quota" quotes the key.
        asked: Set as soon as there was a request for an answer.
        requests: The bodies of the requests for an answer so far.
        authorizations: That header of each request so far.
    """

    def __init__(self) -> None:
        self.url = ""
        self.script: list[bytes | threading.Event] = []
        self.cut = False
        self.status = 200
        self.asked = threading.Event()
        self.requests: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []

    async def list_models(self, request: web.Request) -> web.Response:
        self.authorizations.append(request.headers.get("Authorization"))
        return web.json_response({"data": []})

    async def complete_chat(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(await request.json())
        self.authorizations.append(request.headers.get("Authorization"))
        self.asked.set()
        if self.status != 200:
            body = {"error": {"message": f"{self.authorizations[-1]}: no quota"}}
            return web.json_response(body, status=self.status)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for step in self.script:
            if isinstance(step, bytes):
                await response.write(step)
            elif not await asyncio.to_thread(step.wait, LIMIT):
                return response  # The test fails: it does not get the rest.
        if self.cut and request.transport:
            request.transport.close()
        else:
            await response.write(b"data: [DONE]\n\n")
        return response


@pytest.fixture
def provider() -> Iterator[Provider]:
    provider = Provider()
    app = web.Application()
    app.router.add_get("/v1/models", provider.list_models)
    app.router.add_post("/v1/chat/completions", provider.complete_chat)
    server = TestServer(app)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.start_server(), loop).result(LIMIT)
    provider.url = str(server.make_url("/v1"))
    yield provider
    for step in provider.script:
        if isinstance(step, threading.Event):
            step.set()
    asyncio.run_coroutine_threadsafe(server.close(), loop).result(LIMIT)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(LIMIT)
    loop.close()


@pytest.fixture
def unused_url() -> Iterator[str]:
    """A URL on 127.0.0.1 where nobody listens for as long as the test runs."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def environment(tmp_path: Path, unused_url: str) -> dict[str, str]:
    """None of the developer's variables, but a home and no way to the internet."""
    return dict.fromkeys(("HOME", "USERPROFILE", "APPDATA"), str(tmp_path)) | {
        "SYSTEMROOT": os.environ.get("SYSTEMROOT", ""),  # Windows needs it.
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONIOENCODING": "utf-8",
        "http_proxy": unused_url,
        "https_proxy": unused_url,
        "no_proxy": "127.0.0.1",
    }


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as a terminal's shell sets it: in a background job it is ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


class Process(subprocess.Popen[bytes]):
    """A process that says so when it was ended for taking too long."""

    overdue = ""

    def end(self) -> None:
        self.overdue = f"ended after {LIMIT} seconds"
        self.kill()


@pytest.fixture
def start(
    provider: Provider, environment: dict[str, str]
) -> Iterator[Callable[..., Process]]:
    """Start the command, which asks the provider unless more arguments say otherwise.

    Another script can be started in its place, and either inside of another command,
    with the variables set. It runs no longer than LIMIT.
    """
    started = []

    def start(
        *more: str,
        script: str = SCRIPT,
        inside: Sequence[str] = (),
        stdout: int = subprocess.PIPE,
        **variables: str,
    ) -> Process:
        process = Process(
            [*inside, sys.executable, script, "--base-url", provider.url, *more],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=environment | variables,
        )
        watchdog = threading.Timer(LIMIT, process.end)
        watchdog.start()
        started.append((process, watchdog))
        return process

    yield start
    for process, watchdog in started:
        watchdog.cancel()
        with process:
            process.kill()
