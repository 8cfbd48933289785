"""Crews without processes, for tests that are not about these."""

from tcar.data.workers import Crew


class InlineCrew(Crew):
    """Does what it is given where `collect` is called, one item at a time."""

    def collect(self, bell=None):
        if not self._waiting:
            bell.poll(None)
            return []
        number, item = self._waiting.popleft()
        return [(number, self._function(item))]


class BatchedCrew(InlineCrew):
    """Does all it was given before it tells of anything, and tells of the last first."""

    def collect(self, bell=None):
        if not self._waiting:
            bell.poll(None)
        outcomes = [(number, self._function(item)) for number, item in self._waiting]
        self._waiting.clear()
        return outcomes[::-1]
