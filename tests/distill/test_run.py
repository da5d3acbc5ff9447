from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from handheld.distill import (
    DataError,
    DistillError,
    DistillInterrupted,
    RecipeError,
    checkpoint,
    distill,
    parse_recipe,
    read_run,
)
from handheld.distill.trainer import learning_rate
from handheld.models import LatentSpec, ModelError


class Recorder:
    """Keeps what the engine tells, and may act after a step."""

    def __init__(self, after_step=lambda step: None) -> None:
        self.stages, self.steps, self.evals, self.messages = [], [], [], []
        self.after_step = after_step

    def on_stage(self, name, done, total):
        self.stages.append((name, done, total))

    def on_step(self, step, total, losses, seconds):
        self.steps.append(step)
        self.losses = losses
        self.after_step(step)

    def on_eval(self, step, student, teacher):
        self.evals.append((step, student, teacher))

    def on_message(self, text):
        self.messages.append(text)


@pytest.fixture
def run(toy, videos: Path, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch):
    """Distil the toys: `run(name="run", recipe=None, cache="none", draw=False, **options)`.

    Pictures take longer than all the rest: only a test that is about them has them drawn.
    """

    def distil(name: str = "run", recipe=None, cache: str = "none", draw: bool = False, **options):
        for drawing in () if draw else ("draw_loss", "draw_psnr", "draw_frames"):
            monkeypatch.setattr(f"handheld.distill.report.{drawing}", lambda *arguments: None)
        options = {
            "videos": [videos],
            "teacher": toy.ToyTeacher(),
            "student": toy.ToyStudent(),
            "progress": Recorder(),
            "device": "cpu",
            **options,
        }
        return distill(recipe or toy.recipe_text(cache), tmp_path / name, **options)

    return distil


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "student" / "diffusion_pytorch_model.safetensors")


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / checkpoint.NAME)


def assert_same_bits(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_a_run_folder_holds_what_the_architecture_says(run, toy, tmp_path: Path):
    progress = Recorder()
    summary = run(cache="features", progress=progress, draw=True)
    folder = tmp_path / "run"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {
        "run.json",
        "recipe.yaml",
        "student/config.json",
        "student/diffusion_pytorch_model.safetensors",
        "held_out.safetensors",
        "metrics.jsonl",
        "plots/loss.png",
        "plots/psnr.png",
        "frames.png",
        "checkpoint/state.safetensors",
    }
    for name in ("plots/loss.png", "plots/psnr.png", "frames.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    result = read_run(folder)
    assert (result.teacher_name, result.teacher_source) == ("toy", None)
    assert result.facts["student"]["parameters"] == sum(p.numel() for p in toy.ToyStudent().parameters())
    assert result.facts["metrics"]["student"]["psnr_db"] == summary.student.psnr_db
    held_out = result.load_held_out()
    assert held_out["latents"].shape == (3, 6, 3, 4, 4)
    for name in ("frames", "teacher_frames", "student_frames"):
        assert held_out[name].shape == (3, 3, 5, 16, 16)
        assert held_out[name].dtype == torch.uint8
    student = toy.ToyStudent()
    student.load_state_dict(weights(folder))
    decoded = student(held_out["latents"][1:2]).detach()
    assert torch.equal(
        ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8), held_out["student_frames"][1:2]
    )

    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    train = [record for record in records if record["kind"] == "train"]
    assert [record["step"] for record in train] == list(range(1, 13)) == progress.steps
    assert train[0].keys() == {"kind", "step", "lr", "loss", "l1", "feature", "perceptual", "grad_norm", "seconds"}
    evals = [record for record in records if record["kind"] == "eval"]
    assert [record["step"] for record in evals] == [5, 10, 12]
    assert evals[-1]["student"]["psnr_db"] == summary.student.psnr_db
    assert evals[-1]["teacher"]["ssim_minmax"] == summary.teacher.ssim_minmax
    assert ("encoding clips", 30, 30) in progress.stages or ("encoding clips", 20, 20) in progress.stages


def test_held_out_clips_may_be_larger_than_training_clips(run, toy, tmp_path: Path):
    run(recipe=toy.recipe_text().replace("held_out_clips: 3", "held_out_clips: 3\n  held_out_crop: 24"))
    assert read_run(tmp_path / "run").load_held_out()["student_frames"].shape == (3, 3, 5, 24, 24)
    with pytest.raises(DistillError, match=r"data.held_out_crop do not fit .*height=22 is not a multiple of 4"):
        run(
            "other", recipe=toy.recipe_text().replace("held_out_clips: 3", "held_out_clips: 3\n  held_out_crop: 22")
        )


def test_training_lowers_the_loss_and_the_averaged_student_follows(run, toy):
    text = toy.recipe_text("features").replace("steps: 12", "steps: 80").replace("eval_every: 5", "eval_every: 20")
    progress = Recorder()
    run(recipe=text, progress=progress)
    psnrs = [student.psnr_db for _, student, _ in progress.evals]
    assert psnrs[-1] > psnrs[0] + 0.5


def test_the_pool_runs_the_teacher_once_per_clip_and_changes_nothing(run, toy, tmp_path: Path):
    teachers = {cache: toy.ToyTeacher() for cache in ("latents", "features")}
    for cache, teacher in teachers.items():
        run(name=cache, cache=cache, teacher=teacher)
    assert teachers["features"].encoded == teachers["latents"].encoded
    assert teachers["features"].decoded < teachers["latents"].decoded
    for (name, one), two in zip(weights(tmp_path / "latents").items(), weights(tmp_path / "features").values()):
        torch.testing.assert_close(one, two, msg=name)


@pytest.mark.parametrize("cache", ["none", "features"])
def test_the_same_seed_gives_the_same_bits_and_another_one_does_not(run, toy, tmp_path: Path, cache: str):
    run("a", cache=cache)
    run("b", cache=cache)
    run("c", recipe=toy.recipe_text(cache).replace("seed: 3", "seed: 4"))
    assert_same_bits(state(tmp_path / "a"), state(tmp_path / "b"))
    assert not torch.equal(weights(tmp_path / "a")["mid.weight"], weights(tmp_path / "c")["mid.weight"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_resume_equals_an_uninterrupted_run(run, tmp_path: Path, number: int):
    def stop(step: int) -> None:
        if step == 6:
            os.kill(os.getpid(), number)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(DistillInterrupted, match=r"Stopped at step 6 of 12.*distill --out \S+ --resume"):
        run("a", progress=Recorder(stop))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    with pytest.raises(DistillError, match="unfinished: go on with --resume"):
        read_run(tmp_path / "a")
    progress = Recorder()
    run("a", resume=True, progress=progress)
    assert progress.steps == list(range(7, 13))
    assert "Going on from step 6 of 12." in progress.messages
    run("b")
    assert_same_bits(state(tmp_path / "a"), state(tmp_path / "b"))
    assert_same_bits(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_resume_drops_metrics_after_the_checkpoint_and_a_torn_line(run, tmp_path: Path):
    class Died(Exception):
        pass

    def die(step: int) -> None:
        if step == 7:
            raise Died

    with pytest.raises(Died):
        run(progress=Recorder(die))
    metrics = tmp_path / "run" / "metrics.jsonl"
    with metrics.open("a") as file:
        file.write('{"kind": "train", "st')
    run(resume=True)
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 13))
    assert [r["step"] for r in records if r["kind"] == "eval"] == [5, 10, 12]


def test_a_run_that_died_before_its_first_checkpoint_resumes_from_the_start(run, tmp_path: Path):
    def die(step: int) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        run("a", progress=Recorder(die))
    assert not (tmp_path / "a" / "checkpoint").exists()
    run("a", resume=True)
    run("b")
    assert_same_bits(state(tmp_path / "a"), state(tmp_path / "b"))


def test_a_finished_run_resumes_to_itself(run, tmp_path: Path):
    run(cache="latents")
    before = weights(tmp_path / "run")
    progress = Recorder()
    run(cache="latents", resume=True, progress=progress)
    assert progress.steps == []
    assert_same_bits(weights(tmp_path / "run"), before)
    assert not (tmp_path / "run" / "cache").exists()


def test_resume_needs_neither_the_recipe_nor_the_videos_again(run, toy, videos: Path, tmp_path: Path):
    run()
    toys = {"teacher": toy.ToyTeacher(), "student": toy.ToyStudent()}
    assert distill(None, tmp_path / "run", resume=True, **toys).steps == 12
    assert run(videos=None, resume=True).steps == 12
    with pytest.raises(DistillError, match="with its own videos"):
        distill(None, tmp_path / "run", resume=True, videos=[videos], **toys)


def test_resume_with_another_recipe_lists_the_keys_that_differ(run, toy):
    run()
    changed = toy.recipe_text().replace("lr: 3e-3", "lr: 1e-3").replace("crop: 16", "crop: 20")
    with pytest.raises(DistillError) as caught:
        run(recipe=changed, resume=True)
    assert "data.crop: 16 and 20" in str(caught.value)
    assert "optim.lr: 0.003 and 0.001" in str(caught.value)
    assert "seed" not in str(caught.value)


def test_a_folder_in_use_is_refused_without_resume_and_a_foreign_one_with_it(run, tmp_path: Path):
    run()
    with pytest.raises(DistillError, match="is not empty: go on with it with --resume, or choose another folder"):
        run()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(DistillError, match="not a run folder"):
        run("mine", resume=True)
    with pytest.raises(DistillError, match="holds no run to resume"):
        distill(None, tmp_path / "new", resume=True)
    assert run("fresh", resume=True).steps == 12


def test_a_run_folder_that_cannot_be_written_is_one_clear_error(run, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DistillError, match=r"Cannot write the run folder .*: Not a directory"):
        run("file/run")


def test_resume_with_other_videos_is_refused(run, toy, write_video, tmp_path: Path):
    own = tmp_path / "own"
    own.mkdir()
    for seed in range(2):
        write_video(own / f"{seed}.mp4", seed=seed)
    run(videos=[own])
    os.utime(own / "0.mp4", ns=(5, 5))
    with pytest.raises(DistillError, match="The videos are not those that the run began with"):
        run(videos=[own], resume=True)


def test_resume_with_another_number_of_threads_is_told(run):
    run()
    torch.set_num_threads(2)
    progress = Recorder()
    run(resume=True, progress=progress)
    assert any("began with threads 1 and goes on with 2" in message for message in progress.messages)


def test_a_loss_that_is_no_number_stops_with_the_step_and_keeps_the_checkpoint(run, toy, tmp_path: Path):
    student = toy.ToyStudent()

    def poison(step: int) -> None:
        if step == 6:
            student.out.bias.data[0] = float("nan")

    with pytest.raises(DistillError, match=r"failed at step 7: loss is nan.*The last checkpoint is in .*optim.lr"):
        run(student=student, progress=Recorder(poison))
    assert all(tensor.isfinite().all() for tensor in state(tmp_path / "run").values())
    run(resume=True)


def test_teacher_and_student_of_other_latents_are_refused_before_any_video_is_read(run, toy, tmp_path: Path):
    student = toy.ToyStudent()
    student.spec = LatentSpec(channels=16, spatial=8, temporal=2)
    with pytest.raises(ModelError, match=r"latent channels: 6 and 16; spatial compression: 4 and 8"):
        run(student=student, videos=["/nowhere"])
    with pytest.raises(DistillError, match=r"do not fit teacher toy.*frames=4 is not 2k\+1 \(nearest: 3 and 5\)"):
        run(recipe=toy.recipe_text().replace("frames: 5", "frames: 4"), videos=["/nowhere"])
    assert list((tmp_path / "run").iterdir()) == []


def test_videos_that_cannot_be_read_are_told_and_none_at_all_is_an_error(run, tmp_path: Path, write_video):
    own = tmp_path / "own"
    own.mkdir()
    (own / "fake.mp4").write_text("text")
    with pytest.raises(DataError, match=r"fake\.mp4"):
        run(videos=[own])
    write_video(own / "good.mp4")
    progress = Recorder()
    summary = run(videos=[own], progress=progress)
    assert [item.path.name for item in summary.skipped] == ["fake.mp4"]
    assert "fake.mp4: Invalid data" in progress.messages[0]


def test_a_recipe_built_in_python_is_checked_too(run, toy):
    recipe = parse_recipe(toy.recipe_text())
    with pytest.raises(RecipeError, match=r"optim\.steps: must be at least 1, got 0"):
        run(recipe=replace(recipe, optim=replace(recipe.optim, steps=0, warmup_steps=0)))


def test_bf16_trains_and_keeps_fp32_weights(run, toy, tmp_path: Path):
    run(recipe=toy.recipe_text().replace("clip_grad_norm: 1.0", "precision: bf16"))
    assert {tensor.dtype for tensor in weights(tmp_path / "run").values()} == {torch.float32}


def test_the_learning_rate_warms_up_then_falls_to_zero(toy):
    optim = parse_recipe(toy.recipe_text()).optim
    rates = [learning_rate(optim, step) / optim.lr for step in range(13)]
    assert rates[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert rates[12] == pytest.approx(0, abs=1e-9)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    constant = replace(optim, schedule="constant", warmup_steps=0)
    assert {learning_rate(constant, step) for step in range(13)} == {optim.lr}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "is not a run description"),
        ('{"format_version": 1}', "is not a run description"),
        ('{"format_version": 9, "teacher": {"name": "x", "source": null}}', "format version 9"),
        (
            '{"format_version": 1, "teacher": {"name": "x", "source": null}}',
            "lacks student and held_out.safetensors",
        ),
    ],
)
def test_a_damaged_run_json_is_one_clear_error(tmp_path: Path, content: str, fault: str):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(DistillError, match=fault):
        read_run(tmp_path)


def test_a_folder_without_a_run_and_corrupt_held_out_clips_are_clear_errors(run, tmp_path: Path):
    with pytest.raises(DistillError, match="not a run folder"):
        read_run(tmp_path)
    run()
    held_out = tmp_path / "run" / "held_out.safetensors"
    held_out.write_bytes(held_out.read_bytes()[:-1])
    with pytest.raises(DistillError, match="cannot be read"):
        read_run(tmp_path / "run").load_held_out()
