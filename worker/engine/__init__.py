"""Engines behind one small interface, and the bookkeeping of the paged one. No torch here."""
