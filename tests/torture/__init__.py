"""The disk proofs: every crash point, every legal state after a power cut, bits, real images."""
