"""The frozen random projection of BBT and BBTv2: A is drawn so that prompts have the scale of what they join.

Only z moves, from 0. With z ~ N(0, 1) the entries of z A have the standard deviation of the word embeddings
(layer 0) or of the clipped hidden states at the layer's input (the layers above). Decides no search settings.

References:
    BBT: Sun et al., arXiv:2201.03514. BBTv2: Sun et al., arXiv:2205.11200.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mp2.data.batch import MRCBatch
from mp2.model.backbone import Backbone
from mp2.model.bank import PromptBank

CLIPS, CLIP = 5, 3.0  # how often hidden states are clipped, and at how many standard deviations


@torch.no_grad()
def draw_projection(bank: PromptBank, backbone: Backbone, batches: Sequence[MRCBatch], *, seed: int) -> None:
    """Fill a factored bank of one module: A at random, z with zeros.

    Args:
        bank: Factored, K = 1; changed in place.
        backbone: The frozen encoder.
        batches: The train rows, whose hidden states set the scale of the deeper layers.
        seed: Seed of A.
    """
    generator = torch.Generator().manual_seed(seed)
    scales = [backbone.words().float().std()]
    scales += hidden_scales(backbone, batches, bank.config.layers)[1:]
    for layer, scale in enumerate(scales):
        noise = torch.randn(bank.A[layer].shape, generator=generator).to(bank.A.device)
        bank.A[layer] = noise * scale / math.sqrt(bank.config.intrinsic)
    bank.z.zero_()


@torch.no_grad()
def hidden_scales(backbone: Backbone, batches: Sequence[MRCBatch], layers: int) -> list[Tensor]:
    """Standard deviation of the hidden states at the input of the first layers, outliers clipped."""
    hidden = [backbone.embed(batch.ids) for batch in batches]
    scales = []
    for layer in range(layers):
        values = torch.cat([h[b.mask].flatten() for h, b in zip(hidden, batches, strict=True)]).float()
        for _ in range(CLIPS):
            mean, std = values.mean(), values.std()
            values = values.clamp(mean - CLIP * std, mean + CLIP * std)
        scales.append(values.std())
        if layer + 1 < layers:
            hidden = [
                backbone.run(h, b.mask, start=layer, stop=layer + 1)
                for h, b in zip(hidden, batches, strict=True)
            ]
    return scales
