"""The bar that a prediction or training prints."""

import re
import sys

import pytest

from sdxl.progress import Bar, Progress
from tests.test_train_serve import progress


def test_every_state_is_a_line_that_replicates_clients_read(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    with Bar(total=4, unit="step", mininterval=0) as bar:
        for _ in range(4):
            bar.set_postfix_str("loss=0.5", refresh=False)
            bar.update()
            shown = capsys.readouterr().err
            sys.stderr.write("a line of its own\n")
            seen.append(progress(shown))
            assert re.search(r"loss=0\.5\]\n$", shown)
            assert "\r" not in shown
    assert seen == [(25, 1, 4), (50, 2, 4), (75, 3, 4), (100, 4, 4)]
    assert capsys.readouterr().err == "a line of its own\n"


def test_the_last_state_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    for mininterval in (0.0, 100.0):
        with Bar(total=2, unit="step", mininterval=mininterval) as bar:
            bar.update(2)
        shown = capsys.readouterr().err
        assert shown.count("100%") == 1
        assert shown.endswith("\n")
        assert "\n\n" not in shown


def test_nothing_to_do_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(0):
        pass
    assert capsys.readouterr().err == ""
