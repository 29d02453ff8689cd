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
        self._answered: set[str] = set()
        self._failed_in_a_row = 0

    def ask(self, id: int, key: str, body: dict[str, Any]) -> None:
        """Ask about a row, unless the same is or was asked; returns when few enough wait.

        Args:
            id: of the row.
            key: of the request in the journal.
            body: what is sent.
        """
        if key in self._answered:
            line = self.journal[key]
            self.outcome.take(id, line["answer"], line["problem"], line["model"], "asked")
            return
        if key in self._waiting:
            self._waiting[key].append(id)
            return
        self._waiting[key] = [id]
        self._running[self._threads.submit(self._fetch, body, key)] = key, body
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

    def _fetch(self, body: dict[str, Any], key: str) -> Reply:
        # Another time than the last is another request: a server must not repeat its answer.
        reply = self._chat.ask(body, f"{key}-{self.journal.count(key)}")
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
                for id in ids:
                    self.outcome.fail(id, str(error))
                self._count_failure(str(error))
                continue
            self._answered.add(key)
            self.outcome.counts["requests"] += 1
            self.outcome.counts.update(reply.usage)
            for id in ids:
                self.outcome.take(id, reply.text, reply.problem, body["model"], "asked")
            if reply.refused:
                self._count_failure(str(reply.problem))
            else:
                self._failed_in_a_row = 0

    def _count_failure(self, problem: str) -> None:
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= self.server.give_up_after:
            raise ServerError(
                f"{self.server.address}: no answer to {self._failed_in_a_row} requests in a row, "
                f"to the last: {problem}; the same command goes on"
            ) from None
