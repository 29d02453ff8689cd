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
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema


class Config(BaseModel):
    """Base of every configuration type: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            unknown = [key for key in data if key not in cls.model_fields]
            if unknown:
                raise ValueError("; ".join(_unknown(key, cls.model_fields) for key in unknown))
            data = {key: _chosen(cls.model_fields[key], value) for key, value in data.items()}
        return data


class Part(Protocol):
    """What a registry holds: a class with a `Config` whose `name` is its key in the registry."""

    Config: type[Config]


def _chosen(field: FieldInfo, value: Any) -> Any:
    """A section that names no member changes the member that the field has by default."""
    for mark in field.metadata:
        is_section = isinstance(mark, OneOf) and isinstance(value, dict)
        if is_section and mark.key not in value and isinstance(field.default, Config):
            return field.default.model_dump(exclude_unset=True) | value
    return value


Decay = Annotated[float, Field(ge=0, lt=1)]
"""What a moving average keeps of itself at each step."""

CHOICES = ("name", "policy", "kind", "dataset")
"""Keys by which a section may say which member of a registry it is."""


class OneOf:
    """Marks a field as a choice from a registry: `trunk: Annotated[Config, OneOf(TRUNKS)]`."""

    def __init__(self, registry: Mapping[str, type[Any]], key: str = "name") -> None:
        assert key in CHOICES
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
    onto: mappings merge key by key, everything else replaces. A section that chooses another
    member (by one of `CHOICES`) replaces too, for the options were those of the member that has
    gone.

    Raises:
        ValueError: the file or an override cannot be read, or the configuration is not valid; the
            message names the file and every offending key.
    """
    tree = override(_read(Path(path)), overrides)
    try:
        data = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {_one_line(error)}") from error
    return validate(config_type, data, source=str(path))


def override(tree: dict[Any, Any], overrides: Sequence[str]) -> DictConfig:
    """The tree with `path.to.key=value` overrides applied.

    A number in the path is an index into a list; a mapping as value merges with one that is there,
    and null removes one. Choices of a member (`model.heads.name=ple`) come first, the others in
    order: choosing another member empties its section, and the overrides that stand beside the
    choice are for the new one.

    Raises:
        ValueError: an override is not of that form, its value is not YAML, or its path leads
            nowhere.
    """
    changed = OmegaConf.create(tree)
    parsed = [(text, *parse_override(text)) for text in overrides]
    for text, key, value in sorted(parsed, key=lambda item: not _chooses(item[1], item[2])):
        section, _, last = key.rpartition(".")
        if last in CHOICES and section:
            key, value = section, {last: value}
        try:
            if isinstance(there := OmegaConf.select(changed, key), DictConfig):
                around = OmegaConf.select(changed, section) if section else changed
                if value is None and isinstance(around, DictConfig):
                    del around[last]
                    continue
                if isinstance(value, dict):
                    value = _merge(OmegaConf.to_container(there), value)
            OmegaConf.update(changed, key, value, merge=False, force_add=True)
        except (OmegaConfBaseException, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"--set {text}: {_one_line(error)}") from error
    return changed


def parse_override(text: str) -> tuple[str, Any]:
    """Key and value of `path.to.key=value`, whose value is YAML.

    Raises:
        ValueError: it is not of that form, or the value is not YAML.
    """
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError(f"--set {text}: expected path.to.key=value")
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"--set {text}: not a YAML value: {_one_line(error)}") from error
    return key, parsed["value"]  # pyright: ignore


def in_one_line(value: Any) -> str:
    """A plain value as YAML that `parse_override` reads back."""
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, width=math.inf
    )
    return text.removesuffix("...\n").strip()


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
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, width=100)


class _Dumper(yaml.SafeDumper):
    """Writes strings so that OmegaConf, not only a YAML 1.1 reader, takes them as they are."""


_Dumper.add_implicit_resolver(  # such strings are numbers to OmegaConf, so they must be quoted
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
_Dumper.add_representer(  # "${" begins an interpolation
    str,
    lambda dumper, text: dumper.represent_str(re.sub(r"(\\*)\$\{", r"\1\1\\${", text)),
)


def differences(there: Config, here: Config) -> dict[str, tuple[Any, Any]]:
    """By key, what two configurations have in which they differ; None where a key is absent."""
    left, right = (_leaves(config.model_dump(mode="json")) for config in (there, here))
    keys = dict.fromkeys([*left, *right])
    pairs = {key: (left.get(key), right.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def describe(differences: Mapping[str, tuple[Any, Any]]) -> str:
    """The first of some differences."""
    shown = [f"{key} is {a!r} there, {b!r} here" for key, (a, b) in differences.items()]
    return "; ".join([*shown[:3], *["…"] * (len(shown) > 3)])


def _leaves(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _leaves(value, f"{path}.{key}" if path else str(key))
    return found


def fingerprint(config: Config) -> str:
    """SHA-256 of the configuration as `dump` writes it; equal configurations have equal ones."""
    return hashlib.sha256(dump(config).encode()).hexdigest()


def _read(path: Path, derived: tuple[Path, ...] = ()) -> dict[Any, Any]:
    """The file merged onto its base; `derived` are the files that led to it."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such configuration file")
    if path.resolve() in derived:
        raise ValueError(f"{path}: its 'base' leads back to itself")
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {_one_line(error)}") from error
    except OSError:  # OmegaConf's answer to a lone number
        tree = None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected a mapping of sections at the top level")
    base = tree.pop("base", None)
    if base is None:
        return tree
    return _merge(_read(path.parent / str(base), (*derived, path.resolve())), tree)


def _chooses(key: str, value: Any) -> bool:
    """Whether an override says which member some section is."""
    if isinstance(value, dict):
        return any(_chooses(name, inside) for name, inside in value.items())
    return isinstance(value, str) and key.rpartition(".")[2] in CHOICES


def _merge(below: Any, above: Any) -> Any:
    """One tree onto another; null removes what was a mapping."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    for key in CHOICES:
        names = below.get(key), above.get(key)
        if all(isinstance(name, str) for name in names) and names[0] != names[1]:
            return above
    shared = {key: _merge(below[key], above[key]) for key in below if key in above}
    merged = {**below, **above, **shared}
    return {k: v for k, v in merged.items() if v is not None or not isinstance(below.get(k), dict)}


def _one_line(error: Exception) -> str:
    if isinstance(error, OmegaConfBaseException):
        first = str(error).splitlines()[0]
        return f"{error.full_key}: {first}" if error.full_key else first
    return " ".join(str(error).split())


def _unknown(key: Any, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(key), known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(known)}"
    return f"unknown key '{key}': {hint}"


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
        case "model_type" | "model_attributes_type" | "dict_type":
            problem = f"got {item['input']!r}: expected a mapping"
        case _:
            problem = f"got {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"
    return f"{key}: {problem}" if key else problem


def _key_path(location: Sequence[str | int], data: Any, absent: bool) -> str:
    """The key as it stands in the file: pydantic's location also has the names of union members.

    `absent` says that the last part of the location is a key that the file should have.
    """
    path = []
    for depth, part in enumerate(location):
        inside: Any = dict(enumerate(data)) if isinstance(data, list) else data
        if isinstance(inside, Mapping) and part in inside:
            data = inside[part]
        elif not (absent and depth == len(location) - 1):
            continue
        path.append(str(part))
    return ".".join(path)
