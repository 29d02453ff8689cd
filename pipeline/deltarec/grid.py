# SPDX-License-Identifier: Apache-2.0
"""What a sweep compares: the product of its axes, and named variants beside it.

A variant is a configuration file and overrides, and so could be trained by `deltarec train` alone.
"""

import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltarec.config import in_one_line, parse_override


@dataclass(frozen=True)
class Variant:
    """One configuration among those compared.

    Args:
        label: its name in tables.
        config: its YAML file.
        overrides: of that file, `path.to.key=value`.
        point: of the grid, the chosen text of each axis by the axis' short name; none if it was
            named by hand.
    """

    label: str
    config: Path
    overrides: tuple[str, ...]
    point: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The label, fit for a file system."""
        return re.sub(r"[^\w.=,+-]+", "_", self.label)


def variants(
    config: Path, overrides: Sequence[str], axes: Sequence[str], named: Sequence[str]
) -> list[Variant]:
    """The product of the axes, the last one fastest, then the named variants.

    Args:
        config: the base's YAML file.
        overrides: of every variant.
        axes: `path.to.key=[value, …]`, as they stand on the command line.
        named: `LABEL: FILE.yaml path.to.key=value …`; a file takes the place of the base, and there
            may be neither file nor overrides.

    Raises:
        ValueError: one of them is not of its form, or two variants have one folder.
    """
    found = _product(config, overrides, axes) if axes else []
    found += [_named(config, overrides, text) for text in named]
    if not found:
        raise ValueError("nothing to compare: give --grid path.to.key=[…] or --variant 'LABEL: …'")
    folders: dict[str, Variant] = {}
    for variant in found:
        other = folders.setdefault(variant.folder.lower(), variant)
        if other is not variant:
            raise ValueError(
                f"two variants would share the folder '{variant.folder}': '{other.label}' and "
                f"'{variant.label}'; give them labels by --variant"
            )
        if len(variant.folder) > 200 or set(variant.folder) <= {"."}:
            raise ValueError(
                f"'{variant.folder}' cannot be a folder's name; give the variant another label by "
                "--variant"
            )
    return found


def baselines(found: Sequence[Variant], text: str | None) -> dict[str, str | None]:
    """Whom each variant, by label, is compared with.

    Args:
        found: the variants.
        text: the label of one; or values of axes, `heads=mmoe`, that each point of the grid is
            moved to, and a named variant compared with where that leaves one point only. The first
            variant if not given.

    Raises:
        ValueError: there is no such variant, or no such axis or value.
    """
    labels = [variant.label for variant in found]
    if text is None or text in labels:
        return dict.fromkeys(labels, text or labels[0])
    axes = {name: {v.point[name] for v in found if v.point} for v in found for name in v.point}
    moved = {}
    for word in re.split(r"[\s,]+(?=[\w.]+=)", text.strip()):
        name, _, value = word.partition("=")
        name = name if name in axes else _match(name, list(axes))
        if value not in axes.get(name, ()):
            raise ValueError(
                f"--baseline {text}: '{word}' is no variant; there are {', '.join(labels)}"
            )
        moved[name] = value
    by_point = {tuple(v.point.items()): v.label for v in found if v.point}
    remaining = [v.label for v in found if v.point and v.point.items() >= moved.items()]
    alone = remaining[0] if len(remaining) == 1 else None
    return {
        v.label: by_point[tuple({**v.point, **moved}.items())] if v.point else alone for v in found
    }


def _product(config: Path, overrides: Sequence[str], axes: Sequence[str]) -> list[Variant]:
    parsed: dict[str, list[Any]] = {}
    for text in axes:
        try:
            key, values = parse_override(text)
        except ValueError as error:
            raise ValueError(str(error).replace("--set", "--grid", 1)) from None
        if not isinstance(values, list) or not values:
            raise ValueError(f"--grid {text}: expected path.to.key=[value, value, …]")
        if key in parsed:
            raise ValueError(f"--grid {text}: there is an axis {key} already")
        _refuse_seed(key, f"--grid {text}")
        parsed[key] = values
    short = {key: _short(key, list(parsed)) for key in parsed}
    found = []
    for point in itertools.product(*parsed.values()):
        chosen = dict(zip(parsed, point, strict=True))
        own = [f"{key}={in_one_line(value)}" for key, value in chosen.items()]
        texts = {short[key]: _text(value, parsed[key]) for key, value in chosen.items()}
        label = ",".join(f"{name}={value}" for name, value in texts.items())
        found.append(Variant(label, config, (*overrides, *own), texts))
    return found


def _named(config: Path, overrides: Sequence[str], text: str) -> Variant:
    label, colon, rest = text.partition(":")
    label = label.strip()
    if not colon or not label:
        raise ValueError(f"--variant {text}: expected 'LABEL: path.to.key=value …'")
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise ValueError(f"--variant {text}: {str(error).lower()}") from None
    files = [word for word in words if "=" not in word]
    own = [word for word in words if "=" in word]
    if len(files) > 1:
        raise ValueError(f"--variant {text}: expected one file at most, got {' '.join(files)}")
    for word in own:
        _refuse_seed(parse_override(word)[0], f"--variant {text}")
    return Variant(label, Path(files[0]) if files else config, (*overrides, *own))


def _refuse_seed(key: str, where: str) -> None:
    if key == "train.seed":
        raise ValueError(f"{where}: seeds are not variants; give --seeds N")


def _short(key: str, keys: Sequence[str]) -> str:
    """The fewest last words of a key that tell it from the others; `heads` of model.heads.name."""
    words = [other.removesuffix(".name").split(".") for other in keys]
    own = key.removesuffix(".name").split(".")
    lengths = range(1, len(own) + 1)
    alone = (n for n in lengths if sum(other[-n:] == own[-n:] for other in words) == 1)
    number = next(alone, None)
    return key if number is None else ".".join(own[-number:])


def _match(key: str, names: Sequence[str]) -> str:
    """The short name of an axis that is given by its whole key."""
    stem = key.removesuffix(".name")
    return next((name for name in names if f".{stem}".endswith(f".{name}")), key)


def _text(value: Any, values: Sequence[Any]) -> str:
    """A value in a label: the name alone if it is of a mapping that no other names."""
    names = [other.get("name") for other in values if isinstance(other, dict)]
    if isinstance(value, dict) and names.count(value.get("name")) == 1 and value.get("name"):
        return str(value["name"])
    return value if isinstance(value, str) else in_one_line(value)
