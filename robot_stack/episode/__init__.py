"""The HDF5 episode: write, read, recover, check. The format that everyone exchanges.

Its layout is the table in ``layout``; how it survives being killed stands in ``writer`` and
``recover``.

    with Episode.open("episode_0.hdf5") as episode:
        print(episode.metadata.task, len(episode), episode.action.shape)
"""

from robot_stack.episode.check import Problem, check
from robot_stack.episode.files import next_episode
from robot_stack.episode.layout import EpisodeSchema, ImageLayout, RobotLayout
from robot_stack.episode.metadata import EpisodeMetadata
from robot_stack.episode.reader import Decode, Episode, Event, relabel
from robot_stack.episode.recover import Recovery, recover, recover_all
from robot_stack.episode.row import Image, PackedDepth, Row, pack_depth
from robot_stack.episode.writer import EpisodeWriter

__all__ = [
    "Decode",
    "Episode",
    "EpisodeMetadata",
    "EpisodeSchema",
    "EpisodeWriter",
    "Event",
    "Image",
    "ImageLayout",
    "PackedDepth",
    "Problem",
    "Recovery",
    "RobotLayout",
    "Row",
    "check",
    "next_episode",
    "pack_depth",
    "recover",
    "recover_all",
    "relabel",
]
