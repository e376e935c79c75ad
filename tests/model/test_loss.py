"""loss: value and gradients against the model's own logits, chunks, autocast, other heads."""

import re
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sftctl.data.loading.microbatch import MicroBatch, collate, filler_micro_batch
from sftctl.model.loss import CHUNK_LOGITS, HeadCheck, LossModule, TargetFacts, check_head
from sftctl.model.presets import preset_config
from sftctl.model.row_attention import own_attention, use_row_attention
from tests.toys.data import ToyStore

STORE = ToyStore([9, 14, 5, 11], vocab_size=53)


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
    loss: torch.Tensor = module(*batch.tensors)
    return loss


def gradients_of(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.autograd.backward(loss)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert None not in gradients.values()
    return gradients  # type: ignore[return-value]


def module_of(model: Any, chunk_logits: int = CHUNK_LOGITS) -> LossModule:
    """The loss as training computes it: rows end to end, each attended to by itself."""
    use_row_attention(model)
    module = LossModule(model, chunk_logits)
    module.attends_by_rows = True
    return module


def plain_loss_of(model: Any, batch: MicroBatch, store: ToyStore = STORE) -> torch.Tensor:
    """Row by row with transformers' own attention: all logits, shifted by hand."""
    losses = []
    with own_attention(model, "eager"):
        for index in batch.examples:
            example = store[index]
            ids, mask = map(torch.from_numpy, (example.input_ids, example.loss_mask))
            weights = mask.float()
            if example.loss_weights is not None:
                weights = torch.from_numpy(example.loss_weights)
            logits = model(input_ids=ids[None].long()).logits[0, :-1]  # (T - 1, V)
            each = torch.nn.functional.cross_entropy(logits, ids[1:].long(), reduction="none")
            losses.append((each * weights[1:]).sum())
    return torch.stack(losses).sum()


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Equal within 1e-5, relative to the largest number of each tensor."""
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], rtol=1e-5, atol=1e-5 * float(other[name].abs().max()), msg=name
        )


def test_the_loss_is_the_sum_over_rows_of_the_models_own(model: Any, batch: MicroBatch) -> None:
    ours = loss_of(module_of(model), batch).item()
    assert ours == pytest.approx(plain_loss_of(model, batch).item(), rel=1e-6)


def test_the_gradients_are_the_same_as_with_all_logits(model: Any, batch: MicroBatch) -> None:
    ours = gradients_of(model, loss_of(module_of(model), batch))
    assert_close(ours, gradients_of(model, plain_loss_of(model, batch)))


@pytest.mark.parametrize("uses_own_forward", [False, True])
def test_each_target_counts_with_its_weight(model: Any, uses_own_forward: bool) -> None:
    store = ToyStore(STORE.lengths.tolist(), STORE.vocab_size, has_weights=True)
    batch = collate(store, (1, 3, 0, 2), number=0)
    assert batch.target_weights is not None
    module = module_of(model, chunk_logits=1)
    module.uses_own_forward = uses_own_forward
    loss = loss_of(module, batch)
    expected = plain_loss_of(model, batch, store)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert module.targets is not None
    by_hand = (module.targets.losses * batch.target_weights).sum()
    assert by_hand.item() == pytest.approx(loss.item(), rel=1e-6)
    assert_close(gradients_of(model, loss), gradients_of(model, plain_loss_of(model, batch, store)))


@pytest.mark.parametrize("rows", [1, 200, 256])
def test_chunks_change_neither_loss_nor_gradients(model: Any, rows: int) -> None:
    batch = collate(STORE, tuple(range(4)) * 20, number=0)
    complete = loss_of(module_of(model), batch)
    gradients = gradients_of(model, complete)
    chunked = loss_of(module_of(model, rows * STORE.vocab_size), batch)
    torch.testing.assert_close(chunked, complete, rtol=1e-6, atol=0)
    assert_close(gradients_of(model, chunked), gradients)


class OperatorCount(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the largest number of logits that one softmax takes, and counts matrix products."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest_softmax = 0
        self.num_products = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._log_softmax.default:
            self.largest_softmax = max(self.largest_softmax, result.numel())
        self.num_products += function is torch.ops.aten.mm.default
        return result


def test_chunks_never_hold_all_logits(model: Any) -> None:
    batch = collate(STORE, tuple(range(4)) * 20, number=0)
    chunk, every = 128 * STORE.vocab_size, len(batch.target_ids) * STORE.vocab_size
    assert every > 2 * chunk
    for chunk_logits, expected in ((chunk, chunk), (chunk + 1, chunk), (10 * every, every)):
        with OperatorCount() as made:
            torch.autograd.backward(loss_of(module_of(model, chunk_logits), batch))
        assert made.largest_softmax == expected


def test_without_gradients_the_head_is_one_product(model: Any, batch: MicroBatch) -> None:
    module = module_of(model)
    with torch.no_grad(), OperatorCount() as plain:
        module(*batch.tensors)
    with OperatorCount() as trained:
        module(*batch.tensors)
    assert trained.num_products == plain.num_products + 2  # for hidden states and weight


def test_the_gradient_of_the_loss_scales_all_gradients(model: Any, batch: MicroBatch) -> None:
    once = gradients_of(model, loss_of(module_of(model), batch))
    twice = gradients_of(model, 2 * loss_of(module_of(model), batch))
    assert_close({name: gradient / 2 for name, gradient in twice.items()}, once)


@pytest.mark.parametrize("own_forward", [True, False])
def test_a_model_in_bfloat16_is_trained_without_autocast(
    batch: MicroBatch, own_forward: bool
) -> None:
    model = make_model().to(torch.bfloat16)
    module = module_of(model)
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
    module = module_of(model)
    module.uses_own_forward = own_forward
    loss = module(*filler_micro_batch(0).tensors)
    assert loss.item() == 0.0
    assert all(not gradient.any() for gradient in gradients_of(model, loss).values())


def test_no_row_changes_another(model: Any, batch: MicroBatch) -> None:
    module = module_of(model)
    rows = [collate(STORE, (index,), number=0) for index in batch.examples]
    alone = sum(loss_of(module, row).item() for row in rows)
    assert loss_of(module, batch).item() == pytest.approx(alone, rel=1e-6)


def test_the_loss_is_a_float32_sum_under_autocast(model: Any, batch: MicroBatch) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(module_of(model), batch)
    assert loss.dtype == torch.float32 and loss.dim() == 0


def test_autocast_makes_the_heads_logits_in_its_dtype() -> None:
    """Also where the product is large enough for oneDNN, which computes in float32."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = preset_config("tiny", 4096)
    config.update({"hidden_size": 256, "num_hidden_layers": 1})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    ids = torch.randint(4096, (1, 129))
    positions = torch.arange(128)
    lengths = torch.tensor([128], dtype=torch.int32)
    inputs = (ids[:, :-1], positions[None], positions, ids[0, 1:], lengths)
    module = module_of(model)
    with torch.no_grad():
        full = module(*inputs).item()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids[:, :-1], row_lengths=lengths, use_cache=False).logits
            ours = module(*inputs).item()
    assert logits.dtype == torch.bfloat16
    own = torch.nn.functional.cross_entropy(logits[0].float(), ids[0, 1:], reduction="sum").item()
    assert ours == pytest.approx(own, rel=1e-6)
    assert ours != pytest.approx(full, rel=1e-6)


# ---------------------------------------------------------------------------- other heads


def check(module: LossModule, batch: MicroBatch) -> HeadCheck:
    return check_head(module, batch.tensors)


def test_a_plain_head_passes_the_check(model: Any, batch: MicroBatch) -> None:
    module = module_of(model).train()
    assert check(module, batch).is_plain
    assert module.uses_own_forward is False
    assert module.training is True


def test_dropout_does_not_change_the_check(batch: MicroBatch) -> None:
    module = LossModule(make_model(attention_dropout=0.5, tie_word_embeddings=False)).train()
    with torch.no_grad():
        for layer in module.model.model.layers:
            layer.self_attn.o_proj.weight.mul_(100)  # so that attention decides the loss
    one, other = loss_of(module, batch).item(), loss_of(module, batch).item()
    assert one != pytest.approx(other, rel=1e-3)
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
    module = module_of(model).train(training)
    input_ids, *others = batch.tensors
    with pytest.raises(IndexError):
        check_head(module, (input_ids + STORE.vocab_size, *others))
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
    module = module_of(model)
    found = check(module, batch)
    assert not found.is_plain
    assert re.sub(r"\d+\.\d{4}", "X", found.warning) == (
        "the model's head does more than multiply by its weight: the complete forward pass is "
        "used, which takes more memory (in a test with a larger weight the loss is X, not X)"
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
    module = module_of(model)
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
    assert loss_of(module_of(model), batch).item() == pytest.approx(own.item(), rel=1e-6)


@pytest.mark.parametrize("uses_own_forward", [False, True])
def test_hits_and_entropies_are_those_of_the_models_own_logits(
    model: Any, batch: MicroBatch, uses_own_forward: bool
) -> None:
    module = module_of(model, chunk_logits=1)
    module.uses_own_forward = uses_own_forward
    loss_of(module, batch)
    assert module.targets is not None
    with torch.no_grad():
        module.uses_own_forward = True
        called = {"position_ids": batch.position_ids, "row_lengths": batch.row_lengths}
        options = called if module.attends_by_rows else {}
        logits = model(input_ids=batch.input_ids, use_cache=False, **options).logits[0]
    at_targets = logits.index_select(0, batch.target_positions).float()
    distribution: Any = torch.distributions.Categorical(logits=at_targets)
    expected = distribution.entropy()
    torch.testing.assert_close(module.targets.entropies, expected, rtol=1e-4, atol=1e-5)
    hits = at_targets.argmax(1) == batch.target_ids
    is_target = batch.target_ids >= 0
    assert torch.equal(module.targets.are_hits[is_target], hits[is_target])


@pytest.mark.parametrize("vocabulary", [384, 390])  # 390 is not divided into blocks
def test_of_equal_logits_only_the_first_is_a_hit(vocabulary: int) -> None:
    logits = torch.zeros(5, vocabulary)
    logits[2:, [150, 151, 300]] = 1.0
    logits[4, 380] = 2.0
    targets = torch.tensor([0, 1, 150, 300, 380])
    hits = TargetFacts.of(logits, targets, torch.zeros(5)).are_hits
    assert hits.tolist() == [True, False, True, False, True]
    assert torch.equal(hits, logits.argmax(1) == targets)
