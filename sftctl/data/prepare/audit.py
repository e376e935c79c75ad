"""The mask audit: counts examples and turns of a store that have something wrong."""

import numpy as np

from sftctl.config.schema import TrainOn
from sftctl.data.example import ExampleArrays
from sftctl.data.manifest import Audit
from sftctl.model.tokenizer.tokenizer import ChatTokenizer


def audit(
    examples: ExampleArrays, tokenizer: ChatTokenizer, max_seq_len: int, train_on: TrainOn
) -> Audit:
    """Audit examples as they are stored, from their arrays alone."""
    ids, lengths = examples.input_ids, examples.lengths
    mask = examples.loss_mask if examples.turn_mask is None else examples.turn_mask
    weights = examples.loss_weights
    if not len(lengths):
        return Audit()
    ends = np.cumsum(lengths)
    is_last = np.zeros(len(ids), dtype=np.bool_)  # (T,) True: an example ends here
    is_last[ends - 1] = True
    turn_ends = np.flatnonzero(mask & (is_last | ~np.append(mask[1:], False)))
    has_end = np.isin(ids[turn_ends], list(tokenizer.special_ids))
    full = np.repeat(lengths == max_seq_len, lengths)
    is_cut = ~has_end & is_last[turn_ends] & full[turn_ends]
    bos = -1 if tokenizer.bos_id is None else tokenizer.bos_id
    first, second = ids[ends - lengths], ids[np.minimum(ends - lengths + 1, len(ids) - 1)]
    two_bos = (first == second) & (first == bos) & (lengths > 1)
    return Audit.of(
        num_examples=len(lengths),
        examples_without_target=int(np.count_nonzero(examples.target_lengths == 0)),
        examples_with_two_bos=int(np.count_nonzero(two_bos)),
        turns=len(turn_ends),
        targets_weighted=0 if weights is None else int(np.count_nonzero(~np.isin(weights, (0, 1)))),
        turns_cut=int(np.count_nonzero(is_cut)),
        # With train_on=all, a run of targets covers many turns, with their ends inside it.
        turns_without_end=0 if train_on == "all" else int(np.count_nonzero(~has_end & ~is_cut)),
    )
