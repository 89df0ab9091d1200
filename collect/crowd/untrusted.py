"""Episode files as stations bring them, opened as what they are: somebody else's.

HDF5 can lead out of a file: soft and external links, raw data in other files, virtual datasets
(HDF5 User's Guide, 4 and 5). Whoever holds a station's token could have the site read its own key
file as pixels. A filter can be a plugin, which is code. And a few kilobytes can claim to be
terabytes of zeros. An episode has none of that, so a file which has is damaged, and nothing of it
is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from robot_stack.episode import Episode
from robot_stack.errors import EpisodeError

__all__ = ["open_untrusted"]

MOST_OBJECTS = 512  # an episode has about fifty
MOST_ROWS = 4_000_000
MOST_ROW_BYTES = 64 << 20  # an image of 21 megapixels
MOST_BYTES = 256 << 20  # of what is read at once: all but images, depth and logs
FILTERS = {h5py.h5z.FILTER_DEFLATE}  # others of HDF5 are parsers, too, or code in plugins
BY_ROWS = ("observations/images/", "observations/depth/", "log/")
DAMAGED = (ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)


@contextmanager
def open_untrusted(path: Path) -> Iterator[Episode]:
    """The episode at ``path``; EpisodeError for a damaged file, one that leads out of itself, and
    one that claims to be larger than an episode can be, whenever in the block that turns up."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            _check(file)
        with Episode.open(path) as episode:
            yield episode
    except EpisodeError:
        raise
    except (*DAMAGED, AttributeError) as error:  # as h5py and numpy say it of what is cut short
        raise EpisodeError(f"{path.name} is damaged: {error}") from error


def _check(file: h5py.File) -> None:
    groups: list[tuple[str, h5py.Group]] = [("", file)]
    seen = 0
    while groups:
        prefix, group = groups.pop()
        for name in group:
            where = prefix + name
            seen += 1
            if seen > MOST_OBJECTS:  # or a group that holds itself
                raise EpisodeError(f"an episode has fewer than {MOST_OBJECTS} objects")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise EpisodeError(f"/{where} is a link; an episode has none")
            item = group[name]
            if isinstance(item, h5py.Group):
                groups.append((where + "/", item))
            elif isinstance(item, h5py.Dataset):
                _check_dataset(where, item)
            else:
                raise EpisodeError(f"/{where} is no group and no dataset")


def _check_dataset(where: str, dataset: h5py.Dataset) -> None:
    if dataset.external or dataset.is_virtual:
        raise EpisodeError(f"/{where} has its data in another file")
    if dataset.dtype.hasobject:
        raise EpisodeError(f"/{where} is of variable length; an episode's are fixed")
    made = dataset.id.get_create_plist()
    if not {made.get_filter(i)[0] for i in range(made.get_nfilters())} <= FILTERS:
        raise EpisodeError(f"/{where} is packed in a way that no episode is")
    size = dataset.dtype.itemsize
    shape = dataset.shape or ()
    rows = shape[0] if shape else 1
    row = math.prod(shape[1:]) * size
    chunk = math.prod(dataset.chunks or ()) * size
    whole = 0 if where.startswith(BY_ROWS) else math.prod(shape) * size
    if rows > MOST_ROWS or max(row, chunk) > MOST_ROW_BYTES or whole > MOST_BYTES:
        raise EpisodeError(f"/{where} claims to be {shape} of {size} bytes; no episode is")
