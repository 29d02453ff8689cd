# SPDX-License-Identifier: Apache-2.0
"""A chat-completion server of this process, which can be told to misbehave."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Response:
    """What the server does with one attempt."""

    content: Any = "an answer"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    """Instead of a completion."""
    seconds: float = 0.0
    """Before it answers."""
    drip: float = 0.0
    """Seconds between two bytes of the body."""
    finish_reason: str = "stop"


Behaviour = Callable[[str, int], Response]
"""From the user's message, and how often it was asked before, what to do."""


class ChatServer:
    """Its counters; `charged` are answers made, by Idempotency-Key: the same key is free."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.attempts: Counter[str] = Counter()
        self.charged: Counter[str] = Counter()
        self.keys: dict[str, str] = {}
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.lock = threading.Lock()
        self.address = ""


@contextmanager
def chat_server(behave: Behaviour) -> Iterator[ChatServer]:
    state = ChatServer(behave)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt, key = body["messages"][-1]["content"], self.headers["Idempotency-Key"]
            with state.lock:
                before = state.attempts[prompt]
                state.attempts[prompt] += 1
                state.bodies.append(body)
                state.headers.append(dict(self.headers))
                state.times.append(time.monotonic())
            response = behave(prompt, before)
            if self.path != "/v1/chat/completions":
                response = Response(status=404, raw=b"no such path")
            time.sleep(response.seconds)
            with state.lock:
                if response.status == 200 and state.keys.get(prompt) != key:
                    state.charged[prompt] += 1
                    state.keys[prompt] = key
            data = response.raw if response.raw is not None else completion(response)
            self.send_response(response.status)
            self.send_header("Content-Length", str(len(data)))
            for name, value in response.headers.items():
                self.send_header(name, value)
            self.end_headers()
            for start in range(len(data)) if response.drip else [None]:
                self.wfile.write(data if start is None else data[start : start + 1])
                self.wfile.flush()
                time.sleep(response.drip)

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:  # the client has given up, or was killed
                self.close_connection = True

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def completion(response: Response) -> bytes:
    message = {"role": "assistant", "content": response.content}
    choice = {"index": 0, "message": message, "finish_reason": response.finish_reason}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return json.dumps({"choices": [choice], "usage": usage}).encode()
