"""A decoder that the package does not know, declared from all kinds of layers: eager, exported and run, exact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from handheld.convert import ExportError, export, resolve_targets
from handheld.convert.streaming import Cut, PassCut, SegmentModule, build, default_cuts, units_of
from handheld.models import LatentSpec, ModelError
from handheld.models.layers import (
    WHOLE_FRAME,
    Border,
    Chain,
    FirstAlone,
    Framewise,
    Growth,
    Layer,
    Residual,
    Taps,
    WholeOnly,
    Window,
)
from handheld.models.streaming import chain_of, stream_frames
from handheld.runtime.manifest import Artifact, Method, TensorSpec, Tolerance
from handheld.runtime.session import open_session
from handheld.runtime.streaming import StreamSession
from handheld.runtime.verify import verify

FORMS = [False, True]


class Offset(nn.Module):
    """Adds a value per channel: zeros do not stay zeros."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.randn(channels, 1, 1, 1) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.value


def interleave(x: Tensor) -> Tensor:
    """(N, 2C, T, H, W) to (N, C, 2T, H, W)."""
    n, c, t, h, w = x.shape
    return x.reshape(n, 2, c // 2, t, h * w).permute(0, 2, 3, 1, 4).reshape(n, c // 2, 2 * t, h, w)


def enlarge(x: Tensor) -> Tensor:
    """Each pixel twice in both directions."""
    n, c, t, h, w = x.shape
    frames = x.transpose(1, 2).reshape(n * t, c, h, w)
    return F.interpolate(frames, scale_factor=2.0).reshape(n, t, c, 2 * h, 2 * w).transpose(1, 2)


class Memory(nn.Module):
    """A function of each frame and the one before it, which is no convolution over time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.now, self.past = nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1)), Offset(channels)

    def blend(self, x: Tensor) -> Tensor:
        """Of frames with the one before the first: zeros before a clip."""
        return F.silu(self.now(x[:, :, 1:])) * self.past(x[:, :, :-1])


class Toy(nn.Module):
    """Latents (N, 4, T, H, W) to frames (N, 3, 4T - 3, 2H, 2W).

    Args:
        causal: or all windows but one look ahead.
        attention: with a layer in which each row depends on the whole frame.
    """

    spec = LatentSpec(4, 2, 4)

    def __init__(self, *, causal: bool, attention: bool = False) -> None:
        super().__init__()
        self.causal, self.attention = causal, attention
        self.replicating = nn.Conv3d(4, 6, 3, padding=(0, 1, 1))
        self.zeros = nn.Conv3d(6, 6, 3, padding=(0, 1, 1))
        self.second = nn.Conv3d(6, 6, 3, padding=(0, 1, 1))
        self.offset = Offset(6)
        self.short = nn.Conv3d(6, 6, 1)
        self.memory = Memory(6)
        self.doubling = nn.Conv3d(6, 12, (3, 1, 1))
        self.growing = nn.Conv3d(6, 12, (3, 3, 3), padding=(0, 1, 1))
        self.later = nn.Conv3d(6, 6, (5, 1, 1))
        self.out = nn.Conv3d(6, 3, (2, 3, 3), padding=(0, 1, 1))

    def taps(self, count: int, border: Border = Border.ZEROS) -> Taps:
        return Taps.centred(count, causal=self.causal, border=border)

    def layers(self) -> dict[str, Layer]:
        zeros = Window((self.zeros,), self.taps(3), rows=1, prepare=(self.offset, F.silu))
        second = Window((self.second,), self.taps(3), rows=1, prepare=(torch.sin,))
        grown = Window((self.growing,), self.taps(3), rows=1)
        # Two of these look ahead at 4 frames, as many as one keeps; behind a layer they are no first window.
        wide = Window((self.later,), self.taps(5, Border.REPLICATE))
        found: dict[str, Layer] = {
            "in": Window((self.replicating,), self.taps(3, Border.REPLICATE), rows=1),
            "shared": Residual((zeros, second), (Framewise((self.short,)),)),
            "memory": Residual((Window((self.memory.blend,), Taps(2, border=Border.ZEROS), rows=1),)),
            "doubled": FirstAlone(
                Window((self.doubling,), self.taps(3), prepare=(self.offset,)), Growth((interleave,), 2)
            ),
            "grown": Residual(
                (grown, Growth((interleave,), 2, dropped=1)), (Growth((self.repeat,), 2, dropped=1),)
            ),
            "waiting": Residual((Framewise((torch.sin,)), wide, wide), (Framewise((torch.cos,)),)),
        }
        if self.attention:
            found["attention"] = Framewise((self.attend,), rows=WHOLE_FRAME)
        out = Window((self.out,), self.taps(2, Border.REPLICATE), rows=1)
        return found | {"large": Chain((Growth((enlarge,), scale=2), out))}

    def repeat(self, x: Tensor) -> Tensor:
        return interleave(torch.cat([x, x], dim=1))

    def attend(self, x: Tensor) -> Tensor:
        return x * torch.softmax(x.mean((3, 4), keepdim=True), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """The same written out, without layers."""
        x = self.replicating(self.padded(x, 3, "replicate"))
        y = self.zeros(self.padded(F.silu(self.offset(x)), 3))
        x = self.second(self.padded(torch.sin(y), 3)) + self.short(x)
        x = x + self.memory.blend(F.pad(x, (0, 0, 0, 0, 1, 0)))
        if x.shape[2] > 1:
            later = self.doubling(self.padded(self.offset(x[:, :, 1:]), 3))
            x = torch.cat([x[:, :, :1], interleave(later)], dim=2)
        y = interleave(self.growing(self.padded(x, 3)))
        x = y[:, :, 1:] + x.repeat_interleave(2, dim=2)[:, :, 1:]
        y = self.later(self.padded(torch.sin(x), 5, "replicate"))
        x = self.later(self.padded(y, 5, "replicate")) + torch.cos(x)
        x = self.attend(x) if self.attention else x
        return self.out(self.padded(enlarge(x), 2, "replicate"))

    def padded(self, x: Tensor, count: int, mode: str = "constant") -> Tensor:
        after = 0 if self.causal else count // 2
        return F.pad(x, (0, 0, 0, 0, count - 1 - after, after), mode=mode)


def toy(kind: type[Toy] = Toy, **options: bool) -> Toy:
    torch.manual_seed(0)
    return kind(**options).double().eval()


def latents_for(frames: int, height: int = 3, width: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randn(1, 4, frames, height, width, generator=generator, dtype=torch.float64)


def streamed(model: Toy, latents: Tensor, chunk: int = 1, strips: int = 1) -> Tensor:
    return torch.cat(list(stream_frames(model, latents, chunk, strips)), dim=2)


def assert_same_function(made: Tensor, whole: Tensor) -> None:
    assert whole.dtype == torch.float64
    assert made.shape == whole.shape
    difference = (made - whole).abs().amax(dim=(0, 1, 3, 4))
    assert difference.max() < 1e-10, f"frames differ by {difference.tolist()}"


@torch.no_grad()
@pytest.mark.parametrize("causal", FORMS)
def test_the_layers_are_the_decoder(causal: bool) -> None:
    model = toy(causal=causal, attention=True)
    for frames in (1, 2, 5):
        x = latents_for(frames)
        whole = model(x)
        for layer in model.layers().values():
            x = layer(x)
        assert whole.shape[2] == model.spec.frames(frames)
        assert_same_function(x, whole)


@torch.no_grad()
@pytest.mark.parametrize("causal", FORMS)
def test_eager_streaming_is_exact_for_every_length_chunk_and_strip(causal: bool) -> None:
    model = toy(causal=causal)
    for frames in (1, 2, 3, 6):
        latents = latents_for(frames)
        whole = model(latents)
        for chunk in (1, 2, 3):
            for strips in (1, 2, 3):
                assert_same_function(streamed(model, latents, chunk, strips), whole)


@torch.no_grad()
def test_rows_that_depend_on_the_whole_frame_are_computed_of_it() -> None:
    model = toy(causal=False, attention=True)
    latents = latents_for(3)
    assert_same_function(streamed(model, latents, strips=3), model(latents))
    cuts = (PassCut((Cut(len(model.layers()), 2),), strips=3),)
    assert_same_function(decode(model, cuts, latents), model(latents))


@torch.no_grad()
def test_a_causal_decoder_holds_back_nothing_and_a_flushed_one_decodes_again() -> None:
    model = toy(causal=True)
    stages = chain_of(list(model.layers().values()))
    for frames in (4, 3):
        latents = latents_for(frames)
        pieces = [stages.push(latent) for latent in latents.split(1, dim=2)]
        assert [piece.shape[2] for piece in pieces if piece is not None] == [1] + [4] * (frames - 1)
        assert_same_function(torch.cat([piece for piece in pieces if piece is not None], dim=2), model(latents))
        assert list(stages.flush()) == []
        assert stages.state() == []


class TorchProgram:
    threads = None

    def __init__(self, module: SegmentModule) -> None:
        self.module = module

    def call(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        with torch.no_grad():
            return [result.numpy() for result in self.module(*map(torch.from_numpy, inputs))]

    def close(self) -> None: ...


def decode(model: Toy, cuts: tuple[PassCut, ...], latents: Tensor) -> Tensor:
    """By segments, in fp64."""
    *_, height, width = latents.shape
    plan, modules = build(model, cuts, height, width)
    programs = {module.plan.program: TorchProgram(module) for module in modules}
    given, made = (1, 4, 1, height, width), (1, 3, 1, 2 * height, 2 * width)
    assert plan.faults((4, height, width), (3, 2 * height, 2 * width)) == []
    artifact = Artifact(
        *("torch", "torch", "torch", "stream", "fp64", "0" * 64, 0, Tolerance(1e-10, "fp64")),
        methods=(Method("forward", (given,), (made,)),),
        input_dtype="float64",
        stream=plan,
    )
    specs = [TensorSpec("latents", given)], [TensorSpec("frames", made)]
    with StreamSession(plan, lambda segment: programs[segment.program], artifact, *specs) as session:
        return torch.from_numpy(session.run({"latents": latents.numpy()})["frames"])


def all_cuts(units: int) -> Iterator[tuple[PassCut, ...]]:
    """Every unit alone, all together, and two passes in strips."""
    for chunk in (1, 2, 3):
        yield (PassCut(tuple(Cut(1, chunk) for _ in range(units))),)
        yield (PassCut((Cut(units, chunk),)),)
    yield PassCut((Cut(2, 2), Cut(1, 3)), strips=2), PassCut((Cut(units - 3, 2),), strips=3)


@torch.no_grad()
@pytest.mark.parametrize("causal", FORMS)
def test_segments_are_exact_however_they_are_cut(causal: bool) -> None:
    model = toy(causal=causal)
    for frames in (1, 2, 5):
        latents = latents_for(frames)
        whole = model(latents)
        for cuts in (*all_cuts(len(model.layers())), default_cuts(model, 4)):
            assert_same_function(decode(model, cuts, latents), whole)


def test_segments_of_a_causal_decoder_keep_in_step() -> None:
    (part,) = default_cuts(toy(causal=True), 4)
    assert part.cuts[0].chunk == 1
    plan, _ = build(toy(causal=True), (part,), 3, 2)
    for before, segment in zip(plan.segments, plan.segments[1:]):
        assert segment.chunk == before.output[0]


@pytest.mark.parametrize("causal", FORMS)
def test_it_is_exported_and_runs_on_onnxruntime(causal: bool, tmp_path: Path) -> None:
    model = toy(causal=causal).float()
    cuts = (PassCut((Cut(3, 2), Cut(2, 2))), PassCut((Cut(2, 4),), strips=2))
    clips = [latents_for(frames).float() for frames in (3, 1)]
    bundle = export(
        model,
        clips[0],
        tmp_path / "bundle",
        targets=resolve_targets(["onnx"]),
        more=clips[1:],
        stream=cuts,
        name="toy",
        provenance={},
    )
    (verdict,) = verify(bundle)
    assert (verdict.status, verdict.reason) == ("pass", "")
    clip = latents_for(6).float()
    with open_session(bundle, "onnx") as session, torch.no_grad():
        frames = session.run({"latents": clip.numpy()})["frames"]
        # The runtime adds in another order (docs/streaming.md).
        np.testing.assert_allclose(frames, model(clip).numpy(), rtol=0, atol=1e-4)


def test_segments_have_the_weights_of_their_layers_under_the_decoders_names() -> None:
    _, modules = build(toy(causal=True), (PassCut((Cut(2, 1), Cut(5, 1))),), 3, 2)
    assert {name for name, _ in modules[0].named_parameters()} == {
        f"{name}.{value}" for name in ("replicating", "zeros", "second", "short") for value in ("weight", "bias")
    } | {"offset.value"}


class Averaging(Toy):
    """A toy with a layer that needs all frames."""

    def layers(self) -> dict[str, Layer]:
        whole = WholeOnly(nn.BatchNorm3d(6), "its statistics are of all frames")
        return super().layers() | {"memory": Residual((whole,))}


class Hiding(Toy):
    """A toy with a layer whose function holds weights in a closure."""

    def layers(self) -> dict[str, Layer]:
        offset = self.offset
        return super().layers() | {"memory": Framewise((lambda x: offset(x),))}


class Uneven(Toy):
    """A toy with a residual layer whose two sides make different numbers of frames."""

    def layers(self) -> dict[str, Layer]:
        return super().layers() | {"memory": Residual((Growth((self.repeat,), 2),))}


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Averaging, "Cannot stream a BatchNorm3d: its statistics are of all frames. Decode the whole clip"),
        (Uneven, r"Timing\(rate=2.* and its shortcut Timing\(rate=1.*must make and drop the same frames"),
    ],
)
def test_layers_that_cannot_stream_are_refused_with_the_reason(kind: type[Toy], says: str) -> None:
    model = toy(kind, causal=True)
    with pytest.raises(ModelError, match=says):
        stream_frames(model, latents_for(2), 1, 1)
    with pytest.raises(ExportError, match=says):
        units_of(model)


def test_weights_in_a_closure_are_refused() -> None:
    model = toy(Hiding, causal=True)
    with pytest.raises(ExportError, match="holds a Offset that an exported program would not know of"):
        build(model, (PassCut((Cut(len(model.layers()), 1),)),), 3, 2)


def test_layers_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ModelError, match="3 taps, 3 of them ahead"):
        Taps(3, ahead=3)
    with pytest.raises(ModelError, match="FirstAlone takes a window with zeros at its border"):
        FirstAlone(Window((nn.Identity(),), Taps(3)), Growth((interleave,), 2))
