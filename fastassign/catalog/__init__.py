"""Weight files: their layouts and records, the policy for untrusted files, the index cache."""
