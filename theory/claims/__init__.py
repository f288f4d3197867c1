"""One file per claim; each defines `CLAIM` (see `theory.judge.ledger`)."""
