"""The samples of a split as lines of text, by which a run sees later whether its data have changed."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NAME_LENGTH = 60  # characters of a text that stand for it


def sample_line(name: str, content: str, target: str) -> str:
    """`name`: a path below data.root, or how a text begins; `content`: equal for the same bytes; `target`: what is to
    be learned of it, as it is or as a digest. Neither may have a tab or a line end, except `name`."""
    if not name.isprintable():
        name = name.encode("unicode_escape").decode()
    return f"{name}\t{content}\t{target}"


def digest_of(*values: object) -> str:
    """16 characters, equal for values that Python prints alike."""
    return hashlib.blake2b(repr(values).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def digest_of_lines(lines: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(lines).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def digest_of_tensors(tensors: Iterable[Tensor]) -> str:
    """Equal for tensors of the same type, shape and values. A checksum, since it passes over all pixels of a set."""
    checksum, shapes = 0, []
    for tensor in tensors:
        values = tensor.detach().cpu().contiguous().numpy()
        checksum = zlib.crc32(values.data, checksum)
        shapes.append((str(values.dtype), values.shape))
    return f"{checksum:08x}-{digest_of(shapes)}"
