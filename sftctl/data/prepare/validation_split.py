"""Which rows go to the validation split, and the rule that a validation row is never trained."""

from sftctl.data.conversations.conversation import Conversation
from sftctl.data.example import TokenizedExample
from sftctl.data.ledger import BadRow
from sftctl.data.prepare.duplicates import SeenDigests


def split_of(conversation: Conversation, val_fraction: float) -> str:
    """`validation` for a share `val_fraction` of all conversations, else `train`. Only the
    conversation decides, so a row has the same split in every store.
    """
    draw = (conversation.digest >> 32) / 2**32  # in [0, 1)
    return "validation" if draw < val_fraction else "train"


def refuse_held_out(
    row: Conversation, held_out: SeenDigests, examples: list[TokenizedExample]
) -> None:
    """BadRow if the same conversation is in the validation files."""
    if row.digest in held_out:
        message = f"{row.source}: the same conversation is in the validation inputs"
        num_tokens = sum(example.num_tokens for example in examples)
        raise BadRow("in_validation", message, "remove the row", num_tokens)
