# SPDX-License-Identifier: Apache-2.0
"""Writes docs/configuration.md from the configuration types; with --check, only compares."""

import argparse
import json
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from deltarec.config import Config, OneOf
from deltarec.job import Job
from deltarec.text.augment import AugmentJob
from deltarec.text.encode import EncodeJob
from deltarec.text.score import ScoreJob
from deltarec.text.tokenise import TokeniseJob

TEXT_JOBS: dict[str, type[Config]] = {
    "text augment": AugmentJob,
    "text encode": EncodeJob,
    "text tokenise": TokeniseJob,
    "text score": ScoreJob,
}
TARGET = Path(__file__).with_name("configuration.md")
INTRODUCTION = """\
# Configuration

One YAML file is one job. `base: FILE` at its top merges it onto another file; `--set
path.to.key=value` overrides single keys. Unknown keys, wrong types and impossible combinations stop
the job before it starts. This page is generated from the types: `python
docs/generate_configuration.py`.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    text = render()
    if not parser.parse_args().check:
        TARGET.write_text(text)
        return 0
    if TARGET.is_file() and TARGET.read_text() == text:
        return 0
    print(f"{TARGET} is out of date: run python docs/generate_configuration.py", file=sys.stderr)
    return 1


def render() -> str:
    parts = [INTRODUCTION]
    for key, field in Job.model_fields.items():
        parts.append(f"## {key}\n\n{_sentence(field.description)}\n")
        _describe_field(key, field, parts, seen=set())
    for verb, job in TEXT_JOBS.items():
        parts.append(f"## deltarec {verb}\n")
        _describe_type(verb, job, parts, seen=set())
    return "\n".join(parts)


def _describe_field(path: str, field: FieldInfo, parts: list[str], seen: set[Any]) -> None:
    """Append the tables of every type that a field leads to."""
    for choice in [item for item in field.metadata if isinstance(item, OneOf)]:
        _describe_choice(path, choice, parts, seen)
    for inner, suffix in _inner_types(field.annotation):
        if get_origin(inner) is Annotated:
            for choice in get_args(inner)[1:]:
                if isinstance(choice, OneOf):
                    _describe_choice(path + suffix, choice, parts, seen)
        elif _has_fields(inner) and not any(isinstance(item, OneOf) for item in field.metadata):
            _describe_type(path + suffix, inner, parts, seen)


def _describe_choice(path: str, choice: OneOf, parts: list[str], seen: set[Any]) -> None:
    for name, member in choice.registry.items():
        config = member if issubclass(member, Config) else member.Config
        _describe_type(f"{path} ({choice.key}: {name})", config, parts, seen)


def _describe_type(path: str, config: type[Config], parts: list[str], seen: set[Any]) -> None:
    parts.append(f"### {path}\n\n{_sentence(config.__doc__)}\n")
    rows = [
        f"| `{key}` | {_type_text(field)} | {_default_text(field)} "
        f"| {_sentence(field.description)} |"
        for key, field in config.model_fields.items()
        if not _is_tag(field)
    ]
    if rows:
        parts.append("\n".join(["| key | type | default | |", "|---|---|---|---|", *rows]) + "\n")
    if config in seen:
        return
    seen.add(config)
    root = path.split(" (")[0]
    for key, field in config.model_fields.items():
        _describe_field(f"{root}.{key}", field, parts, seen)


def _is_tag(field: FieldInfo) -> bool:
    """Whether a field is the literal that chooses its own type."""
    is_literal = get_origin(field.annotation) is Literal
    return is_literal and len(get_args(field.annotation)) == 1


def _inner_types(annotation: Any) -> list[tuple[Any, str]]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return [(annotation, "")]
    if origin is dict:
        return [(arguments[1], ".NAME")]
    if origin is list:
        return [(arguments[0], "[]")]
    if origin in (Union, types.UnionType):
        return [pair for argument in arguments for pair in _inner_types(argument)]
    return [(annotation, "")]


def _has_fields(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Config)


def _type_text(field: FieldInfo) -> str:
    for item in field.metadata:
        if isinstance(item, OneOf):
            return "one of " + ", ".join(f"`{name}`" for name in item.registry)
    return _plain(field.annotation)


def _plain(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        choice = next((item for item in arguments[1:] if isinstance(item, OneOf)), None)
        names = ", ".join(f"`{name}`" for name in choice.registry) if choice else ""
        return f"one of {names}" if choice else _plain(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_plain(a) for a in arguments if a is not type(None))
    if origin is list:
        return f"list of {_plain(arguments[0])}"
    if origin is dict:
        return f"mapping to {_plain(arguments[1])}"
    names = {str: "text", int: "integer", float: "number", bool: "true or false"}
    return names.get(annotation, "section")


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.default
    if default is None or default is PydanticUndefined:
        return ""
    if isinstance(default, Config):
        name = getattr(default, "name", None)
        return f"`{name}`" if name else "its defaults"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default}`" if str(default).isprintable() else f"`{json.dumps(default)}`"


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())


if __name__ == "__main__":
    sys.exit(main())
