from __future__ import annotations

from pathlib import Path

import pytest
import torch

from handheld.distill.data import (
    Pool,
    PoolBatches,
    Split,
    TeacherBatches,
    build_pool,
    clip_rule,
    from_pixels,
    load,
)
from handheld.distill.recipe import DataSection

CPU = torch.device("cpu")
TAPS = ("mid_block", "up_block_0")


@pytest.fixture(scope="module")
def split(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Split:
    data = DataSection(frames=5, crop=16, videos=(str(videos),), held_out=0.2, short_side=24, zoom=True)
    return load(data, tmp_path_factory.mktemp("decoded"), lambda done, total: None)


class Builder:
    """Builds the same pool again and again in one folder, and keeps the messages."""

    def __init__(self, toy, split: Split, folder: Path) -> None:
        self.toy, self.split, self.folder = toy, split, folder
        self.messages: list[str] = []

    def __call__(self, *, taps=TAPS, seed: int = 0, teacher_seed: int = 0) -> tuple[Pool, int]:
        """The pool, and how many clips the teacher had to encode for it."""
        teacher = self.toy.ToyTeacher(teacher_seed)
        rule = clip_rule(DataSection(frames=5, crop=16, short_side=24, zoom=True))
        pool = build_pool(
            teacher,
            self.split,
            rule,
            self.folder,
            clips_per_video=9,
            taps=taps,
            seed=seed,
            device=CPU,
            on_clip=lambda done, total: None,
            on_message=self.messages.append,
        )
        return pool, teacher.encoded


@pytest.fixture
def build(toy, split: Split, tmp_path: Path) -> Builder:
    return Builder(toy, split, tmp_path)


def test_the_teacher_runs_once_per_clip(build: Builder, split: Split):
    pool, encoded = build()
    assert len(pool) == encoded == 9 * len(split.train) == 18
    again, encoded = build()
    assert encoded == 0
    assert all(torch.equal(again[17][name], pool[17][name]) for name in pool[17])
    assert build.messages == []


def test_a_pool_entry_is_what_the_teacher_makes_of_its_frames(build: Builder, toy):
    pool, _ = build()
    teacher = toy.ToyTeacher()
    for index in (0, 16, 17):  # both shards
        entry = pool[index]
        latents = teacher.encode(from_pixels(entry["frames"])[None])
        features = teacher.decode_with_features(latents)[1]
        assert torch.equal(entry["latents"], latents[0])
        assert all(torch.equal(entry[tap], features[tap][0]) for tap in TAPS)


def test_a_truncated_shard_alone_is_made_again_with_a_message(build: Builder):
    pool, _ = build()
    expected = pool[17]["latents"].clone()
    shard = build.folder / "pool-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    pool, encoded = build()
    assert encoded == 2
    assert build.messages == [
        "pool-00001.safetensors in the cache is truncated or not a shard: its clips are encoded again."
    ]
    assert torch.equal(pool[17]["latents"], expected)


def test_a_flipped_bit_in_a_shard_is_found(build: Builder):
    build()
    shard = build.folder / "pool-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert build()[1] == 16
    assert "corrupt" in build.messages[0]


@pytest.mark.parametrize("change", [{"seed": 1}, {"teacher_seed": 1}, {"taps": ()}])
def test_a_stale_pool_is_made_again_with_a_message(build: Builder, change: dict):
    build()
    assert build(**change)[1] == 18
    assert "of another teacher, recipe or set of videos" in build.messages[0]


def test_latents_only_pools_leave_the_features_to_the_teacher(build: Builder, toy):
    pool, _ = build(taps=())
    assert pool[0].keys() == {"frames", "latents"}
    teacher = toy.ToyTeacher()
    batches = PoolBatches(teacher, pool, taps=TAPS, batch_size=3, seed=0, device=CPU)
    stored, _ = Builder(toy, build.split, build.folder / "other")()
    expected = PoolBatches(teacher, stored, taps=TAPS, batch_size=3, seed=0, device=CPU)(4)
    batch = batches(4)
    assert teacher.decoded == 3
    assert batch.features.keys() == set(TAPS)
    for tap in TAPS:
        torch.testing.assert_close(batch.features[tap], expected.features[tap])


def test_pool_batches_go_through_the_pool_in_a_new_order_each_time(build: Builder, toy):
    pool, _ = build()
    batches = PoolBatches(toy.ToyTeacher(), pool, taps=TAPS, batch_size=3, seed=0, device=CPU)
    orders = [[batches._entry(number) for number in range(18 * epoch, 18 * epoch + 18)] for epoch in range(2)]
    assert [sorted(order) for order in orders] == [list(range(18))] * 2
    assert orders[0] != orders[1]


def test_a_batch_is_the_same_whenever_it_is_asked_for(build: Builder, split: Split, toy):
    pool, _ = build()
    rule = clip_rule(DataSection(frames=5, crop=16, short_side=24, zoom=True, stride=(1, 2)))
    common = {"taps": TAPS, "batch_size": 3, "device": CPU}

    def makers(seed: int):
        yield lambda: TeacherBatches(toy.ToyTeacher(), split.footage, split.train, rule, seed=seed, **common)
        yield lambda: PoolBatches(toy.ToyTeacher(), pool, seed=seed, **common)

    for make, other in zip(makers(0), makers(1)):
        in_order = make()
        batches = [in_order(index) for index in range(8)]
        late = make()(7)
        assert torch.equal(batches[7].frames, late.frames)
        assert torch.equal(batches[7].latents, late.latents)
        assert not torch.equal(batches[7].frames, batches[6].frames)
        assert not torch.equal(batches[7].frames, other()(7).frames)
        assert late.frames.shape == (3, 3, 5, 16, 16)
        assert -1 <= late.frames.min() < late.frames.max() <= 1
