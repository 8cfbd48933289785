"""What a test has in the place of worker processes."""


class Here:
    """In the place of a pool of processes: this one."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, function, *columns, **_):
        return map(function, *columns)
