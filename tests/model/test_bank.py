"""The bank: fused projection, dense form, shapes."""

from __future__ import annotations

import pytest
import torch

from mp2.errors import ConfigError
from mp2.model.bank import BankConfig, PromptBank

SHAPE = BankConfig(layers=2, modules=3, length=4, hidden=8, intrinsic=5)


def _bank(config: BankConfig = SHAPE, std: float = 0.5) -> PromptBank:
    return PromptBank(config, std=std, generator=torch.Generator().manual_seed(0))


def test_fusing_before_projecting_equals_mixing_projected_prompts() -> None:
    bank = _bank()
    weights = torch.rand(6, 2, 3)
    every = torch.einsum("lkd,ldq->lkq", bank.z, bank.A).unflatten(-1, (4, 8))
    torch.testing.assert_close(bank.compose(weights), torch.einsum("rlk,lkph->rlph", weights, every))


def test_the_dense_form_composes_to_the_same_prompts() -> None:
    bank, weights = _bank(), torch.rand(6, 2, 3)
    dense = bank.materialised()
    assert dense.config.intrinsic == 0
    torch.testing.assert_close(dense.compose(weights), bank.compose(weights))


def test_a_dense_bank_is_copied_and_not_shared() -> None:
    bank = _bank(BankConfig(layers=2, modules=3, length=4, hidden=8))
    before = bank.prompts.detach().clone()
    with torch.no_grad():
        bank.materialised().prompts.zero_()
    assert torch.equal(bank.prompts, before)


@pytest.mark.parametrize("intrinsic", [0, 64])
def test_initial_prompts_have_the_asked_scale(intrinsic: int) -> None:
    config = BankConfig(layers=2, modules=8, length=16, hidden=64, intrinsic=intrinsic)
    prompts = _bank(config, std=0.3).materialised().prompts
    assert prompts.std().item() == pytest.approx(0.3, rel=0.1)


def test_weights_of_another_bank_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected \(R, 2, 3\), got \(1, 2, 4\)"):
        _bank().compose(torch.ones(1, 2, 4))


def test_a_dense_bank_has_no_projection() -> None:
    with pytest.raises(ConfigError, match="no intrinsic vectors"):
        _bank(BankConfig(2, 3, 4, 8)).project(torch.zeros(1, 2, 5))
