"""What is stored as JSON, as frozen dataclasses: one place reads it, one writes it, and unknown keys are kept."""

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import UnionType
from typing import Any, Self, get_args, get_origin

from mtkd_cache.errors import MtkdError

WIDER = {tuple: (list, tuple), float: (int, float)}  # what JSON has for a type


@dataclass(frozen=True, kw_only=True)
class JsonRecord:
    """A frozen dataclass whose fields are a JSON object's keys. JSON lists become tuples, objects of a known kind records.

    extra: keys that this version does not know; they are written back as they were read.
    """

    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: object) -> Self:
        """The record in a JSON object. where: its file, for messages. Raises MtkdError for a missing key or a wrong type."""
        if not isinstance(content, Mapping):
            raise MtkdError(f"{where} is damaged (no JSON object). Run the command that wrote it again.")
        known = {item.name: item for item in fields(cls) if item.name != "extra"}
        required = {name for name, item in known.items() if item.default is MISSING and item.default_factory is MISSING}
        if missing := sorted(required - content.keys()):
            raise MtkdError(f"{where} has no {', '.join(missing)}. Run the command that wrote it again.")
        for name, item in known.items():
            if name in content and not _fits(content[name], item.type):
                told = f"{name} = {content[name]!r:.40} is of the wrong type"
                raise MtkdError(f"{where} is damaged ({told}). Run the command that wrote it again.")
        values = {name: _read(content[name], item.type, where) for name, item in known.items() if name in content}
        return cls(**values, extra={key: value for key, value in content.items() if key not in known})

    def to_json(self) -> dict[str, Any]:
        """The JSON object; a field that is None by default is left out where it is None."""
        values = {item.name: _write(getattr(self, item.name)) for item in fields(self) if item.name != "extra"}
        absent = {item.name for item in fields(self) if item.default is None and values.get(item.name) is None}
        return {**{name: value for name, value in values.items() if name not in absent}, **self.extra}


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a field's type, whatever is in it; records check themselves."""
    if get_origin(kind) is UnionType:
        return any(_fits(value, each) for each in get_args(kind))
    plain = get_origin(kind) or kind
    return plain is Any or _is_record(plain) or isinstance(value, WIDER.get(plain, plain))


def _read(value: Any, kind: Any, where: object) -> Any:
    """A JSON value as a field of some type holds it."""
    if get_origin(kind) is UnionType:  # an optional record: the record or None
        kind = None if value is None else next(filter(_is_record, get_args(kind)), None)
    if _is_record(kind):
        return kind.from_json(value, where)
    if get_origin(kind) is dict and isinstance(value, dict) and _is_record(get_args(kind)[1]):
        return {key: _read(item, get_args(kind)[1], where) for key, item in value.items()}
    return tuple(_read(item, None, where) for item in value) if isinstance(value, list) else value


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, JsonRecord)


def _write(value: Any) -> Any:
    if isinstance(value, JsonRecord):
        return value.to_json()
    if isinstance(value, dict):
        return {key: _write(item) for key, item in value.items()}
    return [_write(item) for item in value] if isinstance(value, tuple) else value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``batch 8 (now 4)`` for each setting that differs, those of a section as ``augmentation.scale 0.1 (now 0.2)``."""
    told = []
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            told += [f"{key}.{difference}" for difference in differences(before, after)]
        elif before != after:
            told.append(f"{key} {_told(before)} (now {_told(after)})")
    return told


def _told(value: Any) -> str:
    """A JSON value for people."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_told(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(_told, value))
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return value[:12]
    return "not set" if value is None else str(value)
