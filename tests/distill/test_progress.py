from __future__ import annotations

from io import StringIO

from rich.console import Console

from handheld.distill import RichProgress, Scores


def test_the_bar_shows_stage_step_time_left_losses_and_the_last_psnr():
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=160, color_system=None)
    with RichProgress(console) as progress:
        progress.on_stage("decoding videos", 1, 3)
        progress.on_stage("decoding videos", 3, 3)
        progress.on_step(11, 40, {"loss": 0.5, "l1": 0.25}, 0.1)
        progress.on_message("[clip].mp4 was skipped")
        progress.on_eval(11, Scores(21.4, 0.61, 19.2, 0.55), Scores(24.5, 0.7, 22.0, 0.66))
        progress.on_step(12, 40, {"loss": 0.4, "l1": 0.2}, 0.1)
    text = screen.getvalue()
    assert "[clip].mp4 was skipped" in text
    assert "step 11: held-out PSNR 21.40 dB, SSIM 0.6100 (teacher 24.50 dB, 0.7000)" in text
    assert "min-max convention 19.20 dB, 0.5500" in text
    last = text[text.rindex("distilling") :]
    assert "12/40" in last
    assert "loss 0.4000 l1 0.2000" in last
    assert "PSNR 21.40 (teacher 24.50) dB" in last


def test_a_narrow_terminal_still_shows_what_is_done_and_the_step():
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=60, color_system=None)
    with RichProgress(console) as progress:
        progress.on_eval(11, Scores(21.4, 0.61, 19.2, 0.55), Scores(24.5, 0.7, 22.0, 0.66))
        progress.on_step(12, 40, {"loss": 0.4, "l1": 0.2, "perceptual": 0.3}, 0.1)
    assert "distilling" in screen.getvalue()
    assert "12/40" in screen.getvalue()


def test_without_a_terminal_messages_and_evaluations_are_plain_lines():
    screen = StringIO()
    with RichProgress(Console(file=screen, width=100)) as progress:
        progress.on_message("one")
        for step in range(1, 50):
            progress.on_step(step, 50, {"loss": 0.5}, 0.1)
    lines = screen.getvalue().splitlines()
    assert lines[0] == "one"
    assert len(lines) < 5  # the bar once, not once a step
