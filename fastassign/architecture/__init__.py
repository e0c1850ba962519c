"""From a saved model to a built one: its configuration, brought up to the running library, and its training state."""
