"""What is stored as JSON, as frozen dataclasses: one place reads it, one writes it, and unknown keys are kept."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Self

from mtkd_cache.errors import MtkdError


@dataclass(frozen=True, kw_only=True)
class JsonRecord:
    """A frozen dataclass whose fields are a JSON object's keys. JSON lists become tuples, objects of a known kind records.

    extra: keys that this version does not know; they are written back as they were read.
    """

    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: object) -> Self:
        """The record in a JSON object. where: its file, for messages. Raises MtkdError where a key is missing."""
        if not isinstance(content, Mapping):
            raise MtkdError(f"{where} is damaged (no JSON object). Run the command that wrote it again.")
        known = {item.name: item for item in fields(cls) if item.name != "extra"}
        required = {name for name, item in known.items() if item.default is MISSING and item.default_factory is MISSING}
        if missing := sorted(required - content.keys()):
            raise MtkdError(f"{where} has no {', '.join(missing)}. Run the command that wrote it again.")
        values = {name: _read(content[name], item.type, where) for name, item in known.items() if name in content}
        return cls(**values, extra={key: value for key, value in content.items() if key not in known})

    def to_json(self) -> dict[str, Any]:
        """The JSON object; a field that is None by default is left out where it is None."""
        values = {item.name: _write(getattr(self, item.name)) for item in fields(self) if item.name != "extra"}
        absent = {item.name for item in fields(self) if item.default is None and values.get(item.name) is None}
        return {**{name: value for name, value in values.items() if name not in absent}, **self.extra}


def _read(value: Any, kind: Any, where: object) -> Any:
    """A JSON value as a field of some type holds it."""
    if isinstance(kind, type) and issubclass(kind, JsonRecord):
        return kind.from_json(value, where)
    return tuple(_read(item, None, where) for item in value) if isinstance(value, list) else value


def _write(value: Any) -> Any:
    if isinstance(value, JsonRecord):
        return value.to_json()
    return [_write(item) for item in value] if isinstance(value, tuple) else value
