# SPDX-License-Identifier: Apache-2.0
"""`deltarec schema` and `deltarec call`: the command as tools of an agent."""

import argparse
import json
import sys
from pkgutil import resolve_name

from deltarec.verbs.verb import Answer, Parser, Verb


def _schema_arguments(parser: Parser) -> None:
    parser.add_argument("verb", nargs="*", default=[], metavar="VERB", help="that one alone")
    parser.add_argument(
        "--configuration",
        action="store_true",
        help="of the verb's YAML file, which its arguments --config and --set are about",
    )


def _schema(options: argparse.Namespace) -> Answer:
    from deltarec.verbs import VERBS
    from deltarec.verbs.tools import tool

    name = " ".join(options.verb)
    chosen = {name: VERBS[name]} if name in VERBS else VERBS
    if name and name not in VERBS:
        raise ValueError(f"schema: no verb '{name}': one of {', '.join(VERBS)}")
    if options.configuration:
        type_of_file = VERBS[name].configuration if name else None
        if type_of_file is None:
            with_file = [other for other, verb in VERBS.items() if verb.configuration]
            raise ValueError(f"--configuration: name one of {', '.join(with_file)}")
        found = resolve_name(type_of_file).model_json_schema()
    else:
        found = {"tools": [tool(verb, of) for verb, of in chosen.items()]}
    return Answer(found, json.dumps(found, indent=2))


def _call_arguments(parser: Parser) -> None:
    parser.add_argument(
        "call",
        metavar="JSON",
        help='{"name": TOOL, "arguments": {…}}, as in `deltarec schema`; - reads it from standard '
        "input",
    )


def _call(options: argparse.Namespace) -> Answer | None:
    from deltarec.cli import parser
    from deltarec.verbs import VERBS
    from deltarec.verbs.tools import command, tool_name

    text = sys.stdin.read() if options.call == "-" else options.call
    try:
        call = json.loads(text)
        name, arguments = call["name"], call.get("arguments", {})
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f'call: expected {{"name": …, "arguments": {{…}}}}, got {text}') from None
    verbs = {tool_name(verb): verb for verb in VERBS}
    if name not in verbs or not isinstance(arguments, dict):
        raise ValueError(f"call: no tool {name!r}: one of {', '.join(verbs)}")
    words = command(verbs[name], VERBS[verbs[name]], arguments)
    chosen = parser().parse_args(words)
    chosen.command_line = words
    return VERBS[chosen.verb_name].run(chosen)


SCHEMA = Verb(
    "Prints the verbs as tools: JSON schemas of their arguments and answers.",
    _schema_arguments,
    _schema,
    "builtins:dict",
)
CALL = Verb("Does what a tool call says.", _call_arguments, _call, "builtins:dict")
