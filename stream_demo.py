"""Stream an answer from GPT-4, delta by delta, with g4f's AsyncClient."""

import argparse
import asyncio
import io
import os
import re
import sys

from g4f.client import AsyncClient

DEFAULT_PROMPT = "Say hello there!"
DEFAULT_MODEL = "gpt-4"
CHUNK_TIMEOUT = 60  # seconds; g4f itself waits for a silent provider without end

# All but newline and tab: an answer could steer the terminal with them (OWASP LLM05).
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def without_control_characters(content: object) -> str:
    """Return str(content) without the characters that steer a terminal."""
    return CONTROL_CHARACTERS.sub("", str(content))


async def main(
    prompt: str = DEFAULT_PROMPT, model: str = DEFAULT_MODEL, **client_options: object
) -> int:
    """Print the answer to a prompt as it arrives, then the whole of it once more.

    Args:
        prompt: What to say to the model.
        model: A model's name, as the provider knows it.
        **client_options: Options of AsyncClient, such as provider or base_url.

    Returns:
        0, or 1 if the stream failed, which is reported on standard output.

    Raises:
        asyncio.CancelledError, KeyboardInterrupt: After the text so far was shown.
    """
    accumulated_text = ""
    error: Exception | None = None
    loop = asyncio.get_running_loop()
    deadline = asyncio.timeout(CHUNK_TIMEOUT)
    try:
        client = AsyncClient(**client_options)
        # Not awaited: create() returns an async iterator. It can go online, and fail.
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": prompt}],
            stream=True,
        )
        async with deadline:
            async for chunk in stream:
                # Not every chunk carries text: the last one's content is None.
                if chunk.choices and chunk.choices[0].delta.content:
                    # Content can be an object, such as g4f's Sources.
                    delta = without_control_characters(chunk.choices[0].delta.content)
                    print(delta, end="", flush=True)
                    accumulated_text += delta
                # Last, for the time that a slow screen takes is not silence.
                deadline.reschedule(loop.time() + CHUNK_TIMEOUT)
    except Exception as exc:
        error = exc
    finally:
        # Ctrl-C, which is no Exception, comes by here too.
        if deadline.expired():
            error = TimeoutError(f"no chunk for {CHUNK_TIMEOUT} seconds")
        if error is not None:
            # Some exceptions have no message, such as ConnectionError().
            message = without_control_characters(error) or type(error).__name__
            print(f"\nError occurred: {message}")
        # Flushed, or a reader that has gone away would be noticed only at exit.
        print(f"\n\nFinal accumulated text: {accumulated_text}", flush=True)
    return 0 if error is None else 1


def cli() -> int:
    """Run main() with the command line's arguments and return the exit status."""
    parser = argparse.ArgumentParser(
        description="Stream an answer from a model through g4f.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "prompt",
        nargs="?",
        default=DEFAULT_PROMPT,
        metavar="PROMPT",
        help="what to say",
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="name of the model")
    # Options that are not given are left out, so that AsyncClient's defaults hold.
    parser.add_argument(
        "--provider",
        default=argparse.SUPPRESS,
        metavar="NAME",
        help="name of a g4f provider (default: g4f's choice)",
    )
    parser.add_argument(
        "--base-url",
        default=argparse.SUPPRESS,
        metavar="URL",
        help="URL of an API, for --provider Custom (default: the provider's own)",
    )
    arguments = vars(parser.parse_args())

    # A console may lack the answer's characters. An IDE's stdout cannot be told so.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return asyncio.run(main(**arguments))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Python flushes stdout once more when it exits, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(cli())
