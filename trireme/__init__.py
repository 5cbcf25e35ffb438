"""What is around the tiers: `service` (what every tier's process shares) and `cli` (for people)."""
