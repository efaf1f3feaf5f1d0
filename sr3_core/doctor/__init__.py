"""`sr3 doctor SOURCE`: looks at every input of a source before any training and says what is wrong and what recipe would work. No torch."""

import contextlib
import sys
from collections.abc import Sequence

from sr3_core import storage
from sr3_core.doctor import page
from sr3_core.doctor.asked import resolve
from sr3_core.doctor.examination import examine, pictures
from sr3_core.errors import EXIT_DONE, EXIT_FAILED

__all__ = ["examine", "pictures", "resolve", "run"]


def run(source: str, overrides: Sequence[str], *, as_json: bool, report: str, limit: int | None, verbose: bool) -> int:
    """Print the answer, and write doctor.html and doctor.json to the folder or URI ``report``. The exit code.

    0: usable (there may be warnings); 1: not usable as it is, or the recipe's prepare would refuse it. Raises BadInput (2) for a source,
    a recipe or a report folder that cannot be used. Progress goes to stderr: stdout is the answer alone.
    """
    asked = resolve(source, overrides)
    if report:
        storage.check_writable(report)
    with contextlib.redirect_stdout(sys.stderr):
        content, seen, examples = examine(asked, limit=limit)
        if report:
            pages = {
                "doctor.json": storage.json_bytes(content),
                "doctor.html": page.page(content, pictures(asked, seen, examples)).encode("utf-8", "backslashreplace"),
            }
            for name, data in pages.items():
                storage.write_bytes(storage.join(storage.absolute(report), name), data)
    if as_json:
        print(storage.json_bytes(content).decode(), end="")
    else:
        print(page.text(content, verbose=verbose))
        if report:
            print(f"report: {storage.join(storage.absolute(report), 'doctor.html')}")
    return EXIT_DONE if content["verdict"]["usable"] else EXIT_FAILED
