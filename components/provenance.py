"""Which code a room's run was made by, as tags of its MLflow run and part of a bundle's lineage. No Ray and no torch here."""

import os
import subprocess

from components import cluster
from sr3_core import storage

COMMIT_VARIABLE = "SR3_GIT_COMMIT"  # set in the images, which hold no repository


def tags() -> dict[str, str]:
    """Tags that say which code ran with which libraries: git commit (where it is known), hash of the code, sha256 of the lock."""
    lock, commit = cluster.PROJECT / cluster.LOCK, git_commit()
    known = {
        "sr3.git_commit": commit,
        "sr3.code": cluster.code_hash(),
        "sr3.lock_sha256": storage.sha256(str(lock)) if lock.is_file() else None,
    }
    return {name: value for name, value in known.items() if value is not None}


def git_commit() -> str | None:
    """The commit of the code: of the image, else of the repository it stands in; None when it is in neither."""
    if COMMIT_VARIABLE in os.environ:
        return os.environ[COMMIT_VARIABLE]
    git = ["git", "-C", str(cluster.PROJECT)]
    try:
        top, commit = subprocess.run(
            [*git, "rev-parse", "--show-toplevel", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.split("\n")[:2]
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit if os.path.samefile(top, cluster.PROJECT) else None
