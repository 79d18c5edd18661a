"""An exported ONNX file: what it says of itself, and running it. Nothing here imports torch.

One input, `frame`: uint8 RGB (H, W, 3). Two outputs for N anatomies: `masks`, uint8 (N, H, W), 1 where the anatomy is claimed and
0 elsewhere, and `probabilities`, float32 (N, H, W). All that lies between is in the graph.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mtkd_cache.errors import MtkdError, first_line

FRAME, MASKS, PROBABILITIES = "frame", "masks", "probabilities"
OUTPUTS = (MASKS, PROBABILITIES)
Segment = Callable[[np.ndarray], dict[str, np.ndarray]]  # a frame -> the outputs by name


@dataclass(frozen=True)
class OnnxDescription:
    """What an exported file says of itself.

    frame, size: (height, width) of the frame, and of the image that the network sees. thresholds: in logits, by anatomy.
    about: all of the metadata by key, parsed.
    """

    frame: tuple[int, int]
    size: tuple[int, int]
    anatomies: tuple[str, ...]
    thresholds: dict[str, float]
    about: dict[str, Any]


def describe(path: Path | str) -> OnnxDescription:
    """Raises MtkdError where the file is missing or `mtkd-cache export` did not write it."""
    check_packages("onnx")
    import onnx

    try:
        about = {each.key: json.loads(each.value) for each in onnx.load(path).metadata_props}
        (height, width), (rows, columns) = about["frame"][::-1], about["size"][::-1]
        return OnnxDescription((height, width), (rows, columns), tuple(about["anatomies"]), about["thresholds"], about)
    except FileNotFoundError as error:
        raise MtkdError(f"{path}: there is no such file. Write it with mtkd-cache export.") from error
    except Exception as error:  # protobuf raises errors of its own
        raise MtkdError(f"{path} is damaged or was not written by mtkd-cache export. Write it again.") from error


def onnxruntime(path: Path | str, outputs: Sequence[str] = OUTPUTS, threads: int | None = None) -> Segment:
    """The file in ONNX Runtime, on the CPU.

    Args:
        path: what `mtkd-cache export` wrote.
        outputs: those wanted; what only the others need is not computed.
        threads: None for as many as there are cores.
    """
    session, only_these = onnxruntime_session(path, threads)
    return lambda frame: dict(zip(outputs, session.run(list(outputs), {FRAME: frame}, only_these), strict=True))


def onnxruntime_session(path: Path | str, threads: int | None = None, profile: str | None = None) -> tuple[Any, Any]:
    """ONNX Runtime's session of a file, and the options of runs that compute only what is asked for.

    threads: see `onnxruntime`. profile: how the names of the files begin that it writes its profile to; None writes none.
    """
    check_packages("onnxruntime")
    import onnxruntime as ort

    options, only_these = ort.SessionOptions(), ort.RunOptions()
    options.intra_op_num_threads = threads or 0
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    only_these.only_execute_path_to_fetches = True
    session = _opened(lambda: ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]), path)
    return session, only_these


def openvino(path: Path | str, outputs: Sequence[str] = OUTPUTS, threads: int | None = None) -> Segment:
    """The file in OpenVINO, on the CPU in float32. See `onnxruntime`; here the next call overwrites the arrays of the last."""
    request = openvino_request(path, outputs, threads)

    def segment(frame: np.ndarray) -> dict[str, np.ndarray]:
        results = request.infer([frame], share_inputs=True, share_outputs=True)
        return {name: results[number] for number, name in enumerate(outputs)}

    return segment


def openvino_request(path: Path | str, outputs: Sequence[str], threads: int | None = None, profile: bool = False) -> Any:
    """OpenVINO's request for outputs of a file, see `openvino`. profile: whether each run leaves its `profiling_info`."""
    check_packages("openvino")
    import openvino as ov

    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": profile}
    config["INFERENCE_NUM_THREADS"] = threads or 0
    core = ov.Core()
    model = _opened(lambda: core.read_model(path), path)
    wanted = ov.Model([model.output(name) for name in outputs], model.get_parameters())
    return core.compile_model(wanted, "CPU", config).create_infer_request()


RUNTIMES = {"onnxruntime": onnxruntime, "openvino": openvino}


def check_packages(*names: str) -> None:
    """Raises MtkdError where a package of the extra `onnx` is missing."""
    if missing := [name for name in names if not find_spec(name)]:
        extra = "openvino" if missing == ["openvino"] else "onnx"
        raise MtkdError(f"this needs the package {missing[0]}. Install it with: pip install 'mtkd-cache[{extra}]'")


def _opened(load: Callable[[], Any], path: Path | str) -> Any:
    try:
        return load()
    except Exception as error:  # each runtime raises errors of its own
        raise MtkdError(f"{path} cannot be loaded ({first_line(error)}). Write it again with mtkd-cache export.") from error
