"""Where a task's pod goes on a KFP server: requests, retries and the recipe's ``scaling.kubernetes``, by kfp-kubernetes."""

from kfp import dsl, kubernetes

from pipeline import resources
from sr3_core.config import Scaling

_PROGRESS_SECONDS = "60"  # a server keeps every line, for runs of days
IMAGE_VARIABLE = "SR3_IMAGE"  # the room's own image: a Ray cluster that it brings with it runs the same one
_STAYS = "cluster-autoscaler.kubernetes.io/safe-to-evict"  # "false": no pod is moved to empty a node that is half used
_POD = {"POD_NAME": "metadata.name", "POD_UID": "metadata.uid", "POD_NAMESPACE": "metadata.namespace"}  # owner of what a room creates


def place_on_server(task: dsl.PipelineTask, room: str, scaling: Scaling, *, images: str, ray_address: str) -> None:
    """Give ``task`` what ``scaling`` and the room's row ask for. The service account is the run's, chosen at submission; a priority class
    and a queue hold for a Ray cluster of the run's own alone, because KFP has no setting for the first and makes pods of its own beside."""
    wanted, settings = resources.of(room, scaling, ray_address=ray_address), scaling.kubernetes
    task.set_cpu_request(wanted.cpu).set_cpu_limit(wanted.cpu).set_memory_request(wanted.memory).set_memory_limit(wanted.memory)
    kubernetes.set_security_context(task, run_as_non_root=True)  # KFP itself drops every capability; the images name their user by number
    task.set_retry(wanted.retries, backoff_duration="30s", backoff_factor=2.0)
    task.set_env_variable("SR3_PROGRESS_SECONDS", _PROGRESS_SECONDS).set_env_variable(IMAGE_VARIABLE, resources.image(room, images))
    if wanted.gpu:
        task.set_accelerator_type(settings.accelerator_resource).set_accelerator_limit(wanted.gpu)
    for variable, path in _POD.items():
        kubernetes.use_field_path_as_env(task, variable, path)
    kubernetes.add_pod_annotation(task, _STAYS, "false")
    for item in settings.env_from:
        kubernetes.use_secret_as_env(task, item.name, {item.key: item.variable})
    for label, value in settings.selector(gpu=wanted.gpu > 0, works=wanted.works).items():
        kubernetes.add_node_selector(task, label, value)
    for taint in settings.tolerated(works=wanted.works):
        kubernetes.add_toleration(task, taint.key, taint.operator, taint.value or None, taint.effect, taint.seconds)
    if settings.timeout_seconds is not None:
        kubernetes.set_timeout(task, settings.timeout_seconds)
    kubernetes.set_image_pull_policy(task, settings.image_pull_policy)
