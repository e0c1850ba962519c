"""Options by the names of their knobs, wherever those stand."""

from dataclasses import fields

from fastassign.options import DeviceOptions, LoadOptions

_OF_LOADS = {field.name for field in fields(LoadOptions)}


def load_options(**knobs):
    """Return options: ``device_threads`` and ``device_window_bytes`` are a device's, and so is what no load has."""
    plain = {name: value for name, value in knobs.items() if name in _OF_LOADS}
    device = {name.removeprefix("device_"): value for name, value in knobs.items() if name not in _OF_LOADS}
    return LoadOptions(**plain, device=DeviceOptions(**device))
