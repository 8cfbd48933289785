"""The local cache of the Hub, written in the layout of its library."""

import hashlib
from pathlib import Path

COMMIT = "0" * 39 + "1"


def hub_cache(folder: Path, address: str, files: dict[str, bytes]) -> Path:
    """A repository in the local cache in the layout of the Hub's library: refs, blobs by digest, snapshots of links."""
    repository = folder / f"models--{address.replace('/', '--')}"
    for part in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (repository / part).mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for name, content in files.items():
        blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (repository / "snapshots" / COMMIT / name).symlink_to(f"../../blobs/{blob.name}")
    return repository
