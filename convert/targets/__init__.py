"""The targets, one file each."""

from ..target import Target
from . import android, ios, onnx

TARGETS: dict[str, Target] = {target.name: target for target in (ios.TARGET, android.TARGET, onnx.TARGET)}
