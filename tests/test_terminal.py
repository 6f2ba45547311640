"""What a person in front of a terminal sees while a study runs: the study, and nothing of Ray."""

import os

import disturbed


def test_a_terminal_shows_the_study_and_nothing_of_ray(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    screen, terminal = os.openpty()
    driver = disturbed.start(tmp_path, terminal=terminal)
    os.close(terminal)
    seen = shown(screen)
    assert driver.wait(60) == 0, seen
    assert "trials " in seen and "4 waiting" in seen and "2 running" in seen
    assert "plain seed 0" in seen and "train/loss" in seen
    assert "Which?" in seen and "for programs" in seen                               # and then the table
    assert "Configuration for experiment" not in seen and "View detailed results" not in seen     # says Ray Tune
    assert "WARNING" not in seen and "INFO" not in seen


def shown(screen: int) -> str:
    """All that is written to a terminal until its last writer has gone."""
    written = b""
    while True:
        try:
            more = os.read(screen, 65536)
        except OSError:                     # so Linux says that a terminal's other side is closed
            more = b""
        if not more:
            os.close(screen)
            return written.decode()
        written += more
