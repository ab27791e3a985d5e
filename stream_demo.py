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
CHUNK_TIMEOUT = 60  # seconds; by default g4f waits for a silent provider without end

# All but newline and tab: an answer could steer the terminal with them (OWASP LLM05).
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def without_control_characters(content: object) -> str:
    """Return str(content) without the characters that steer a terminal."""
    return CONTROL_CHARACTERS.sub("", str(content))


async def main(
    prompt: str = DEFAULT_PROMPT,
    model: str = DEFAULT_MODEL,
    *,
    provider: str | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
) -> int:
    """Print the answer to a prompt as it arrives, then the whole of it once more.

    Args:
        prompt: What to say to the model.
        model: A model's name, as the provider knows it.
        provider: A g4f provider's name; None means Custom with base_url, else any.
        base_url: URL of an API that is compatible with OpenAI's.
        api_key: Key for that provider or API. With neither, each that is tried gets it.

    Returns:
        0, or 1 if the stream failed, which is reported on standard output.

    Raises:
        OSError: Standard output could not be written.
        asyncio.CancelledError, KeyboardInterrupt: Once the text so far was shown.
    """
    if base_url is not None and not provider:
        provider = "Custom"  # Else g4f would choose, and might ask other servers.
    accumulated_text = failure = ""
    # Counts from here on, before create(). Can't interrupt g4f's blocking requests.
    deadline = asyncio.timeout(CHUNK_TIMEOUT)
    try:
        client = AsyncClient(provider=provider, base_url=base_url, api_key=api_key)
        # Not awaited: create() returns an async iterator, but can go online and fail.
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": prompt}],
            stream=True,
        )
        async with deadline:
            async for chunk in stream:
                # The last chunk has no content; OpenAI's, hidden by g4f, no choices.
                if chunk.choices and chunk.choices[0].delta.content:
                    # Content can be an object, such as g4f's Sources.
                    delta = without_control_characters(chunk.choices[0].delta.content)
                    print(delta, end="", flush=True)
                    accumulated_text += delta
                # After print(), so that a slow screen does not count as silence.
                deadline.reschedule(asyncio.get_running_loop().time() + CHUNK_TIMEOUT)
        if deadline.expired():  # A provider may end normally when cancelled.
            raise TimeoutError
    except Exception as exc:
        if deadline.expired():
            failure = f"no chunk for {CHUNK_TIMEOUT} seconds"
        else:  # Some exceptions have no message, such as ConnectionError().
            failure = without_control_characters(exc) or type(exc).__name__
            for part in (api_key or "").split():  # An error may quote the key escaped.
                failure = failure.replace(part, "***")
    finally:  # Ctrl-C, which is no Exception, comes by here too.
        if failure:
            print(f"\nError occurred: {failure}")
        # Flushed, or a reader that has gone away would be noticed only at exit.
        print(f"\n\nFinal accumulated text: {accumulated_text}", flush=True)
    return 1 if failure else 0


def cli() -> int:
    """Run main() with the command line's arguments and return the exit status."""
    parser = argparse.ArgumentParser(description="Stream a model's answer through g4f.")
    default = "(default: %(default)s)"
    parser.add_argument(
        "prompt", nargs="?", default=DEFAULT_PROMPT, help=f"what to say {default}"
    )
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help=f"name of the model {default}"
    )
    parser.add_argument(
        "--provider",
        help="name of a g4f provider (default: g4f's choice; Custom with --base-url)",
    )
    parser.add_argument("--base-url", help="an API's URL (default: the provider's own)")
    parser.add_argument("--api-key", help="key for that provider or API")
    arguments = parser.parse_args()
    if arguments.api_key is not None and not (arguments.provider or arguments.base_url):
        # g4f would hand the key to each provider that it tries.
        parser.error("--api-key needs --provider or --base-url")

    # A console may lack the answer's characters. An IDE's stdout can't be reconfigured.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return asyncio.run(main(**vars(arguments)))
    except KeyboardInterrupt:
        return 130
    except OSError as exc:  # Of standard output: main() reports all others.
        # Python flushes stdout once more at exit: into nothing, or it would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(exc, BrokenPipeError):
            parser.exit(1, f"{parser.prog}: error: {exc}\n")
        return 1


if __name__ == "__main__":
    sys.exit(cli())
