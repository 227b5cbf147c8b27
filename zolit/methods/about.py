"""The description of a method that ``zolit methods`` prints."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class About:
    """Describes a method. Most attributes are columns of the table.

    Attributes:
        paper: The paper and its arXiv id.
        stages: The stages of a step that differ from MeZO's.
        forwards: Forward passes per step, as a formula of the method's options.
        forwards_by_default: Forward passes per step with the default options.
        memory: Memory in addition to MeZO's.
        when: Completes the sentence "Use it when ...".
        page: The method's page, relative to ``docs/methods``.
        backwards: Backward passes per step.
    """

    paper: str
    stages: str
    forwards: str
    forwards_by_default: int
    memory: str
    when: str
    page: str
    backwards: int = 0
