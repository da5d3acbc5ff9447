from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from handheld.distill import RecipeError, load_recipe, parse_recipe, schema, shipped_recipes
from handheld.distill.recipe import KINDS, Recipe


def faults_of(text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_parses_and_has_no_fault(name: str):
    recipe = load_recipe(name)
    assert recipe.kind in KINDS
    assert schema.faults(recipe) == []


def test_the_demo_and_the_released_settings_are_shipped():
    assert {"demo", "turbo_vaed_ltx", "turbo_vaed_hunyuan", "turbo_vaed_cogvideox"} <= shipped_recipes().keys()


@pytest.mark.parametrize(("name", "lr"), [("ltx", 2e-4), ("hunyuan", 1e-4), ("cogvideox", 1e-4)])
def test_the_released_settings_are_as_released(name: str, lr: float):
    recipe = parse_recipe(f"turbo_vaed_{name}")
    optim, loss = recipe.optim, recipe.loss
    assert (recipe.data.frames, recipe.data.crop, recipe.data.flip) == (17, 256, True)
    assert (optim.lr, optim.betas, optim.weight_decay, optim.eps) == (lr, (0.9, 0.95), 1e-4, 1e-15)
    assert (optim.batch_size, optim.accumulate, optim.ema_decay) == (1, 8, 0.999)
    assert (loss.l1, loss.feature, loss.perceptual.name, loss.perceptual.weight) == (1.0, 1.0, "lpips", 1.0)


def test_two_typos_are_both_reported_with_their_lines(toy):
    text = toy.recipe_text().replace("crop:", "crpo:").replace("schedule: cosine", "schedule: cosin")
    lines = faults_of(text)
    assert lines[0] == "recipe.yaml:3: data.crop: missing; must be a whole number"
    assert lines[1] == "recipe.yaml:7: data.crpo: unknown key (did you mean crop?)"
    assert (
        lines[2]
        == "recipe.yaml:23: optim.schedule: must be one of constant, cosine, got 'cosin' (did you mean cosine?)"
    )
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("short_side: 24", "short_side: 8", "data.short_side: must be at least crop (16), got 8"),
        ("held_out: 0.3", "held_out_crop: 28", "data.held_out_crop: must be at most short_side (24), got 28"),
        ("short_side: 24", "short_side: 16", "data.zoom: needs a short_side above crop (16), got 16"),
        ("stride: [1, 2]", "stride: [3, 2]", "data.stride: must be lowest, highest; got 3, 2"),
        ("stride: [1, 2]", "max_frames: 4", "data.max_frames: must hold one clip of 5 frames, got 4"),
        ("cache: none", "cache: latents", "data.clips_per_video: goes with cache latents or features"),
        ("feature: 0.5", "feature: 0", "loss.taps: must be given with feature above 0 and only then"),
        ("warmup_steps: 3", "warmup_steps: 13", "optim.warmup_steps: must be at most steps (12), got 13"),
        (
            "{preset: tiny}",
            "{preset: tiny, config: x.json}",
            "student.preset: give exactly one of preset and config",
        ),
        ("name: ssim", "name: ms_ssim", "data.crop: must be at least 176 for ms_ssim, got 16"),
        ("held_out: 0.3", "held_out: 0.7", "data.held_out: must be between 0 and 0.5, got 0.7"),
        ("seed: 3", "seed: -1", "seed: must be between 0 and 4294967295, got -1"),
        ("lr: 3e-3", "lr: 0", "optim.lr: must be above 0, got 0.0"),
    ],
)
def test_an_impossible_value_is_refused_on_its_line(toy, old: str, new: str, fault: str):
    text = toy.recipe_text()
    assert old in text
    (line,) = faults_of(text.replace(old, new))
    key = fault.partition(":")[0].rpartition(".")[2]
    number = int(line.split(":")[1])
    assert line.startswith(f"recipe.yaml:{number}: {fault}")
    assert key in text.replace(old, new).splitlines()[number - 1]


def test_a_recipe_is_found_by_path_by_shipped_name_and_as_text(tmp_path: Path, toy):
    path = tmp_path / "mine.yaml"
    path.write_text(toy.recipe_text())
    assert parse_recipe(path) == parse_recipe(str(path)) == parse_recipe(toy.recipe_text())
    assert parse_recipe("demo") == parse_recipe(shipped_recipes()["demo"])


def test_a_folder_does_not_hide_the_shipped_recipe_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # `make demo` leaves one
    assert parse_recipe("demo") == parse_recipe(shipped_recipes()["demo"])


@pytest.mark.parametrize(("given", "hint"), [("dmeo", "shipped recipe demo"), ("/nowhere/x.yaml", "Shipped: demo")])
def test_a_recipe_that_is_not_there_is_an_error_with_a_hint(given: str, hint: str):
    with pytest.raises(RecipeError, match=hint):
        parse_recipe(given)


def test_a_binary_file_is_not_a_recipe(tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(RecipeError, match="not UTF-8 text"):
        parse_recipe(path)


def test_an_unknown_kind_is_refused_with_its_line():
    with pytest.raises(RecipeError, match=r"recipe.yaml:2: kind: must be one of distill, pretrain, got 'prune'"):
        load_recipe("seed: 1\nkind: prune\n")


def test_the_recipe_written_to_a_run_folder_reads_back_equal(toy):
    recipe = parse_recipe(toy.recipe_text("features"))
    assert schema.parse(schema.to_yaml(recipe), Recipe) == recipe
    assert schema.differences(recipe, replace(recipe, seed=9)) == ["seed: 3 and 9"]
