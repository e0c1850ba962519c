"""Legacy files, matched by order or by name."""
