import re
from typing import Any

import pytest
import torch

import sftctl.model.loss
from sftctl.data.microbatch import MicroBatch, collate
from sftctl.model.loss import LossModule, check_head
from sftctl.model.presets import preset_config
from tests.toys.data import ToyStore

STORE = ToyStore([9, 14, 5, 11], vocab_size=53)
IGNORED = -100


def make_model(**changes: object) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = preset_config("tiny", STORE.vocab_size)
    config.update({"hidden_size": 32, "intermediate_size": 48} | changes)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@pytest.fixture
def model() -> Any:
    return make_model()


@pytest.fixture
def batch() -> MicroBatch:
    """Four rows of four lengths."""
    return collate(STORE, (1, 3, 0, 2), number=0)


def loss_of(module: LossModule, batch: MicroBatch) -> torch.Tensor:
    return module(*batch.tensors)


def gradients_of(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert None not in gradients.values()
    return gradients  # type: ignore[return-value]


def labels_of(batch: MicroBatch) -> torch.Tensor:
    """The targets as transformers takes them: unshifted, the rest ignored.  (B, T)"""
    labels = torch.full_like(batch.input_ids, IGNORED)
    for row, index in zip(labels, batch.examples, strict=True):
        mask = torch.from_numpy(STORE[index].loss_mask)
        row[: len(mask)][mask] = torch.from_numpy(STORE[index].input_ids)[mask].long()
    return labels


def plain_loss_of(model: Any, batch: MicroBatch) -> torch.Tensor:
    """All logits, shifted by hand, rows attended to with a mask."""
    attended = torch.arange(batch.input_ids.shape[1]) < torch.tensor(
        [[STORE[index].num_tokens] for index in batch.examples]
    )
    logits = model(input_ids=batch.input_ids, attention_mask=attended.long()).logits  # (B, T, V)
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1),
        labels_of(batch)[:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Equal within 1e-5, relative to the largest number of each tensor."""
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], rtol=1e-5, atol=1e-5 * float(other[name].abs().max()), msg=name
        )


def test_the_loss_is_the_models_own(model: Any, batch: MicroBatch) -> None:
    own = model(input_ids=batch.input_ids, labels=labels_of(batch)).loss  # a mean
    assert loss_of(LossModule(model), batch).item() == pytest.approx(
        own.item() * len(batch.target_ids), rel=1e-6
    )


def test_the_gradients_are_those_of_all_logits(model: Any, batch: MicroBatch) -> None:
    ours = gradients_of(model, loss_of(LossModule(model), batch))
    assert_close(ours, gradients_of(model, plain_loss_of(model, batch)))


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_chunks_change_neither_loss_nor_gradients(
    model: Any, batch: MicroBatch, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = LossModule(model)
    whole = loss_of(module, batch)
    gradients = gradients_of(model, whole)
    monkeypatch.setattr(sftctl.model.loss, "CHUNK_LOGITS", rows * STORE.vocab_size)
    chunked = loss_of(module, batch)
    torch.testing.assert_close(chunked, whole, rtol=1e-6, atol=0)
    assert_close(gradients_of(model, chunked), gradients)


def test_chunks_never_hold_all_logits(
    model: Any, batch: MicroBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def noted(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        logits = hidden @ weight.t()
        sizes.append(logits.numel())
        return logits

    monkeypatch.setattr(sftctl.model.loss, "_logits", noted)
    monkeypatch.setattr(sftctl.model.loss, "CHUNK_LOGITS", 4 * STORE.vocab_size)
    loss_of(LossModule(model), batch).backward()
    assert max(sizes) <= 4 * STORE.vocab_size < len(batch.target_ids) * STORE.vocab_size


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("own_forward", [True, False])
def test_a_batch_without_targets_gives_every_parameter_a_gradient_of_zero(
    tied: bool, own_forward: bool
) -> None:
    """A rank that waits for others must take part in their sum with every parameter."""
    model = make_model(tie_word_embeddings=tied)
    module = LossModule(model)
    module.uses_own_forward = own_forward
    nothing = torch.zeros(0, dtype=torch.int64)
    loss = module(torch.zeros((1, 2), dtype=torch.int64), nothing, nothing, torch.tensor([2]))
    assert loss.item() == 0.0
    assert all(not gradient.any() for gradient in gradients_of(model, loss).values())


def test_padding_changes_nothing(model: Any, batch: MicroBatch) -> None:
    module = LossModule(model)
    rows = [collate(STORE, (index,), number=0) for index in batch.examples]
    alone = sum(loss_of(module, row).item() for row in rows)
    assert loss_of(module, batch).item() == pytest.approx(alone, rel=1e-6)


def test_the_loss_is_a_float32_sum_under_autocast(model: Any, batch: MicroBatch) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(LossModule(model), batch)
    assert loss.dtype == torch.float32 and loss.dim() == 0


# ---------------------------------------------------------------------------- other heads


def check(module: LossModule, batch: MicroBatch) -> str | None:
    return check_head(module, *batch.tensors)


def test_a_plain_head_is_used_alone_and_without_a_word(model: Any, batch: MicroBatch) -> None:
    module = LossModule(model).train()
    assert check(module, batch) is None
    assert module.uses_own_forward is False
    assert module.training is True


def make_capped_model(cap: float, enlarged: int) -> Any:
    """A Gemma 2 that caps its logits, with weights so many times as large as new ones."""
    from transformers import AutoModelForCausalLM, Gemma2Config

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=STORE.vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=cap,
        attn_logit_softcapping=None,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(enlarged)
    return model


@pytest.mark.parametrize(("cap", "enlarged"), [(0.5, 20), (30.0, 20), (30.0, 1)])
def test_a_head_that_caps_its_logits_comes_out_right_and_is_told(
    cap: float, enlarged: int, batch: MicroBatch
) -> None:
    """Also where the first logits are too small to show it: they grow."""
    model = make_capped_model(cap, enlarged)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    module = LossModule(model)
    told = check(module, batch) or ""
    assert re.sub(r"\d+\.\d{4}", "X", told) == (
        "the model's head is no plain matrix product (made 64 times as large, its loss is X, not "
        "X): its whole forward pass is used, which takes more memory"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert module.uses_own_forward is True
    right = plain_loss_of(model, batch).item()
    assert loss_of(module, batch).item() == pytest.approx(right, rel=1e-5)
    ours = gradients_of(model, loss_of(module, batch))
    assert_close(ours, gradients_of(model, plain_loss_of(model, batch)))


def test_a_biased_head_is_a_plain_one(batch: MicroBatch) -> None:
    model = make_model(tie_word_embeddings=False)
    head = torch.nn.Linear(32, STORE.vocab_size)
    model.set_output_embeddings(head)
    module = LossModule(model)
    assert check(module, batch) is None
    own = plain_loss_of(model, batch)
    assert loss_of(module, batch).item() == pytest.approx(own.item(), rel=1e-6)
