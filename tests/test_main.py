"""What main() and cli() promise, with the client's stream mocked."""

import asyncio
import errno
import gc
import io
import os
import runpy
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import redirect_stdout, suppress
from typing import Any, TextIO
from unittest.mock import MagicMock, create_autospec

import pytest
from conftest import LIMIT, SCRIPT, posix_only
from g4f.client import AsyncClient, ChatCompletionChunk
from g4f.providers.response import ImageResponse, Sources

import stream_demo

HELLO = "Say hello there!"
LOCAL = {"base_url": "http://localhost:11434/v1"}
KEYED = {"provider": "Groq", "api_key": "secret"}
NO_OPTIONS = dict.fromkeys(("provider", "base_url", "api_key"))

SOURCES = Sources([{"url": "https://example.com", "title": "Cats"}])
IMAGE = ImageResponse("https://example.com/1.png", "cat")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """A mock of AsyncClient with the signatures and attributes of the real one."""
    instance = create_autospec(AsyncClient())
    mock: MagicMock = create_autospec(AsyncClient, return_value=instance)
    monkeypatch.setattr(stream_demo, "AsyncClient", mock)
    return mock


@pytest.fixture
def create(client: MagicMock) -> MagicMock:
    """The mock of what opens the stream, which is empty unless a test sets another."""
    mock: MagicMock = client.return_value.chat.completions.create
    mock.return_value = stream()
    return mock


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """A mock for cli() to call."""
    mock: MagicMock = create_autospec(stream_demo.main)
    monkeypatch.setattr(stream_demo, "main", mock)
    return mock


@pytest.fixture
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line without arguments."""
    monkeypatch.setattr(sys, "argv", [SCRIPT])


class Screen(io.TextIOWrapper):
    """A standard output whose str() is what has been written and flushed."""

    def __init__(self) -> None:
        self.flushed = io.BytesIO()
        super().__init__(self.flushed, encoding="utf-8", newline="")

    def __str__(self) -> str:
        return self.flushed.getvalue().decode()


def chunk(content: object = "lost", **fields: object) -> ChatCompletionChunk:
    """Return a chunk as g4f makes it, with some fields replaced."""
    made = ChatCompletionChunk.model_construct(content, None)
    vars(made).update(fields)
    return made


async def stream(*steps: object) -> AsyncIterator[ChatCompletionChunk]:
    """Raise the steps that are exceptions, yield the others as chunks."""
    for step in steps:
        if isinstance(step, BaseException):
            raise step
        yield step if isinstance(step, ChatCompletionChunk) else chunk(step)


def run_main(**options: Any) -> tuple[int, str]:
    """Return the status of main() and what it showed."""
    with redirect_stdout(Screen()) as screen:
        status = asyncio.run(stream_demo.main(**options))
    return status, str(screen)


def final(text: str) -> str:
    """Return the last thing that is shown of any stream."""
    return f"\n\nFinal accumulated text: {text}\n"


@pytest.mark.parametrize(
    ("keywords", "prompt", "model", "client_options"),
    [
        ({}, HELLO, "gpt-4", {}),
        ({"prompt": "Как дела?"}, "Как дела?", "gpt-4", {}),
        ({"model": "gpt-4o"}, HELLO, "gpt-4o", {}),
        (LOCAL, HELLO, "gpt-4", LOCAL | {"provider": "Custom"}),
        (LOCAL | {"provider": ""}, HELLO, "gpt-4", LOCAL | {"provider": "Custom"}),
        ({"base_url": ""}, HELLO, "gpt-4", {"base_url": "", "provider": "Custom"}),
        (LOCAL | KEYED, HELLO, "gpt-4", LOCAL | KEYED),
    ],
)
def test_request(
    client: MagicMock,
    create: MagicMock,
    keywords: dict[str, Any],
    prompt: str,
    model: str,
    client_options: dict[str, str],
) -> None:
    asyncio.run(stream_demo.main(**keywords))
    client.assert_called_once_with(**NO_OPTIONS | client_options)
    create.assert_called_once_with(
        model=model, messages=[{"role": "user", "content": prompt}], stream=True
    )


def test_misspelt_option_sends_nothing(client: MagicMock) -> None:
    misspelt: dict[str, Any] = {"provdier": "Custom"}
    with pytest.raises(TypeError, match="provdier"):
        asyncio.run(stream_demo.main(HELLO, **misspelt))
    client.assert_not_called()


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        pytest.param(["Hello", ", ", "world!"], "Hello, world!", id="several deltas"),
        pytest.param([], "", id="no delta"),
        pytest.param(["Как ", "дела? ", "🙂"], "Как дела? 🙂", id="unicode"),
        pytest.param(["a", chunk(choices=[]), "b"], "ab", id="empty choices"),
        pytest.param(["a", chunk(choices=None), "b"], "ab", id="no choices"),
        pytest.param(["a", chunk(""), "b"], "ab", id="empty content"),
        pytest.param(["a", chunk(None), "b"], "ab", id="no content"),
        pytest.param(["a", SOURCES, "b"], f"a{SOURCES}b", id="sources"),
        pytest.param(["a", IMAGE, "b"], f"a{IMAGE}b", id="image"),
        pytest.param(
            ["\x1b", "]0;title\x07", "\x1b[", "2J"],
            "]0;title[2J",
            id="escape sequences split across deltas",
        ),
        pytest.param(
            list(map(chr, range(0xA1))),
            "\t\n" + "".join(map(chr, range(0x20, 0x7F))) + "\xa0",
            id="every control character",
        ),
    ],
)
def test_output(create: MagicMock, steps: list[object], text: str) -> None:
    create.return_value = stream(*steps)
    assert run_main() == (0, text + final(text))


def test_delta_is_shown_before_the_next_chunk_is_asked_for(create: MagicMock) -> None:
    shown = []

    async def watched() -> AsyncIterator[ChatCompletionChunk]:
        for delta in ("1 ", "2 ", "3"):
            shown.append(str(sys.stdout))
            yield chunk(delta)
        shown.append(str(sys.stdout))

    create.return_value = watched()
    run_main()
    assert shown == ["", "1 ", "1 2 ", "1 2 3"]


@pytest.mark.parametrize("place", ["client", "create"])
def test_failure_before_the_stream(
    client: MagicMock, create: MagicMock, place: str
) -> None:
    failing = {"client": client, "create": create}[place]
    failing.side_effect = ValueError("Provider not found: Nope")
    report = "\nError occurred: Provider not found: Nope\n"
    assert run_main() == (1, report + final(""))


@pytest.mark.parametrize("text", ["", "Hel"])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        pytest.param(RuntimeError("no quota"), "no quota", id="message"),
        pytest.param(
            RuntimeError("all failed:\n\tno quota"),
            "all failed:\n\tno quota",
            id="message of several lines",
        ),
        pytest.param(
            RuntimeError("\x1b[2Jno\x07 quota\x9b\x7f"),
            "[2Jno quota",
            id="message with control characters",
        ),
        pytest.param(
            RuntimeError("\x1b"), "RuntimeError", id="message of a control character"
        ),
        pytest.param(ConnectionError(), "ConnectionError", id="no message"),
        pytest.param(TimeoutError(), "TimeoutError", id="a provider's own timeout"),
    ],
)
def test_failure_in_the_stream(
    create: MagicMock, text: str, error: Exception, message: str
) -> None:
    create.return_value = stream(*text, error)
    report = f"\nError occurred: {message}\n"
    assert run_main() == (1, text + report + final(text))


@pytest.mark.parametrize(
    ("key", "quoted", "shown"),
    [
        ("secret", "Bearer secret", "Bearer ***"),
        ("secret\r", r"'Bearer secret\r'", r"'Bearer ***\r'"),
        ("KEY=\nsecret", r"'Bearer KEY=\nsecret'", r"'Bearer ***\n***'"),
        (" ", "Bearer ", "Bearer "),
    ],
    ids=["a key", "a line end too many", "two lines", "blank"],
)
def test_key_is_not_shown(create: MagicMock, key: str, quoted: str, shown: str) -> None:
    create.return_value = stream("Hel", ValueError(f"no quota: {quoted}"))
    report = f"\nError occurred: no quota: {shown}\n"
    assert run_main(api_key=key) == (1, "Hel" + report + final("Hel"))


def test_failure_is_not_kept_alive_by_a_reference_cycle(create: MagicMock) -> None:
    class Failure(Exception):
        """Found by its type among all objects that are alive."""

    async def fails() -> AsyncIterator[ChatCompletionChunk]:
        yield chunk("Hel")
        raise Failure

    create.return_value = fails()
    gc.disable()
    try:
        run_main()
        assert not any(isinstance(thing, Failure) for thing in gc.get_objects())
    finally:
        gc.enable()


@pytest.mark.parametrize("text", ["", "Hel"])
@pytest.mark.parametrize(
    "swallowed",
    [(), (asyncio.CancelledError,)],
    ids=["cancelled", "ends when cancelled"],
)
def test_silence_ends_the_stream(
    create: MagicMock,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    swallowed: tuple[type[BaseException], ...],
) -> None:
    async def falls_silent() -> AsyncIterator[ChatCompletionChunk]:
        for delta in text:
            yield chunk(delta)
        with suppress(*swallowed):
            await asyncio.sleep(LIMIT)

    monkeypatch.setattr(stream_demo, "CHUNK_TIMEOUT", 0.01)
    create.return_value = falls_silent()
    report = "\nError occurred: no chunk for 0.01 seconds\n"
    assert run_main(api_key="no") == (1, text + report + final(text))


@pytest.mark.parametrize(
    ("pauses", "time_to_show", "shown"),
    [
        ([59.9, 59.9, 59.9], 0, "12" + final("12")),
        ([60, 0, 0], 0, "\nError occurred: no chunk for 60 seconds\n" + final("")),
        ([0, 0, 60], 0, "1\nError occurred: no chunk for 60 seconds\n" + final("1")),
        ([0, 0, 0], 61, "12" + final("12")),
    ],
    ids=["steady", "silent at first", "silent later", "steady, but a slow screen"],
)
def test_silence_is_counted_from_chunk_to_chunk(
    create: MagicMock,
    monkeypatch: pytest.MonkeyPatch,
    pauses: list[float],
    time_to_show: float,
    shown: str,
) -> None:
    # No test waits for a minute: pauses and a slow screen move the event loop's clock.
    now = 0.0

    async def paced() -> AsyncIterator[ChatCompletionChunk]:
        nonlocal now
        for content, pause in zip(["1", None, "2"], pauses, strict=True):
            now += pause
            for _ in range(2):  # A timer that is due by then goes off in between.
                await asyncio.sleep(0)
            yield chunk(content)

    class SlowScreen(Screen):
        def flush(self) -> None:
            nonlocal now
            now += time_to_show
            super().flush()

    async def main_by_that_clock() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
        await stream_demo.main()

    create.return_value = paced()
    with redirect_stdout(SlowScreen()) as screen:
        asyncio.run(main_by_that_clock())
    assert str(screen) == shown


def test_cancellation_comes_out_after_the_text(create: MagicMock) -> None:
    async def cancel_in_mid_answer() -> None:
        waiting = asyncio.Event()

        async def waits() -> AsyncIterator[ChatCompletionChunk]:
            yield chunk("Hel")
            waiting.set()
            await asyncio.sleep(LIMIT)

        create.return_value = waits()
        task = asyncio.create_task(stream_demo.main())
        await asyncio.wait_for(waiting.wait(), LIMIT)
        task.cancel()
        await task

    with redirect_stdout(Screen()) as screen, pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel_in_mid_answer())
    assert str(screen) == "Hel" + final("Hel")


def test_keyboard_interrupt_comes_out_after_the_text(create: MagicMock) -> None:
    create.return_value = stream("Hel", KeyboardInterrupt())
    with redirect_stdout(Screen()) as screen, pytest.raises(KeyboardInterrupt):
        asyncio.run(stream_demo.main())
    assert str(screen) == "Hel" + final("Hel")


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [
        ([], {}),
        (["Как дела?"], {"prompt": "Как дела?"}),
        (["--", "-h?"], {"prompt": "-h?"}),
        (["--model", "gpt-4o"], {"model": "gpt-4o"}),
        (["--base-url", LOCAL["base_url"]], LOCAL),
        (["--base-url", LOCAL["base_url"], "--api-key", ""], LOCAL | {"api_key": ""}),
        (["--provider", "Groq", "--api-key", "secret"], KEYED),
        (
            ["--base-url", LOCAL["base_url"], "--provider", "Groq"],
            LOCAL | {"provider": "Groq"},
        ),
    ],
)
def test_command_line(
    main: MagicMock,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    keywords: dict[str, str],
) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT, *arguments])
    stream_demo.cli()
    defaults = {"prompt": HELLO, "model": "gpt-4", **NO_OPTIONS}
    main.assert_called_once_with(**defaults | keywords)


@pytest.mark.parametrize("key", ["secret", ""])
def test_key_for_nobody_is_wrong_usage(
    main: MagicMock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    key: str,
) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT, "--api-key", key])
    with pytest.raises(SystemExit) as exit_info:
        stream_demo.cli()
    assert exit_info.value.code == 2
    main.assert_not_called()
    message = capsys.readouterr().err
    assert "--api-key needs --provider or --base-url" in message
    assert "secret" not in message


@pytest.mark.usefixtures("no_arguments")
@pytest.mark.parametrize(
    ("step", "status"),
    [("Hello", 0), (RuntimeError("no quota"), 1), (KeyboardInterrupt(), 130)],
    ids=repr,
)
def test_exit_status(create: MagicMock, step: object, status: int) -> None:
    create.return_value = stream(step)
    assert stream_demo.cli() == status


@posix_only
@pytest.mark.usefixtures("no_arguments")
def test_reader_may_go_away(create: MagicMock) -> None:
    create.return_value = stream("Hello")
    reader, writer = os.pipe()
    os.close(reader)
    # Leaving the block flushes, as Python does at exit.
    with open(writer, "w") as stdout, redirect_stdout(stdout):
        assert stream_demo.cli() == 1


@pytest.mark.usefixtures("no_arguments")
def test_bug_is_not_taken_for_the_output(main: MagicMock) -> None:
    main.side_effect = ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        stream_demo.cli()


@pytest.mark.usefixtures("no_arguments")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EINVAL])
def test_output_that_cannot_be_written_is_one_line(
    main: MagicMock, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    main.side_effect = error = OSError(number, os.strerror(number))
    with (
        open(os.devnull, "w") as stdout,
        redirect_stdout(stdout),
        pytest.raises(SystemExit) as exit_info,
    ):
        stream_demo.cli()
    assert exit_info.value.code == 1
    assert capsys.readouterr().err == f"stream_demo.py: error: {error}\n"


@pytest.mark.usefixtures("no_arguments")
@pytest.mark.parametrize(
    ("make_stdout", "text"),
    [
        (lambda: io.TextIOWrapper(io.BytesIO(), encoding="ascii"), r"\u0434\u0430"),
        (io.StringIO, "да"),
    ],
    ids=["ASCII", "an IDE's"],
)
def test_any_stdout_will_do(
    create: MagicMock, make_stdout: Callable[[], TextIO], text: str
) -> None:
    create.return_value = stream("да")
    stdout = make_stdout()
    with redirect_stdout(stdout):
        assert stream_demo.cli() == 0
    stdout.seek(0)
    assert stdout.read() == text + final(text)


def test_runs_as_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT, "--help"])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(SCRIPT, run_name="__main__")
    assert exit_info.value.code == 0
