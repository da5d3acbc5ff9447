from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """`toy.py`: small stand-ins for a teacher and a student."""
    spec = importlib.util.spec_from_file_location("handheld_test_toy", HERE / "toy.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Bits depend on the number of threads: the same one here as in `toy.py` run as a script."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _write_video(path: Path, *, frames: int = 40, width: int = 48, height: int = 32, seed: int = 0) -> Path:
    import av

    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (height // 8, width // 8, 3)).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = 800_000
        for index in range(frames):
            moved = np.roll(picture, 2 * index, axis=1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    """Write a moving picture: `write_video(path, frames=40, width=48, height=32, seed=0)`."""
    return _write_video


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three videos of 40 frames."""
    folder = tmp_path_factory.mktemp("videos")
    for seed, (width, height) in enumerate([(48, 32), (32, 48), (64, 48)]):
        _write_video(folder / f"clip{seed}.mp4", width=width, height=height, seed=seed)
    return folder
