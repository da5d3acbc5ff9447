"""The one interface over every runtime, and what all of them check."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np

from ..errors import RuntimeFailure
from ..manifest import Artifact, Method, TensorSpec
from ..pixels import as_told

Arrays = dict[str, np.ndarray]


class Session(ABC):
    """One loaded artefact. A new runtime is a subclass in its own file and a line in `SESSIONS`.

    Args:
        path: the artefact's file or folder; its hash is the caller's business (`open_session` checks it).
        artifact: its entry in the manifest.
        inputs, outputs: the bundle's specs, with the shapes of the artefact's first method.
        threads: CPU threads to compute with; None leaves it to the runtime.

    Attributes:
        threads: what the runtime uses, None where it does not say.

    Raises RuntimeMissing where the runtime cannot be imported, RuntimeFailure where it refuses the artefact.
    """

    runtime: ClassVar[str]

    def __init__(
        self,
        path: Path,
        artifact: Artifact,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        threads: int | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise RuntimeFailure(f"threads={threads}: give at least 1, or None for the runtime's own choice.")
        self.path = path
        self.artifact = artifact
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.threads = threads
        self._model: Any = None
        self._load()

    @classmethod
    @abstractmethod
    def unavailable(cls) -> str | None:
        """Why the runtime cannot be used here and what to install, or None. Imports nothing heavy."""

    @classmethod
    @abstractmethod
    def library_version(cls) -> str:
        """Import the runtime and return its version. Raises RuntimeMissing."""

    @classmethod
    def untimed(cls) -> str | None:
        """Why times of this runtime on this machine are no measurement, or None where they are one."""
        return None

    @abstractmethod
    def _load(self) -> None:
        """Load `self.path` into `self._model`, and set `self.threads` to what is in effect."""

    @abstractmethod
    def _run(self, method: Method, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Arrays in the order of `self.inputs`, in the artefact's dtype -> in the order of `self.outputs`.

        `method` is the one of `self.artifact.methods` that has the arrays' shapes.
        """

    def call(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Run the first method once, in place: for who calls again and again, as a stream does.

        Args:
            inputs: contiguous, in the order, shapes and dtype of the artefact. Only that is up to the caller.
            outputs: the same; room for what the artefact gives.

        Returns:
            What it gives: `outputs`, or memory of the runtime's, which holds until the next call.

        Raises RuntimeFailure for whatever the runtime reports.
        """
        if self._model is None:
            raise RuntimeFailure(f"The session over {self.path.name} is closed. Open a new one.")
        return self._run(self.artifact.methods[0], list(inputs))

    def close(self) -> None:
        """Release the model. A closed session cannot run."""
        self._model = None

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Run the artefact once.

        Args:
            inputs: every input by name, in the dtype of its spec (fp32, NCTHW), together in the shapes of one of
                the artefact's methods, which is run; cast here to what the artefact takes.

        Returns:
            Every output by name, in that method's shapes, of a dynamic artefact in those that follow; fp32, 8-bit
            pixels uint8.

        Raises RuntimeFailure for a wrong name, shape or dtype, naming what was given and what is wanted, and
        for whatever the runtime reports.
        """
        if self._model is None:
            raise RuntimeFailure(f"The session over {self.path.name} is closed. Open a new one.")
        method = self._method_for(inputs)
        arrays = [np.ascontiguousarray(inputs[s.name], dtype=self.artifact.input_dtype) for s in self.inputs]
        results = [as_told(spec, result) for spec, result in zip(self.outputs, self._run(method, arrays))]
        shapes = tuple(tuple(result.shape) for result in results)
        if shapes != method.outputs and method in self.artifact.methods:
            raise RuntimeFailure(
                f"{self.path.name} returned shapes {[*shapes]}, the manifest says {[*method.outputs]}. "
                "Export it again."
            )
        return {spec.name: result for spec, result in zip(self.outputs, results)}

    def _method_for(self, inputs: Mapping[str, np.ndarray]) -> Method:
        """The method that has the inputs' shapes. Raises RuntimeFailure for inputs that none takes."""
        methods = {method.inputs: method for method in self.artifact.methods}
        names = [spec.name for spec in self.inputs]
        given = tuple(inputs[name].shape for name in names if name in inputs)
        faults = [f'"{name}" is not an input' for name in inputs if name not in names]
        for spec in self.inputs:
            if spec.name not in inputs:
                faults.append(f'"{spec.name}" is missing')
            elif inputs[spec.name].dtype != spec.dtype or not self._takes(given):
                faults.append(f'"{spec.name}" is {inputs[spec.name].dtype} {inputs[spec.name].shape}')
        if not faults:
            return methods.get(given, Method(self.artifact.methods[0].name, given, ()))
        listed = " or ".join(
            ", ".join(f'"{s.name}" {s.dtype} {shape} {s.layout}' for s, shape in zip(self.inputs, shapes))
            for shapes in methods
        )
        if self.artifact.dynamic:
            listed += f", or others along {', '.join(self.artifact.dynamic)}, from 2 on"
        raise RuntimeFailure(f"Wrong input for {self.path.name}: {'; '.join(faults)}. It takes {listed}.")

    def _takes(self, given: tuple[tuple[int, ...], ...]) -> bool:
        """Whether a method has these shapes, or the artefact takes others than its methods'."""
        if any(method.inputs == given for method in self.artifact.methods):
            return True
        return len(given) == 1 and self.artifact.takes(self.inputs[0], given[0])

    def _refused(self, action: str, error: Exception, wrote: str = "") -> RuntimeFailure:
        """The runtime's own words, as an error of ours."""
        detail = f"\nThe runtime wrote:\n{wrote}" if wrote else ""
        return RuntimeFailure(f"{self.runtime} could not {action} {self.path.name}: {error}{detail}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
