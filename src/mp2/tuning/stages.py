"""Stages of tuning: which parameter groups move, by which optimiser, for how long.

A stage names exactly the groups it may change; everything else is frozen by ``requires_grad``, never by a
learning rate. Each stage starts with fresh optimiser moments (the released code switches learning rates of
1e-20 instead, so its Adam moments of the prompts warm up all through stage I).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from mp2.errors import ConfigError, nearest

GroupName = Literal["backbone", "head", "prompts", "z", "router", "labels", "lora", "probe"]
# option: cross-entropy over the options; span: over all tokens (paper); hinge: margin between options;
# metric: minus the task's metric
SearchLoss = Literal["option", "span", "hinge", "metric"]
Select = Literal["dev", "released"]
Scales = Literal["one", "each", "released"]
Keep = Literal["improved", "best-ever"]
WORDS = {"loss": SearchLoss, "select": Select, "scales": Scales, "keep": Keep}


def _check(stage: object, **least: float) -> None:
    """Refuse words that a setting does not know, and numbers below their least.

    Raises:
        ConfigError: Names the setting, and the nearest word.
    """
    for name, kind in WORDS.items():
        words = get_args(kind)
        if (word := getattr(stage, name, words[0])) not in words:
            raise ConfigError(f"setting {name}: no {word!r}; {nearest(word, words)}")
    for name, low in least.items():
        if not low <= (value := getattr(stage, name)) < math.inf:
            raise ConfigError(f"setting {name}: expected at least {low:g}, got {value!r}")


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ConfigError(f"setting {name}: expected more than 0, got {value!r}")


@dataclass(frozen=True, slots=True)
class Gradient:
    """A stage of gradient descent over the whole train set, one batch per step.

    Attributes:
        lr: Learning rate of each group that moves.
        steps: Optimiser steps (= epochs).
        eval_every: Steps between scores on the dev set.
    """

    lr: dict[GroupName, float]
    steps: int = 40
    eval_every: int = 10

    def __post_init__(self) -> None:
        _check(self, steps=1, eval_every=0)
        _check_positive(**{f"lr.{group}": rate for group, rate in self.lr.items()})

    @property
    def groups(self) -> tuple[GroupName, ...]:
        """Groups that move."""
        return tuple(self.lr)


@dataclass(frozen=True, slots=True)
class Bayes:
    """Bayesian optimisation of the router by forward passes alone (paper 3.4; GP with UCB).

    Attributes:
        calls: Evaluations of the loss in all; one router on the whole train set is one call. 0: the first
            points alone, known and random ones; the process is never asked.
        random: Random points among them, before the process is asked.
        kappa: UCB's exploration weight.
        box: Bound of every router logit, [-box, box].
        transfer: Try what is known first: the start, all prompts in equal parts, and the routers of the
            pre-trained tasks.
        scales: Length scales of the process: ``one`` for all router logits, or one for ``each`` with a prior
            that grows with their number (for the 192 of the paper's encoder). Both cap losses far above the
            middle, and fit when 30 % more points are known. ``released``: one for all, losses as they come
            and a fit before every point, as the released code's library has it.
        trust_region: Stay near the best point.
        select: ``dev`` scores every improved candidate; ``released`` every tenth call, whatever it is.
        loss: What is minimised on the train rows.
    """

    calls: int = 200
    random: int = 20
    kappa: float = 2.0
    box: float = 5.0
    transfer: bool = True
    scales: Scales = "each"
    trust_region: bool = False
    select: Select = "dev"
    loss: SearchLoss = "option"
    groups: tuple[GroupName, ...] = ("router",)

    def __post_init__(self) -> None:
        _check(self, calls=0, random=0, kappa=0)
        _check_positive(box=self.box)


@dataclass(frozen=True, slots=True)
class Cma:
    """CMA-ES of the fused intrinsic prompt, layer by layer when deep (paper 3.4).

    Attributes:
        calls: Evaluations of the loss in all.
        rounds: Generations of every layer; decides the calls instead when above 0.
        sigma: Initial step at the input layer and at the others, in the unit below.
        relative: The unit of ``sigma`` and ``bound``: on, the standard deviation of the layer's fused vector,
            as every bank's intrinsic space has its own scale; off, 1, for a projection drawn for z ~ N(0, 1)
            whose z begins at 0 (BBT). The paper's and the released code's numbers are absolute, in the space
            of a bank that is not public; the rows of their names take them as multiples of that deviation.
        popsize: Candidates per generation.
        bound: Bound of every coordinate, in the same unit; 0 for none.
        keep: What a layer is set to after its generation: ``improved`` takes its best candidate where it is
            better than all that stood before (the first generation of a search is taken as it comes);
            ``best-ever`` (released code) the best it ever saw, whatever the
            other layers have become since.
        heed_stop: A layer whose CMA-ES has converged is left alone; the released code goes on.
        select: ``dev`` scores the mean of the distribution and what is kept; ``released`` the candidate that
            is being evaluated.
        eval_every: Calls between scores on the dev set.
        loss: What is minimised on the train rows.
    """

    calls: int = 7800
    rounds: int = 0
    sigma: tuple[float, float] = (0.1, 0.1)
    relative: bool = False
    popsize: int = 20
    bound: float = 0.0
    keep: Keep = "improved"
    heed_stop: bool = True
    select: Select = "dev"
    eval_every: int = 100
    loss: SearchLoss = "option"
    groups: tuple[GroupName, ...] = ("z",)

    def __post_init__(self) -> None:
        _check(self, calls=1, rounds=0, popsize=4, bound=0, eval_every=1)
        if len(self.sigma) != 2:
            raise ConfigError(
                f"setting sigma: expected two steps, at the input layer and at the others, got {self.sigma!r}"
            )
        for sigma in self.sigma:
            _check_positive(sigma=sigma)


@dataclass(frozen=True, slots=True)
class Probe:
    """A linear classifier fitted on frozen states; the dev set chooses the regularisation.

    Attributes:
        strengths: Weights of the squared norm to try.
    """

    strengths: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    groups: tuple[GroupName, ...] = ("probe",)

    def __post_init__(self) -> None:
        if not self.strengths or not all(0 <= strength < math.inf for strength in self.strengths):
            raise ConfigError(f"setting strengths: expected numbers of at least 0, got {self.strengths!r}")


@dataclass(frozen=True, slots=True)
class Contrastive:
    """SetFit's first step: the encoder learns to pull rows of one label together.

    Attributes:
        lr: Learning rate of the encoder.
        steps: Optimiser steps.
        rows: Rows per step at most.
        eval_every: Steps between scores on the dev set, for which a classifier is fitted.
        strength: Regularisation of that classifier.
    """

    lr: float = 1e-4
    steps: int = 40
    rows: int = 64
    eval_every: int = 5
    strength: float = 0.1
    groups: tuple[GroupName, ...] = ("backbone", "probe")

    def __post_init__(self) -> None:
        _check(self, steps=1, rows=1, eval_every=0, strength=0)
        _check_positive(lr=self.lr)


Stage = Gradient | Bayes | Cma | Probe | Contrastive
