"""ONNX Runtime's Java library on this machine's JVM, without a package of it: Android's JNI library over the wheel.

Android's `libonnxruntime4j_jni.so` for x86-64 calls ten functions of the C library, and ONNX Runtime's C interface,
which is stable over versions. Two things keep it from loading here, both in its dynamic section: the names of
Android's C libraries, and the versions of their symbols. Without them it finds the same functions here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

JNI = "libonnxruntime4j_jni.so"
RUNTIME = "libonnxruntime.so"

# The JNI library binds it at once; Linux's ONNX Runtime has no NNAPI. Nobody here calls it.
_STUB = "void *OrtSessionOptionsAppendExecutionProvider_Nnapi(void) { return (void *)0; }\n"

_PT_DYNAMIC = 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5
_DT_VERSYM, _DT_VERNEED, _DT_VERNEEDNUM = 0x6FFFFFF0, 0x6FFFFFFE, 0x6FFFFFFF
_DROPPED = (_DT_NULL, _DT_VERSYM, _DT_VERNEED, _DT_VERNEEDNUM)


def prepare(jni: Path, runtime: Path, folder: Path, compile_shared: Callable[[list[str | Path]], object]) -> None:
    """Make `folder` one that the Java property `onnxruntime.native.path` may name.

    Args:
        jni: Android's `libonnxruntime4j_jni.so`, x86-64.
        runtime: the wheel's `libonnxruntime.so.<version>`.
        compile_shared: runs a C compiler with these arguments.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JNI).write_bytes(without_android(jni.read_bytes()))
    link = folder / f"{RUNTIME}.1"  # the wheel's name for itself
    link.unlink(missing_ok=True)
    link.symlink_to(runtime)
    (folder / "stub.c").write_text(_STUB)
    libraries = ["-L", folder, "-Wl,--no-as-needed", f"-l:{link.name}", "-Wl,-rpath,$ORIGIN"]
    compile_shared(
        ["-shared", "-fPIC", folder / "stub.c", "-o", folder / RUNTIME, f"-Wl,-soname,{RUNTIME}", *libraries]
    )


def without_android(library: bytes) -> bytes:
    """A 64-bit little-endian ELF library that needs nothing but ONNX Runtime, and no versions of symbols."""
    data = bytearray(library)
    table, entry_size, count = *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)
    for at in range(table, table + count * entry_size, entry_size):
        if struct.unpack_from("<I", data, at)[0] != _PT_DYNAMIC:
            continue
        start, size = struct.unpack_from("<Q", data, at + 8)[0], struct.unpack_from("<Q", data, at + 32)[0]
        entries = list(struct.iter_unpack("<QQ", data[start : start + size]))
        names = dict(entries)[_DT_STRTAB]  # an address, and in the first segment the same as the place in the file
        needed = {value: _text(data, names + value) for tag, value in entries if tag == _DT_NEEDED}
        dropped = {(_DT_NEEDED, value) for value, name in needed.items() if name != RUNTIME}
        left = [entry for entry in entries if entry[0] not in _DROPPED and entry not in dropped]
        left += [(_DT_NULL, 0)] * (len(entries) - len(left))
        data[start : start + size] = b"".join(struct.pack("<QQ", *entry) for entry in left)
    return bytes(data)


def _text(data: bytearray, at: int) -> str:
    return data[at : data.index(0, at)].decode()
