# SPDX-License-Identifier: Apache-2.0
"""Requests to a server, several at a time; answers go into the journal as they come."""

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Self

from deltarec.text.answers import Outcome
from deltarec.text.chat import Chat, NoAnswerError, Reply, Server, ServerError
from deltarec.text.journal import Journal
from deltarec.text.template import Template


class Requests:
    """What a server is asked just now; one answer is for all rows of the same prompt.

    Args:
        server: to be asked.
        journal: of the answers.
        template: that made the prompts.
        outcome: which is told of the answers.

    Raises:
        ServerError: the server refuses everything, or has not answered for too long.
    """

    def __init__(
        self, server: Server, journal: Journal, template: Template, outcome: Outcome
    ) -> None:
        self.server = server
        self.journal = journal
        self.template = template
        self.outcome = outcome
        self._chat = Chat(server)
        self._threads = ThreadPoolExecutor(server.parallel)
        self._waiting: dict[str, list[int]] = {}
        self._running: dict[Future[Reply], tuple[str, dict[str, Any]]] = {}
        self._unanswered = 0

    def is_asked(self, key: str) -> bool:
        """Whether this request is under way."""
        return key in self._waiting

    def ask(self, id: int, key: str, body: dict[str, Any]) -> None:
        """Ask about a row, unless the same is being asked; returns when few enough wait."""
        if key in self._waiting:
            self._waiting[key].append(id)
            return
        self._waiting[key] = [id]
        self._running[self._threads.submit(self._answered, body, key)] = key, body
        while len(self._running) >= 2 * self.server.parallel:
            self._finish_some()

    def finish(self) -> None:
        """Wait for all answers."""
        while self._running:
            self._finish_some()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Start no request any more; answers under way still reach the journal."""
        self._chat.stop()
        self._threads.shutdown(cancel_futures=True)

    def _answered(self, body: dict[str, Any], key: str) -> Reply:
        reply = self._chat.ask(body, key)
        self.journal.append(
            {
                "key": key,
                "model": body["model"],
                "template": self.template.name,
                "template_version": self.template.version,
                "messages": body["messages"],
                "answer": reply.text,
                "problem": reply.problem,
                "usage": reply.usage,
            }
        )
        return reply

    def _finish_some(self) -> None:
        for future in wait(self._running, return_when=FIRST_COMPLETED).done:
            key, body = self._running.pop(future)
            ids = self._waiting.pop(key)
            try:
                reply = future.result()
            except NoAnswerError as error:
                self._without_answer(ids, error)
                continue
            self._unanswered = 0
            self.outcome.counts["requests"] += 1
            self.outcome.counts.update(reply.usage)
            for id in ids:
                self.outcome.take(id, reply.text, reply.problem, body["model"], "asked")

    def _without_answer(self, ids: list[int], error: NoAnswerError) -> None:
        self._unanswered += 1
        for id in ids:
            self.outcome.fail(id, str(error))
        if self._unanswered >= self.server.give_up_after:
            raise ServerError(
                f"{self.server.address}: no answer to {self._unanswered} requests in a row, to the "
                f"last: {error}; the same command goes on"
            ) from None
