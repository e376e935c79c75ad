"""New special tokens: ids in the tokenizer, rows of the model, a run that trains them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sftctl.config.load import load_config
from sftctl.config.schema import RunConfig
from sftctl.data.prepare.prepare import prepare_files
from sftctl.data.sample import SAMPLE_TOKENIZER
from sftctl.errors import ConfigError, DataError
from sftctl.model.tokenizer.new_tokens import grow_model, new_ids
from sftctl.model.tokenizer.tokenizer import ChatTokenizer, load_tokenizer
from sftctl.runs.directory import RunDir
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import run_training
from sftctl.trained.open import open_trained
from tests.toys.models import toy_base
from tests.toys.runs import toy_config

NEW = ["<tool>", "</tool>"]


def with_new_tokens(tokens: list[str] = NEW) -> ChatTokenizer:
    return load_tokenizer(str(SAMPLE_TOKENIZER), new_tokens=tokens)


def test_a_new_token_is_one_special_id_at_the_end_with_both_engines(tmp_path: Path) -> None:
    old, tokenizer = load_tokenizer(str(SAMPLE_TOKENIZER)), with_new_tokens()
    ids = new_ids(tokenizer, NEW)
    assert ids == [old.vocab_size, old.vocab_size + 1]
    assert set(ids) <= tokenizer.special_ids
    for one in (tokenizer, tokenizer.fast()):
        encoded = one.encode("a<tool> b</tool>").tolist()
        assert [token for token in encoded if token in ids] == ids
        assert one.decode(encoded) == "a<tool> b</tool>"
    assert tokenizer.content_hash != old.content_hash
    tokenizer.save(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert (again.content_hash, new_ids(again, NEW)) == (tokenizer.content_hash, ids)


def test_a_token_that_is_there_already_is_refused() -> None:
    old = load_tokenizer(str(SAMPLE_TOKENIZER))
    for there in (old.special_texts[0], "a"):
        with pytest.raises(ConfigError, match=r"^model.new_tokens: tokenizer .* has .* already"):
            with_new_tokens(["<tool>", there])
    with pytest.raises(ConfigError, match="<tool> is named twice"):
        with_new_tokens(["<tool>", "<tool>"])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare", [0, 1, 5])
def test_new_rows_are_the_mean_of_the_old_ones(tied: bool, spare: int) -> None:
    model = toy_base("qwen3", vocab_size=40 + spare, tie_word_embeddings=tied)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grow_model(model, [40, 41])
    after = model.state_dict()
    grown = {"model.embed_tokens.weight", "lm_head.weight"}
    for name in before:
        if name not in grown:
            assert torch.equal(before[name], after[name])
            continue
        assert after[name].shape == (max(42, 40 + spare), 16)
        assert torch.equal(after[name][:40], before[name][:40])
        mean = before[name][:40].double().mean(0).float()
        assert torch.equal(after[name][40:42], mean.expand(2, -1))
    assert model.config.vocab_size == max(42, 40 + spare)
    is_tied = model.lm_head.weight is model.model.embed_tokens.weight
    assert is_tied is tied


def test_the_bias_of_a_head_grows_too() -> None:
    model = toy_base("phi3", vocab_size=40, tie_word_embeddings=False)
    model.lm_head = torch.nn.Linear(16, 40)
    bias = model.lm_head.bias.detach().clone()
    grow_model(model, [40])
    assert model.lm_head.bias.shape == (41,)
    assert torch.equal(model.lm_head.bias[40], bias.double().mean().float())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained model with the bundled tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("base"), load_tokenizer(str(SAMPLE_TOKENIZER))
    toy_base("qwen3", vocab_size=tokenizer.vocab_size).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def rows(folder: Path) -> Path:
    file = folder / "rows.jsonl"
    answers = [f"<tool>{n}</tool>" for n in range(8)]
    lines = [json.dumps({"instruction": f"Call {n}.", "output": a}) for n, a in enumerate(answers)]
    file.write_text("\n".join(lines))
    return file


def config_of(folder: Path, base: Path, **settings: Any) -> RunConfig:
    usual: dict[str, Any] = {
        "model__name": str(base),
        "data__path": str(rows(folder)),
        "train__max_steps": 3,
        "optim__learning_rate": 0.01,
    }
    return toy_config(folder, **usual | settings)


def test_a_run_trains_saves_and_resumes_new_tokens(tmp_path: Path, base: Path) -> None:
    run_training(config_of(tmp_path, base, model__new_tokens=NEW))
    run = tmp_path / "run"
    trained = open_trained(run)
    ids = new_ids(trained.tokenizer, NEW)
    old = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    final = load_file(run / "final/model.safetensors")["model.embed_tokens.weight"]
    assert len(final) == len(old) + 2 == trained.model.config.vocab_size
    assert not torch.equal(final[ids[0]], final[ids[1]])  # both were targets
    config = RunDir.open(run).config()
    assert config.model.new_tokens == NEW
    run_training(config, ResumeRequest(run, step=1))
    again = load_file(run / "final/model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(again, final)


def test_a_store_and_a_run_must_have_the_same_new_tokens(tmp_path: Path, base: Path) -> None:
    stores = {}
    for name, tokens in (("with", NEW), ("without", None)):
        settings = {"model.tokenizer": str(base), "model.new_tokens": tokens}
        given = {key: value for key, value in settings.items() if value is not None}
        stores[name] = str(tmp_path / name)
        prepare_files([rows(tmp_path)], [], tmp_path / name, load_config(None, given))
    with pytest.raises(DataError, match=r"the data was prepared without <tool>") as raised:
        run_training(config_of(tmp_path, base, data__path=stores["without"], model__new_tokens=NEW))
    assert raised.value.hint == "prepare it again with `--new-tokens '<tool>,</tool>'`"
    with pytest.raises(DataError, match=r"lacks: <tool>, </tool>") as raised:
        run_training(config_of(tmp_path, base, data__path=stores["with"]))
    assert raised.value.hint == "train with `--set model.new_tokens='<tool>,</tool>'`"
    with pytest.raises(DataError, match="the data was prepared without <tool>"):  # a preset
        settings = {"model__name": "tiny", "model__new_tokens": NEW}
        run_training(config_of(tmp_path, base, data__path=stores["without"], **settings))
    one_step = {"model__new_tokens": NEW, "train__max_steps": 1}
    run_training(config_of(tmp_path, base, data__path=stores["with"], **one_step))
