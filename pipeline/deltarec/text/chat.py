# SPDX-License-Identifier: Apache-2.0
"""A client of servers that speak the common HTTP API of chat completions.

What may pass is tried again with growing pauses: no connection, a time-out, 408, 409, 425, 429 and
5xx. A server's `Retry-After` holds all requests back. A refusal of this one request is its answer
(400, 413, 422, …); a wrong key, address or model ends the job (401, 403, 404, a redirect).

Every attempt of a request carries the same `Idempotency-Key`: a server that knows the header does
not charge twice for an answer that was lost on its way, or with the process that asked.
"""

import json
import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from pydantic import Field

from deltarec.config import Config

PASSING = {408, 409, 425, 429, *range(500, 600)}
FATAL = {401, 403, 404}
LONGEST_PAUSE = 60.0
"""Seconds between two attempts, if the server does not ask for more."""
SHOWN = 300
"""Characters of a server's answer in an error."""


class Server(Config):
    """A chat-completion server, and how it is asked."""

    address: str
    """Up to where `/chat/completions` begins, such as `http://localhost:8000/v1`."""
    model: str
    """As the server calls it."""
    key_file: str | None = None
    """File whose first line is the key; no key is sent if not given."""
    temperature: float = Field(default=0.0, ge=0)
    max_tokens: int = Field(default=512, gt=0)
    """Of an answer; one that needs more is a failure."""
    seed: int | None = None
    """Sent to the server where given."""
    timeout_seconds: float = Field(default=120.0, gt=0)
    """Of one attempt, until the answer is whole."""
    attempts: int = Field(default=6, gt=0)
    """Of one request."""
    backoff_seconds: float = Field(default=1.0, ge=0)
    """The first pause; each next one is twice as long, up to a minute, by a random factor between
    a half and 1."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """Attempts of all requests together; no limit if not given."""
    parallel: int = Field(default=4, gt=0)
    """Requests under way at a time."""
    give_up_after: int = Field(default=20, gt=0)
    """The job ends after so many requests in a row for which no answer or a refusal came."""

    def body(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        """What is sent, and what names the answer in the journal."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        return body if self.seed is None else {**body, "seed": self.seed}

    def key(self) -> str | None:
        """The key.

        Raises:
            ValueError: the file is not there, or is empty.
        """
        if self.key_file is None:
            return None
        path = Path(self.key_file)
        if not path.is_file():
            raise ValueError(f"server.key_file: {path}: there is no such file")
        lines = path.read_text().split()
        if not lines:
            raise ValueError(f"server.key_file: {path} is empty; its first line must be the key")
        return lines[0]


@dataclass(frozen=True)
class Reply:
    """A server's answer that has come whole, whether it is of use or not."""

    text: str | None
    """None if it is malformed."""
    problem: str | None
    """Why it is of no use."""
    usage: dict[str, int]
    """Tokens, as the server counts them."""
    refused: bool = False
    """Whether the server will not answer this request."""


class NoAnswerError(Exception):
    """A request has failed after all attempts."""


class ServerError(ConnectionError):
    """No request can succeed."""


class Chat:
    """Asks a server, from any number of threads.

    Args:
        server: where and how.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self._url = server.address.rstrip("/") + "/chat/completions"
        self._headers = {"Content-Type": "application/json"}
        if (key := server.key()) is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._pace = _Pace(server.requests_per_minute)
        self._sessions = threading.local()
        self._stopped = threading.Event()

    def ask(self, body: dict[str, Any], key: str) -> Reply:
        """Send a request until an answer comes.

        Raises:
            NoAnswerError: none came.
            ServerError: the server refuses all requests.
        """
        problem = ""
        for attempt in range(self.server.attempts):
            if attempt:
                pause = min(self.server.backoff_seconds * 2 ** (attempt - 1), LONGEST_PAUSE)
                self._stopped.wait(pause * random.uniform(0.5, 1))
            self._pace.wait(self._stopped)
            if self._stopped.is_set():
                raise NoAnswerError("the job ended before it was asked")
            try:
                status, retry_after, data = self._post(body, key)
            except (requests.RequestException, TimeoutError) as error:
                problem = _short(str(error) or type(error).__name__)
                continue
            if status == 200:
                return _reply(data)
            problem = f"HTTP {status}: {_short(data.decode(errors='replace'))}"
            if status in FATAL or 300 <= status < 400:
                self.stop()
                raise ServerError(f"{self._url}: {problem}; mend address, model or key_file")
            if status not in PASSING:
                return Reply(None, problem, {}, refused=True)
            self._pace.hold(retry_after)
        raise NoAnswerError(f"after {self.server.attempts} attempts: {problem}")

    def stop(self) -> None:
        """Make no further attempts; those under way end by themselves."""
        self._stopped.set()

    def _post(self, body: dict[str, Any], key: str) -> tuple[int, float, bytes]:
        """Status, seconds to wait, and the answer's bytes of one attempt."""
        if not hasattr(self._sessions, "session"):
            self._sessions.session = requests.Session()
        limit = self.server.timeout_seconds
        deadline = time.monotonic() + limit
        with self._sessions.session.post(
            self._url,
            data=json.dumps(body).encode(),
            headers={**self._headers, "Idempotency-Key": key},
            timeout=limit,
            allow_redirects=False,
            stream=True,
        ) as response:
            data = bytearray()
            # requests' own time-out starts anew with every byte, so each one is looked at
            for part in response.iter_content(1):
                data += part
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the answer was not whole after {limit} s")
            return response.status_code, _seconds(response.headers.get("Retry-After")), bytes(data)


class _Pace:
    """Spaces attempts out evenly, and holds all back while a server asks for it."""

    def __init__(self, per_minute: float | None) -> None:
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, stopped: threading.Event) -> None:
        with self._lock:
            now = time.monotonic()
            mine = max(self._next, now)
            self._next = mine + self._interval
        if mine > now:
            stopped.wait(mine - now)

    def hold(self, seconds: float) -> None:
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


def _reply(data: bytes) -> Reply:
    try:
        found = json.loads(data)
        choice = found["choices"][0]
        text = choice["message"]["content"]
        if not isinstance(text, str):
            raise TypeError("content is no text")
    except (ValueError, LookupError, TypeError):
        shown = _short(data.decode(errors="replace"))
        return Reply(None, f"not a chat completion: {shown}", {})
    usage = found.get("usage")
    counts = {k: n for k, n in usage.items() if isinstance(n, int)} if usage else {}
    if choice.get("finish_reason") == "length":
        return Reply(
            text, "the answer is cut off: raise server.max_tokens, and set ask_again", counts
        )
    return Reply(text, None, counts)


def _seconds(retry_after: str | None) -> float:
    try:
        return min(max(float(retry_after or 0), 0.0), 3600.0)
    except ValueError:  # a date, which servers of this API do not send
        return LONGEST_PAUSE


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
