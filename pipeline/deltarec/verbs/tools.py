# SPDX-License-Identifier: Apache-2.0
"""Verbs as tools of an agent: their JSON schemas, and tool calls as command lines.

Nothing is declared twice: what goes in follows from what the verb has declared to its parser, what
comes out from the type of its answer. The keys are those of the Model Context Protocol.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from deltarec.verbs.verb import Parser, Verb, count

VALUES: dict[Any, dict[str, Any]] = {
    None: {"type": "string"},
    Path: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    count: {"type": "integer", "minimum": 1},
}
"""The schema of a value, by what reads it from a command line."""


def tool_name(verb: str) -> str:
    """`text encode` is `text_encode`: tools have no spaces."""
    return verb.replace(" ", "_")


def tool(name: str, verb: Verb) -> dict[str, Any]:
    """A tool as agents are told of it."""
    from pydantic import TypeAdapter

    answer = TypeAdapter(resolve_name(verb.answer)).json_schema()
    return {
        "name": tool_name(name),
        "description": verb.help,
        "inputSchema": input_schema(verb),
        "outputSchema": {"type": "object", **answer},
    }


def input_schema(verb: Verb) -> dict[str, Any]:
    """The JSON schema of a verb's arguments."""
    declared = _declared(verb)
    return {
        "type": "object",
        "properties": {name: _property(action) for name, action in declared.items()},
        "required": [name for name, action in declared.items() if _is_required(action)],
        "additionalProperties": False,
    }


def command(name: str, verb: Verb, arguments: Mapping[str, Any]) -> list[str]:
    """The command line of a tool call, with `--json`.

    Raises:
        ValueError: an argument is unknown, missing or of another type.
    """
    declared = _declared(verb)
    unknown = [key for key in arguments if key not in declared]
    if unknown:
        known = ", ".join(declared)
        raise ValueError(f"{tool_name(name)}: unknown argument '{unknown[0]}': one of {known}")
    options, places = [], []
    for key, action in declared.items():
        value = arguments.get(key)
        if value is None:
            if _is_required(action):
                raise ValueError(f"{tool_name(name)}: the argument '{key}' is missing")
            continue
        schema = _property(action)
        _check(f"{tool_name(name)}: {key}", value, schema)
        values = value if schema["type"] == "array" else [value]
        if not action.option_strings:
            places += map(str, values)
        elif schema["type"] == "boolean":
            options += [action.option_strings[0]] * bool(value)
        elif action.nargs == "+":
            options += [action.option_strings[0], *map(str, values)]
        else:  # with =, a value may begin with a dash
            options += [f"{action.option_strings[0]}={item}" for item in values]
    return [*name.split(), "--json", *options, *places]


def _declared(verb: Verb) -> dict[str, argparse.Action]:
    """What the verb declares, by the name that a tool call has for it."""
    parser = Parser(add_help=False)
    verb.arguments(parser)
    named = {}
    for action in parser.declared:
        name = action.option_strings[0].lstrip("-") if action.option_strings else action.dest
        named[name.replace("-", "_")] = action
    return named


def _is_required(action: argparse.Action) -> bool:
    return action.required and action.nargs != argparse.REMAINDER


def _property(action: argparse.Action) -> dict[str, Any]:
    if action.nargs == 0:
        found: dict[str, Any] = {"type": "boolean"}
    else:
        found = dict(VALUES[action.type])
        if action.choices is not None:
            found["enum"] = list(action.choices)
        if action.nargs in ("+", "*", argparse.REMAINDER) or action.default == []:
            found = {"type": "array", "items": found}
            if action.nargs == "+":
                found["minItems"] = 1
    if action.help:
        found["description"] = f"{action.metavar}: {action.help}" if action.metavar else action.help
    if action.default not in (None, False, []):
        found["default"] = action.default
    return found


def _check(where: str, value: Any, schema: Mapping[str, Any]) -> None:
    """What argparse could not tell from the text of a value: its type.

    Raises:
        ValueError: it is of another type.
    """
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list}
    expected = schema["type"]
    right = isinstance(value, kinds[expected])
    if not right or (isinstance(value, bool) and expected != "boolean"):
        raise ValueError(f"{where}: got {value!r}, expected {expected}")
    if isinstance(value, list):
        for item in value:
            _check(where, item, schema["items"])
