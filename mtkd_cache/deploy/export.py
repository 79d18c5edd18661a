"""A trained network as one ONNX file that needs nothing of this project, see `mtkd_cache.deploy.onnx_file`."""

import json
import logging
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mtkd_cache.deploy.onnx_file import FRAME, OUTPUTS, check_packages
from mtkd_cache.deploy.onnx_graph import FrameToMasks
from mtkd_cache.errors import MtkdError, first_line
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.models.records import RunRecord
from mtkd_cache.storage.folder import durable_file

OPSET = 18
LARGEST = 2**31 - 2**20  # bytes of weights in one file, a limit of protobuf
NOTICE = "research software, no medical device"


@dataclass(frozen=True)
class ExportRecord:
    """What was exported: an input `frame` and the outputs `masks` and `probabilities`, see `mtkd_cache.deploy.onnx_file`.

    frame, size: (height, width) of the frame, and of the image that the network sees. bytes: of the file.
    """

    file: Path
    opset: int
    frame: tuple[int, int]
    size: tuple[int, int]
    anatomies: tuple[str, ...]
    layout: str
    arch: str
    bytes: int


def export_onnx(predictor: Predictor | Path | str, path: Path | str, frame: tuple[int, int]) -> ExportRecord:
    """Write a network, with all that lies between a decoded frame and its masks, as an ONNX file.

    Args:
        predictor: or the run folder or teachers folder of one.
        path: of the new file.
        frame: (height, width) of the frames that it will be given.

    Returns:
        what was written.

    Raises:
        MtkdError: a package is missing, the file exists or cannot be written, or torch cannot export the network.
    """
    check_packages("onnx", "onnxscript")
    path = Path(path)
    if path.exists():
        raise MtkdError(f"{path} exists already. Delete it, or name another file.")
    predictor = predictor if isinstance(predictor, Predictor) else Predictor.load(predictor)
    size = predictor.size[::-1]
    path.parent.mkdir(parents=True, exist_ok=True)
    with durable_file(path) as file:
        data = _serialized(predictor, frame)
        file.write(data)
    return ExportRecord(path, OPSET, frame, size, predictor.anatomies, predictor.layout, predictor.arch, len(data))


def _serialized(predictor: Predictor, frame: tuple[int, int]) -> bytes:
    """The bytes of the file, without the paths of this machine that torch writes into every node."""
    networks = list({id(network): network for network, _ in predictor.heads.values()}.values())
    if (weights := 4e6 * sum(network.params_m for network in networks)) > LARGEST:
        raise MtkdError(
            f"{predictor.folder}: {weights / 1e9:.1f} GB of weights are more than the 2 GB of an ONNX file. Export a student."
        )
    thresholds, presence = (limits.flatten().tolist() for limits in predictor.limits())
    module = FrameToMasks(networks, thresholds, presence, frame, predictor.size[::-1]).eval()
    model = _exported(module, frame, f"{predictor.folder}: {predictor.arch}")
    for node in (
        model.graph,
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.initializer,
        *model.graph.input,
        *model.graph.output,
    ):
        del node.metadata_props[:]
    for key, value in metadata_of(predictor, frame).items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    data: bytes = model.SerializeToString()
    return data


def _exported(module: FrameToMasks, frame: tuple[int, int], name: str) -> Any:
    """torch's model proto. name: of the network, for people."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (torch.zeros(*frame, 3, dtype=torch.uint8),),
                dynamo=True,
                opset_version=OPSET,
                input_names=[FRAME],
                output_names=list(OUTPUTS),
                verbose=False,
            )
        assert program is not None
        return program.model_proto
    except Exception as error:  # torch.export refuses in many ways
        raise MtkdError(f"{name} cannot be exported by torch {torch.__version__} ({first_line(error)}).") from error


def metadata_of(predictor: Predictor, frame: tuple[int, int]) -> dict[str, Any]:
    """What the file says of itself, by key; sizes are (width, height)."""
    first = predictor.records[0]
    run = first if isinstance(first, RunRecord) else None
    weights = first.recipe.get("student" if run else "teacher", {}).get("weights")
    return {
        "notice": NOTICE,
        "frame": list(frame[::-1]),
        "size": list(predictor.size),
        "anatomies": list(predictor.anatomies),
        "thresholds": predictor.thresholds,
        "presence": predictor.presence,
        "arch": predictor.arch,
        "layout": predictor.layout,
        "recipe": first.recipe,
        "fingerprints": {
            "weights_sha256": predictor.weights_sha256,
            "store": first.store_fingerprint,
            "cache": run and run.cache_fingerprint,
        },
        "licenses": {
            "mtkd-cache": "MIT",
            "weights": "; ".join(first.licenses) if first.licenses else "not declared",
            "started from": (first.initial_weights or {}).get("source", weights),
            "dataset": run and run.dataset,
        },
        "written_by": f"mtkd-cache {version('mtkd-cache')}, torch {torch.__version__}",
    }
