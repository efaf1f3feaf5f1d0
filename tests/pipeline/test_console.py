"""What of a run's output is shown, what is kept, and what is left out."""

import io
from pathlib import Path

import pytest

from pipeline.console import Console

NOISE = "\n".join(
    [
        "10:00:00.000 - INFO - Executing task \x1b[96m'train'\x1b[0m",
        "    [KFP Executor 2026 INFO]: Got executor_input:",
        "    {",
        '        "a": {',
        "        }",
        "    }",
    ]
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_rooms_lines_alone_are_shown_and_everything_is_kept(tmp_path: Path) -> None:
    shown = io.StringIO()
    screen = Console(tmp_path / "run.log", terminal=shown, verbose=False)
    screen.write(NOISE + "\n    (raylet) noise\n    sr3| train x 1/4 images 1/s left 3s\n    sr3| trai")
    screen.write("n-x finished in 12 s\n")
    screen.close()
    assert shown.getvalue() == "train x 1/4 images 1/s left 3s\ntrain-x finished in 12 s\n"
    kept = (tmp_path / "run.log").read_text()
    assert "(raylet) noise" in kept and "executor_input" in kept and "\x1b" not in kept
    assert screen.seconds == {"train-x": 12}


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    terminal = Terminal()
    screen = Console(tmp_path / "run.log", terminal=terminal, verbose=False)
    screen.write("sr3| train x 2/4 images 1/s left 2s\nsr3| train x 4/4 images 1/s left 0s\nsr3| done\n")
    screen.close()
    text = terminal.getvalue()
    assert text.count("\r") == 2 and "[############            ] 2/4 images" in text and text.endswith("left 0s\ndone\n")


def test_verbose_shows_all(tmp_path: Path) -> None:
    shown = io.StringIO()
    screen = Console(tmp_path / "run.log", terminal=shown, verbose=True)
    screen.write("noise\nsr3| line\n")
    assert shown.getvalue() == "noise\nline\n"
    screen.close()


def test_the_tail_is_the_failed_tasks(tmp_path: Path) -> None:
    screen = Console(tmp_path / "run.log", terminal=io.StringIO(), verbose=False)
    screen.write("before\n" + NOISE + "\n" + "".join(f"line {index}\n" for index in range(30)))
    screen.write("10:00:00.000 - ERROR - Task \x1b[96m'train'\x1b[0m finished with status \x1b[91mFAILURE\x1b[0m\n")
    screen.write("10:00:00.000 - INFO - Executing task 'finish'\nlater\n")
    assert screen.tail() == [f"line {index}" for index in range(10, 30)]
    screen.close()


def test_a_gone_terminal_ends_no_run(tmp_path: Path) -> None:
    shown = io.StringIO()
    screen = Console(tmp_path / "run.log", terminal=shown, verbose=False)
    shown.close()
    screen.write("sr3| line\n")
    screen.close()
    assert (tmp_path / "run.log").read_text() == "sr3| line\n"


@pytest.mark.parametrize("line", ["prepare failed: bad input: a; allowed: b; do: c"])
def test_a_failed_rooms_line_is_left_to_the_end(line: str, tmp_path: Path) -> None:
    shown = io.StringIO()
    screen = Console(tmp_path / "run.log", terminal=shown, verbose=False)
    screen.write(f"sr3| {line}\n")
    screen.close()
    assert shown.getvalue() == ""
