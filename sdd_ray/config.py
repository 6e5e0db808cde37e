"""Configuration: a YAML file plus dotted overrides, checked into a frozen tree of `settings`.

Order of precedence: defaults, file, overrides. All errors are reported at once, each with its
dotted key and, for a misspelt key, the nearest right one. Nothing here imports Ray or torch.
"""

import dataclasses
import difflib
import hashlib
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from sdd_ray.errors import ConfigError, SddError

Tree = TypeVar("Tree")

EXECUTION_KEYS = frozenset({"output", "ray", "resources", "max_reject_share"})
"""Top-level keys that say where and how a command runs, not what it computes. (One exception: a
training run may go on with another number of workers, which then share its batches differently.)"""


class _Loader(yaml.SafeLoader):
    """Safe YAML that also reads ``1e-4`` as a number (YAML 1.2) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is not text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def load_config(schema: type[Tree], file: str | Path | None, overrides: Sequence[str] = ()) -> Tree:
    """Return the checked configuration tree of a command.

    Args:
        schema: The root class in `sdd_ray.settings`.
        file: YAML file, or None for the defaults alone.
        overrides: ``dotted.key=value`` strings; values are read as YAML.

    Raises:
        ConfigError: The file cannot be read, or any key or value is wrong; the message has one line
            for each mistake.
    """
    tree = _read_yaml(file) if file is not None else {}
    mistakes = [m for text in overrides if (m := _apply_override(tree, text))]
    return load_tree(schema, tree, mistakes)


def load_tree(schema: type[Tree], tree: Mapping[str, Any], mistakes: Sequence[str] = ()) -> Tree:
    """Return a tree of plain data as a checked configuration tree.

    Args:
        schema: The root class in `sdd_ray.settings`.
        tree: Plain data.
        mistakes: What is known to be wrong already; reported together with the rest.

    Raises:
        ConfigError: Any key or value is wrong; the message has one line for each mistake.
    """
    found = list(mistakes)
    config: Tree | None = None
    try:
        # By way of JSON, so that what a manifest records reads back to the same tree.
        text = json.dumps(tree, allow_nan=False)
        config = TypeAdapter(schema).validate_json(text, strict=True)
    except ValidationError as error:
        found += [_describe(schema, item) for item in _own_mistakes(error)]
    except (TypeError, ValueError) as error:
        found.append(f"not plain data ({error}); quote dates and other text")
    if found or config is None:
        raise ConfigError("\n".join(["wrong configuration", *("  " + m for m in found)]))
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Return the tree as plain data that `load_config` reads back to an equal tree."""
    result: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return result


def identity_of(config: Any) -> dict[str, Any]:
    """Return the part of the tree that decides the results, without `EXECUTION_KEYS`."""
    return {key: value for key, value in to_dict(config).items() if key not in EXECUTION_KEYS}


def digest_of(tree: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hexadecimal) of a tree of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def write_yaml(tree: Mapping[str, Any]) -> str:
    """Return the tree as YAML text that `load_config` reads."""
    return yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True)


def main(schema: type[Tree], run: Callable[[Tree], None], argv: Sequence[str] | None = None) -> int:
    """Parse the command line of a command, run it, and return its exit status.

    Status 0: done; 1: an `SddError`, its message printed without a traceback; 2: wrong usage or
    configuration; 130: interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    program = f"python -m {_module_name(run)}"
    try:
        if "-h" in argv or "--help" in argv:
            _say(help_text(schema, program))
            return 0
        file, overrides = _parse(argv, _switches(schema))
        run(load_config(schema, file, overrides))
    except SddError as error:
        _complain(f"{program}: {error}")
        return error.exit_status
    except KeyboardInterrupt:
        _complain(f"{program}: interrupted; the same command goes on from what is finished")
        return 130
    return 0


def help_text(schema: type[Any], program: str) -> str:
    """Return the help of a command, made from the docstrings of its settings."""
    lines = [f"usage: {program} --config FILE [dotted.key=value ...]", ""]
    lines += [
        inspect.cleandoc(schema.__doc__ or ""),
        "",
        "Keys (default), any of them in FILE or after it:",
        "",
    ]
    for key, kind, default, text in describe_fields(schema):
        lines.append(f"  {key}: {kind}{default}")
        lines += [f"      {line}" for line in text.splitlines()]
    return "\n".join(lines)


def describe_fields(schema: type[Any], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield (dotted key, type, default in brackets, docstring) of every option below `schema`."""
    hints = typing.get_type_hints(schema)
    for name, info in schema.__pydantic_fields__.items():
        nested = _nested(hints[name])
        if nested is not None:
            yield from describe_fields(nested, f"{prefix}{name}.")
            continue
        required = info.is_required()
        default = " (required)" if required else f" ({_default_text(info)})"
        text = (info.description or "").strip()
        part = _optional(hints[name])
        if part is not None:
            yield f"{prefix}{name}", "the keys below, or null", default, text
            yield from describe_fields(part, f"{prefix}{name}.")
            continue
        item = _item(hints[name])
        if item is None:
            yield f"{prefix}{name}", _type_text(hints[name]), default, text
            continue
        yield f"{prefix}{name}", "items with the keys below", default, text
        yield from describe_fields(item, f"{prefix}{name}.*.")


def known_keys(schema: type[Any]) -> list[str]:
    """Return every dotted key below `schema`, groups of keys included."""
    keys = [key for key, *_ in describe_fields(schema)]
    groups = {
        ".".join(key.split(".")[:depth]) for key in keys for depth in range(1, key.count(".") + 1)
    }
    return keys + sorted(groups - set(keys))


def set_key(tree: dict[str, Any], key: str, value: Any) -> str:
    """Set a dotted key in a tree; return the part of the key that is in the way, if any."""
    *parents, last = key.split(".")
    branch = tree
    for parent in parents:
        if branch.get(parent) is None:  # also what a file has as null: keys below it are its first
            branch[parent] = {}
        child = branch[parent]
        if not isinstance(child, dict):
            return parent
        branch = child
    branch[last] = value
    return ""


def _default_text(info: Any) -> str:
    default = info.get_default(call_default_factory=True)
    return json.dumps(default, default=to_dict)


def _read_yaml(file: str | Path) -> dict[str, Any]:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {file}: {error}") from None
    try:
        tree = yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: expected keys and values, got {type(tree).__name__}")
    return tree


def _apply_override(tree: dict[str, Any], text: str) -> str | None:
    """Set one ``dotted.key=value`` in the tree; return what is wrong with it, if anything."""
    key, equals, value_text = text.partition("=")
    if not equals or not key:
        return f"{text!r}: expected dotted.key=value"
    try:
        value = yaml.load(value_text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.YAMLError:
        return f"{key}: {value_text!r} is not a YAML value"
    blocked = set_key(tree, key, value)
    return f"{key}: {blocked} holds a value, not keys" if blocked else None


def _describe(schema: type[Any], item: Any) -> str:
    location = item["loc"]
    key = ".".join(str(part) for part in location)
    if item["type"] == "unexpected_keyword_argument":
        hint = _nearest(schema, location)
        return f"{key}: no such key{hint}"
    if item["type"] == "missing":
        return f"{key}: required, and not given"
    message = str(item["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = item.get("input")
    if isinstance(given, dict):
        return f"{key or 'configuration'}: {message}"
    return f"{key}: {message} (got {json.dumps(given, default=str)})"


def _own_mistakes(error: ValidationError) -> list[Any]:
    """Return the mistakes without lists that are too short only for want of their wrong items."""
    found = error.errors(include_url=False)
    return [
        item
        for item in found
        if item["type"] != "too_short"
        or not any(o is not item and o["loc"][: len(item["loc"])] == item["loc"] for o in found)
    ]


def _nearest(schema: type[Any], location: Sequence[str | int]) -> str:
    """Return a hint at the nearest right key, for keys of the tree itself and of its lists."""
    key = ".".join(str(part) for part in location if isinstance(part, str))
    in_list = any(isinstance(part, int) for part in location)
    near = [] if in_list else difflib.get_close_matches(key, known_keys(schema), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _switches(schema: type[Any]) -> list[str]:
    """Return the keys that `--key` sets to true: those of the tree itself that are off."""
    fields = schema.__pydantic_fields__.items()
    return [name for name, info in fields if info.default is False]


def _parse(argv: list[str], switches: Sequence[str]) -> tuple[str | None, list[str]]:
    file: str | None = None
    overrides: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--config":
            file = next(words, None)
            if file is None:
                raise ConfigError("--config: expected a file after it")
        elif word.startswith("--config="):
            file = word.removeprefix("--config=")
        elif word.removeprefix("--") in switches:
            overrides.append(f"{word.removeprefix('--')}=true")
        elif word.startswith("-"):
            raise ConfigError(f"{word}: no such option; options are dotted.key=value, see --help")
        else:
            overrides.append(word)
    return file, overrides


def _nested(hint: Any) -> type[Any] | None:
    return hint if dataclasses.is_dataclass(hint) and isinstance(hint, type) else None


def _optional(hint: Any) -> type[Any] | None:
    """Return the class of a group of keys that may be null."""
    given = typing.get_args(hint)
    groups = [part for part in map(_nested, given) if part is not None]
    return groups[0] if len(given) == 2 and type(None) in given and groups else None


_PLAIN = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null"}


def _item(hint: Any) -> type[Any] | None:
    """Return the class of the items of a list or of named items, if they have keys themselves."""
    while typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) not in (tuple, dict):
        return None
    found = [a for a in typing.get_args(hint) if _nested(a) is not None]
    return found[0] if found else None


def _type_text(hint: Any) -> str:
    """Return a type as people write it: ``integer``, ``one of a, b``, ``list of text``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    texts = [
        _type_text(a) if isinstance(a, type) or typing.get_origin(a) else str(a) for a in arguments
    ]
    forms: dict[Any, Callable[[], str]] = {
        typing.Annotated: lambda: texts[0],
        typing.Literal: lambda: "one of " + ", ".join(texts),
        typing.Union: lambda: " or ".join(texts),
        types.UnionType: lambda: " or ".join(texts),
        tuple: lambda: f"list of {texts[0]}",
        dict: lambda: "keys and values",
    }
    if origin in forms:
        return forms[origin]()
    return _PLAIN.get(hint, getattr(hint, "__name__", str(hint)))


def _module_name(run: Callable[..., Any]) -> str:
    name = run.__module__
    if name == "__main__":
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        return spec.name if spec else "sdd_ray"
    return name


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _complain(text: str) -> None:
    sys.stderr.write(text + "\n")
