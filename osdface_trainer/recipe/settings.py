"""TOML tables to frozen dataclasses and back, strictly: a typo in a recipe is an error, not a default.

Nothing here knows a recipe; `config.py` has the fields.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from osdface_core.errors import ConfigError

T = TypeVar("T")


def read_toml(path: Path) -> dict[str, Any]:
    """Read the tables of a TOML file.

    Raises:
        ConfigError: the file is missing or is not TOML.
    """
    try:
        return parse_toml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"recipe {path} does not exist") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"recipe {path} cannot be read: {error}") from error


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML text to plain types; ValueError when it is none."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        try:
            import tomli as tomllib  # type: ignore[no-redef]
        except ModuleNotFoundError:
            raise ConfigError("recipes need Python 3.11, or on Python 3.10: pip install tomli") from None
    return tomllib.loads(text)


def override(tables: dict[str, Any], assignment: str) -> None:
    """Apply one `--set a.b=value` in place; the value is TOML, or a plain word taken as text.

    Raises:
        ConfigError: no `=`, or the path runs through something that is no table.
    """
    path, equals, text = assignment.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise ConfigError(f"--set {assignment}: expected table.key=value, e.g. --set run.seed=7")
    table = tables
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {assignment}: {key} is a value, not a table")
    try:
        table[keys[-1]] = parse_toml(f"value = {text}")["value"]
    except ValueError:
        table[keys[-1]] = text.strip()


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay tables over others, key by key; lists and values replace what they cover."""
    both = {**base, **over}
    for key in base.keys() & over.keys():
        if isinstance(base[key], Mapping) and isinstance(over[key], Mapping):
            both[key] = merge(base[key], over[key])
    return both


def build(cls: type[T], table: Mapping[str, Any], where: str, default: T | None = None) -> T:
    """Build a `cls` of `table`; keys that are absent keep the value of `default` (or of the class).

    Raises:
        ConfigError: naming the key that is unknown, missing or of another type.
    """
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]
    for key in table:
        if key not in names:
            raise ConfigError(f"unknown key {_join(where, key)}{_suggest(key, names)}")
    values = {} if default is None else {name: getattr(default, name) for name in names}
    inherited = {**{f.name: _default_of(f) for f in dataclasses.fields(cls)}, **values}  # type: ignore[arg-type]
    for key, value in table.items():
        values[key] = _convert(hints[key], value, _join(where, key), inherited.get(key))
    missing = [n for n in names if n not in values and inherited[n] is dataclasses.MISSING]
    if missing:
        raise ConfigError(f"missing key {_join(where, missing[0])}: add it to the recipe or use --set")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"[{where}] {error}") from error


def known_keys(cls: type, table: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the keys of a saved recipe that only a former version knew."""
    hints = typing.get_type_hints(cls)
    return {
        key: known_keys(hints[key], value) if dataclasses.is_dataclass(hints[key]) else value
        for key, value in table.items()
        if key in hints
    }


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _suggest(key: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, names, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(names)}"


def _default_of(f: dataclasses.Field[Any]) -> Any:
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()


def _convert(hint: Any, value: Any, where: str, default: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, where, default)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        cls = typing.cast(type, hint)
        return build(cls, value, where, default if isinstance(default, cls) else None)
    if origin is typing.Literal:
        if value in args:
            return value
        raise ConfigError(f"{where}: got {value!r}, expected one of {', '.join(map(str, args))}")
    if origin is tuple and isinstance(value, (list, tuple)):
        return _convert_tuple(args, value, where)
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {k: _convert(args[1], v, _join(where, k), None) for k, v in value.items()}
    return _scalar(hint, value, where)


def _convert_union(args: tuple[Any, ...], value: Any, where: str, default: Any) -> Any:
    problem: ConfigError | None = None
    for candidate in (a for a in args if a is not type(None)):
        try:
            return _convert(candidate, value, where, default)
        except ConfigError as error:
            problem = problem or error
    raise problem or ConfigError(f"{where}: got {value!r}")


def _convert_tuple(args: tuple[Any, ...], value: Sequence[Any], where: str) -> tuple[Any, ...]:
    if len(args) == 2 and args[1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise ConfigError(f"{where}: got {len(value)} values, expected {len(args)}")
    return tuple(
        _convert(a, v, f"{where}[{i}]", None) for i, (a, v) in enumerate(zip(args, value, strict=True))
    )


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    expected = {"str": "text in quotes", "bool": "true or false"}.get(_name(hint), _name(hint))
    raise ConfigError(f"{where}: got {value!r}, expected {expected}")


def _name(hint: Any) -> str:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return "a table"
    return "a list" if typing.get_origin(hint) is tuple else getattr(hint, "__name__", str(hint))


def to_toml(config: Any) -> str:
    """Write a dataclass as TOML that `build` reads back to an equal value; None fields are left out."""
    return "\n".join(_table_lines(dataclasses.asdict(config), ())).lstrip("\n") + "\n"


def _table_lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    nested: list[tuple[str, Any]] = []
    for key, value in table.items():
        if isinstance(value, Mapping) or _is_table_array(value):
            nested.append((key, value))
        elif value is not None:
            yield f"{_key(key)} = {_text(value)}"
    for key, value in nested:
        inner = (*path, key)
        header = ".".join(map(_key, inner))
        for entry in [value] if isinstance(value, Mapping) else value:
            yield f"\n[{header}]" if isinstance(value, Mapping) else f"\n[[{header}]]"
            yield from _table_lines(entry, inner)


def _is_table_array(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _text(key)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_text, value))}]"
    return repr(value)


def differences(before: Any, after: Any, prefix: str = "") -> list[str]:
    """List dotted names of the leaves in which two trees of mappings differ, e.g. `["run.seed"]`."""
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        return [] if before == after else [prefix]
    keys = [*before, *(key for key in after if key not in before)]
    return [name for key in keys for name in differences(before.get(key), after.get(key), _join(prefix, key))]
