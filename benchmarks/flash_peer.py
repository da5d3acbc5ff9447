"""The engine beside llama.cpp, each in processes of its own, token by token in turn, at the same residency."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flash_subjects import Subject, evictable, feed_forward_bytes
from flash_techniques import budget_for
from side_by_side import note

from handheld.runtime.flash import ModelOptions, Pack, SessionOptions
from handheld.runtime.flash.engine import Mode
from handheld.runtime.flash.text import model_options

_PAUSE_S = 0.02  # between tokens, in which the other's threads stop spinning
_DECODER = Path(__file__).with_name("flash_decoder.py")


class Decoder:
    """A process of flash_decoder.py."""

    def __init__(self, python: str, given: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [python, str(_DECODER), json.dumps(given)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        self.about = self._answer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        if error is not None:
            self._process.terminate()
        self._process.wait()

    def step(self, token: int, residency: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(token, residency, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("A decoder ended before it answered; what it said is above.")
        return dict(json.loads(line))


@dataclass(frozen=True)
class Contender:
    name: str
    decoder: str  # several may share a process, in which the text then has a token for each
    residency: str = "-"


def refusal(python: str | None) -> str | None:
    """Why there is nothing to compare with; None where there is."""
    if python is None:
        return "give --llama-python, an interpreter that has llama-cpp-python"
    if not sys.platform.startswith("linux"):
        return "memory is taken from llama.cpp with madvise(MADV_PAGEOUT), which only Linux has"
    if importlib.util.find_spec("gguf") is None:
        return "this interpreter lacks gguf, of handheld[llm]"
    try:
        done = subprocess.run([python, "-c", "import llama_cpp, numpy"], capture_output=True, text=True)
    except OSError as error:
        return f"{python} cannot be run: {error.strerror}"
    return None if done.returncode == 0 else f"{python}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}"


def compare(subject: Subject, python: str, threads: int, tokens: int, warmup: int) -> dict[str, Any]:
    """Rows by contender: tokens/s are tokens over the time they took together, as page faults take twice as long in
    one token as in the next, and a median falls to either. `ratios` are those of tokens/s, `median_ratios` those of
    medians.
    """
    pack = subject.open()
    options = {
        "engine, all resident": _options(pack, subject, "dense", 1.0, threads),
        "engine, half, nothing left out": _options(pack, subject, "dense", 0.5, threads),
        "engine, half, selected": _options(pack, subject, "selected", 0.5, threads),
    }
    held = _weights_held(pack, options["engine, half, selected"])
    file_bytes = subject.gguf.stat().st_size
    neurons = feed_forward_bytes(subject.gguf)
    out = {"half": neurons // 2, "same": min(neurons, max(0, file_bytes - held))}
    _sync(subject.gguf)
    peer = {"kind": "llama", "gguf": str(subject.gguf), "threads": threads, "context": 4 * subject.context}
    given = {
        "llama.cpp, loaded": (python, {**peer, "residencies": {}}),
        "llama.cpp, mapped": (
            python, {**peer, "residencies": {name: evictable(subject.gguf, size) for name, size in out.items()}}
        ),
        **{
            name: (sys.executable, {"kind": "engine", "pack": str(subject.pack), **fields})
            for name, fields in options.items()
        },
    }  # fmt: skip
    contenders = [
        Contender("llama.cpp, all resident", "llama.cpp, loaded"),
        Contender("llama.cpp, half of the feed-forward weights", "llama.cpp, mapped", "half"),
        Contender("llama.cpp, as many bytes as the engine holds", "llama.cpp, mapped", "same"),
        *(Contender(name, name) for name in options),
    ]
    steps: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in contenders}
    shuffle = random.Random(0)
    with ExitStack() as stack:
        decoders = {}
        for name, (interpreter, fields) in given.items():
            note(f"{subject.name}: opening {name}")
            decoders[name] = stack.enter_context(Decoder(interpreter, fields))
        for at, token in enumerate(subject.tokens[: tokens + warmup]):
            # In another order each time, so that none always follows the same other.
            for contender in shuffle.sample(contenders, len(contenders)):
                time.sleep(_PAUSE_S)
                answer = decoders[contender.decoder].step(token, contender.residency)
                if at >= warmup:
                    steps[contender.name].append(answer)
        about = {name: decoder.about for name, decoder in decoders.items()}
    rows = [_row(contender.name, steps[contender.name]) for contender in contenders]
    rows[1]["evicted_bytes"], rows[2]["evicted_bytes"] = out["half"], out["same"]
    own = [name for name in options if name != "engine, all resident"]
    pairs = {
        "all resident": ("engine, all resident", contenders[0].name),
        **{f"{name} / {contender.name}": (name, contender.name) for contender in contenders[1:3] for name in own},
    }
    by_name = {row["contender"]: row for row in rows}

    def ratios(measure: str) -> dict[str, float]:
        return {pair: by_name[peer][measure] / by_name[engine][measure] for pair, (engine, peer) in pairs.items()}

    return {
        "rows": rows,
        "about": about,
        "gguf_bytes": file_bytes,
        "feed_forward_bytes": neurons,
        "same_likeliest_token": None if subject.synthetic else _agreement(steps),
        "ratios": ratios("mean_ns"),
        "median_ratios": ratios("median_ns"),
    }


def print_comparison(result: dict[str, Any]) -> None:
    print(
        f"{'':46} {'tokens/s':>9} {'mean':>10} {'median':>10} {'best':>10} {'worst':>10} {'held MB':>8}, key-value "
        "cache aside"
    )
    for row in result["rows"]:
        held = row["counters"].get("held_peak_bytes")
        times = "".join(f"{row[name] / 1e6:8.1f} ms" for name in ("mean_ns", "median_ns", "best_ns", "worst_ns"))
        memory = held - row["counters"]["kv_bytes"] if held else result["gguf_bytes"] - row.get("evicted_bytes", 0)
        print(f"{row['contender']:46} {row['tokens_per_s']:9.2f} {times} {memory / 1e6:8.1f}")
    for name, ratio in result["ratios"].items():
        print(f"{name}: {ratio:.2f}x (of medians {result['median_ratios'][name]:.2f}x)")
    if result["same_likeliest_token"] is not None:
        print(f"all resident, the same likeliest token as llama.cpp: {result['same_likeliest_token']:.1%}")


def _options(pack: Pack, subject: Subject, mode: Mode, held: float, threads: int) -> dict[str, Any]:
    """As `handheld llm generate` chooses them."""
    chosen = model_options(pack, None, mode, subject.context, threads)
    session = replace(chosen.session, budget_bytes=budget_for(pack, chosen, held))
    options = {name: value for name, value in vars(chosen).items() if name != "session"}
    return {"options": options, "session": dict(vars(session))}


def _weights_held(pack: Pack, given: dict[str, Any]) -> int:
    """Bytes beside the key-value cache, which llama.cpp has on top of its mapping as well."""
    options = ModelOptions(SessionOptions(**given["session"]), **given["options"])
    return options.session.budget_bytes - pack.model(options).stats().kv_bytes


def _row(name: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
    times = [step["ns"] for step in steps]
    counters = {key: statistics.median(step["counters"][key] for step in steps) for key in steps[0]["counters"]}
    mean = statistics.mean(times)
    return {
        "contender": name,
        "tokens_per_s": 1e9 / mean,
        "mean_ns": mean,
        "median_ns": statistics.median(times),
        "best_ns": min(times),
        "worst_ns": max(times),
        "token_ns": times,
        "counters": counters,
    }


def _agreement(steps: dict[str, list[dict[str, Any]]]) -> float:
    ours, theirs = steps["engine, all resident"], steps["llama.cpp, all resident"]
    return statistics.mean(a["likeliest"] == b["likeliest"] for a, b in zip(ours, theirs, strict=True))


def _sync(path: Path) -> None:
    """Pages that are not on the disk yet stay in memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
