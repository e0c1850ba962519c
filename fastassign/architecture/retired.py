"""Layers and functions of Keras 2 that Keras 3 lacks or has changed, so that old models give the same results."""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable("fastassign")  # type: ignore[untyped-decorator] # keras is not typed
def hard_sigmoid(x: Any) -> Any:
    """Return ``clip(0.2 x + 0.5, 0, 1)``: Keras 1 and 2's ``hard_sigmoid``, where Keras 3 has ``relu6(x + 3) / 6``."""
    return keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0)


@keras.saving.register_keras_serializable("fastassign")
class ThresholdedReLU(keras.layers.Layer):  # type: ignore[misc]
    """``x`` where ``x > theta``, else 0: a layer of Keras 1 and 2.

    Parameters
    ----------
    theta : float
        The threshold.
    """

    def __init__(self, theta: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.theta = float(theta)
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Apply the threshold."""
        return inputs * keras.ops.cast(inputs > self.theta, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        return {**super().get_config(), "theta": self.theta}

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the input."""
        return input_shape
