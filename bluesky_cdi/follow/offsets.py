"""How far the documents of each place are done with."""

from __future__ import annotations


class Offsets:
    """Knows what came last from each place, and where runs begin that are not done."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        self._pending: dict[str, tuple[str, int]] = {}

    def see(self, place: str, offset: int) -> None:
        """Learn of a document."""
        self._seen[place] = offset + 1

    def hold(self, uid: str, place: str, offset: int) -> None:
        """Learn of the first document of a run, which is needed until the run is done."""
        self._pending[uid] = (place, offset)

    def release(self, uid: str) -> None:
        """Learn that a run is done, and need not come again."""
        self._pending.pop(uid, None)

    def leave(self, place: str) -> None:
        """Forget a place."""
        self._pending = {uid: at for uid, at in self._pending.items() if at[0] != place}
        self._seen.pop(place, None)

    @property
    def done_before(self) -> dict[str, int]:
        """By place, the first offset that may be needed once more."""
        first = dict(self._seen)
        for place, offset in self._pending.values():
            first[place] = min(first.get(place, offset), offset)
        return first
