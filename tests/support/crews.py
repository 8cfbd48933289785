"""Crews without processes, for tests that are not about these."""

from tcar.data.workers import Crew


class InlineCrew(Crew):
    """Does what it is given where `collect` is called, one item at a time."""

    def give(self, number, item):
        self._waiting.append((number, item))

    def collect(self):
        number, item = self._waiting.popleft()
        return number, self._function(item)


class BatchedCrew(InlineCrew):
    """Does all it was given before it tells of anything, and tells of the last first."""

    def collect(self):
        if self._outcomes.empty():
            done = [(number, self._function(item)) for number, item in self._waiting]
            for outcome in done[::-1]:
                self._outcomes.put(outcome)
            self._waiting.clear()
        return self._outcomes.get()
