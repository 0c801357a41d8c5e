"""What a method may move for one task: router, prompts, head, and for model tuning the encoder itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mp2.data.batch import MRCBatch
from mp2.errors import ConfigError
from mp2.model.answer_length import AnswerLength
from mp2.model.backbone import Backbone
from mp2.model.bank import BankConfig, Injection, PromptBank
from mp2.model.checkpoint import Base, TrainedBank
from mp2.model.label_offsets import LabelOffsets
from mp2.model.low_rank import LowRank
from mp2.model.mrc import MRCModel, SpanHead
from mp2.model.probe import ProbeHead
from mp2.model.router import Routing, router_weights
from mp2.tuning.methods import Method
from mp2.tuning.parts import load_encoder, load_skills_of
from mp2.tuning.stages import GroupName


class TaskState:
    """Parameters of one task under one method. Nothing of the base or its banks is ever changed in place.

    Args:
        base: The frozen encoder.
        method: The row of the methods table.
        seed: Seed of fresh parameters.
        classes: Labels of the task; for methods with a classifier, or with vectors of label words.

    Attributes:
        answer_length: Length of the task's answers, where they are spans.
        label_offsets: What is added to the scores of its labels, where it has any.
    """

    def __init__(self, base: Base, method: Method, seed: int, classes: int = 0) -> None:
        self.base, self.method = base, method
        self.answer_length: AnswerLength | None = None
        self.label_offsets: LabelOffsets = ()
        generator = torch.Generator().manual_seed(seed)
        held = method.bank if method.holds == "prompts" else None
        self.source: TrainedBank | None = base.bank(held) if held else None
        self.routing = self.source.routing if self.source else Routing()
        self.bank = self._bank(generator)
        self.low_rank: LowRank | None = None
        backbone, spans = self._encoder(seed)
        probe = ProbeHead(base.backbone.hidden_size, classes) if method.needs_labels else None
        self.head: SpanHead | ProbeHead = (probe or spans).requires_grad_(False)
        self.model = MRCModel(backbone, self.head).to(base.device)
        self.router: nn.Parameter | None = None
        if self.bank is not None:
            self.bank.to(base.device).requires_grad_(False)
            c = self.bank.config
            noise = torch.rand(1, c.layers, c.modules, generator=generator)
            self.router = nn.Parameter(((2 * noise - 1) * 1e-3).to(base.device), requires_grad=False)
        self.labels: nn.Parameter | None = None  # (1, C, H) vectors of the label words
        if "labels" in method.groups and classes:
            vectors = torch.zeros(1, classes, base.backbone.hidden_size, device=base.device)
            self.labels = nn.Parameter(vectors, requires_grad=False)
        self.z: nn.Parameter | None = None  # (1, L, d); once it is there, prompts are its projection
        if method.start == "projection":
            self.fuse()

    def _encoder(self, seed: int) -> tuple[Backbone, SpanHead]:
        """The encoder and its head: copies of one's own as far as something of them moves."""
        base, method = self.base, self.method
        if method.holds == "encoder" and method.bank:
            return load_encoder(base, method.bank)
        head = copy.deepcopy(self.source.head if self.source else base.head)
        skills = load_skills_of(base, method.bank) if method.holds == "skills" and method.bank else None
        if skills is None and "lora" not in method.groups:
            own = copy.deepcopy(base.backbone) if "backbone" in method.groups else base.backbone
            return own, head
        backbone = copy.deepcopy(base.backbone)
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # PEFT draws from the global generator
            self.low_rank = LowRank(backbone, skills.config if skills else None)
        if skills is not None:
            self.low_rank.load_pairs(skills)
            head = copy.deepcopy(skills.head)
        return backbone, head

    def _bank(self, generator: torch.Generator) -> PromptBank | None:
        if self.source is not None:
            return self.source.bank.materialised()
        if self.method.fresh is None:
            return None
        backbone, length = self.base.backbone, self.method.length
        deep = self.method.fresh == "deep"
        if self.method.start == "projection":
            shape = (backbone.depth if deep else 1, 1, length, backbone.hidden_size, self.method.intrinsic)
            return PromptBank(BankConfig(*shape, "add"))
        modules = self.method.modules
        injection: Injection = "prefix" if deep else "add"
        config = BankConfig(
            backbone.depth if deep else 1, modules, length, backbone.hidden_size, 0, injection
        )
        # mixed in equal parts a deep prompt has unit scale, that of normalised hidden states: with less,
        # attention passes it by (docs/evidence/model-of-25-november.md)
        bank = PromptBank(config, std=modules**0.5 if deep else 0.02, generator=generator)
        if self.method.start == "vocabulary":
            words = backbone.words().detach()
            chosen = torch.randint(len(words), (length,), generator=generator)
            bank.prompts.data = words[chosen].float().cpu()[None, None].clone()
        return bank

    @property
    def injection(self) -> Injection:
        """How the bank's prompts enter a layer."""
        return self.bank.config.injection if self.bank else "prefix"

    def parameters(self, group: GroupName) -> dict[str, nn.Parameter]:
        """Parameters of a group, by name."""
        if group == "router" and self.low_rank is not None:
            return self.low_rank.routers()
        if group == "lora":
            return self.low_rank.pairs() if self.low_rank is not None else {}
        if group == "router":
            return {"logits": self.router} if self.router is not None else {}
        if group == "prompts":  # a factored bank (BBT's projection) has no prompts of its own to move
            dense = self.bank is not None and not self.bank.config.intrinsic
            return {"prompts": self.bank.prompts} if self.bank is not None and dense else {}
        if group == "labels":
            return {"vectors": self.labels} if self.labels is not None else {}
        if group == "z":
            return {"fused": self.z} if self.z is not None else {}
        if group == ("probe" if isinstance(self.head, ProbeHead) else "head"):
            return dict(self.head.named_parameters())
        if group == "backbone":
            return dict(self.model.backbone.named_parameters())
        return {}

    def logits(self, batch: MRCBatch, prompts: Tensor | None) -> Tensor:
        """Start and end logits ``(B, T, 2)`` under composed prompts, of options alone where there are any."""
        found: Tensor = self.model(batch, prompts, self.injection, labels=self.labels, options_only=True)
        return found

    def prompts(self) -> Tensor | None:
        """Composed prompts ``(1, L, P, H)``, differentiable in what moves; None without a bank."""
        if self.bank is None or self.router is None:
            return None
        return self.route(self.router) if self.z is None else self.projector.project(self.z)

    def route(self, logits: Tensor) -> Tensor:
        """Router logits ``(n, L, K)`` to prompts ``(n, L, P, H)``."""
        assert self.bank is not None
        return self.bank.compose(router_weights(logits, self.routing))

    @property
    def projector(self) -> PromptBank:
        """The bank in factored form, whose projection turns intrinsic vectors into prompts.

        Raises:
            ConfigError: There is none.
        """
        bank = self.source.bank if self.source else self.bank
        if bank is None or not bank.config.intrinsic:
            name = f"bank {self.source.name!r}" if self.source else "its bank"
            raise ConfigError(
                f"method {self.method.name}: {name} has no intrinsic vectors z and projection A to search in;"
                " train it in factored form (intrinsic > 0), or stop after the router with the method's"
                " '-router' row"
            )
        return bank

    def project(self, z: Tensor, layer: int) -> Tensor:
        """Intrinsic vectors ``(n, J, d)`` of the layers from ``layer`` on to prompts ``(n, J, P, H)``."""
        c = self.projector.config
        flat = torch.einsum("njd,jdq->njq", z, self.projector.A[layer : layer + z.shape[1]])
        return flat.view(*z.shape[:2], c.length, c.hidden)

    @torch.no_grad()
    def fuse(self) -> None:
        """Pre-fusion (paper 3.4): one intrinsic vector per layer from the modules that the router mixes."""
        assert self.router is not None
        weights = router_weights(self.router, self.routing)
        fused = torch.einsum("rlk,lkd->rld", weights, self.projector.z).to(self.router.dtype)
        self.z = nn.Parameter(fused, requires_grad=False)

    def snapshot(self, groups: Sequence[GroupName]) -> dict[str, Tensor]:
        """Copies of the parameters of some groups."""
        return {
            f"{group}.{name}": parameter.detach().clone()
            for group in groups
            for name, parameter in self.parameters(group).items()
        }

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Put copies back; prompts come from z again, or from the router, as when they were taken."""
        if "z.fused" not in snapshot:
            self.z = None
        elif self.z is None:
            self.fuse()
        with torch.no_grad():
            for key, value in snapshot.items():
                group, _, name = key.partition(".")
                self.parameters(group)[name].copy_(value)  # type: ignore[arg-type]

    @property
    def tuned_parameters(self) -> int:
        """How many numbers the method may change."""
        groups = self.method.groups
        numbers = sum(p.numel() for group in groups if group != "z" for p in self.parameters(group).values())
        if "z" in groups:
            numbers += self.projector.config.layers * self.projector.config.intrinsic
        return numbers
