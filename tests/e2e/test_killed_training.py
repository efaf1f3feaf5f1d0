"""The train room ended by TERM, by kill -9 of its driver and by kill -9 of everything: the same command goes on, to the same bits."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sr3_core import processes
from sr3_core.artifacts.shardset import ShardSet
from tests.components.test_train import TRAINING, Run, section, shards, start, state_files, trained_by_gloo  # noqa: F401  - fixtures

pytestmark = pytest.mark.timeout(900)

IMAGES = TRAINING["images"]
# no checkpoint before the last but that of a notice: what is resumed from tells which it was
RARE = section(training={**TRAINING, "checkpoint_images": IMAGES, "log_images": 8})


def seen(line: str) -> int:
    """Images seen by a progress line, -1 for another line."""
    found = re.search(rf"(\d+)/{IMAGES} images", line)
    return int(found[1]) if found else -1


def position(line: str) -> int:
    """Where a run resumes by its line, -1 for another line."""
    found = re.search(r"^sr3\| .*resuming at (\d+) of", line)
    return int(found[1]) if found else -1


def all_gone_within(who: list[str], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(processes.is_alive(one) for one in who) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(processes.is_alive(one) for one in who)


def test_training_that_is_ended_and_killed_goes_on_to_the_same_bits(
    tmp_path: Path,
    start: Callable[..., Run],  # noqa: F811
    shards: ShardSet,  # noqa: F811
) -> None:
    root = tmp_path / "root"
    told = start(root, f"--section={RARE}")
    told.until(lambda line: seen(line) >= 16)
    told.process.send_signal(signal.SIGTERM)
    assert told.end() == 128 + signal.SIGTERM, "".join(told.lines)
    last = max(map(seen, told.lines))
    (saved,) = (path.name for path in root.glob("train/x2/*/checkpoints/*"))
    assert int(saved) == last < IMAGES, "a step was lost, or one was trained after the last that was told"

    driver = start(root, f"--section={RARE}")
    assert position(driver.until(lambda line: position(line) >= 0)) == last
    driver.until(lambda line: seen(line) > last)
    below = [processes.identity(pid) for pid in processes.descendants(driver.process.pid)]
    driver.process.kill()
    driver.process.wait()

    whole = start(root, f"--section={RARE}")
    assert position(whole.until(lambda line: position(line) >= 0)) == last
    whole.until(lambda line: seen(line) > last)
    tree = [whole.process.pid, *processes.descendants(whole.process.pid)]
    for pid in tree:
        with contextlib.suppress(ProcessLookupError):  # one that ended with its parent
            os.kill(pid, signal.SIGKILL)
    whole.process.wait()

    final = start(root, f"--section={RARE}")
    assert position(final.until(lambda line: position(line) >= 0)) == last
    assert final.end() == 0, "".join(final.lines)
    assert state_files(next(root.glob("train/x2/*/checkpoints"))) == trained_by_gloo(tmp_path, shards)
    assert all_gone_within(below, 180), "processes of the killed driver live on"  # two of Ray's look for its head for a minute first
