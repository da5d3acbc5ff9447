"""ExecuTorch programs for delegates that its Python package does not have everywhere."""

from __future__ import annotations

import platform

from .et import ExecuTorchSession


class VulkanDelegateSession(ExecuTorchSession):
    """Programs for the Vulkan delegate, which is in the Android libraries and in no Python package."""

    runtime = "executorch-vulkan"

    @classmethod
    def unavailable(cls) -> str | None:
        return "ExecuTorch's Python package is built without the Vulkan delegate; run it in an Android app"


class CoreMLDelegateSession(ExecuTorchSession):
    """Programs for the Core ML delegate, which is in the Python package for macOS."""

    runtime = "executorch-coreml"

    @classmethod
    def unavailable(cls) -> str | None:
        if platform.system() != "Darwin":
            return f"ExecuTorch's Core ML delegate runs on macOS only; this is {platform.system()}"
        return super().unavailable()
