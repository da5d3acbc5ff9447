"""The targets, one file each, or one for several that differ in a version only."""

from ..target import Target
from . import android, android_vulkan, ios, ios_executorch, onnx

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        ios.TARGET,
        ios.IOS16,
        ios.IOS18,
        ios_executorch.TARGET,
        android.TARGET,
        android_vulkan.TARGET,
        onnx.TARGET,
    )
}
