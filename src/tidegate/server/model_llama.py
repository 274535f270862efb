"""llama.cpp's server in this process, set as it was measured to behave.

It runs in threads of its own, outside of the interpreter's lock. Nothing can stop it but this process's end.
"""

import asyncio
import importlib
import os
import secrets
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from tidegate.server.model_relay import HOST, Engine, EngineLost

MODEL_NAME = "smollm2-135m-instruct"
CONTEXT_TOKENS = 2048
# A hang-up is noticed, and the other streams go on, between two batches of a prompt. 64 tokens take half a second on
# one thread; whole prompts at once took up to half a minute, and were no faster.
_BATCH_TOKENS = 64
_LOG_NOTHING = -1
_WARM_UP_WITHIN_S = 120.0


class Llama:
    """A running server. Implements `Engine`."""

    def __init__(self, server: Any, port: int, api_key: str) -> None:
        self._server = server
        self.port = port
        self.api_key = api_key

    @classmethod
    def start(cls, weights: Path, slots: int) -> "Llama":
        """Loads the model; returns when the server listens, after half a second. Blocks. Raises `EngineLost`."""
        # Here, because importing it costs 60 ms and 30 MB that nobody else needs, and it may not be installed.
        xllamacpp = importlib.import_module("xllamacpp")
        api_key = secrets.token_urlsafe(32)
        try:
            server = xllamacpp.Server(_parameters(xllamacpp, weights, slots, api_key))
        except (RuntimeError, ValueError) as error:
            raise EngineLost(f"the model could not be loaded: {error}") from error
        port = urlsplit(server.listening_address).port
        if port is None:
            raise EngineLost(f"the model's server listens at {server.listening_address!r}")
        return cls(server, port, api_key)


def silence_native_code() -> None:
    """Sends what native code writes to standard error nowhere; Python's own `sys.stderr` stays.

    llama.cpp prints a grammar that it cannot parse: a caller's text, in lines that are no JSON.
    """
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, 2)
    os.close(nowhere)


async def warm_up(engine: Engine) -> None:
    """Returns when the model has said its first token. Raises `EngineLost`."""
    body = orjson.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1})
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {engine.api_key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    try:
        async with asyncio.timeout(_WARM_UP_WITHIN_S):
            reader, writer = await asyncio.open_connection(HOST, engine.port)
            try:
                writer.write(head.encode() + body)
                status_line = await reader.readline()
                await reader.read()
            finally:
                writer.close()
    except OSError as error:
        raise EngineLost(f"the model did not answer: {error}") from None
    if status_line.split()[1:2] != [b"200"]:
        raise EngineLost(f"the model's first answer was {status_line.decode('ascii', 'replace').strip()!r}")


def _parameters(xllamacpp: Any, weights: Path, slots: int, api_key: str) -> Any:
    wanted = xllamacpp.CommonParams()
    wanted.model.path = str(weights)
    wanted.model_alias = {MODEL_NAME}
    # Two threads fell to 2 to 5 tokens a second beside any other load; one gives 60 to 100.
    wanted.cpuparams.n_threads = 1
    wanted.cpuparams_batch.n_threads = 1
    wanted.n_gpu_layers = 0
    wanted.n_parallel = slots
    wanted.n_ctx = CONTEXT_TOKENS * slots
    wanted.n_batch = _BATCH_TOKENS
    wanted.n_ubatch = _BATCH_TOKENS
    # By default it keeps up to 8 GiB of what it has read.
    wanted.cache_ram_mib = 0
    # A last message of the assistant is one that was said, as at OpenAI, not the beginning of the next.
    wanted.prefill_assistant = False
    wanted.hostnames = [HOST]
    wanted.port = 0
    wanted.api_keys = [api_key]
    wanted.ui = False
    wanted.offline = True
    wanted.endpoint_slots = False
    # Comments that keep a connection alive are the gateway's to send; these would hide a silence from its time-outs.
    wanted.sse_ping_interval = -1
    wanted.verbosity = _LOG_NOTHING
    return wanted
