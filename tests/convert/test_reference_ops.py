"""The reference evaluator, operation by operation, against torch on random inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from handheld.convert import ExportError
from handheld.convert.coreml.evaluator import MLProgram, UnsupportedProgram, evaluate, load_program
from handheld.convert.coreml.evaluator.ops import OPS
from handheld.convert.coreml.lower import operations_of
from handheld.convert.quiet import quiet

torch.manual_seed(0)
W = torch.randn(6, 4, 3, 3)
DEPTHWISE = torch.randn(4, 1, 3, 2)
W3D = torch.randn(5, 4, 3, 3, 3)
B = torch.randn(6)
M = torch.randn(7, 5)
GAMMA, BETA = torch.randn(4), torch.randn(4)

CLIP = (2, 4, 5, 7)


def case(kind: str, build: Callable, expected: Callable, *shapes: tuple[int, ...], label: str = "") -> Any:
    """`build(mb, *inputs)` makes one operation, `expected(*tensors)` is the same in torch."""
    return pytest.param(kind, build, expected, shapes or (CLIP,), id=f"{kind}-{label}" if label else kind)


def same(size: int, stride: int, kernel: int) -> int:
    return max(0, (-(-size // stride) - 1) * stride + kernel - size)


def conv_same(x: Tensor, lower: bool) -> Tensor:
    (h, w), pads = (same(5, 2, 3), same(7, 2, 3)), []
    for total in (w, h):
        pads += [total - total // 2, total // 2] if lower else [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), W, B, stride=2)


CASES = [
    case("abs", lambda mb, x: mb.abs(x=x), torch.abs),
    case("add", lambda mb, x, y: mb.add(x=x, y=y), torch.add, CLIP, (4, 1, 7), label="broadcast"),
    case(
        "batch_norm",
        lambda mb, x: mb.batch_norm(
            x=x,
            mean=BETA.numpy(),
            variance=GAMMA.numpy() ** 2,
            gamma=GAMMA.numpy(),
            beta=BETA.numpy(),
            epsilon=1e-3,
        ),
        lambda x: F.batch_norm(x, BETA, GAMMA**2, GAMMA, BETA, eps=1e-3),
    ),
    case("cast", lambda mb, x: mb.cast(x=x, dtype="int32"), lambda x: x.trunc().int(), label="towards zero"),
    case("cast", lambda mb, x: mb.cast(x=x, dtype="fp16"), lambda x: x.half().float(), label="rounds"),
    case("clip", lambda mb, x: mb.clip(x=x, alpha=-0.5, beta=0.25), lambda x: x.clamp(-0.5, 0.25)),
    case("concat", lambda mb, *xs: mb.concat(values=xs, axis=-2), lambda *xs: torch.cat(xs, -2), CLIP, CLIP),
    case(
        "conv",
        lambda mb, x: mb.conv(x=x, weight=W.numpy(), bias=B.numpy(), pad_type="custom", pad=[1, 0, 2, 1]),
        lambda x: F.conv2d(F.pad(x, [2, 1, 1, 0]), W, B),
        label="padded unevenly",
    ),
    case("conv", lambda mb, x: mb.conv(x=x, weight=W.numpy()), lambda x: F.conv2d(x, W), label="defaults"),
    case(
        "conv",
        lambda mb, x: mb.conv(
            x=x, weight=DEPTHWISE.numpy(), groups=4, strides=[1, 2], dilations=[2, 1], pad_type="valid"
        ),
        lambda x: F.conv2d(x, DEPTHWISE, groups=4, stride=(1, 2), dilation=(2, 1)),
        label="depthwise",
    ),
    *(
        case(
            "conv",
            lambda mb, x, kind=kind: mb.conv(x=x, weight=W.numpy(), bias=B.numpy(), strides=[2, 2], pad_type=kind),
            lambda x, lower=kind == "same_lower": conv_same(x, lower),
            label=kind,
        )
        for kind in ("same", "same_lower")
    ),
    case(
        "conv",
        lambda mb, x: mb.conv(x=x, weight=W3D.numpy(), pad_type="custom", pad=[1, 1, 0, 0, 2, 2]),
        lambda x: F.conv3d(x, W3D, padding=(1, 0, 2)),
        (1, 4, 3, 5, 6),
        label="3d",
    ),
    case("cos", lambda mb, x: mb.cos(x=x), torch.cos),
    case("floor", lambda mb, x: mb.floor(x=x), torch.floor),
    case("sin", lambda mb, x: mb.sin(x=x), torch.sin),
    case("erf", lambda mb, x: mb.erf(x=x), torch.erf),
    case("exp", lambda mb, x: mb.exp(x=x), torch.exp),
    case(
        "expand_dims",
        lambda mb, x: mb.expand_dims(x=x, axes=[-1, 1]),
        lambda x: x[:, None, ..., None],
        (3, 4, 5),
    ),
    case("gelu", lambda mb, x: mb.gelu(x=x), F.gelu, label="default"),
    case(
        "gelu",
        lambda mb, x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
        lambda x: F.gelu(x, approximate="tanh"),
        label="tanh",
    ),
    case(
        "gelu",
        lambda mb, x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"),
        lambda x: x * torch.sigmoid(1.702 * x),
        label="sigmoid",
    ),
    case("identity", lambda mb, x: mb.identity(x=x), lambda x: x),
    case("inverse", lambda mb, x: mb.inverse(x=x, epsilon=3.0), lambda x: 1 / (x + 3)),
    case(
        "layer_norm",
        lambda mb, x: mb.layer_norm(x=x, axes=[1], gamma=GAMMA.numpy(), beta=BETA.numpy(), epsilon=1e-3),
        lambda x: F.layer_norm(x.movedim(1, -1), (4,), GAMMA, BETA, 1e-3).movedim(-1, 1),
        label="channels",
    ),
    case(
        "layer_norm",
        lambda mb, x: mb.layer_norm(x=x, axes=[-2, -1]),
        lambda x: F.layer_norm(x, (5, 7), eps=1e-5),
        label="defaults",
    ),
    case("leaky_relu", lambda mb, x: mb.leaky_relu(x=x, alpha=0.2), lambda x: F.leaky_relu(x, 0.2)),
    case(
        "linear",
        lambda mb, x: mb.linear(x=x, weight=M.numpy(), bias=np.ones(7, np.float32)),
        lambda x: F.linear(x, M) + 1,
        (2, 3, 5),
    ),
    case("matmul", lambda mb, x, y: mb.matmul(x=x, y=y), torch.matmul, (2, 3, 5), (2, 5, 4)),
    case(
        "matmul",
        lambda mb, x, y: mb.matmul(x=x, y=y, transpose_x=True, transpose_y=True),
        lambda x, y: x.mT @ y.mT,
        (2, 5, 3),
        (2, 4, 5),
        label="transposed",
    ),
    case("maximum", lambda mb, x, y: mb.maximum(x=x, y=y), torch.maximum, CLIP, (7,)),
    case("minimum", lambda mb, x, y: mb.minimum(x=x, y=y), torch.minimum, CLIP, (5, 1)),
    case("mul", lambda mb, x: mb.mul(x=x, y=np.float32(1.5)), lambda x: x * 1.5, label="number"),
    case(
        "pad",
        lambda mb, x: mb.pad(x=x, pad=[1, 0, 2, 3], mode="constant", constant_val=0.5),
        lambda x: F.pad(x, [2, 3, 1, 0], value=0.5),
        label="constant",
    ),
    *(
        case(
            "pad",
            lambda mb, x, mode=mode: mb.pad(x=x, pad=[0, 0, 0, 0, 1, 0, 2, 3], mode=mode),
            lambda x, mode=mode: F.pad(x, [2, 3, 1, 0], mode=mode),
            label=mode,
        )
        for mode in ("reflect", "replicate")
    ),
    case(
        "pixel_shuffle",
        lambda mb, x: mb.pixel_shuffle(x=x, upscale_factor=2),
        lambda x: F.pixel_shuffle(x, 2),
        (2, 12, 3, 5),
    ),
    case("pow", lambda mb, x: mb.pow(x=x, y=np.float32(3)), lambda x: x**3),
    case("real_div", lambda mb, x, y: mb.real_div(x=x, y=y), torch.div, CLIP, CLIP),
    case("reduce_max", lambda mb, x: mb.reduce_max(x=x), lambda x: x.amax(), label="all axes"),
    case(
        "reduce_mean",
        lambda mb, x: mb.reduce_mean(x=x, axes=[1, -1], keep_dims=True),
        lambda x: x.mean((1, 3), True),
    ),
    case("reduce_min", lambda mb, x: mb.reduce_min(x=x, axes=[0]), lambda x: x.amin(0)),
    case("reduce_sum", lambda mb, x: mb.reduce_sum(x=x, axes=[2, 3]), lambda x: x.sum((2, 3))),
    case("relu", lambda mb, x: mb.relu(x=x), torch.relu),
    case(
        "reshape",
        lambda mb, x: mb.reshape(x=x, shape=[-1, 4, 7]),
        lambda x: x.reshape(-1, 4, 7),
        label="inferred",
    ),
    case(
        "reshape",
        lambda mb, x: mb.reshape(x=x, shape=[0, 2, 0, 14]),
        lambda x: x.reshape(2, 2, 5, 14),
        label="kept",
    ),
    case("rsqrt", lambda mb, x: mb.rsqrt(x=x, epsilon=9.0), lambda x: (x + 9).rsqrt()),
    case("sigmoid", lambda mb, x: mb.sigmoid(x=x), torch.sigmoid),
    case("silu", lambda mb, x: mb.silu(x=x), F.silu),
    case(
        "slice_by_index",
        lambda mb, x: mb.slice_by_index(
            x=x,
            begin=[1, 0, -4, 0],
            end=[2, 0, -1, 7],
            stride=[1, 1, 2, 3],
            end_mask=[False, True, False, False],
        ),
        lambda x: x[1:2, :, -4:-1:2, ::3],
        label="strided",
    ),
    case(
        "slice_by_index",
        lambda mb, x: mb.slice_by_index(
            x=x,
            begin=[1, 3, 0, 2],
            end=[0, 0, 5, 7],
            begin_mask=[False, False, True, False],
            squeeze_mask=[True, True, False, False],
        ),
        lambda x: x[1, 3, :5, 2:],
        label="squeezed",
    ),
    case(
        "slice_by_index",
        lambda mb, x: mb.slice_by_index(
            x=x,
            begin=[0, 0, 4, 6],
            end=[2, 4, 0, 0],
            stride=[1, 1, -1, -2],
            end_mask=[False, False, False, True],
        ),
        lambda x: x[:, :, [4, 3, 2, 1]][..., [6, 4, 2, 0]],
        label="backwards",
    ),
    case(
        "slice_by_size",
        lambda mb, x: mb.slice_by_size(x=x, begin=[0, 1, 2, 0], size=[2, 2, -1, 7]),
        lambda x: x[:, 1:3, 2:],
    ),
    case("softmax", lambda mb, x: mb.softmax(x=x, axis=1), lambda x: x.softmax(1)),
    case(
        "split",
        lambda mb, x: mb.add(x=(s := mb.split(x=x, split_sizes=[1, 2, 4], axis=3))[0], y=s[2]),
        lambda x: x[..., :1] + x[..., 3:],
        label="sizes",
    ),
    case(
        "split",
        lambda mb, x: mb.sub(x=(s := mb.split(x=x, num_splits=2, axis=1))[1], y=s[0]),
        lambda x: x[:, 2:] - x[:, :2],
        label="equal",
    ),
    case("sqrt", lambda mb, x: mb.sqrt(x=mb.abs(x=x)), lambda x: x.abs().sqrt()),
    case("square", lambda mb, x: mb.square(x=x), torch.square),
    case("squeeze", lambda mb, x: mb.squeeze(x=x, axes=[0, -1]), lambda x: x[0, ..., 0], (1, 4, 1, 1)),
    case("stack", lambda mb, *xs: mb.stack(values=xs, axis=1), lambda *xs: torch.stack(xs, 1), CLIP, CLIP),
    case("sub", lambda mb, x, y: mb.sub(x=x, y=y), torch.sub, CLIP, (1, 4, 1, 1)),
    case("tanh", lambda mb, x: mb.tanh(x=x), torch.tanh),
    case("tile", lambda mb, x: mb.tile(x=x, reps=[1, 2, 1, 3]), lambda x: x.tile(1, 2, 1, 3)),
    case("transpose", lambda mb, x: mb.transpose(x=x, perm=[0, 2, -1, 1]), lambda x: x.permute(0, 2, 3, 1)),
    case(
        "upsample_nearest_neighbor",
        lambda mb, x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=2.0, scale_factor_width=3.0),
        lambda x: F.interpolate(x, scale_factor=(2.0, 3.0), mode="nearest"),
    ),
]


def package(
    path: Path, *builds: tuple[Callable, Sequence[tuple[int, ...]]], fp16: bool = False, least: str = "iOS17"
) -> Path:
    """Save an ML program of what each `build(mb, *inputs)` makes, with no pass of coremltools run over it.

    For the operating system `least` or later. Its inputs are x0, y0 for the first build, x1, y1 for the second, in
    these shapes.
    """
    with quiet():
        import coremltools as ct
        from coremltools.converters.mil import Builder as mb
        from coremltools.converters.mil.mil import Function, types
        from coremltools.converters.mil.mil import Program as MilProgram

        target, program = ct.target[least], MilProgram()
        inputs = {
            f"{letter}{index}": mb.placeholder(shape=shape, dtype=types.fp16 if fp16 else types.fp32)
            for index, (_, shapes) in enumerate(builds)
            for letter, shape in zip("xy", shapes)
        }
        with Function(inputs, opset_version=target) as function:
            given = function.inputs
            function.set_outputs(
                [
                    build(mb, *(given[f"{letter}{index}"] for letter, _ in zip("xy", shapes)))
                    for index, (build, shapes) in enumerate(builds)
                ]
            )
        program.add_function("main", function)
        model = ct.convert(
            program,
            minimum_deployment_target=target,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
        model.save(str(path))
    return path


def run(program: MLProgram, *tensors: Tensor, typed: bool = True) -> Tensor:
    found = evaluate(program, dict(zip(("x0", "y0"), (t.numpy() for t in tensors))), typed=typed)
    (output,) = found.outputs.values()
    return torch.from_numpy(np.asarray(output))


@pytest.fixture(scope="module", params=["iOS16", "iOS17", "iOS18"])
def evaluated(request, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, list[Tensor], Tensor]]:
    """Of every case: the kind of the operation that made its output, its inputs and its output.

    One program for each version of the operations.
    """
    cases = [(build, shapes) for _, build, _, shapes in (parameter.values for parameter in CASES)]
    program = load_program(package(tmp_path_factory.mktemp("ops") / "ops.mlpackage", *cases, least=request.param))
    given = [[torch.randn(shape) * 2 for shape in shapes] for _, shapes in cases]
    arrays = {f"{c}{i}": t.numpy() for i, tensors in enumerate(given) for c, t in zip("xy", tensors)}
    outputs = evaluate(program, arrays).outputs
    kinds = {variable.name: operation.kind for operation in program.operations for variable in operation.outputs}
    return [
        (kinds[name], tensors, torch.from_numpy(np.asarray(outputs[name])))
        for name, tensors in zip(program.outputs, given)
    ]


@pytest.mark.parametrize("index", range(len(CASES)), ids=[str(parameter.id) for parameter in CASES])
def test_operation_computes_what_torch_does(index: int, evaluated) -> None:
    kind, _, expected, _ = CASES[index].values
    last, given, found = evaluated[index]
    assert last == kind or kind == "split"
    wanted = expected(*given)
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_every_operation_of_the_table_has_a_case() -> None:
    assert {parameter.values[0] for parameter in CASES} | {"scaled_dot_product_attention"} == set(OPS)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_ios18_computes_what_torch_does(masked: bool, tmp_path: Path) -> None:
    def build(mb, x, y):
        mask = {"attn_mask": np.array([[True, False, True]] * 3)} if masked else {}
        return mb.scaled_dot_product_attention(query=x, key=y, value=y, **mask)

    shape = (2, 4, 3, 8)
    program = load_program(package(tmp_path / "op.mlpackage", (build, [shape, shape]), least="iOS18"))
    x, y = torch.randn(shape), torch.randn(shape)
    mask = torch.tensor([[True, False, True]] * 3) if masked else None
    wanted = F.scaled_dot_product_attention(x, y, y, mask)
    torch.testing.assert_close(run(program, x, y), wanted, atol=1e-5, rtol=1e-5)


def test_unknown_operations_are_all_refused_by_name_before_anything_is_computed(tmp_path: Path) -> None:
    def build(mb, x):
        x = mb.relu(x=mb.cumsum(x=x, axis=1, name="running"))
        return mb.reverse(x=x, axes=[0], name="turned")

    path = package(tmp_path / "op.mlpackage", (build, [CLIP]))
    with pytest.raises(UnsupportedProgram, match=r"2 operations .*: cumsum \(running\), reverse \(turned\)\. Add"):
        load_program(path)


def test_a_setting_that_the_evaluator_does_not_know_is_refused_and_named(tmp_path: Path) -> None:
    path = package(
        tmp_path / "op.mlpackage",
        (lambda mb, x, y: mb.concat(values=(x, y), axis=1, interleave=True, name="mixed"), [CLIP, CLIP]),
    )
    with pytest.raises(ExportError, match="concat mixed: interleave is not known"):
        run(load_program(path), torch.ones(CLIP), torch.ones(CLIP))


def test_a_reshape_to_another_rank_keeps_sizes_counted_from_the_last_axis(tmp_path: Path) -> None:
    path = package(tmp_path / "op.mlpackage", (lambda mb, x: mb.reshape(x=x, shape=[8, 0, 0]), [CLIP]))
    x = torch.randn(CLIP)
    assert torch.equal(run(load_program(path), x), x.reshape(8, 5, 7))


def test_fp16_rounds_after_every_operation_and_fp32_does_not(tmp_path: Path) -> None:
    def build(mb, x):
        return mb.sub(x=mb.add(x=x, y=np.float16(1000)), y=np.float16(1000))

    program = load_program(package(tmp_path / "op.mlpackage", (build, [(4,)]), fp16=True))
    x = torch.tensor([0.125, 0.25, 0.375, 0.75])
    assert run(program, x).tolist() == ((x.half() + 1000) - 1000).tolist() == [0, 0, 0.5, 1]
    assert torch.equal(run(program, x, typed=False), x)


def test_the_first_overflow_is_seen_even_where_the_output_hides_it(tmp_path: Path) -> None:
    def build(mb, x):
        x = mb.add(x=mb.square(x=x, name="squared"), y=np.float16(1), name="shifted")
        return mb.real_div(x=np.float16(1), y=mb.square(x=x))

    program = load_program(package(tmp_path / "op.mlpackage", (build, [(2,)]), fp16=True))
    x = np.array([1, 300], np.float32)
    found = evaluate(program, {"x0": x})
    (output,) = found.outputs.values()
    assert output.tolist() == [0.25, 0]
    assert found.overflow.operation.name == "squared"
    assert found.overflow.value == "infinity"
    assert evaluate(program, {"x0": x}, typed=False).overflow is None
    assert evaluate(program, {"x0": np.ones(2, np.float32)}).overflow is None


def test_nan_of_finite_values_is_named_as_nan(tmp_path: Path) -> None:
    path = package(tmp_path / "op.mlpackage", (lambda mb, x: mb.relu(x=mb.sqrt(x=x, name="root")), [(2,)]))
    overflow = evaluate(load_program(path), {"x0": np.array([1, -1], np.float32)}).overflow
    assert (overflow.operation.name, overflow.value) == ("root", "NaN")


def test_wrong_inputs_are_named_together(tmp_path: Path) -> None:
    program = load_program(package(tmp_path / "op.mlpackage", (lambda mb, x, y: mb.add(x=x, y=y), [(2,), (2,)])))
    with pytest.raises(ExportError, match=r'"z" is not an input; "x0" is \(3,\), .* \(2,\); "y0" is mis'):
        evaluate(program, {"x0": np.ones(3, np.float32), "z": np.ones(2, np.float32)})


def uniform(w: Tensor, bits: int) -> Tensor:
    """The nearest of 2^bits values between the least and the largest."""
    step = (w.max() - w.min()) / (2**bits - 1)
    return ((w - w.min()) / step).round() * step + w.min()


def symmetric(w: Tensor, bits: int) -> Tensor:
    """The nearest multiple of a step per output channel."""
    step = w.abs().amax((1, 2, 3), keepdim=True) / (2 ** (bits - 1) - 1)
    return (w / step).round() * step


@pytest.mark.parametrize(
    ("least", "bits", "rounded", "operation"),
    [
        ("iOS16", 8, symmetric, "constexpr_affine_dequantize"),
        ("iOS18", 8, symmetric, "constexpr_blockwise_shift_scale"),
        ("iOS16", 4, uniform, "constexpr_lut_to_dense"),
        ("iOS17", 6, uniform, "constexpr_lut_to_dense"),
        ("iOS18", 4, uniform, "constexpr_lut_to_dense"),
        ("iOS18", 8, uniform, "constexpr_lut_to_dense"),
    ],
)
def test_compressed_weights_are_expanded(
    least: str, bits: int, rounded: Callable, operation: str, tmp_path: Path
) -> None:
    with quiet():
        import coremltools as ct
        import coremltools.optimize.coreml as optimize

        build = (lambda mb, x: mb.conv(x=x, weight=W.numpy()), [CLIP])
        path = package(tmp_path / "op.mlpackage", build, least=least)
        model = ct.models.MLModel(str(path), skip_model_load=True)
        if rounded is uniform:
            table = optimize.OpPalettizerConfig(mode="uniform", nbits=bits, weight_threshold=0)
            model = optimize.palettize_weights(model, optimize.OptimizationConfig(table))
        else:
            linear = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0)
            model = optimize.linear_quantize_weights(model, optimize.OptimizationConfig(linear))
        model.save(str(tmp_path / "small.mlpackage"))
        assert operations_of(model) == {operation: 1, "conv": 1}
    program = load_program(tmp_path / "small.mlpackage")
    (conv,) = program.operations
    weight = torch.from_numpy(conv.inputs["weight"].value)
    torch.testing.assert_close(weight, rounded(W, bits), atol=1e-6, rtol=1e-5)
    x = torch.randn(CLIP)
    torch.testing.assert_close(run(program, x), F.conv2d(x, weight), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("part", ["weights/weight.bin", "model.mlmodel"])
@pytest.mark.parametrize("damage", ["missing", "cut", "noise"])
def test_a_damaged_package_is_one_clear_error(part: str, damage: str, tmp_path: Path) -> None:
    path = package(tmp_path / "op.mlpackage", (lambda mb, x: mb.conv(x=x, weight=W.numpy()), [CLIP]))
    file = path / "Data" / "com.apple.CoreML" / part
    whole = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(whole[: len(whole) // 3] if damage == "cut" else b"\xa5" * len(whole))
    with pytest.raises(ExportError, match=r"op.mlpackage is no whole Core ML package: .*Export it again"):
        load_program(path)
