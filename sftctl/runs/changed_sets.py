"""Validation sets whose rows are not those that a checkpoint was evaluated on.

Loads neither torch nor numpy.
"""

from collections.abc import Iterator, Mapping

from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.runs.differences import Difference


def changed_sets(
    manifest: CheckpointManifest, fingerprints: Mapping[str, str]
) -> Iterator[Difference]:
    """A difference for each set with another fingerprint than the checkpoint recorded."""
    for name, now in fingerprints.items():
        was = manifest.set_fingerprints.get(name)
        if was not in (None, now):
            effect = "its rows or their preparation changed: later evaluations are of other rows"
            key = f"evaluation.sets: {name}"
            yield Difference(key, str(was)[:12], now[:12], "free", effect)
