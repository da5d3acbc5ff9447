"""Measuring a cost table: single ops of the shapes that video decoders have, timed in a target's own runtime.

Each sample is one op, lowered as the target lowers a decoder, but without rewrites. It is timed twice: by itself,
and as a chain of several such ops. The time of one op is the difference divided by the number of ops added. A run
of a single op would mostly measure how tensors are handed over and change their layout. Of several runs the fastest
counts, because only other work on the machine makes a run slower.

The rates of a kind of op are a non-negative least-squares fit to its samples, weighted so that relative errors
count.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx, nn

from handheld.runtime.manifest import Artifact, Method, TensorSpec, Tolerance
from handheld.runtime.session import SESSIONS

from ..errors import ExportError
from ..graph.capture import capture
from ..quiet import quiet
from ..target import Job, Target
from .costs import KINDS, CostTable, Features, OpRates, features_of, kind_of

# Channels that the CPU kernels of onnxruntime and XNNPACK compute together where AVX-512 is there.
_CHANNEL_BLOCK = 16


@dataclass(frozen=True)
class Sample:
    """One op that keeps the shape of its input, and that shape."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class FitQuality:
    """How well the rates of a kind explain its samples: median and largest relative error."""

    kind: str
    samples: int
    median_error: float
    largest_error: float


class _Product(nn.Module):
    """Constant matrix (rows, frames) times frames."""

    def __init__(self, rows: int, frames: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(rows, frames))

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(self.matrix, x)


class _Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x


class _Bordered(nn.Module):
    """Frames copied twice: with a border put around them, and without it again."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:1], x, x[-1:]])[1:-1]


def _conv(frames: int, channels: int, size: int, groups: int = 1, kernel: int = 3) -> Sample:
    def build() -> nn.Module:
        return nn.Conv2d(groups * channels, groups * channels, kernel, padding=kernel // 2, groups=groups)

    return Sample(build, (frames, groups * channels, size, size))


def _depthwise(frames: int, channels: int, size: int, kernel: int) -> Sample:
    return _conv(frames, 1, size, channels, kernel)


def _combination(frames: int, height: int, width: int) -> Sample:
    return Sample(lambda: nn.Conv2d(frames, frames, 1), (1, frames, height, width))


def _product(frames: int, elements: int) -> Sample:
    return Sample(lambda: _Product(frames, frames), (frames, elements))


_CLIPS = ((11, 64, 64, 64), (7, 128, 32, 32), (5, 256, 16, 16), (4, 512, 8, 8), (11, 16, 128, 128))

SAMPLES: tuple[Sample, ...] = (
    # frames, channels, size: the stages of the presets, full and small.
    *(
        _conv(2, 256, 8),
        _conv(2, 512, 8),
        _conv(3, 256, 16),
        _conv(3, 128, 16),
        _conv(5, 128, 32),
        _conv(5, 64, 32),
    ),
    *(_conv(9, 64, 64), _conv(9, 32, 64), _conv(9, 16, 128), _conv(1, 512, 16), _conv(9, 3, 128)),
    # Winograd's products: tiles, channels of a group, size, positions.
    *(_conv(1, 256, 8, 4), _conv(1, 128, 16, 5), _conv(1, 128, 32, 7), _conv(2, 64, 64, 7)),
    *(_conv(3, 32, 64, 5), _conv(3, 16, 128, 5), _conv(1, 256, 16, 7), _conv(2, 64, 32, 5)),
    *(_depthwise(1, 512, 8, 5), _depthwise(3, 512, 16, 5), _depthwise(3, 512, 32, 5), _depthwise(1, 512, 32, 5)),
    *(_depthwise(1, 512, 16, 5), _depthwise(5, 64, 16, 5), _depthwise(9, 64, 32, 3)),
    *(_conv(2, 512, 8, kernel=1), _conv(3, 512, 32, kernel=1), _conv(5, 128, 32, kernel=1)),
    # Winograd's transforms, as convolutions and as products.
    *(
        _combination(4, 4096, 16),
        _combination(6, 4096, 32),
        _combination(11, 4096, 64),
        _combination(12, 2048, 128),
    ),
    *(
        _product(3, 1 << 14),
        _product(4, 1 << 16),
        _product(6, 1 << 17),
        _product(11, 1 << 18),
        _product(12, 1 << 16),
    ),
    *(Sample(_Doubled, shape) for shape in _CLIPS),
    *(Sample(_Bordered, shape) for shape in _CLIPS),
)

# Ops in a chain after the first one.
_CHAIN = 4


def tune(
    target: Target,
    *,
    source: str,
    threads: int | None = None,
    repeat: int = 15,
    samples: Sequence[Sample] = SAMPLES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[CostTable, list[FitQuality]]:
    """Measure a target's runtime on this machine.

    Args:
        source: which machine this is, for the table.
        threads: CPU threads to compute with; None leaves it to the runtime.
        repeat: runs of each sample, of which the fastest counts.
        progress: called with the samples measured so far and their number.

    Returns:
        The table, and how well it explains what was measured, one entry per kind.

    Raises ExportError where the target cannot be lowered to or run here.
    """
    if missing := target.missing():
        install = f"pip install 'handheld[{target.extra}]'"
        raise ExportError(f"Target {target.name} needs {', '.join(missing)}: {install}.")
    session = SESSIONS[target.runtime]
    if reason := session.unavailable() or session.untimed():
        raise ExportError(f"Target {target.name} cannot be measured here: {reason}")
    measured: dict[str, list[tuple[Features, float]]] = {kind: [] for kind in KINDS}
    for index, sample in enumerate(samples):
        progress(index, len(samples))
        kind, features, ns = _measure(target, sample, threads, repeat)
        measured[kind].append((features, ns))
    progress(len(samples), len(samples))
    rates, fits = {}, []
    for kind, found in measured.items():
        rates[kind], fit = _fit(kind, found)
        fits.append(fit)
    return CostTable(target.runtime, source, _CHANNEL_BLOCK, rates), fits


def _measure(target: Target, sample: Sample, threads: int | None, repeat: int) -> tuple[str, Features, float]:
    """Kind, size and time in nanoseconds of a sample."""
    graph, x = _graph(sample)
    calls = [(kind, node) for node in graph.graph.nodes if (kind := kind_of(node))]
    sizes = [features_of(node, _CHANNEL_BLOCK) for _, node in calls]
    size = Features(*(sum(getattr(s, field.name) for s in sizes) for field in fields(Features)))
    chain, _ = _graph(replace(sample, build=lambda: nn.Sequential(*(sample.build() for _ in range(1 + _CHAIN)))))
    alone_ns, chain_ns = (_fastest_ns(target, g, x, threads, repeat) for g in (graph, chain))
    ns = max(chain_ns - alone_ns, 0.0) / _CHAIN
    return calls[-1][0], size, ns


def _graph(sample: Sample) -> tuple[fx.GraphModule, Tensor]:
    x = torch.randn(sample.shape, generator=torch.Generator().manual_seed(0))
    return capture(sample.build(), (x,)), x


def _fastest_ns(target: Target, graph: fx.GraphModule, x: Tensor, threads: int | None, repeat: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / target.filename
        with quiet():
            lowered = target.lower(Job(graph, (x,), "fp32", path, (x,)))
        with torch.no_grad():
            y = graph(x)
        artifact = Artifact(
            *("sample", target.name, target.runtime, target.filename, "fp32", "", 0, Tolerance(1.0, "timing only")),
            methods=(Method(target.method, (tuple(x.shape),), (tuple(y.shape),)),),
            input_dtype=lowered.input_dtype,
            output_dtype=lowered.output_dtype,
        )
        given, yielded = TensorSpec("latents", tuple(x.shape)), TensorSpec("frames", tuple(y.shape))
        session = SESSIONS[target.runtime](path, artifact, (given,), (yielded,), threads)
        try:
            return min(_runs_ns(lambda: session.run({"latents": x.numpy()}), repeat))
        finally:
            session.close()


def _runs_ns(run: Callable[[], object], repeat: int) -> Iterator[int]:
    run()  # the first run also sets things up, which is not part of the op
    for _ in range(repeat):
        start = time.perf_counter_ns()
        run()
        yield time.perf_counter_ns() - start


def _fit(kind: str, measured: Sequence[tuple[Features, float]]) -> tuple[OpRates, FitQuality]:
    """Non-negative least squares of the relative errors: the best of the fits to each subset of the features."""
    times = np.array([max(ns, 1.0) for _, ns in measured])
    columns = np.array([[1.0, f.multiply_adds, f.elements, f.weights] for f, _ in measured]) / times[:, None]
    best, best_error = np.zeros(4), math.inf
    for size in range(1, 5):
        for subset in combinations(range(4), size):
            scale = np.abs(columns[:, subset]).max(0)
            if not scale.all():
                continue
            found, *_ = np.linalg.lstsq(columns[:, subset] / scale, np.ones(len(times)), rcond=None)
            rates = np.zeros(4)
            rates[list(subset)] = found / scale
            error = float(((columns @ rates - 1) ** 2).sum())
            if (rates >= 0).all() and error < best_error:
                best, best_error = rates, error
    errors = np.abs(columns @ best - 1)
    return OpRates(*(float(f"{rate:.4g}") for rate in best)), FitQuality(
        kind, len(times), float(np.median(errors)), float(errors.max())
    )
