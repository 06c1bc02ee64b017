"""How are the book's own YAML files read: safely, within a size, and without silent repeats?"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from inferlab.errors import UserError
from inferlab.paths import shown_path

MAX_YAML_BYTES = 2**20

ModelT = TypeVar("ModelT", bound=BaseModel)


class DataError(UserError):
    """A file of the book's own data that breaks its format."""


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader without aliases (they can grow without bound) and without repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None, None, "aliases are not allowed", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} appears twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_yaml(path: Path, model: type[ModelT]) -> ModelT:
    """The file at `path` as `model`; DataError names the file, the place and what is wrong."""
    name = shown_path(path)
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise DataError(f"{name}: larger than {MAX_YAML_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{name}: no such file") from None
    except UnicodeDecodeError:
        raise DataError(f"{name}: not UTF-8 text") from None
    try:
        value = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a subclass of SafeLoader
    except (yaml.YAMLError, RecursionError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise DataError(f"{name}{line}: {getattr(error, 'problem', None) or error}") from None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise DataError(f"{name}: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """The first finding of a pydantic error as one line: place, what is wrong, how many more."""
    findings = error.errors(include_url=False, include_context=False)
    first = findings[0]
    place = ".".join(str(part) for part in first["loc"]) or "top level"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key"
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    return ascii(place)[1:-1][:120] + f": {' '.join(message.split())[:300]}{more}"
