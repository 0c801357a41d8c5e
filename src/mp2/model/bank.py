"""The bank: K soft prompts per layer, dense or as intrinsic vectors times a projection.

Composes prompts; does not decide the weights (``router``) nor how a prompt enters a layer (``backbone``).
Paper section 3.2: ``p_k = z_k A`` with z in R^d and A in R^{d x D}, D = P*H. We always fuse
before projecting, ``(w @ z) @ A``: one projection instead of K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mp2.errors import ConfigError, nearest

Depth = Literal["deep", "shallow"]
Injection = Literal["prefix", "add"]


def slots_of(injection: Injection, length: int) -> int:
    """Positions of a window that a prompt of P vectors takes from the text: all P, or none as a prefix."""
    return length if injection == "add" else 0


@dataclass(frozen=True, slots=True)
class BankConfig:
    """Shape and form of a bank.

    Attributes:
        layers: L, number of layers that get a prompt: the encoder's depth (deep) or 1 (shallow).
        modules: K, soft prompts per layer.
        length: P, vectors per prompt.
        hidden: H.
        intrinsic: d of the factored form; 0 means dense.
        injection: ``prefix`` (keys and values in front, deep only) or ``add`` (added to P slots after [CLS]).
    """

    layers: int
    modules: int
    length: int
    hidden: int
    intrinsic: int = 0
    injection: Injection = "prefix"

    def __post_init__(self) -> None:
        for name in ("layers", "modules", "length", "hidden"):
            if getattr(self, name) < 1:
                raise ConfigError(f"bank: {name}: expected at least 1, got {getattr(self, name)}")
        if self.injection not in get_args(Injection):
            raise ConfigError(
                f"bank: no injection {self.injection!r}; {nearest(self.injection, get_args(Injection))}"
            )
        if self.intrinsic < 0:
            raise ConfigError(f"bank: intrinsic: expected 0 (dense) or more, got {self.intrinsic}")


class PromptBank(nn.Module):
    """K soft prompts for each of L layers.

    Dense: parameter ``prompts (L, K, P, H)``. Factored: ``z (L, K, d)`` and ``A (L, d, P*H)``.

    Args:
        config: Shape and form.
        std: Standard deviation of the initial prompts (the released code starts near zero, 2.5e-5).
        generator: Source of the initial values.
    """

    def __init__(
        self, config: BankConfig, *, std: float = 0.02, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config = config
        c = config
        if c.intrinsic:
            # std of z A is std(z) * std(A) * sqrt(d); A has the released code's 1/sqrt(3 P H)
            scale = (3 * c.length * c.hidden) ** -0.5
            z_std = std / (scale * c.intrinsic**0.5)
            self.z = nn.Parameter(torch.randn(c.layers, c.modules, c.intrinsic, generator=generator) * z_std)
            a = torch.rand(c.layers, c.intrinsic, c.length * c.hidden, generator=generator)
            self.A = nn.Parameter((2 * a - 1) * (c.length * c.hidden) ** -0.5)
        else:
            shape = (c.layers, c.modules, c.length, c.hidden)
            self.prompts = nn.Parameter(torch.randn(shape, generator=generator) * std)

    def compose(self, weights: Tensor) -> Tensor:
        """Mix the K prompts of each layer.

        Args:
            weights: ``(R, L, K)``.

        Returns:
            ``(R, L, P, H)``.

        Raises:
            ConfigError: The weights belong to another bank shape.
        """
        c = self.config
        if weights.shape[1:] != (c.layers, c.modules):
            raise ConfigError(
                f"router weights: expected (R, {c.layers}, {c.modules}), got {tuple(weights.shape)}"
            )
        if c.intrinsic:
            return self.project(torch.einsum("rlk,lkd->rld", weights, self.z))
        return torch.einsum("rlk,lkph->rlph", weights, self.prompts)

    def project(self, z: Tensor) -> Tensor:
        """Intrinsic vectors ``(R, L, d)`` to prompts ``(R, L, P, H)``.

        Raises:
            ConfigError: The bank is dense and has no projection.
        """
        if not self.config.intrinsic:
            raise ConfigError("this bank is dense: it has no intrinsic vectors z and projection A")
        flat = torch.einsum("rld,ldq->rlq", z, self.A)
        return flat.reshape(*flat.shape[:2], self.config.length, self.config.hidden)

    def materialised(self) -> PromptBank:
        """The same prompts in dense form (a copy); few-shot tuning moves these freely (paper 3.3)."""
        if not self.config.intrinsic:
            dense = self.prompts.detach().clone()
        else:
            k = self.config.modules
            every = torch.eye(k, device=self.z.device, dtype=self.z.dtype)
            dense = self.compose(every[:, None].expand(k, self.config.layers, k)).detach().transpose(0, 1)
        c = self.config
        bank = PromptBank(BankConfig(c.layers, c.modules, c.length, c.hidden, 0, c.injection))
        bank.prompts = nn.Parameter(dense.contiguous())
        return bank
