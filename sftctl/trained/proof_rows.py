"""The rows on which an export is checked: from the run's own data, or from the bundled sample."""

from sftctl.data.sample import sample_files
from sftctl.data.storage.joined import Store, open_stores
from sftctl.errors import SftctlError
from sftctl.jsonio import loads
from sftctl.runs.card import started_event
from sftctl.runs.resumable import recorded_store
from sftctl.trained.open import Trained

_NUM_ROWS = 16


def texts_of(trained: Trained) -> list[str]:
    """Up to 16 rows of the run's own data with special tokens, or else rows of the sample."""
    store = _store(trained)
    if store is not None:
        tokenizer = trained.tokenizer
        rows = (store[index].input_ids for index in range(min(_NUM_ROWS, len(store))))
        return [tokenizer.decode(row) for row in rows]
    lines = sample_files()[1].read_bytes().splitlines()[:_NUM_ROWS]
    conversations = [loads(line)["messages"] for line in lines]
    if trained.tokenizer.hf.chat_template:
        return [trained.tokenizer.render(messages) for messages in conversations]
    return ["\n".join(str(m["content"]) for m in messages) for messages in conversations]


def _store(trained: Trained) -> Store | None:
    if trained.run is None or trained.manifest is None:
        return None
    config = trained.run.config()
    found = recorded_store(trained.manifest, config)
    path = found if found is not None else config.data.path
    several = started_event(trained.run.path).get("stores")  # the run trained on several stores
    try:
        if several:
            return open_stores(several)
        return open_stores([path]) if path is not None else None
    except SftctlError:
        return None  # the store was moved, or the rows were never stored
