"""Authentication and access by tokens, and their revocation. For operators: `docs/tokens.md`."""
