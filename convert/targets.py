"""The targets: what `--target` takes. A new one is one file beside its runtime's others and one line here."""

from .coreai.lower import TARGET as IOS27
from .coreml.lower import IOS16, IOS18
from .coreml.lower import TARGET as IOS
from .executorch.coreml import TARGET as IOS_EXECUTORCH
from .executorch.vulkan import TARGET as ANDROID_VULKAN
from .executorch.xnnpack import TARGET as ANDROID
from .onnx.lower import TARGET as ONNX
from .target import Target

TARGETS: dict[str, Target] = {
    target.name: target for target in (IOS, IOS16, IOS18, IOS27, IOS_EXECUTORCH, ANDROID, ANDROID_VULKAN, ONNX)
}
