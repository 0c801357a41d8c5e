"""Methods as rows of one table: which bank, where it starts, the stages. Adding a method is adding a row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mp2.errors import ConfigError, nearest
from mp2.tuning.stages import Bayes, Cma, Contrastive, Gradient, GroupName, Probe, Stage

Start = Literal["bank", "random", "vocabulary", "projection"]
Holds = Literal["prompts", "encoder", "skills"]


@dataclass(frozen=True, slots=True)
class Method:
    """One row.

    Attributes:
        name: Name on the command line.
        version: Raised when a published row changes.
        bank: Name of the pre-trained bank it starts from, or None.
        holds: What that bank holds: ``prompts``; another ``encoder``; or Poly's ``skills``.
        fresh: Shape of a bank made on the spot: ``deep``, ``shallow`` or None.
        start: How a fresh bank begins: ``random``, from a ``vocabulary`` sample, or as a random frozen
            ``projection`` of an intrinsic vector.
        modules: K of a fresh bank.
        length: P of a fresh bank.
        intrinsic: d of a random projection.
        stages: What is tuned, in order.
        about: One line for people.
    """

    name: str
    stages: tuple[Stage, ...]
    bank: str | None = None
    fresh: Literal["deep", "shallow"] | None = None
    start: Start = "bank"
    holds: Holds = "prompts"
    modules: int = 1
    length: int = 16
    intrinsic: int = 128
    version: int = 1
    about: str = ""

    @property
    def settings(self) -> str:
        """The stages with all their settings, in words, as records and adapters keep them."""
        return " -> ".join(map(repr, self.stages)) or "nothing tuned"

    @property
    def groups(self) -> tuple[GroupName, ...]:
        """Every group that a stage moves, in order."""
        return tuple(dict.fromkeys(group for stage in self.stages for group in stage.groups))

    @property
    def by_gradients(self) -> bool:
        """Whether dev rows choose nothing but the moment: no stage is a search or fits a classifier."""
        return all(isinstance(stage, Gradient) for stage in self.stages)

    @property
    def needs_labels(self) -> bool:
        """Whether it works only for tasks whose rows all have the same options."""
        return "probe" in self.groups

    def router_only(self) -> Method:
        """The same row, stopped after stage I."""
        return replace(
            self,
            name=f"{self.name}-router",
            stages=self.stages[:1],
            about=f"{self.about}; stops after the router",
        )


_ROUTER = Gradient({"router": 0.3}, steps=16, eval_every=4)
_PROMPTS = Gradient({"prompts": 0.03, "head": 0.003}, steps=40, eval_every=5)
_SINGLE = Gradient({"prompts": 0.03, "head": 0.003}, steps=60, eval_every=5)

_DEEP = Method(
    "mp2-deep-gd",
    (_ROUTER, _PROMPTS),
    bank="deep",
    version=2,
    about="deep MP2, router then prompts, gradient",
)
# Forward-only transfer first: what the upstream tasks' own routers are worth here costs one call each.
_KNOWN = Bayes(calls=0, random=0)
_TRANSFER = (
    Method(
        "mp2-deep-bb-transfer",
        (_KNOWN,),
        bank="deep",
        version=2,
        about="deep MP2 with the best router of the known tasks; forward passes only",
    ),
    Method(
        "mp2-deep-transfer",
        (_KNOWN, _ROUTER, _PROMPTS),
        bank="deep",
        version=3,
        about="deep MP2 from the best router of the known tasks, then router and prompts by gradient",
    ),
)
# Words that no upstream task has as a label say little to the frozen encoder: a vector at each tells it.
_LABELS = Method(
    "mp2-deep-labels",
    (_ROUTER, Gradient({"labels": 0.03, "head": 0.003}, steps=40, eval_every=5)),
    bank="deep",
    about="deep MP2, router, then vectors of the label words and head, gradient",
)
_SHALLOW = Method(
    "mp2-shallow-gd",
    (_ROUTER, _PROMPTS),
    bank="shallow",
    version=2,
    about="shallow MP2, router then prompts, gradient",
)

# Black-box rows: ours, the paper's settings (8,000 calls) and those of the released code (6 rounds). Steps
# and bounds of all that start from a bank are multiples of the spread of its fused vectors.
_DEEP_BB = Method(
    "mp2-deep-bb",
    (Bayes(calls=100), Cma(calls=1900, sigma=(0.1, 0.1), relative=True)),
    bank="deep",
    about="deep MP2, router by Bayesian optimisation, then prompts by CMA-ES; forward passes only",
)
_SHALLOW_BB = Method(
    "mp2-shallow-bb",
    (Bayes(calls=100), Cma(calls=1900, sigma=(0.1, 0.1), relative=True)),
    bank="shallow",
    about="shallow MP2, router by Bayesian optimisation, then prompts by CMA-ES; forward passes only",
)
_PAPER = (
    Method(
        "mp2-deep-bb-paper",
        (
            Bayes(calls=100, transfer=False, scales="released", loss="span"),
            Cma(calls=7900, sigma=(0.05, 0.01), relative=True, loss="span"),
        ),
        bank="deep",
        version=2,
        about="deep MP2 without gradients, the paper's 8,000 calls",
    ),
    Method(
        "mp2-shallow-bb-paper",
        (
            Bayes(calls=200, transfer=False, scales="released", loss="span"),
            Cma(calls=7800, sigma=(0.1, 0.1), relative=True, loss="span"),
        ),
        bank="shallow",
        version=2,
        about="shallow MP2 without gradients, the paper's 8,000 calls",
    ),
)
_RELEASED = (
    Method(
        "mp2-deep-bb-released",
        (
            Bayes(calls=100, transfer=False, scales="released", select="released", loss="span"),
            Cma(
                rounds=6,
                sigma=(0.5, 0.1),
                relative=True,
                bound=5.0,
                keep="best-ever",
                heed_stop=False,
                select="released",
                loss="span",
            ),
        ),
        bank="deep",
        version=2,
        about="deep MP2 without gradients, as the released code does it",
    ),
    Method(
        "mp2-shallow-bb-released",
        (
            Bayes(calls=200, transfer=False, scales="released", select="released", loss="span"),
            Cma(calls=7800, relative=True, keep="best-ever", select="released", loss="span"),
        ),
        bank="shallow",
        version=2,
        about="shallow MP2 without gradients, as the released code does it",
    ),
)
_POLY = Method(
    "poly",
    (
        Gradient({"router": 0.1}, steps=40, eval_every=10),
        Gradient({"lora": 1e-3, "head": 1e-3}, eval_every=5),
    ),
    bank="poly",
    holds="skills",
    about="low-rank skills trained on the same tasks, mixed by a router (PEFT)",
)
_BBT = Method(
    "bbt",
    (Cma(calls=2000, sigma=(1.0, 1.0)),),
    fresh="shallow",
    start="projection",
    version=2,
    about="one shallow prompt behind a random projection; forward passes only",
)
_BBTV2 = replace(
    _BBT,
    name="bbtv2",
    fresh="deep",
    about="one deep prompt behind random projections, layer by layer; forward passes only",
)
_BBT_PAPER = tuple(
    replace(
        row,
        name=f"{row.name}-paper",
        stages=(Cma(calls=8000, sigma=(1.0, 1.0)),),
        length=50,
        intrinsic=300,
        version=2,
        about=f"{row.about}, the paper's size and 8,000 calls",
    )
    for row in (_BBT, _BBTV2)
)

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "zero-shot", (), bank="deep", about="the deep bank, all its prompts in equal parts; nothing tuned"
        ),
        Method("zero-shot-base", (), about="the encoder and its head as they come; nothing tuned"),
        _DEEP,
        _DEEP.router_only(),
        _LABELS,
        *_TRANSFER,
        _SHALLOW,
        _SHALLOW.router_only(),
        _DEEP_BB,
        _DEEP_BB.router_only(),
        _SHALLOW_BB,
        _SHALLOW_BB.router_only(),
        *_PAPER,
        *_RELEASED,
        _BBT,
        _BBTV2,
        *_BBT_PAPER,
        Method(
            "spot",
            (_SINGLE,),
            bank="spot",
            version=2,
            about="one shallow prompt pre-trained on the same tasks",
        ),
        Method("ppt", (_SINGLE,), bank="ppt", version=2, about="one shallow prompt pre-trained on raw text"),
        Method(
            "prompt-tuning",
            (_SINGLE,),
            fresh="shallow",
            start="vocabulary",
            version=2,
            about="one shallow prompt from scratch",
        ),
        Method(
            "p-tuning-v2",
            (_SINGLE,),
            fresh="deep",
            start="random",
            version=2,
            about="one deep prompt from scratch",
        ),
        Method(
            "mp2-random-bank",
            (_ROUTER, _PROMPTS),
            fresh="deep",
            start="random",
            modules=8,
            version=2,
            about="deep MP2 on a random bank: what pre-training is worth",
        ),
        Method(
            "head-only", (Gradient({"head": 1e-2}, steps=80, eval_every=5),), about="only the span head moves"
        ),
        Method(
            "model-tuning",
            (Gradient({"backbone": 1e-4, "head": 1e-3}, steps=40, eval_every=5),),
            about="all weights of the encoder move",
        ),
        Method(
            "multi-task-model-tuning",
            (Gradient({"backbone": 1e-4, "head": 1e-3}, steps=40, eval_every=5),),
            bank="multitask",
            holds="encoder",
            about="all weights move, from an encoder trained with all weights on the same tasks",
        ),
        Method(
            "lora",
            (Gradient({"lora": 1e-3, "head": 1e-3}, steps=80, eval_every=5),),
            about="low-rank updates of the attention (PEFT)",
        ),
        _POLY,
        _POLY.router_only(),
        Method("linear-probing", (Probe(),), version=2, about="a logistic classifier on frozen states"),
        Method(
            "setfit",
            (Contrastive(), Probe()),
            version=2,
            about="contrastive tuning of the encoder, then a classifier",
        ),
    )
}
DEFAULT_METHOD = "mp2-deep-gd"
NEW_LABELS_METHOD = "mp2-deep-labels"  # the default where no label was taught (mp2.tuning.default)


def get_method(name: str) -> Method:
    """A row by name.

    Raises:
        ConfigError: There is none; the nearest is named.
    """
    if name not in METHODS:
        raise ConfigError(f"no method {name!r}; {nearest(name, METHODS, shown=30)}")
    return METHODS[name]
