"""Moving bytes from storage into host buffers."""
