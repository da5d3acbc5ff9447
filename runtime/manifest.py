"""The manifest of a bundle: what it holds, for whom, and how it was made. Format version 1.

`schema/manifest.schema.json` says the same as JSON Schema, for readers in other languages.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from . import parsing
from .errors import BundleError
from .stream_plan import StreamPlan, parse_plan

FORMAT_VERSION = 1
# By the layout of what the model gives: floats, or the interleaved rows of 8-bit RGBA.
KINDS = {"NCTHW": "video_decoder", "NCHW": "image_decoder", "NTHWC": "video_decoder", "NHWC": "image_decoder"}

RUNTIMES = ("onnxruntime", "executorch", "executorch-vulkan", "executorch-coreml", "coreml", "coreai")
DTYPES = ("float32", "float16")
# Of 8-bit pixels, and what artefacts give them as: bytes, or each pixel as one int32, little endian, R lowest.
PIXEL_DTYPE = "uint8"
PIXEL_FORMS = ("uint8", "int32")
LAYOUTS = tuple(KINDS)
PIXEL_LAYOUTS = ("NTHWC", "NHWC")


@dataclass(frozen=True)
class Statistics:
    """How a diffusion model normalises latents: n = (z - mean) / std * scaling, z being plain.

    Attributes:
        mean, std: one value per channel, or one for all.
        scaling: one value.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scaling: float


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of the model, as a caller sees it.

    Attributes:
        name: as in `run({name: array})` and, behind `input.` or `output.`, in the golden file.
        shape: every dimension, in the order of `layout`.
        dtype: of the caller's array; an artefact may compute in another one (`Artifact.input_dtype`).
        layout: one letter a dimension: batch, channels, time, height, width; images have no time. Channels are last
            where the output is 8-bit RGBA (dtype uint8, 4 channels, range [0, 255]), and nowhere else.
        range: nominal (lowest, highest) value, not a clamp; None where there is none, as for latents.
        description: one sentence for people.
        statistics: of latents: how plain ones and a diffusion model's become one another. None where they are the
            same, or nothing is known.
        normalised: of latents: whether the model takes a diffusion model's; else plain ones, as an encoder emits.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    layout: str = "NCTHW"
    range: tuple[float, float] | None = None
    description: str = ""
    statistics: Statistics | None = None
    normalised: bool = False

    @property
    def pixels(self) -> bool:
        """Whether it is 8-bit RGBA."""
        return self.dtype == PIXEL_DTYPE

    def picture(self, shape: Sequence[int]) -> tuple[int, int]:
        """Height and width of the pictures in a tensor of this shape, in this layout."""
        return shape[self.layout.index("H")], shape[self.layout.index("W")]

    def frames(self, shape: Sequence[int]) -> int:
        """Frames in a tensor of this shape, in this layout: batch times time; an image is one."""
        return math.prod(size for axis, size in zip(self.layout, shape) if axis in "NT")


@dataclass(frozen=True)
class Tolerance:
    """How far from the golden outputs an artefact may be; at least one of the limits is given.

    Attributes:
        max_abs: largest allowed absolute difference, in output units.
        reason: where the limits come from.
        min_psnr_db: lowest allowed PSNR, for precisions whose worst pixel says little.
    """

    max_abs: float | None
    reason: str
    min_psnr_db: float | None = None

    def __str__(self) -> str:
        limits = [] if self.max_abs is None else [f"{self.max_abs:.0e}"]
        return " and ".join(limits + ([] if self.min_psnr_db is None else [f"{self.min_psnr_db:g} dB"]))

    def fault(self, max_abs_error: float, psnr_db: float) -> str:
        """Which limit a difference breaks, as a sentence without its full stop; empty where it breaks none."""
        if self.max_abs is not None and not max_abs_error <= self.max_abs:
            return f"The largest error, {max_abs_error:.3g}, is above the tolerance, {self.max_abs:.3g}"
        if self.min_psnr_db is not None and not psnr_db >= self.min_psnr_db:
            return f"The PSNR, {psnr_db:.1f} dB, is below the tolerance, {self.min_psnr_db:g} dB"
        return ""


@dataclass(frozen=True)
class Refusal:
    """A place that a rewrite left alone: node of the graph, module it came from (may be empty), and why."""

    node: str
    module: str
    reason: str


@dataclass(frozen=True)
class Option:
    """One of several equivalent lowerings of a place, as modelled when one of them was taken.

    Attributes:
        rewrite: its name.
        relative_cost: modelled time over that of the plainest option, 1.0; null where it does not apply.
        weight_bytes: of the constants that it needs; null where it does not apply.
        refused: why it does not apply, or was not taken although worth most by itself; else null.
    """

    rewrite: str
    relative_cost: float | None
    weight_bytes: int | None
    refused: str | None = None


@dataclass(frozen=True)
class Selection:
    """A place where a rewrite was taken from among others: node, module (may be empty), and what there was."""

    node: str
    module: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class RewriteRecord:
    """What one rewrite did to one artefact: how often it applied, each refusal, each place it was chosen for."""

    name: str
    applied: int
    refused: tuple[Refusal, ...] = ()
    selected: tuple[Selection, ...] = ()


@dataclass(frozen=True)
class Golden:
    """The file of golden inputs and outputs (fp32, eager), relative to the bundle."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Method:
    """What an artefact computes in one shape.

    Attributes:
        name: of the method, function or graph in the artefact's file. For every shape but the first it also ends,
            behind a dot, the names of the shape's tensors in the golden file.
        inputs, outputs: shapes in the order of the bundle's specs.
    """

    name: str
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Artifact:
    """One lowered model.

    Attributes:
        name: unique in the bundle; the handle on the command line.
        target: what it was exported for: a name in `handheld.convert.TARGETS`.
        runtime: what executes it, one of RUNTIMES.
        path: file or folder, relative to the bundle.
        precision: of the weights and the computation: a name in the target's `precisions`.
        sha256, size_bytes: of the file or folder (`files.sha256_of`, `files.size_of`).
        methods: one per shape, which share their weights; the first has the shapes of the bundle's specs, and the
            others are the same in all of a bundle's artefacts.
        input_dtype, output_dtype: what the runtime takes and gives; sessions cast. Of 8-bit pixels `int32` is one
            value a pixel, the tensor without its last axis: its four bytes, little endian, are R, G, B and alpha.
        settings: how the target lowered it, free.
        rewrites: in the order in which they ran.
        delegation: what a delegating runtime handed over (delegates, nodes inside, nodes outside), free.
        lowering_seconds: wall-clock time of rewriting and lowering.
        dynamic: axes of the latents, by their letters in the layout, that may have any size from 2 on; absent where
            none may. The methods are then the sizes that it was verified on, and one graph computes all.
        stream: how a streamed artefact, a folder of programs, is run; absent where the artefact is one program for
            whole clips. A streamed one takes any number of frames: its methods are the clips that it was verified
            on, and only the first one's name is that of something in its programs.
    """

    name: str
    target: str
    runtime: str
    path: str
    precision: str
    sha256: str
    size_bytes: int
    tolerance: Tolerance
    methods: tuple[Method, ...]
    input_dtype: str = "float32"
    output_dtype: str = "float32"
    settings: dict[str, Any] = field(default_factory=dict)
    rewrites: tuple[RewriteRecord, ...] = ()
    delegation: dict[str, Any] | None = None
    lowering_seconds: float | None = None
    stream: StreamPlan | None = None
    dynamic: tuple[str, ...] = ()

    def takes(self, spec: TensorSpec, shape: Sequence[int]) -> bool:
        """Whether it takes latents of this shape, `spec` being the bundle's."""
        if any(method.inputs[0] == tuple(shape) for method in self.methods):
            return True
        if len(shape) != len(spec.shape) or not self.dynamic:
            return False
        return all(
            size >= 2 if axis in self.dynamic else size == own
            for axis, size, own in zip(spec.layout, shape, spec.shape)
        )


@dataclass(frozen=True)
class Manifest:
    """Everything a bundle says about itself.

    Attributes:
        name: for people.
        created_utc: `2026-11-23T18:00:00Z`.
        provenance: free: source, preset, run, teacher, configuration, weights' hash, seed.
        versions: package to version, of everything that had a hand in it.
    """

    name: str
    created_utc: str
    provenance: dict[str, Any]
    versions: dict[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    golden: Golden
    artifacts: tuple[Artifact, ...]

    @property
    def kind(self) -> str:
        """What the bundle is, one of KINDS."""
        return next((KINDS[spec.layout] for spec in self.outputs), KINDS["NCTHW"])

    def to_json(self) -> str:
        """As written to `manifest.json`. Raises BundleError for a value that JSON does not have."""
        tree = {"format_version": FORMAT_VERSION, "kind": self.kind, **asdict(self)}
        for spec in (*tree["inputs"], *tree["outputs"]):
            for key in ("statistics", "normalised"):  # readers of before know neither
                if not spec[key]:
                    del spec[key]
        for artifact in tree["artifacts"]:
            if artifact["stream"] is None:
                del artifact["stream"]
            if not artifact["dynamic"]:
                del artifact["dynamic"]
        try:
            return json.dumps(tree, indent=2, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise BundleError(
                f"The manifest holds something that JSON does not have ({error}). Provenance, settings and "
                "delegation take text, finite numbers, booleans, lists and dicts."
            ) from error


_TEXT = parsing.text()
_ANY_TEXT = parsing.text(empty=True)
# Targets and precisions come and go with the exporter; readers only need the runtime.
_SLUG = parsing.text("[a-z0-9]+(-[a-z0-9]+)*", "lowercase letters, digits and single hyphens")
_SHA256 = parsing.text("[0-9a-f]{64}", "a SHA-256 in 64 lowercase hex digits")

_TENSOR = parsing.record(
    TensorSpec,
    {
        "name": parsing.text(r"\w+", "letters, digits and underscores"),
        "shape": parsing.sequence(parsing.integer(1), least=1),
        "dtype": parsing.one_of(*DTYPES, PIXEL_DTYPE),
        "layout": parsing.one_of(*LAYOUTS),
        "range": parsing.nullable(parsing.sequence(parsing.number(), least=2)),
        "description": _ANY_TEXT,
        "statistics": parsing.record(
            Statistics,
            {
                "mean": parsing.sequence(parsing.number(), least=1),
                "std": parsing.sequence(parsing.number(), least=1),
                "scaling": parsing.number(),
            },
        ),
        "normalised": parsing.boolean,
    },
    optional=("statistics", "normalised"),
)
_OPTION = parsing.record(
    Option,
    {
        "rewrite": _TEXT,
        "relative_cost": parsing.nullable(parsing.number(0)),
        "weight_bytes": parsing.nullable(parsing.integer(0)),
        "refused": parsing.nullable(_TEXT),
    },
)
_SELECTION = parsing.record(
    Selection, {"node": _TEXT, "module": _ANY_TEXT, "options": parsing.sequence(_OPTION, least=1)}
)
_REWRITE = parsing.record(
    RewriteRecord,
    {
        "name": _TEXT,
        "applied": parsing.integer(0),
        "refused": parsing.sequence(parsing.record(Refusal, {"node": _TEXT, "module": _ANY_TEXT, "reason": _TEXT})),
        "selected": parsing.sequence(_SELECTION),
    },
)
_SHAPES = parsing.sequence(parsing.sequence(parsing.integer(1), least=1), least=1)
_METHOD = parsing.record(
    Method,
    {"name": parsing.text(r"\w+", "letters, digits and underscores"), "inputs": _SHAPES, "outputs": _SHAPES},
)
_ARTIFACT = parsing.record(
    Artifact,
    {
        "name": _TEXT,
        "target": _SLUG,
        "runtime": parsing.one_of(*RUNTIMES),
        "path": parsing.relative_path,
        "precision": _SLUG,
        "sha256": _SHA256,
        "size_bytes": parsing.integer(0),
        "tolerance": parsing.record(
            Tolerance,
            {
                "max_abs": parsing.nullable(parsing.number(0)),
                "reason": _TEXT,
                "min_psnr_db": parsing.nullable(parsing.number()),
            },
        ),
        "methods": parsing.sequence(_METHOD, least=1),
        "input_dtype": parsing.one_of(*DTYPES),
        "output_dtype": parsing.one_of(*DTYPES, *PIXEL_FORMS),
        "settings": parsing.mapping(),
        "rewrites": parsing.sequence(_REWRITE),
        "delegation": parsing.nullable(parsing.mapping()),
        "lowering_seconds": parsing.nullable(parsing.number(0)),
        "stream": parse_plan,
        "dynamic": parsing.sequence(parsing.one_of("T", "H", "W"), least=1),
    },
    optional=("stream", "dynamic"),
)
_MANIFEST = parsing.record(
    Manifest,
    {
        "name": _TEXT,
        "created_utc": parsing.text(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "a UTC time such as 2026-11-23T18:00:00Z"),
        "provenance": parsing.mapping(),
        "versions": parsing.mapping(_TEXT),
        "inputs": parsing.sequence(_TENSOR, least=1),
        "outputs": parsing.sequence(_TENSOR, least=1),
        "golden": parsing.record(
            Golden, {"path": parsing.relative_path, "sha256": _SHA256, "size_bytes": parsing.integer(0)}
        ),
        "artifacts": parsing.sequence(_ARTIFACT, least=1),
    },
)


def parse_manifest(text: str, source: str) -> Manifest:
    """Parse `manifest.json`; `source` names it in errors.

    Raises BundleError: for another format version, naming it and the one understood; else for every fault at
    once (unknown, missing and duplicate keys, wrong types, paths that leave the bundle, names used twice).
    """
    try:
        tree = parsing.load_json(text)
    except ValueError as error:
        raise BundleError(f"{source} is not valid JSON: {error}. Fetch or export the bundle again.") from error
    if not isinstance(tree, dict) or "format_version" not in tree:
        raise BundleError(f"{source} has no format_version: it is not the manifest of a bundle.")
    version = tree.pop("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise BundleError(
            f"{source} has format_version {version!r}; this handheld understands {FORMAT_VERSION}. "
            "Use the handheld that wrote the bundle, or export it again."
        )
    kind = tree.pop("kind", None)
    if kind not in KINDS.values():
        raise BundleError(f"{source} has kind {kind!r}; this handheld understands {', '.join(KINDS.values())}.")
    faults: list[str] = []
    manifest = _MANIFEST(tree, "", faults)
    if not faults:
        faults = _disagreements(manifest, kind)
    if faults:
        raise BundleError(f"{source} is not valid:\n" + "\n".join(f"  {fault}" for fault in faults))
    return manifest


def _disagreements(manifest: Manifest, kind: str) -> list[str]:
    """Faults between fields that are each well-formed."""
    faults = [
        f"kind: {kind}, and outputs[{index}] is {spec.layout}"
        for index, spec in enumerate(manifest.outputs)
        if KINDS[spec.layout] != kind
    ]
    for side, specs in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        faults += _repeated(f"{side}: name", [spec.name for spec in specs])
        for index, spec in enumerate(specs):
            if len(spec.shape) != len(spec.layout):
                faults.append(
                    f"{side}[{index}].shape: {len(spec.shape)} dimensions, {spec.layout} has {len(spec.layout)}"
                )
            if spec.statistics is not None:
                channels = spec.shape[1] if len(spec.shape) > 1 else 0
                lengths = {len(spec.statistics.mean), len(spec.statistics.std)} - {1, channels}
                if lengths or min(*spec.statistics.std, spec.statistics.scaling) <= 0:
                    faults.append(
                        f"{side}[{index}].statistics: wanted 1 or {channels} values of mean and std, std and "
                        "scaling above 0"
                    )
            if fault := _pixel_fault(spec, side):
                faults.append(f"{side}[{index}].{fault}")
            if spec.range is not None and (len(spec.range) != 2 or spec.range[0] >= spec.range[1]):
                faults.append(f"{side}[{index}].range: wanted [lowest, highest], found {list(spec.range)}")
    faults += [
        f"artifacts[{index}].dynamic: {list(artifact.dynamic)}; wanted axes of {manifest.inputs[0].layout}, each "
        "once, of an artefact that is not streamed and has one input"
        for index, artifact in enumerate(manifest.artifacts)
        if artifact.dynamic
        and (
            len(set(artifact.dynamic)) != len(artifact.dynamic)
            or not set(artifact.dynamic) <= set(manifest.inputs[0].layout)
            or artifact.stream is not None
            or len(manifest.inputs) > 1
        )
    ]
    pixels = any(spec.pixels for spec in manifest.outputs)
    wanted = PIXEL_FORMS if pixels else DTYPES
    faults += [
        f"artifacts[{index}].output_dtype: {artifact.output_dtype}, and the outputs are "
        f"{manifest.outputs[0].dtype}: wanted {' or '.join(wanted)}"
        for index, artifact in enumerate(manifest.artifacts)
        if artifact.output_dtype not in wanted
    ]
    faults += [
        f"artifacts[{index}].stream: frames of a streamed artefact are floats, not pixels"
        for index, artifact in enumerate(manifest.artifacts)
        if pixels and artifact.stream is not None
    ]
    faults += [
        f"artifacts[{index}].tolerance: max_abs and min_psnr_db are both null: nothing would be checked"
        for index, artifact in enumerate(manifest.artifacts)
        if artifact.tolerance.max_abs is None and artifact.tolerance.min_psnr_db is None
    ]
    for index, artifact in enumerate(manifest.artifacts):
        faults += [f"artifacts[{index}].{fault}" for fault in _method_faults(artifact, manifest)]
        if artifact.stream is not None and not faults:
            faults += [f"artifacts[{index}].stream.{fault}" for fault in _stream_faults(artifact, artifact.stream)]
    faults += _repeated("artifacts: name", [artifact.name for artifact in manifest.artifacts])
    paths = ["manifest.json", manifest.golden.path, *(artifact.path for artifact in manifest.artifacts)]
    faults += _repeated("path", paths)
    faults += [
        f"path: {inner} lies inside {outer}" for outer in paths for inner in paths if inner.startswith(outer + "/")
    ]
    return faults


def _pixel_fault(spec: TensorSpec, side: str) -> str:
    """Where a spec is 8-bit RGBA in part only; empty where it is all or nothing."""
    if not spec.pixels and spec.layout not in PIXEL_LAYOUTS:
        return ""
    whole = (spec.pixels, spec.layout in PIXEL_LAYOUTS, spec.shape[-1] == 4, spec.range == (0.0, 255.0))
    if side == "outputs" and all(whole):
        return ""
    return (
        f"layout: {spec.dtype} {spec.layout} {list(spec.shape)}; 8-bit RGBA is an output of dtype uint8, layout "
        f"{' or '.join(PIXEL_LAYOUTS)}, 4 channels and range [0, 255]"
    )


def _method_faults(artifact: Artifact, manifest: Manifest) -> list[str]:
    """Where an artefact's methods disagree with the specs, with each other or with the first artefact's."""
    faults = _repeated("methods: name", [method.name for method in artifact.methods])
    faults += _repeated("methods: inputs", [str(method.inputs) for method in artifact.methods])
    specs = [tuple(spec.shape for spec in side) for side in (manifest.inputs, manifest.outputs)]
    first, *more = artifact.methods
    if [first.inputs, first.outputs] != specs:
        faults.append("methods[0]: its shapes are not those of the bundle's inputs and outputs")
    wanted = [[len(shape) for shape in side] for side in specs]
    faults += [
        f"methods[{index}]: shapes of other tensors than the bundle's inputs and outputs"
        for index, method in enumerate(more, start=1)
        if [[len(shape) for shape in side] for side in (method.inputs, method.outputs)] != wanted
    ]
    if tuple(more) != manifest.artifacts[0].methods[1:]:
        faults.append("methods: after the first, not the same as those of artifacts[0]")
    return faults


def _stream_faults(artifact: Artifact, plan: StreamPlan) -> list[str]:
    """Where a plan contradicts itself or the clips of the artefact."""
    sides = [*artifact.methods[0].inputs, *artifact.methods[0].outputs]
    if [len(shape) for shape in sides] != [5, 5]:
        return [f"latents and frames have the shapes {sides}: 5 dimensions each are needed"]
    latents, frames = ((c, h, w) for _, c, _, h, w in sides)
    return plan.faults(latents, frames) + [
        f"passes: they make {plan.length(taken[2])} frames of {taken[2]}, methods[{index}] says {given[2]}"
        for index, ((taken,), (given,)) in enumerate((method.inputs, method.outputs) for method in artifact.methods)
        if plan.length(taken[2]) != given[2]
    ]


def _repeated(what: str, values: Sequence[str]) -> list[str]:
    return [f'{what} "{value}" is used twice' for value in sorted(set(values)) if values.count(value) > 1]
