"""Loading teachers: what is accepted, and one clear message for everything else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from handheld.models import ModelError
from handheld.models.teachers import TEACHERS, load_teacher

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def checkpoint(small_teacher_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A small LTX checkpoint that the test may change."""
    return Path(shutil.copytree(small_teacher_folder("ltx"), tmp_path / "checkpoint"))


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refusal(name: str, source: str | Path | None, **options: Any) -> str:
    with pytest.raises(ModelError) as error:
        load_teacher(name, source, **options)
    return str(error.value)


def test_pipeline_folder_loads_its_vae(checkpoint: Path, tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline"
    shutil.copytree(checkpoint, pipeline / "vae")
    direct, nested = load_teacher("ltx", checkpoint), load_teacher("ltx", str(pipeline))
    assert nested.source == str(pipeline)
    assert nested.weights_sha256 == direct.weights_sha256
    latents = torch.zeros(1, direct.spec.channels, 1, 2, 2)
    assert torch.equal(nested.decode(latents), direct.decode(latents))


def test_sharded_checkpoint_loads_the_same_weights(checkpoint: Path, tmp_path: Path) -> None:
    whole = load_teacher("ltx", checkpoint)
    whole.vae.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    sharded = load_teacher("ltx", tmp_path / "shards")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), sharded.parameters(), strict=True))
    next(iter((tmp_path / "shards").glob("*-00002-*"))).unlink()
    assert "has no diffusion_pytorch_model-00002-" in refusal("ltx", tmp_path / "shards")


def test_half_precision_weights_load_to_the_dtype_that_is_asked_for(checkpoint: Path) -> None:
    weights = {key: value.half() for key, value in load_file(checkpoint / WEIGHTS).items()}
    save_file(weights, checkpoint / WEIGHTS)
    assert load_teacher("ltx", checkpoint).dtype == torch.float32
    assert load_teacher("ltx", checkpoint, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert "torch.int8" in refusal("ltx", checkpoint, dtype=torch.int8)


def test_unknown_teacher_is_refused_with_the_known_ones() -> None:
    message = refusal("ltxx", None)
    assert "'ltxx'" in message
    assert all(name in message for name in TEACHERS)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal("ltx", tmp_path / "absent")


def test_missing_packaged_weights_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setitem(TEACHERS, "embedded", replace(TEACHERS["embedded"], default_source=tmp_path / "absent"))
    assert "missing from this installation" in refusal("embedded", None)


def test_file_instead_of_a_folder_is_refused(checkpoint: Path) -> None:
    assert "is a file" in refusal("ltx", checkpoint / WEIGHTS)


def test_unreachable_hub_asks_for_a_local_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = refusal("wan", "handheld-tests/absent-vae")
    assert message.startswith("handheld-tests/absent-vae")
    assert "could not be fetched" in message
    assert "give a local folder" in message


def test_hub_weights_are_fetched_only_after_the_configuration_fits(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def snapshot(hub_id: str, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.append(allow_patterns)
        return str(checkpoint)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert "Use teacher `ltx`" in refusal("wan", "some/repo")
    assert asked == [["config.json", "vae/config.json"]]
    assert load_teacher("ltx", "some/repo").source == "some/repo"
    assert all(pattern.endswith((".safetensors", ".json")) for patterns in asked for pattern in patterns)


def test_folder_without_configuration_is_refused(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    assert "has no config.json" in refusal("ltx", checkpoint)


@pytest.mark.parametrize(("text", "message"), [("{oops", "cannot be read as JSON"), ("[1]", "holds a JSON list")])
def test_configuration_that_is_no_json_object_is_refused(checkpoint: Path, text: str, message: str) -> None:
    (checkpoint / "config.json").write_text(text)
    assert message in refusal("ltx", checkpoint)


def test_checkpoint_of_another_class_names_the_teacher_that_fits(checkpoint: Path) -> None:
    message = refusal("hunyuan", checkpoint)
    assert "AutoencoderKLLTXVideo" in message
    assert "AutoencoderKLHunyuanVideo" in message
    assert "Use teacher `ltx`" in message
    edit_config(checkpoint, _class_name="AutoencoderKLMochi")
    assert "ltx, hunyuan, cogvideox, wan" in refusal("ltx", checkpoint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_spatio_temporal_scaling": [True, False]}, "encoder and its decoder disagree"),
        ({"block_out_channels": "wide"}, "does not describe a usable AutoencoderKLLTXVideo"),
        ({"decoder_inject_noise": [True, False, False]}, "adds random noise"),
        ({"quantization_config": {"quant_method": "torchao"}}, "quantised"),
    ],
)
def test_configuration_without_one_latent_space_is_refused(
    checkpoint: Path, changes: dict[str, Any], message: str
) -> None:
    edit_config(checkpoint, **changes)
    assert message in refusal("ltx", checkpoint)


def test_unknown_configuration_keys_are_reported(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_config(checkpoint, clip_output=False)
    load_teacher("ltx", checkpoint)
    assert "clip_output" in caplog.text


@pytest.mark.parametrize("content", [b"text", None])
def test_corrupt_weights_are_refused(checkpoint: Path, content: bytes | None) -> None:
    file = checkpoint / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    assert f"{file} is not a whole safetensors file" in refusal("ltx", checkpoint)


def test_pickled_weights_are_refused(checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).rename(checkpoint / "diffusion_pytorch_model.bin")
    assert "diffusion_pytorch_model.bin would have to be unpickled" in refusal("ltx", checkpoint)


def test_weights_that_do_not_fit_are_refused_with_their_names(checkpoint: Path) -> None:
    weights = load_file(checkpoint / WEIGHTS)
    del weights["decoder.conv_out.conv.weight"]
    weights["decoder.extra"] = torch.zeros(1)
    weights["latents_mean"] = torch.zeros(7)
    save_file(weights, checkpoint / WEIGHTS)
    message = refusal("ltx", checkpoint)
    assert "1 missing: decoder.conv_out.conv.weight" in message
    assert "1 not of this model: decoder.extra" in message
    assert "1 of another shape: latents_mean (7,) for (6,)" in message


def test_loading_and_decoding_print_nothing(checkpoint: Path) -> None:
    program = (
        "import sys, torch\n"
        "from handheld.models.teachers import load_teacher\n"
        "teacher = load_teacher('ltx', sys.argv[1])\n"
        "teacher.decode_with_features(torch.zeros(1, 6, 2, 2, 2))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(checkpoint)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
