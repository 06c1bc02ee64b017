"""Is ONNX Runtime there, what can it really run on, and how is it kept from disturbing others?

The list that the module itself offers names what it was built for, not what works: it names CUDA on
a machine without a GPU, and a session that asks for it silently runs on the CPU.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from inferlab.errors import UserError
from inferlab.models.onnx_export import NO_TELEMETRY, builder_version

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
SILENT = 4  # severity: fatal only


def import_genai() -> ModuleType:
    """The module onnxruntime_genai, without its telemetry; a UserError when it is not there."""
    builder_version()  # says what is missing
    check_one_onnxruntime()
    os.environ.update(NO_TELEMETRY)
    try:
        return import_module("onnxruntime_genai")
    except (ImportError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"ONNX Runtime GenAI cannot be imported ({reason[:160]}): run `pip install "
            "--force-reinstall -r requirements.txt`"
        ) from error


def check_one_onnxruntime() -> None:
    """Two packages share one folder, and whichever came last won: refuse that."""
    if _installed("onnxruntime") and _installed("onnxruntime-gpu"):
        raise UserError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: run "
            "`pip uninstall -y onnxruntime onnxruntime-gpu`, then `pip install -r requirements.txt`"
        )


def import_runtime() -> ModuleType:
    """The module onnxruntime, without its telemetry; a UserError when it is not there."""
    check_one_onnxruntime()
    os.environ.update(NO_TELEMETRY)
    try:
        return import_module("onnxruntime")
    except (ImportError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"onnxruntime cannot be imported ({reason[:160]}): run `pip install "
            "--force-reinstall -r requirements.txt`"
        ) from error


def real_providers(asked: Sequence[str] = ()) -> list[str]:
    """What a session that asks for the providers `asked`, and for the CPU, really gets."""
    runtime = import_runtime()
    if asked:
        runtime.preload_dlls()  # CUDA's libraries lie in torch's packages
        runtime.set_default_logger_severity(SILENT)  # a missing library is an answer here
    options = runtime.SessionOptions()
    options.log_severity_level = SILENT
    providers = [*asked, PROVIDERS["cpu"]]
    return runtime.InferenceSession(_smallest_model(), options, providers=providers).get_providers()


def check_provider(device: str) -> None:
    """UserError unless ONNX Runtime really runs on `device` here."""
    provider = PROVIDERS[device]
    if device != "cpu" and provider not in real_providers([provider]):
        raise UserError(
            f"ONNX Runtime has no working {provider} here (its CUDA libraries do not load, or no "
            "GPU is there): choose --device cpu"
        )


def why_unusable(device: str = "cpu") -> str | None:
    """Why the onnx backend cannot run on `device` here, in one line; None when it can."""
    try:
        import_genai()
        check_provider(device)
    except UserError as error:
        return str(error)
    return None


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _smallest_model() -> bytes:
    """y = |x| over one number."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "smallest", [x], [y])
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
