"""What the command promises, with the real g4f over a real connection."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conftest
import pytest
from conftest import LIMIT, SCRIPT, Process, Provider, posix_only

Start = Callable[..., Process]

# Runs a command at a terminal of its own and hands on what is typed and shown there.
TERMINAL = [
    sys.executable,
    "-c",
    "import os, pty, sys\nsys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))",
]

# Runs a command that can't make a file longer than a number of bytes.
SMALL_DISK = [
    sys.executable,
    "-c",
    "import os, resource, sys\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)\n"
    "os.execv(sys.argv[2], sys.argv[2:])",
]

THOUGHT = b'data: {"choices": [{"delta": {"reasoning_content": "Hm"}}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"total_tokens": 3}}\n\n'
OVERLOADED = b'data: {"error": "overloaded"}\n\n'


def event(delta: str) -> bytes:
    """Return a delta as the server-sent event that brings it."""
    data = json.dumps({"choices": [{"delta": {"content": delta}}]}, ensure_ascii=False)
    return f"data: {data}\n\n".encode()


def read(process: Process) -> bytes:
    """Return what has arrived on standard output, or wait until something has."""
    assert process.stdout
    text = process.stdout.read(1000)
    assert not process.overdue
    return text


def outcome(process: Process) -> tuple[int, str, str]:
    """Return exit status, standard output, standard error."""
    stdout, stderr = process.communicate()
    assert not process.overdue
    newline = os.linesep
    return (
        process.returncode,
        (stdout or b"").decode().replace(newline, "\n"),
        stderr.decode().replace(newline, "\n"),
    )


def assert_failed(process: Process, text: str, message: str) -> None:
    """Check a failure's whole output; message is a pattern, for g4f words it."""
    status, stdout, stderr = outcome(process)
    assert (status, stderr) == (1, "")
    report = f"\nError occurred: {message}\n"
    final = f"\n\nFinal accumulated text: {text}\n"
    assert re.fullmatch(text + report + final, stdout)


def test_answer_is_shown_whole(provider: Provider, start: Start) -> None:
    provider.script = [event("Hello"), event(", "), event("world! 🙂")]
    assert outcome(start()) == (
        0,
        "Hello, world! 🙂\n\nFinal accumulated text: Hello, world! 🙂\n",
        "",
    )


@pytest.mark.parametrize(
    ("more", "model", "prompt"),
    [
        ([], "gpt-4", "Say hello there!"),
        (["--model", "llama3.2", "Как дела?"], "llama3.2", "Как дела?"),
    ],
)
def test_prompt_and_model_reach_the_provider(
    provider: Provider, start: Start, more: list[str], model: str, prompt: str
) -> None:
    assert outcome(start(*more)) == (0, "\n\nFinal accumulated text: \n", "")
    [request] = provider.requests
    assert request["model"] == model
    assert request["messages"] == [{"role": "user", "content": prompt}]
    assert request["stream"] is True


def test_chunks_without_text_show_nothing(provider: Provider, start: Start) -> None:
    provider.script = [THOUGHT, event("Hello"), USAGE]
    assert outcome(start()) == (0, "Hello\n\nFinal accumulated text: Hello\n", "")


@pytest.mark.parametrize(
    ("more", "authorization"),
    [([], None), (["--api-key", "secret"], "Bearer secret")],
    ids=["no key", "key"],
)
def test_only_the_key_that_is_given_reaches_the_provider(
    provider: Provider, start: Start, more: list[str], authorization: str | None
) -> None:
    outcome(start(*more, OPENAI_API_KEY="another", CUSTOM_API_KEY="another"))
    assert provider.authorizations == [authorization] * 2


@pytest.mark.parametrize(
    ("key", "message"),
    [("secret", r".*Bearer \*\*\*: no quota"), ("secret\r", r".*Bearer \*\*\*.*")],
    ids=["refused", "not for a header"],
)
def test_report_hides_the_key(
    provider: Provider, start: Start, key: str, message: str
) -> None:
    provider.status = 401
    assert_failed(start("--api-key", key), "", message)


def test_deltas_arrive_one_by_one(provider: Provider, start: Start) -> None:
    seen = [threading.Event(), threading.Event()]
    provider.script = [event("1 "), seen[0], event("2 "), seen[1], event("3")]
    process = start()
    assert read(process) == b"1 "
    seen[0].set()
    assert read(process) == b"2 "
    seen[1].set()
    assert outcome(process) == (0, "3\n\nFinal accumulated text: 1 2 3\n", "")


def test_character_may_be_cut_between_packets(provider: Provider, start: Start) -> None:
    seen = threading.Event()
    packets = event("1 ") + event("д")
    middle = packets.index("д".encode()) + 1
    provider.script = [packets[:middle], seen, packets[middle:]]
    process = start()
    assert read(process) == b"1 "
    seen.set()
    assert outcome(process) == (0, "д\n\nFinal accumulated text: 1 д\n", "")


@pytest.mark.parametrize(
    ("behaviour", "text", "message"),
    [
        ({"status": 401}, "", ".*401.*no quota"),
        ({"status": 429}, "", ".*429.*no quota"),
        ({"status": 500}, "", ".*500.*no quota"),
        ({"script": [event("Hel"), OVERLOADED]}, "Hel", ".*overloaded"),
        ({"script": [event("Hel")], "cut": True}, "Hel", ".+"),
    ],
    ids=["401", "429", "500", "error in the stream", "connection cut"],
)
def test_failure_is_reported(
    provider: Provider,
    start: Start,
    behaviour: dict[str, Any],
    text: str,
    message: str,
) -> None:
    vars(provider).update(behaviour)
    assert_failed(start(), text, message)


def test_silence_is_reported(provider: Provider, start: Start, tmp_path: Path) -> None:
    source = Path(SCRIPT).read_text(encoding="utf-8")
    impatient = tmp_path / "impatient.py"
    impatient.write_text(source.replace("CHUNK_TIMEOUT = 60", "CHUNK_TIMEOUT = 3"))
    provider.script = [event("Hel"), threading.Event()]
    assert_failed(start(script=str(impatient)), "Hel", "no chunk for 3 seconds")


def test_nobody_listening_is_reported(start: Start, unused_url: str) -> None:
    assert_failed(start("--base-url", f"{unused_url}/v1"), "", ".*127.0.0.1.*")


def test_empty_base_url_is_reported(provider: Provider, start: Start) -> None:
    assert_failed(start("--base-url", ""), "", "Invalid URL.*")


def test_unknown_provider_is_reported(provider: Provider, start: Start) -> None:
    assert_failed(start("--provider", "Nope"), "", ".*not found: Nope")
    assert provider.requests == []


@posix_only
def test_interrupt_shows_the_text_so_far(
    provider: Provider, start: Start, interruptible: None
) -> None:
    provider.script = [event("1 "), threading.Event()]
    process = start()
    assert read(process) == b"1 "
    process.send_signal(signal.SIGINT)
    assert outcome(process) == (130, "\n\nFinal accumulated text: 1 \n", "")


@posix_only
def test_ctrl_c_at_a_terminal_shows_the_text_so_far(
    provider: Provider, start: Start, interruptible: None
) -> None:
    provider.script = [event("1 "), threading.Event()]
    process = start(inside=TERMINAL)
    assert read(process) == b"1 "
    assert process.stdin
    process.stdin.write(b"\x03")
    shown = "^C\r\n\r\nFinal accumulated text: 1 \r\n"
    assert outcome(process) == (130, shown, "")


@posix_only
def test_closed_pipe_is_no_traceback(provider: Provider, start: Start) -> None:
    gone = threading.Event()
    provider.script = [event("1 "), gone, event("2 ")]
    process = start()
    assert read(process) == b"1 "
    assert process.stdout
    process.stdout.close()
    gone.set()
    assert outcome(process) == (1, "", "")


@posix_only
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    ("room", "status", "shown"),
    [("0", 200, ""), ("3", 200, "1 2"), ("0", 500, "")],
    ids=["first delta", "mid-stream", "report of a failure"],
)
def test_file_that_cannot_grow_is_reported(
    provider: Provider,
    start: Start,
    tmp_path: Path,
    room: str,
    status: int,
    shown: str,
    unbuffered: str,
) -> None:
    provider.script = [event("1 "), event("2 "), event("3 ")]
    provider.status = status
    output = tmp_path / "output"
    with output.open("wb") as stdout:
        process = start(
            inside=[*SMALL_DISK, room],
            stdout=stdout.fileno(),
            PYTHONUNBUFFERED=unbuffered,
        )
    message = "stream_demo.py: error: [Errno 27] File too large\n"
    assert outcome(process) == (1, "", message)
    assert output.read_text() == shown


def test_console_may_speak_only_ascii(provider: Provider, start: Start) -> None:
    provider.script = [event("да 🙂")]
    assert outcome(start(PYTHONIOENCODING="ascii")) == (
        0,
        r"\u0434\u0430 \U0001f642"
        "\n\n"
        r"Final accumulated text: \u0434\u0430 \U0001f642"
        "\n",
        "",
    )


def test_help_shows_the_defaults_and_sends_nothing(
    provider: Provider, start: Start
) -> None:
    status, stdout, stderr = outcome(start("--help", COLUMNS="200"))
    assert (status, stderr) == (0, "")
    for line in (
        "Stream a model's answer through g4f.",
        " prompt what to say (default: Say hello there!)",
        " --model MODEL name of the model (default: gpt-4)",
        " --provider PROVIDER name of a g4f provider "
        "(default: g4f's choice; Custom with --base-url)",
        " --base-url BASE_URL an API's URL (default: the provider's own)",
        " --api-key API_KEY key for that provider or API",
    ):
        assert line in re.sub(" +", " ", stdout).splitlines()
    assert provider.requests == []


@pytest.mark.parametrize("more", [["--colour"], ["two", "prompts"], ["--model"]])
def test_wrong_usage_sends_nothing(
    provider: Provider, start: Start, more: list[str]
) -> None:
    status, stdout, stderr = outcome(start(*more))
    assert (status, stdout) == (2, "")
    assert re.fullmatch(r"usage: .*\n.*: error: .*\n", stderr, re.DOTALL)
    assert provider.requests == []


@pytest.fixture
def bare_loop(provider: Provider, tmp_path: Path) -> str:
    """The README's bare loop, as a script that asks the provider."""
    readme = Path(SCRIPT).with_name("README.md").read_text(encoding="utf-8")
    [loop] = re.findall("```python\n(.*?)```", readme, re.DOTALL)
    script = tmp_path / "bare_loop.py"
    options = f'provider="Custom", base_url="{provider.url}"'
    script.write_text(loop.replace("AsyncClient()", f"AsyncClient({options})"))
    return str(script)


@pytest.mark.parametrize(
    ("behaviour", "status", "stdout", "stderr"),
    [
        ({"script": [THOUGHT, event("Hi"), USAGE]}, 0, "(None)+Hi(None)+", ""),
        ({"script": [event("\x1b[2J")]}, 0, "\x1b\\[2JNone", ""),
        ({"status": 429}, 1, "", "Traceback.*no quota\n"),
        ({"script": [event("Hi"), OVERLOADED]}, 1, "Hi", "Traceback.*overloaded\n"),
    ],
    ids=["without text", "control characters", "refused", "failed in mid-answer"],
)
def test_bare_loop_gets_wrong_what_the_readme_says(
    provider: Provider,
    start: Start,
    bare_loop: str,
    behaviour: dict[str, Any],
    status: int,
    stdout: str,
    stderr: str,
) -> None:
    vars(provider).update(behaviour)
    returned, *shown = outcome(start(script=bare_loop))
    assert returned == status
    for text, pattern in zip(shown, (stdout, stderr), strict=True):
        assert re.fullmatch(pattern, text, re.DOTALL)


def test_bare_loop_holds_deltas_back(
    provider: Provider, start: Start, bare_loop: str
) -> None:
    later = threading.Event()
    provider.script = [event("1 "), later, event("2 ")]
    process = start(script=bare_loop)
    assert provider.asked.wait(LIMIT)
    threading.Timer(1, later.set).start()
    assert read(process) == b"1 2 None"


@posix_only
def test_bare_loop_ends_with_a_traceback_after_ctrl_c(
    provider: Provider, start: Start, bare_loop: str, interruptible: None
) -> None:
    provider.script = [event("1 "), threading.Event()]
    process = start(script=bare_loop)
    assert provider.asked.wait(LIMIT)
    process.send_signal(signal.SIGINT)
    assert outcome(process)[2].startswith("Traceback")


def test_process_that_takes_too_long_is_ended_and_says_so(
    provider: Provider, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conftest, "LIMIT", 0.1)
    provider.script = [threading.Event()]
    process = start()
    for wait in (read, outcome):
        with pytest.raises(AssertionError, match="ended after 0.1 seconds"):
            wait(process)


@pytest.fixture
def noisy_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's variable that makes Python write to standard error."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")


@pytest.mark.usefixtures("noisy_variable")
def test_developers_variables_do_not_matter(start: Start) -> None:
    assert outcome(start()) == (0, "\n\nFinal accumulated text: \n", "")


def test_import_does_nothing(environment: dict[str, str]) -> None:
    imported = subprocess.run(
        [sys.executable, "-c", "import stream_demo"],
        cwd=Path(SCRIPT).parent,
        env=environment,
        capture_output=True,
        timeout=LIMIT,
    )
    assert (imported.returncode, imported.stdout, imported.stderr) == (0, b"", b"")
