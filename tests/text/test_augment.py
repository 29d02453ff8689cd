# SPDX-License-Identifier: Apache-2.0
"""`text augment` against a real HTTP server: what it asks, what it pays for, what it survives."""

import json
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from deltarec.cli import main
from deltarec.config import validate
from deltarec.supervision import TRY_AGAIN
from deltarec.text.augment import AugmentJob, augment, write_prompts
from deltarec.text.chat import ServerError
from deltarec.text.journal import Journal
from deltarec.text.made_tables import METADATA
from tests.conftest import FORKS
from tests.text.chat_server import Response, chat_server

ROWS = 12


def write_items(folder: Path) -> Path:
    """Items 0 to 11; 3 has no title, 10 and 11 the same one."""
    titles: list[Any] = [f"film {i}" for i in range(ROWS)]
    titles[3], titles[11] = None, titles[10]
    table = pa.table({"id": pa.array(range(ROWS), pa.uint16()), "title": pa.array(titles)})
    pq.write_table(table, folder / "items.parquet")
    return folder / "items.parquet"


def job(folder: Path, address: str | None = None, **options: Any) -> AugmentJob:
    tree: dict[str, Any] = {
        "rows": {"source": str(write_items(folder)), "key": "id"},
        "template": {"name": "facts", "version": 2, "text": "What is {title}?", "system": "Brief."},
        "output": str(folder / "out"),
        **{key: value for key, value in options.items() if key != "server"},
    }
    if address:
        quick = {"model": "m", "backoff_seconds": 0.01, "timeout_seconds": 5, "parallel": 3}
        tree["server"] = {"address": address, **quick, **options.get("server", {})}
    return validate(AugmentJob, tree, "test")


def values(folder: Path, column: str = "answer") -> dict[int, str | None]:
    table = pq.read_table(folder / "out/features.parquet")
    return dict(zip(table["id"].to_pylist(), table[column].to_pylist(), strict=True))


def failures(folder: Path) -> dict[int, str]:
    report = json.loads((folder / "out/report.json").read_text())
    return {failure["id"]: failure["why"] for failure in report["failures"]}


def film(prompt: str) -> int:
    """The number in `What is film N?`, or -1."""
    return int(prompt.split()[-1][:-1]) if "film" in prompt else -1


def test_all_rows_are_asked_once_and_never_again(tmp_path: Path):
    (tmp_path / "key").write_text("secret\n")
    with chat_server(lambda prompt, _: Response(f"A: {prompt}")) as server:
        asked = job(tmp_path, server.address, server={"key_file": str(tmp_path / "key"), "seed": 5})
        first, second = augment(asked), augment(asked)
    assert first["answered"] == first["asked"] == ROWS and first["requests"] == ROWS - 1
    assert (second["answered"], second["cached"], second["requests"]) == (ROWS, ROWS, 0)
    assert first["prompt_tokens"] == 7 * (ROWS - 1) and second["prompt_tokens"] == 0
    assert set(server.attempts.values()) == {1} and len(server.attempts) == ROWS - 1
    assert values(tmp_path) == {
        i: f"A: What is {'unknown' if i == 3 else f'film {min(i, 10)}'}?" for i in range(ROWS)
    }
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer secret"}
    messages = [{"role": "system", "content": "Brief."}]
    assert all(body["messages"][:1] == messages for body in server.bodies)
    sent = {"model": "m", "temperature": 0.0, "max_tokens": 512, "seed": 5}
    assert all(sent.items() <= body.items() for body in server.bodies)
    made_with = json.loads(pq.read_schema(tmp_path / "out/features.parquet").metadata[METADATA])
    assert made_with["template"]["version"] == 2 and made_with["models"] == {"m": ROWS}


def test_another_version_of_the_template_is_another_request(tmp_path: Path):
    with chat_server(lambda *_: Response()) as server:
        augment(job(tmp_path, server.address))
        text = "What is {title}?"
        again = job(
            tmp_path,
            server.address,
            template={"name": "facts", "version": 3, "text": text, "system": "Brief."},
        )
        assert augment(again)["cached"] == 0
    assert set(server.attempts.values()) == {2}


def test_errors_pass_or_are_named(tmp_path: Path):
    def behave(prompt: str, before: int) -> Response:
        match film(prompt):
            case 0 if before < 2:
                return Response(status=429, headers={"Retry-After": "0.05"})
            case 1 if before < 3:
                return Response(status=503, raw=b"<html>overloaded</html>")
            case 2:
                return Response(status=500, raw=b"boom")
            case 4:
                return Response(status=400, raw=b'{"error": "too long"}')
            case 5:
                return Response(raw=b"<html>a proxy</html>")
            case 6:
                return Response(content=None)
            case 7:
                return Response("half an ans", finish_reason="length")
            case 8:
                return Response("  ")
        return Response()

    with chat_server(behave) as server:
        asked = job(tmp_path, server.address, server={"attempts": 4})
        first, second = augment(asked), augment(asked)
        attempts = {film(prompt): n for prompt, n in server.attempts.items()}
        paid = augment(asked.model_copy(update={"ask_again": True}))
    assert (first["answered"], first["failed"]) == (6, 6) and second["answered"] == 6
    assert attempts == {0: 3, 1: 4, 2: 8, **dict.fromkeys([-1, 4, 5, 6, 7, 8, 9, 10], 1)}
    why = failures(tmp_path)
    assert why[2] == "after 4 attempts: HTTP 500: boom"
    assert why[4] == 'HTTP 400: {"error": "too long"}'
    assert why[5] == "not a chat completion: <html>a proxy</html>"
    assert why[6].startswith("not a chat completion")
    assert "raise server.max_tokens" in why[7] and why[8] == "malformed answer: it is empty"
    assert sorted(why) == [2, 4, 5, 6, 7, 8]
    assert {i for i, value in values(tmp_path).items() if value is None} == set(why)
    assert paid["requests"] == 5  # those of use to nobody, once more; 2 has no answer


def test_only_what_was_cut_off_is_asked_for_again(tmp_path: Path):
    """With a longer answer allowed; as another request, or a server would repeat its answer."""

    def behave(prompt: str, before: int) -> Response:
        return Response(finish_reason="length" if film(prompt) == 7 and not before else "stop")

    with chat_server(behave) as server:
        first = augment(job(tmp_path, server.address))
        longer = job(tmp_path, server.address, server={"max_tokens": 1024})
        second = augment(longer)
        third = augment(longer.model_copy(update={"ask_again": True}))
    assert failures(tmp_path) == {} and first["failed"] == second["failed"] == 1
    assert (second["requests"], third["requests"], third["answered"]) == (0, 1, ROWS)
    assert server.attempts.pop("What is film 7?") == 2 and set(server.attempts.values()) == {1}
    assert server.bodies[-1]["max_tokens"] == 1024 and server.charged["What is film 7?"] == 2


@pytest.mark.parametrize("status", [401, 400])
def test_a_server_that_fails_costs_no_row_that_is_known(tmp_path: Path, status: int):
    """Though the rows that are not known come first."""
    with chat_server(lambda *_: Response()) as server:
        augment(job(tmp_path, server.address))

    def changed(**options: Any) -> AugmentJob:
        found = job(tmp_path, **options)
        titles = [f"new film {i}" if i < 3 else None if i == 3 else f"film {i}" for i in range(11)]
        table = pa.table({"id": pa.array(range(11), pa.uint16()), "title": titles})
        pq.write_table(table, tmp_path / "items.parquet")
        return found

    with chat_server(lambda *_: Response(status=status, raw=b"no")) as server:
        asked = changed(address=server.address, server={"give_up_after": 2, "parallel": 1})
        with pytest.raises(ServerError):
            augment(asked)
    assert {i for i, value in values(tmp_path).items() if value is None} == {0, 1, 2}
    with pytest.raises(ValueError, match="there is no such file"):
        gone = {"key_file": str(tmp_path / "gone")}
        augment(changed(address=server.address, server=gone, ask_again=True))
    assert {i for i, value in values(tmp_path).items() if value is None} == {0, 1, 2}


def test_refusals_are_not_met_again(tmp_path: Path):
    """However many there are in a row, the same command goes on."""
    with chat_server(lambda *_: Response(status=400, raw=b"no")) as server:
        asked = job(tmp_path, server.address, server={"give_up_after": 5, "parallel": 1})
        for _ in range(2):
            with pytest.raises(
                ServerError, match="no answer to 5 requests in a row, to the last: H"
            ):
                augment(asked)
        assert augment(asked)["failed"] == ROWS
    assert set(server.attempts.values()) == {1}
    assert set(failures(tmp_path).values()) == {"HTTP 400: no"}


def test_a_slow_server_is_left_and_asked_again(tmp_path: Path):
    """Once it does not answer, once it answers byte by byte; each is charged once."""

    def behave(prompt: str, before: int) -> Response:
        late = before == 0 and film(prompt) in (0, 1)
        slow = {0: Response(seconds=1.3), 1: Response(drip=0.05)}
        return slow[film(prompt)] if late else Response()

    with chat_server(behave) as server:
        found = augment(job(tmp_path, server.address, server={"timeout_seconds": 1.0}))
    assert found["answered"] == ROWS
    assert all(server.attempts[f"What is film {i}?"] >= 2 for i in (0, 1))
    assert set(server.charged.values()) == {1}


def test_requests_keep_to_the_rate(tmp_path: Path):
    with chat_server(lambda *_: Response()) as server:
        augment(job(tmp_path, server.address, server={"requests_per_minute": 1200}))
    assert server.times[-1] - server.times[0] >= 0.8 * (len(server.times) - 1) * 0.05


@pytest.mark.parametrize("status", [401, 404, 301])
def test_what_no_request_can_help_ends_the_job(tmp_path: Path, status: int):
    told = pytest.raises(ServerError, match=f"HTTP {status}: no; mend address, model or key")
    with chat_server(lambda *_: Response(status=status, raw=b"no")) as server, told:
        augment(job(tmp_path, server.address))
    assert sum(server.attempts.values()) <= 3 and len(failures(tmp_path)) == ROWS


def test_a_server_that_is_gone_ends_the_job(tmp_path: Path):
    with chat_server(lambda *_: Response()) as server:
        pass
    with pytest.raises(ServerError, match="no answer to 2 requests in a row"):
        augment(job(tmp_path, server.address, server={"attempts": 2, "give_up_after": 2}))


def test_killed_at_any_moment_it_goes_on(tmp_path: Path):
    """kill -9 twice, at other places: all rows end answered, and nothing known is asked again."""
    lines: list[int] = []
    with chat_server(lambda prompt, _: Response(f"A: {prompt}", seconds=0.05)) as server:
        asked = job(tmp_path, server.address)
        journal = tmp_path / "out/journal.jsonl"
        for least in (2, 6):
            known = known_prompts(journal)
            before = dict(server.attempts)
            process = FORKS.Process(target=augment, args=(asked,))
            process.start()
            wait_until(lambda least=least: len(known_prompts(journal)) >= least)
            process.kill()
            process.join()
            assert all(server.attempts[prompt] == before[prompt] for prompt in known)
            lines.append(len(known_prompts(journal)))
        with journal.open("ab") as file:
            file.write(b'{"key": "torn')
        known = known_prompts(journal)
        found = augment(asked)
    assert 2 <= lines[0] <= lines[1] < ROWS - 1
    assert found["answered"] == ROWS and found["requests"] == ROWS - 1 - len(known)
    assert set(server.charged.values()) == {1}
    assert values(tmp_path)[10] == "A: What is film 10?"
    assert len(known_prompts(journal)) == ROWS - 1


def run(arguments: list[str]) -> None:
    sys.exit(main(arguments))


def test_told_to_end_it_pays_for_nothing_twice(tmp_path: Path):
    """SIGTERM, and one more: what is under way is waited for and kept, nothing else is begun."""
    with chat_server(lambda prompt, _: Response(f"A: {prompt}", seconds=0.3)) as server:
        asked = job(tmp_path, server.address)
        config, journal = tmp_path / "job.yaml", tmp_path / "out/journal.jsonl"
        config.write_text(yaml.safe_dump(asked.model_dump(mode="json")))
        process = FORKS.Process(target=run, args=(["text", "augment", "--config", str(config)],))
        process.start()
        wait_until(lambda: len(known_prompts(journal)) >= 2 and len(server.attempts) >= 5)
        process.terminate()
        time.sleep(0.1)
        process.terminate()
        process.join()
        assert process.exitcode == TRY_AGAIN
        known = known_prompts(journal)
        assert known == server.attempts.keys() and 5 <= len(known) < ROWS - 1
        assert all(why == "the job ended before it was done" for why in failures(tmp_path).values())
        found = augment(asked)
    assert found["answered"] == ROWS and found["requests"] == ROWS - 1 - len(known)
    assert set(server.attempts.values()) == {1}, "whether or not the server knows the same key"


def known_prompts(journal: Path) -> set[str]:
    lines = journal.read_bytes().split(b"\n")[:-1] if journal.is_file() else []
    return {json.loads(line)["messages"][-1]["content"] for line in lines}


def wait_until(done: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_journal_has_one_writer_and_no_foreign_lines(tmp_path: Path):
    journal = Journal(tmp_path / "j.jsonl")
    journal.append({"key": "a", "answer": "ä"})
    journal.append({"key": "a", "answer": "b\n"})
    with pytest.raises(ValueError, match="another job writes"):
        Journal(tmp_path / "j.jsonl")
    journal.close()
    again = Journal(tmp_path / "j.jsonl")
    assert again["a"]["answer"] == "b\n" and "b" not in again
    again.close()
    (tmp_path / "j.jsonl").write_text('{"key": "a"}\nnonsense\n{"key": "b"}\n')
    with pytest.raises(ValueError, match=r"j.jsonl:2: not a line of a journal"):
        Journal(tmp_path / "j.jsonl")


def test_answers_as_json_become_columns(tmp_path: Path):
    said = {
        0: '{"mood": "dark", "era": 1995}',
        1: '```json\n{"mood": ["dark", "calm"], "era": "90s"}\n```',
        2: '{"mood": "dark"}',
        4: "mood: dark",
        5: "[1]",
    }
    answers = {"kind": "json", "columns": ["mood", "era"]}
    with chat_server(lambda prompt, _: Response(said.get(film(prompt), said[0]))) as server:
        augment(job(tmp_path, server.address, answers=answers))
    mood, era = values(tmp_path, "mood"), values(tmp_path, "era")
    assert (mood[0], era[0], mood[1], era[1]) == ("dark", "1995", "dark, calm", "90s")
    why = failures(tmp_path)
    assert why[2] == "malformed answer: it has no 'era'" and mood[2] is None
    assert "not JSON" in why[4] and "not a JSON object" in why[5]


def test_prompts_go_out_and_answers_come_in_as_jsonl(tmp_path: Path):
    asked = job(tmp_path)
    assert write_prompts(asked, tmp_path / "prompts.jsonl")["prompts"] == ROWS
    lines = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    made = [
        {k: line[k] for k in ("id", "prompt", "template_version")} | {"answer": "x", "model": "far"}
        for line in lines
    ]

    def imported(lines: list[dict[str, Any]]) -> dict[str, Any]:
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
        return augment(job(tmp_path, imports=[str(tmp_path / "a.jsonl")]))

    found = imported(made[:-1])
    assert (found["imported"], found["answered"], found["failed"]) == (ROWS - 1, ROWS - 1, 1)
    assert failures(tmp_path) == {11: "no import has it, and there is no server to ask"}
    for wrong, message in [
        ({"prompt": "another"}, "the prompt of id 0 is not the one that template facts makes"),
        ({"template_version": 1}, "of template version 1, the job's is 2"),
        ({"answer": None}, "a.jsonl:1: 'answer' must be there, of type str"),
        ({"id": 1}, "a.jsonl:2: a second answer for id 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            imported([{**made[0], **wrong}, *made[1:]])


@pytest.mark.parametrize(
    "columns,message",
    [
        ({"title": [1]}, "column 'id' is missing"),
        ({"id": ["a"], "title": ["b"]}, "column 'id' is string; it must be an integer"),
        ({"id": [1], "title": [b"b"]}, "column 'title' is binary"),
        ({"id": [1, 1], "title": ["a", "b"]}, "id 1 is in 2 rows"),
        ({"id": [1, None], "title": ["a", "b"]}, "column 'id' has nulls"),
    ],
)
def test_rows_that_cannot_be(tmp_path: Path, columns: dict[str, list[Any]], message: str):
    asked = job(tmp_path)
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    with pytest.raises(ValueError, match=message):
        augment(asked)


def users(folder: Path, events: list[tuple[int, int, int, int]], **options: Any) -> AugmentJob:
    """A job that asks about users 1 and 2, whose cuts are 100 and 200."""
    names = ("user", "item", "stars", "time")
    table = pa.table(dict(zip(names, map(list, zip(*events, strict=True)), strict=True)))
    pq.write_table(table, folder / "events.parquet")
    people = pa.table({"user": [1, 2], "cut": [100, 200], "name": ["Ann", "Bob"]})
    pq.write_table(people, folder / "users.parquet")
    source = str(folder / "users.parquet")
    history = {
        "source": str(folder / "events.parquet"),
        "user": "user",
        "time": "time",
        "item": "item",
        "items": {"source": str(folder / "items.parquet"), "key": "id"},
        "cuts": {"source": source, "user": "user", "column": "cut"},
        "static": ["name"],
        **options,
    }
    text = {"text": "{name}: {history}", "event": "{title} {stars}", "separator": ", "}
    return job(
        folder,
        rows={"source": source, "key": "user"},
        template={"name": "taste", "version": 1, **text},
        history=history,
    )


def prompts_of(asked: AugmentJob, folder: Path) -> list[str]:
    write_prompts(asked, folder / "p.jsonl")
    return [json.loads(line)["prompt"] for line in (folder / "p.jsonl").read_text().splitlines()]


PAST = [(2, 0, 5, 150), (1, 3, 2, 99), (1, 1, 4, 10), (3, 0, 1, 999), (2, 77, 3, 20)]


def test_a_prompt_has_the_past_in_order(tmp_path: Path):
    found = prompts_of(users(tmp_path, PAST), tmp_path)
    assert found == ["Ann: film 1 4, unknown 2", "Bob: unknown 3, film 0 5"]
    assert prompts_of(users(tmp_path, PAST, most=1), tmp_path)[1] == "Bob: film 0 5"


@pytest.mark.parametrize("moment", [100, 101])
def test_a_future_event_in_a_prompt_is_refused_and_named(tmp_path: Path, moment: int):
    events = [*PAST, (1, 2, 5, moment)]
    with chat_server(lambda *_: Response()) as server:
        options = {"address": server.address, "model": "m"}
        asked = users(tmp_path, events)
        tree = asked.model_dump() | {"server": options}
        told = rf"the event of user 1 at time {moment} \(item 2\) is not before the user's cut, 100"
        with pytest.raises(ValueError, match=told):
            augment(validate(AugmentJob, tree, "test"))
    assert not server.attempts, "nothing may be paid for before"
    dropping = users(tmp_path, events, future="drop")
    assert prompts_of(dropping, tmp_path)[0] == "Ann: film 1 4, unknown 2"
    assert augment(dropping)["events_dropped"] == 1


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ([1], "user 2 has events and no cut"),
        ([1, 2, 1], "cuts.parquet: user 1 is in 2 rows"),
        ([1, 2, None], "cuts.parquet: column 'user' has nulls"),
        ([1.0, 2.0], "cuts.parquet: column 'user' is double; it must be an integer"),
    ],
)
def test_each_user_has_one_cut(tmp_path: Path, of: list[Any], message: str):
    asked = users(tmp_path, PAST)
    cuts = pa.table({"user": of, "cut": [100 * (row + 1) for row in range(len(of))]})
    pq.write_table(cuts, tmp_path / "cuts.parquet")
    tree = asked.model_dump()
    tree["history"]["cuts"]["source"] = str(tmp_path / "cuts.parquet")
    with pytest.raises(ValueError, match=message):
        augment(validate(AugmentJob, tree, "test"))


def with_rows(asked: AugmentJob, folder: Path, text: str, **columns: list[Any]) -> dict[str, Any]:
    """The job with other columns of its users, and another template."""
    tree = asked.model_dump()
    people = pq.read_table(folder / "users.parquet").to_pydict() | columns
    pq.write_table(pa.table(people), folder / "people.parquet")
    tree["rows"]["source"] = str(folder / "people.parquet")
    tree["template"]["text"] = text
    return tree


def test_what_events_may_have_made_of_a_users_row_is_no_way_round(tmp_path: Path):
    """Aggregates and lists over all time: declared, or held against the cut."""
    text = "{name} liked {liked}: {history}"
    liked = [["film 7"], ["film 8"]]
    tree = with_rows(users(tmp_path, PAST), tmp_path, text, liked=liked)
    told = "the rows' column 'liked' may be made of events after the cut; name it in history.static"
    with pytest.raises(ValueError, match=told):
        validate(AugmentJob, tree, "test")
    tree["history"]["static"] = ["name", "liked"]
    found = prompts_of(validate(AugmentJob, tree, "test"), tmp_path)
    assert found[0] == "Ann liked film 7: film 1 4, unknown 2"
    for until, message in (
        (
            [99, 200],
            "row of user 2 knows events up to until 200, .* not before the user's cut, 200",
        ),
        ([100, None], "row of user 1 knows events up to until 100"),
        ([9.0, 9.0], "'until' is double, and .*'cut' is int64; both must be of one type"),
        ([99, None], None),
    ):
        asked = users(tmp_path, PAST, static=[], rows_until="until", future="drop")
        tree = with_rows(asked, tmp_path, text, liked=liked, until=until)
        asked = validate(AugmentJob, tree, "test")
        if message is None:
            assert len(prompts_of(asked, tmp_path)) == 2
        else:
            with pytest.raises(ValueError, match=message):
                prompts_of(asked, tmp_path)


NOON = datetime(2020, 1, 2, 12)


@pytest.mark.parametrize(
    ("times", "cut", "message"),
    [
        ([99.5, 200.0], pa.int64(), "'time' is double, and .*'cut' is int64; both must be of one"),
        (["10", "9"], pa.int64(), "'time' is string, and .*both must be of one type"),
        (
            [NOON.date()] * 2,
            pa.timestamp("us"),
            r"'time' is date32\[day\], and .* is timestamp\[us\]",
        ),
        ([NOON, NOON], pa.timestamp("us"), None),
        ([NOON, datetime(2020, 1, 2, 13)], pa.timestamp("us"), "2020-01-02T13.*is not before"),
        ([99, None], pa.int64(), "the event of user 1 at time nan .*is not before the user's cut"),
    ],
)
def test_times_that_cannot_be_held_against_the_cut(
    tmp_path: Path, times: list[Any], cut: pa.DataType, message: str | None
):
    """A day, a string or a rounded number may seem to be before a cut that it is after."""
    tree = users(tmp_path, PAST).model_dump()
    events = {"user": [1, 1], "item": [1, 2], "stars": [5, 5], "time": times}
    pq.write_table(pa.table(events), tmp_path / "events.parquet")
    moment = datetime(2020, 1, 2, 13) if pa.types.is_timestamp(cut) else 100
    cuts = pa.table({"user": [1, 2], "cut": pa.array([moment] * 2, cut)})
    pq.write_table(cuts, tmp_path / "cuts.parquet")
    tree["history"]["cuts"]["source"] = str(tmp_path / "cuts.parquet")
    asked = validate(AugmentJob, tree, "test")
    if message is None:
        assert len(prompts_of(asked, tmp_path)) == 2
        return
    with pytest.raises(ValueError, match=message):
        prompts_of(asked, tmp_path)


def test_events_without_a_time_are_refused(tmp_path: Path):
    """Also where only one of several files has none."""
    asked = users(tmp_path, PAST)
    (tmp_path / "events").mkdir()
    events = pq.read_table(tmp_path / "events.parquet")
    pq.write_table(events, tmp_path / "events/0.parquet")
    pq.write_table(events.drop_columns("time"), tmp_path / "events/1.parquet")
    tree = asked.model_dump()
    tree["history"]["source"] = str(tmp_path / "events")
    with pytest.raises(ValueError, match=r"1.parquet: column 'time' is missing"):
        prompts_of(validate(AugmentJob, tree, "test"), tmp_path)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with chat_server(lambda *_: Response()) as server:
        asked = job(tmp_path, server.address)
        config = tmp_path / "job.yaml"
        config.write_text(yaml.safe_dump(asked.model_dump(mode="json")))
        arguments = ["text", "augment", "--config", str(config), "--json"]
        assert main([*arguments, "--set", "server.parallel=1"]) == 0
        assert json.loads(capsys.readouterr().out)["answered"] == ROWS
        assert main([*arguments, "--prompts", str(tmp_path / "p.jsonl")]) == 0
        assert json.loads(capsys.readouterr().out)["prompts"] == ROWS
    assert main([*arguments, "--set", "server.timeout=1"]) == 2
    alone = ["--set", "template.version=9", "--set", "server.attempts=1"]
    assert main([*arguments, *alone, "--set", "server.give_up_after=3"]) == 1
    assert "no answer to 3 requests in a row" in capsys.readouterr().err
