"""Small byte-level tokenizers, each with the split of a real one."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sftctl.model.tokenizer.gguf_split import set_split
from sftctl.model.tokenizer.splits import SPLITS
from sftctl.model.tokenizer.tokenizer import ChatTokenizer

_TEXTS = [
    "assistant\n\nYes, it's 1234.\n\n  I'll do\u00a0it;\n\tdon't 'say' so: naïve 你好，世界。\r\n",
    "<|assistant|>\n<|header|>\n\n</think>\n \n Answer:  x\u0301 42% (a/b)\n/c\n\n\nNo'S 한국어 ـ٣",
]


@cache
def words_tokenizer(name: str, dropout: float | None = None) -> ChatTokenizer:
    """A tokenizer that splits as `splits.SPLITS[name]`; `<|end|>` is its only special token."""
    backend = Tokenizer(models.BPE())
    hf = PreTrainedTokenizerFast(tokenizer_object=backend)
    set_split(hf, SPLITS[name].patterns)
    hf.backend_tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    hf.backend_tokenizer.train_from_iterator(_TEXTS * 3, trainer)
    model = hf.backend_tokenizer.model
    assert isinstance(model, models.BPE)
    model.dropout, model.ignore_merges = dropout, SPLITS[name].ignores_merges
    hf.backend_tokenizer.model = model
    hf.add_special_tokens({"eos_token": "<|end|>"})
    return ChatTokenizer(hf, name)
