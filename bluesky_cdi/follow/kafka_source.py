"""Documents from a topic of Kafka, as bluesky-kafka publishes them.

A message holds a pair: the kind of a document, and the document. Messages of one key lie in one partition, in their
order; followers of one group share the partitions.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

from bluesky_cdi.errors import DocumentError
from bluesky_cdi.follow.kafka_ends import kafka
from bluesky_cdi.follow.source import Complaints, Cut, Message, is_document
from bluesky_cdi.follow.wire import decode

logger = logging.getLogger(__name__)

# How long a broker may take for an answer, seconds.
ANSWER_S = 10.0
# A group that has read nothing of a partition looks for a run under way in so many of its last messages.
LOOK_BACK = 10_000


class KafkaSource:
    """Subscribes to a topic as a member of a group.

    A partition is read from where the group has come to: the first document of the first run that is not done. A group
    that has read nothing of it begins with the run that is under way, if its start document is among the last
    messages, else with what comes next.

    Parameters
    ----------
    bootstrap : str
        Addresses of brokers, ``HOST:PORT`` with commas between them.
    topic : str
        Which topic.
    group : str
        Name of the group.
    settings : Mapping, optional
        Further ones of the client.
    from_start : bool
        Begin with everything that the topic holds where the group has read nothing.
    look_back : int
        So many messages of a partition are looked through for a run that is under way.
    """

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        group: str,
        *,
        settings: Mapping[str, Any] | None = None,
        from_start: bool = False,
        look_back: int = LOOK_BACK,
    ) -> None:
        self._kafka = kafka()
        self._bootstrap, self._topic = bootstrap, topic
        self._from_start, self._look_back = from_start, look_back
        self._complaints = Complaints()
        self._cuts: deque[Cut] = deque()
        self._told: dict[str, int] = {}
        self._said: set[int] = set()
        self._settings: dict[str, Any] = {
            # What goes wrong is said by `_on_error`; the client's own log repeats it every second.
            "log_level": 2,
            **(settings or {}),
            "bootstrap.servers": bootstrap,
            "group.id": group,
            # What is done is told once its result is kept, see `done_before`.
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest" if from_start else "latest",
            # A follower that joins takes nothing away but what it gets.
            "partition.assignment.strategy": "cooperative-sticky",
            "error_cb": self._on_error,
            "on_commit": self._on_commit,
            "logger": logging.getLogger("bluesky_cdi.follow.librdkafka"),
        }
        self._consumer = self._kafka.Consumer(self._settings)
        self._subscribe()

    def next(self, timeout_s: float) -> Message | Cut | None:
        """Give what comes next; None where nothing has come.

        Parameters
        ----------
        timeout_s : float
            How long to wait, seconds.
        """
        if self._cuts:
            return self._cuts.popleft()
        record = self._consumer.poll(timeout_s)
        if record is None:
            return self._cuts.popleft() if self._cuts else None
        if (error := record.error()) is not None:
            self._complaints.tell(error.code(), "Kafka's topic %s: %s. It is waited for.", self._topic, error.str())
            return None
        self._complaints.forget("brokers")
        return self._read(record)

    def done_before(self, offsets: Mapping[str, int]) -> None:
        """Tell the broker what the group need not have again; returns at once, also where no broker answers.

        Parameters
        ----------
        offsets : Mapping
            By partition, the first offset that may be needed once more.
        """
        new = {place: offset for place, offset in offsets.items() if self._told.get(place) != offset}
        if not new:
            return
        self._told |= new
        told = [self._at(int(place), offset) for place, offset in new.items()]
        try:
            self._consumer.commit(offsets=told, asynchronous=True)
        except self._kafka.KafkaException as err:
            self._on_commit(err, told)

    def close(self) -> None:
        """Leave the group, once the broker has heard what is done; one that does not answer is not waited for."""
        # The client waits as long as a group waits for a member, 45 s, and can't be told otherwise.
        leaving = threading.Thread(target=self._consumer.close, name="bluesky_cdi-leaving", daemon=True)
        leaving.start()
        leaving.join(ANSWER_S)
        if leaving.is_alive():
            logger.warning(
                "no broker has taken leave within %g s: runs that are done may come again, and are recognised", ANSWER_S
            )

    def _subscribe(self) -> None:
        self._consumer.subscribe(
            [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def _at(self, partition: int, offset: int) -> Any:
        return self._kafka.TopicPartition(self._topic, partition, offset)

    def _read(self, record: Any) -> Message | None:
        """Read a record; None where it is no document."""
        if record.key() is None:
            self._complaints.tell(
                "key",
                "documents in the topic %s have no key: they keep no order, and a run may lie in several partitions. "
                "Give the beamline's Publisher a key.",
                self._topic,
            )
        found = self._document(record)
        if found is None:
            return None
        return Message(*found, place=str(record.partition()), offset=record.offset())

    def _document(self, record: Any) -> tuple[str, dict[str, Any]] | None:
        try:
            pair: Any = decode(record.value() or b"")
        except DocumentError as err:
            self._complaints.tell("packed", "a message of the topic %s is left out: %s", self._topic, err)
            return None
        if not (isinstance(pair, list) and len(pair) == 2 and is_document(*pair)):
            # Not the whole of it: it may be a frame.
            said = repr(pair)[:80] if len(record.value() or b"") < 1000 else type(pair).__name__
            self._complaints.tell("kind", "what is no document is left out of the topic %s: %s", self._topic, said)
            return None
        return pair[0], pair[1]

    def _on_assign(self, consumer: Any, partitions: list[Any]) -> None:
        try:
            known = consumer.committed(partitions, timeout=ANSWER_S)
            for partition in known:
                if partition.offset < 0 and not self._from_start:
                    partition.offset = self._under_way(partition)
        except self._kafka.KafkaException as err:
            logger.warning("where to begin is not known, the newest documents are taken: %s", err)
            known = partitions
        if known:
            logger.info("takes partition(s) %s of %s", ", ".join(str(p.partition) for p in known), self._topic)
        consumer.incremental_assign(known)

    def _on_revoke(self, consumer: Any, partitions: list[Any]) -> None:
        self._cut(partitions, "another follower has them now, from their first document on")
        consumer.incremental_unassign(partitions)

    def _on_lost(self, consumer: Any, partitions: list[Any]) -> None:
        self._cut(partitions, "the broker has taken this follower for gone")
        consumer.incremental_unassign(partitions)

    def _cut(self, partitions: list[Any], why: str) -> None:
        for partition in partitions:
            place = str(partition.partition)
            self._told.pop(place, None)
            self._cuts.append(Cut(place, f"partition {place} of {self._topic} is not this follower's any more: {why}"))

    def _on_commit(self, error: Any, partitions: list[Any]) -> None:
        """Learn, while documents are waited for, what became of telling the broker."""
        for partition in partitions:
            if (why := error or partition.error) is not None:
                # Of a partition that another follower has by now, or no broker: what comes again is recognised.
                logger.info(
                    "what is done of partition %s could not be told to the broker: %s", partition.partition, why
                )
                self._told.pop(str(partition.partition), None)

    def _under_way(self, partition: Any) -> int:
        """Find where the first run that is under way in a partition begins; its end where there is none."""
        reader = self._kafka.Consumer({**self._settings, "enable.partition.eof": True})
        try:
            low, high = reader.get_watermark_offsets(partition, timeout=ANSWER_S)
            reader.assign([self._at(partition.partition, max(low, high - self._look_back))])
            under_way: dict[str, int] = {}
            while (record := reader.poll(ANSWER_S)) is not None and record.error() is None:
                if record.offset() >= high:
                    break
                if (found := self._document(record)) is not None:
                    name, doc = found
                    if name == "start":
                        under_way[str(doc.get("uid"))] = record.offset()
                    elif name == "stop":
                        under_way.pop(str(doc.get("run_start")), None)
            return min(under_way.values(), default=high)
        finally:
            reader.close()

    def _on_error(self, error: Any) -> None:
        if error.code() == self._kafka.KafkaError._ALL_BROKERS_DOWN:
            self._complaints.tell("brokers", "no broker answers at %s: they are waited for", self._bootstrap)
        elif error.fatal():
            logger.error("the Kafka client can't go on: %s", error.str())
        elif error.code() not in self._said:
            self._said.add(error.code())
            logger.warning("the Kafka client, which goes on trying: %s", error.str())
