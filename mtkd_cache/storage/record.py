"""What travels as JSON, as frozen dataclasses: read in one place, written in one place, unknown keys kept."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Self

from mtkd_cache.errors import MtkdError


@dataclass(frozen=True, kw_only=True)
class JsonRecord:
    """A frozen dataclass whose fields are a JSON object's keys. JSON lists are tuples in Python.

    extra: keys that this version does not know; they are written back as they were read.
    """

    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: object) -> Self:
        """The record in a JSON object. where: its file, for messages. Raises MtkdError where a key is missing."""
        known = {item.name: item for item in fields(cls) if item.name != "extra"}
        required = {name for name, item in known.items() if item.default is MISSING and item.default_factory is MISSING}
        if missing := sorted(required - content.keys()):
            raise MtkdError(f"{where} has no {', '.join(missing)}. Run the command that wrote it again.")
        values = {name: _tuples(content[name]) for name in known if name in content}
        return cls(**values, extra={key: value for key, value in content.items() if key not in known})

    def to_json(self) -> dict[str, Any]:
        """The JSON object; a field that may be absent is left out where it has its default."""
        values = {
            item.name: _lists(getattr(self, item.name))
            for item in fields(self)
            if item.name != "extra" and getattr(self, item.name) != item.default
        }
        return {**values, **self.extra}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _lists(value: Any) -> Any:
    return list(map(_lists, value)) if isinstance(value, tuple) else value
