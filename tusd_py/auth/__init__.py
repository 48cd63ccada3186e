"""Tokens: who somebody is, what they may do, and how both can be taken back. `docs/tokens.md` tells it to operators."""
