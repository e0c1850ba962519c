"""What has to be said before TensorFlow makes its first tensor: importing this says it."""

import os
import signal

# A job that a shell runs in the background ignores Ctrl-C, and so would the programs that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
# A card has to serve the programs that the tests start, too.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
# Small models gain nothing from many threads, and two test processes would have them wait for each other. The
# environment, so that it holds for programs that the tests start, too.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import tensorflow as tf

# Three devices, for the tests of distribution strategies, and to stand for cards: it has to be said before TensorFlow
# makes its first tensor.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 3
)
