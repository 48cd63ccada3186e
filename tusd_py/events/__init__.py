"""What happens to uploads, and the hooks that are called for it."""
