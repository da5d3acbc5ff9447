"""Packs: what is written is what was given, damaged ones are refused, and nothing half-written looks whole."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from handheld.runtime.errors import BundleError, RuntimeFailure
from handheld.runtime.flash import (
    FeedForward,
    FlashError,
    LayerSelector,
    PackSpec,
    PackWriter,
    SessionOptions,
    open_pack,
)
from handheld.runtime.flash.layout import DTYPES, PAGE_BYTES, Groups
from handheld.runtime.flash.quantise import (
    decode_rows,
    decode_ternary,
    encode_rows,
    encode_ternary,
    join_int4m,
    join_scaled,
)

from .conftest import Model, make_layer

SPEC = PackSpec(layers=2, d_model=64, d_ff=100)


@pytest.fixture
def copy(model: Model, tmp_path: Path) -> Path:
    """A pack that may be damaged."""
    return Path(shutil.copytree(model.path, tmp_path / "copy.flash"))


def refused(path: Path, *words: str) -> None:
    with pytest.raises((FlashError, BundleError)) as caught:
        open_pack(path)
    for word in words:
        assert word in str(caught.value)


def weights(spec: PackSpec) -> FeedForward:
    return make_layer(spec, np.random.default_rng(0)).given


def write_pack(path: Path, overwrite: bool = False) -> None:
    with PackWriter(path, SPEC, overwrite=overwrite) as writer:
        for _ in range(SPEC.layers):
            writer.add_layer(weights(SPEC))


def leftovers(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize(
    ("dtype", "group", "steps", "worst"),
    # int4 reaches from -8 to 7 steps, so the largest weight of the other sign may be off by one.
    [("fp16", 32, 2048, 0.5), ("int8", 32, 127, 0.5), ("int8", 128, 127, 0.5), ("int4", 64, 8, 1)],
)
def test_rows_come_back_within_a_step(dtype: str, group: int, steps: int, worst: float) -> None:
    rows = np.random.default_rng(1).standard_normal((7, 256)).astype(np.float32)
    rows[3] = 0
    back = decode_rows(encode_rows(rows, dtype, group), dtype, 256, group)
    largest = np.abs(rows.reshape(7, -1, group)).max(axis=2).repeat(group, axis=1)
    # An fp16 scale is off by up to 2^-11 of itself, once for each step.
    assert (np.abs(back - rows) <= largest / steps * (worst + steps / 2048) + 1e-7).all()
    assert (back[3] == 0).all()


def test_fp32_rows_come_back_to_the_bit() -> None:
    rows = np.random.default_rng(1).standard_normal((7, 64)).astype(np.float32)
    np.testing.assert_array_equal(decode_rows(encode_rows(rows, "fp32", 32), "fp32", 64, 32), rows)


@pytest.mark.parametrize("group", [32, 128])
def test_int4m_rows_come_back_within_half_a_step_of_their_range(group: int) -> None:
    rows = (np.random.default_rng(1).standard_normal((7, 256)) + 2).astype(np.float32)
    rows[3] = 0
    rows[4, :] = -0.3
    back = decode_rows(encode_rows(rows, "int4m", group), "int4m", 256, group)
    groups = rows.reshape(7, -1, group)
    span = np.ptp(groups, axis=2).repeat(group, axis=1)
    least = np.abs(groups.min(axis=2)).repeat(group, axis=1)
    # fp16 scales and minimums are off by up to 2^-11 of themselves, the scale once for each step.
    assert (np.abs(back - rows) <= span / 15 * (0.5 + 15 / 2048) + least / 1024).all()
    assert (back[3] == 0).all()


def test_int4m_holds_what_is_quantised_already_without_loss() -> None:
    rng = np.random.default_rng(2)
    codes = rng.integers(3, 12, (5, 64), dtype=np.uint8)  # the ends are not used: encoding the values would lose
    scales, minimums = rng.random((2, 5, 2), dtype=np.float32).astype(np.float16)
    back = decode_rows(join_int4m(codes, scales, minimums), "int4m", 64, 32)
    expected = codes * scales.astype(np.float32).repeat(32, axis=1) + minimums.astype(np.float32).repeat(32, axis=1)
    np.testing.assert_array_equal(back, expected)


def test_int8_holds_what_is_quantised_already_but_minus_128() -> None:
    codes = np.arange(-128, 128, dtype=np.int8).reshape(4, 64)
    scales = np.array([[0.25, 2]] * 4, np.float16)
    stored = decode_rows(join_scaled("int8", codes, scales), "int8", 64, 32)
    expected = codes.astype(np.float32) * scales.astype(np.float32).repeat(32, axis=1)
    expected[0, 0] = -127 * 0.25
    np.testing.assert_array_equal(stored, expected)


def test_ternary_rows_keep_signs_and_drop_small_weights() -> None:
    rows = np.random.default_rng(1).standard_normal((5, 128)).astype(np.float32)
    back = decode_ternary(encode_ternary(rows, 64), 128, 64)
    assert ((np.sign(back) == np.sign(rows)) | (back == 0)).all()
    assert len(np.unique(np.abs(back[0, :64]))) == 2
    assert np.abs(rows[back == 0]).max() < np.abs(rows[back != 0]).max()


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [(dtype, bad) for dtype in DTYPES for bad in (np.nan, np.inf)]
    + [(dtype, 1e9) for dtype in DTYPES if dtype != "fp32"],
)
def test_weights_that_cannot_be_stored_are_refused(dtype: str, bad: float) -> None:
    rows = np.ones((2, 64), np.float32)
    rows[1, 3] = bad
    with pytest.raises(RuntimeFailure, match=r"NaN|too large"):
        encode_rows(rows, dtype, 32)


@settings(deadline=None, max_examples=200)
@given(d_model=st.integers(1, 300), dtype=st.sampled_from(list(DTYPES)), gated=st.booleans())
def test_groups_hold_whole_bundles_on_whole_pages(d_model: int, dtype: str, gated: bool) -> None:
    spec = PackSpec(layers=1, d_model=32 * d_model, d_ff=8, dtype=dtype, gated=gated)
    groups = Groups.of(spec)
    assert groups.group_bytes % PAGE_BYTES == 0
    assert groups.bundle_stride >= spec.bundle_bytes
    used = groups.bundles_per_group * groups.bundle_stride
    assert 0.87 * groups.group_bytes <= used <= groups.group_bytes


def test_the_manifest_says_what_the_header_says(model: Model) -> None:
    manifest = json.loads((model.path / "manifest.json").read_text())
    info = open_pack(model.path).info
    assert manifest["identity"] == info.identity.hex()
    assert manifest["model"]["d_ff"] == info.d_ff == model.spec.d_ff
    assert manifest["groups"]["bundle_stride"] == info.bundle_bytes
    for name, entry in manifest["files"].items():
        assert (model.path / name).stat().st_size == entry["size_bytes"]
    open_pack(model.path).verify()


def test_resident_tensors_are_plain_safetensors(model: Model) -> None:
    tensors = load_file(model.path / "resident.safetensors")
    np.testing.assert_array_equal(tensors["embeddings"], np.ones((3, 4), np.float16))
    assert sorted(tensors["flash.0.order"].tolist()) == list(range(model.spec.d_ff))


@pytest.mark.parametrize("name", ["neurons.bin", "resident.safetensors", "manifest.json"])
def test_a_missing_or_truncated_file_is_refused(copy: Path, name: str) -> None:
    size = (copy / name).stat().st_size
    for keep in (0, 4, 40, size - 1):
        os.truncate(copy / name, keep)
        refused(copy, name)
    (copy / name).unlink()
    refused(copy, name)


def test_a_folder_or_a_pipe_instead_of_a_file_is_refused(copy: Path) -> None:
    (copy / "neurons.bin").unlink()
    os.mkfifo(copy / "neurons.bin")
    refused(copy, "regular file")


@pytest.mark.parametrize("at", [8, 20, 100, 110, 150, 200, 5000])
def test_an_altered_header_is_refused(copy: Path, at: int) -> None:
    data = bytearray((copy / "neurons.bin").read_bytes())
    data[at] ^= 0x10
    (copy / "neurons.bin").write_bytes(data)
    refused(copy, "neurons.bin")


@pytest.mark.parametrize(("name", "words"), [("neurons.bin", "layer 1"), ("resident.safetensors", "resident")])
def test_verify_names_what_was_altered(copy: Path, name: str, words: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[-2000 if name == "neurons.bin" else -1] ^= 1
    (copy / name).write_bytes(data)
    pack = open_pack(copy)
    with pytest.raises(FlashError, match=words) as caught:
        pack.verify()
    assert caught.value.status == "HH_FLASH_BAD_PACK"


def test_a_manifest_of_another_pack_is_refused(copy: Path, make_model: Callable[..., Model]) -> None:
    shutil.copy(make_model(seed=5).path / "manifest.json", copy / "manifest.json")
    refused(copy, "another pack")


def test_an_order_that_is_no_permutation_is_refused(copy: Path) -> None:
    path = copy / "resident.safetensors"
    tensors = load_file(path)
    size = path.stat().st_size
    tensors["flash.1.order"] = tensors["flash.1.order"].copy()
    tensors["flash.1.order"][0] = tensors["flash.1.order"][1]
    save_file(tensors, path)
    text = path.read_bytes()
    # As long as the one that the header knows: JSON may be followed by spaces.
    header = int.from_bytes(text[:8], "little")
    padded = header + size - len(text)
    path.write_bytes(padded.to_bytes(8, "little") + text[8 : 8 + header].ljust(padded) + text[8 + header :])
    refused(copy, "flash.1.order", "permutation")


@pytest.mark.parametrize(
    "fields",
    [{"d_model": 100}, {"d_ff": 0}, {"layers": 0}, {"dtype": "int3"}, {"group_size": 48}, {"activation": "gelu"},
     {"selector": "low_rank"}, {"selector": "ternary", "selector_size": 40}, {"selector_size": 32}],
    ids=str,
)  # fmt: skip
def test_a_spec_out_of_range_is_refused(fields: dict) -> None:
    with pytest.raises(RuntimeFailure, match=next(iter(fields)) + "|selector_size"):
        PackSpec(**{"layers": 2, "d_model": 64, "d_ff": 100, **fields})


def test_weights_that_do_not_fit_the_spec_are_refused_together(tmp_path: Path) -> None:
    given = weights(SPEC)
    wrong = FeedForward(gate=given.gate, up=given.up[:3], down=given.up)
    with pytest.raises(RuntimeFailure, match=r"up is .*down is"), PackWriter(tmp_path / "p", SPEC) as writer:
        writer.add_layer(wrong)
    with pytest.raises(RuntimeFailure, match="1 of 2 layers"), PackWriter(tmp_path / "p", SPEC) as writer:
        writer.add_layer(given)
    with pytest.raises(RuntimeFailure, match="permutation"), PackWriter(tmp_path / "p", SPEC) as writer:
        writer.add_layer(given, order=np.zeros(100, np.int64))
    with pytest.raises(RuntimeFailure, match="selector"), PackWriter(tmp_path / "p", SPEC) as writer:
        writer.add_layer(given, selector=LayerSelector(0.0))
    assert leftovers(tmp_path) == []


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with PackWriter(tmp_path / "p", SPEC) as writer:
            writer.add_layer(weights(SPEC))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert leftovers(tmp_path) == []


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".p.partial-999999999-0123abcd").mkdir()
    write_pack(tmp_path / "p")
    assert leftovers(tmp_path) == ["p"]


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with pytest.raises(BundleError, match="disk is full") as caught:
            write_pack(tmp_path / "p")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EFBIG
    assert leftovers(tmp_path) == []


def test_a_pack_is_replaced_only_when_asked_and_nothing_else_ever(tmp_path: Path) -> None:
    write_pack(tmp_path / "p")
    with pytest.raises(BundleError, match="exists"):
        write_pack(tmp_path / "p")
    write_pack(tmp_path / "p", overwrite=True)
    open_pack(tmp_path / "p").verify()
    shutil.rmtree(tmp_path / "p")
    (tmp_path / "p").mkdir()
    with pytest.raises(BundleError, match="not a flash pack"):
        write_pack(tmp_path / "p", overwrite=True)


def test_packs_on_a_memory_file_system_work_without_direct_reads(model: Model) -> None:
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        pytest.skip("needs a writable /dev/shm")
    folder = shm / f"flash-test-{os.getpid()}"
    try:
        shutil.copytree(model.path, folder)
        pack = open_pack(folder)
        x = model.x()
        y = pack.session(SessionOptions(budget_bytes=1 << 26, int8_hidden=False)).ffn(0, x, "dense")
        np.testing.assert_allclose(y, model.output(0, x), rtol=1e-4, atol=1e-5)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
