"""The operators' API and page: what is coming in, what stands still and why, and actions on it. docs/admin.md describes it."""
