"""Micro-batches: padding, targets, and what survives moving and pickling."""

import pickle

import numpy as np
import torch

from sftctl.data.microbatch import collate
from tests.toys.data import ToyStore, same

LENGTHS = [2, 5, 31, 8, 3, 17, 9, 4, 26, 12, 6, 7, 3, 21, 11, 10, 2, 14, 5]
STORE = ToyStore(LENGTHS)


def test_rows_are_padded_on_the_right() -> None:
    batch = collate(STORE, (3, 0, 1), number=5)
    assert batch.input_ids.shape == (3, 8)
    for row, index in zip(batch.input_ids, batch.examples, strict=True):
        length = LENGTHS[index]
        assert row[:length].tolist() == STORE[index].input_ids.tolist()
        assert not row[length:].any()
    assert (batch.number, batch.num_tokens, batch.num_padding_tokens) == (5, 15, 9)


def test_a_target_is_the_next_token_and_padding_never_is_one() -> None:
    batch = collate(STORE, tuple(range(len(STORE))), number=0)
    width = batch.input_ids.shape[1]
    found: dict[int, list[int]] = {index: [] for index in batch.examples}
    for position, target in zip(
        batch.target_positions.tolist(), batch.target_ids.tolist(), strict=True
    ):
        row, column = divmod(position, width)
        assert target == STORE[batch.examples[row]].input_ids[column + 1] != 0
        found[batch.examples[row]].append(column + 1)
    for index, columns in found.items():
        assert columns == np.flatnonzero(STORE[index].loss_mask).tolist()


def test_moving_a_micro_batch_keeps_it() -> None:
    batch = collate(STORE, (3, 1), number=2)
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    assert {tensor.device.type for tensor in moved.tensors} == {"meta"}
    assert (moved.examples, moved.number, moved.num_tokens) == ((3, 1), 2, batch.num_tokens)


def test_a_pickled_micro_batch_is_the_same() -> None:
    batch = collate(STORE, (3, 1), number=2)
    assert same(pickle.loads(pickle.dumps(batch)), batch)


def test_a_width_is_padded_to_a_multiple() -> None:
    store = ToyStore([9, 14, 5, 11], vocab_size=53)
    plain, padded = (collate(store, (1, 3), 0, multiple) for multiple in (1, 8))
    assert (plain.input_ids.shape[1], padded.input_ids.shape[1]) == (14, 16)
    assert padded.target_ids.equal(plain.target_ids)
    assert padded.row_lengths.tolist() == [14, 11]
    row, column = np.divmod(padded.target_positions.numpy(), 16)
    assert np.array_equal(row * 14 + column, plain.target_positions.numpy())
