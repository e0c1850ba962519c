"""The execution of a plan: bytes are read, and become the values of variables."""
