"""An encoder too large for one card: its layers' weights lie split over all processes (FSDP2).

Each process keeps its part of every layer; a layer's weights are gathered when it is called, forward and
backward, and let go afterwards. So all processes must call the encoder equally often.
Embeddings stay whole. Decides nothing about batches or gradients (``mp2.training.loop``).

References:
    Zhao et al., *PyTorch FSDP*, arXiv:2304.11277.
"""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mp2.errors import ConfigError
from mp2.model.backbone import Backbone
from mp2.runtime import rank_and_world


def shard(backbone: Backbone, device: str) -> Backbone:
    """Split a frozen encoder's layers over all processes, one layer at a time, and move it to their devices.

    Args:
        backbone: The encoder, in host memory; changed in place.
        device: This process's device.

    Raises:
        ConfigError: There is only one process.
    """
    world = rank_and_world()[1]
    if world == 1:
        raise ConfigError(
            "a sharded encoder needs several processes: start the command with"
            " 'accelerate launch --num_processes N -m mp2.cli.main ...'"
        )
    mesh = init_device_mesh(torch.device(device).type, (world,))
    backbone.requires_grad_(False)
    for layer in backbone.layers:
        fully_shard(layer, mesh=mesh)
    backbone.embeddings.to(device)
    if backbone.project is not None:
        backbone.project.to(device)
    backbone.sharded = True
    return backbone
