"""The process that holds a Core AI asset, driven by `coreai.CoreAISession`.

Run as `python -m handheld.runtime.session.coreai_host`. Requests, by `op` (`serving.serve`):

    load {path, functions, inputs, outputs}     -> {}     functions: names; the first one is loaded with the asset.
                                                          inputs, outputs: names that each of them has
    run {function, inputs, outputs}             -> {}     name to .npy file: inputs are read, outputs are written

It ends without the interpreter's own end, which may abort: a task of Core AI that is done is freed by a thread of
the library's, and one that asks a finalising interpreter for its lock dies of that.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import numpy as np

from ..errors import RuntimeFailure
from ..serving import serve


class _Host:
    """The loaded asset between requests."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        self._functions: dict[str, Any] = {}

    def load(
        self, path: str, functions: Sequence[str], inputs: Sequence[str], outputs: Sequence[str]
    ) -> dict[str, Any]:
        from coreai.authoring import AIModelAsset

        asset = AIModelAsset.load(path)
        _probe(asset, functions, inputs, outputs)
        self._model = self._loop.run_until_complete(self._stack.enter_async_context(asset.executable()))
        self._function(functions[0])
        return {}

    def _function(self, name: str) -> Any:
        if name not in self._functions:
            self._functions[name] = self._model.load_function(name)
        return self._functions[name]

    def run(self, function: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> dict[str, Any]:
        from coreai.runtime import NDArray

        given = {name: NDArray(np.load(file, allow_pickle=False)) for name, file in inputs.items()}
        made = self._loop.run_until_complete(self._call(self._function(function), given))
        for name, file in outputs.items():
            np.save(file, made[name].numpy(), allow_pickle=False)
        return {}

    @staticmethod
    async def _call(function: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
        return await function(given)


def _probe(asset: Any, functions: Sequence[str], inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Raise RuntimeFailure for an asset that cannot be loaded: loading a damaged one kills the process."""
    summary = asset.summary(include_statistics=False)
    names = list(summary.function_names) if summary is not None else []
    if not names:
        raise RuntimeFailure("it holds no program that Core AI can read: it is damaged or no .aimodel folder")
    if absent := [name for name in functions if name not in names]:
        raise RuntimeFailure(f"it has the functions {', '.join(names)}, and not {', '.join(absent)}")
    for name in functions:
        sides = summary.function_inputs(name), summary.function_outputs(name)
        given = [sorted(tensor for tensor, _ in side) for side in sides]
        if given != [sorted(inputs), sorted(outputs)]:
            raise RuntimeFailure(
                f"its function {name} has the inputs and outputs {given}, the manifest says "
                f"{[list(inputs), list(outputs)]}"
            )


def _end_with(parent: int) -> None:
    """End this process when its parent has: it may be in the middle of a run of minutes."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


def main() -> None:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    host = _Host()
    try:
        serve({"load": host.load, "run": host.run})
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
