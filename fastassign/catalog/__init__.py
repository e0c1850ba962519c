"""What is in a weight file: layouts, records, the policy for untrusted files, the index cache."""
