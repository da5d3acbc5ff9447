"""The flash engine's numbers: techniques, llama.cpp at the same memory, kernels, selector, storage.

    python benchmarks/flash.py --models smollm2 1b 3b --llama-python peer/bin/python --out flash.json

Sections, all by default:
  storage     random reads of this machine's disk past the page cache, by size and number in flight
  kernels     feed-forward arithmetic against memory bandwidth
  selector    what the selector finds of what is active, by how much it selects
  techniques  a row for each technique of "LLM in a flash", end to end: bytes read, where the time goes, tokens/s
  quality     the real model: perplexity of each mode with half of the neurons resident
  peer        tokens/s beside llama.cpp, whose memory is paged out to the same residency before each token

smollm2 is SmolLM2-135M-Instruct, its own weights and a real text. 1b and 3b are random weights in the shapes of
Llama 3.2 1B and 3B with 32 000 tokens, whose activations repeat from token to token as those of a distilled model
do (benchmarks/flash_shapes.py); they are labelled synthetic. Everything compared takes turns token by token; ratios
are of one run, of techniques those of medians. `--workdir` keeps what was written, 0.2 to 5 GB, for the next run.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import flash_kernels
import flash_peer
import flash_techniques
from flash_shapes import ACTIVE
from flash_subjects import MODELS, REAL, Subject, prepare, reference_text
from side_by_side import note

from handheld.runtime import files
from handheld.runtime.flash.plan import calibrate
from handheld.runtime.flash.text import PackTokenizer, model_options, quality
from handheld.runtime.host import conditions, describe_host

SCHEMA_VERSION = 1
SECTIONS = ("storage", "kernels", "selector", "techniques", "quality", "peer")
_PIECE_TOKENS = 256  # of a text that perplexity is measured on
_BY_MODEL = ("selector", "techniques", "quality", "peer")


class Run:
    """The options, and the JSON, written again after each result."""

    def __init__(self, options: argparse.Namespace, workdir: Path) -> None:
        self.options, self.workdir = options, workdir
        self.no_peer = flash_peer.refusal(options.llama_python)
        self.tree: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "command": shlex.join(["python", *sys.argv]),
            "created_utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "device": asdict(describe_host()),
            "conditions": asdict(conditions()),
            "options": {name: str(value) for name, value in vars(options).items()},
            "models": {},
        }

    def note(self, keys: tuple[str, ...], result: Any) -> None:
        place = self.tree
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = result
        if self.options.out:
            text = json.dumps(self.tree, indent=1, allow_nan=False) + "\n"
            files.write_atomically(self.options.out, text.encode())


def storage(run: Run) -> None:
    note("storage: reading at random")
    device = calibrate(run.workdir, threads=(1, 8, 16, 32), file_bytes=1 << 30, compute_threads=run.options.threads)
    run.note(("storage",), json.loads(device.to_json()))
    print("storage, random reads past the page cache, MB/s by reads in flight")
    threads = sorted({point.threads for point in device.storage.points})
    print(f"{'':>8}" + "".join(f"{count:>8}" for count in threads))
    for chunk in sorted({point.chunk_bytes for point in device.storage.points}):
        rates = "".join(f"{device.storage.bytes_per_s(chunk, count) / 1e6:8.0f}" for count in threads)
        print(f"{chunk // 1024:>5} KiB{rates}")


def kernels(run: Run) -> None:
    for dtype in ("int8", "int4m"):
        for threads in sorted({1, run.options.threads}):
            note(f"kernels: {dtype}, {threads} threads")
            result = flash_kernels.measure(run.workdir, dtype, threads, run.options.rounds)
            run.note(("kernels", dtype, str(threads)), result)
            shares = ", ".join(
                f"{name} {result[name] / 1e9:.1f} GB/s, {result[name + ', share']:.0%}"
                for name in (flash_kernels.ALL, flash_kernels.TENTH)
            )
            print(f"kernels, {dtype}, {threads} threads, of {result['memory'] / 1e9:.1f} GB/s: {shares}")


def selector(run: Run, subject: Subject) -> None:
    note(f"{subject.name}: what the selector finds")
    options = run.options
    rows = flash_techniques.coverage(subject, options.threads, 2 * options.tokens, options.warmup)
    run.note(("models", subject.name, "selector"), rows)
    print(f"{_label(subject)}: of the {rows[0]['active_share']:.1%} that are active, computed")
    for row in rows:
        print(f"  selecting {row['selected_share']:.1%}: {row['found']:.1%}", end="")
        if row["found_with_resident"] is None:
            print()
        else:
            print(
                f", with half of the neurons resident {row['found_with_resident']:.1%}, and these preferred "
                f"{row['found_with_resident_preferred']:.1%}"
            )


def techniques(run: Run, subject: Subject) -> None:
    note(f"{subject.name}: techniques")
    options = run.options
    rows = flash_techniques.measure(subject, ACTIVE, options.threads, options.tokens, options.warmup)
    run.note(("models", subject.name, "techniques"), rows)
    print(f"{_label(subject)}: medians of {options.tokens} tokens")
    flash_techniques.print_rows(rows)
    print("engine's own time a layer:", ", ".join(f"{row['overhead_us_per_layer']:.0f}" for row in rows), "us")


def fidelity(run: Run, subject: Subject) -> None:
    if subject.synthetic:
        return
    note(f"{subject.name}: quality")
    pack = subject.open()
    # The budget is of the context that a piece of the text takes: what a longer one left over would hold neurons.
    options = model_options(pack, None, "selected", _PIECE_TOKENS, run.options.threads)
    budget = flash_techniques.budget_for(pack, options, 0.5)
    text = reference_text()
    tokens = PackTokenizer(pack.path).encode(text[len(text) // 2 :][:8192])[: 2 * _PIECE_TOKENS]
    rows = [asdict(row) for row in quality(pack, tokens, budget, _PIECE_TOKENS, run.options.threads)]
    run.note(("models", subject.name, "quality"), rows)
    for row in rows:
        print(
            f"{_label(subject)}: {row['mode']}: perplexity {row['perplexity']:.2f}, "
            f"{row['agreement']:.1%} as exact, {row['bytes_read_per_token'] / 1e6:.1f} MB read, "
            f"{row['computed_share']:.0%} computed"
        )


def peer(run: Run, subject: Subject) -> None:
    options = run.options
    if run.no_peer is not None:
        run.note(("models", subject.name, "peer"), {"not_measured": run.no_peer})
        print(f"{_label(subject)}: llama.cpp: not measured: {run.no_peer}")
        return
    result = flash_peer.compare(subject, options.llama_python, options.threads, options.tokens, options.warmup)
    run.note(("models", subject.name, "peer"), result)
    print(f"{_label(subject)}: {options.tokens} tokens each, {options.threads} threads each")
    flash_peer.print_comparison(result)


_MODEL_SECTIONS: dict[str, Callable[[Run, Subject], None]] = {
    "selector": selector,
    "techniques": techniques,
    "quality": fidelity,
    "peer": peer,
}


def _label(subject: Subject) -> str:
    return f"{subject.name} (synthetic)" if subject.synthetic else subject.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=(REAL, "1b"))
    parser.add_argument("--dtype", choices=("int8", "int4", "int4m"), default="int4m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=20, help="timed tokens of each variant")
    parser.add_argument("--warmup", type=int, default=24, help="tokens that fill windows before")
    parser.add_argument("--rounds", type=int, default=60, help="of kernels")
    parser.add_argument("--workdir", type=Path, help="a folder on a disk, for models; kept")
    parser.add_argument("--llama-python", help="an interpreter that has llama-cpp-python")
    parser.add_argument("--out", type=Path, help="JSON to write")
    options = parser.parse_args()
    with ExitStack() as stack:
        workdir = options.workdir or Path(stack.enter_context(tempfile.TemporaryDirectory(dir=Path.cwd())))
        workdir.mkdir(parents=True, exist_ok=True)
        run = Run(options, workdir)
        if "storage" in options.sections:
            storage(run)
        if "kernels" in options.sections:
            kernels(run)
        wanted = [section for section in _BY_MODEL if section in options.sections]
        for name in options.models if wanted else ():
            subject = prepare(name, options.dtype, workdir, with_gguf="peer" in wanted and run.no_peer is None)
            if not subject.open().info.direct_io:
                print(f"{workdir} refuses direct reads: the page cache takes part, and ratios say little.")
            for section in wanted:
                _MODEL_SECTIONS[section](run, subject)


if __name__ == "__main__":
    main()
