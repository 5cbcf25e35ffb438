"""`trireme`: the commands for people. They start the tiers and talk to them over HTTP only."""
