"""Getting the ML program back out of an ExecuTorch program that hands everything to Core ML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from handheld.runtime.errors import RuntimeMissing

from ..errors import ExportError
from ..quiet import quiet
from .program import UnsupportedProgram

# Where ExecuTorch's Core ML backend puts the package in what it flattens.
_PACKAGE = Path("lowered_module", "model.mlpackage")


def extract_package(path: Path, folder: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Path:
    """Write the `.mlpackage` inside a `.pte` file into an empty folder.

    Args:
        inputs, outputs: names for the program's, in order: a delegate is called by position.

    Returns:
        Its path.

    Raises:
        RuntimeMissing: no executorch or no coremltools.
        UnsupportedProgram: a `.pte` that is anything but one call of one Core ML delegate.
        ExportError: a file that cannot be read.
    """
    with quiet():
        try:
            import coremltools as ct
            from executorch.backends.apple.coreml import executorchcoreml
            from executorch.exir._serialize._program import deserialize_pte_binary
        except ImportError as error:
            raise RuntimeMissing(
                f"The reference evaluator opens .pte files with executorch and coremltools ({error}). "
                "Install them with: pip install 'handheld[android,ios]'"
            ) from error
        try:
            program = deserialize_pte_binary(path.read_bytes()).program
            (plan,) = program.execution_plan
            delegates = [delegate.id for delegate in plan.delegates]
            calls = sum(len(chain.instructions) for chain in plan.chains)
            if delegates != ["CoreMLBackend"] or calls != 1:
                raise UnsupportedProgram(
                    f"{path.name} runs {calls} instructions over the delegates {delegates}; the reference "
                    "evaluator takes one call of one CoreMLBackend."
                )
            blob = program.backend_delegate_data[plan.delegates[0].processed.index].data
            executorchcoreml.unflatten_directory_contents(bytes(blob), str(folder))
            model = ct.models.MLModel(str(folder / _PACKAGE), skip_model_load=True)
            spec = model.get_spec()
            for features, names in ((spec.description.input, inputs), (spec.description.output, outputs)):
                for old, new in zip([feature.name for feature in features], names, strict=True):
                    ct.utils.rename_feature(spec, old, new)
            named = folder / "named.mlpackage"
            ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True).save(str(named))
        except UnsupportedProgram:
            raise
        except Exception as error:  # whatever flatbuffers, the unflattening and protobuf raise
            raise ExportError(
                f"{path.name} holds no whole Core ML delegate: {type(error).__name__}: {error}. Export it again."
            ) from error
    return named
