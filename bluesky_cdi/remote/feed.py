"""What the reconstruction's process is told, and a new one again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bluesky_cdi.remote.link import Link
from bluesky_cdi.remote.listening import Listening
from bluesky_cdi.remote.process_state import ProcessState
from bluesky_cdi.remote.questions import Question, Questions
from bluesky_cdi.remote.run_files import RunFiles

# A file of the journal that has grown, a question, or a bare word.
Item = Path | Question | str


class Feed:
    """Sends documents and questions to a process; a new one gets the scan that was announced and its run once more.

    Parameters
    ----------
    questions : Questions
        Those that are open.
    state : ProcessState
        Learns what has been sent.
    listening : Listening
        Knows whether estimates are wanted.
    """

    def __init__(self, questions: Questions, state: ProcessState, listening: Listening) -> None:
        self._questions, self._state, self._listening = questions, state, listening
        self._runs = RunFiles()
        self._announced: Question | None = None

    def send(self, link: Link, item: Item) -> None:
        """Send one thing on.

        Parameters
        ----------
        link : Link
            To the process.
        item : path, Question or str
            A file of the journal that has grown, a question, or a message without values.

        Raises
        ------
        OSError
            If the process is gone.
        """
        if isinstance(item, Path):
            self._send_documents(link, self._runs.new_records(item))
        elif isinstance(item, Question):
            self.note(item)
            link.send(item.message)
        else:
            link.send([item])

    def note(self, item: Item) -> None:
        """Keep something in mind that there is nobody to send it to: the next process is told of it.

        Parameters
        ----------
        item : path, Question or str
            As for `send`.
        """
        if isinstance(item, Path):
            self._runs.note(item)
        elif isinstance(item, Question):
            if item.message[0] == "begin":
                self._announced = item
                self._state.sends_scan()
            item.was_sent = True

    def send_again(self, link: Link) -> None:
        """Tell a new process what the one before knew: the scan that was announced, its run, and what was asked."""
        if self._listening.is_wanted:
            link.send(["want"])
        asked = self._questions.sent()
        self._state.starts_anew()
        if self._announced is not None and self._announced.was_sent and self._announced not in asked:
            name, _, *values = self._announced.message
            self._state.sends_scan(again=True)
            link.send([name, 0, *values])
        for question in asked:
            if question.message[0] == "begin":
                self._state.sends_scan(again=True)
                link.send(question.message)
        self._send_documents(link, self._runs.all_records())
        for question in asked:
            if question.message[0] != "begin":
                link.send(question.message)

    def leave(self) -> None:
        """Tell no new process of the scan and the runs that were."""
        self._runs.leave()
        self._announced = None

    def leave_runs(self) -> None:
        """Tell no new process of the runs that were; the scan that was announced is another one's."""
        self._runs.leave()

    def begins_a_run(self, item: Item) -> bool:
        """Tell whether something is the announcement of a scan, or of a run that was not heard of before."""
        if isinstance(item, Question):
            return bool(item.message[0] == "begin")
        return isinstance(item, Path) and not self._runs.knows(item)

    def close(self) -> None:
        """Close the files."""
        self._runs.close()

    def _send_documents(self, link: Link, records: Iterable[bytes]) -> None:
        for record in records:
            link.send(["document", record])
            self._state.documents += 1
