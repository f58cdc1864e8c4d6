"""ONNX Runtime on this CPU, with exact sums. Needs onnxruntime alone."""

import platform
from pathlib import Path
from typing import Any

import onnxruntime

from oncequant.files import FileError


def session(source: Path | bytes, optimise: bool = True, save_optimised: Path | None = None, threads: int = 1) -> Any:
    """A CPU `onnxruntime.InferenceSession` of a file or serialized model. Raises FileError if it cannot be read."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if lacks_vnni():
        options.add_session_config_entry("session.x64quantprecision", "1")  # exact sums, a quarter slower
    options.log_severity_level = 3  # it warns that an optimised model fits this machine only
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    if save_optimised is not None:
        options.optimized_model_filepath = str(save_optimised)
    model = source if isinstance(source, bytes) else str(source)
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has many kinds, and none of them names the file always
        name = "the model" if isinstance(source, bytes) else source
        raise FileError(f"ONNX Runtime cannot read {name}: {error}") from error


def lacks_vnni() -> bool:
    """Whether this is an x86 CPU (on Linux) whose kernels may saturate 16-bit sums of u8 x s8 products."""
    cpuinfo = Path("/proc/cpuinfo")
    return platform.machine() in ("x86_64", "AMD64") and cpuinfo.exists() and "vnni" not in cpuinfo.read_text()
