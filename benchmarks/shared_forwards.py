"""Is it faster to let several runs of a grid share their forwards, with a prompt of its own for each row?

    python benchmarks/shared_forwards.py [--model BASE] [--rows 32] [--tokens 64] [--threads 1]

One gradient step (forward and backward) and one evaluation forward, for n runs with prompts of their own:
one after the other, and all rows in one batch. Prints milliseconds per run, the best of some repetitions.
Where the second column is not clearly below the first, sharing is worth nothing (docs/evaluation.md).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mp2.model.backbone import Prompts
from mp2.model.checkpoint import Base, load_base
from mp2.runtime import default_device


def forward(base: Base, ids: Tensor, prompts: Tensor, which: Tensor, *, learn: bool) -> None:
    """One forward of rows ``(B, T)`` with prompts ``(n, L, P, H)``, and its backward when learning."""
    with torch.set_grad_enabled(learn):
        mask = torch.ones_like(ids, dtype=torch.bool)
        hidden = base.backbone(ids, mask, Prompts(prompts, which), full=True)
        if learn:
            hidden.square().mean().backward()
    if ids.is_cuda:
        torch.cuda.synchronize()


def best_ms(work: Callable[[], None], repeats: int = 7) -> float:
    """Least milliseconds of some repetitions, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return 1000 * min(times)


def compare(base: Base, runs: int, rows: int, tokens: int, *, learn: bool) -> tuple[float, float]:
    """Milliseconds per run: one run after the other, and all in one batch."""
    shape = (runs, base.backbone.depth, 16, base.backbone.hidden_size)
    prompts = torch.randn(shape, device=base.device).requires_grad_(learn)
    ids = torch.randint(5, 1000, (runs * rows, tokens), device=base.device)
    which = torch.arange(runs, device=base.device).repeat_interleave(rows)

    def apart() -> None:
        for n in range(runs):
            forward(base, ids[n * rows : (n + 1) * rows], prompts[n : n + 1], which[:rows] * 0, learn=learn)

    def together() -> None:
        forward(base, ids, prompts, which, learn=learn)

    return best_ms(apart) / runs, best_ms(together) / runs


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    base = load_base(chosen.model, default_device())
    print(f"{base.name} on {base.device}, {chosen.rows} rows of {chosen.tokens} tokens per run")
    print("work        runs  apart ms  together ms")
    for learn in (True, False):
        for runs in (1, 2, 5):
            apart, together = compare(base, runs, chosen.rows, chosen.tokens, learn=learn)
            print(f"{'step' if learn else 'evaluation':10} {runs:5} {apart:9.2f} {together:12.2f}")


if __name__ == "__main__":
    main()
