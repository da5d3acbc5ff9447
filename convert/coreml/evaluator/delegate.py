"""Getting the ML program back out of an ExecuTorch program that hands everything to Core ML."""

from __future__ import annotations

import json
from pathlib import Path

from handheld.runtime.errors import RuntimeMissing

from ...errors import ExportError
from ...quiet import quiet
from .package import UnsupportedProgram

# Where ExecuTorch's Core ML backend puts the package in what it flattens.
_PACKAGE = "lowered_module*/model.mlpackage"

# What stands in a method's place where several share a package: this, and JSON with the key of the package.
_REFERENCE = b"CMJR"


def extract_package(path: Path, folder: Path, method: str) -> Path:
    """Write the `.mlpackage` that a method of a `.pte` file calls into an empty folder.

    Returns:
        Its path. The program's function is `main`, or, where the file has several methods, that of the method's
        name; its inputs and outputs have names of ExecuTorch's, for a delegate is called by position.

    Raises:
        RuntimeMissing: no executorch or no coremltools.
        UnsupportedProgram: a method that is anything but one call of one Core ML delegate.
        ExportError: a file that cannot be read.
    """
    with quiet():
        try:
            from executorch.backends.apple.coreml import executorchcoreml
            from executorch.exir._serialize._program import deserialize_pte_binary
        except ImportError as error:
            raise RuntimeMissing(
                f"The reference evaluator opens .pte files with executorch and coremltools ({error}). "
                "Install them with: pip install 'handheld[android,ios]'"
            ) from error
        try:
            file = deserialize_pte_binary(path.read_bytes())
            plan = next(plan for plan in file.program.execution_plan if plan.name == method)
            delegates = [delegate.id for delegate in plan.delegates]
            calls = sum(len(chain.instructions) for chain in plan.chains)
            if delegates != ["CoreMLBackend"] or calls != 1:
                raise UnsupportedProgram(
                    f"{path.name} runs {calls} instructions over the delegates {delegates}; the reference "
                    "evaluator takes one call of one CoreMLBackend."
                )
            blob = bytes(file.program.backend_delegate_data[plan.delegates[0].processed.index].data)
            if blob.startswith(_REFERENCE):
                named = file.named_data
                key = json.loads(blob[len(_REFERENCE) :])["key"]
                blob = bytes(named.buffers[named.pte_data[key].buffer_index])
            executorchcoreml.unflatten_directory_contents(blob, str(folder))
            (package,) = folder.glob(_PACKAGE)
        except UnsupportedProgram:
            raise
        except Exception as error:  # whatever flatbuffers, JSON and the unflattening raise
            raise ExportError(
                f"{path.name} holds no whole Core ML delegate: {type(error).__name__}: {error}. Export it again."
            ) from error
    return package
