"""Black-box tuning against the plain way: same encoder, same shots, same candidates, same losses.

The plain way is what one writes first, and what the released code does: one candidate per forward, the whole
train set padded into one batch, prompt slots in the sequence, every prompt of every layer projected again,
all layers and all tokens computed again. Ours is ``mp2.tuning.objective``. Both use the same Hugging Face
layers and PyTorch's own attention.

    python benchmarks/black_box.py --quick --json

The last line is JSON: for shallow and deep banks the speed-up of stage II (CMA-ES of the fused prompt), the
largest difference of a loss, the speed-up that the counted multiplications would give, the same for stage I
(one router per forward), and both again for short texts. The shots are invented: 32 reviews as long as
reviews are (median 76 characters, up to 240), and the short ones they were joined from. Without a shipped
model the weights are random, in the shipped size.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BertConfig, BertModel, BertTokenizerFast

from mp2.data.batch import MRCBatch
from mp2.model.bank import BankConfig, PromptBank
from mp2.model.checkpoint import (
    ASSETS,
    DEFAULT_BASE,
    Base,
    TrainedBank,
    load_base,
    save_encoder,
    write_manifest,
)
from mp2.model.mrc import SpanHead
from mp2.model.router import Routing
from mp2.model.spans import row_losses
from mp2.runtime import default_device
from mp2.tasks.render import MRCExample, render
from mp2.tasks.spec import TaskSpec
from mp2.tuning.methods import METHODS
from mp2.tuning.objective import Objective
from mp2.tuning.rows import labelled_rows, plain_rows
from mp2.tuning.state import TaskState
from mp2.tuning.tune import encode_shots

POPULATION = 20
SHOTS = ASSETS / "demo" / "gym-reviews" / "train.csv"
LAYERS, HIDDEN, HEADS, VOCABULARY = 4, 256, 4, 20_000
MODULES, LENGTH, INTRINSIC = 8, 16, 128


def random_base(folder: Path, texts: str) -> Base:
    """A base of the shipped size with random weights and one token per character."""
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys('，。：？！"' + texts)]
    vocabulary = known + [f"[unused{i}]" for i in range(VOCABULARY - len(known))]
    encoder = folder / "encoder"
    encoder.mkdir(parents=True)
    (encoder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab=str(encoder / "vocab.txt"))
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * HIDDEN,
        initializer_range=0.05,
    )
    save_encoder(encoder, BertModel(shape, add_pooling_layer=False), tokenizer, SpanHead(HIDDEN))
    write_manifest(folder, "random", [])
    return Base(folder, default_device())


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
        mixed = (gates[..., None] * every).sum(dim=1) / gates.sum(dim=1, keepdim=True)
        prompts = mixed.unflatten(-1, (self.bank.config.length, self.bank.config.hidden))
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


def stage_one(state: TaskState, objective: Objective, calls: int) -> dict[str, float]:
    """Routers, one per forward as Bayesian optimisation asks for them."""
    assert state.router is not None and state.source is not None
    candidates = np.random.default_rng(0).uniform(-5, 5, (calls, state.router.numel()))
    plain = Plain(state, objective.batch)
    routers = torch.from_numpy(candidates).float().to(state.base.device).view(-1, *state.router.shape)
    objective.over_router()
    ours, seconds = _timed(lambda: np.concatenate([objective(one[None]) for one in candidates]))
    theirs, plain_seconds = _timed(
        lambda: np.array([plain(router, state.source.bank.z) for router in routers])  # type: ignore[union-attr]
    )
    return _compared(ours, theirs, seconds, plain_seconds, arithmetic(state, objective.batch, router=True))


def stage_two(state: TaskState, objective: Objective, rounds: int) -> dict[str, float]:
    """Rounds of one generation per layer, each layer then set to its best candidate."""
    assert state.router is not None and state.source is not None
    state.fuse()
    assert state.z is not None
    random = np.random.default_rng(1)
    layers, d = state.z.shape[1:]
    start = state.z.detach().clone()
    offsets = random.normal(size=(rounds, layers, POPULATION, d)) * 0.3 * float(start.std())
    plain = Plain(state, objective.batch)
    modules = state.source.bank.config.modules

    def walk(losses_of: Callable[[int, np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        assert state.z is not None
        state.z.data.copy_(start)
        found = []
        for round_, layer in ((r, layer) for r in range(rounds) for layer in range(layers)):
            candidates = state.z[0, layer].double().cpu().numpy() + offsets[round_, layer]
            found.append(losses_of(layer, candidates))
            best = torch.from_numpy(candidates[found[-1].argmin()]).float()
            state.z.data[0, layer] = best.to(state.base.device)
        return np.concatenate(found)

    def ours(layer: int, candidates: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        objective.over_layer(layer)
        return objective(candidates)

    def theirs(layer: int, candidates: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        assert state.z is not None and state.router is not None
        losses = []
        for candidate in torch.from_numpy(candidates).float().to(state.base.device):
            z = state.z.detach()[0].clone()
            z[layer] = candidate
            losses.append(plain(state.router, z[:, None].repeat(1, modules, 1)))
        return np.array(losses)

    found, seconds = _timed(lambda: walk(ours))
    expected, plain_seconds = _timed(lambda: walk(theirs))
    return _compared(
        found, expected, seconds, plain_seconds, arithmetic(state, objective.batch, router=False)
    )


def arithmetic(state: TaskState, batch: MRCBatch, *, router: bool) -> dict[str, float]:
    """Multiplications per candidate, in 1e9: those of the plain way, and as few as exactness allows.

    Per token a layer needs H*H for each of query, key, value and output, 8*H*H for the feed-forward, and
    2*T*H for attention to T positions.
    """
    assert state.bank is not None
    h, p, depth = state.base.backbone.hidden_size, state.bank.config.length, state.base.backbone.depth
    wide = 2 * state.base.backbone.config.intermediate_size * h
    lengths = batch.mask.sum(dim=1).tolist()
    picked = len({(int(w), int(t)) for w, a, b in batch.options.tolist() for t in (a, b)}) or sum(lengths)
    padded = len(lengths) * (max(lengths) + p)
    whole = depth * padded * (4 * h * h + wide + 2 * (max(lengths) + p) * h)
    extra = p if state.injection == "add" else 0  # slots are tokens of every layer
    tokens = sum(lengths) + extra * len(lengths)
    mean = tokens / len(lengths)
    full = tokens * (4 * h * h + wide + 2 * (mean + p - extra) * h)
    # the last layer projects keys and values on the side of its few queries
    heads = state.base.backbone.config.num_attention_heads
    last = picked * (4 * h * h + wide + heads * 2 * (mean + p - extra) * h)
    # in the searched layer the text's query, key and value, and its attention to itself, are known
    searched = sum(lengths) * (h * h + wide + 2 * p * h) + (tokens - sum(lengths)) * (
        4 * h * h + wide + 2 * mean * h
    )
    ends = picked * (h * h + wide + 2 * p * h)
    layers = [0] if router else range(state.bank.config.layers)
    costs = [ends if layer == depth - 1 else searched + (depth - 2 - layer) * full + last for layer in layers]
    least = sum(costs) / len(costs)
    return {"plain": whole / 1e9, "least": least / 1e9}


def _timed(run: Callable[[], np.ndarray[Any, Any]]) -> tuple[np.ndarray[Any, Any], float]:
    begin = time.perf_counter()
    value = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return value, time.perf_counter() - begin


def _compared(
    ours: np.ndarray[Any, Any],
    theirs: np.ndarray[Any, Any],
    seconds: float,
    plain_seconds: float,
    counted: dict[str, float],
) -> dict[str, float]:
    return {
        "speedup": round(plain_seconds / seconds, 2),
        "max_loss_difference": float(np.abs(ours - theirs).max()),
        "calls": len(ours),
        "ms_per_call": round(1000 * seconds / len(ours), 2),
        "plain_ms_per_call": round(1000 * plain_seconds / len(ours), 2),
        "counted_speedup": round(counted["plain"] / counted["least"], 2),
        "gmac_per_call": round(counted["least"], 3),
        "plain_gmac_per_call": round(counted["plain"], 3),
    }


def long_reviews(task: TaskSpec) -> list[MRCExample]:
    """Reviews of each label joined until they are as long as reviews in the wild: 20 to 240 characters."""
    rows = plain_rows(SHOTS)
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
    shots = encode_shots(base, examples, reserve)
    objective = Objective(state, shots, task)
    lengths = objective.batch.mask.sum(dim=1)
    _warm(state, objective)
    first = stage_one(state, objective, 5 if quick else 20)
    second = stage_two(state, objective, 1 if quick else 3)
    shape = {"rows": len(shots), "tokens": int(lengths.sum()), "longest": int(lengths.max())}
    return {**second, "stage_one": first, **shape, "injection": state.injection}


def _warm(state: TaskState, objective: Objective) -> None:
    """A forward of each way, so that neither pays for the first use of a kernel."""
    assert state.router is not None and state.source is not None
    objective(np.zeros((1, state.router.numel())))
    Plain(state, objective.batch)(state.router, state.source.bank.z)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="fewer candidates; under five minutes")
    parser.add_argument("--json", action="store_true", help="print only the JSON line")
    parser.add_argument("--model", help="base folder; the shipped model, or random weights without one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.model or (ASSETS / DEFAULT_BASE / "mp2.json").exists():
            base = load_base(arguments.model, default_device())
        else:
            base = random_base(Path(folder) / "base", SHOTS.read_text(encoding="utf-8"))
        task, short = labelled_rows(SHOTS, None)
        result: dict[str, Any] = {"short": {}}
        for name in ("shallow", "deep"):
            result[name] = measure(base, name, task, long_reviews(task), quick=arguments.quick)
            result["short"][name] = measure(base, name, task, short, quick=arguments.quick)
    result["model"], result["device"] = base.name, _device()
    if not arguments.json:
        _show(result)
    print(json.dumps(result))


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu, {torch.get_num_threads()} threads"


def _show(result: dict[str, Any]) -> None:
    print(f"{result['model']} on {result['device']}")
    pairs = [(part, name) for part in (result, result["short"]) for name in ("shallow", "deep")]
    for part, name in pairs:
        both = {"stage I (router)": part[name]["stage_one"], "stage II (prompts)": part[name]}
        for title, numbers in both.items():
            print(
                f"{name:8} {title:19} {part[name]['tokens']:5} tokens"
                f" {numbers['plain_ms_per_call']:8.1f} -> {numbers['ms_per_call']:7.1f} ms a call:"
                f" {numbers['speedup']:5.1f} times, counted {numbers['counted_speedup']:.1f};"
                f" losses differ by at most {numbers['max_loss_difference']:.1e}"
            )


if __name__ == "__main__":
    main()
