"""A sharded encoder on its own; what several processes do with one is tested with the training of step 2."""

from __future__ import annotations

import pytest

from mp2.errors import ConfigError
from mp2.model.checkpoint import Base, load_base


def test_one_process_cannot_hold_a_sharded_encoder(base: Base) -> None:
    with pytest.raises(ConfigError, match="accelerate launch --num_processes"):
        load_base(base.path, shard=True)


def test_a_plain_encoder_is_not_sharded(base: Base) -> None:
    assert not base.backbone.sharded
