"""Images stay channels_last through the U-Net, forward and backward, and the tool that says so sees what breaks it."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from sr3_core import config
from sr3_core.config import Stage
from sr3_core.data.loader import Batch
from sr3_core.models import unet
from sr3_core.objectives.diffusion import Objective as Diffusion
from sr3_core.training.layout import LayoutChanges
from tests.plugins.tiny_objective import stage
from tests.unit.training.test_window import diffusion_stage

LAST = torch.channels_last
GAMMA = torch.tensor([0.3, 0.7], dtype=torch.float64)


def images(channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, 16, 16).contiguous(memory_format=LAST)


def changes(half: bool = False, **options: Any) -> list[str]:
    """Operations of one training step that change the layout; channels_last goes in, as image and as the output's gradient."""
    chosen = {"channels": 16, "multipliers": [1, 2], "blocks": 1, "dropout": 0.1, "attention_factors": [2], **options}
    at = stage().model_copy(update={"low": 8, "high": 16})
    network = unet.build(config.options(unet.Options, chosen, "unet"), at).train()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)  # the last layers start at 0, and a gradient of 0 hides nothing but tells nothing
    noisy, low = images(), images()
    with LayoutChanges() as watched:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            output = network(noisy, low, GAMMA)
        output.backward(torch.ones_like(output))
    assert all(parameter.grad is not None and parameter.grad.stride() == parameter.stride() for parameter in network.parameters())
    return [f"{change.operation} {change.shape} {change.given} -> {change.made}" for change in watched.found]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block_style": "ddpm", "resampler": "conv"},
        {"block_style": "biggan_deep", "bottleneck": 2},
        {"noise_conditioning": "affine", "shortcut": "linear"},
        {"heads": 2, "qkv_layout": "heads", "attention_output": False},
        {"stem": 2, "checkpoint_blocks": True},
        {"norm_outputs": "recomputed"},
        {"half": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "sr3",
)
def test_no_layout_changes_in_the_unet(options: dict[str, Any]) -> None:
    assert changes(**options) == []


def test_a_whole_step_changes_layouts_on_the_image_s_way_in_and_out_alone() -> None:
    """Of a loader's batch, which is NCHW as noise is drawn and losses are summed: once into the network, and where its output meets the
    target, is summed and sends its gradient back through the last convolution. All at the image's 3 or 6 channels, none between blocks."""
    values = diffusion_stage().model_dump()
    values["model"]["options"] |= {"channels": 16, "multipliers": [1, 2], "blocks": 1}
    at = config.parse(Stage, {**values, "low": 4, "high": 16})
    objective = Diffusion(at, {})
    network = objective.players()["denoiser"].train()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    batch = Batch(torch.randn(2, 3, 16, 16), torch.randn(2, 3, 4, 4), np.arange(2), ("a", "b"))
    with LayoutChanges() as watched:
        loss, _ = objective.loss("denoiser", {"denoiser": network}, batch)
        loss.backward()
    assert [(change.operation, change.shape, change.made) for change in watched.found] == [
        ("aten.clone.default", (2, 6, 16, 16), "channels_last"),
        ("aten.sub.Tensor", (2, 3, 16, 16), "channels_last"),
        ("aten.clone.default", (2, 3, 16, 16), "NCHW"),
        ("aten.mul.Tensor", (2, 3, 16, 16), "NCHW"),
        ("aten.convolution_backward.default", (2, 16, 16, 16), "channels_last"),
        ("aten.convolution_backward.default", (3, 16, 3, 3), "channels_last"),
    ]


def test_a_change_is_seen_forward_and_backward() -> None:
    convolution = nn.Conv2d(8, 8, 3, padding=1).to(memory_format=LAST)  # pyright: ignore[reportCallIssue]
    image = images(8).requires_grad_()
    with LayoutChanges() as watched:
        hidden = convolution(image).contiguous()
    assert [(change.operation, change.given, change.made) for change in watched.found] == [("aten.clone.default", "channels_last", "NCHW")]
    with LayoutChanges() as watched:
        hidden.backward(torch.ones_like(hidden))
    assert watched.found != [] and {change.made for change in watched.found} == {"channels_last"}


def test_an_operation_that_gives_back_another_layout_is_seen_though_nothing_is_copied_in_sight() -> None:
    image, other = images(4), torch.randn(2, 4, 16, 16)
    with LayoutChanges() as watched:
        functional.relu(image) + other
    assert [(change.operation, change.given) for change in watched.found] == [("aten.add.Tensor", "NCHW and channels_last")]


def test_what_has_no_layout_of_its_own_is_left_alone() -> None:
    grey, colour, dots = images(1), images(4), torch.randn(2, 8, 1, 1)
    with LayoutChanges() as watched:
        grey.clone(memory_format=torch.contiguous_format)
        dots.clone(memory_format=LAST)
        colour.permute(0, 2, 3, 1)
    assert watched.found == []
