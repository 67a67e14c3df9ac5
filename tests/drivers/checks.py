"""What the drivers' programs in Python share: a line a check on standard output. See run.py."""

import time
import traceback


class Checks:
    """Runs checks one by one; a failed one does not stop the next."""

    @staticmethod
    def passed(name):
        print(f"ok {name}", flush=True)

    @staticmethod
    def failed(name, error):
        traceback.print_exception(error)
        reason = " ".join(f"{type(error).__name__} {error}".split())
        print(f"FAILED {name}: {reason}", flush=True)

    def run(self, name, test, *arguments):
        try:
            test(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the check's result
            self.failed(name, error)
        else:
            self.passed(name)


def same(found, wanted):
    assert found == wanted, f"found {str(found)[:300]!r}, wanted {str(wanted)[:300]!r}"


class Within:
    """A block that must not take longer: a cancel that does nothing would let pg_sleep sleep on."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __enter__(self):
        self.started = time.monotonic()

    def __exit__(self, kind, *_):
        took = time.monotonic() - self.started
        assert kind or took < self.seconds, f"took {took:.1f} s, at most {self.seconds} s allowed"
