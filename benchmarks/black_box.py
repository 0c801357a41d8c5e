"""Black-box tuning against the plain way: same encoder, same shots, same candidates, same losses.

The plain way is what one writes first, and what the released code does: one candidate per forward, the whole
train set padded into one batch, prompt slots in the sequence, every prompt of every layer projected again,
all layers and all tokens computed again, by Hugging Face's layers as they are and PyTorch's own attention.
Ours is ``mp2.tuning.objective``. Both have the same weights in the same process, with freed memory kept for
what comes next, and take turns: a generation of one, the same generation of the other.

    python benchmarks/black_box.py --quick --json

The last line is JSON: for shallow and deep banks the speed-up of stage II (CMA-ES of the fused prompt) and
the largest difference of a loss. The table before it (on standard error) adds stage I (one router per
forward), short texts, and the limit: the multiplications that exact losses need, and how long a matrix
product of the encoder's own shape would take for as many. The shots are invented: 32 reviews as long as
reviews are (median 76 characters, up to 240), and the short ones they were joined from. A bank that the base
lacks is made with random weights.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mp2.data.batch import MRCBatch
from mp2.model.bank import BankConfig, PromptBank
from mp2.model.checkpoint import ASSETS, Base, TrainedBank, load_base
from mp2.model.router import Routing
from mp2.model.spans import row_losses
from mp2.runtime import autocast, default_device, keep_freed_memory
from mp2.tasks.render import MRCExample, render
from mp2.tasks.spec import TaskSpec
from mp2.tuning.methods import METHODS
from mp2.tuning.objective import Objective
from mp2.tuning.rows import labelled_rows, plain_rows
from mp2.tuning.state import TaskState
from mp2.tuning.tune import encode_shots

Losses = np.ndarray[Any, Any]
POPULATION = 20
SHOTS = ASSETS / "demo" / "gym-reviews" / "train.csv"
MODULES, LENGTH, INTRINSIC = 8, 16, 128


def random_bank(base: Base, name: str, folder: Path) -> str:
    """A bank with random weights, written for a base that has none of this name."""
    deep = name == "deep"
    layers, hidden = (base.backbone.depth if deep else 1), base.backbone.hidden_size
    config = BankConfig(layers, MODULES, LENGTH, hidden, INTRINSIC, "prefix" if deep else "add")
    router = torch.randn(3, layers, MODULES, generator=torch.Generator().manual_seed(0))
    bank = PromptBank(config, std=0.5, generator=torch.Generator().manual_seed(1))
    trained = TrainedBank(name, bank, router, ("a", "b", "c"), base.head, Routing(), base.fingerprint)
    trained.save(folder / name, dtype=torch.float32)
    return str(folder / name)


class Plain:
    """One candidate per forward, everything computed again."""

    def __init__(self, state: TaskState, batch: MRCBatch) -> None:
        assert state.source is not None
        self.state, self.batch, self.bank = state, batch, state.source.bank
        self.backbone = state.model.backbone

    @torch.no_grad()
    def __call__(self, router: Tensor, z: Tensor) -> float:
        """Loss of a router ``(1, L, K)`` and the intrinsic vectors of all prompts ``(L, K, d)``."""
        gates = torch.sigmoid(router)[0]
        every = torch.einsum("lkd,ldq->lkq", z, self.bank.A)
        mixed: Tensor = (gates[..., None] * every).sum(dim=1) / gates.sum(dim=1, keepdim=True)
        prompts = mixed.reshape(len(mixed), self.bank.config.length, self.bank.config.hidden)
        logits = self.state.model.head(self._hidden(prompts))
        losses, known = row_losses(logits, self.batch, "option")
        return float(losses.sum() / known.sum())

    def _hidden(self, prompts: Tensor) -> Tensor:
        slots = prompts.shape[1]
        ids, mask = self.backbone.with_slots(self.batch.ids, self.batch.mask, slots)
        hidden = self.backbone.embed(ids)
        if self.bank.config.injection == "prefix":
            # the replaced slots have no position of their own in a bank that was trained as a prefix
            hidden = torch.cat([hidden[:, :1], hidden[:, 1 : 1 + slots], self._text()], dim=1)
        for index, layer in enumerate(self.backbone.layers):
            if index < len(prompts):
                prompt = prompts[index].expand(len(ids), -1, -1)
                if self.bank.config.injection == "add":
                    prompt = hidden[:, 1 : 1 + slots] + prompt
                hidden = torch.cat([hidden[:, :1], prompt, hidden[:, 1 + slots :]], dim=1)
            hidden = layer(hidden, mask[:, None, None, :])
        return torch.cat([hidden[:, :1], hidden[:, 1 + slots :]], dim=1)

    def _text(self) -> Tensor:
        return self.backbone.embed(self.batch.ids)[:, 1:]


@dataclass(slots=True)
class Turns:
    """Losses and seconds of both ways over the same candidates."""

    ours: list[float]
    plain: list[float]
    seconds: float = 0.0
    plain_seconds: float = 0.0

    @property
    def spent(self) -> float:
        """Seconds of both ways together."""
        return self.seconds + self.plain_seconds

    def take(self, ours: Callable[[], Losses], plain: Callable[[], Losses]) -> Losses:
        """One turn each; returns the losses as the plain way has them."""
        begin = _now()
        found = ours()
        middle = _now()
        expected = plain()
        self.seconds, self.plain_seconds = (
            self.seconds + middle - begin,
            self.plain_seconds + _now() - middle,
        )
        self.ours += found.tolist()
        self.plain += expected.tolist()
        return expected

    def compared(self, counted: tuple[float, float], rate: float) -> dict[str, float]:
        """The numbers of a row, by counted multiplications of both ways and those done in a second (1e9)."""
        calls = len(self.ours)
        whole, least = counted
        return {
            "speedup": round(self.plain_seconds / self.seconds, 2),
            "max_loss_difference": float(np.abs(np.array(self.ours) - self.plain).max()),
            "ms": 1000 * self.seconds / calls,
            "plain_ms": 1000 * self.plain_seconds / calls,
            "counted": whole / least,
            "least_ms": 1000 * least / rate,
        }


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def stage_one(state: TaskState, objective: Objective, seconds: float) -> Turns:
    """Routers, one per forward as Bayesian optimisation asks for them; at least 5, at most 20."""
    assert state.router is not None and state.source is not None
    candidates = np.random.default_rng(0).uniform(-5, 5, (20, state.router.numel()))
    plain, z, turns = Plain(state, objective.batch), state.source.bank.z, Turns([], [])
    objective.over_router()
    for number, one in enumerate(candidates):
        if number >= 5 and turns.spent > seconds:
            break
        router = torch.from_numpy(one).float().to(state.base.device).view_as(state.router)
        turns.take(lambda: objective(one[None]), lambda: np.array([plain(router, z)]))  # noqa: B023
    return turns


def stage_two(state: TaskState, objective: Objective, seconds: float) -> Turns:
    """Rounds of one generation per layer, each layer then set to its best candidate; at least one round."""
    assert state.router is not None and state.source is not None
    state.fuse()
    assert state.z is not None
    random, sigma = np.random.default_rng(1), 0.3 * float(state.z.std())
    plain, turns, modules = Plain(state, objective.batch), Turns([], []), state.source.bank.config.modules

    def ours(layer: int, candidates: Losses) -> Losses:
        objective.over_layer(layer)
        return objective(candidates)

    def theirs(layer: int, candidates: Losses) -> Losses:
        assert state.z is not None and state.router is not None
        losses = []
        for candidate in torch.from_numpy(candidates).float().to(state.base.device):
            z = state.z.detach()[0].clone()
            z[layer] = candidate
            losses.append(plain(state.router, z[:, None].repeat(1, modules, 1)))
        return np.array(losses)

    for layer in cycle(range(state.z.shape[1])):
        if layer == 0 and turns.spent > seconds:
            break
        middle = state.z[0, layer].double().cpu().numpy()
        candidates = middle + sigma * random.normal(size=(POPULATION, len(middle)))
        losses = turns.take(lambda: ours(layer, candidates), lambda: theirs(layer, candidates))  # noqa: B023
        state.z.data[0, layer] = torch.from_numpy(candidates[losses.argmin()]).float()
    return turns


@dataclass(frozen=True, slots=True)
class Shape:
    """What multiplications are counted for: an encoder and a bank."""

    depth: int
    hidden: int
    wide: int
    heads: int
    prompt: int
    deep: bool
    slots: bool

    def multiplications(self, lengths: list[int], picked: int, *, router: bool) -> tuple[float, float]:
        """Per candidate, in 1e9: those of the plain way, and as few as exact losses allow.

        Per token a layer needs H*H for each of query, key, value and output, 2*H*W for the feed-forward, and
        2*T*H for attention to T positions.

        Args:
            lengths: Tokens of each window.
            picked: Tokens whose logits are read.
            router: Stage I, where a candidate changes all layers; else the mean over the layers searched.
        """
        h, p, forward = self.hidden, self.prompt, 2 * self.hidden * self.wide
        padded = max(lengths) + p
        whole = self.depth * len(lengths) * padded * (4 * h * h + forward + 2 * padded * h)
        extra = p * len(lengths) if self.slots else 0  # slots are tokens of every layer
        text = sum(lengths)
        mean = text / len(lengths) + p
        full = (text + extra) * (4 * h * h + forward + 2 * mean * h)
        # the last layer projects keys and values on the side of its few queries
        last = picked * (4 * h * h + forward + self.heads * 2 * mean * h)
        # in the searched layer the text's query, key and value, and its attention to itself, are known; the
        # slots are those of layer 0, the same in all windows
        searched = text * (h * h + forward + 2 * p * h) + extra * (h * h + forward + 2 * mean * h)
        ends = picked * (h * h + forward + 2 * p * h)
        layers = range(self.depth if self.deep and not router else 1)
        costs = [
            ends if layer == self.depth - 1 else searched + (self.depth - 2 - layer) * full + last
            for layer in layers
        ]
        return whole / 1e9, sum(costs) / len(costs) / 1e9


def shape_of(state: TaskState) -> Shape:
    """The encoder and bank at hand."""
    assert state.bank is not None
    c, bank = state.base.backbone.config, state.bank.config
    return Shape(
        state.base.backbone.depth,
        state.base.backbone.hidden_size,
        c.intermediate_size,
        c.num_attention_heads,
        bank.length,
        bank.layers > 1,
        bank.injection == "add",
    )


def products_per_second(state: TaskState) -> float:
    """1e9 multiplications a second of a matrix product in the shape of a feed-forward."""
    h = state.base.backbone.hidden_size
    left, right = (torch.randn(n, h, device=state.base.device) for n in (2048, 4 * h))
    seconds = []
    for _ in range(20):
        begin = _now()
        torch.nn.functional.linear(left, right)
        seconds.append(_now() - begin)
    return 2048 * 4 * h * h / 1e9 / min(seconds)


def long_reviews(task: TaskSpec) -> list[MRCExample]:
    """Reviews of each label joined until they are as long as reviews in the wild: 20 to 240 characters."""
    rows = [row for _, row in plain_rows(SHOTS, task)]
    normal = NormalDist(math.log(76), 0.75)
    made = []
    for index, row in enumerate(rows):
        wanted = min(240, round(math.exp(normal.inv_cdf((index + 0.5) / len(rows)))))
        same = [other["text"] for other in rows if other["label"] == row["label"]]
        text = "".join(same[(index + i) % len(same)] for i in range(len(same)))[:wanted]
        made.append(render(task, {"text": text, "label": row["label"]}))
    return made


def measure(
    base: Base, name: str, task: TaskSpec, examples: list[MRCExample], *, quick: bool
) -> dict[str, Any]:
    """Both stages with the deep or the shallow bank."""
    with tempfile.TemporaryDirectory() as folder:
        bank = name if name in base.banks else random_bank(base, name, Path(folder))
        base.bank(bank)
    # the plain way knows one gate and one combination; ours then uses the same
    base.bank(bank).routing = Routing("soft", "normalised")
    state = TaskState(base, replace(METHODS[f"mp2-{name}-bb"], bank=bank), seed=0)
    reserve = state.bank.config.length if state.bank and state.injection == "add" else 0
    objective = Objective(state, encode_shots(base, examples, reserve), task)
    _warm(state, objective)
    rate = products_per_second(state)
    lengths: list[int] = objective.batch.mask.sum(dim=1).tolist()
    # two ends of each option; without options every token is read
    ends = {(w, t) for w, a, b in objective.batch.options.tolist() for t in (a, b)}
    picked, shape = len(ends) or sum(lengths), shape_of(state)
    # the paper's encoder and prompts, for the same texts
    large = replace(shape, depth=24, hidden=1024, wide=4096, heads=16, prompt=50)
    found: dict[str, Any] = {"tokens": sum(lengths), "longest": max(lengths), "rate": rate}
    for stage in ("stage I", "stage II"):
        one = stage == "stage I"
        seconds = (5.0 if one else 25.0) if quick else (30.0 if one else 120.0)
        turns = (stage_one if one else stage_two)(state, objective, seconds)
        counted = shape.multiplications(lengths, picked, router=one)
        whole, least = large.multiplications(lengths, picked, router=one)
        found[stage] = {**turns.compared(counted, rate), "counted_large": whole / least}
    return found


def _warm(state: TaskState, objective: Objective) -> None:
    """A forward of each way, so that neither pays for the first use of a kernel."""
    assert state.router is not None and state.source is not None
    objective(np.zeros((1, state.router.numel())))
    Plain(state, objective.batch)(state.router, state.source.bank.z)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer candidates; under five minutes")
    parser.add_argument("--json", action="store_true", help="end with one JSON line on standard output")
    parser.add_argument("--model", help="base folder; the shipped model when absent")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="products of both ways")
    arguments = parser.parse_args()
    keep_freed_memory()
    base = load_base(arguments.model, default_device())
    task, short = labelled_rows(SHOTS, None)
    _say(f"{base.name} on {_device()}, {arguments.precision}")
    _say(HEADER)
    found = {}
    for texts, examples in (("reviews", long_reviews(task)), ("short", short)):
        for name in ("shallow", "deep"):
            with autocast(base.device, arguments.precision):
                found[texts, name] = measure(base, name, task, examples, quick=arguments.quick)
            _show(texts, name, found[texts, name])
    if arguments.json:
        wanted = ("speedup", "max_loss_difference")
        print(
            json.dumps(
                {n: {k: found["reviews", n]["stage II"][k] for k in wanted} for n in ("shallow", "deep")}
            )
        )


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu, {torch.get_num_threads()} threads"


HEADER = (
    "texts    tokens longest bank     stage     plain ms  ours ms  times counted  large  limit ms  difference"
)


def _show(texts: str, name: str, measured: dict[str, Any]) -> None:
    for stage in ("stage I", "stage II"):
        m = measured[stage]
        _say(
            f"{texts:8} {measured['tokens']:6} {measured['longest']:7} {name:8} {stage:8}"
            f" {m['plain_ms']:9.1f} {m['ms']:8.1f} {m['speedup']:6.2f} {m['counted']:7.2f}"
            f" {m['counted_large']:6.2f} {m['least_ms']:9.1f}  {m['max_loss_difference']:.1e}"
        )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
