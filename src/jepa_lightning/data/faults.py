"""Files that cannot be read: others take their places, they are counted and named, and too many are an error."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from jepa_lightning.data.resume import ResumableLoader

PATIENCE = 10  # unreadable samples in a row that end a run
_FEW = 1000  # files that are too few to judge by how many of them are unreadable

Sample = TypeVar("Sample")
Content = TypeVar("Content")


class UnreadableError(RuntimeError):
    """A video, image or other file that cannot be decoded, or is too short; the message says why."""


class Faults:
    """What could not be read, with the reasons.

    Args:
        kind: what is read, "images" or "videos".
        max_share: of those read that may be unreadable.
        total: how many there are, or infinity.
    """

    def __init__(self, kind: str, max_share: float, total: float) -> None:
        self.kind, self.max_share, self.total = kind, max_share, total
        self.reasons: dict[str, str] = {}
        self._read = self._told = 0

    def add(self, reasons: dict[str, str], read: int) -> None:
        """Count another `read` of them, the unreadable ones included.

        Raises:
            RuntimeError: if they have become too many.
        """
        self.reasons |= reasons
        self._read += read
        if len(self.reasons) / min(max(self._read, _FEW), self.total) > self.max_share:
            self._told = len(self.reasons)
            raise RuntimeError(
                f"{self}, more than max_faulty={self.max_share} allows. Repair or remove them, or give a larger "
                "max_faulty to train on the others."
            )

    def tell(self) -> None:
        """Warn of what has come since the last time."""
        if len(self.reasons) > self._told:
            warnings.warn(f"{self}; others take their places. Repair or remove them.", stacklevel=2)
            self._told = len(self.reasons)

    def __str__(self) -> str:
        read = min(self._read, self.total)
        return f"{len(self.reasons)} of {read} {self.kind} cannot be read: {_name_some(self.reasons)}"


def read_first(
    candidates: Iterable[Sample], read: Callable[[Sample], Content], kind: str, faulty: dict[str, str]
) -> tuple[Sample, Content]:
    """The first of some samples that can be read, and what is in it.

    Args:
        candidates: the sample that is wanted, and others to take in its place; each has a `name`.
        read: from a sample, what is in it.
        kind: what is read, "images" or "videos".
        faulty: where the names of those that cannot be read are noted, with the reasons.

    Raises:
        RuntimeError: if none can be read.
    """
    tried: dict[str, str] = {}
    for sample in candidates:
        try:
            content = read(sample)
            faulty |= tried
            return sample, content
        except UnreadableError as error:
            tried[sample.name] = str(error)  # type: ignore[attr-defined]
    raise RuntimeError(f"{len(tried)} {kind} in a row cannot be read: {_name_some(tried)}. Repair or remove them.")


def _name_some(reasons: dict[str, str]) -> str:
    """The first ten, each with its reason, and how many more there are."""
    named = [f"{name} ({reason})" for name, reason in islice(reasons.items(), PATIENCE)]
    return ", ".join(named) + (f" and {len(reasons) - len(named)} more" if len(reasons) > len(named) else "")


class FaultCountingLoader(ResumableLoader):
    """Keeps what could not be read out of the batches, and tells it in the one process that sees all of them.

    A batch of its data set is a batch, what could not be read for it, with the reasons, and how many were tried.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        faults: Faults = self.dataset.faults  # type: ignore[attr-defined]
        try:
            for batch, faulty, read in super().__iter__():
                faults.add(faulty, read)
                yield batch
        finally:  # also where a Trainer stops before the end
            faults.tell()
