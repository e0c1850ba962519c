"""What is in a model: its variables, as the rooms to the right need to see them."""
