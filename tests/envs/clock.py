"""A clock that moves when it is told to, for tests of what happens in real time."""


class Clock:
    def __init__(self) -> None:
        self.now = 100.0  # any origin

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        # A tick more than asked for: ten times 0.1 is a rounding error below 1.
        self.now += seconds + 1e-9
