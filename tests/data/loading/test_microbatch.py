"""Micro-batches: rows end to end, targets, and what survives moving and pickling."""

import pickle

import numpy as np
import torch

from sftctl.data.loading.microbatch import PASS_STEP, collate
from sftctl.model.loss import IGNORE_INDEX
from tests.toys.data import ToyStore, same

LENGTHS = [2, 5, 31, 8, 3, 17, 9, 4, 26, 12, 6, 7, 3, 21, 11, 10, 2, 14, 5]
STORE = ToyStore(LENGTHS)


def test_rows_are_laid_end_to_end_and_what_fills_up_is_a_row_of_its_own() -> None:
    batch = collate(STORE, (3, 0, 1), number=5)
    assert batch.input_ids.shape == batch.position_ids.shape == (1, PASS_STEP)
    assert batch.row_lengths.tolist() == [8, 2, 5, PASS_STEP - 15] + [0] * 60
    assert batch.row_lengths.dtype == torch.int32
    assert batch.longest_row == PASS_STEP - 15
    start = 0
    for index in batch.examples:
        end = start + LENGTHS[index]
        assert batch.input_ids[0, start:end].tolist() == STORE[index].input_ids.tolist()
        assert batch.position_ids[0, start:end].tolist() == list(range(LENGTHS[index]))
        start = end
    assert not batch.input_ids[0, start:].any()
    assert batch.position_ids[0, start:].tolist() == list(range(PASS_STEP - 15))
    assert (batch.number, batch.num_tokens, batch.num_padding_tokens) == (5, 15, PASS_STEP - 15)


def test_a_target_is_the_next_token_of_its_own_row() -> None:
    batch = collate(STORE, tuple(range(len(STORE))), number=0)
    starts = np.cumsum([0, *LENGTHS])
    found: dict[int, list[int]] = {index: [] for index in batch.examples}
    targets = zip(batch.target_positions.tolist(), batch.target_ids.tolist(), strict=True)
    for position, target in list(targets)[: batch.num_target_tokens]:
        row = int(np.searchsorted(starts, position, side="right")) - 1
        column = position - starts[row]
        assert target == STORE[batch.examples[row]].input_ids[column + 1] != 0
        found[batch.examples[row]].append(column + 1)
    for index, columns in found.items():
        assert columns == np.flatnonzero(STORE[index].loss_mask).tolist()


def test_tokens_and_targets_are_rounded_up_and_the_added_targets_are_ignored() -> None:
    store = ToyStore([PASS_STEP] * 3)
    batch = collate(store, (0, 1, 2), number=0)
    assert batch.input_ids.numel() == 3 * PASS_STEP and batch.num_padding_tokens == 0
    held = int(store.target_lengths.sum())
    assert batch.num_target_tokens == held
    assert len(batch.target_ids) == len(batch.target_positions) == -(-held // 128) * 128
    assert batch.target_ids[held:].eq(IGNORE_INDEX).all()
    assert not batch.target_positions[held:].any()
    assert collate(store, (0,) * 64, number=0).row_lengths.shape == (128,)


def test_moving_a_micro_batch_keeps_it() -> None:
    batch = collate(STORE, (3, 1), number=2)
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    assert {tensor.device.type for tensor in moved.tensors} == {"meta"}
    assert (moved.examples, moved.number, moved.num_tokens) == ((3, 1), 2, batch.num_tokens)


def test_a_pickled_micro_batch_is_the_same() -> None:
    batch = collate(STORE, (3, 1), number=2)
    assert same(pickle.loads(pickle.dumps(batch)), batch)
