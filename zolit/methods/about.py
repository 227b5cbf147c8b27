"""What there is to say of a method in a line each; ``zolit methods`` prints it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class About:
    """A method in a few words.

    Attributes:
        paper: Where it comes from, with the arXiv id.
        rooms: What it chooses in the rooms that differ from MeZO's.
        forwards: Forward passes of a step, in terms of its options.
        forwards_by_default: The same as a number, with the options' defaults.
        memory: What is kept beside MeZO's memory.
        when: When to take it.
        page: Its page, in docs/methods.
        backwards: Backward passes of a step.
    """

    paper: str
    rooms: str
    forwards: str
    forwards_by_default: int
    memory: str
    when: str
    page: str
    backwards: int = 0
