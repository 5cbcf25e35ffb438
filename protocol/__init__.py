"""What crosses between the tiers: schemas, wires, errors, framing. It imports no tier."""

__version__ = "0.1.0"
