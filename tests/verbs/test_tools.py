# SPDX-License-Identifier: Apache-2.0
"""Verbs as tools: schemas of what goes in and out, and tool calls as command lines."""

import json
from pkgutil import resolve_name
from typing import Any

import pytest
from pydantic import TypeAdapter

from deltarec.cli import main, parser
from deltarec.verbs import VERBS
from deltarec.verbs.tools import command, input_schema, tool_name

EXAMPLES: dict[str, Any] = {
    "string": "a=-1",
    "integer": 3,
    "number": 2.5,
    "boolean": True,
}


def example(schema: dict[str, Any]) -> Any:
    if "enum" in schema:
        return schema["enum"][-1]
    if schema["type"] == "array":
        return [example(schema["items"]), example(schema["items"])]
    return EXAMPLES[schema["type"]]


@pytest.mark.parametrize("name", VERBS)
def test_a_call_is_the_command_line_that_says_the_same(name: str):
    """All arguments at once, and those alone that are required."""
    schema = input_schema(VERBS[name])
    whole = {key: example(value) for key, value in schema["properties"].items()}
    for arguments in (whole, {key: whole[key] for key in schema["required"]}):
        words = command(name, VERBS[name], arguments)
        options = parser().parse_args(words)
        assert options.json and options.verb_name == name
        found = [str(value) for value in vars(options).values()]
        for value in arguments.values():
            assert str(value) in found, f"{words}: {value} is not among {found}"


def test_the_listing_has_every_verb(capsys: pytest.CaptureFixture[str]):
    assert main(["schema", "--json"]) == 0
    tools = json.loads(capsys.readouterr().out)["tools"]
    assert [tool["name"] for tool in tools] == [tool_name(name) for name in VERBS]
    for tool in tools:
        assert tool["description"] and tool["inputSchema"]["type"] == "object"
        assert tool["outputSchema"]["type"] == "object"
    by_name = {tool["name"]: tool for tool in tools}
    assert by_name["train"]["inputSchema"]["required"] == ["config"]
    nproc = by_name["train"]["inputSchema"]["properties"]["nproc"]
    assert nproc == {
        **{"type": "integer", "minimum": 1},
        "description": "number of processes on this machine",
    }
    split = by_name["evaluate"]["inputSchema"]["properties"]["split"]
    assert split == {"type": "string", "enum": ["train", "valid", "test"], "default": "test"}
    assert set(by_name["predict"]["outputSchema"]["required"]) >= {"rows", "output", "step"}

    assert main(["schema", "text", "encode"]) == 0
    [only] = json.loads(capsys.readouterr().out)["tools"]
    assert only == by_name["text_encode"]


def test_configurations_have_schemas(capsys: pytest.CaptureFixture[str]):
    assert main(["schema", "--json", "--configuration", "train"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"data", "features", "tasks", "model"} <= schema["properties"].keys()
    assert main(["schema", "--configuration", "doctor"]) == 2
    assert "--configuration: name one of plan, train, sweep" in capsys.readouterr().err


def test_an_answer_is_what_the_schema_says(capsys: pytest.CaptureFixture[str]):
    assert main(["call", '{"name": "doctor"}']) in (0, 1)
    answer = capsys.readouterr().out
    TypeAdapter(resolve_name(VERBS["doctor"].answer)).validate_json(answer, strict=True)
    assert json.loads(answer).keys() <= resolve_name(VERBS["doctor"].answer).__annotations__.keys()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("{", 'call: expected {"name": …, "arguments": {…}}, got {'),
        ("[]", 'call: expected {"name": …, "arguments": {…}}, got []'),
        ('{"name": "fly"}', "call: no tool 'fly': one of doctor, prepare, plan"),
        ('{"name": "train"}', "train: the argument 'config' is missing"),
        ('{"name": "train", "arguments": {"config": 3}}', "train: config: got 3, expected string"),
        (
            '{"name": "train", "arguments": {"config": "x", "nproc": true}}',
            "train: nproc: got True, expected integer",
        ),
        (
            '{"name": "train", "arguments": {"config": "x", "set": [1]}}',
            "train: set: got 1, expected string",
        ),
        (
            '{"name": "train", "arguments": {"confg": "x"}}',
            "train: unknown argument 'confg': one of config, set, run_dir",
        ),
        ('{"name": "train", "arguments": {"config": "nowhere.yaml"}}', "nowhere.yaml: there is no"),
        (
            '{"name": "train", "arguments": {"config": "x", "nproc": 0}}',
            "argument --nproc: expected a number from 1 on, got '0'",
        ),
    ],
)
def test_a_wrong_call_is_answered(call: str, message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["call", call]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["exit_code"] == 2 and error["kind"] in ("input", "usage")
    assert error["messages"][0].startswith(message)
