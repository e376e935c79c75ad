"""Which rows go to the validation split. Rows of validation files are never trained."""

from sftctl.data.conversations.conversation import Conversation
from sftctl.data.example import TokenizedExample
from sftctl.data.ledger import BadRow
from sftctl.data.prepare.duplicates import SeenDigests


def split_of(conversation: Conversation, val_fraction: float) -> str:
    """The split of a conversation: `validation` for a fraction `val_fraction` of all rows, or
    `train`.

    Only the hash of the conversation decides. So a row is in the same split in every store.
    """
    draw = (conversation.digest >> 32) / 2**32  # uniform in [0, 1)
    return "validation" if draw < val_fraction else "train"


def refuse_held_out(
    row: Conversation, held_out: SeenDigests, examples: list[TokenizedExample]
) -> None:
    """Raise BadRow if the same conversation is in the validation files."""
    if row.digest in held_out:
        message = f"{row.source}: the same conversation is in the validation inputs"
        num_tokens = sum(example.num_tokens for example in examples)
        raise BadRow("in_validation", message, "remove the row", num_tokens)
