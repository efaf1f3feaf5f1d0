"""A room as a job on a remote Ray: submit its entry at http://HOST:PORT, follow its log, end as it ends.

Ray's job client is imported here alone, and only inside functions. A lost connection never ends a job: what runs on the cluster goes
on without its follower, and the same command finds it again by its id.
"""

import asyncio
import itertools
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from components import cluster, entry, rayjobs
from sr3_core import config
from sr3_core.config import Scaling
from sr3_core.errors import EXIT_BAD_INPUT, BadInput, Failed
from sr3_core.progress import say

RETRIES = 5  # after 1, 2, 4, 8 and 16 seconds
_LOG_RETRIES = 2  # then the status alone is asked for: the log may be lost where the job is not
_POLL_SECONDS = 1.0


def run_elsewhere(address: str, module: str, arguments: Sequence[str], *, fingerprint: str, scaling: Scaling) -> None:
    """Run ``python -m module arguments`` where ``address`` says: as a job of a Ray that is there, or on one made for it (``kubernetes://``).

    Ends as it ends: see ``submit_and_follow`` and ``rayjobs.run``. Raises BadInput for a credential among the arguments, which a job's
    parameters would show.
    """
    texts = [text.partition("=")[2] if text.startswith("--") else text for text in arguments]
    config.refuse_secrets({"an argument of the job": [text for text in texts if not text.startswith(("{", "["))]})  # sections are checked
    if address.startswith(cluster.KUBERNETES):
        rayjobs.run(address, module, arguments, fingerprint=fingerprint, scaling=scaling)
    else:
        submit_and_follow(address, module, arguments, fingerprint=fingerprint)


def scaling_there(address: str, room: str, scaling: Scaling) -> Scaling:
    """The section as a job of ``room`` at ``address`` is to have it: on a cluster made for it a worker has a pod's whole CPUs, unless the
    recipe says otherwise. There the job cannot tell: a cluster that begins with ``min_workers`` pods has their CPUs alone, and divided by
    all workers they would have no pod's size, so that several stood on one pod and no further one was ever asked for."""
    if not address.startswith(cluster.KUBERNETES) or scaling.cpus_per_worker is not None:
        return scaling
    return scaling.model_copy(update={"cpus_per_worker": scaling.kubernetes.whole_cpus(room)})


def submit_and_follow(address: str, module: str, arguments: Sequence[str], *, fingerprint: str) -> None:
    """Run ``python -m module arguments`` as a Ray job at ``address`` (http://HOST:PORT), print its log, and end as it ends.

    The job's id is ``sr3-<fingerprint>-<attempt>``: a retried caller follows its attempt that is still running. The code is that of
    the cluster's image. Raises BadInput when the address does not answer or the job ends with exit code 2, Failed when it ends
    otherwise or stays out of reach for ``RETRIES`` tries: it then goes on. An interrupt or TERM of the caller stops it.
    """
    cluster.quieten()
    from ray.job_submission import JobStatus, JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        attempts = [job for job in client.list_jobs() if (job.submission_id or "").startswith(f"sr3-{fingerprint}-")]
    except (ConnectionError, RuntimeError) as error:
        raise BadInput(
            f"ray job address {address} does not answer ({cluster.last_line(error)})",
            "the dashboard address of a Ray head",
            "check it and that the head runs",
        ) from None
    entrypoint = shlex.join(["python", "-m", module, *arguments])
    alive = [job for job in attempts if not job.status.is_terminal() and job.entrypoint == entrypoint]
    taken = {str(job.submission_id) for job in attempts}
    names = (name for number in itertools.count(len(attempts)) if (name := f"sr3-{fingerprint}-{number}") not in taken)
    job = str(alive[0].submission_id) if alive else next(names)

    def stop() -> None:
        try:
            client.stop_job(job)
        except Exception as error:  # what ends this process is not to be held up, whatever the client says
            say("ray", f"could not stop job {job} at {address} ({cluster.last_line(error)})")

    with entry.when_orphaned(stop):
        try:
            if alive:
                say("ray", f"following job {job}, which runs already")
            else:
                while (theirs := _submit(client, job, entrypoint, address)) not in (None, entrypoint):
                    job = next(names)  # another one's, with arguments of its own
                say("ray", f"submitted job {job} to {address}" if theirs is None else f"following job {job}, which another one submitted")
            info, bad = _follow(client, job, address)
        except (KeyboardInterrupt, SystemExit):
            stop()
            raise
    if info.status == JobStatus.SUCCEEDED:
        return
    if info.driver_exit_code == EXIT_BAD_INPUT:
        raise entry.told(bad, see=f"ray job logs {job}")
    raise Failed(f"job {job} at {address} ended as {info.status.value} (exit code {info.driver_exit_code}); log: ray job logs {job}")


def _submit(client: Any, job: str, entrypoint: str, address: str) -> str | None:
    """Submit it; or the entrypoint of the job that bears its name, which another one submitted after the jobs were listed.

    Raises Failed when the head refuses the job for another reason: that rarely lasts.
    """
    try:
        client.submit_job(
            entrypoint=entrypoint, submission_id=job, runtime_env={"env_vars": {cluster.CODE_HASH_VARIABLE: cluster.code_hash()}}
        )
    except RuntimeError as error:
        try:
            return str(client.get_job_info(job).entrypoint)
        except RuntimeError:
            raise Failed(f"{address} did not take job {job} ({cluster.last_line(error)})") from error
    return None


def _follow(client: Any, job: str, address: str) -> tuple[Any, str]:
    """Print the job's log to its end; its details then, and its last line about bad input. Failed when it stays out of reach."""
    printed, failures, bad = 0, 0, ""
    while True:
        try:
            if failures <= _LOG_RETRIES:
                for number, line in enumerate(_log_lines(client, job)):  # from its beginning each time
                    if number < printed:
                        continue
                    print(line, flush=True)
                    printed, failures = printed + 1, 0
                    if entry.BAD_INPUT in line:
                        bad = line.partition(entry.BAD_INPUT)[2]
            info = client.get_job_info(job)
            if info.status.is_terminal():
                return info, bad
            failures = 0
            time.sleep(_POLL_SECONDS)
        except Exception as error:  # the client raises what its HTTP library does; none of it says that the job has ended
            if failures == RETRIES:
                lost = f"job {job} at {address} is out of reach ({cluster.last_line(error)})"
                raise Failed(f"{lost}; it was not stopped and goes on: the same command follows it again") from error
            if failures == 0:
                say("ray", f"lost touch with job {job} ({cluster.last_line(error)}), trying again")
            time.sleep(2**failures)
            failures += 1


def _log_lines(client: Any, job: str) -> Iterator[str]:
    """Lines of a job's log as they come; the tail of a chunk waits for its end of line."""
    loop = asyncio.new_event_loop()
    chunks = client.tail_job_logs(job)
    rest = ""
    try:
        while True:
            try:
                rest += loop.run_until_complete(anext(chunks))
            except StopAsyncIteration:
                break
            *lines, rest = rest.split("\n")
            yield from lines
        if rest:
            yield rest
    finally:
        with suppress(Exception):
            loop.run_until_complete(chunks.aclose())
        loop.close()
