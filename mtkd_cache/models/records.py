"""The JSON that trainings and evaluations leave beside the weights."""

import json
from collections.abc import Sequence
from pathlib import Path

from mtkd_cache.errors import MtkdError
from mtkd_cache.storage.folder import write_durably

STUDENT, TEACHER = "run.json", "teacher.json"


def write_record(path: Path, record: dict) -> None:
    """Write a record, whole or not at all."""
    write_durably(path, json.dumps(record, indent=1).encode() + b"\n")


def read_record(path: Path) -> dict | None:
    """A record, or None where it is absent. Raises MtkdError where it is damaged or cannot be read."""
    try:
        record = json.loads(path.read_bytes())
        if not isinstance(record, dict):
            raise ValueError("it is no JSON object")
        return record
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MtkdError(f"{path} cannot be read ({error.strerror}). Make it readable, or name another folder.") from error
    except UnicodeEncodeError as error:
        raise MtkdError(f"{path!a} has a name that this system's locale lacks. Set PYTHONUTF8=1 or LC_ALL=C.UTF-8.") from error
    except ValueError as error:
        raise MtkdError(f"{path} is damaged ({error}). Delete it and run the command that wrote it again.") from error


def read_trainings(folder: Path) -> list[dict]:
    """The record of the student in a run folder, or those of the teachers in a teachers folder; empty where there is none."""
    student = read_record(folder / STUDENT)
    found = [student] if student else [read_record(path) for path in sorted(folder.glob(f"*/{TEACHER}"))]
    return [record for record in found if record]


def is_current(evaluation: dict, trainings: Sequence[dict]) -> bool:
    """Whether an evaluation judged the weights that the trainings recorded. Those of earlier versions name none, and count."""
    judged = evaluation.get("weights_sha256")
    return judged is None or all(
        record.get("weights_sha256") in (None, judged if isinstance(judged, str) else judged.get(record.get("anatomy")))
        for record in trainings
    )
