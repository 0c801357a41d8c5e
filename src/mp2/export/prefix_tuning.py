"""A composed deep prompt as a PEFT prefix-tuning folder.

PEFT keeps the projected keys and values of a prompt: the folder holds ``W_k p + b_k`` and ``W_v p + b_v`` of
every layer. PEFT counts prompt positions, we do not: whoever loads the folder passes ``position_ids`` that
start at ``-P`` (RoBERTa's later), to which PEFT adds P (see ``README.md`` in the folder).

References:
    Li and Liang, *Prefix-Tuning*, arXiv:2101.00190.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mp2.errors import ConfigError
from mp2.model.backbone import Backbone, is_cpt
from mp2.model.checkpoint import Base
from mp2.runtime import whole_folder, write_json, write_whole
from mp2.tasks.infer import dump_task
from mp2.tuning.adapter import Adapter, answer_files, compose

README = """# {name}: a prefix for PEFT

Made of an mp2 adapter (method {method}, base {base}). Hidden states are the same as mp2's when positions
start at {first}, as they did when the prompt was trained; PEFT adds the {length} prompt positions; take them
off:

```python
import torch
from peft import PeftModel
from transformers import AutoModel

model = PeftModel.from_pretrained(AutoModel.from_pretrained("{encoder}"), "THIS FOLDER").eval()
positions = torch.arange(ids.shape[1])[None] + {first} - {length}
hidden = model(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
```

`head.safetensors` is the span head: start and end logits are `hidden @ weight.T + bias`. `task.yaml` says how
the text is put together.
"""
ANSWERS = {
    "answer_length.json": """
A span of n tokens scores its start's and its end's log-probability, less (log n - m)^2 / (2 s^2), where m is
the `mean` and s the `deviation` of `answer_length.json`.
""",
    "label_offsets.json": """
A label scores the log-probability of its option's start and end, and its number in `label_offsets.json`.
""",
}


def export_peft(adapter: Adapter, base: Base, folder: Path, *, replace: bool = False) -> None:
    """Write an adapter as a PEFT folder, whole or not at all.

    Args:
        adapter: A task with a deep prompt (``prefix`` injection).
        base: Its base.
        folder: Where to write.
        replace: Whether an existing folder is replaced.

    Raises:
        ConfigError: PEFT has no form for this adapter, or PEFT is not installed.
        CheckpointError: The adapter belongs to another base, or the folder exists.
    """
    try:
        from peft import PrefixTuningConfig, TaskType
    except ImportError:
        raise ConfigError("peft is not installed: pip install 'mp2[export]'") from None
    composed = compose(adapter, base)
    if composed.prompts is None or composed.injection != "prefix" or composed.backbone is not base.backbone:
        raise ConfigError(
            f"adapter of method {adapter.method!r}: expected a deep prompt and the base's own encoder: PEFT's"
            " prefix tuning holds nothing else"
        )
    if composed.labels is not None:
        raise ConfigError(
            f"adapter of method {adapter.method!r}: its label words have vectors of their own, for which"
            " PEFT's prefix tuning has no place"
        )
    if is_cpt(base.source):
        raise ConfigError(f"PEFT would load {base.name} as BART, not as the encoder that was tuned")
    layers, length, hidden = composed.prompts.shape
    config = PrefixTuningConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        base_model_name_or_path=str(base.source),
        inference_mode=True,
        num_virtual_tokens=length,
        token_dim=hidden,
        num_layers=layers,
        num_attention_heads=int(base.backbone.config.num_attention_heads),
        num_transformer_submodules=1,
    )
    with whole_folder(folder, replace=replace, kind="adapter_config.json") as aside:
        config.save_pretrained(str(aside))
        embeddings = keys_and_values(composed.prompts, base.backbone)
        save_file({"prompt_embeddings": embeddings}, aside / "adapter_model.safetensors")
        head = {key: value.detach().cpu().clone() for key, value in composed.head.state_dict().items()}
        save_file(head, aside / "head.safetensors")
        write_whole(aside / "task.yaml", dump_task(adapter.task))
        facts = {"name": adapter.task.name, "method": adapter.method, "base": adapter.base}
        first = base.backbone.first_position
        readme = README.format(**facts, encoder=base.source, length=length, first=first)
        for file, content in answer_files(adapter).items():
            write_json(aside / file, content)
            readme += ANSWERS[file]
        write_whole(aside / "README.md", readme)


@torch.no_grad()
def keys_and_values(prompts: Tensor, backbone: Backbone) -> Tensor:
    """Project prompts ``(L, P, H)`` as each layer's attention does: ``(P, L*2*H)``, keys before values."""
    parts = []
    for layer, prompt in zip(backbone.layers, prompts, strict=True):
        attention: Any = layer.get_submodule("attention.self")
        parts += [attention.key(prompt), attention.value(prompt)]
    return torch.cat(parts, dim=-1).cpu().contiguous()
