"""Documents through a broker: librdkafka's own mock of one, which lives in the client of these tests."""

import contextlib
import functools
import logging
import threading

import msgpack
import msgpack_numpy
import pytest

from bluesky_cdi.errors import ConfigError
from bluesky_cdi.follow import Cut
from bluesky_cdi.follow.kafka_ends import read_settings
from bluesky_cdi.follow.kafka_source import KafkaSource
from bluesky_cdi.follow.publishing import Careful, KafkaPublisher, publisher_of
from bluesky_cdi.follow.wire import decode

confluent_kafka = pytest.importorskip("confluent_kafka")

SOON_S = 120.0
# As bluesky-kafka's Publisher does by default.
serializer = functools.partial(msgpack.packb, default=msgpack_numpy.encode)
QUICK = {"fetch.wait.max.ms": 50}


class Alone(KafkaSource):
    """Gets all partitions at once: the mock takes seconds to make a group."""

    def _subscribe(self):
        partitions = self._consumer.list_topics(self._topic, timeout=SOON_S).topics[self._topic].partitions
        self._on_assign(self._consumer, [self._at(each, -1001) for each in partitions])


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """On a busy machine the mock may take longer to answer than a follower should be held up."""
    monkeypatch.setattr("bluesky_cdi.follow.kafka_source.ANSWER_S", SOON_S)


@pytest.fixture(scope="module")
def broker():
    quiet = logging.getLogger("quiet")
    quiet.setLevel(logging.CRITICAL)
    host = confluent_kafka.Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "logger": quiet})
    brokers = host.list_topics(timeout=SOON_S).brokers.values()
    yield ",".join(f"{each.host}:{each.port}" for each in brokers)
    host.flush(SOON_S)


@pytest.fixture
def topic(request):
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name)


@pytest.fixture
def publish(broker, topic):
    producer = confluent_kafka.Producer({"bootstrap.servers": broker})

    def published(documents, key=b"beamline", write=serializer):
        for each in documents:
            producer.produce(topic, key=key, value=write(each))
        assert producer.flush(SOON_S) == 0

    return published


@pytest.fixture
def source(broker, topic):
    with contextlib.ExitStack() as stack:

        def opened(group="group", kind=Alone, **options):
            made = kind(broker, topic, group, settings=QUICK, **options)
            stack.callback(made.close)
            return made

        yield opened


def arrived(source, n):
    found = []
    is_late = threading.Event()
    timer = threading.Timer(SOON_S, is_late.set)
    timer.start()
    while len(found) < n and not is_late.is_set():
        if (message := source.next(0.1)) is not None:
            found.append(message)
    timer.cancel()
    return found


def same(found, run, skip=0):
    assert [message.name for message in found] == [name for name, _ in run.documents[skip:]]
    for message, (_, doc) in zip(found, run.documents[skip:], strict=True):
        assert serializer(message.doc) == serializer(doc)


def test_a_run_that_is_under_way_is_had_from_its_first_document_until_it_is_done(published, publish, source):
    before, now = published("before"), published("now")
    publish([*before.documents, *now.documents[:3]])
    # By a group, as at a beamline.
    follower = source(kind=KafkaSource)
    found = arrived(follower, 3)
    publish(now.documents[3:])
    found += arrived(follower, len(now.documents) - 3)
    same(found, now)
    assert [message.offset for message in found] == list(range(len(before.documents), found[-1].offset + 1))
    (place,) = {message.place for message in found}
    # Who comes next in its group begins where all is done.
    follower.done_before({place: found[4].offset})
    follower.close()
    same(arrived(source(), len(found) - 4), now, skip=4)


def test_a_start_that_is_too_far_back_is_not_looked_for(published, publish, source):
    run, after = published("a", n=9), published("b")
    publish(run.documents[:8])
    follower = source(look_back=5)
    publish([*run.documents[8:], *after.documents])
    same(arrived(follower, len(run.documents) - 8), run, skip=8)
    same(arrived(follower, len(after.documents)), after)


def test_all_that_the_topic_holds(published, publish, source):
    run = published("a")
    publish(run.documents)
    same(arrived(source(from_start=True), len(run.documents)), run)


def test_what_is_no_document_is_left_out(publish, source, caplog):
    publish([b"\xc1", b"\x80\x04pickled"], write=bytes)
    publish([["start", 3], ["nonsense", {}], {"start": 1}, 7, ["start", {"uid": "a"}]])
    (message,) = arrived(source(from_start=True), 1)
    assert message.doc == {"uid": "a"}
    # The client itself may say something of its connections.
    assert len([record for record in caplog.records if record.name == "bluesky_cdi.follow.source"]) == 2


def test_documents_without_a_key_are_told(publish, source, caplog):
    publish([["start", {"uid": "a"}]] * 3, key=None)
    assert len(arrived(source(from_start=True), 3)) == 3
    assert len([record for record in caplog.records if "have no key" in record.getMessage()]) == 1


def test_a_broker_that_is_not_there_is_told_and_waited_for(caplog):
    with contextlib.closing(KafkaSource("127.0.0.1:9", "topic", "group")) as source:
        while "they are waited for" not in caplog.text:
            assert source.next(0.05) is None


def test_what_is_done_is_told_without_waiting_and_again_where_that_failed(source, monkeypatch):
    follower, told = source(kind=KafkaSource), []

    class Consumer:
        def commit(self, offsets, asynchronous):
            assert asynchronous
            told.append([(each.partition, each.offset) for each in offsets])
            self.offsets = offsets

    with monkeypatch.context() as patch:
        patch.setattr(follower, "_consumer", consumer := Consumer())
        for _ in range(2):
            follower.done_before({"0": 3, "1": 4})
        assert told == [[(0, 3), (1, 4)]]
        follower._on_commit(confluent_kafka.KafkaError(confluent_kafka.KafkaError._TIMED_OUT), consumer.offsets[:1])
        follower.done_before({"0": 3, "1": 4})
        assert told[1:] == [[(0, 3)]]


def test_a_broker_that_takes_no_leave_is_not_waited_for(source, monkeypatch, caplog):
    follower, answered = source(kind=KafkaSource), threading.Event()

    class Consumer:
        def close(self):
            answered.wait()

    with monkeypatch.context() as patch:
        patch.setattr("bluesky_cdi.follow.kafka_source.ANSWER_S", 0.01)
        patch.setattr(follower, "_consumer", Consumer())
        follower.close()
    answered.set()
    assert "no broker has taken leave" in caplog.text


class Partition:
    def __init__(self, partition):
        self.partition = partition


def test_partitions_that_another_follower_gets_are_told(source):
    follower = source(kind=KafkaSource)

    class Consumer:
        def incremental_unassign(self, partitions):
            self.left = partitions

    consumer = Consumer()
    follower._on_revoke(consumer, [Partition(2), Partition(3)])
    cuts = [follower.next(0.0), follower.next(0.0)]
    assert [cut.place for cut in cuts] == ["2", "3"] and all(isinstance(cut, Cut) for cut in cuts)
    assert "another follower has them now" in cuts[0].why and len(consumer.left) == 2
    follower._on_lost(consumer, [Partition(2)])
    assert "taken this follower for gone" in follower.next(0.0).why


def test_results_come_whole_to_one_partition(broker, topic, source, published):
    publish = publisher_of({"kafka": {"settings": {"bootstrap.servers": broker}, "topic": topic}})
    runs = [published(uid) for uid in ("a", "b", "c", "d")]
    for run in runs:
        for each in run.documents:
            publish(*each)
    found = arrived(source(from_start=True), sum(len(run.documents) for run in runs))
    places = {}
    for message in found:
        places.setdefault(message.place, []).append(message)
    for run in runs:
        (place,) = [each for each in places.values() if run.uid in {message.doc.get("uid") for message in each}]
        first = [message.doc.get("uid") for message in place].index(run.uid)
        same(place[first : first + len(run.documents)], run)


def test_without_a_broker_nothing_is_held_up(published, caplog, monkeypatch):
    monkeypatch.setattr("bluesky_cdi.follow.publishing.PATIENCE_S", 0.05)
    quiet = logging.getLogger("quiet")
    publish = Careful(KafkaPublisher({"bootstrap.servers": "127.0.0.1:9", "logger": quiet}, "topic"))
    for each in published("a").documents:
        publish(*each)
    assert "and not published: no broker has taken 7 document(s)" in caplog.text


def test_settings_of_the_client(tmp_path):
    path = tmp_path / "kafka.yaml"
    path.write_text("security.protocol: SASL_SSL\nsasl.password: secret\n")
    assert read_settings(path) == {"security.protocol": "SASL_SSL", "sasl.password": "secret"}
    for text, why in (
        ("group.id: x", "must not set group.id"),
        ("[1, 2]", "a mapping of names"),
        ("a: {b: 1}", "a mapping of names"),
        ("sasl.password: 'secret", "can't read"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=why) as caught:
            read_settings(path)
        assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="can't read"):
        read_settings(tmp_path / "absent")


def test_messages_are_as_bluesky_kafka_has_them():
    assert decode(serializer(("start", {"uid": "a"}))) == ["start", {"uid": "a"}]
