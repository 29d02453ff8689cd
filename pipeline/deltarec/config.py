# SPDX-License-Identifier: Apache-2.0
"""How configuration is declared, loaded and checked.

A part owns its configuration: a `Config` subclass in the part's own file, whose fields carry their
documentation. A choice among parts (a trunk, a transform, a dataset) is a field annotated with
`OneOf(registry)`: the key `name` picks the member, and that member's own `Config` checks the rest.
The whole job is the tree of them (`job.py`).

YAML is read by OmegaConf (duplicate keys are errors, `1e-3` is a number) and checked by pydantic in
strict mode: no unknown key, no silent conversion.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema, core_schema


class Config(BaseModel):
    """Base of every configuration type: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data.keys() - cls.model_fields.keys():
                near = difflib.get_close_matches(str(key), cls.model_fields, n=1)
                hint = f"did you mean '{near[0]}'?" if near else _expected(cls.model_fields)
                raise ValueError(f"unknown key '{key}': {hint}")
        return data


class Part(Protocol):
    """What a registry holds: a class with a `Config` whose `name` is its key in the registry."""

    Config: type[Config]


class OneOf:
    """Marks a field as a choice from a registry: `trunk: Annotated[Config, OneOf(TRUNKS)]`."""

    def __init__(self, registry: Mapping[str, type[Any]], key: str = "name") -> None:
        self.registry = registry
        self.key = key

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        choices = {
            name: handler.generate_schema(_config_type(part))
            for name, part in self.registry.items()
        }
        return core_schema.tagged_union_schema(choices, discriminator=self.key)


def _config_type(part: type[Any]) -> type[Config]:
    return part if issubclass(part, Config) else part.Config


ConfigT = TypeVar("ConfigT", bound=Config)


def load(config_type: type[ConfigT], path: str | Path, overrides: Sequence[str] = ()) -> ConfigT:
    """Read a YAML file, apply `path.to.key=value` overrides, and check the result.

    A top-level key `base` names another YAML file, relative to this one, that this one is merged
    onto: mappings merge key by key, everything else replaces.

    Raises:
        ValueError: the file or an override cannot be read, or the configuration is not valid; the
            message names the file and every offending key.
    """
    tree = _read(Path(path))
    for override in overrides:
        tree = OmegaConf.merge(tree, _override(override))
    try:
        data = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {error}") from error
    return validate(config_type, data, source=str(path))


def validate(config_type: type[ConfigT], data: Any, source: str) -> ConfigT:
    """Check plain data against a configuration type.

    Raises:
        ValueError: one line for each offending key, with the value and what was expected.
    """
    try:
        return config_type.model_validate(data)
    except ValidationError as error:
        lines = [f"{source}: {_describe(item, data)}" for item in error.errors()]
        raise ValueError("\n".join(lines)) from None


def dump(config: Config) -> str:
    """The configuration as YAML that `load` reads back to an equal value."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such configuration file")
    try:
        tree = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not OmegaConf.is_dict(tree):
        raise ValueError(f"{path}: expected a mapping of sections at the top level")
    base = tree.pop("base", None)
    if base is None:
        return tree
    return OmegaConf.merge(_read(path.parent / str(base)), tree)


def _override(text: str) -> Any:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError(f"--set {text}: expected path.to.key=value")
    try:
        return OmegaConf.from_dotlist([text])
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"--set {text}: '{value}' is not a YAML value: {error}") from error


def _expected(names: Any) -> str:
    return "expected one of " + ", ".join(str(name) for name in names)


def _describe(item: Any, data: Any) -> str:
    """One pydantic error as `path.to.key: what is wrong`."""
    key = _key_path(item["loc"], data, absent=item["type"] == "missing")
    context = item.get("ctx", {})
    match item["type"]:
        case "missing":
            problem = "required, but missing"
        case "value_error":
            problem = str(context["error"])
        case "union_tag_invalid":
            problem = f"'{context['tag']}' is not known: expected one of {context['expected_tags']}"
        case "union_tag_not_found":
            problem = f"the key {context['discriminator']} is missing: it chooses which one"
        case _:
            problem = f"got {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"
    return f"{key}: {problem}" if key else problem


def _key_path(location: Sequence[str | int], data: Any, absent: bool) -> str:
    """The key as it stands in the file: pydantic's location also has the names of union members.

    `absent` says that the last part of the location is a key that the file should have.
    """
    path = []
    for depth, part in enumerate(location):
        inside = isinstance(data, Mapping) and part in data
        inside = inside or (isinstance(data, list) and isinstance(part, int) and part < len(data))
        if inside:
            data = data[part]
        elif not (absent and depth == len(location) - 1):
            continue
        path.append(str(part))
    return ".".join(path)
