"""The commands of infra/README.md, for the tests that check them and the one that runs them."""

import re
import shlex
from collections.abc import Iterator

from tests.conftest import REPOSITORY

README = REPOSITORY / "infra" / "README.md"


def blocks() -> list[str]:
    """The commands of the README, one block of bash after the other."""
    return re.findall(r"^```bash\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands() -> Iterator[list[str]]:
    """Every command's words, from its program on; loops and assignments before it are left out."""
    for block in blocks():
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"(?:^|[;|&]\s|\bdo\s)", line.partition(" # ")[0]):
                bare = part.strip().rstrip("&;").strip()
                if bare and not bare.startswith("#"):
                    try:
                        yield shlex.split(re.sub(r"<\(.*?\)|<<<.*", "", bare))
                    except ValueError:
                        continue  # a quoted text that holds one of the signs that part commands


def of(*program: str) -> list[list[str]]:
    return [words[len(program) :] for words in commands() if tuple(words[: len(program)]) == program]
