"""The options of a method as the command line sees them."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser

from zolit import ZerothOrder


def defaults(method: type[ZerothOrder]) -> dict[str, Any]:
    """Returns the default of each option of a method, also of the options that methods share, by name."""
    parser = ArgumentParser()
    parser.add_class_arguments(method, skip={"model"})
    return dict(parser.get_defaults())
