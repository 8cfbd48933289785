"""Seeds for one draw among many; apart from what draws, as torchvision takes seconds to import."""

import hashlib


def view_seed(seed: int, *names: str | int) -> int:
    """Return the seed of one view, 63 bits of the SHA-256 of all that names it (clip, epoch, number of the view)."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1
