"""The models of the cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def gpt_like(*, vocabulary: int = 48_000, width: int = 768, blocks: int = 12, context: int = 1024) -> Any:
    """Build a decoder of GPT-2's shape: 638 MB in 195 tensors, most of them large."""
    from keras import Input, Model, layers

    tokens, positions = Input((None,), dtype="int32"), Input((None,), dtype="int32")
    # Not `+`: Keras 3 can't load that from a legacy file.
    x = layers.Add()([layers.Embedding(vocabulary, width)(tokens), layers.Embedding(context, width)(positions)])
    for _ in range(blocks):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(12, width // 12)(y, y)])
        y = layers.LayerNormalization()(x)
        y = layers.Dense(width)(layers.Dense(4 * width, activation="gelu")(y))
        x = layers.Add()([x, y])
    return Model([tokens, positions], layers.Dense(vocabulary, use_bias=False)(x))


def resnet152() -> Any:
    """Build ResNet152: 242 MB in 932 tensors, most of them small."""
    import keras

    return keras.applications.ResNet152(weights=None)


def tiny_layers(*, layers: int = 2500) -> Any:
    """Build a model of many small layers: 10.5 MB in 5,000 tensors."""
    from keras import Input, Model
    from keras.layers import Dense

    inputs = Input((32,))
    return Model(inputs, [Dense(32)(inputs) for _ in range(layers)])


def demo_model() -> Any:
    """Build a decoder, which takes two seconds: 170 MB in 131 tensors."""
    return gpt_like(vocabulary=16_000, width=576, blocks=8, context=512)


MODELS: dict[str, Callable[[], Any]] = {
    "G": gpt_like,
    "R": resnet152,
    "T": tiny_layers,
}
