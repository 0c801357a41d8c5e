"""A micro encoder and tokenizer that tests make: real Hugging Face parts, tiny and random."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from mp2.model.bank import BankConfig, PromptBank
from mp2.model.checkpoint import Base, TrainedBank, save_encoder, write_manifest
from mp2.model.mrc import SpanHead
from mp2.model.router import Routing

HIDDEN, LAYERS, LENGTH, MODULES = 32, 3, 4, 3
CHARACTERS = (
    "的一是不了在人有我他这中大来上个国和地到说时要就出会可也你对生能而子那得于着下自之年过发后作里"
    "用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只"
    "从想实日军者意无力它与长把机十民第公此已工使情明性知全三又关点正业外将两高间由问很最重并物手应"
    "战向头文体政美相见被利什二等产或新己制身果加西故月话合回特代内信表化老给世位次度门任常先海通教"
    "儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安少报才结反受"
    "目太量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基眼书非则听"
    "白却界达光放强即像难且权思王象完设式色路记南品住告类求据程北边死张该交规万取账格望觉术领共确传"
    "师观清今切院让识候带导争运负差评服务态味道送快慢喜欢赞店菜音体育娱乐财经选项情感析识题阅读择档"
    "抽取答案案矛盾似关系打般非常较判别句差面正面负可能沿岸北京上海苹果手机咖啡猫狗"
)
PUNCTUATION = '，。：？！（）、"“”,.:?!()+-/%#@&*<>=_~'


def micro_tokenizer(folder: Path) -> BertTokenizerFast:
    """A character WordPiece tokenizer, written to and read from a folder."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += list(dict.fromkeys(CHARACTERS + PUNCTUATION + letters)) + [f"##{c}" for c in letters]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    tokenizer.save_pretrained(str(folder))
    return tokenizer


def micro_encoder(vocabulary: int, *, layers: int = LAYERS, positions: int = 128, seed: int = 0) -> BertModel:
    """A random encoder whose attention is not flat, so that tests can tell inputs apart."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=positions,
        initializer_range=0.2,
    )
    return BertModel(config, add_pooling_layer=False).eval()


def micro_bank(
    base: Base, name: str, *, deep: bool, factored: bool = True, modules: int = MODULES
) -> TrainedBank:
    """A random trained bank for a base."""
    generator = torch.Generator().manual_seed(7)
    config = BankConfig(
        base.backbone.depth if deep else 1,
        modules,
        LENGTH,
        base.backbone.hidden_size,
        6 if factored else 0,
        "prefix" if deep else "add",
    )
    bank = PromptBank(config, std=0.5, generator=generator)
    router = torch.randn(2, config.layers, modules, generator=generator)
    head = SpanHead(config.hidden, generator=generator)
    return TrainedBank(name, bank, router, ("alpha", "beta"), head, Routing(), base.fingerprint, {"steps": 0})


def micro_base(folder: Path, *, layers: int = LAYERS, positions: int = 128) -> Base:
    """A base with banks deep, shallow, spot and ppt, written to a folder and loaded from it."""
    tokenizer = micro_tokenizer(folder / "encoder")
    encoder = micro_encoder(len(tokenizer), layers=layers, positions=positions)
    save_encoder(folder / "encoder", encoder, tokenizer, SpanHead(HIDDEN))
    write_manifest(folder, "micro", [])
    bare = Base(folder)
    names = ["deep", "shallow", "spot", "ppt"]
    for name in names:
        many = name in ("deep", "shallow")  # as in the shipped model the others are one dense prompt
        bank = micro_bank(bare, name, deep=name == "deep", factored=many, modules=MODULES if many else 1)
        bank.save(folder / "banks" / name)
    write_manifest(folder, "micro", names)
    return Base(folder)
