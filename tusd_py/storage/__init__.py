"""Storage of uploads. `base.py` is the contract, `file/` implements it with files."""
