"""One model in a process of its own, decoding a token for each line it is told: the engine's, or llama.cpp's.

Started by flash_peer.py as `PYTHON flash_decoder.py JSON`; llama.cpp needs llama-cpp-python and numpy only.
The JSON has `kind`, and what the class of that kind takes. The first line answered says what was opened, then each
line `TOKEN [RESIDENCY]` is answered with {"ns", "likeliest", "counters"}.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import sys
import time
from typing import Any

_PAGEOUT = 21  # MADV_PAGEOUT, Linux 5.4 and later
_POPULATE_READ = 22  # MADV_POPULATE_READ, Linux 5.14 and later
_LOAD_NONE, _LOAD_MMAP = 0, 1  # llama_load_mode
_ATTEMPTS = 60
_MOST_LEFT = 0.05  # of the evicted ranges: pages at their ends may be held by a larger one


class Engine:
    """A pack under ModelOptions: `options` and `session` are their fields."""

    def __init__(self, pack: str, options: dict[str, Any], session: dict[str, Any]) -> None:
        from handheld.runtime.flash import ModelOptions, SessionOptions, open_pack

        opened = open_pack(pack)
        self._model = opened.model(ModelOptions(SessionOptions(**session), **options))
        self.about = {"direct_io": bool(opened.info.direct_io)}

    def prepare(self, residency: str) -> None:
        pass

    def decode(self, token: int) -> Any:
        return self._model.decode([token])

    def counters(self) -> dict[str, int]:
        stats = self._model.stats()
        names = ("total_ns", "attention_ns", "head_ns", "overhead_ns", "kv_bytes")
        own = {name: getattr(stats, name) for name in names}
        names = ("wait_ns", "busy_ns", "select_ns", "compute_ns", "table_ns", "bytes_read", "held_peak_bytes")
        return own | {name: getattr(stats.session, name) for name in names}


class Llama:
    """A GGUF file under llama.cpp. `residencies`: names of sets of ranges of the file, [offset, bytes] each, that
    are put out of memory before a token, while all others are brought in; neither is timed. With none the file is
    not mapped but read, and llama.cpp may hold its weights in the layout that its kernels like best.
    """

    def __init__(self, gguf: str, residencies: dict[str, list[list[int]]], threads: int, context: int) -> None:
        import llama_cpp

        self._api = llama_cpp
        self._log = llama_cpp.llama_log_callback(lambda level, text, user: None)
        llama_cpp.llama_log_set(self._log, None)
        llama_cpp.llama_backend_init()
        loading = llama_cpp.llama_model_default_params()
        loading.n_gpu_layers = 0
        # Copies in another layout would stay in memory, so they are for the process that limits nothing.
        fields = {name for name, _ in loading._fields_}
        if "load_mode" in fields:  # what releases of 2026 have instead
            loading.load_mode = _LOAD_MMAP if residencies else _LOAD_NONE
        elif "use_mmap" in fields:
            loading.use_mmap = bool(residencies)
        else:
            raise SystemExit("This llama-cpp-python does not say whether files are mapped. Install 0.3.36.")
        loading.use_extra_bufts = not residencies
        self._model = llama_cpp.llama_model_load_from_file(gguf.encode(), loading)
        if not self._model:
            raise SystemExit(f"llama.cpp does not load {gguf}")
        running = llama_cpp.llama_context_default_params()
        running.n_ctx, running.n_batch, running.n_threads = context, 1, threads
        self._context = llama_cpp.llama_init_from_model(self._model, running)
        if not self._context:
            raise SystemExit("llama.cpp opens no context")
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._mapping = _Mapping(gguf) if residencies else None
        self._residencies = residencies
        self._left = 0.0
        self.about = {"llama_cpp_python": llama_cpp.__version__}

    def prepare(self, residency: str) -> None:
        if self._mapping is None:
            return
        evicted = self._residencies[residency]
        self._mapping.bring_in()
        cores = os.sched_getaffinity(0)
        for _ in range(_ATTEMPTS):
            # Pages that a core has only just read are on a list of that core's, and leave from there alone.
            for core in cores:
                os.sched_setaffinity(0, {core})
                for offset, size in evicted:
                    self._mapping.page_out(offset, size)
            os.sched_setaffinity(0, cores)
            self._left = self._mapping.resident_share(evicted)
            if self._left <= _MOST_LEFT:
                return
            time.sleep(0.05)
        raise SystemExit(
            f"{self._left:.0%} of what is to leave memory stays there: does another process map the file?"
        )

    def decode(self, token: int) -> Any:
        import numpy as np

        tokens = (self._api.llama_token * 1)(token)
        if self._api.llama_decode(self._context, self._api.llama_batch_get_one(tokens, 1)) != 0:
            raise SystemExit("llama.cpp cannot decode: is the context long enough?")
        return np.ctypeslib.as_array(self._api.llama_get_logits_ith(self._context, -1), (self._vocab,))

    def counters(self) -> dict[str, Any]:
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        return {"major_faults": faults, "evicted_but_resident": self._left}


class _Mapping:
    """Where this process maps a file."""

    def __init__(self, path: str) -> None:
        self._spans = []  # (first offset, last offset, address)
        with open("/proc/self/maps", encoding="utf-8") as maps:
            for line in maps:
                fields = line.split(maxsplit=5)
                if len(fields) == 6 and fields[5].strip() == os.path.realpath(path):
                    first, last = (int(part, 16) for part in fields[0].split("-"))
                    offset = int(fields[2], 16)
                    self._spans.append((offset, offset + last - first, first))
        if not self._spans:
            raise SystemExit(f"{path} is not mapped: this llama.cpp does not map its files here.")
        self._libc = ctypes.CDLL(None, use_errno=True)

    def bring_in(self) -> None:
        for first, last, address in self._spans:
            self._advise(address, last - first, _POPULATE_READ)

    def page_out(self, offset: int, size: int) -> None:
        for address, length in self._addresses(offset, size):
            self._advise(address, length, _PAGEOUT)

    def _advise(self, address: int, length: int, advice: int) -> None:
        if self._libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), advice) != 0:
            raise SystemExit(f"madvise({advice}): {os.strerror(ctypes.get_errno())}")

    def resident_share(self, ranges: list[list[int]]) -> float:
        resident = pages = 0
        for offset, size in ranges:
            for address, length in self._addresses(offset, size):
                state = (ctypes.c_ubyte * (length // mmap.PAGESIZE))()
                if self._libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(length), state) != 0:
                    raise SystemExit(f"mincore: {os.strerror(ctypes.get_errno())}")
                pages += len(state)
                resident += sum(byte & 1 for byte in bytes(state))
        return resident / max(1, pages)

    def _addresses(self, offset: int, size: int) -> list[tuple[int, int]]:
        """The whole pages of a range of the file."""
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (offset + size) // mmap.PAGESIZE * mmap.PAGESIZE
        found = []
        for start, end, address in self._spans:
            low, high = max(first, start), min(last, end)
            if low < high:
                found.append((address + low - start, high - low))
        return found


def main() -> None:
    given = json.loads(sys.argv[1])
    model = {"engine": Engine, "llama": Llama}[given.pop("kind")](**given)
    print(json.dumps(model.about), flush=True)
    for line in sys.stdin:
        token, _, residency = line.strip().partition(" ")
        model.prepare(residency)
        before = model.counters()
        started = time.perf_counter_ns()
        logits = model.decode(int(token))
        likeliest = int(logits.argmax())
        elapsed = time.perf_counter_ns() - started
        after = model.counters()
        spent = {name: after[name] - before[name] for name in after if name.endswith(("_ns", "_read", "_faults"))}
        spent |= {name: after[name] for name in after if name not in spent}
        print(json.dumps({"ns": elapsed, "likeliest": likeliest, "counters": spent}), flush=True)


if __name__ == "__main__":
    main()
