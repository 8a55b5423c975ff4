"""Following runs that other RunEngines publish: from a proxy of 0MQ or from Kafka to the worker and the catalog.

Importing this package loads neither a network library nor a client of a broker.
"""

from bluesky_cdi.follow.finished import Finished
from bluesky_cdi.follow.follower import Follower
from bluesky_cdi.follow.selection import Selection
from bluesky_cdi.follow.source import Cut, Message, Source

__all__ = ["Cut", "Finished", "Follower", "Message", "Selection", "Source"]
