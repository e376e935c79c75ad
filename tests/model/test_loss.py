"""loss: value and gradients against the model's own logits, chunks, autocast, other heads."""

import re
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sftctl.data.microbatch import MicroBatch, collate
from sftctl.model.loss import HeadCheck, LossModule, check_head
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
    """The targets as transformers expects them: unshifted, the others ignored.  (B, T)"""
    labels = torch.full_like(batch.input_ids, IGNORED)
    for row, index in zip(labels, batch.examples, strict=True):
        mask = torch.from_numpy(STORE[index].loss_mask)
        row[: len(mask)][mask] = torch.from_numpy(STORE[index].input_ids)[mask].long()
    return labels


def plain_loss_of(model: Any, batch: MicroBatch) -> torch.Tensor:
    """With all logits, shifted by hand, and an attention mask."""
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


def test_the_gradients_are_the_same_as_with_all_logits(model: Any, batch: MicroBatch) -> None:
    ours = gradients_of(model, loss_of(LossModule(model), batch))
    assert_close(ours, gradients_of(model, plain_loss_of(model, batch)))


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_chunks_change_neither_loss_nor_gradients(model: Any, batch: MicroBatch, rows: int) -> None:
    complete = loss_of(LossModule(model), batch)
    gradients = gradients_of(model, complete)
    chunked = loss_of(LossModule(model, chunk_logits=rows * STORE.vocab_size), batch)
    torch.testing.assert_close(chunked, complete, rtol=1e-6, atol=0)
    assert_close(gradients_of(model, chunked), gradients)


class OperatorCount(TorchDispatchMode):
    """Notes the largest number of logits that one softmax takes, and counts matrix products."""

    largest_softmax = 0
    num_products = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._log_softmax.default:
            self.largest_softmax = max(self.largest_softmax, result.numel())
        self.num_products += function is torch.ops.aten.mm.default
        return result


def test_chunks_never_hold_all_logits(model: Any, batch: MicroBatch) -> None:
    chunk, every = 4 * STORE.vocab_size, len(batch.target_ids) * STORE.vocab_size
    for chunk_logits, expected in ((chunk, chunk), (chunk + 1, chunk), (10 * every, every)):
        with OperatorCount() as made:
            loss_of(LossModule(model, chunk_logits), batch).backward()
        assert made.largest_softmax == expected


def test_without_gradients_the_head_is_one_product(model: Any, batch: MicroBatch) -> None:
    module = LossModule(model)
    with torch.no_grad(), OperatorCount() as plain:
        module(*batch.tensors)
    with OperatorCount() as trained:
        module(*batch.tensors)
    assert trained.num_products == plain.num_products + 2  # for hidden states and weight


def test_the_gradient_of_the_loss_scales_all_gradients(model: Any, batch: MicroBatch) -> None:
    once = gradients_of(model, loss_of(LossModule(model), batch))
    twice = gradients_of(model, 2 * loss_of(LossModule(model), batch))
    assert_close({name: gradient / 2 for name, gradient in twice.items()}, once)


@pytest.mark.parametrize("own_forward", [True, False])
def test_a_model_in_bfloat16_is_trained_without_autocast(
    batch: MicroBatch, own_forward: bool
) -> None:
    model = make_model().to(torch.bfloat16)
    module = LossModule(model)
    module.uses_own_forward = own_forward
    loss = loss_of(module, batch)
    assert loss.dtype == torch.float32
    gradients = gradients_of(model, loss)
    assert {gradient.dtype for gradient in gradients.values()} == {torch.bfloat16}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("own_forward", [True, False])
def test_without_targets_every_parameter_has_a_gradient_of_zero(
    tied: bool, own_forward: bool
) -> None:
    """Such a rank still takes part in the sum over ranks with every parameter."""
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


def test_autocast_makes_the_heads_logits_in_its_dtype() -> None:
    """Also where the product is large enough for oneDNN, which computes in float32."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = preset_config("tiny", 4096)
    config.update({"hidden_size": 256, "num_hidden_layers": 1})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    ids = torch.randint(4096, (1, 129))
    inputs = (ids[:, :-1], torch.arange(128), ids[0, 1:], torch.tensor([128]))
    module = LossModule(model)
    with torch.no_grad():
        full = module(*inputs).item()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids[:, :-1]).logits
            ours = module(*inputs).item()
    assert logits.dtype == torch.bfloat16
    own = torch.nn.functional.cross_entropy(logits[0].float(), ids[0, 1:], reduction="sum").item()
    assert ours == pytest.approx(own, rel=1e-6)
    assert ours != pytest.approx(full, rel=1e-6)


# ---------------------------------------------------------------------------- other heads


def check(module: LossModule, batch: MicroBatch) -> HeadCheck:
    return check_head(module, *batch.tensors)


def test_a_plain_head_passes_the_check(model: Any, batch: MicroBatch) -> None:
    module = LossModule(model).train()
    assert check(module, batch).is_plain
    assert module.uses_own_forward is False
    assert module.training is True


def test_dropout_does_not_change_the_check(batch: MicroBatch) -> None:
    module = LossModule(make_model(attention_dropout=0.5)).train()
    assert loss_of(module, batch) != loss_of(module, batch)
    assert check(module, batch).is_plain


@pytest.mark.parametrize(
    ("loss", "own_loss", "is_plain"),
    [
        (2000.0, 2001.9, True),
        (2000.0, 2002.1, False),
        (0.0, 0.0009, True),
        (0.0, 0.0011, False),
        (float("nan"), 1.0, False),
    ],
)
def test_the_losses_of_a_plain_head_agree_to_a_thousandth(
    loss: float, own_loss: float, is_plain: bool
) -> None:
    assert HeadCheck(loss, own_loss).is_plain is is_plain


@pytest.mark.parametrize("training", [True, False])
def test_a_check_that_fails_leaves_the_model_as_it_was(
    model: Any, batch: MicroBatch, training: bool
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    module = LossModule(model).train(training)
    input_ids, *others = batch.tensors
    with pytest.raises(IndexError):
        check_head(module, input_ids + STORE.vocab_size, *others)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert module.uses_own_forward is False
    assert module.training is training


def make_capped_model(cap: float, enlarged: int) -> Any:
    """A Gemma 2 that caps its logits, with weights `enlarged` times as large as new ones."""
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
def test_a_head_that_caps_its_logits_is_found_and_its_own_forward_is_right(
    cap: float, enlarged: int, batch: MicroBatch
) -> None:
    """Also if the first logits are too small to show it: they grow in training."""
    model = make_capped_model(cap, enlarged)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    module = LossModule(model)
    found = check(module, batch)
    assert not found.is_plain
    assert re.sub(r"\d+\.\d{4}", "X", found.warning) == (
        "the model's head is not a plain matrix product (with 64 times its weights the loss is X, "
        "not X): its complete forward pass is used, which takes more memory"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert module.uses_own_forward is False
    module.uses_own_forward = True
    right = plain_loss_of(model, batch).item()
    assert loss_of(module, batch).item() == pytest.approx(right, rel=1e-5)
    ours = gradients_of(model, loss_of(module, batch))
    assert_close(ours, gradients_of(model, plain_loss_of(model, batch)))


def test_a_biased_head_is_a_plain_one(batch: MicroBatch) -> None:
    model = make_model(tie_word_embeddings=False)
    head = torch.nn.Linear(32, STORE.vocab_size)
    model.set_output_embeddings(head)
    module = LossModule(model)
    assert check(module, batch).is_plain
    own = plain_loss_of(model, batch)
    assert loss_of(module, batch).item() == pytest.approx(own.item(), rel=1e-6)


class DoublingHead(torch.nn.Linear):
    """A linear layer that does more than its matrix product."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def test_a_head_of_another_class_is_called(batch: MicroBatch) -> None:
    model = make_model(tie_word_embeddings=False)
    model.set_output_embeddings(DoublingHead(32, STORE.vocab_size, bias=False))
    own = plain_loss_of(model, batch)
    assert loss_of(LossModule(model), batch).item() == pytest.approx(own.item(), rel=1e-6)
